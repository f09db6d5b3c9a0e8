//! The syntax of store URLs, and the options that override them.

use std::time::Duration;

use tenure_core::executor::Executor;
use tenure_core::url::{StoreUrl, parse_duration};
use tenure_core::{ConnectOptions, Credentials, Error, ErrorKind, Namespace, TlsFiles};

fn parse(text: &str) -> StoreUrl {
    StoreUrl::parse(text).unwrap()
}

/// Takes fixed credentials as text.
fn login(url: &mut StoreUrl) -> Option<(String, Option<String>)> {
    let source = url.take_credentials()?;
    let credentials = source.as_fixed()?;
    Some((
        credentials.user().into(),
        credentials.password().map(|secret| secret.expose().into()),
    ))
}

fn text(error: &Error) -> String {
    format!("{error} {error:?}")
}

#[test]
fn url_is_split_and_decoded() {
    let mut url = parse("ETCD://us%40er:p%2Fw@a:1,b:2/name%20space?ttl=10s&interop=true");
    assert_eq!(url.scheme(), "etcd");
    assert_eq!(login(&mut url), Some(("us@er".into(), Some("p/w".into()))));
    assert_eq!(url.hosts(), ["a:1", "b:2"]);
    assert_eq!(url.path(), "name space");
    assert_eq!(url.take_ttl().unwrap(), Some(Duration::from_secs(10)));
    assert!(url.take_flag("interop").unwrap());
    assert!(!url.take_flag("absent").unwrap());
    url.finish().unwrap();
}

#[test]
fn url_with_a_plus_in_its_scheme_is_split() {
    let mut url = parse("rediss+sentinel://:pass@a:1,b:2/service?namespace=n%2Fs");
    assert_eq!(url.scheme(), "rediss+sentinel");
    assert_eq!(login(&mut url), Some((String::new(), Some("pass".into()))));
    assert_eq!(url.hosts(), ["a:1", "b:2"]);
    assert_eq!(url.take_namespace().unwrap(), Some(Namespace::new("n/s").unwrap()));
    url.finish().unwrap();
    assert_eq!(login(&mut parse("postgres://app@h/db")), Some(("app".into(), None)));
    assert!(parse("redis://").hosts().is_empty());
}

#[test]
fn url_without_servers_has_only_a_path() {
    assert_eq!(parse("memory:").path(), "");
    let mut url = parse("file:/var/lib/a.db?ttl=1s");
    assert_eq!((url.path(), url.hosts().len()), ("/var/lib/a.db", 0));
    assert!(url.take_ttl().unwrap().is_some());
    // An `@` is an ordinary character there.
    assert_eq!(parse("memory:a@b").path(), "a@b");
}

#[test]
fn ipv6_address_is_taken_in_brackets_only() {
    assert_eq!(
        parse("etcd://u:p@[::1]:2379,[fe80::1],h:1,h/ns").hosts(),
        ["[::1]:2379", "[fe80::1]", "h:1", "h"]
    );
    for host in [
        "[::1",
        "::1",
        "::1:6379",
        "[h]:6379",
        "[::1]6379",
        "[::1]:1:2",
        "h]:1",
        "h,[::1",
        ":1",
        "h,,i",
        "a,",
    ] {
        let error = StoreUrl::parse(&format!("redis://{host}/0")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config, "{host}");
    }
}

#[test]
fn malformed_url_is_refused() {
    for bad in [
        "",
        "etcd",
        "://x",
        "a b://x",
        "etcd://h/ns?a=1&a=2",
        "etcd://h/%ff",
        "etcd://h/%zz",
        "etcd://u:50%@h/ns",
        "etcd://u:%zz@h/ns",
        "etcd://h/ns?a=%4",
        "etcd://h/n#x",
        "etcd://h/n?a=b#x",
    ] {
        assert_eq!(StoreUrl::parse(bad).unwrap_err().kind(), ErrorKind::Config, "{bad:?}");
    }
}

#[test]
fn password_that_is_not_encoded_is_refused_and_not_shown() {
    for url in [
        "etcd://u:can/ary@h:1/ns",
        "etcd://u:can?ary@h:1/ns",
        "etcd://u:can#ary@h:1/ns",
        "etcd://u:12/canary@h:1/ns",
        "etcd://can:9/x?y=ary@h:1",
        "etcd://u:x@can/ary@h:1/ns",
        "etcd://u:x@can?ary@h:1",
        "etcd://u:canary%@h:1",
    ] {
        let shown = text(&StoreUrl::parse(url).unwrap_err());
        assert!(!shown.contains("can/") && !shown.contains("ary"), "{shown}");
    }
    assert_eq!(parse("etcd://h:1/a%40b").path(), "a@b");
}

#[test]
fn unknown_key_is_refused_with_the_known_ones() {
    let mut url = parse("etcd://u:canary@h:1/ns?tll=canary&word=canary");
    assert!(!format!("{url:?}").contains("canary"));
    let word = url.take_secret("word").unwrap();
    assert_eq!(word.expose(), "canary");
    let _ = (url.take_ttl(), url.take_credentials());
    let shown = text(&url.finish().unwrap_err());
    assert!(shown.contains("`tll`") && shown.contains("word, ttl"), "{shown}");
    assert!(!shown.contains("canary"), "{shown}");
}

#[test]
fn values_of_a_wrong_form_are_refused_and_not_shown() {
    for (query, key) in [
        ("ttl=canary", "ttl"),
        ("ttl=0s", "ttl"),
        ("ttl=10", "ttl"),
        ("interop=canary", "interop"),
    ] {
        let mut url = parse(&format!("etcd://h?{query}"));
        let error = match key {
            "ttl" => url.take_ttl().map(drop).unwrap_err(),
            key => url.take_flag(key).map(drop).unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(
            error.to_string().contains(key) && !error.to_string().contains("canary"),
            "{error}"
        );
    }
    assert_eq!(
        parse("etcd://h?namespace=").take_namespace().unwrap_err().kind(),
        ErrorKind::InvalidName
    );
    assert!(parse("etcd://h?client_label=a%0Ab").take_label().is_err());
}

#[test]
fn duration_needs_a_unit() {
    for (text, milliseconds) in [
        ("500ms", 500),
        ("10s", 10_000),
        ("2m", 120_000),
        ("1h", 3_600_000),
        ("0s", 0),
    ] {
        assert_eq!(
            parse_duration(text),
            Some(Duration::from_millis(milliseconds)),
            "{text}"
        );
    }
    for text in [
        "",
        "10",
        "s",
        "-1s",
        "1.5s",
        "1 s",
        "1d",
        "99999999999999999999s",
        "18446744073709551615h",
    ] {
        assert_eq!(parse_duration(text), None, "{text}");
    }
}

#[test]
fn options_override_the_url() {
    let options = ConnectOptions::new()
        .namespace(Namespace::new("ours").unwrap())
        .ttl(Duration::from_secs(2))
        .label("billing")
        .credentials(Credentials::new("v", "canary"))
        .tls(TlsFiles::new().server_name("store"));
    let mut url = parse("etcds://u:p@h:1?namespace=url&ttl=1s&ca=/url&client_label=url").with(options);
    assert!(!format!("{url:?}").contains("canary"));
    assert_eq!(login(&mut url), Some(("v".into(), Some("canary".into()))));
    assert_eq!(url.take_namespace().unwrap().unwrap().as_str(), "ours");
    assert_eq!(url.take_ttl().unwrap(), Some(Duration::from_secs(2)));
    assert_eq!(url.take_label().unwrap().as_deref(), Some("billing"));
    let tls = url.take_tls(true, "etcds").unwrap().unwrap();
    assert_eq!(tls, TlsFiles::new().ca("/url").server_name("store"));
    url.finish().unwrap();
}

#[test]
fn later_options_override_only_what_they_set() {
    let namespace = Namespace::new("ours").unwrap();
    let mut url = parse("etcd://h")
        .with(ConnectOptions::new().namespace(namespace.clone()))
        .with(ConnectOptions::new().ttl(Duration::ZERO));
    assert_eq!(url.take_namespace().unwrap(), Some(namespace));
    assert_eq!(url.take_ttl().unwrap_err().kind(), ErrorKind::Config);
}

#[test]
fn option_that_the_store_does_not_take_is_refused() {
    parse("memory:").finish().unwrap();
    for (options, named) in [
        (ConnectOptions::new().namespace(Namespace::default()), "namespace"),
        (ConnectOptions::new().ttl(Duration::from_secs(1)), "TTL"),
        (ConnectOptions::new().label("billing"), "label"),
        (
            ConnectOptions::new().credentials(Credentials::new("u", "canary")),
            "credentials",
        ),
        (
            ConnectOptions::new().credentials_from(|| async { Ok(Credentials::new("", "")) }),
            "credentials",
        ),
        (ConnectOptions::new().tls(TlsFiles::new()), "TLS"),
        (ConnectOptions::new().executor(Executor::library().unwrap()), "executor"),
    ] {
        let shown = text(&parse("memory:").with(options).finish().unwrap_err());
        assert!(shown.contains(named) && !shown.contains("canary"), "{shown}");
    }
    assert!(parse("memory://u:p@h").finish().is_err());
}

#[test]
fn tls_files_without_tls_are_refused() {
    for query in ["ca=/ca", "cert=/c&key=/k", "server_name=s"] {
        let mut url = parse(&format!("etcd://h?{query}"));
        let error = url.take_tls(false, "etcds").unwrap_err();
        assert!(error.to_string().contains("`etcds`"), "{error}");
    }
    let mut url = parse("etcd://h").with(ConnectOptions::new().tls(TlsFiles::new()));
    assert!(url.take_tls(false, "etcds").is_err());
    assert_eq!(parse("etcd://h").take_tls(false, "etcds").unwrap(), None);
    assert!(parse("etcds://h?cert=/c").take_tls(true, "etcds").is_err());
    assert_eq!(
        parse("etcds://h").take_tls(true, "etcds").unwrap(),
        Some(TlsFiles::new())
    );
}
