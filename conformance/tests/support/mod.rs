//! What several test binaries share.

use tenure_conformance::Harness;
use tenure_conformance::stores::MemoryHarness;

/// Starts a server of the store, or the embedded store.
pub(crate) async fn stage(store: &str) -> Box<dyn Harness> {
    match store {
        "memory" => Box::new(MemoryHarness::new()),
        #[cfg(feature = "etcd")]
        "etcd" => Box::new(
            tenure_conformance::stores::EtcdHarness::start()
                .await
                .unwrap(),
        ),
        #[cfg(feature = "redis")]
        "redis" => Box::new(
            tenure_conformance::stores::RedisHarness::start()
                .await
                .unwrap(),
        ),
        #[cfg(feature = "postgres")]
        "postgres" => Box::new(
            tenure_conformance::stores::PostgresHarness::start()
                .await
                .unwrap(),
        ),
        other => panic!("no harness for {other}"),
    }
}
