//! Waiting and cancellation: rules L4 to L6.

use std::time::Duration;

use tenure_core::{ErrorKind, Session};
use tokio::time::Instant;

use super::scene::*;
use super::{Held, Role};
use crate::harness::{Harness, Link};
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// Checks L4: a rejected try leaves nothing in the store or in the wait queue.
pub(crate) async fn a_try_leaves_nothing(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "tried";
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    done("enqueue", role.prepare(&holder, name)).await?;
    let opponent = role.opponent();
    let held = done("a grant of what is free", opponent.acquire(&holder, name)).await?;
    let before = count_keys(harness).await?;
    for _ in 0..3 {
        let answer = done("an answer to a try", role.attempt(&other, name)).await?;
        ensure!(answer.is_none(), "a try got what another holds");
    }
    let after = count_keys(harness).await?;
    ensure!(after <= before, "three refused tries left {} keys", after - before);
    done("a release", held.release()).await?;
    // A place that a try left in the wait queue would be served first.
    let third = open(harness, LONG).await?;
    for session in [&third, &other] {
        let next = becomes_free(role, session, name, PROMPT, "after refused tries").await?;
        done("a release", next.release()).await?;
    }
    held!("three refused tries left nothing")
}

/// Checks L4: a wait with a limit ends by then, and leaves nothing behind.
pub(crate) async fn a_limit_bounds_the_wait(harness: &dyn Harness, role: Role) -> Verdict {
    const LIMIT: Duration = Duration::from_millis(300);
    let name = "limited";
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    done("enqueue", role.prepare(&holder, name)).await?;
    let held = match role {
        Role::Participant => Held::Passed,
        _ => done("a grant of what is free", role.opponent().acquire(&holder, name)).await?,
    };
    let before = count_keys(harness).await?;
    let started = Instant::now();
    let answer = promptly("the end of a wait with a limit", role.wait_for(&other, name, LIMIT));
    let Some(answer) = answer.await? else {
        return Err(Outcome::not_run("the role has no such form"));
    };
    let took = started.elapsed();
    refused("a wait with a limit", answer, &[ErrorKind::TimedOut])?;
    ensure!(took >= LIMIT, "a wait of {LIMIT:?} ended after {took:?}");
    keys_return_to(before, harness).await?;
    done("a release", held.release()).await?;
    next_is_served(harness, role, name).await?;
    held!("a wait of {LIMIT:?} ended after {took:?} and left nothing")
}

/// Checks L5: an acquire that is dropped at any await point leaves nothing, whether the object is free or held.
pub(crate) async fn a_cancelled_acquire_leaves_nothing(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "given up";
    let (first, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    done("enqueue", role.prepare(&first, name)).await?;
    // The store may keep something of an object for ever, so it must exist before the baseline.
    for session in [&first, &other] {
        let held = becomes_free(role, session, name, PROMPT, "at first").await?;
        done("a release", held.release()).await?;
    }
    let baseline = count_keys(harness).await?;
    let given_up = async |granted: Option<tenure_core::Result<Held>>| {
        if let Some(held) = granted {
            done("a release", held?.release()).await?;
        }
        let held = becomes_free(role, &other, name, PROMPT, "after a cancelled acquire").await?;
        done("a release", held.release()).await?;
        keys_return_to(baseline, harness).await
    };
    let begin = async || Ok(role.acquire(&first, name));
    let mut dropped = at_every_await_point(begin, given_up).await?;

    let name = "given up in a wait";
    let held = match role {
        // A participant waits for a second one.
        Role::Participant => Held::Passed,
        _ => {
            done("enqueue", role.prepare(&first, name)).await?;
            done("a grant of what is free", role.opponent().acquire(&other, name)).await?
        }
    };
    let before = count_keys(harness).await?;
    let waiting = async |granted: Option<tenure_core::Result<Held>>| {
        if let Some(answer) = granted {
            answer?;
            ensure!(false, "a wait ended while another held it");
        }
        if role == Role::Participant {
            // Until its withdrawal has arrived, it counts as the second participant of the next one.
            settle().await;
        }
        keys_return_to(before, harness).await
    };
    dropped += at_every_await_point(async || Ok(role.wait(&first, name)), waiting).await?;
    done("a release", held.release()).await?;
    next_is_served(harness, role, name).await?;
    held!("{dropped} acquires were dropped at their await points and left nothing")
}

/// Checks L5: a request that arrives after its caller gave up leaves nothing and blocks no other, whether the object is
/// free or held.
pub(crate) async fn a_late_request_leaves_nothing(harness: &dyn Harness, role: Role) -> Verdict {
    let other = open(harness, LONG).await?;
    let mut late = 0;
    for (is_held, tries) in [(false, false), (true, false), (false, true)] {
        if tries && role == Role::Batch {
            continue;
        }
        let name = format!("late {is_held} {tries}");
        let (first, link) = open_linked(harness, LONG).await?;
        // While it is held, the store may not refuse the late request merely because it is old.
        done("enqueue", role.prepare(&other, "anchor")).await?;
        let anchor = done("a grant of what is free", role.acquire(&first, "anchor")).await?;
        done("enqueue", role.prepare(&other, &name)).await?;
        for session in [&first, &other] {
            let held = becomes_free(role, session, &name, PROMPT, "at first").await?;
            done("a release", held.release()).await?;
        }
        let held = match role {
            Role::Participant => Held::Passed,
            _ if !is_held => Held::Passed,
            _ => done("a grant of what is free", role.opponent().acquire(&other, &name)).await?,
        };
        let before = count_keys(harness).await?;
        link.delay_request();
        let (session, object) = (first.clone(), name.clone());
        let acquiring = spawn(async move {
            match role {
                _ if tries => role.attempt(&session, &object).await.map(drop),
                // The waiter of a barrier only reads.
                Role::Hold => role.acquire(&session, &object).await.map(drop),
                _ => role.wait(&session, &object).await.map(drop),
            }
        });
        let sent = async {
            while !link.has_delayed_request() {
                tokio::time::sleep(LOOK / 10).await;
            }
        };
        within(PROMPT, "the request", sent).await?;
        drop(acquiring);
        keys_return_to(before, harness).await?;
        settle().await;
        link.deliver();
        // Not even for a moment: the session would find and remove what the store granted.
        for _ in 0..20 {
            tokio::time::sleep(LOOK).await;
            let keys = count_keys(harness).await?;
            ensure!(
                keys <= before,
                "a request that was withdrawn left a key: {keys} instead of {before}"
            );
            if !is_held {
                let free = done("an answer to a try", role.opponent().attempt(&other, &name)).await?;
                let taken = || Outcome::violated("a request that was withdrawn has the object");
                done("a release", free.ok_or_else(taken)?.release()).await?;
                keys_return_to(before, harness).await?;
            }
        }
        done("a release", held.release()).await?;
        next_is_served(harness, role, &name).await?;
        done("a release", anchor.finish()).await?;
        late += 1;
        done("close", first.close()).await?;
    }
    held!("{late} requests arrived after their callers had given up, and left nothing")
}

/// A waiter of `other`, and what it waits for: nothing for a participant, which waits for a second one.
async fn behind(
    harness: &dyn Harness,
    role: Role,
    holder: &Session,
    other: &Session,
    name: &str,
) -> Step<(Held, Task<tenure_core::Result<Held>>)> {
    if role == Role::Participant {
        return Ok((Held::Passed, arrived(harness, role, other, name).await?));
    }
    let contention = Contention::set(harness, (role.opponent(), role), holder, other, name).await?;
    Ok((contention.held, contention.waiter))
}

/// Checks that the object is granted to new sessions: an ended waiter did not get it, and does not block them.
async fn next_is_served(harness: &dyn Harness, role: Role, name: &str) -> Step<()> {
    let next = open(harness, LONG).await?;
    if role == Role::Participant {
        // An ended waiter that still counted would be the second of two.
        let mut first = waiter(role, &next, name);
        settle().await;
        ensure!(!first.is_finished(), "a participant entered with one that had ended");
        let second = open(harness, LONG).await?;
        let second = done("the entry of both", role.wait(&second, name)).await?;
        let first = first.end(PROMPT, "the entry of both").await??;
        let (first, second) = tokio::join!(first.release(), second.release());
        return Ok(first.and(second)?);
    }
    let held = becomes_free(role, &next, name, PROMPT, "after the end of a waiter").await?;
    done("a release", held.release()).await?;
    let mut waiter = waiter(role, &next, name);
    end(waiter.end(PROMPT, "the grant to the next").await??).await
}

/// Checks L6: a waiter whose session is closed gets an error, and blocks no other waiter.
pub(crate) async fn a_waiter_ends_with_its_session(harness: &dyn Harness, role: Role) -> Verdict {
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (held, mut waiter) = behind(harness, role, &holder, &other, "ended").await?;
    done("close", other.close()).await?;
    let ended = waiter
        .end(PROMPT, "the end of a waiter whose session was closed")
        .await?;
    refused("a wait of a closed session", ended, &[ErrorKind::Lost])?;
    done("a release", held.release()).await?;
    next_is_served(harness, role, "ended").await?;
    held!("the waiter of a closed session got an error; the next was served")
}

/// Plays a scene in which the session of the waiters ends.
async fn waiters_end(
    harness: &dyn Harness,
    roles: &[Role],
    event: impl AsyncFn(&Session, Option<&dyn Link>) -> Step<()>,
    needs_link: bool,
) -> Step<Vec<Outcome>> {
    let holder = open(harness, LONG).await?;
    let (other, link) = match needs_link {
        true => {
            let (other, link) = open_linked(harness, harness.ttl()).await?;
            (other, Some(link))
        }
        false => (open(harness, harness.ttl()).await?, None),
    };
    let (ttl, bound) = (other.ttl(), expiry_bound(harness).await?);
    let set = async |role: Role| behind(harness, role, &holder, &other, &named("lost", role)).await;
    let happen = async |_: &[_]| {
        event(&other, link.as_deref()).await?;
        Ok(Instant::now())
    };
    type Behind = (Held, Task<tenure_core::Result<Held>>);
    let judge = async |role, (held, mut waiter): Behind, at: &Instant| {
        let ended = waiter
            .end(ttl + slack(), "the end of a waiter whose session is lost")
            .await?;
        let took = at.elapsed();
        refused("a wait of a lost session", ended, &[ErrorKind::Lost])?;
        // Only then the store has forgotten the waiter.
        tokio::time::sleep((ttl + bound).saturating_sub(took)).await;
        done("a release", held.release()).await?;
        next_is_served(harness, role, &named("lost", role)).await?;
        held!("the waiter of a lost session got an error after {took:?}; the next was served")
    };
    play(roles, set, happen, nothing(), judge).await
}

/// Checks L6: a waiter whose session expires gets an error, and is never granted.
pub(crate) async fn a_lost_waiter_is_told(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let silence = async |_: &Session, link: Option<&dyn Link>| {
        if let Some(link) = link {
            link.silence();
        }
        Ok(())
    };
    waiters_end(harness, roles, silence, true).await
}

/// Checks L6: a waiter whose session an operator revokes gets an error, and is never granted.
pub(crate) async fn a_revoked_waiter_is_told(harness: &dyn Harness, roles: &[Role]) -> Step<Vec<Outcome>> {
    let revoked = async |session: &Session, _: Option<&dyn Link>| revoke(harness, session.id()).await;
    waiters_end(harness, roles, revoked, false).await
}
