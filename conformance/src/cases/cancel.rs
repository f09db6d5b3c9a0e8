//! Callers that go away: rule L5.
//!
//! "At every await point" is meant literally: the operation is run again and again, and dropped
//! after its first poll, its second, its third, until it ends or nothing wakes it any more.

use std::time::Duration;

use tenure_core::{ErrorKind, LockGuard, LockHandle, Session};

use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked};

/// A future that nobody wakes for this long has come to its last await point.
pub(super) const QUIET: Duration = Duration::from_millis(300);

/// No operation has more await points than this; one that has is polled in a busy loop.
pub(super) const MOST: usize = 500;

/// Runs the block with 0, 1, 2, ... polls until it says that there are no more await points.
///
/// A macro, because the futures of async closures that borrow are not provably `Send`.
macro_rules! at_every_await_point {
    ($what:literal, |$polls:ident| $attempt:block) => {{
        let mut verdict = Err(Outcome::violated(format!(
            "{} has not ended after {} polls",
            $what,
            $crate::cases::cancel::MOST
        )));
        for $polls in 0..$crate::cases::cancel::MOST {
            let attempt: std::result::Result<bool, Outcome> = async { $attempt }.await;
            match attempt {
                Ok(false) => continue,
                Ok(true) => {
                    verdict = held!(
                        "{} was dropped after 0 to {} polls, and left nothing",
                        $what,
                        $polls
                    );
                }
                Err(outcome) => verdict = Err($crate::cases::cancel::after($what, $polls, outcome)),
            }
            break;
        }
        verdict
    }};
}
pub(super) use at_every_await_point;

pub(super) fn after(what: &str, polls: usize, outcome: Outcome) -> Outcome {
    outcome.when(format_args!("{what}, dropped after {polls} polls: "))
}

/// Whether this was the last await point; passes errors of the operation on.
pub(super) fn was_last<T>(given_up: GaveUp<tenure_core::Result<T>>) -> tenure_core::Result<bool> {
    match given_up {
        GaveUp::Finished(done) => done.map(|_| true),
        GaveUp::Dropped => Ok(false),
        GaveUp::Quiet => Ok(true),
    }
}

/// Somebody else can have the lock, and nothing is left of the attempt.
async fn nothing_is_left(
    harness: &dyn Harness,
    probe: &LockHandle,
    baseline: usize,
) -> std::result::Result<(), Outcome> {
    give_back(becomes_free(PROMPT, "afterwards", probe).await?).await?;
    keys_return_to(baseline, PROMPT, harness).await
}

/// L5: `try_lock`, of a free lock and of a held one.
pub async fn l5_cancelled_try_lock_leaves_nothing(harness: &dyn Harness) -> Verdict {
    let (caller, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (handle, probe) = (caller.locker("tried")?, other.locker("tried")?);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("try_lock of a free lock", |polls| {
        let last = was_last(give_up_after(polls, QUIET, handle.try_lock()).await)?;
        nothing_is_left(harness, &probe, baseline).await?;
        // What was given up may reach the store after the other has come and gone.
        nothing_is_left(harness, &handle, baseline).await?;
        Ok(last)
    })?;
    at_every_await_point!("try_lock", |polls| {
        let guard = promptly("lock", probe.lock()).await??;
        let given_up = match give_up_after(polls, QUIET, handle.try_lock()).await {
            GaveUp::Finished(Err(error)) if error.kind() == ErrorKind::WouldBlock => true,
            GaveUp::Finished(Ok(_)) => {
                return Err(Outcome::violated("a held lock was granted again"));
            }
            other => was_last(other)?,
        };
        give_back(guard).await?;
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(given_up)
    })
}

/// L5: `lock_timeout`, dropped before its time is over, and ended by it.
pub async fn l5_cancelled_lock_timeout_leaves_nothing(harness: &dyn Harness) -> Verdict {
    let (holder, caller, other) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    let (handle, probe) = (caller.locker("limited")?, other.locker("limited")?);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("lock_timeout", |polls| {
        let guard = promptly("lock", holder.locker("limited")?.lock()).await??;
        let held = count_keys(harness).await?;
        let limited = handle.lock_timeout(Duration::from_millis(100));
        let last = match give_up_after(polls, PROMPT, limited).await {
            GaveUp::Finished(Err(error)) if error.kind() == ErrorKind::TimedOut => true,
            other => was_last(other)?,
        };
        keys_return_to(held, PROMPT, harness).await?;
        give_back(guard).await?;
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// L5: `release`: once polled, it goes on; never polled, the drop does it.
pub async fn l5_cancelled_release_still_releases(harness: &dyn Harness) -> Verdict {
    let (caller, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (handle, probe) = (caller.locker("released")?, other.locker("released")?);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("release", |polls| {
        let guard = promptly("lock", handle.lock()).await??;
        let last = was_last(give_up_after(polls, PROMPT, guard.release()).await)?;
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// L5: `close`: once polled, it goes on; never polled, the drop does it.
pub async fn l5_cancelled_close_still_closes(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let probe = other.locker("closed")?;
    let baseline = count_keys(harness).await?;
    at_every_await_point!("close", |polls| {
        let session = open(harness, LONG).await?;
        let guard = promptly("lock", session.locker("closed")?.lock()).await??;
        let last = was_last(give_up_after(polls, PROMPT, session.close()).await)?;
        if polls == 0 {
            // It keeps the session open, and nobody has closed it.
            drop(guard);
        }
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// L5: `detach`: afterwards the session can be resumed, or it was never detached; it is never
/// stuck in between.
pub async fn l5_cancelled_detach_leaves_no_orphan(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let store = harness.connect().await?;
    let probe = other.locker("detached")?;
    let baseline = count_keys(harness).await?;
    at_every_await_point!("detach", |polls| {
        let session = open(harness, LONG).await?;
        let id = session.id().clone();
        let guard = promptly("lock", session.locker("detached")?.lock()).await??;
        let last = was_last(give_up_after(polls, PROMPT, session.detach()).await)?;
        if polls > 0 {
            promptly("the detaching of the session", guard.lost()).await?;
            let resumed = promptly("the resuming", resume_in_time(&store, &id)).await??;
            promptly("close", resumed.close()).await??;
        }
        drop(guard);
        nothing_is_left(harness, &probe, baseline).await?;
        Ok(last)
    })
}

/// The detaching may still be on its way to the store.
async fn resume_in_time(
    store: &tenure_core::Store,
    id: &tenure_core::SessionId,
) -> tenure_core::Result<Session> {
    loop {
        match store.resume(id).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            done => return done,
        }
    }
}

/// L5: `open`: a lease granted to a caller that has gone is revoked.
pub async fn l5_cancelled_open_leaves_no_session(harness: &dyn Harness) -> Verdict {
    let store = harness.connect().await?;
    // The first session may bring something along that stays.
    promptly("close", open_on(&store, LONG).await?.close()).await??;
    let operator = operator(harness)?;
    let baseline = operator.sessions().await?;
    at_every_await_point!("open", |polls| {
        let opening = open_on(&store, LONG);
        let last = match give_up_after(polls, PROMPT, opening).await {
            GaveUp::Finished(Ok(session)) => {
                promptly("close", session.close()).await??;
                true
            }
            other => was_last(other)?,
        };
        let gone = async {
            while operator.sessions().await? > baseline {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, tenure_core::Error>(())
        };
        promptly("the revocation of the session", gone).await??;
        Ok(last)
    })
}

/// L5: `reclaim`: afterwards the lock is held by its session and can be reclaimed, or is free;
/// and one who reclaims it then keeps it.
pub async fn l5_cancelled_reclaim_leaves_no_orphan(harness: &dyn Harness) -> Verdict {
    let other = open(harness, LONG).await?;
    let store = harness.connect().await?;
    let probe = other.locker("reclaimed")?;
    let baseline = count_keys(harness).await?;
    at_every_await_point!("reclaim", |polls| {
        let session = open(harness, LONG).await?;
        let guard = promptly("lock", session.locker("reclaimed")?.lock()).await??;
        let token = guard.token();
        let id = promptly("detach", session.detach()).await??;
        drop(guard);
        let resumed = promptly("resume", store.resume(&id)).await??;
        let handle = resumed.locker("reclaimed")?;
        let last = was_last(give_up_after(polls, PROMPT, handle.reclaim(token)).await)?;
        match promptly("an answer", handle.reclaim(token)).await? {
            Ok(guard) => {
                keeps_it(&guard, &probe).await?;
                give_back(guard).await?;
            }
            Err(error) if error.kind() == ErrorKind::Lost => {}
            Err(error) => return Err(error.into()),
        }
        nothing_is_left(harness, &probe, baseline).await?;
        promptly("close", resumed.close()).await??;
        Ok(last)
    })
}

/// A guard that was lost meanwhile must know it; one that counts as valid must hold.
async fn keeps_it(guard: &LockGuard, probe: &LockHandle) -> std::result::Result<(), Outcome> {
    tokio::time::sleep(Duration::from_millis(150)).await;
    match promptly("an answer", probe.try_lock()).await? {
        Ok(second) => {
            ensure!(
                !guard.is_valid(),
                "reclaimed under token {}, and granted to another under {}; both count as valid",
                guard.token(),
                second.token()
            );
            give_back(second).await
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How many callers a storm has, and how long each of them has at most.
const STORM: (usize, Duration) = (200, Duration::from_millis(150));

/// L5: hundreds of callers, each gone at a random moment.
pub async fn l5_a_storm_of_cancelled_callers_leaves_nothing(harness: &dyn Harness) -> Verdict {
    let (callers, most) = STORM;
    let mut random = Random::seeded(0x7e2_0001);
    let baseline = count_keys(harness).await?;
    let mut sessions = Vec::new();
    for _ in 0..4 {
        sessions.push(open(harness, LONG).await?);
    }
    let mut tasks = Vec::new();
    for number in 0..callers {
        let handle = sessions[number % sessions.len()].locker("storm")?;
        let (patience, hold) = (random.up_to(most), random.up_to(Duration::from_millis(3)));
        let way = random.below(4);
        tasks.push(spawn(async move {
            let acting = async {
                let guard = match way {
                    0 => handle.try_lock().await,
                    1 => handle.lock_timeout(patience / 2).await,
                    _ => handle.lock().await,
                }?;
                tokio::time::sleep(hold).await;
                guard.release().await
            };
            // Errors are theirs: what counts is what they leave.
            let _ = tokio::time::timeout(patience, acting).await;
        }));
    }
    for task in &mut tasks {
        task.end(PROMPT * 3, "the callers' end").await?;
    }
    let limit = Duration::from_secs(1) + SLACK;
    keys_return_to(baseline, limit, harness).await?;
    let other = open(harness, LONG).await?;
    let probe = other.locker("storm")?;
    give_back(becomes_free(limit, "after the storm", &probe).await?).await?;
    held!("{callers} callers, gone within {most:?}, left nothing")
}

/// L5: a request that the store took, and whose answer nobody heard, is undone.
pub async fn l5_an_unheard_grant_is_given_back(harness: &dyn Harness) -> Verdict {
    given_up_during(harness, |link| link.mute(), "its answer was lost").await
}

/// L5: a request that arrives late, after its caller has gone, leaves nothing.
pub async fn l5_a_late_request_leaves_nothing(harness: &dyn Harness) -> Verdict {
    given_up_during(harness, |link| link.silence(), "the link was silent").await
}

async fn given_up_during(harness: &dyn Harness, fail: fn(&dyn crate::Link), what: &str) -> Verdict {
    /// To connect anew takes a while, but far less than the TTL.
    const RECONNECT: Duration = Duration::from_secs(12);
    let Linked { store, link } = harness.linked().await?;
    let caller = promptly("open", open_on(&store, LONG)).await??;
    let other = open(harness, LONG).await?;
    let (handle, probe) = (caller.locker("unheard")?, other.locker("unheard")?);
    let baseline = count_keys(harness).await?;
    for round in 0..3 {
        fail(&*link);
        let patience = Duration::from_millis(100 + 100 * round);
        let answer = tokio::time::timeout(patience, handle.lock()).await;
        ensure!(
            !matches!(answer, Ok(Ok(_))),
            "a lock was granted over a link without answers"
        );
        link.heal();
        let guard = becomes_free(RECONNECT, &format!("after {what}"), &probe).await?;
        give_back(guard).await?;
        keys_return_to(baseline, RECONNECT, harness).await?;
    }
    ensure!(caller.is_valid(), "the caller's session was lost meanwhile");
    held!("three times a caller went away while {what}, and nothing was left; TTL {LONG:?}")
}
