//! Redis behind the facade, on the server of the test run.

use tenure::redis::{RedisBackend, RedisConfig};
use tenure::{Connector, ErrorKind, Namespace, SessionOptions, connect};
use tenure_testbed::{shared_redis, unique_name};

fn url() -> String {
    format!("{}?namespace={}", shared_redis().unwrap().url(), unique_name("facade"))
}

#[tokio::test]
async fn lock_over_a_url_excludes_another_connection_until_its_release() {
    let url = url();
    let (one, other) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
    let (a, b) = (
        one.open(SessionOptions::new()).await.unwrap(),
        other.open(SessionOptions::new()).await.unwrap(),
    );
    let guard = a.lock("orders").await.unwrap();
    assert!(b.try_lock("orders").await.unwrap().is_none());
    let (next, released) = tokio::join!(b.lock("orders"), guard.release());
    released.unwrap();
    assert!(one.guarantees().await.unwrap().deployment.contains("Redis"));
    next.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn operator_reaches_the_sessions_of_a_url() {
    let url = format!("{}&client_label=billing", url());
    let store = connect(&url).await.unwrap();
    let _session = store.open(SessionOptions::new()).await.unwrap();
    let (server, namespace) = url.split_once("?namespace=").unwrap();
    let namespace = Namespace::new(namespace.split('&').next().unwrap()).unwrap();
    let config = RedisConfig::new(server.trim_start_matches("redis://")).namespace(namespace);
    let sessions = RedisBackend::connect(config).await.unwrap().sessions().await.unwrap();
    let labels: Vec<_> = sessions.into_iter().map(|(_, label)| label).collect();
    assert_eq!(labels, ["billing"]);
}

#[tokio::test]
async fn server_that_is_not_there_is_unavailable_by_every_scheme() {
    let schemes: Vec<_> = Connector::new().schemes().map(str::to_owned).collect();
    let mut seen = 0;
    for scheme in schemes.iter().filter(|scheme| scheme.starts_with("redis")) {
        let path = if scheme.ends_with("sentinel") { "/service" } else { "" };
        let error = connect(format!("{scheme}://u:canary@127.0.0.1:1{path}"))
            .await
            .unwrap_err();
        let text = format!("{} {error:?}", error.chain());
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{text}");
        assert_eq!(error.operation(), Some("connect"), "{text}");
        assert!(text.contains("127.0.0.1:1") && !text.contains("canary"), "{text}");
        seen += 1;
    }
    assert_eq!(seen, 6, "{schemes:?}");
}

#[tokio::test]
async fn query_key_of_no_meaning_is_refused_before_a_connection() {
    let error = connect("redis://127.0.0.1:1?tll=10s").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    let text = error.to_string();
    assert!(text.contains("`tll`") && text.contains("wait_replicas"), "{text}");
}

#[cfg(feature = "blocking")]
#[test]
fn blocking_lock_excludes_another_connection() {
    let url = url();
    let store = tenure::blocking::connect(&url).unwrap();
    let other = tenure::blocking::connect(&url).unwrap();
    let (a, b) = (
        store.open(SessionOptions::new()).unwrap(),
        other.open(SessionOptions::new()).unwrap(),
    );
    let guard = a.lock("orders").unwrap();
    assert!(b.try_lock("orders").unwrap().is_none());
    let first = guard.token();
    guard.release().unwrap();
    assert!(b.lock("orders").unwrap().token() > first);
    a.close().unwrap();
    b.close().unwrap();
}
