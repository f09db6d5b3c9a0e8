//! Requests: retries, refusals, capacity, departures.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure_core::backend::{Nonce, SessionEvent};
use tenure_core::{Effect, ErrorKind, LossReason};
use tokio::time::{Instant, sleep};

use crate::scripted::{Fault, Scripted, at_every_await_point, polled};

const TTL: Duration = Duration::from_secs(9);

#[tokio::test(start_paused = true)]
async fn lock_is_granted_in_order_and_tokens_rise() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let first = session.lock("a").await.unwrap();
    assert!(session.try_lock("a").await.unwrap().is_none());
    let mut waiters = Vec::new();
    for turn in 2..5 {
        let waiter = session.clone();
        waiters.push(tokio::spawn(async move {
            let guard = waiter.lock("a").await.unwrap();
            let token = guard.token();
            guard.release().await.unwrap();
            token
        }));
        store.until(|store| store.entries() == turn).await;
    }
    let mut last = first.token();
    assert_eq!((first.name().as_str(), first.key()), ("a", "a"));
    first.release().await.unwrap();
    for waiter in waiters {
        let token = waiter.await.unwrap();
        assert!(token > last);
        last = token;
    }
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn invalid_name_fails_the_first_call_before_anything_is_sent() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let error = session.locker("").lock().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::InvalidName, Some("lock"))
    );
    assert_eq!(store.calls("join"), 0);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_are_asked_again_under_the_same_nonce() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    for fault in [Fault::LoseAnswer, Fault::LoseRequest, Fault::LoseAnswer] {
        store.once("join", fault);
    }
    let guard = session.lock("a").await.unwrap();
    assert_eq!((store.entries(), store.calls("join")), (1, 4));
    store.once("leave", Fault::LoseAnswer);
    // The repeated release finds nothing, although the first one took effect; the scripted store keeps no markers.
    let _ = guard.release().await;
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn try_lock_does_not_retry_and_leaves_nothing() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::LoseAnswer);
    let error = session.try_lock("a").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Unavailable, Effect::Unknown)
    );
    store.until_empty().await;
    assert_eq!(store.calls("join"), 1);
}

#[tokio::test(start_paused = true)]
async fn refused_join_is_withdrawn() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    // The first attempt arrives, and the second is refused.
    store.once("join", Fault::LoseAnswer);
    store.once("join", Fault::Refuse(ErrorKind::Unauthorized));
    let error = session.lock("a").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Unauthorized, Effect::Unknown)
    );
    assert_eq!((error.operation(), error.name()), (Some("lock"), Some("a")));
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn waiter_that_lost_its_place_joins_again_under_a_new_nonce() {
    let store = Scripted::paused();
    let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
    let guard = holder.lock("a").await.unwrap();
    let waiter = session.clone();
    let waiting = tokio::spawn(async move { waiter.lock("a").await });
    store.until(|store| store.entries() == 2).await;
    let old = store.forget(&session);
    store.until(|store| store.entries() == 2).await;
    // The lost place is withdrawn all the same.
    store.until(|store| store.calls("leave") == 1).await;
    let new = store.forget(&session);
    assert!(new[0] > old[0]);
    guard.release().await.unwrap();
    assert!(waiting.await.unwrap().unwrap().is_valid());
}

#[tokio::test(start_paused = true)]
async fn waiter_of_a_lost_session_gets_an_error() {
    let store = Scripted::paused();
    let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
    let _guard = holder.lock("a").await.unwrap();
    let waiter = session.clone();
    let waiting = tokio::spawn(async move { waiter.lock("a").await });
    store.until(|store| store.entries() == 2).await;
    session.close().await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.loss()),
        (ErrorKind::Lost, Some(LossReason::Closed))
    );
    assert!(error.needs_new_session());
}

#[tokio::test(start_paused = true)]
async fn waiting_request_that_the_store_ended_gets_an_error() {
    let store = Scripted::paused();
    let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
    let _guard = holder.lock("a").await.unwrap();
    let waiter = session.clone();
    let waiting = tokio::spawn(async move { waiter.lock("a").await });
    store.until(|store| store.entries() == 2).await;
    let nonce = Nonce::new(1);
    store.report(&session, SessionEvent::RequestLost(nonce, LossReason::Revoked));
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Revoked));
    assert!(session.is_valid() && !error.needs_new_session());
    store.until(|store| store.entries() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn holding_that_the_store_ended_is_lost_and_its_session_is_not() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let (a, b) = (session.lock("a").await.unwrap(), session.lock("b").await.unwrap());
    store.report(&session, SessionEvent::RequestLost(Nonce::new(1), LossReason::Revoked));
    assert_eq!(a.lost().await, LossReason::Revoked);
    assert!(!a.is_valid() && b.is_valid() && session.is_valid());
    let error = a.release().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.loss()),
        (ErrorKind::Lost, Some(LossReason::Revoked))
    );
    store.until(|store| store.entries() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn release_of_what_is_gone_says_lost() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.forget(&session);
    let other = store.session(TTL).await.lock("a").await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
    assert!(other.is_valid());
    assert_eq!(store.entries(), 1);
}

#[tokio::test(start_paused = true)]
async fn session_that_is_full_refuses_and_one_that_frees_room_waits() {
    let store = Scripted::paused().capacity(2);
    let session = store.session(TTL).await;
    let (a, b) = (session.lock("a").await.unwrap(), session.lock("b").await.unwrap());
    let error = session.lock("c").await.unwrap_err();
    assert_eq!((error.kind(), error.operation()), (ErrorKind::TooLarge, Some("lock")));
    store.once("leave", Fault::Delay(Duration::from_millis(200)));
    drop(a);
    let c = session.lock("c").await.unwrap();
    drop((b, c));
    for _ in 0..20 {
        drop(session.try_lock("d").await.unwrap());
        drop(session.lock("e").await.unwrap());
    }
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn room_of_a_dropped_request_in_flight_is_waited_for() {
    let store = Scripted::paused().capacity(1);
    let session = store.session(TTL).await;
    store.once("join", Fault::Delay(Duration::from_millis(100)));
    assert!(polled(session.lock("a"), 2).await.is_none());
    assert!(session.lock("b").await.unwrap().is_valid());
}

#[tokio::test(start_paused = true)]
async fn try_lock_waits_a_short_time_for_room() {
    let store = Scripted::paused().capacity(1);
    let session = store.session(TTL).await;
    store.always("leave", Fault::Refuse(ErrorKind::Unavailable));
    drop(session.lock("a").await.unwrap());
    let begun = Instant::now();
    let error = session.try_lock("b").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::TooLarge, Some("try_lock"))
    );
    assert!(begun.elapsed() <= Duration::from_secs(1), "after {:?}", begun.elapsed());
    store.heal("leave");
    session.lock("c").await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn release_does_not_wake_all_that_wait_for_room() {
    let store = Scripted::paused().capacity(2);
    let session = store.session(TTL).await;
    let (a, b) = (session.lock("a").await.unwrap(), session.lock("b").await.unwrap());
    store.always("leave", Fault::Delay(Duration::from_millis(100)));
    drop(a);
    sleep(Duration::from_millis(50)).await;
    // In the next message, 200 ms after the first.
    drop(b);
    let polls = Arc::new(AtomicUsize::new(0));
    for _ in 0..200 {
        let (session, polls) = (session.clone(), Arc::clone(&polls));
        let mut locking = Box::pin(async move { session.lock("c").await });
        tokio::spawn(poll_fn(move |context| {
            polls.fetch_add(1, Ordering::Relaxed);
            locking.as_mut().poll(context)
        }));
    }
    sleep(Duration::from_millis(50)).await;
    let before = polls.load(Ordering::Relaxed);
    store
        .until(|store| store.calls("leave") == 2 && store.calls("join") == 3)
        .await;
    sleep(Duration::from_millis(50)).await;
    let polls = polls.load(Ordering::Relaxed) - before;
    assert!(polls < 50, "{polls} polls");
}

#[tokio::test(start_paused = true)]
async fn those_that_wait_for_room_are_refused_when_nothing_is_being_released_any_more() {
    let store = Scripted::paused().capacity(2);
    let session = store.session(TTL).await;
    let _held = session.lock("a").await.unwrap();
    store.once("leave", Fault::Delay(Duration::from_millis(100)));
    drop(session.lock("b").await.unwrap());
    let lock = |number| {
        let session = session.clone();
        tokio::spawn(async move { session.lock(format!("{number}")).await })
    };
    let locks: Vec<_> = (0..20).map(lock).collect();
    let mut guards = Vec::new();
    for lock in locks {
        match lock.await.unwrap() {
            Ok(guard) => guards.push(guard),
            Err(error) => assert_eq!(error.kind(), ErrorKind::TooLarge),
        }
    }
    assert_eq!(guards.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn limit_of_zero_gets_a_free_lock_and_no_other() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let locker = session.locker("a");
    let guard = locker.lock_timeout(Duration::ZERO).await.unwrap();
    let error = locker.lock_timeout(Duration::ZERO).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation(), error.effect()),
        (ErrorKind::TimedOut, Some("lock_timeout"), Effect::None)
    );
    guard.release().await.unwrap();
    assert_eq!(store.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn holding_that_the_store_ended_before_its_grant_was_answered_is_lost() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::Delay(Duration::from_millis(100)));
    let locker = session.locker("a");
    let locking = tokio::spawn(async move { locker.lock().await.unwrap() });
    store.until(|store| store.entries() == 1).await;
    store.report(&session, SessionEvent::RequestLost(Nonce::new(1), LossReason::Revoked));
    assert_eq!(locking.await.unwrap().loss(), Some(LossReason::Revoked));
}

#[tokio::test(start_paused = true)]
async fn guards_that_are_dropped_together_leave_in_one_message() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let mut guards = Vec::new();
    for number in 0..100 {
        guards.push(session.lock(format!("{number}")).await.unwrap());
    }
    drop(guards);
    store.until_empty().await;
    assert!(store.calls("leave") <= 2, "{} messages", store.calls("leave"));
}

#[tokio::test(start_paused = true)]
async fn releases_that_are_awaited_together_go_together() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let mut releases = Vec::new();
    for number in 0..100 {
        let guard = session.lock(format!("{number}")).await.unwrap();
        releases.push(guard.release());
    }
    for released in futures_util::future::join_all(releases).await {
        released.unwrap();
    }
    assert!(store.calls("leave") <= 4, "{} messages", store.calls("leave"));
}

#[tokio::test(start_paused = true)]
async fn refused_release_is_reported_and_tried_again() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.always("leave", Fault::Refuse(ErrorKind::Unauthorized));
    // Without it, the comparison would find the entry.
    store.always("entries", Fault::LoseRequest);
    let error = guard.release().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unauthorized, Some("release"))
    );
    sleep(Duration::from_secs(2)).await;
    assert_eq!(store.entries(), 1);
    store.heal("leave");
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn refused_release_does_not_hold_up_others() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let (a, b, c) = (
        session.lock("a").await.unwrap(),
        session.lock("b").await.unwrap(),
        session.lock("c").await.unwrap(),
    );
    for _ in 0..3 {
        store.once("leave", Fault::Refuse(ErrorKind::Foreign));
    }
    drop((a, b));
    c.release().await.unwrap();
    store.until_empty().await;
}

#[tokio::test(start_paused = true)]
async fn release_waits_for_a_store_that_comes_back() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.always("leave", Fault::LoseRequest);
    let releasing = tokio::spawn(guard.release());
    sleep(Duration::from_secs(4)).await;
    assert!(!releasing.is_finished());
    store.heal("leave");
    releasing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn lock_timeout_ends_in_time_and_leaves_the_wait_queue() {
    let store = Scripted::paused();
    let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
    let _guard = holder.lock("a").await.unwrap();
    let begun = Instant::now();
    let error = session
        .locker("a")
        .lock_timeout(Duration::from_secs(3))
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::TimedOut, Some("lock_timeout"))
    );
    assert!(begun.elapsed() < Duration::from_millis(3_010));
    store.until(|store| store.entries() == 1).await;
}

#[tokio::test(start_paused = true)]
async fn with_runs_the_work_and_releases() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let token = session.locker("a").with(async |token| token.get()).await.unwrap();
    assert_eq!(token, 1);
    assert_eq!(store.entries(), 0);
    let locker = session.locker("a");
    let killed = locker.with(async |_| {
        store.kill(&session);
        std::future::pending::<()>().await
    });
    let error = killed.await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::Unknown));
}

#[tokio::test(start_paused = true)]
async fn withdrawn_requests_are_forgotten_below_the_watermark() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    for _ in 0..50 {
        drop(session.lock("a").await.unwrap());
    }
    session.lock("a").await.unwrap().release().await.unwrap();
    store.until_empty().await;
    drop(session.lock("a").await.unwrap());
    assert!(store.withdrawals() <= 2, "{} withdrawals", store.withdrawals());
}

#[tokio::test(start_paused = true)]
async fn watermark_stays_below_a_request_that_is_repeated() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::LoseRequest);
    let locker = session.locker("a");
    let locking = tokio::spawn(async move { locker.lock().await });
    store.until(|store| store.calls("join") == 1).await;
    session.lock("b").await.unwrap().release().await.unwrap();
    let _other = session.lock("c").await.unwrap();
    assert!(locking.await.unwrap().unwrap().is_valid());
}

#[tokio::test(start_paused = true)]
async fn withdrawn_requests_are_forgotten_although_an_older_one_holds_or_waits() {
    let store = Scripted::paused();
    let (other, session) = (store.session(TTL).await, store.session(TTL).await);
    let _blocking = other.lock("a").await.unwrap();
    let _held = session.lock("b").await.unwrap();
    let locker = session.locker("a");
    let waiting = tokio::spawn(async move { locker.lock().await });
    store.until(|store| store.entries() == 3).await;
    for _ in 0..50 {
        session.lock("c").await.unwrap().release().await.unwrap();
    }
    assert!(store.withdrawals() <= 2, "{} withdrawals", store.withdrawals());
    assert!(!waiting.is_finished());
}

#[tokio::test(start_paused = true)]
async fn late_copy_of_a_join_that_was_answered_leaves_nothing() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::Late(Duration::from_secs(2)));
    let guard = session.lock("a").await.unwrap();
    session.lock("b").await.unwrap().release().await.unwrap();
    guard.release().await.unwrap();
    session.lock("c").await.unwrap().release().await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(store.entries(), 0);
    assert!(store.withdrawals() <= 2);
}

#[tokio::test(start_paused = true)]
async fn step_whose_answers_are_lost_is_repeated_under_its_marker() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    for fault in [Fault::LoseAnswer, Fault::LoseRequest, Fault::LoseAnswer] {
        store.once("downgrade", fault);
    }
    let guard = session.rw_lock("a").write().await.unwrap();
    let _reader = guard.downgrade().await.unwrap();
    let (markers, downgrades) = store.downgrades();
    assert_eq!((markers.len(), downgrades), (4, 1));
    assert!(markers.iter().all(|marker| *marker == markers[0]));
}

#[tokio::test(start_paused = true)]
async fn step_dropped_at_any_await_point_is_carried_out_once() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        store.once("downgrade", Fault::LoseAnswer);
        let guard = session.rw_lock("a").write().await.unwrap();
        let ended = polled(guard.downgrade(), polls).await.is_some();
        store
            .until(|store| store.calls("downgrade") == if polls == 0 { 0 } else { 2 })
            .await;
        sleep(Duration::from_millis(100)).await;
        assert_eq!(store.downgrades().1, usize::from(polls > 0));
        store.until_empty().await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn step_ends_with_its_session() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.rw_lock("a").write().await.unwrap();
    store.always("downgrade", Fault::LoseRequest);
    store.always("renew", Fault::LoseRequest);
    let error = guard.downgrade().await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::Unknown));
    assert_eq!(
        (error.loss(), error.operation()),
        (Some(LossReason::Unreachable), Some("downgrade"))
    );
}

#[tokio::test(start_paused = true)]
async fn steps_share_64_slots_and_the_rest_waits() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let mut steps = Vec::new();
    store.always("downgrade", Fault::Delay(Duration::from_secs(1)));
    for number in 0..100 {
        let guard = session.rw_lock(format!("{number}")).write().await.unwrap();
        steps.push(tokio::spawn(guard.downgrade()));
    }
    store.until(|store| store.calls("downgrade") == 64).await;
    sleep(Duration::from_secs(1)).await;
    let (markers, _) = store.downgrades();
    let slots: std::collections::HashSet<_> = markers.iter().map(|marker| marker.slot).collect();
    assert_eq!((markers.len(), slots.len()), (64, 64));
    for step in steps {
        drop(step.await.unwrap().unwrap());
    }
    let (markers, downgrades) = store.downgrades();
    assert_eq!((markers.len(), downgrades), (100, 100));
    assert!(markers.iter().map(|marker| marker.nonce).is_sorted());
}
