//! Locks under paused time: exclusion, order, tokens, isolation (rules L1 to L4, L6, L8).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::future::join_all;
use support::*;
use tenure_core::{ErrorKind, LockHandle, LossReason, SessionOptions};
use tenure_memory::MemoryConfig;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn two_tasks_of_one_session_wait_for_each_other() {
    let store = store();
    let session = open(&store).await;
    let lock = session.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let error = lock.try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    tokio::time::sleep(3 * TTL).await;
    assert!(!waiting.is_finished());
    let token = guard.token();
    guard.release().await.unwrap();
    assert!(waiting.await.unwrap().unwrap().token() > token);
}

#[tokio::test(start_paused = true)]
async fn try_lock_answers_at_once_and_leaves_nothing() {
    let store = store();
    let (a, b) = (open(&store).await, open(&another(&store)).await);
    let guard = a.locker("x").unwrap().lock().await.unwrap();
    let start = Instant::now();
    let lock = b.locker("x").unwrap();
    for _ in 0..100 {
        let error = lock.try_lock().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
    }
    assert_eq!(start.elapsed(), secs(0));
    assert_eq!(store.backend().keys(), [guard.key()]);
}

/// Somebody may stand in line although nobody holds the lock any more.
#[tokio::test(start_paused = true)]
async fn try_lock_does_not_overtake_a_waiter() {
    let store = store();
    let (a, b) = (open(&store).await, open(&another(&store)).await);
    let lock = a.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let mut waiting = Box::pin(lock.lock());
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    guard.release().await.unwrap();
    let error = b.locker("x").unwrap().try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    waiting.await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn lock_timeout_bounds_the_wait() {
    let store = store();
    let session = open(&store).await;
    let lock = session.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let start = Instant::now();
    let error = lock.lock_timeout(secs(7)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(start.elapsed() >= secs(7) && start.elapsed() <= secs(7) + millis(2));
    until("only the holder is left", || {
        store.backend().keys() == [guard.key()]
    })
    .await;
}

/// A hundred waiters of ten sessions, a third of them cancelled while they stand in line: the
/// rest is granted in the order of arrival, and each release wakes one.
#[tokio::test(start_paused = true)]
async fn waiters_are_granted_in_the_order_of_arrival() {
    let store = store();
    let holder = open(&store).await.locker("x").unwrap();
    let first = holder.lock().await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..10 {
        sessions.push(open(&another(&store)).await);
    }
    let granted = Arc::new(Mutex::new(Vec::new()));
    let mut waiting = Vec::new();
    for n in 0..100_usize {
        let lock = sessions[n % 10].locker("x").unwrap();
        let granted = Arc::clone(&granted);
        waiting.push(tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            granted.lock().unwrap().push((n, guard.token()));
            guard.release().await.unwrap();
        }));
        // Its place is taken before the next one comes.
        until("it stands in line", || {
            store.backend().footprint().waits == n + 1
        })
        .await;
    }
    // From both ends, so that whole stretches of the line go.
    for n in (0..100).filter(|n| n % 3 == 1 || (40..50).contains(n)) {
        waiting[n].abort();
    }
    let stay: Vec<_> = (0..100)
        .filter(|n| n % 3 != 1 && !(40..50).contains(n))
        .collect();
    until("the cancelled have gone", || {
        store.backend().footprint().waits == stay.len()
    })
    .await;
    let start = Instant::now();
    first.release().await.unwrap();
    for waiting in waiting {
        let _ = waiting.await;
    }
    assert_eq!(start.elapsed(), secs(0), "nobody waited for a timer");
    let granted = granted.lock().unwrap();
    assert_eq!(granted.iter().map(|(n, _)| *n).collect::<Vec<_>>(), stay);
    assert!(granted.is_sorted_by(|a, b| a.1 < b.1));
    assert_eq!(store.backend().keys().len(), 0);
}

/// Counts how often futures are polled: a release must wake one waiter, not all.
#[tokio::test(start_paused = true)]
async fn a_release_wakes_one_waiter() {
    let store = store();
    let session = open(&store).await;
    let lock = session.locker("x").unwrap();
    let first = lock.lock().await.unwrap();
    let polls = Arc::new(AtomicUsize::new(0));
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (lock, polls) = (lock.clone(), Arc::clone(&polls));
            tokio::spawn(async move {
                let mut waiting = Box::pin(async move { lock.lock().await });
                let guard = std::future::poll_fn(|context| {
                    polls.fetch_add(1, Ordering::SeqCst);
                    waiting.as_mut().poll(context)
                });
                guard.await.unwrap()
            })
        })
        .collect();
    until("all wait", || store.backend().footprint().waits == 50).await;
    polls.store(0, Ordering::SeqCst);
    first.release().await.unwrap();
    until("one is granted", || waiting.iter().any(|w| w.is_finished())).await;
    assert!(polls.load(Ordering::SeqCst) <= 2, "{polls:?}");
    assert_eq!(waiting.iter().filter(|w| w.is_finished()).count(), 1);
}

/// A dead holder and dead waiters behind it: the first live one is granted when the last lease
/// before it has ended, although nobody else calls anything.
#[tokio::test(start_paused = true)]
async fn dead_places_are_passed_when_their_leases_end() {
    let store = store();
    let mut links = Vec::new();
    let mut kept = Vec::new();
    let mut waiting = Vec::new();
    for (n, ttl) in [10, 5, 20, 15].map(secs).into_iter().enumerate() {
        let process = another(&store);
        links.push(process.backend().link());
        let session = process
            .open(SessionOptions::new().ttl(ttl))
            .await
            .unwrap()
            .into_dyn();
        let lock = session.locker("x").unwrap();
        if n == 0 {
            kept.push(lock.lock().await.unwrap());
        } else {
            waiting.push(tokio::spawn(async move { lock.lock().await.map(drop) }));
            until("it waits", || store.backend().footprint().waits == n).await;
        }
    }
    let start = Instant::now();
    links.iter().for_each(|link| link.silence());
    let live = open(&store).await;
    let guard = live.locker("x").unwrap().lock().await.unwrap();
    // The longest lease before it, 20 s, give or take the time it took to get here.
    let waited = start.elapsed();
    assert!(
        waited > secs(20) - millis(20) && waited <= secs(20) + millis(2),
        "{waited:?}"
    );
    for waiting in waiting {
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.loss(), Some(LossReason::Unreachable));
    }
    assert_eq!(store.backend().keys(), [guard.key()]);
}

/// The one before it goes away while it sleeps until that one's end: now an earlier end counts.
#[tokio::test(start_paused = true)]
async fn a_waiter_minds_the_lease_that_is_now_before_it() {
    let store = store();
    let (short, long) = (another(&store), another(&store));
    let holder = short
        .open(SessionOptions::new().ttl(secs(5)))
        .await
        .unwrap();
    let between = long
        .open(SessionOptions::new().ttl(secs(600)))
        .await
        .unwrap();
    let live = open(&store).await;
    let _held = holder.locker("x").unwrap().lock().await.unwrap();
    let lock = between.locker("x").unwrap();
    let middle = tokio::spawn(async move { lock.lock().await.map(drop) });
    until("it waits", || store.backend().footprint().waits == 1).await;
    let lock = live.locker("x").unwrap();
    let last = tokio::spawn(async move { lock.lock().await });
    until("it waits", || store.backend().footprint().waits == 2).await;
    let start = Instant::now();
    short.backend().link().silence();
    middle.abort();
    drop(last.await.unwrap().unwrap());
    assert!(start.elapsed() <= secs(5) + millis(2));
}

#[tokio::test(start_paused = true)]
async fn tokens_rise_over_every_end_of_a_holding() {
    let store = store();
    let mut last = None;
    for round in 0..40 {
        let process = another(&store);
        let session = process
            .open(SessionOptions::new())
            .await
            .unwrap()
            .into_dyn();
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        assert!(Some(guard.token()) > last);
        last = Some(guard.token());
        match round % 5 {
            0 => guard.release().await.unwrap(),
            1 => session.close().await.unwrap(),
            2 => drop(store.backend().delete(guard.key())),
            3 => drop(store.backend().revoke(session.id())),
            _ => process.backend().link().silence(),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_are_isolated() {
    let store = store();
    let session = open(&store).await;
    let long = "x".repeat(512);
    let names = [
        "a", "a/b", "a/", "/a", "A", "a ", " a", "a%2Fb", "a%", "..", "../a", "a\nb", "ä",
        "a\u{308}", "锁", "1-1", "a/1-1", &long,
    ];
    let mut guards = Vec::new();
    for name in names {
        guards.push(session.locker(name).unwrap().try_lock().await.unwrap());
    }
    let keys: HashSet<_> = store.backend().keys().into_iter().collect();
    assert_eq!(keys.len(), names.len());
    for guard in &guards {
        assert!(keys.contains(guard.key()));
    }
    for bad in ["", "a\0b", &"x".repeat(513)] {
        let error = session.locker(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidName);
    }
}

#[tokio::test(start_paused = true)]
async fn typed_and_erased_sessions_share_the_store() {
    let store = tenure_memory::connect(MemoryConfig::new()).unwrap();
    let session = store.open(SessionOptions::new()).await.unwrap();
    let typed: LockHandle<tenure_memory::MemoryLocker> = session.locker("x").unwrap();
    let guard = typed.lock().await.unwrap();
    let erased: LockHandle = session.into_dyn().locker("x").unwrap();
    let error = erased.try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    guard.release().await.unwrap();
    erased.try_lock().await.unwrap().release().await.unwrap();
}

/// Many waiters that come and go at once, on one name.
#[tokio::test(start_paused = true)]
async fn a_crowd_passes_through() {
    let store = store();
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(open(&another(&store)).await);
    }
    let inside = AtomicUsize::new(0);
    let crowd = (0..2_000_usize).map(|n| {
        let lock = sessions[n % 8].locker("x").unwrap();
        let inside = &inside;
        async move {
            let patience = millis(1 + (n as u64 * 7919) % 3_000);
            if let Ok(guard) = lock.lock_timeout(patience).await {
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                tokio::time::sleep(millis(1)).await;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        }
    });
    join_all(crowd).await;
    until_no_ghost(store.backend()).await;
}
