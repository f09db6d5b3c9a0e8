#![no_main]
//! URLs: no panic, every refusal is an error of configuration, and no password is ever shown.

use libfuzzer_sys::fuzz_target;
use tenure_core::ErrorKind;
use tenure_core::backend::StoreUrl;

const CANARY: &str = "canary-7d1f";

/// What `tenure::connect` does with a URL before it opens a connection. Debug output is what logs show.
fn shown(text: &str) -> String {
    let parse = || StoreUrl::parse(text);
    let url = match parse() {
        Ok(url) => url,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Config, "{text:?}");
            return format!("{error} {error:?}");
        }
    };
    let mut shown = format!("{url:?}");
    macro_rules! read {
        ($($config:ty),*) => {$(
            shown += &match <$config>::from_url(parse().expect("as before")) {
                Ok(config) => format!("{config:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
        )*};
    }
    read!(
        tenure_memory::MemoryConfig,
        tenure_etcd::EtcdConfig,
        tenure_redis::RedisConfig,
        tenure_postgres::PostgresConfig
    );
    shown
}

fuzz_target!(|text: &str| {
    shown(text);
    if text.contains("canary") {
        return;
    }
    for scheme in [
        "memory",
        "etcd",
        "etcds",
        "redis",
        "rediss+sentinel",
        "redis+cluster",
        "postgres",
    ] {
        shown(&format!("{scheme}:{text}"));
        let secret = shown(&format!("{scheme}://user:{CANARY}@{text}"));
        assert!(!secret.contains(CANARY), "{scheme} {text:?}: {secret}");
    }
});
