//! Names, their keys, and their texts.

use proptest::prelude::*;
use tenure_core::name::{MAX_NAME_BYTES, escape, namespace_root, object_at, path};
use tenure_core::{ErrorKind, FencingToken, Kind, Name, Namespace, SessionId};

#[test]
fn hostile_text_is_a_name() {
    for text in [
        "../", "..", " ", "a b", "'; drop", "%2F", "%", "a//b", "ключ", "\n", "\u{202e}",
    ] {
        assert_eq!(Name::new(text).unwrap().as_str(), text);
    }
}

#[test]
fn text_outside_the_limits_is_refused_and_not_repeated_whole() {
    assert!(Name::new("x".repeat(MAX_NAME_BYTES)).is_ok());
    // Counted in bytes.
    assert!(Name::new("ж".repeat(MAX_NAME_BYTES / 2 + 1)).is_err());
    for text in [
        String::new(),
        "x".repeat(MAX_NAME_BYTES + 1),
        "a\0".into(),
        "ж".repeat(10_000),
    ] {
        let error = Name::new(&text).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
        assert!(error.to_string().len() < 400, "{error}");
        assert_eq!(Namespace::new(&text).unwrap_err().kind(), ErrorKind::InvalidName);
    }
}

#[test]
fn texts_are_parsed_and_printed() {
    assert_eq!("a/b".parse::<Name>().unwrap().to_string(), "a/b");
    assert_eq!(Namespace::default(), "default".parse().unwrap());
    assert_eq!("7/x".parse::<SessionId>().unwrap().to_string(), "7/x");
    assert_eq!("42".parse::<FencingToken>().unwrap().to_string(), "42");
    assert!("-1".parse::<FencingToken>().is_err());
}

#[test]
fn token_converts_to_numbers() {
    assert_eq!(u64::from(FencingToken::MAX), (1 << 53) - 1);
    assert_eq!(i64::from(FencingToken::MAX), (1 << 53) - 1);
    assert_eq!(i64::from(FencingToken::new(u64::MAX)), i64::MAX);
}

#[test]
fn serialised_form_is_the_text_and_is_checked() {
    fn round_trip<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(
        value: T,
        json: &str,
    ) {
        assert_eq!(serde_json::to_string(&value).unwrap(), json);
        assert_eq!(serde_json::from_str::<T>(json).unwrap(), value);
    }
    round_trip(Name::new("orders/eu").unwrap(), "\"orders/eu\"");
    round_trip(Namespace::default(), "\"default\"");
    round_trip(SessionId::new("7f"), "\"7f\"");
    round_trip(FencingToken::new(7), "7");
    assert!(serde_json::from_str::<Name>("\"\"").is_err());
    assert!(serde_json::from_str::<Namespace>("\"a\\u0000\"").is_err());
}

#[test]
fn kinds_have_distinct_texts_that_need_no_escape() {
    for (at, kind) in Kind::ALL.iter().enumerate() {
        assert_eq!(Kind::from_text(kind.as_str()), Some(*kind));
        assert_eq!(escape(kind.as_str()), kind.as_str());
        assert!(Kind::ALL[..at].iter().all(|other| other.as_str() != kind.as_str()));
    }
    assert_eq!(Kind::from_text("Lock"), None);
}

#[test]
fn path_is_readable() {
    let (namespace, name) = (Namespace::new("shop/eu").unwrap(), Name::new("ключ 1%\n").unwrap());
    assert_eq!(namespace_root(&namespace), "tenure/1/shop%2Feu");
    assert_eq!(
        path(&namespace, Kind::RwLock, &name),
        "tenure/1/shop%2Feu/rw_lock/ключ 1%25%0A"
    );
    assert_eq!(object_at("lock"), None);
    assert_eq!(object_at("lock/"), None);
    assert_eq!(object_at("bolt/a"), None);
}

proptest! {
    #[test]
    fn escaped_text_is_injective_and_flat(a in "\\PC{1,20}|[/%.a2F\\x7f\n]{1,8}", b in "\\PC{1,20}|[/%.a2F\\x7f\n]{1,8}") {
        let (x, y) = (escape(&a), escape(&b));
        prop_assert_eq!(object_at(&format!("rw_lock/{x}/1-2")), Some((Kind::RwLock, Name::new(&a).unwrap())));
        prop_assert!(!x.contains('/'));
        prop_assert_eq!(a == b, x == y);
        // A name that looks escaped is another name.
        prop_assert_eq!(a == x, escape(&x) == x);
    }

    #[test]
    fn path_contains_no_other(
        ns_a in "[/%.a2F]{1,5}", a in "[/%.a2F]{1,8}",
        ns_b in "[/%.a2F]{1,5}", b in "[/%.a2F]{1,8}",
    ) {
        let make = |namespace: &str, name: &str| {
            path(&Namespace::new(namespace).unwrap(), Kind::Lock, &Name::new(name).unwrap()) + "/"
        };
        let (x, y) = (make(&ns_a, &a), make(&ns_b, &b));
        prop_assert_eq!((&ns_a, &a) == (&ns_b, &b), x == y);
        prop_assert!(x == y || (!x.starts_with(&y) && !y.starts_with(&x)));
    }
}
