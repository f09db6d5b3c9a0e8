//! The whole way: an application's calls through core to the store.

use std::time::Duration;

use tenure_core::{ErrorKind, LossReason, SessionOptions, Store};
use tenure_memory::{MemoryBackend, MemoryConfig, connect};

use crate::support::{not_yet, pass, soon};

fn store() -> Store {
    connect(MemoryConfig::new()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn lock_is_handed_over_and_kept_for_hours() {
    let store = store();
    let (a, b) = (
        store.open(SessionOptions::new()).await.unwrap(),
        store.open(SessionOptions::new()).await.unwrap(),
    );
    let guard = a.lock("x").await.unwrap();
    assert!(b.try_lock("x").await.unwrap().is_none());
    let locker = b.locker("x");
    assert_eq!(
        locker.lock_timeout(Duration::from_secs(60)).await.unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    pass(3600.0).await;
    assert!(guard.is_valid() && a.is_valid());
    let token = guard.token();
    let (next, released) = tokio::join!(soon(locker.lock()), guard.release());
    released.unwrap();
    assert!(next.unwrap().token() > token);
}

#[tokio::test(start_paused = true)]
async fn cancelled_wait_and_dropped_guard_leave_nothing() {
    let backend = MemoryBackend::connect(MemoryConfig::new()).unwrap();
    let store = Store::new(backend.clone());
    let (a, b) = (
        store.open(SessionOptions::new()).await.unwrap(),
        store.open(SessionOptions::new()).await.unwrap(),
    );
    let guard = a.lock("x").await.unwrap();
    for _ in 0..10 {
        not_yet(b.lock("x")).await;
    }
    drop(guard);
    pass(1.0).await;
    let footprint = backend.footprint();
    assert_eq!(
        (footprint.entries, footprint.waiters, footprint.objects),
        (0, 0, 0),
        "{footprint:?}"
    );
    assert!(footprint.past <= 4, "{footprint:?}");
    a.close().await.unwrap();
    b.close().await.unwrap();
    assert_eq!(backend.footprint().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn loss_is_signalled_when_an_operator_ends_the_session() {
    let backend = MemoryBackend::connect(MemoryConfig::new()).unwrap();
    let session = Store::new(backend.clone()).open(SessionOptions::new()).await.unwrap();
    let guard = session.lock("x").await.unwrap();
    assert!(backend.revoke(session.id()));
    assert_eq!(soon(session.lost()).await, LossReason::Revoked);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
}
