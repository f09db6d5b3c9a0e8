//! Requests and answers that get lost, come late, or fail: whatever an attempt left behind is
//! found again and removed, and the store does not grow (rules L5, L7, H1).
#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use support::*;
use tenure_core::{Effect, Error, ErrorKind, LossReason, SessionOptions};
use tenure_memory::Fault;

fn unknown() -> Error {
    Error::new(ErrorKind::Unavailable, "no answer").with_effect(Effect::Unknown)
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_lock_is_asked_for_again() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost, Fault::RequestsLate] {
        let store = store();
        let session = open(&store).await;
        store.backend().link().inject_once(fault);
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        assert_eq!(store.backend().keys(), [guard.key()]);
        store.backend().link().heal();
        assert_eq!(store.backend().keys(), [guard.key()]);
        guard.release().await.unwrap();
        assert_eq!(store.backend().keys().len(), 0);
        assert_eq!(store.backend().footprint().on_their_way, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_try_lock_is_withdrawn() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost] {
        let store = store();
        let session = open(&store).await;
        store.backend().link().inject_once(fault);
        let error = session.locker("x").unwrap().try_lock().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert_eq!(error.effect(), Effect::Unknown);
        until_no_ghost(store.backend()).await;
        assert!(session.is_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_arrives_after_its_withdrawal_has_no_effect() {
    let store = store();
    let session = open(&store).await;
    let link = store.backend().link();
    link.inject_once(Fault::RequestsLate);
    session.locker("x").unwrap().try_lock().await.unwrap_err();
    // Withdrawn in the background, long before the request arrives.
    tokio::time::sleep(secs(1)).await;
    assert_eq!(store.backend().footprint().on_their_way, 1);
    link.heal();
    assert_eq!(store.backend().keys().len(), 0);
    assert_eq!(store.backend().footprint().on_their_way, 0);
}

#[tokio::test(start_paused = true)]
async fn a_lock_cancelled_while_its_request_hangs_leaves_nothing() {
    for fault in [Fault::Silent, Fault::AnswersHeld] {
        let store = store();
        let session = open(&store).await;
        let link = store.backend().link();
        link.inject_once(fault);
        let lock = session.locker("x").unwrap();
        let error = lock.lock_timeout(secs(1)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        link.heal();
        let backend = store.backend();
        until("it has arrived", || backend.footprint().on_their_way == 0).await;
        until_no_ghost(backend).await;
        assert!(session.is_valid());
    }
}

/// The first attempt may have left a place in line; the second one fails for good. The place must
/// not stay until it is granted to nobody.
#[tokio::test(start_paused = true)]
async fn an_unknown_attempt_is_withdrawn_even_if_a_later_one_fails_cleanly() {
    let store = store();
    let (flaky, script) = layered(&store, Script::default());
    let session = flaky.into_dyn().open(SessionOptions::new()).await.unwrap();
    script.fail(Op::Acquire, When::After, unknown);
    script.fail(Op::Acquire, When::Before, || {
        Error::new(ErrorKind::Unauthorized, "the password has changed")
    });
    let error = session.locker("x").unwrap().lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthorized);
    until_no_ghost(store.backend()).await;
}

#[tokio::test(start_paused = true)]
async fn a_withdrawal_is_repeated_until_it_succeeds() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Internal] {
        let store = store();
        let (flaky, script) = layered(&store, Script::default());
        let session = flaky.into_dyn().open(SessionOptions::new()).await.unwrap();
        script.fail(Op::TryAcquire, When::After, unknown);
        for _ in 0..3 {
            script.fail(Op::Withdraw, When::Before, move || Error::new(kind, "no"));
        }
        session.locker("x").unwrap().try_lock().await.unwrap_err();
        until_no_ghost(store.backend()).await;
    }
}

/// A release that fails, for whatever reason but that nothing is held, goes on in the background:
/// otherwise the lock would stay held by nobody for as long as the session lives.
#[tokio::test(start_paused = true)]
async fn a_release_is_repeated_until_it_succeeds() {
    for kind in [
        ErrorKind::Unavailable,
        ErrorKind::Unauthorized,
        ErrorKind::Internal,
    ] {
        let store = store();
        let (flaky, script) = layered(&store, Script::default());
        let session = flaky.into_dyn().open(SessionOptions::new()).await.unwrap();
        let lock = session.locker("x").unwrap();

        let guard = lock.lock().await.unwrap();
        script.fail(Op::Release, When::Before, move || Error::new(kind, "no"));
        script.fail(Op::Release, When::Before, move || Error::new(kind, "no"));
        let error = guard.release().await.unwrap_err();
        assert_eq!(error.kind(), kind);
        until_no_ghost(store.backend()).await;

        let guard = lock.lock().await.unwrap();
        script.fail(Op::Release, When::Before, move || Error::new(kind, "no"));
        script.fail(Op::Release, When::Before, move || Error::new(kind, "no"));
        drop(guard);
        until_no_ghost(store.backend()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_release_is_not_a_second_release() {
    let store = store();
    let session = open(&store).await;
    let other = open(&another(&store)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    store.backend().link().inject_once(Fault::AnswersLost);
    let error = guard.release().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Unavailable, Effect::Unknown)
    );
    let next = other.locker("x").unwrap().lock().await.unwrap();
    tokio::time::sleep(secs(2)).await;
    assert_eq!(store.backend().keys(), [next.key()]);
    next.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_that_arrives_late_spares_the_next_holder() {
    let store = store();
    let session = open(&store).await;
    let other = open(&another(&store)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    store.backend().link().inject_once(Fault::RequestsLate);
    guard.release().await.unwrap_err();
    // The background has released it by other means.
    let next = other.locker("x").unwrap().lock().await.unwrap();
    store.backend().link().heal();
    assert_eq!(store.backend().keys(), [next.key()]);
    next.release().await.unwrap();
}

/// One failed attempt to end the session is not the end of trying: the lease would hold on.
#[tokio::test(start_paused = true)]
async fn ending_a_session_is_tried_again() {
    let store = store();
    let (flaky, script) = layered(&store, Script::default());
    let flaky = flaky.into_dyn();
    let gone = || store.backend().footprint().sessions == 0;

    let session = flaky.open(SessionOptions::new()).await.unwrap();
    script.fail(Op::Revoke, When::Before, unknown);
    let start = tokio::time::Instant::now();
    drop(session);
    until("the dropped session is gone", gone).await;
    assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());

    let session = flaky.open(SessionOptions::new()).await.unwrap();
    script.fail(Op::Revoke, When::Before, unknown);
    session.close().await.unwrap();
    assert!(gone());
}

/// A session that could not be brought to life must not live on in the store.
#[tokio::test(start_paused = true)]
async fn a_resume_that_fails_at_its_first_renewal_closes_the_session() {
    let store = store();
    let (flaky, script) = layered(&store, Script::default());
    let flaky = flaky.into_dyn();
    let session = flaky.open(SessionOptions::new()).await.unwrap();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let id = session.detach().await.unwrap();
    assert_eq!(guard.loss(), Some(LossReason::Detached));
    script.fail(Op::Renew, When::Before, || {
        Error::new(ErrorKind::Unauthorized, "the password has changed")
    });
    flaky.resume(&id).await.unwrap_err();
    until_no_ghost(store.backend()).await;
    assert_eq!(store.backend().footprint().sessions, 0);
}

/// What was dropped before the detach is released before its record can be resumed.
#[tokio::test(start_paused = true)]
async fn a_guard_dropped_before_the_detach_is_not_left_held() {
    let store = store();
    let (flaky, script) = layered(&store, Script::default());
    let flaky = flaky.into_dyn();
    let session = flaky.open(SessionOptions::new()).await.unwrap();
    let kept = session.locker("kept").unwrap().lock().await.unwrap();
    let dropped = session.locker("dropped").unwrap().lock().await.unwrap();
    script.fail(Op::Release, When::Before, unknown);
    drop(dropped);
    let key = kept.key().to_owned();
    let _id = session.detach().await.unwrap();
    assert_eq!(store.backend().keys(), [key]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_to_reclaim_does_not_lose_the_lock() {
    let store = store();
    let (flaky, script) = layered(&store, Script::default());
    let flaky = flaky.into_dyn();
    let session = flaky.open(SessionOptions::new()).await.unwrap();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let (key, token) = (guard.key().to_owned(), guard.token());
    let id = session.detach().await.unwrap();
    let session = flaky.resume(&id).await.unwrap();
    script.fail(Op::Reclaim, When::After, unknown);
    let guard = session.locker("x").unwrap().reclaim(token).await.unwrap();
    tokio::time::sleep(secs(1)).await;
    assert_eq!(store.backend().keys(), [key]);
    assert_eq!(guard.token(), token);
    guard.release().await.unwrap();
}

/// A backend that panics ends its attempt, and not the session's other holdings.
#[tokio::test(start_paused = true)]
async fn a_panicking_backend_fails_closed() {
    let store = store();
    let (broken, script) = layered(&store, Script::default());
    let session = broken.into_dyn().open(SessionOptions::new()).await.unwrap();
    let held = session.locker("held").unwrap().lock().await.unwrap();
    script.fail(Op::Acquire, When::Panic, unknown);
    let lock = session.locker("x").unwrap();
    let broken = tokio::spawn(async move { lock.lock().await.map(drop) });
    assert!(broken.await.unwrap_err().is_panic());
    tokio::time::sleep(secs(1)).await;
    assert!(held.is_valid());
    assert_eq!(store.backend().keys(), [held.key()]);
    script.fail(Op::Release, When::Panic, unknown);
    let broken = tokio::spawn(held.release());
    assert!(broken.await.unwrap_err().is_panic());
    until_no_ghost(store.backend()).await;
    assert!(session.is_valid());
}

/// Steady use, with cancellations and failures, leaves nothing (rule H1).
#[tokio::test(start_paused = true)]
async fn the_store_does_not_grow() {
    let store = store();
    let link = store.backend().link();
    let keeper = open(&another(&store)).await;
    for round in 0..200 {
        let session = open(&store).await;
        let lock = session.locker(format!("x{round}")).unwrap();
        let guard = lock.lock().await.unwrap();
        lock.lock_timeout(millis(10)).await.unwrap_err();
        match round % 4 {
            0 => link.inject_once(Fault::AnswersLost),
            1 => link.inject_once(Fault::RequestsLost),
            2 => link.inject_once(Fault::RequestsLate),
            _ => {}
        }
        let _ = lock.try_lock().await;
        drop(guard);
        if round % 3 == 0 {
            session.close().await.unwrap();
        }
        tokio::time::sleep(millis(100)).await;
        link.heal();
    }
    let backend = store.backend();
    until("only the keeper is left", || {
        let footprint = backend.footprint();
        footprint.sessions + footprint.holdings + footprint.waits + footprint.on_their_way == 1
    })
    .await;
    assert!(keeper.is_valid());
}
