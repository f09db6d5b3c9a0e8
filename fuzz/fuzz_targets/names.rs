#![no_main]
//! Names: what is accepted keeps the limits, and different names have different keys, none of which
//! is the beginning of another.

use libfuzzer_sys::fuzz_target;
use tenure_core::backend::{Kind, escape, path};
use tenure_core::{Name, Namespace};

fuzz_target!(|input: (&str, &str, &str)| {
    let (namespace, a, b) = input;
    assert_eq!(a == b, escape(a) == escape(b));
    let (Ok(namespace), Ok(a), Ok(b)) = (Namespace::new(namespace), Name::new(a), Name::new(b)) else {
        return;
    };
    for name in [&a, &b] {
        assert!((1..=512).contains(&name.as_str().len()) && !name.as_str().contains('\0'));
    }
    let (x, y) = (path(&namespace, Kind::Lock, &a), path(&namespace, Kind::Lock, &b));
    assert_eq!(a == b, x == y);
    let (x, y) = (x + "/", y + "/");
    assert!(x == y || !(x.starts_with(&y) || y.starts_with(&x)));
    assert_ne!(x, path(&namespace, Kind::Queue, &a) + "/");
});
