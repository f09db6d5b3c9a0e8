//! Runtimes that are blocked, end, or are not there (rule H3).

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use tenure_core::{Effect, ErrorKind, SessionOptions, Store};
use tokio::runtime::{Builder, Runtime};

use crate::scripted::{Fault, Scripted, polled};

/// Long enough for a loaded machine, except where a test is about the TTL.
const TTL: Duration = Duration::from_secs(30);

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the condition was not met");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn runtime_that_is_blocked_for_three_ttls_loses_no_lease() {
    let store = Scripted::on_the_library();
    let runtime = current_thread();
    runtime.block_on(async {
        let session = store.session(Duration::from_millis(600)).await;
        let guard = session.lock("a").await.unwrap();
        let renewals = store.calls("renew");
        thread::sleep(Duration::from_millis(1_800)); // real time: the runtime is blocked for this long
        assert!(store.calls("renew") > renewals);
        assert!(guard.is_valid(), "lost: {:?}", guard.loss());
    });
}

#[test]
fn runtime_that_ends_with_an_acquire_in_flight_leaves_nothing() {
    let store = Scripted::on_the_library();
    let runtime = current_thread();
    let session = runtime.block_on(store.session(TTL));
    store.once("join", Fault::Delay(Duration::from_millis(50)));
    let locker = session.locker("a");
    runtime.block_on(async {
        tokio::spawn(async move { locker.lock().await });
        store.until(|store| store.calls("join") == 1).await;
    });
    drop(runtime);
    // The request arrives after the runtime has ended, is granted, and is given back.
    wait_until(|| store.calls("leave") > 0 && store.entries() == 0);
    let other = current_thread();
    other.block_on(async {
        assert!(session.is_valid());
        assert!(session.try_lock("a").await.unwrap().is_some());
    });
}

#[test]
fn runtime_that_ends_with_a_waiter_leaves_nothing() {
    let store = Scripted::on_the_library();
    let (runtime, other) = (current_thread(), current_thread());
    let session = other.block_on(store.session(TTL));
    let guard = other.block_on(session.lock("a")).unwrap();
    let locker = session.locker("a");
    runtime.block_on(async {
        tokio::spawn(async move { locker.lock().await });
        store.until(|store| store.entries() == 2).await;
    });
    drop(runtime);
    wait_until(|| store.entries() == 1);
    other.block_on(guard.release()).unwrap();
}

#[test]
fn guard_dropped_outside_a_runtime_is_released() {
    let store = Scripted::on_the_library();
    let (session, guard) = current_thread().block_on(async {
        let session = store.session(TTL).await;
        let guard = session.lock("a").await.unwrap();
        (session, guard)
    });
    assert!(guard.is_valid());
    drop(guard);
    wait_until(|| store.entries() == 0);
    assert!(session.is_valid());
}

#[test]
fn guard_dropped_with_the_locals_of_its_thread_is_released() {
    thread_local! {
        static KEPT: std::cell::RefCell<Option<tenure_core::LockGuard>> = const { std::cell::RefCell::new(None) };
    }
    let store = Scripted::on_the_library();
    let control = store.clone();
    let (send, receive) = mpsc::channel();
    let ended = thread::spawn(move || {
        let guard = current_thread().block_on(async {
            let session = store.session(TTL).await;
            let guard = session.lock("a").await.unwrap();
            send.send(()).unwrap();
            guard
        });
        KEPT.set(Some(guard));
    });
    receive.recv().unwrap();
    ended.join().unwrap();
    wait_until(|| control.sessions() == 0);
}

#[test]
fn lost_signal_wakes_a_waiter_outside_any_runtime() {
    let store = Scripted::on_the_library();
    let session = current_thread().block_on(store.session(Duration::from_millis(1_500)));
    store.always("renew", Fault::LoseRequest);
    futures_util::future::FutureExt::now_or_never(session.lost());
    let reason = block_on(session.lost());
    assert_eq!(reason, tenure_core::LossReason::Unreachable);
}

/// Blocks the thread on a future, without a runtime.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::task::Waker::from(std::sync::Arc::new(Unpark(thread::current())));
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn acquire_works_outside_any_runtime() {
    let store = Scripted::on_the_library();
    for step in ["open", "join", "leave", "revoke"] {
        store.once(step, Fault::Delay(Duration::from_millis(1)));
    }
    let session = block_on(store.session(TTL));
    let guard = block_on(session.lock("a")).unwrap();
    block_on(guard.release()).unwrap();
    assert_eq!(
        block_on(session.locker("a").lock_timeout(TTL)).unwrap().token().get(),
        2
    );
    block_on(session.close()).unwrap();
    assert_eq!(store.sessions(), 0);
}

#[test]
fn last_value_of_a_store_waits_for_the_end_of_its_sessions() {
    let scripted = Scripted::on_the_library();
    let store = Store::new(scripted.clone());
    let guard = block_on(async {
        let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
        session.lock("a").await.unwrap()
    });
    scripted.once("revoke", Fault::Delay(Duration::from_millis(50)));
    drop(store);
    drop(guard);
    // The drop returned after the store had confirmed the end, or after half a second.
    wait_until(|| scripted.sessions() == 0);
    assert!(scripted.calls("revoke") >= 1);
}

#[test]
fn last_value_of_a_store_waits_at_most_half_a_second() {
    let scripted = Scripted::on_the_library();
    let session = block_on(scripted.session(TTL));
    scripted.always("revoke", Fault::Hang);
    let begun = Instant::now();
    drop(session);
    // Not in an hour; the exact limit is a matter of the machine's speed.
    assert!(begun.elapsed() >= Duration::from_millis(500));
    assert!(begun.elapsed() < Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn last_value_of_a_store_on_the_current_runtime_does_not_wait() {
    // A slow machine can delay any of them, and a drop that waits delays all.
    for _ in 0..50 {
        let scripted = Scripted::paused();
        let session = scripted.session(TTL).await;
        scripted.always("revoke", Fault::Hang);
        let begun = Instant::now();
        drop(session);
        if begun.elapsed() < Duration::from_millis(500) {
            return;
        }
    }
    panic!("every drop waited");
}

#[test]
fn current_runtime_that_ends_ends_its_sessions() {
    let runtime = current_thread();
    let guard = runtime.block_on(async {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        let waiting = session.locker("a");
        let guard = session.lock("a").await.unwrap();
        assert!(polled(waiting.lock(), 3).await.is_none());
        guard
    });
    drop(runtime);
    assert_eq!(guard.loss(), Some(tenure_core::LossReason::Closed));
    drop(guard);
}

#[test]
fn close_after_the_runtime_of_its_session_has_ended_is_not_confirmed() {
    let store = Scripted::on_the_current_runtime();
    let runtime = current_thread();
    let session = runtime.block_on(store.session(TTL));
    drop(runtime);
    for _ in 0..2 {
        let error = current_thread().block_on(session.close()).unwrap_err();
        assert_eq!(
            (error.kind(), error.effect()),
            (ErrorKind::Unavailable, Effect::Unknown)
        );
    }
    assert_eq!(store.sessions(), 1);
}
