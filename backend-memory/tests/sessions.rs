//! Sessions under paused time: deadlines, loss, expiry in the store, detaching and resuming
//! (rules S1 to S5).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::time::Duration;

use support::*;
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, LossReason, SessionId, SessionOptions, Store};
use tenure_memory::{CAPACITY, Fault, MAX_TTL, MIN_TTL, MemoryConfig, connect};
use tokio::time::{Instant, advance};

/// TTL/20, for a TTL of ten seconds.
const MARGIN: Duration = Duration::from_millis(500);

#[tokio::test(start_paused = true)]
async fn ttls_are_granted_rounded_up_and_refused() {
    let store = store();
    let open = async |ttl| store.open(SessionOptions::new().ttl(ttl)).await;
    assert_eq!(open(secs(3)).await.unwrap().ttl(), secs(3));
    assert_eq!(open(millis(1)).await.unwrap().ttl(), MIN_TTL);
    assert_eq!(open(MAX_TTL).await.unwrap().ttl(), MAX_TTL);
    for bad in [Duration::ZERO, MAX_TTL + millis(1), Duration::MAX] {
        assert_eq!(open(bad).await.unwrap_err().kind(), ErrorKind::Config);
    }
    let default = store.open(SessionOptions::new()).await.unwrap();
    assert_eq!(default.ttl(), TTL);
}

#[test]
fn connecting_outside_a_runtime_is_an_error_and_no_panic() {
    let error = connect(MemoryConfig::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[tokio::test(start_paused = true)]
async fn a_session_lives_for_as_long_as_it_is_renewed() {
    let store = store();
    let session = open(&store).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    for _ in 0..100 {
        tokio::time::sleep(secs(60)).await;
        assert!(session.is_valid() && guard.is_valid());
        assert!(guard.remaining() > TTL / 2, "{:?}", guard.remaining());
    }
    guard.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_send_less_the_margin() {
    let store = store();
    let link = store.backend().link();
    // The answer to the opening takes two seconds.
    link.inject(Fault::AnswersHeld);
    let start = Instant::now();
    let healing = tokio::spawn({
        let link = link.clone();
        async move {
            tokio::time::sleep(secs(2)).await;
            link.heal();
        }
    });
    let session = open(&store).await;
    healing.await.unwrap();
    link.silence();
    assert_eq!(start.elapsed(), secs(2));
    assert_eq!(session.remaining(), TTL - MARGIN - secs(2));
    assert_eq!(session.lost().await, LossReason::Unreachable);
    let after = start.elapsed();
    assert!(
        after >= TTL - MARGIN && after <= TTL - MARGIN + millis(2),
        "{after:?}"
    );
    assert!(!session.is_valid());
    assert_eq!(session.remaining(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_counts_from_its_send() {
    let store = store();
    let link = store.backend().link();
    let session = open(&store).await;
    tokio::time::sleep(secs(3)).await;
    // The first renewal is sent at 10/3 s, and its answer arrives a second later.
    link.inject(Fault::AnswersHeld);
    let sent = TTL / 3 - secs(3);
    tokio::time::sleep(sent + secs(1)).await;
    let before = session.remaining();
    link.heal();
    until("the answer has arrived", || session.remaining() > before).await;
    let expected = TTL - MARGIN - secs(1);
    let left = session.remaining();
    assert!(left <= expected && left + millis(5) >= expected, "{left:?}");
}

#[tokio::test(start_paused = true)]
async fn silence_is_signalled_at_the_deadline_before_the_store_frees_anything() {
    let store = store();
    let other = open(&another(&store)).await;
    let session = open(&store).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let start = Instant::now();
    store.backend().link().silence();
    let waiter = other.locker("x").unwrap();
    let waiting = tokio::spawn(async move {
        let guard = waiter.lock().await.unwrap();
        (Instant::now(), guard.token())
    });
    assert_eq!(guard.lost().await, LossReason::Unreachable);
    let signalled = Instant::now();
    assert_eq!(guard.loss(), Some(LossReason::Unreachable));
    let (granted, token) = waiting.await.unwrap();
    assert!(granted - signalled >= MARGIN - millis(2));
    // The store frees at its TTL exactly, give or take the timer's millisecond.
    assert!(granted - start >= TTL && granted - start <= TTL + millis(2));
    assert!(token > guard.token());
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Unreachable));
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_did_not_run_finds_the_session_expired_at_the_first_look() {
    let store = store();
    let session = open(&store).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let lost = guard.lost();
    tokio::time::sleep(secs(1)).await;
    // The clock jumps and no task runs in between, as after a SIGSTOP.
    let clock = advance(TTL);
    let mut clock = std::pin::pin!(clock);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(clock.as_mut().poll(&mut context).is_pending());
    assert!(!guard.is_valid());
    assert_eq!(guard.loss(), Some(LossReason::Expired));
    assert_eq!(lost.await, LossReason::Expired);
    let error = guard.while_held(async {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn a_late_renewal_does_not_resurrect() {
    let store = store();
    let (delayed, _) = layered(&store, Script::default());
    let link = delayed.backend().inner.link();
    let session = delayed
        .into_dyn()
        .open(SessionOptions::new())
        .await
        .unwrap();
    link.inject(Fault::AnswersHeld);
    // Renewals reach the store all the time: only the answers are missing.
    assert_eq!(session.lost().await, LossReason::Unreachable);
    link.heal();
    tokio::time::sleep(millis(1)).await;
    assert!(!session.is_valid());
    assert_eq!(session.loss(), Some(LossReason::Unreachable));
    let error = session.locker("x").unwrap().lock().await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Unreachable));
    // It is ended in the store as soon as the store can be reached, not left to its TTL.
    until("the lease is gone", || {
        store.backend().footprint().sessions == 0
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_operator_revokes_a_session() {
    let store = store();
    let session = open(&store).await;
    let other = open(&another(&store)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let waiting = {
        let blocked = session.locker("x").unwrap();
        tokio::spawn(async move { blocked.lock().await })
    };
    until("it waits", || store.backend().footprint().waits == 1).await;
    let start = Instant::now();
    assert!(store.backend().revoke(session.id()));
    assert!(!store.backend().revoke(session.id()));
    assert!(!store.backend().revoke(&SessionId::new("nonsense")));
    // Freed at once, and the holder hears of it at once.
    let next = other.locker("x").unwrap().try_lock().await.unwrap();
    assert_eq!(guard.lost().await, LossReason::Revoked);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Revoked));
    assert_eq!(session.lost().await, LossReason::Revoked);
    assert!(start.elapsed() <= TTL / 3 + millis(5));
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(store.backend().keys(), [next.key()]);
}

#[tokio::test(start_paused = true)]
async fn an_operator_deletes_one_holding() {
    let store = store();
    let session = open(&store).await;
    let (x, y) = (session.locker("x").unwrap(), session.locker("y").unwrap());
    let (x, y) = (x.lock().await.unwrap(), y.lock().await.unwrap());
    assert!(store.backend().delete(x.key()));
    assert!(!store.backend().delete(x.key()));
    assert_eq!(x.lost().await, LossReason::Revoked);
    assert!(!x.is_valid() && y.is_valid() && session.is_valid());

    // Over a silent link the news is lost; the audit after the next renewal brings it.
    let link = store.backend().link();
    link.silence();
    assert!(store.backend().delete(y.key()));
    assert!(y.is_valid());
    link.heal();
    assert_eq!(y.lost().await, LossReason::Revoked);
    assert!(session.is_valid());
    for guard in [x, y] {
        let error = guard.release().await.unwrap_err();
        assert_eq!(error.loss(), Some(LossReason::Revoked));
    }
}

#[tokio::test(start_paused = true)]
async fn an_operator_deletes_a_wait_which_goes_to_the_end_of_the_line() {
    let store = store();
    let session = open(&store).await;
    let lock = session.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    until("it waits", || store.backend().keys().len() == 2).await;
    let wait = store.backend().keys().pop().unwrap();
    assert!(store.backend().delete(&wait));
    until("it waits again", || {
        store.backend().keys().len() == 2 && !store.backend().keys().contains(&wait)
    })
    .await;
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn close_frees_everything_and_ends_waits_and_guards() {
    let store = store();
    let session = open(&store).await;
    let other = open(&another(&store)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let held = other.locker("y").unwrap().lock().await.unwrap();
    let blocked = session.locker("y").unwrap();
    let waiting = tokio::spawn(async move { blocked.lock().await });
    until("it waits", || store.backend().footprint().waits == 1).await;
    let lost = session.lost();
    session.clone().close().await.unwrap();
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    assert_eq!(lost.await, LossReason::Closed);
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Closed));
    assert_eq!(store.backend().keys(), [held.key()]);
    // Again is once.
    session.close().await.unwrap();
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Closed));
}

#[tokio::test(start_paused = true)]
async fn the_last_of_session_handle_and_guard_revokes() {
    let store = store();
    let (counted, script) = layered(&store, Script::default());
    let session = counted
        .into_dyn()
        .open(SessionOptions::new())
        .await
        .unwrap();
    let lock = session.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let (clone, lost) = (session.clone(), guard.lost());
    drop(session);
    drop(lock);
    drop(clone);
    tokio::time::sleep(2 * TTL).await;
    assert!(guard.is_valid(), "a guard alone keeps its session");
    drop(guard);
    assert_eq!(lost.await, LossReason::Closed);
    until("the lease is gone", || {
        store.backend().footprint() == Default::default()
    })
    .await;
    until("core has let go of it", || script.live() == 0).await;
}

/// No task outlives its session, whichever way that ended, and whatever future of it is kept.
#[tokio::test(start_paused = true)]
async fn no_task_is_left_behind() {
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    let store = store();
    let mut kept = Vec::new();
    for end in 0..5 {
        let (counted, script) = layered(&store, Script::default());
        let link = counted.backend().inner.link();
        let counted = counted.into_dyn();
        let session = counted.open(SessionOptions::new()).await.unwrap();
        let guard = session.locker("x").unwrap().lock().await.unwrap();
        kept.push(Box::pin(guard.lost()));
        match end {
            0 => {}
            1 => session.clone().close().await.unwrap(),
            2 => drop(session.clone().detach().await.unwrap()),
            3 => {
                store.backend().revoke(session.id());
                session.lost().await;
            }
            _ => {
                link.silence();
                session.lost().await;
            }
        }
        drop((guard, session));
        until("its task ends", || tasks() == before).await;
        // What is kept of a guard's loss keeps the lease's memory, and nothing else.
        assert!(script.live() <= 1);
    }
    for lost in kept {
        lost.await;
    }
}

#[tokio::test(start_paused = true)]
async fn detached_sessions_are_resumed_once_with_what_they_hold() {
    let store = store();
    let dynamic = store.clone().into_dyn();
    let session = open(&store).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let other = open(&another(&store)).await;
    let blocked = session.locker("y").unwrap();
    let held = other.locker("y").unwrap().lock().await.unwrap();
    let waiting = tokio::spawn(async move { blocked.lock().await });
    until("it waits", || store.backend().footprint().waits == 1).await;

    // A live session is nobody else's.
    let error = dynamic.resume(session.id()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let (token, key) = (guard.token(), guard.key().to_owned());
    let id = session.detach().await.unwrap();
    assert_eq!(guard.loss(), Some(LossReason::Detached));
    let error = waiting.await.unwrap().unwrap_err();
    assert_eq!(error.loss(), Some(LossReason::Detached));
    drop(guard);
    tokio::time::sleep(secs(1)).await;
    assert_eq!(store.backend().keys(), {
        let mut both = vec![key.clone(), held.key().to_owned()];
        both.sort();
        both
    });

    let session = dynamic.resume(&id).await.unwrap();
    assert!(session.is_valid());
    let error = dynamic.resume(&id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);

    let lock = session.locker("x").unwrap();
    let error = lock.reclaim(held.token()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let guard = lock.reclaim(token).await.unwrap();
    assert_eq!((guard.token(), guard.key()), (token, key.as_str()));
    // One holding, one guard.
    let error = lock.reclaim(token).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    // The audit knows it under its new nonce.
    tokio::time::sleep(3 * TTL).await;
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    assert_eq!(store.backend().keys(), [held.key()]);
}

#[tokio::test(start_paused = true)]
async fn a_detached_session_that_nobody_resumes_ends_with_its_ttl() {
    let store = store();
    let session = open(&store).await;
    let other = open(&another(&store)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let renewed = Instant::now();
    let id = session.detach().await.unwrap();
    let next = other.locker("x").unwrap().lock().await.unwrap();
    assert!(renewed.elapsed() >= TTL && renewed.elapsed() <= TTL + millis(2));
    assert!(next.token() > guard.token());
    let error = store.resume(&id).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    let error = store.resume(&SessionId::new("x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_resumed_session_is_valid_before_its_first_renewal() {
    let store = store();
    let (failing, script) = layered(&store, Script::default());
    let session = open(&store).await;
    let id = session.detach().await.unwrap();
    let before = script.calls(Op::Renew);
    let session = failing.resume(&id).await.unwrap();
    assert_eq!(script.calls(Op::Renew), before + 1);
    assert!(session.is_valid());
}

#[tokio::test(start_paused = true)]
async fn the_old_process_of_a_resumed_session_has_no_say() {
    let store = store();
    let (old, script) = layered(&store, Script::default());
    let link = old.backend().inner.link();
    let session = old.into_dyn().open(SessionOptions::new()).await.unwrap();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    // Its last renewal hangs on the way; the detach overtakes it.
    tokio::time::sleep(secs(3)).await;
    link.inject_once(Fault::Silent);
    until("a renewal is on its way", || script.calls(Op::Renew) == 1).await;
    let id = session.detach().await.unwrap();
    let start = Instant::now();
    link.heal();
    let resumed = store.resume(&id).await.unwrap();
    assert!(resumed.is_valid());
    resumed.close().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(guard.loss(), Some(LossReason::Detached));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_before_the_detach_does_not_keep_the_resumed_session_alive() {
    let store = store();
    let session = open(&store).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let link = store.backend().link();
    // The renewal at TTL/3 is on its way for a while.
    link.inject_once(Fault::RequestsLate);
    tokio::time::sleep(TTL / 3 + millis(100)).await;
    let id = session.detach().await.unwrap();
    drop(guard);
    let process = another(&store);
    let _resumed = process.resume(&id).await.unwrap();
    let renewed = Instant::now();
    process.backend().link().silence();
    tokio::time::sleep(TTL / 2).await;
    link.heal();
    let next = open(&another(&store)).await;
    let guard = next.locker("x").unwrap().lock().await.unwrap();
    assert!(renewed.elapsed() <= TTL + millis(2));
    guard.release().await.unwrap();
}

/// The answer is there, and so is the end of the session: a grant at that moment is none.
#[tokio::test(start_paused = true)]
async fn a_grant_that_lands_after_the_deadline_is_given_back() {
    let store = store();
    let (slow, _) = layered(&store, Script::new(3));
    let session = slow.into_dyn().open(SessionOptions::new()).await.unwrap();
    let lock = session.locker("x").unwrap();
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    {
        let mut locking = std::pin::pin!(lock.lock());
        // Three yields before the request, three after it: the next poll brings the answer.
        for _ in 0..6 {
            assert!(locking.as_mut().poll(&mut context).is_pending());
        }
        assert_eq!(
            store.backend().keys().len(),
            1,
            "granted, and not yet answered"
        );
        let mut clock = std::pin::pin!(advance(TTL - MARGIN));
        assert!(clock.as_mut().poll(&mut context).is_pending());
        let std::task::Poll::Ready(landed) = locking.as_mut().poll(&mut context) else {
            panic!("the answer is not there");
        };
        assert_eq!(landed.unwrap_err().loss(), Some(LossReason::Expired));
    }
    until_no_ghost(store.backend()).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_that_would_hold_too_much_is_refused() {
    let store = store();
    let session = open(&store).await;
    let mut guards = Vec::new();
    for n in 0..CAPACITY {
        let lock = session.locker(format!("{n}")).unwrap();
        guards.push(lock.try_lock().await.unwrap());
    }
    let lock = session.locker("one more").unwrap();
    assert_eq!(lock.lock().await.unwrap_err().kind(), ErrorKind::TooLarge);
    assert_eq!(
        lock.try_lock().await.unwrap_err().kind(),
        ErrorKind::TooLarge
    );
    guards.pop().unwrap().release().await.unwrap();
    lock.lock().await.unwrap().release().await.unwrap();
    // The others are none the worse for it.
    let other = open(&store).await;
    drop(other.locker("one more").unwrap().lock().await.unwrap());
    session.close().await.unwrap();
    until_no_ghost(store.backend()).await;
}

#[tokio::test(start_paused = true)]
async fn namespaces_and_names_of_stores() {
    let url = |text: &str| {
        let config = MemoryConfig::from_url(StoreUrl::parse(text).unwrap()).unwrap();
        connect(config).unwrap()
    };
    let lock = async |store: &Store<_>| open(store).await.locker("x").unwrap().try_lock().await;
    let shop = url("memory:namespaces-and-names?namespace=shop");
    let other = url("memory:namespaces-and-names?namespace=other");
    let again = url("memory:namespaces-and-names?namespace=shop");
    let (private, private_too) = (url("memory:"), url("memory:"));
    let held = lock(&shop).await.unwrap();
    let _held = [
        lock(&other).await.unwrap(),
        lock(&private).await.unwrap(),
        lock(&private_too).await.unwrap(),
    ];
    assert_eq!(
        lock(&again).await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    // An operator of one namespace has no hand in another.
    assert_eq!(again.backend().keys(), [held.key()]);
    assert!(!other.backend().delete(held.key()));
    assert!(!other.backend().revoke(held.session_id()));
    assert!(held.is_valid());
    // The store outlives its connections: what a dead process held, it holds for its TTL.
    let token = held.token();
    std::mem::forget(held);
    drop((shop, again));
    let late = url("memory:namespaces-and-names?namespace=shop");
    assert_eq!(lock(&late).await.unwrap_err().kind(), ErrorKind::WouldBlock);
    late.backend().delete(&late.backend().keys()[0]);
    assert!(lock(&late).await.unwrap().token() > token);
}

#[tokio::test]
async fn leases_end_under_real_time_too() {
    let store = store();
    let session = store
        .open(SessionOptions::new().ttl(millis(200)))
        .await
        .unwrap();
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let other = open(&another(&store)).await;
    let start = std::time::Instant::now();
    store.backend().link().silence();
    let next = other.locker("x").unwrap().lock().await.unwrap();
    assert!(start.elapsed() >= millis(100), "{:?}", start.elapsed());
    assert!(!guard.is_valid());
    assert!(next.token() > guard.token());
}
