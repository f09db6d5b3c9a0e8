//! Guards and sessions dropped where nobody expects it: outside a runtime, after its end, while
//! unwinding, in another thread's last moments. Nothing panics, nothing blocks (rule H3).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::cell::RefCell;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use support::*;
use tenure_core::{ErrorKind, LockGuard, LossReason, Session, SessionOptions, Store};
use tenure_memory::{MemoryBackend, MemoryConfig, connect};
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
}

async fn held(store: &Store<MemoryBackend>) -> (Session, LockGuard) {
    held_under(store, millis(300)).await
}

async fn held_under(store: &Store<MemoryBackend>, ttl: Duration) -> (Session, LockGuard) {
    let options = SessionOptions::new().ttl(ttl);
    let session = store.open(options).await.unwrap().into_dyn();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    (session, guard)
}

#[test]
fn a_guard_dropped_outside_its_runtime_is_released_by_it() {
    let runtime = runtime();
    let (store, session, guard) = runtime.block_on(async {
        let store = connect(MemoryConfig::new()).unwrap();
        let (session, guard) = held(&store).await;
        (store, session, guard)
    });
    std::thread::spawn(move || drop(guard)).join().unwrap();
    runtime.block_on(until_no_ghost(store.backend()));
    assert!(session.is_valid());
}

#[test]
fn everything_may_be_used_and_dropped_after_its_runtime_has_ended() {
    for background in [false, true] {
        let runtime = runtime();
        let store = runtime.block_on(async {
            connect(MemoryConfig::shared(format!(
                "after its runtime {background}"
            )))
            .unwrap()
        });
        let (session, guard) = runtime.block_on(held(&store));
        let (_, released) = runtime.block_on(async {
            let session = open(&store).await;
            let guard = session.locker("y").unwrap().lock().await.unwrap();
            (session, guard)
        });
        let lock = session.locker("x").unwrap();
        if background {
            runtime.shutdown_background();
        } else {
            drop(runtime);
        }
        let second = Builder::new_current_thread().enable_all().build().unwrap();
        second.block_on(async {
            // The task goes with its runtime, and says so.
            assert_eq!(guard.lost().await, LossReason::Closed);
            assert!(!guard.is_valid() && !session.is_valid());
            let error = lock.lock().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
            let error = session.clone().close().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
            // Each session's task goes in its own time.
            assert_eq!(released.lost().await, LossReason::Closed);
            let error = released.release().await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Lost);
        });
        drop((guard, lock, session));
        // What they held, the TTL ends.
        second.block_on(async {
            let next = open(&another(&store)).await;
            let guard = next.locker("x").unwrap().lock().await.unwrap();
            guard.release().await.unwrap();
        });
        drop(second);
        drop(store);
    }
}

#[test]
fn futures_dropped_with_their_runtime_do_no_harm() {
    let runtime = runtime();
    let store = runtime.block_on(async { connect(MemoryConfig::new()).unwrap() });
    let (session, guard) = runtime.block_on(held(&store));
    let blocked = session.locker("x").unwrap();
    runtime.spawn(async move { blocked.lock().await.map(drop) });
    runtime.spawn(async move {
        let (session, guard) = (session, guard);
        std::future::pending::<()>().await;
        drop((session, guard));
    });
    let opening = store.clone();
    runtime.spawn(async move {
        loop {
            let session = open(&opening).await;
            let guard = session.locker("y").unwrap().lock().await;
            drop((guard, session));
        }
    });
    runtime.block_on(until("they run", || store.backend().keys().len() >= 2));
    drop(runtime);
}

#[tokio::test(start_paused = true)]
async fn a_panic_while_holding_releases() {
    let store = store();
    let session = open(&store).await;
    let lock = session.locker("x").unwrap();

    let inside = lock.clone();
    let panicked = tokio::spawn(async move {
        let _guard = inside.lock().await.unwrap();
        panic!("while holding");
    });
    assert!(panicked.await.unwrap_err().is_panic());
    until_no_ghost(store.backend()).await;

    let working = lock.with(async |_| panic!("in the work"));
    assert!(AssertUnwindSafe(working).catch_unwind().await.is_err());
    until_no_ghost(store.backend()).await;

    let guard = lock.lock().await.unwrap();
    let working = guard.while_held(async { panic!("in the work") });
    assert!(AssertUnwindSafe(working).catch_unwind().await.is_err());
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    assert!(session.is_valid());
}

/// A thread's own storage is torn down in an order of its own: tokio's may go before ours.
#[test]
fn a_guard_may_live_in_a_threads_own_storage() {
    thread_local! {
        static KEPT: RefCell<Vec<Box<dyn Send>>> = const { RefCell::new(Vec::new()) };
    }
    let runtime = runtime();
    let store = runtime.block_on(async { connect(MemoryConfig::new()).unwrap() });
    let (session, guard) = runtime.block_on(held_under(&store, millis(60_000)));
    let blocked = session.locker("x").unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || {
        // Ours first, so that it is dropped last.
        KEPT.with_borrow_mut(|kept| kept.push(Box::new(())));
        let _inside = handle.enter();
        let mut waiting: Box<dyn Send> = Box::new({
            let mut waiting = Box::pin(async move { blocked.lock().await.map(drop) });
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(waiting.as_mut().poll(&mut context).is_pending());
            waiting
        });
        KEPT.with_borrow_mut(|kept| {
            kept.push(std::mem::replace(&mut waiting, Box::new(())));
            kept.push(Box::new(guard));
            kept.push(Box::new(session));
        });
    })
    .join()
    .unwrap();
    runtime.block_on(until_no_ghost(store.backend()));
    runtime.block_on(until("the session is closed", || {
        store.backend().footprint().sessions == 0
    }));
}
