//! Deadlines, losses, and the ends of sessions.

use std::time::Duration;

use tenure_core::backend::{Nonce, SessionEvent};
use tenure_core::{Effect, ErrorKind, LossReason, SessionOptions, Store};
use tokio::time::{Instant, advance, sleep};

use crate::scripted::{Fault, Scripted, polled};

const TTL: Duration = Duration::from_secs(9);
const MARGIN: Duration = Duration::from_millis(450);

#[tokio::test(start_paused = true)]
async fn deadline_counts_from_before_the_renewal_was_sent() {
    let store = Scripted::paused();
    let opened = Instant::now();
    let session = store.session(TTL).await;
    assert_eq!(session.remaining(), TTL - MARGIN);
    // The renewal is due after three seconds, and its answer comes two seconds later.
    store.always("renew", Fault::Delay(Duration::from_secs(1)));
    sleep(Duration::from_millis(5_100)).await;
    let sent = opened + Duration::from_secs(3);
    let deadline = sent + TTL - MARGIN;
    assert_eq!(session.remaining(), deadline - Instant::now());
}

#[tokio::test(start_paused = true)]
async fn short_ttl_keeps_a_margin_of_50_ms() {
    let store = Scripted::paused();
    let session = store.session(Duration::from_millis(300)).await;
    assert_eq!(session.remaining(), Duration::from_millis(250));
}

#[tokio::test(start_paused = true)]
async fn session_whose_renewals_are_answered_lives() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    sleep(TTL * 5).await;
    assert!(session.is_valid() && guard.is_valid());
    assert_eq!(session.loss(), None);
}

#[tokio::test(start_paused = true)]
async fn renewals_are_sent_every_third_of_the_ttl() {
    let store = Scripted::paused();
    let _session = store.session(TTL).await;
    sleep(Duration::from_millis(2_990)).await;
    assert_eq!(store.calls("renew"), 0);
    sleep(Duration::from_millis(20)).await;
    assert_eq!(store.calls("renew"), 1);
    sleep(TTL).await;
    assert_eq!(store.calls("renew"), 4);
}

#[tokio::test(start_paused = true)]
async fn renewal_without_an_answer_is_given_up_and_sent_again() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("renew", Fault::Hang);
    sleep(Duration::from_millis(5_900)).await;
    assert_eq!(store.calls("renew"), 1);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.calls("renew"), 2);
    sleep(TTL).await;
    assert!(session.is_valid());
}

#[tokio::test(start_paused = true)]
async fn failed_renewals_are_tried_again_soon_and_forgotten_once_one_succeeds() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    for fault in [Fault::LoseRequest, Fault::Panic, Fault::Refuse(ErrorKind::Unauthorized)] {
        store.once("renew", fault);
    }
    sleep(Duration::from_secs(5)).await;
    assert_eq!(store.calls("renew"), 4);
    sleep(TTL).await;
    assert!(session.is_valid());
}

#[tokio::test(start_paused = true)]
async fn panics_in_the_background_leave_the_session_alone() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("entries", Fault::Panic);
    store.once("leave", Fault::Panic);
    drop(session.lock("a").await.unwrap());
    let other = session.lock("b").await.unwrap();
    sleep(TTL).await;
    assert!(other.is_valid());
    assert_eq!(store.entries(), 1);
}

/// Returns the reason of the loss of a session whose renewals meet `fault`, and the error of its guard.
async fn loss_by(fault: Fault) -> (LossReason, tenure_core::Error) {
    let store = Scripted::paused();
    let opened = Instant::now();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.always("renew", fault);
    let reason = session.lost().await;
    let signalled = opened.elapsed();
    assert!(
        signalled <= TTL - MARGIN + Duration::from_millis(2),
        "signalled after {signalled:?}"
    );
    assert!(!guard.is_valid());
    assert_eq!(guard.lost().await, reason);
    (reason, guard.release().await.unwrap_err())
}

#[tokio::test(start_paused = true)]
async fn silent_store_loses_the_session_by_the_deadline() {
    let (reason, error) = loss_by(Fault::Hang).await;
    assert_eq!(reason, LossReason::Unreachable);
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert!(error.needs_new_session());
    assert!(
        error.chain().to_string().contains("no answer to a renewal"),
        "{}",
        error.chain()
    );
}

#[tokio::test(start_paused = true)]
async fn unreachable_store_loses_the_session_by_the_deadline() {
    let (reason, error) = loss_by(Fault::LoseRequest).await;
    assert_eq!(reason, LossReason::Unreachable);
    assert!(error.chain().to_string().contains("no answer"), "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn refused_renewals_are_the_reason_of_the_loss() {
    let (reason, error) = loss_by(Fault::Refuse(ErrorKind::Unauthorized)).await;
    assert_eq!(reason, LossReason::Refused);
    assert!(error.chain().to_string().contains("refused"), "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn renewals_that_panic_are_the_reason_of_the_loss() {
    assert_eq!(loss_by(Fault::Panic).await.0, LossReason::Failed);
}

#[tokio::test(start_paused = true)]
async fn validity_reads_the_clock_before_any_task_has_run() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    let lost = guard.lost();
    advance(TTL - MARGIN - Duration::from_millis(1)).await;
    // The first poll moves the clock; no other task runs before the look.
    assert!(polled(advance(Duration::from_millis(1)), 1).await.is_none());
    assert!(!guard.is_valid());
    assert_eq!(guard.loss(), Some(LossReason::Expired));
    assert_eq!(futures_util::FutureExt::now_or_never(lost), Some(LossReason::Expired));
}

#[tokio::test(start_paused = true)]
async fn answer_after_the_deadline_revives_nothing() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    // The renewal reaches the store in time, and its answer is lost.
    store.always("renew", Fault::LoseAnswer);
    let reason = session.lost().await;
    store.heal("renew");
    sleep(TTL).await;
    assert_eq!(session.loss(), Some(reason));
}

#[tokio::test(start_paused = true)]
async fn loss_is_signalled_when_the_store_ends_the_session() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.kill(&session);
    assert_eq!(session.lost().await, LossReason::Revoked);
    let reported = store.session(TTL).await;
    let before = Instant::now();
    store.report(&reported, SessionEvent::Lost(LossReason::Revoked));
    assert_eq!(reported.lost().await, LossReason::Revoked);
    assert!(before.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn lost_session_is_revoked_when_the_store_can_be_reached() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.always("renew", Fault::LoseAnswer);
    session.lost().await;
    store
        .until(|store| store.sessions() == 0 && store.calls("revoke") == 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn close_frees_everything_and_a_second_close_is_no_error() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    session.close().await.unwrap();
    assert_eq!((store.sessions(), store.entries()), (0, 0));
    assert_eq!(guard.loss(), Some(LossReason::Closed));
    assert_eq!(guard.release().await.unwrap_err().loss(), Some(LossReason::Closed));
    session.close().await.unwrap();
    assert_eq!(session.lock("b").await.unwrap_err().loss(), Some(LossReason::Closed));
    assert_eq!(store.calls("revoke"), 1);
}

#[tokio::test(start_paused = true)]
async fn close_of_a_lost_session_is_an_error() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.kill(&session);
    session.lost().await;
    assert_eq!(session.close().await.unwrap_err().loss(), Some(LossReason::Revoked));
}

#[tokio::test(start_paused = true)]
async fn close_retries_and_says_when_the_store_does_not_confirm() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("revoke", Fault::LoseRequest);
    session.close().await.unwrap();
    let session = store.session(TTL).await;
    store.always("revoke", Fault::Hang);
    for _ in 0..2 {
        let error = session.close().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.effect()),
            (ErrorKind::Unavailable, Effect::Unknown)
        );
        assert_eq!(error.operation(), Some("close"));
    }
}

#[tokio::test(start_paused = true)]
async fn detachment_whose_answer_is_lost_is_repeated() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let session = scripted.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    scripted.once("detach", Fault::LoseRequest);
    scripted.once("detach", Fault::LoseAnswer);
    let id = session.detach().await.unwrap();
    let resumed = store.resume(&id).await.unwrap();
    let _reclaimed = resumed.locker("a").reclaim(guard.token()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn loss_is_signalled_soon_after_the_store_answers_that_the_session_has_ended() {
    let store = Scripted::paused();
    for refused in ["step", "acquire", "release"] {
        let session = store.session(TTL).await;
        let writer = session.write_lock("a").await.unwrap();
        store.kill(&session);
        let answered = match refused {
            "step" => writer.downgrade().await.map(drop),
            "acquire" => session.lock("b").await.map(drop),
            _ => writer.release().await,
        };
        assert_eq!(answered.unwrap_err().kind(), ErrorKind::Lost);
        let begun = Instant::now();
        assert_eq!(session.lost().await, LossReason::Revoked);
        let took = begun.elapsed();
        assert!(
            took < Duration::from_millis(100),
            "signalled {took:?} after a {refused}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_releases_under_way() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.once("leave", Fault::Delay(Duration::from_millis(500)));
    drop(guard);
    store.until(|store| store.calls("leave") == 1).await;
    let begun = Instant::now();
    session.close().await.unwrap();
    assert!(
        begun.elapsed() >= Duration::from_millis(990),
        "closed after {:?}",
        begun.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn close_waits_for_steps_under_way() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.rw_lock("a").write().await.unwrap();
    store.once("downgrade", Fault::Delay(Duration::from_millis(500)));
    assert!(polled(guard.downgrade(), 1).await.is_none());
    let begun = Instant::now();
    session.close().await.unwrap();
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(990), "closed after {took:?}");
    assert_eq!(store.downgrades().1, 1);
}

#[tokio::test(start_paused = true)]
async fn guard_dropped_while_its_session_is_detached_is_kept() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.once("detach", Fault::Delay(Duration::from_millis(200)));
    let detaching = session.clone();
    let detaching = tokio::spawn(async move { detaching.detach().await });
    sleep(Duration::from_millis(100)).await;
    drop(guard);
    detaching.await.unwrap().unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!((store.entries(), store.calls("leave")), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn resumed_session_withdraws_entries_that_cannot_be_reclaimed() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let session = scripted.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    let id = session.detach().await.unwrap();
    // A request that waits for the lock.
    scripted.plant(&session, Nonce::new(50), "a");
    let resumed = store.resume(&id).await.unwrap();
    scripted.until(|store| store.entries() == 1).await;
    let reclaimed = resumed.locker("a").reclaim(guard.token()).await.unwrap();
    reclaimed.release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn resumed_holding_older_than_the_watermark_is_still_served() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let session = scripted.session(TTL).await;
    let token = session.rw_lock("a").write().await.unwrap().token();
    let guard = session.rw_lock("b").write().await.unwrap();
    let id = session.detach().await.unwrap();
    let resumed = store.resume(&id).await.unwrap();
    let _other = resumed.lock("c").await.unwrap();
    let lock = resumed.rw_lock("b");
    let reclaimed = lock.reclaim_write(guard.token()).await.unwrap();
    assert!(reclaimed.token() > token);
    reclaimed.downgrade().await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn detaching_where_the_store_cannot_closes_the_session() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("detach", Fault::Refuse(ErrorKind::Unsupported));
    let error = session.detach().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unsupported, Some("detach"))
    );
    assert_eq!(store.sessions(), 0);
}

#[tokio::test(start_paused = true)]
async fn session_ends_with_its_last_reference_and_not_before() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    let locker = session.locker("b");
    drop(session);
    sleep(TTL * 2).await;
    assert!(guard.is_valid());
    drop(guard);
    store.until_empty().await;
    assert_eq!(store.sessions(), 1);
    drop(locker);
    store.until(|store| store.sessions() == 0).await;
}

#[tokio::test(start_paused = true)]
async fn with_session_closes_on_every_path() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let mut kept = None;
    let outcome: Result<(), _> = store
        .with_session(SessionOptions::new().ttl(TTL), async |session| {
            kept = Some(session.clone());
            let _guard = session.lock("a").await?;
            Err(tenure_core::Error::new(ErrorKind::Conflict, "the work failed"))
        })
        .await;
    assert_eq!(outcome.unwrap_err().message(), "the work failed");
    assert_eq!(scripted.sessions(), 0);
    assert_eq!(kept.unwrap().loss(), Some(LossReason::Closed));
}

#[tokio::test(start_paused = true)]
async fn detached_session_keeps_its_locks_for_the_process_that_resumes() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let session = scripted.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    let released = session.lock("b").await.unwrap();
    let token = guard.token();
    drop(released);
    let waiter = scripted.session(TTL).await;
    let waiting = tokio::spawn(async move { waiter.lock("a").await.unwrap().token() });
    scripted.until(|store| store.entries() == 2).await;

    let id = session.detach().await.unwrap();
    assert_eq!(guard.loss(), Some(LossReason::Detached));
    drop((guard, session));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(scripted.entries(), 2);

    let resumed = store.resume(&id).await.unwrap();
    assert_eq!(store.resume(&id).await.unwrap_err().kind(), ErrorKind::Conflict);
    let locker = resumed.locker("a");
    assert_eq!(
        resumed.locker("b").reclaim(token).await.unwrap_err().kind(),
        ErrorKind::Lost
    );
    let reclaimed = locker.reclaim(token).await.unwrap();
    assert_eq!(locker.reclaim(token).await.unwrap_err().kind(), ErrorKind::Lost);
    sleep(TTL * 2).await;
    assert!(reclaimed.is_valid());
    reclaimed.release().await.unwrap();
    assert!(waiting.await.unwrap() > token);
}

#[tokio::test(start_paused = true)]
async fn first_renewal_that_fails_fails_the_resumption() {
    let scripted = Scripted::paused();
    let store = Store::new(scripted.clone());
    let session = scripted.session(TTL).await;
    let id = session.detach().await.unwrap();
    scripted.once("renew", Fault::Refuse(ErrorKind::Unauthorized));
    let error = store.resume(&id).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unauthorized, Some("resume"))
    );
    scripted.until(|store| store.sessions() == 0).await;
}
