//! The guarantees, read from live servers.

use tenure_core::backend::Backend;
use tenure_core::guarantees::{
    Durability, EarlyRelease, Exclusion, Guarantees, NameIsolation, Observers, Release, TokenOrder,
};
use tenure_testbed::{RedisOptions, RedisPair, RedisServer};

use super::connect;

async fn read(url: &str) -> Guarantees {
    connect(url).await.unwrap().guarantees().await.unwrap()
}

#[tokio::test]
async fn only_a_flushed_server_without_replicas_is_durable() {
    let flushed = RedisServer::start(RedisOptions::default()).unwrap();
    let url = flushed.url();
    let durable = read(&url).await;
    assert_eq!(
        durable.durability.value,
        Durability::Durable,
        "{}",
        durable.durability.reason
    );
    assert_eq!(durable.observers.value, Observers::Converge);
    assert_eq!(durable.mutual_exclusion.value, Exclusion::UnlessReleasedEarly);
    let events = &durable.early_release.reason;
    assert!(
        events.contains("clock") && !events.contains("replica") && !events.contains("loses"),
        "{events}"
    );

    let setting = |name, value| flushed.admin().set_config(name, value).unwrap();
    for (name, value, reason) in [
        ("appendfsync", "everysec", "about a second of writes"),
        ("appendfsync", "no", "has not flushed"),
        ("appendonly", "no", "since the last snapshot"),
    ] {
        setting(name, value);
        let weak = read(&url).await;
        assert_eq!(weak.durability.value, Durability::Volatile, "{name} {value}");
        assert!(weak.durability.reason.contains(reason), "{}", weak.durability.reason);
        assert_eq!(weak.observers.value, Observers::MayMiss, "{name} {value}");
        assert_eq!(weak.early_release.value, EarlyRelease::OnEvents);
    }
    let pair = RedisPair::start(RedisOptions::default()).unwrap();
    let replicated = read(&pair.primary.url()).await;
    assert_eq!(replicated.durability.value, Durability::Volatile);
    assert!(replicated.deployment.contains("1 replica"), "{}", replicated.deployment);
    assert!(replicated.early_release.reason.contains("a replica takes over"));
}

#[tokio::test]
async fn foreign_clients_weaken_the_locks_alone() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let (own, shared) = (
        read(&server.url()).await,
        read(&format!("{}?interop=true", server.url())).await,
    );
    assert!(shared.deployment.ends_with(", interop"), "{}", shared.deployment);
    assert_eq!(shared.mutual_exclusion.value, Exclusion::Cooperative);
    assert_eq!(shared.token_order.value, TokenOrder::None);
    assert_eq!(shared.fenced_release.value, Release::Unfenced);
    assert_eq!(shared.name_isolation.value, NameIsolation::Verbatim);
    assert_eq!(shared.queue_order, own.queue_order);
    assert_eq!(shared.fenced_commit, own.fenced_commit);
    assert_eq!(shared.durability, own.durability);
}
