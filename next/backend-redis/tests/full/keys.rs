//! The check of the keys at the end of a case, which waits until it is certain.

use tenure_conformance::Harness;
use tenure_core::url::StoreUrl;
use tenure_core::{ErrorKind, SessionOptions};
use tenure_redis::{RedisConfig, RedisHarness};
use tenure_testbed::{shared_redis, unique_name};

#[tokio::test]
async fn contradiction_that_stays_fails_the_clean_up_and_is_removed() {
    let shared = shared_redis().unwrap();
    let config = RedisConfig::from_url(StoreUrl::parse(shared.url()).unwrap()).unwrap();
    let harness = RedisHarness::on(config).unwrap();
    let (store, name) = (harness.connect().await.unwrap(), unique_name("stays"));
    let session = store.open(SessionOptions::new()).await.unwrap();
    session.barrier(&name).close().await.unwrap();
    session.close().await.unwrap();
    let keys = |pattern: &str| shared.admin().keys(pattern).unwrap();
    let barrier = keys(&format!("*/barrier/{name}")).remove(0);
    let root = barrier.split_once("barrier/").unwrap().0.to_owned();
    shared.admin().execute(&["SET", &format!("{root}stray"), "x"]).unwrap();
    let error = harness.clean_up().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("stray is of no known kind"), "{error}");
    assert_eq!(keys(&format!("{root}*")), Vec::<String>::new());
}
