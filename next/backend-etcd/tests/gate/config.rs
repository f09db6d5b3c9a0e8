//! URLs, and what they refuse.

use tenure_core::url::StoreUrl;
use tenure_core::{ConnectOptions, Credentials, ErrorKind, Namespace, Result};
use tenure_etcd::EtcdConfig;

fn parse(url: &str) -> Result<EtcdConfig> {
    EtcdConfig::from_url(StoreUrl::parse(url)?)
}

#[test]
fn config_with_every_key_is_accepted_and_shows_no_secret() {
    for url in [
        "etcds://u:canary@a:1,[::1]:2/ns?ttl=3s&timeout=1s&connect_timeout=1s&ca=/ca&cert=/c&key=/k&server_name=s&client_label=billing",
        "etcd://u:canary@h:1?namespace=ns",
        "etcd://h:1/",
    ] {
        let shown = format!("{:?}", parse(url).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
    }
}

#[test]
fn config_shows_the_parts_of_its_url() {
    for url in [
        "etcd://a:1,b:2/orders%2Feu?ttl=3s",
        "etcd://a:1,b:2?namespace=orders%2Feu&ttl=3s",
    ] {
        let shown = format!("{:?}", parse(url).unwrap());
        for part in ["a:1", "b:2", "orders/eu", "ttl: 3s"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
    }
}

#[test]
fn config_prefers_the_options_of_the_connection() {
    let options = ConnectOptions::new()
        .namespace(Namespace::new("orders").unwrap())
        .credentials(Credentials::new("app", "canary"));
    let url = StoreUrl::parse("etcd://u:p@h:1/other").unwrap().with(options);
    let shown = format!("{:?}", EtcdConfig::from_url(url).unwrap());
    assert!(shown.contains("orders") && shown.contains("app"), "{shown}");
    assert!(!shown.contains("canary") && !shown.contains("other"), "{shown}");
}

#[test]
fn config_without_meaning_is_refused() {
    for url in [
        "etcd://",
        "etcd://host",
        "etcd://host:port",
        "etcd://u@h:1",
        "etcd://h:1?nonsense=1",
        "etcd://h:1?ttl=soon",
        "etcd://h:1?ca=/x",
        "etcds://h:1?cert=/x",
        "https://h:1",
    ] {
        assert_eq!(parse(url).unwrap_err().kind(), ErrorKind::Config, "{url}");
    }
}
