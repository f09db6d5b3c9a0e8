//! Sessions: rules S1 to S5.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tenure_core::{ErrorKind, FencingToken, LossReason, SessionId};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked};

/// S1: the lease has at least the TTL asked for; zero is refused.
pub async fn s1_the_ttl_is_at_least_what_was_asked(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let mut granted = Vec::new();
    for asked in [
        harness.ttl(),
        harness.ttl() + Duration::from_millis(1),
        harness.ttl() + Duration::from_millis(700),
        LONG,
    ] {
        let session = promptly("open", open_on(&store, asked)).await??;
        ensure!(
            session.ttl() >= asked,
            "{asked:?} was asked for, {:?} granted",
            session.ttl()
        );
        ensure!(
            session.is_valid() && session.remaining() <= session.ttl(),
            "a new session of TTL {:?} is valid for {:?}",
            session.ttl(),
            session.remaining()
        );
        granted.push(format!("{asked:?} -> {:?}", session.ttl()));
        promptly("close", session.close()).await??;
    }
    let zero = promptly("open", open_on(&store, Duration::ZERO)).await?;
    refused("a TTL of zero", zero, &[ErrorKind::Config])?;
    held!("{}", granted.join(", "))
}

/// What happens when the holder's connection fails under it.
struct Drama {
    /// The TTL granted.
    ttl: Duration,
    /// When the fault began.
    fault: Instant,
    /// When the loss was signalled, and why.
    signalled: Instant,
    reason: LossReason,
    /// When the next in line had the lock.
    granted: Instant,
    /// Whether the first holder counted itself valid at that moment.
    overlap: bool,
    tokens: (FencingToken, FencingToken),
}

/// A holder whose link fails in the way that `fail` says, and another who waits for the lock.
async fn drama(
    harness: &dyn Harness,
    fail: fn(&dyn crate::Link),
) -> std::result::Result<Drama, Outcome> {
    let Linked { store, link } = harness.linked().await?;
    let holder = promptly("open", open_on(&store, harness.ttl())).await??;
    let other = open(harness, LONG).await?;
    let ttl = holder.ttl();
    let guard = Arc::new(promptly("lock", holder.locker("stage")?.lock()).await??);
    let next = other.locker("stage")?;

    let mut arrivals = Arrivals::watch(harness).await?;
    let watched = Arc::clone(&guard);
    let mut waiting = spawn(async move {
        let second = next.lock().await;
        let overlap = watched.is_valid();
        second.map(|second| (Instant::now(), overlap, second))
    });
    arrivals.one_more().await?;
    let lost = guard.lost();
    let mut signal = spawn(async move { (lost.await, Instant::now()) });

    let fault = Instant::now();
    fail(&*link);
    let latest = ttl * 2 + SLACK;
    loop {
        if guard.remaining().is_zero() {
            break;
        }
        ensure!(
            fault.elapsed() < latest,
            "{:?} after its link failed, the holder of a lease of {ttl:?} still counts itself valid",
            fault.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (reason, signalled) = signal.end(latest, "the loss signal").await?;
    let limit = ttl * 2 + expiry_bound(harness).await? + SLACK * 2;
    let (granted, overlap, second) = waiting
        .end(
            limit,
            "the grant to the next after the holder's link failed",
        )
        .await??;
    let tokens = (guard.token(), second.token());
    link.heal();
    Ok(Drama {
        ttl,
        fault,
        signalled,
        reason,
        granted,
        overlap,
        tokens,
    })
}

impl Drama {
    fn judge_signal(&self) -> Verdict {
        let limit = self.fault + self.ttl - margin(self.ttl) + SLACK;
        in_time!(
            self.signalled <= limit,
            "the loss was signalled {:?} after the link failed; TTL {:?}",
            self.signalled - self.fault,
            self.ttl
        );
        ensure!(
            !self.overlap,
            "the next was granted the lock {:?} after the link failed, while the first holder (TTL {:?}) still counted itself valid",
            self.granted - self.fault,
            self.ttl
        );
        ensure!(
            self.tokens.1 > self.tokens.0,
            "the successor's token {} is not above {}",
            self.tokens.1,
            self.tokens.0
        );
        ensure!(
            self.reason == LossReason::Unreachable,
            "the store did not answer, and the loss says `{}`",
            self.reason
        );
        held!(
            "signalled {:?} after the link failed, granted to the next {:?} after it, with a TTL of {:?}",
            self.signalled - self.fault,
            self.granted - self.fault,
            self.ttl
        )
    }
}

/// S2: renewals that arrive and are not answered do not count.
pub async fn s2_loss_is_signalled_when_answers_are_lost(harness: &dyn Harness) -> Verdict {
    drama(harness, |link| link.mute()).await?.judge_signal()
}

/// S2: a process that was stopped beyond its deadline knows in its first instruction.
pub async fn s2_validity_is_right_after_a_pause(harness: &dyn Harness) -> Verdict {
    let process = Process::start()?;
    let store = harness.connect().await?;
    let (session, guard) = process.holds(store, harness.ttl(), "paused").await?;
    let ttl = session.ttl();
    let paused = process.pause().await;
    let at = Instant::now();
    let left = guard.remaining();
    ensure!(
        left <= ttl - margin(ttl),
        "{left:?} are left of a TTL of {ttl:?}: the margin is missing"
    );
    tokio::time::sleep(ttl - margin(ttl)).await;
    // Nothing of the process has run since: only the clock can tell.
    ensure!(
        !guard.is_valid() && guard.remaining().is_zero(),
        "{:?} after the process was stopped, its guard counts as valid; TTL {ttl:?}",
        at.elapsed()
    );
    let reason = guard.loss();
    drop(paused);
    ensure!(
        reason == Some(LossReason::Expired),
        "the process was stopped, and the loss says {reason:?}"
    );
    promptly("the loss signal after a pause", guard.lost()).await?;
    held!(
        "invalid {:?} after the process was stopped; TTL {ttl:?}",
        at.elapsed()
    )
}

/// S2: whoever waits for the loss hears of it by the deadline although the runtime on which the session was opened
/// stands still: blocked by a task, or not driven by anybody.
pub async fn s2_loss_is_signalled_while_the_sessions_runtime_stands_still(
    harness: &dyn Harness,
) -> Verdict {
    let process = Process::start()?;
    let store = harness.connect().await?;
    let (session, guard) = process.holds(store, harness.ttl(), "home").await?;
    let ttl = session.ttl();
    let paused = process.pause().await;
    let at = Instant::now();
    let limit = ttl - margin(ttl) + SLACK;
    let signals = async {
        let work = guard.while_held(std::future::pending::<()>());
        tokio::join!(session.lost(), guard.lost(), work)
    };
    let signalled = tokio::time::timeout(limit, signals).await;
    let after = at.elapsed();
    let answer = tokio::time::timeout(PROMPT, session.close()).await;
    drop(paused);
    let Ok((session, holding, work)) = signalled else {
        return Err(Outcome::violated(format!(
            "the session's runtime stands still, and {limit:?} later not every signal of the loss has come; TTL {ttl:?}"
        )));
    };
    let expired = LossReason::Expired;
    ensure!(
        (session, holding) == (expired, expired),
        "nothing ran that could renew, and the loss says {session} and {holding}"
    );
    refused("work beyond the deadline", work, &[ErrorKind::Lost])?;
    ensure!(
        answer.is_ok(),
        "closing a lost session whose runtime stands still did not answer within {PROMPT:?}"
    );
    held!(
        "signalled to each of three who waited elsewhere, {after:?} after the runtime stood still; TTL {ttl:?}"
    )
}

/// S2: what counts is when a renewal was asked for, not when its answer came: the store counts from
/// a moment between the two.
pub async fn s2_slow_answers_do_not_prolong_validity(harness: &dyn Harness) -> Verdict {
    for _ in 0..5 {
        if let Some(prolonged) = slow_answer(harness).await? {
            return held!(
                "an answer that came late by a quarter of the TTL prolonged validity by {prolonged:?}, and nobody else held the lock before that was over"
            );
        }
    }
    Err(Outcome::not_run(
        "no renewal was under way when its answers were held, five times",
    ))
}

/// By how much an answer that came late prolonged the validity of a guard, unless there was none.
async fn slow_answer(harness: &dyn Harness) -> std::result::Result<Option<Duration>, Outcome> {
    let Linked { store, link } = harness.linked().await?;
    let other = open(harness, LONG).await?;
    let holder = promptly("open", open_on(&store, harness.ttl())).await??;
    let opened = Instant::now();
    let ttl = holder.ttl();
    let guard = Arc::new(promptly("lock", holder.locker("slow")?.lock()).await??);
    let next = other.locker("slow")?;
    let watched = Arc::clone(&guard);
    let mut waiting = spawn(async move {
        let second = next.lock().await;
        let overlap = watched.remaining();
        second.map(|second| (overlap, second))
    });
    // The first renewal, after a third, is answered a quarter of the TTL later, and no other is.
    link.hold();
    let late = ttl / 4;
    tokio::time::sleep((ttl / 3 + late).saturating_sub(opened.elapsed())).await;
    let before = guard.remaining();
    link.heal();
    let healed = Instant::now();
    while guard.remaining() <= before && healed.elapsed() < late {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let prolonged = guard.remaining().saturating_sub(before);
    link.silence();
    let limit = ttl * 2 + expiry_bound(harness).await? + SLACK * 2;
    let (overlap, second) = waiting
        .end(
            limit,
            "the grant to the next after the holder's link failed",
        )
        .await??;
    ensure!(
        overlap.is_zero(),
        "a renewal was answered {late:?} late; the next was granted the lock (token {}) while the first holder counted itself valid for another {overlap:?}",
        second.token()
    );
    link.heal();
    give_back(second).await?;
    Ok((!prolonged.is_zero()).then_some(prolonged))
}

/// S4: a closed session says so, to its guards and to those who ask it for more.
pub async fn s4_a_closed_session_says_closed(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let handle = session.locker("closed")?;
    let guard = promptly("lock", handle.lock()).await??;
    promptly("close", session.clone().close()).await??;
    ensure!(
        session.loss() == Some(LossReason::Closed) && guard.loss() == Some(LossReason::Closed),
        "after a close the session says {:?}, the guard {:?}",
        session.loss(),
        guard.loss()
    );
    ensure!(
        promptly("the loss signal", guard.lost()).await? == LossReason::Closed,
        "the signal does not say `closed`"
    );
    let error = refused(
        "a lock of a closed session",
        promptly("an answer", handle.lock()).await?,
        &[ErrorKind::Lost],
    )?;
    ensure!(
        error.loss() == Some(LossReason::Closed),
        "the error does not say `closed`: {error}",
        error = error.chain()
    );
    refused("a late release", guard.release().await, &[ErrorKind::Lost])?;
    held!("session, guard, signal and errors say `closed`")
}

/// S4: a detached session can be taken over once, with what it holds.
pub async fn s4_a_detached_session_is_resumed_once(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("kept")?.lock()).await??;
    let token = guard.token();
    let id = promptly("detach", session.detach()).await??;
    ensure!(
        !guard.is_valid() && guard.loss() == Some(LossReason::Detached),
        "after detaching, the guard's loss is {:?}",
        guard.loss()
    );
    drop(guard);
    let other = open(harness, LONG).await?;
    stays_taken(&other.locker("kept")?, "a detached session").await?;

    let (one, two) = (harness.connect().await?, harness.connect().await?);
    let both = async { tokio::join!(one.resume(&id), two.resume(&id)) };
    let resumed = match promptly("an answer to two resumes", both).await? {
        (Ok(_), Ok(_)) => return Err(Outcome::violated("two processes resumed one session")),
        (Ok(session), refusal) | (refusal, Ok(session)) => {
            refused("the second resume", refusal, &[ErrorKind::Conflict])?;
            session
        }
        (Err(error), Err(_)) => return Err(error.into()),
    };
    ensure!(resumed.is_valid(), "a resumed session is not valid");
    let third = promptly("an answer", one.resume(&id)).await?;
    refused("a third resume", third, &[ErrorKind::Conflict])?;

    let handle = resumed.locker("kept")?;
    let nobody = FencingToken::new(token.get() + 1);
    let wrong = promptly("an answer", handle.reclaim(nobody)).await?;
    refused("a reclaim with another token", wrong, &[ErrorKind::Lost])?;
    let guard = promptly("reclaim", handle.reclaim(token)).await??;
    ensure!(
        guard.token() == token && guard.is_valid(),
        "reclaimed with token {} instead of {token}",
        guard.token()
    );
    let again = promptly("an answer", handle.reclaim(token)).await?;
    refused("a second reclaim", again, &[ErrorKind::Lost])?;
    stays_taken(&other.locker("kept")?, "the resumed session").await?;
    give_back(guard).await?;
    let next = becomes_free(PROMPT, "after the release", &other.locker("kept")?).await?;
    ensure!(
        next.token() > token,
        "the next token {} is not above {token}",
        next.token()
    );
    held!("resumed once of three attempts, reclaimed under token {token}")
}

/// S4: who waited in a session that is detached waits no more, here or where it is resumed.
pub async fn s4_a_wait_in_flight_at_a_detach_leaves_no_place(harness: &dyn Harness) -> Verdict {
    // From "stands in line" to "has hardly begun": its request may arrive after the detach.
    let delays = [None, Some(0), Some(200), Some(1000), Some(3000)];
    let delays = delays.map(|delay| delay.map(Duration::from_micros));
    for delay in delays {
        for dies in [false, true] {
            let attempt = a_wait_meets_a_detach(harness, delay, dies).await;
            attempt.map_err(|outcome| {
                outcome.when(format_args!(
                    "a wait of {delay:?} (None: in line) met a detach, after which its process {}: ",
                    if dies { "died" } else { "lived on" }
                ))
            })?;
        }
    }
    held!("nothing was left of waits that met a detach after {delays:?} (None: in line)")
}

async fn a_wait_meets_a_detach(
    harness: &dyn Harness,
    delay: Option<Duration>,
    dies: bool,
) -> std::result::Result<(), Outcome> {
    let (holder, third) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let guard = promptly("lock", holder.locker("line")?.lock()).await??;
    let held = count_keys(harness).await?;
    let (process, store) = (Process::start()?, harness.connect().await?);
    let session = process
        .run(async move { open_on(&store, LONG).await })
        .await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let handle = session.locker("line")?;
    let mut waiting = process
        .run(async move {
            let waiting = waiter(handle);
            if let Some(delay) = delay {
                tokio::time::sleep(delay).await;
            }
            waiting
        })
        .await?;
    if delay.is_none() {
        arrivals.one_more().await?;
    }
    let id = process.run(session.detach()).await??;
    if dies {
        // It can withdraw nothing any more: the detach has to have done it.
        process.kill().await;
    } else {
        let answer = waiting
            .end(PROMPT, "the end of a wait whose session was detached")
            .await?;
        let what = "a wait whose session was detached";
        let error = refused(what, answer, &[ErrorKind::Lost])?;
        ensure!(
            error.loss() == Some(LossReason::Detached),
            "the session was detached, and the error of its waiter says {:?}: {error}",
            error.loss(),
            error = error.chain()
        );
    }
    let resumed = promptly("resume", harness.connect().await?.resume(&id)).await??;
    keys_return_to(held, PROMPT, harness).await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut next = waiter(third.locker("line")?);
    arrivals.one_more().await?;
    give_back(guard).await?;
    let next = next
        .end(PROMPT, "the grant to the one who came after it")
        .await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut own = waiter(resumed.locker("line")?);
    arrivals.one_more().await?;
    ensure!(
        !own.is_finished(),
        "a resumed session that held nothing did not wait for a held lock"
    );
    give_back(next).await?;
    let own = own
        .end(PROMPT, "the grant to the resumed session")
        .await??;
    give_back(own).await?;
    promptly("close", resumed.close()).await??;
    Ok(())
}

/// S4: a detached session that nobody resumes ends with its TTL.
pub async fn s4_a_detached_session_expires(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let session = open(harness, harness.ttl()).await?;
    let ttl = session.ttl();
    let guard = promptly("lock", session.locker("left")?.lock()).await??;
    let before = Instant::now();
    let earliest = before + guard.remaining();
    let id = promptly("detach", session.detach()).await??;
    let detached = Instant::now();
    let other = open(harness, LONG).await?;
    let limit = ttl + bound + SLACK;
    let next = becomes_free(limit, "after detaching", &other.locker("left")?).await?;
    ensure!(
        Instant::now() >= earliest,
        "free {:?} after detaching; TTL {ttl:?}",
        detached.elapsed()
    );
    let freed = detached.elapsed();
    let late = promptly("an answer", harness.connect().await?.resume(&id)).await?;
    refused("a resume after the TTL", late, &[ErrorKind::Lost])?;
    give_back(next).await?;
    held!("free {freed:?} after detaching; TTL {ttl:?}")
}

/// S4: what was not detached cannot be resumed.
pub async fn s4_only_detached_sessions_are_resumed(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    let session = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("mine")?.lock()).await??;
    let alive = promptly("an answer", store.resume(session.id())).await?;
    refused("a resume of a live session", alive, &[ErrorKind::Conflict])?;
    ensure!(guard.is_valid(), "a refused resume took the session away");
    let own = promptly("an answer", session.locker("mine")?.reclaim(guard.token())).await?;
    refused("a second guard for one holding", own, &[ErrorKind::Lost])?;
    ensure!(guard.is_valid(), "a refused reclaim took the lock away");
    let id = session.id().clone();
    give_back(guard).await?;
    promptly("close", session.close()).await??;
    let closed = promptly("an answer", store.resume(&id)).await?;
    let gone = [ErrorKind::Lost, ErrorKind::Conflict];
    refused("a resume of a closed session", closed, &gone)?;
    let nonsense = SessionId::new("no such session");
    let unknown = promptly("an answer", store.resume(&nonsense)).await?;
    let kinds = [ErrorKind::Lost, ErrorKind::Conflict, ErrorKind::Config];
    refused("a resume of nonsense", unknown, &kinds)?;
    held!("live, closed and unknown sessions are not resumed")
}

/// S4: a resumed session that could not renew is not handed out.
pub async fn s4_nothing_is_valid_before_the_first_renewal(harness: &dyn Harness) -> Verdict {
    let session = open(harness, harness.ttl()).await?;
    let ttl = session.ttl();
    let id = promptly("detach", session.detach()).await??;
    let Linked { store, link } = harness.linked().await?;
    link.silence();
    let resuming = tokio::time::timeout(ttl + SLACK, store.resume(&id)).await;
    if let Ok(Ok(session)) = resuming {
        return Err(Outcome::violated(format!(
            "resumed over a silent link; it says that it is valid for {:?}",
            session.remaining()
        )));
    }
    link.heal();
    held!("no session was handed out while the store could not be asked")
}

/// S5: what a session cannot carry is refused, and harms nobody.
pub async fn s5_too_many_holdings_are_refused(harness: &dyn Harness) -> Verdict {
    let Some(capacity) = harness.capacity() else {
        return Err(Outcome::not_run("the harness names no capacity"));
    };
    let session = open(harness, LONG).await?;
    let other = open(harness, LONG).await?;
    let filling = async {
        let mut guards = Vec::with_capacity(capacity);
        for number in 0..capacity {
            guards.push(session.locker(format!("held-{number}"))?.try_lock().await?);
        }
        Ok::<_, tenure_core::Error>(guards)
    };
    let mut guards = within(Duration::from_secs(30), "filling a session", filling).await??;
    let one_more = session.locker("one more")?;
    let answer = promptly("an answer", one_more.try_lock()).await?;
    refused("one holding too many", answer, &[ErrorKind::TooLarge])?;
    let answer = promptly("an answer", one_more.lock()).await?;
    refused("one wait too many", answer, &[ErrorKind::TooLarge])?;
    ensure!(
        guards.iter().all(|guard| guard.is_valid()),
        "a refused holding cost another"
    );
    give_back(promptly("try_lock", other.locker("others")?.try_lock()).await??).await?;
    if let Some(guard) = guards.pop() {
        give_back(guard).await?;
    }
    give_back(becomes_free(PROMPT, "after a release", &one_more).await?).await?;
    let closing = within(
        Duration::from_secs(30),
        "closing a full session",
        session.close(),
    );
    closing.await??;
    drop(guards);
    held!("{capacity} holdings were carried, one more was refused with TooLarge")
}

/// S3: a crashed holder's lock is free by the stated bound, and not before its TTL.
pub async fn s3_freed_within_the_stated_bound(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let process = Process::start()?;
    let store = harness.connect().await?;
    let (session, guard) = process.holds(store, harness.ttl(), "crashed").await?;
    let other = open(harness, LONG).await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut waiting = waiter(other.locker("crashed")?);
    arrivals.one_more().await?;
    // Before the kill, which ends validity at once. A renewal in between makes it later only.
    let earliest = Instant::now() + guard.remaining() + margin(session.ttl());
    process.kill().await;
    let killed = Instant::now();
    let limit = session.ttl() + bound + SLACK;
    let second = waiting
        .end(limit, "the grant to the next after the holder's crash")
        .await??;
    let granted = Instant::now();
    ensure!(
        granted + Duration::from_millis(10) >= earliest,
        "the lock of a crashed holder was granted {:?} before its TTL had passed",
        earliest - granted
    );
    ensure!(
        second.token() > guard.token(),
        "the successor's token {} is not above {}",
        second.token(),
        guard.token()
    );
    held!(
        "free {:?} after the crash; TTL {:?}, stated bound {bound:?}",
        granted - killed,
        session.ttl()
    )
}
