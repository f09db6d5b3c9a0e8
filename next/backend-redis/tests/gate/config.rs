//! URLs, and what they refuse.

use tenure_core::url::StoreUrl;
use tenure_core::{ConnectOptions, Credentials, ErrorKind, Namespace, Result};
use tenure_redis::RedisConfig;

fn parse(url: &str) -> Result<RedisConfig> {
    RedisConfig::from_url(StoreUrl::parse(url)?)
}

#[test]
fn config_with_every_key_is_accepted_and_shows_no_secret() {
    for url in [
        "rediss://u:canary@a:1/3?namespace=ns&ttl=3s&timeout=1s&connect_timeout=1s&wait_replicas=1&wait_aof=true&ca=/ca&cert=/c&key=/k&server_name=s&client_label=billing",
        "redis+sentinel://u:canary@a:1,[::1]:2/mymaster?db=2&sentinel_user=s&sentinel_password=canary",
        "rediss+cluster://:canary@a:1,b:2?namespace=ns&allow_eviction=true&interop=false",
        "redis://h:1/0",
    ] {
        let config = parse(url).unwrap();
        let shown = format!("{config:?}");
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn config_shows_the_parts_of_its_url() {
    let shown = format!(
        "{:?}",
        parse("redis+sentinel://a:1,[::1]:2/mymaster?db=2&ttl=3s&namespace=ns").unwrap()
    );
    for part in ["mymaster", "::1", "database: 2", "ttl: 3s", "ns"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
}

#[test]
fn config_prefers_the_options_of_the_connection() {
    let options = ConnectOptions::new()
        .namespace(Namespace::new("orders").unwrap())
        .credentials(Credentials::new("app", "canary"));
    let url = StoreUrl::parse("redis://u:p@h:1?namespace=other")
        .unwrap()
        .with(options);
    let shown = format!("{:?}", RedisConfig::from_url(url).unwrap());
    assert!(shown.contains("orders") && shown.contains("app"), "{shown}");
    assert!(!shown.contains("canary") && !shown.contains("other"), "{shown}");
}

#[test]
fn config_without_meaning_is_refused() {
    for url in [
        "redis://",
        "redis://host",
        "redis://host:port",
        "redis://u@h:1",
        "redis://h:1,i:2",
        "redis://h:1/orders",
        "redis://h:1/-1",
        "redis://h:1/0?nonsense=1",
        "redis://h:1/0?ttl=soon",
        "redis://h:1?ca=/x",
        "redis://h:1?timeout=0s",
        "redis://h:1?connect_timeout=0ms",
        "redis://h:1?ttl=0s",
        "redis://:50%zz@h:1",
        "redis://h:1?wait_replicas=all",
        "redis://h:1?db=1",
        "rediss://h:1?cert=/x",
        "redis+sentinel://h:1",
        "redis+sentinel:///service",
        "redis+sentinel://h:1/service?sentinel_user=u",
        "redis+sentinel://h:1/service?db=x",
        "redis+cluster://",
        "redis+cluster://h:1/3",
        "redis+nonsense://h:1",
    ] {
        let refused = parse(url).err().unwrap_or_else(|| panic!("{url} is accepted"));
        assert_eq!(refused.kind(), ErrorKind::Config, "{url}");
    }
}
