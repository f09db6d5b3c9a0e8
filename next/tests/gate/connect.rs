use std::time::Duration;

use tenure::{
    ConnectOptions, Connector, Credentials, ErrorKind, Namespace, SessionOptions, Store, connect, connect_with,
};

async fn refusal(url: &str) -> String {
    let error = connect(url).await.expect_err("the URL is refused");
    assert_eq!(error.kind(), ErrorKind::Config, "{url}: {error}");
    assert_eq!(error.operation(), Some("connect"));
    error.to_string()
}

async fn holds(store: &Store, name: &str) -> bool {
    let session = store.open(SessionOptions::new()).await.unwrap();
    let guard = session.try_lock(name).await.unwrap();
    let free = guard.is_some();
    session.close().await.unwrap();
    !free
}

#[tokio::test]
async fn unknown_scheme_is_refused_with_the_known_ones() {
    let text = refusal("consul://127.0.0.1/x").await;
    assert!(text.contains("unknown scheme `consul`"), "{text}");
    for scheme in ["memory", "etcd", "redis+sentinel", "postgres"] {
        assert!(text.contains(scheme), "{text}");
    }
    let with = Connector::new().with("Test", |_| async { connect("memory:").await });
    let text = with.connect("consul:").await.unwrap_err().to_string();
    assert!(text.contains("postgresql, test"), "{text}");
}

#[tokio::test]
async fn scheme_of_a_missing_store_is_refused_with_its_feature() {
    for (url, feature) in [
        ("etcds://127.0.0.1:2379/ns", "`etcd`"),
        ("postgresql://127.0.0.1/db", "`postgres`"),
    ] {
        let text = refusal(url).await;
        assert!(text.contains("feature") && text.contains(feature), "{text}");
        assert!(text.contains("does not offer yet"), "{text}");
    }
}

#[tokio::test]
async fn query_key_of_no_meaning_is_refused() {
    let text = refusal("memory:?tll=10s").await;
    assert!(text.contains("`tll`") && text.contains("namespace, ttl"), "{text}");
}

#[tokio::test]
async fn password_is_absent_from_the_error_of_a_refused_url() {
    for url in [
        "etcd://u:canary@127.0.0.1/x",
        "consul://u:canary@127.0.0.1/x",
        "memory://u:canary@h/x",
        "redis://u:can/canary@h/x",
    ] {
        let error = connect(url).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn option_that_the_store_does_not_take_is_refused() {
    let options = ConnectOptions::new().credentials(Credentials::new("u", "canary"));
    let error = connect_with("memory:", options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(!format!("{error:?}").contains("canary"));
}

#[tokio::test]
async fn url_without_a_name_is_a_store_of_its_own() {
    let (one, other) = (connect("memory:").await.unwrap(), connect("memory:").await.unwrap());
    let session = one.open(SessionOptions::new()).await.unwrap();
    let guard = session.lock("a").await.unwrap();
    assert!(holds(&one, "a").await);
    assert!(!holds(&other, "a").await);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn url_with_a_name_is_shared_within_its_namespace() {
    let one = connect("memory:facade-shared").await.unwrap();
    let same = connect("MEMORY:facade-shared?namespace=default").await.unwrap();
    let apart = connect("memory:facade-shared?namespace=other").await.unwrap();
    let options = ConnectOptions::new().namespace(Namespace::new("other").unwrap());
    let overridden = connect_with("memory:facade-shared?namespace=default", options)
        .await
        .unwrap();
    let session = one.open(SessionOptions::new()).await.unwrap();
    let guard = session.lock("a").await.unwrap();
    assert!(holds(&same, "a").await);
    assert!(!holds(&apart, "a").await);
    assert!(!holds(&overridden, "a").await);
    guard.release().await.unwrap();
}

#[tokio::test]
async fn ttl_of_the_url_is_that_of_sessions_without_one() {
    let store = connect("memory:?ttl=7s").await.unwrap();
    let asked = |options| async { store.open(options).await.unwrap().ttl() };
    assert_eq!(asked(SessionOptions::new()).await, Duration::from_secs(7));
    let three = Duration::from_secs(3);
    assert_eq!(asked(SessionOptions::new().ttl(three)).await, three);
}

#[cfg(feature = "memory")]
#[tokio::test]
async fn label_of_the_url_is_that_of_sessions_without_one() {
    use tenure::memory::{MemoryBackend, MemoryConfig};

    let operator = MemoryBackend::connect(MemoryConfig::shared("facade-label")).unwrap();
    let store = connect("memory:facade-label?client_label=billing").await.unwrap();
    let _own = store.open(SessionOptions::new().label("mine")).await.unwrap();
    let _none = store.open(SessionOptions::new()).await.unwrap();
    let labels: Vec<_> = operator.sessions().into_iter().map(|(_, label)| label).collect();
    assert_eq!(labels, ["mine", "billing"]);
}

#[tokio::test]
async fn scheme_that_was_added_connects_and_may_replace_one_of_ours() {
    let connector = Connector::new()
        .with("Test", |mut url| async move {
            let namespace = url.take_namespace()?;
            url.finish()?;
            assert_eq!(namespace.unwrap().as_str(), "shop");
            connect("memory:").await
        })
        .with("memory", |_| async {
            Err(tenure::Error::new(ErrorKind::Unavailable, "replaced"))
        });
    connector.connect("test:?namespace=shop").await.unwrap();
    let replaced = connector.connect("memory:").await.unwrap_err();
    assert_eq!(replaced.kind(), ErrorKind::Unavailable);
    let schemes: Vec<_> = connector
        .schemes()
        .filter(|scheme| !scheme.starts_with("redis"))
        .collect();
    assert_eq!(schemes, ["memory", "test"]);
}
