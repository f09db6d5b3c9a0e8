//! The harness of the embedded store.

use std::time::Duration;

use tenure_conformance::{FaultLayer, Harness};
use tenure_core::{LossReason, Result, SessionOptions};
use tenure_memory::{MemoryConfig, MemorySubject};

pub(crate) fn harness(config: MemoryConfig) -> Result<FaultLayer> {
    MemorySubject::new(config).start()
}

#[tokio::test(start_paused = true)]
async fn revocation_by_an_operator_reaches_the_client_before_its_next_renewal() {
    let harness = harness(MemoryConfig::new()).unwrap();
    let store = harness.connect().await.unwrap();
    let options = SessionOptions::new().ttl(Duration::from_secs(120));
    let session = store.open(options).await.unwrap();
    let started = tokio::time::Instant::now();
    harness.operator().unwrap().revoke(session.id()).await.unwrap();
    assert_eq!(session.lost().await, LossReason::Revoked);
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}
