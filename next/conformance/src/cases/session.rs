//! Sessions: what rules S1 to S5 ask of them beyond the table.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;
use tenure_core::guarantees::Line;
use tenure_core::{Error, ErrorKind, LockGuard, LossReason, Session, SessionId, SessionOptions, Store};
use tokio::time::Instant;

use super::{granted, request_is_delayed, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, LOOK, PROMPT, done, ensure, expiry_bound, held, offered, open, open_linked, open_on, promptly, refused,
    settle, slack, spawn, within,
};

cases! { CASES:
    s1_ttl_is_at_least_what_was_asked "S1" "a lease has at least the TTL asked for, and a TTL of zero is refused"
        (None) [] always;
    s1_session_with_work_is_closed_on_every_path "S1"
        "work that ends, fails, panics or is dropped ends its session, with its holdings"
        (None) [] always;
    s2_validity_is_right_after_a_pause "S2"
        "a holder that could not renew is invalid in its first instruction after the deadline"
        (Some(Line::LossSignal)) [Silence] loss_by_deadline;
    s2_slow_answers_do_not_prolong_validity "S2"
        "validity counts from the request of a renewal, however late its answer"
        (Some(Line::LossSignal)) [Hold, Silence] loss_by_deadline;
    s2_unanswered_renewals_do_not_prolong_validity "S2" "renewals that arrive without an answer do not prolong validity"
        (Some(Line::LossSignal)) [Mute] loss_by_deadline;
    s4_closed_session_says_closed "S4"
        "a closed session reports Closed to its guards, and refuses requests with it" (None) [] always;
    s4_detached_session_has_no_effect "S4"
        "a session that was detached is invalid at once, and changes nothing afterwards"
        (Some(Line::Resume)) [] resumable;
    s4_late_request_of_a_detached_session_has_no_effect "S4"
        "a request that arrives after its session was detached has no effect"
        (Some(Line::Resume)) [DelayRequest] resumable;
    s4_detached_session_expires "S4"
        "a detached session that no client resumes ends with its TTL" (Some(Line::Resume)) [] resumable;
    s4_only_detached_sessions_are_resumed "S4"
        "live, closed and unknown sessions are not resumed" (Some(Line::Resume)) [] resumable;
    s4_session_of_another_namespace_is_not_resumed "S4" "a session is not resumed from another namespace"
        (Some(Line::Resume)) [Elsewhere] resumable;
    s4_wait_that_a_detach_meets_leaves_no_place "S4"
        "a wait that a detach meets ends with Detached, and leaves no place"
        (Some(Line::Resume)) [] resumable;
    s4_nothing_is_valid_before_the_first_renewal "S4" "a resumed session that the store did not renew is not returned"
        (Some(Line::Resume)) [Mute] resumable;
}

/// Returns the margin that rule S2 subtracts from the deadline.
fn margin(ttl: Duration) -> Duration {
    (ttl / 20).max(Duration::from_millis(50))
}

async fn s1_ttl_is_at_least_what_was_asked(harness: &dyn Harness) -> Verdict {
    let store = done("a connection", harness.connect()).await?;
    let mut granted = Vec::new();
    for more in [0, 1, 700, 120_000] {
        let asked = harness.ttl() + Duration::from_millis(more);
        let session = open_on(&store, asked).await?;
        let ttl = session.ttl();
        ensure!(ttl >= asked, "a TTL of {asked:?} was asked for, and {ttl:?} granted");
        let remaining = session.remaining();
        ensure!(
            session.is_valid() && remaining <= ttl - margin(ttl),
            "a new session of TTL {ttl:?} is valid for {remaining:?}: the margin is missing"
        );
        granted.push(ttl);
        done("close", session.close()).await?;
    }
    let zero = store.open(SessionOptions::new().ttl(Duration::ZERO));
    refused("a TTL of zero", promptly("open", zero).await?, &[ErrorKind::Config])?;
    held!("granted: {granted:?}")
}

/// Waits until `name` is free, and takes and releases it.
async fn becomes_free(session: &Session, name: &str, what: &str) -> Step<()> {
    let guard = tokio::time::timeout(PROMPT, session.lock(name)).await;
    let guard = guard.map_err(|_| Outcome::violated(format!("{what}, and the lock is held {PROMPT:?} later")))??;
    done("release", guard.release()).await
}

async fn s1_session_with_work_is_closed_on_every_path(harness: &dyn Harness) -> Verdict {
    let (store, probe) = (
        done("a connection", harness.connect()).await?,
        open(harness, LONG).await?,
    );
    let options = || SessionOptions::new().ttl(LONG);
    let returned = store.with_session(options(), async |session| {
        std::mem::forget(session.lock("work").await?);
        Ok::<_, Error>(7)
    });
    ensure!(
        done("work in a session", returned).await? == 7,
        "the value of the work was lost"
    );
    becomes_free(&probe, "work", "the work returned").await?;
    let failed = store.with_session(options(), async |session| {
        std::mem::forget(session.lock("work").await?);
        Err::<(), _>(Error::new(ErrorKind::Foreign, "out of paper"))
    });
    refused(
        "work that fails",
        promptly("work in a session", failed).await?,
        &[ErrorKind::Foreign],
    )?;
    becomes_free(&probe, "work", "the work failed").await?;
    let panicking = store.with_session(options(), async |session| {
        std::mem::forget(session.lock("work").await?);
        std::panic::resume_unwind(Box::new("on purpose"));
        #[allow(unreachable_code)]
        Ok::<(), Error>(())
    });
    let panicked = promptly("work in a session", AssertUnwindSafe(panicking).catch_unwind()).await?;
    ensure!(panicked.is_err(), "the panic of the work was lost");
    becomes_free(&probe, "work", "the work panicked").await?;
    let endless = store.with_session(options(), async |session| {
        std::mem::forget(session.lock("work").await?);
        std::future::pending::<Result<(), Error>>().await
    });
    let dropped = tokio::time::timeout(LOOK * 50, endless).await;
    ensure!(dropped.is_err(), "endless work returned");
    becomes_free(&probe, "work", "the work was dropped").await?;
    held!("the lock was free after the work returned, failed, panicked and was dropped")
}

/// Checks a guard whose renewals have no effect from now on: `remaining` never exceeds the deadline, and once it has
/// passed the guard is invalid without another instruction. Returns why it was lost.
async fn ends_by_its_deadline(session: &Session, guard: &LockGuard, last_sent: Instant) -> Step<LossReason> {
    let ttl = session.ttl();
    let deadline = last_sent + ttl - margin(ttl);
    while Instant::now() < deadline {
        let (now, remaining) = (Instant::now(), guard.remaining());
        ensure!(
            now + remaining <= deadline,
            "validity exceeds its deadline by {:?}; the TTL is {ttl:?}",
            now + remaining - deadline
        );
        tokio::time::sleep((deadline - now).min(ttl / 8)).await;
    }
    ensure!(
        !guard.is_valid() && !session.is_valid() && guard.remaining().is_zero(),
        "{:?} after the last renewal was sent, a guard with a TTL of {ttl:?} counts as valid",
        last_sent.elapsed()
    );
    let reason = promptly("the loss signal", guard.lost()).await?;
    ensure!(
        guard.loss() == Some(reason),
        "the signal says {reason}, the guard {:?}",
        guard.loss()
    );
    Ok(reason)
}

async fn s2_validity_is_right_after_a_pause(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, harness.ttl()).await?;
    let guard = done("lock", session.lock("paused")).await?;
    link.silence();
    // Every message before this instant may have been answered.
    let reason = ends_by_its_deadline(&session, &guard, Instant::now()).await?;
    ensure!(
        reason == LossReason::Unreachable,
        "the store did not answer, and the loss says `{reason}`"
    );
    let work = guard.while_held(std::future::pending::<()>());
    refused(
        "work after the loss",
        promptly("the end of the work", work).await?,
        &[ErrorKind::Lost],
    )?;
    link.heal();
    tokio::time::sleep(session.ttl()).await;
    ensure!(
        !guard.is_valid() && !session.is_valid(),
        "a lost guard is valid again after the silence"
    );
    let late = promptly("release", guard.release()).await?;
    refused("a release after the loss", late, &[ErrorKind::Lost])?;
    held!("invalid at the deadline, lost as `{reason}`, and never valid again")
}

async fn s2_slow_answers_do_not_prolong_validity(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, harness.ttl() * 2).await?;
    let guard = done("lock", session.lock("slow")).await?;
    let ttl = session.ttl();
    // One renewal is answered late; it was sent after the answers were held, and no later than before they came.
    link.hold();
    let held_at = Instant::now();
    tokio::time::sleep(ttl * 2 / 5).await;
    let before = guard.remaining();
    link.heal();
    let healed = Instant::now();
    while guard.remaining() <= before && healed.elapsed() < ttl / 20 {
        tokio::time::sleep(LOOK / 5).await;
    }
    let (at, prolonged) = (Instant::now(), guard.remaining());
    link.silence();
    let sent = at + prolonged + margin(ttl) - ttl;
    ensure!(
        sent <= healed || healed.elapsed() >= ttl / 20 || prolonged <= before,
        "a renewal whose answer was held for up to {:?} counts from {:?} after the answer",
        healed - held_at,
        sent - healed
    );
    ends_by_its_deadline(&session, &guard, Instant::now()).await?;
    held!(
        "an answer that was held for up to {:?} left {prolonged:?} of {ttl:?}",
        healed - held_at
    )
}

async fn s2_unanswered_renewals_do_not_prolong_validity(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let (session, link) = open_linked(harness, harness.ttl()).await?;
    let guard = done("lock", session.lock("unanswered")).await?;
    link.mute();
    let muted = Instant::now();
    let mut next = spawn({
        let lock = other.locker("unanswered");
        async move { lock.lock().await }
    });
    ends_by_its_deadline(&session, &guard, muted).await?;
    let limit = session.ttl() * 2 + expiry_bound(harness).await? + slack();
    let next = next.end(limit, "the grant to the next session").await??;
    ensure!(
        next.token() > guard.token(),
        "token {} followed {}",
        next.token(),
        guard.token()
    );
    link.heal();
    held!("lost by the deadline although the store received the renewals; the next session was granted the lock later")
}

async fn s4_closed_session_says_closed(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let guard = done("lock", session.lock("closed")).await?;
    done("close", session.close()).await?;
    let reason = promptly("the loss signal", session.lost()).await?;
    let reasons = [session.loss(), guard.loss(), Some(reason)];
    ensure!(
        reasons == [Some(LossReason::Closed); 3],
        "after close, session, guard and signal say {reasons:?}"
    );
    ensure!(!session.is_valid() && !guard.is_valid(), "a closed session is valid");
    let error = refused(
        "lock",
        promptly("lock", session.lock("other")).await?,
        &[ErrorKind::Lost],
    )?;
    ensure!(
        error.loss() == Some(LossReason::Closed) && error.needs_new_session(),
        "a request of a closed session failed with {error:?}"
    );
    refused(
        "release",
        promptly("release", guard.release()).await?,
        &[ErrorKind::Lost],
    )?;
    let again = promptly("a second close", session.close()).await?;
    ensure!(again.is_ok(), "closing a closed session failed: {again:?}");
    held!("guards, signal and requests say Closed: {error}")
}

/// Detaches a session that holds the lock `name`. Returns its store, its id, the stale guard, and the stale session.
async fn detached(harness: &dyn Harness, ttl: Duration, name: &str) -> Step<(Store, SessionId, LockGuard, Session)> {
    let store = done("a connection", harness.connect()).await?;
    let session = open_on(&store, ttl).await?;
    let guard = done("lock", session.lock(name)).await?;
    let id = done("detach", session.detach()).await?;
    ensure!(&id == session.id(), "session {} was detached as {id}", session.id());
    Ok((store, id, guard, session))
}

async fn s4_detached_session_has_no_effect(harness: &dyn Harness) -> Verdict {
    let (store, id, stale, session) = detached(harness, LONG, "kept").await?;
    let reasons = [session.loss(), stale.loss()];
    ensure!(
        reasons == [Some(LossReason::Detached); 2] && !stale.is_valid(),
        "after a detach the losses are {reasons:?}"
    );
    let lost = &[ErrorKind::Lost];
    refused("lock", promptly("lock", session.lock("another")).await?, lost)?;
    refused("put", promptly("put", session.stm().put("key", "value")).await?, lost)?;
    let enqueued = promptly("enqueue", session.queue("jobs").enqueue("job")).await?;
    offered(refused("enqueue", enqueued, lost))?;
    let resumed = done("resume", store.resume(&id)).await?;
    let guard = done("reclaim", resumed.locker("kept").reclaim(stale.token())).await?;
    // The end of the former session and of its guard spares the resumed one.
    drop((stale, session));
    tokio::time::sleep(harness.ttl()).await;
    ensure!(
        guard.is_valid() && resumed.is_valid(),
        "the end of the detached session ended the resumed one"
    );
    ensure!(
        done("get", resumed.stm().get("key")).await?.is_none(),
        "a write of a detached session took effect"
    );
    let items = offered(done("len", resumed.queue("jobs").len()).await)?;
    ensure!(
        items.unwrap_or_default() == 0,
        "an item of a detached session was accepted"
    );
    held!("refused with Lost, and the end of the former session spared the resumed one")
}

/// Lets an enqueue arrive after the detachment of its session; returns how many items were accepted before.
async fn late_enqueue(harness: &dyn Harness) -> Step<u64> {
    let (session, link) = open_linked(harness, LONG).await?;
    let (jobs, seen) = (session.queue("jobs"), open(harness, LONG).await?.queue("jobs"));
    done("len", seen.len()).await?;
    link.delay_request();
    let mut enqueueing = spawn(async move { jobs.enqueue("late").await });
    request_is_delayed(&*link).await?;
    let id = done("detach", session.detach()).await?;
    let ended = enqueueing
        .end(PROMPT, "the end of an enqueue that a detach met")
        .await?;
    refused("an enqueue that a detach met", ended, &[ErrorKind::Lost])?;
    // It may have been repeated before the store had detached the session.
    let accepted = done("len", seen.len()).await?;
    link.deliver();
    settle().await;
    let len = done("len", seen.len()).await?;
    ensure!(
        len == accepted && len <= 1,
        "{accepted} items became {len} after the session was detached"
    );
    let resumed = done("resume", done("a connection", harness.connect()).await?.resume(&id)).await?;
    done("enqueue", resumed.queue("jobs").enqueue("after")).await?;
    let len = done("len", seen.len()).await?;
    ensure!(
        len == accepted + 1,
        "the item of the resumed session was not accepted: there are {len}"
    );
    Ok(accepted)
}

async fn s4_late_request_of_a_detached_session_has_no_effect(harness: &dyn Harness) -> Verdict {
    let accepted = offered(late_enqueue(harness).await)?.unwrap_or_default();
    // The detachment itself arrives a second time, after another client has resumed the session.
    let linked = done("a connection", harness.linked()).await?;
    let session = open_on(&linked.store, LONG).await?;
    linked.link.delay_request();
    let id = done("detach", session.detach()).await?;
    request_is_delayed(&*linked.link).await?;
    let resumed = done("resume", done("a connection", harness.connect()).await?.resume(&id)).await?;
    let (guard, other) = (done("lock", resumed.lock("after")).await?, open(harness, LONG).await?);
    linked.link.deliver();
    settle().await;
    let taken = done("try_lock", other.try_lock("after")).await?;
    ensure!(
        taken.is_none() && guard.is_valid(),
        "a late detachment by the former process freed a lock of the resumed session"
    );
    held!("ended with Lost, and nothing changed when the requests arrived: {accepted} items")
}

async fn s4_detached_session_expires(harness: &dyn Harness) -> Verdict {
    let (store, id, guard, session) = detached(harness, harness.ttl(), "kept").await?;
    let (detached_at, other) = (Instant::now(), open(harness, LONG).await?);
    let limit = session.ttl() + expiry_bound(harness).await? + slack();
    let next = within(
        limit,
        "the grant of a lock whose session was detached",
        other.lock("kept"),
    )
    .await??;
    ensure!(
        next.token() > guard.token(),
        "token {} followed {}",
        next.token(),
        guard.token()
    );
    let late = promptly("resume", store.resume(&id)).await?;
    refused("resuming an expired session", late, &[ErrorKind::Lost])?;
    held!(
        "free {:?} after the detach, with a TTL of {:?}",
        detached_at.elapsed(),
        session.ttl()
    )
}

async fn s4_only_detached_sessions_are_resumed(harness: &dyn Harness) -> Verdict {
    let store = done("a connection", harness.connect()).await?;
    let refusals = &[ErrorKind::Conflict, ErrorKind::Lost, ErrorKind::Config];
    let live = open_on(&store, LONG).await?;
    let guard = done("lock", live.lock("live")).await?;
    refused(
        "resuming a live session",
        promptly("resume", store.resume(live.id())).await?,
        refusals,
    )?;
    ensure!(
        live.is_valid() && guard.is_valid(),
        "an attempt to resume a live session ended it"
    );
    done("close", live.close()).await?;
    refused(
        "resuming a closed session",
        promptly("resume", store.resume(live.id())).await?,
        refusals,
    )?;
    for unknown in ["1", "18446744073709551615", "no session at all"] {
        let unknown = SessionId::new(unknown);
        refused(
            "resuming an unknown session",
            promptly("resume", store.resume(&unknown)).await?,
            refusals,
        )?;
    }
    held!("a live, a closed and three unknown sessions were refused")
}

async fn s4_session_of_another_namespace_is_not_resumed(harness: &dyn Harness) -> Verdict {
    let (store, id, guard, _session) = detached(harness, LONG, "kept").await?;
    let elsewhere = done("a connection", harness.elsewhere()).await?;
    let refusals = &[ErrorKind::Conflict, ErrorKind::Lost, ErrorKind::Config];
    refused(
        "resuming it elsewhere",
        promptly("resume", elsewhere.resume(&id)).await?,
        refusals,
    )?;
    let resumed = done("resume", store.resume(&id)).await?;
    let _guard = done("reclaim", resumed.locker("kept").reclaim(guard.token())).await?;
    held!("refused in another namespace, and resumed in its own afterwards")
}

async fn s4_wait_that_a_detach_meets_leaves_no_place(harness: &dyn Harness) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let guard = done("lock", holder.lock("busy")).await?;
    let store = done("a connection", harness.connect()).await?;
    let leaving = open_on(&store, LONG).await?;
    let lock = leaving.locker("busy");
    let mut waiting = waiter(harness, async move { lock.lock().await }).await?;
    still_waiting("while the lock was held", &[&waiting]).await?;
    let id = done("detach", leaving.detach()).await?;
    let ended = waiting.end(PROMPT, "the end of a wait that a detach met").await?;
    let error = refused("a wait that a detach met", ended, &[ErrorKind::Lost])?;
    ensure!(
        error.loss() == Some(LossReason::Detached),
        "the wait ended with {error:?}"
    );
    let resumed = done("resume", store.resume(&id)).await?;
    let lock = other.locker("busy");
    let mut next = waiter(harness, async move { lock.lock().await }).await?;
    done("release", guard.release()).await?;
    let next = granted(&mut next, "the grant behind a wait that was detached").await?;
    done("release", next.release()).await?;
    ensure!(resumed.is_valid(), "the resumed session is lost");
    held!("ended with Detached, and the next waiter was granted the lock although the session was resumed")
}

async fn s4_nothing_is_valid_before_the_first_renewal(harness: &dyn Harness) -> Verdict {
    let (_store, id, guard, session) = detached(harness, LONG, "kept").await?;
    let linked = done("a connection", harness.linked()).await?;
    linked.link.mute();
    let store = linked.store.clone();
    let resumed = tokio::time::timeout(harness.ttl(), store.resume(&id)).await;
    linked.link.heal();
    ensure!(
        !matches!(resumed, Ok(Ok(_))),
        "a session was returned although the store did not answer its renewal"
    );
    ensure!(!guard.is_valid() && !session.is_valid(), "a detached session is valid");
    held!("a session whose renewal had no answer was not returned")
}
