//! Barriers that are held and released.

use std::time::Duration;

use futures_util::FutureExt;
use tenure_core::{BarrierHandle, ErrorKind};

use crate::stm_store::{Fault, StmStore};

fn soon() -> Duration {
    Duration::from_secs(1)
}

/// Starts to wait, and returns whether the wait ends soon.
async fn waits(barrier: &BarrierHandle) -> bool {
    let error = barrier.wait_timeout(soon()).await.err();
    assert!(
        error.as_ref().is_none_or(|error| error.kind() == ErrorKind::TimedOut),
        "{error:?}"
    );
    error.is_some()
}

#[tokio::test(start_paused = true)]
async fn waiter_continues_after_the_release() {
    let store = StmStore::new();
    let (holder, session) = (store.session().await, store.session().await);
    let (barrier, guard) = (session.barrier("a"), holder.barrier("a").hold().await.unwrap());
    assert!(barrier.is_held().await.unwrap());
    assert!(waits(&barrier).await);
    let waiting = tokio::spawn(async move { barrier.wait().await });
    tokio::time::sleep(soon()).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap();
    assert!(!session.barrier("a").is_held().await.unwrap());
    session.barrier("a").wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn waiter_continues_although_the_barrier_is_held_again_at_once() {
    let store = StmStore::new();
    let (holder, session) = (store.session().await, store.session().await);
    let guard = holder.barrier("a").hold().await.unwrap();
    let barrier = session.barrier("a");
    let mut waiting = tokio::spawn(async move { barrier.wait().await });
    assert!(tokio::time::timeout(soon(), &mut waiting).await.is_err());
    let first = guard.token();
    guard.release().await.unwrap();
    let again = holder.barrier("a").hold().await.unwrap();
    assert!(again.token() > first);
    waiting.await.unwrap().unwrap();
    assert!(waits(&session.barrier("a")).await);
}

#[tokio::test(start_paused = true)]
async fn second_hold_is_refused() {
    let store = StmStore::new();
    let session = store.session().await;
    let barrier = session.barrier("a");
    let guard = barrier.hold().await.unwrap();
    for refused in [barrier.hold().await.err(), barrier.close().await.err()] {
        let error = refused.unwrap();
        assert_eq!((error.kind(), error.name()), (ErrorKind::Conflict, Some("a")));
    }
    drop(guard);
    barrier.wait().await.unwrap();
    assert!(barrier.hold().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn hold_ends_with_its_session_and_a_closure_does_not() {
    let store = StmStore::new();
    let (holder, session) = (store.session().await, store.session().await);
    let _held = holder.barrier("held").hold().await.unwrap();
    holder.barrier("closed").close().await.unwrap();
    holder.close().await.unwrap();
    session.barrier("held").wait().await.unwrap();
    assert!(waits(&session.barrier("closed")).await);
    assert!(session.barrier("closed").open().await.unwrap());
    assert!(!session.barrier("closed").open().await.unwrap());
    session.barrier("closed").wait().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn release_of_a_hold_that_was_opened_is_lost_and_leaves_the_next_hold_alone() {
    let store = StmStore::new();
    let session = store.session().await;
    let barrier = session.barrier("a");
    let first = barrier.hold().await.unwrap();
    assert!(barrier.open().await.unwrap());
    let _second = barrier.hold().await.unwrap();
    let error = first.release().await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::Lost, Some("release")));
    assert!(barrier.is_held().await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn dropped_hold_leaves_the_barrier_free() {
    for polls in 1..20 {
        let store = StmStore::new();
        let session = store.session().await;
        let barrier = session.barrier("a");
        store.once("commit", Fault::LoseAnswer);
        let mut holding = Box::pin(barrier.hold());
        for _ in 0..polls {
            if (&mut holding).now_or_never().is_some() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(holding);
        while store.keys() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::sleep(soon()).await;
        assert_eq!(store.keys(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn hold_and_release_survive_lost_messages() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer, Fault::Late(soon())] {
        let store = StmStore::new();
        let session = store.session().await;
        store.once("commit", fault);
        let guard = session.barrier("a").hold().await.unwrap();
        assert!(session.barrier("a").is_held().await.unwrap());
        store.once("commit", fault);
        guard.release().await.unwrap();
        tokio::time::sleep(2 * soon()).await;
        assert!(!session.barrier("a").is_held().await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn bad_name_is_refused_by_the_first_call() {
    let store = StmStore::new();
    let barrier = store.session().await.barrier("");
    assert_eq!(barrier.hold().await.unwrap_err().kind(), ErrorKind::InvalidName);
    assert_eq!(barrier.wait().await.unwrap_err().kind(), ErrorKind::InvalidName);
    assert_eq!(store.calls("commit") + store.calls("read"), 0);
}
