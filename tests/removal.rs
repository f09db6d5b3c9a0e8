//! A namespace is removed, and its neighbours stay.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[macro_use]
mod support;

use support::Bed;
use tenure::backend::StoreUrl;
use tenure::{HoldFor, SessionOptions};

/// The first is a beginning of the second; and as a pattern, the third would be all of them.
const NAMESPACES: [&str; 3] = ["removal", "removal2", "remova%2A"];

fn url(bed: &Bed, namespace: &str) -> String {
    bed.url.replace(NAMESPACES[0], namespace)
}

async fn fill(url: &str) {
    let store = tenure::connect(url).await.unwrap();
    let session = store.open(SessionOptions::new()).await.unwrap();
    session.stm().unwrap().put("stock", "70").await.unwrap();
    session.queue("jobs").unwrap().enqueue("one").await.unwrap();
    let barrier = session.barrier("night").unwrap();
    barrier.hold(HoldFor::Good).await.unwrap();
    session.close().await.unwrap();
}

/// Whether the datum, the item and the barrier are there.
async fn there(url: &str) -> [bool; 3] {
    let store = tenure::connect(url).await.unwrap();
    let session = store.open(SessionOptions::new()).await.unwrap();
    let data = session.stm().unwrap().get("stock").await.unwrap();
    let jobs = session.queue("jobs").unwrap().depth().await.unwrap();
    let held = session.barrier("night").unwrap().is_held().await.unwrap();
    session.close().await.unwrap();
    [data.is_some(), jobs.ready == 1, held]
}

async fn remove(url: &str) -> tenure::Result<()> {
    let url = StoreUrl::parse(url)?;
    match url.scheme() {
        #[cfg(feature = "etcd")]
        "etcd" => tenure::etcd::remove_namespace(tenure::etcd::EtcdConfig::from_url(url)?).await,
        #[cfg(feature = "redis")]
        "redis" => {
            tenure::redis::remove_namespace(tenure::redis::RedisConfig::from_url(url)?).await
        }
        #[cfg(feature = "postgres")]
        _ => {
            let config = tenure::postgres::PostgresConfig::from_url(url)?;
            tenure::postgres::remove_namespace(config).await
        }
        #[cfg(not(feature = "postgres"))]
        scheme => panic!("{scheme}"),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn a_namespace_goes_and_its_neighbours_stay(bed: Bed) {
    let urls = NAMESPACES.map(|namespace| url(&bed, namespace));
    for url in &urls {
        fill(url).await;
        assert_eq!(there(url).await, [true; 3], "{url}");
    }

    remove(&urls[2]).await.unwrap();
    assert_eq!(there(&urls[2]).await, [false; 3]);
    remove(&urls[0]).await.unwrap();
    assert_eq!(there(&urls[0]).await, [false; 3]);
    assert_eq!(there(&urls[1]).await, [true; 3]);

    // It can be used again, and removed again, also when there is nothing.
    fill(&urls[0]).await;
    assert_eq!(there(&urls[0]).await, [true; 3]);
    remove(&urls[0]).await.unwrap();
    remove(&urls[0]).await.unwrap();
    assert_eq!(there(&urls[0]).await, [false; 3]);
}

#[tokio::main(flavor = "current_thread")]
async fn a_dead_server_is_an_error(bed: Bed) {
    let url = bed.url.clone();
    drop(bed);
    let failed = remove(&url).await.unwrap_err();
    assert_eq!(failed.kind(), tenure::ErrorKind::Unavailable, "{failed}");
}

on_every_store! { "removal": a_namespace_goes_and_its_neighbours_stay a_dead_server_is_an_error }
