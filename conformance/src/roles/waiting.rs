//! Waiting, being woken, and giving up: rules L3 to L6.

use std::time::Duration;

use tenure_core::{ErrorKind, Session};
use tokio::time::Instant;

use super::scene::{Contest, becomes_free, end, settle, waits};
use super::{Role, Step};
use crate::case::{Outcome, Verdict};
use crate::cases::tools::*;
use crate::harness::{Harness, Link};

/// How long a client may take to notice that its connection is gone, to make another and to look.
const RECONNECT: Duration = Duration::from_secs(12);

/// What befalls the link of a waiter.
type Trouble = fn(&dyn Link);

/// L3: a waiter is woken by a release that comes after `trouble` was over, and by one in its midst.
async fn woken_after(harness: &dyn Harness, role: Role, what: &str, trouble: Trouble) -> Verdict {
    let linked = harness.linked().await?;
    let rival = promptly("open", open_on(&linked.store, LONG)).await??;
    let holder = open(harness, LONG).await?;
    let mut took = Vec::new();
    for within_it in [false, true] {
        let name = format!("bed {within_it}");
        let mut contest =
            Contest::set(harness, (role.opponent(), role), &holder, &rival, &name).await?;
        trouble(&*linked.link);
        tokio::time::sleep(Duration::from_millis(150)).await;
        contest.waits(what)?;
        if within_it {
            promptly("a release", contest.held.release()).await??;
            tokio::time::sleep(Duration::from_millis(150)).await;
            linked.link.heal();
        } else {
            linked.link.heal();
            tokio::time::sleep(Duration::from_millis(400)).await;
            contest.waits(what)?;
            // One that leaves a barrier waits for the other.
            promptly("a release", contest.held.release()).await??;
        }
        let healed = Instant::now();
        let next = contest
            .waiter
            .end(RECONNECT, "the grant to a waiter whose link was disturbed");
        end(next.await??).await?;
        took.push(healed.elapsed());
    }
    held!("granted {took:?} after {what}, the release after it and in it")
}

/// L3: no wake-up is lost in a silence of the waiter's link.
pub(crate) async fn woken_after_a_silence(harness: &dyn Harness, role: Role) -> Verdict {
    woken_after(harness, role, "a silence", |link| link.silence()).await
}

/// L3: no wake-up is lost when the waiter's connection is cut.
pub(crate) async fn woken_after_a_cut(harness: &dyn Harness, role: Role) -> Verdict {
    woken_after(harness, role, "a cut", |link| link.cut()).await
}

/// L3: a waiter is woken although the store's notification was lost.
pub(crate) async fn woken_though_notifications_are_lost(
    harness: &dyn Harness,
    role: Role,
) -> Verdict {
    woken_after(harness, role, "a loss of answers", |link| link.mute()).await
}

/// L3: a waiter sends nothing while it waits, beyond what its session sends anyway.
pub(crate) async fn waiting_sends_nothing(harness: &dyn Harness, role: Role) -> Verdict {
    const PERIOD: Duration = Duration::from_secs(3);
    const PERIODS: u32 = 3;
    // A slow look for dead holders is allowed; twice a second is not slow.
    let is_quiet = |(idle, busy): (u64, u64)| busy <= idle + 4;
    let (idle, busy) = (harness.linked().await?, harness.linked().await?);
    let _resting = promptly("open", open_on(&idle.store, LONG)).await??;
    let rival = promptly("open", open_on(&busy.store, LONG)).await??;
    let holder = open(harness, LONG).await?;
    let mut contest =
        Contest::set(harness, (role.opponent(), role), &holder, &rival, "quiet").await?;
    settle().await;
    let count = || Some((idle.link.requests()?, busy.link.requests()?));
    // What set the wait up may still be under way, and a late renewal goes out twice. A client that polls does so in
    // every period, so that one quiet period shows that it does not.
    let mut seen = (0, 0);
    for _ in 0..PERIODS {
        let Some(before) = count() else {
            return Err(Outcome::not_run("the link does not count its requests"));
        };
        tokio::time::sleep(PERIOD).await;
        contest.waits("meanwhile")?;
        let after = count().unwrap_or(before);
        seen = (after.0 - before.0, after.1 - before.1);
        if is_quiet(seen) {
            break;
        }
    }
    let (idle, busy) = seen;
    ensure!(
        is_quiet(seen),
        "in each of {PERIODS} times {PERIOD:?} a waiting session sent more than an idle one, at last {busy} requests \
         to {idle}"
    );
    promptly("a release", contest.held.release()).await??;
    end(contest
        .waiter
        .end(PROMPT, "the grant to the waiter")
        .await??)
    .await?;
    held!("in {PERIOD:?} a waiting session sent {busy} requests, an idle one {idle}")
}

/// L4: a try that is refused leaves nothing behind, in the store or in line.
pub(crate) async fn a_try_leaves_nothing(harness: &dyn Harness, role: Role) -> Verdict {
    let name = "tried";
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    promptly("enqueue", role.prepare(&holder, name)).await??;
    let opponent = role.opponent();
    let held = promptly("a grant of what is free", opponent.acquire(&holder, name)).await??;
    let before = count_keys(harness).await?;
    for _ in 0..3 {
        let answer = promptly("an answer to a try", role.attempt(&other, name)).await??;
        ensure!(answer.is_none(), "a try got what another holds");
    }
    let after = count_keys(harness).await?;
    ensure!(
        after <= before,
        "three refused tries left {} keys",
        after - before
    );
    promptly("a release", held.release()).await??;
    // A place in line that a try left would be served first.
    let third = open(harness, LONG).await?;
    for session in [&third, &other] {
        let next = promptly(
            "a grant after refused tries",
            opponent.acquire(session, name),
        )
        .await??;
        promptly("a release", next.release()).await??;
    }
    held!("three refused tries left nothing")
}

/// L4: a wait with a limit ends by then, and leaves nothing behind.
pub(crate) async fn a_limit_bounds_the_wait(harness: &dyn Harness, role: Role) -> Verdict {
    const LIMIT: Duration = Duration::from_millis(300);
    let name = "limited";
    let (holder, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    promptly("enqueue", role.prepare(&holder, name)).await??;
    let opponent = role.opponent();
    let held = match role {
        Role::Participant => super::Held::Passed,
        _ => promptly("a grant of what is free", opponent.acquire(&holder, name)).await??,
    };
    let before = count_keys(harness).await?;
    let started = Instant::now();
    let answer = promptly(
        "the end of a wait with a limit",
        role.acquire_within(&other, name, LIMIT),
    );
    let Some(answer) = answer.await? else {
        return Err(Outcome::not_run("there is no such form"));
    };
    let took = started.elapsed();
    refused("a wait with a limit", answer, &[ErrorKind::TimedOut])?;
    ensure!(took >= LIMIT, "a wait of {LIMIT:?} ended after {took:?}");
    keys_return_to(before, PROMPT, harness).await?;
    promptly("a release", held.release()).await??;
    if role == Role::Participant {
        is_alone(harness, &holder, name, LIMIT).await?;
    } else {
        let third = open(harness, LONG).await?;
        end(becomes_free(
            role.opponent(),
            &third,
            name,
            PROMPT,
            "after a wait with a limit",
        )
        .await?)
        .await?;
    }
    held!("a wait of {LIMIT:?} ended after {took:?} and left nothing")
}

/// A participant does not count after its wait with a limit has ended: another alone is not let in. Where the keys of
/// the store are not seen, its withdrawal may be on its way still, and has to arrive promptly.
async fn is_alone(
    harness: &dyn Harness,
    session: &Session,
    name: &str,
    limit: Duration,
) -> Step<()> {
    let counted = keys(harness).await?.is_some();
    // It would be the second of two.
    let barrier = session.double_barrier(name, 2)?;
    let started = Instant::now();
    loop {
        let alone = promptly("an answer to enter", barrier.enter_timeout(limit)).await?;
        match alone {
            Ok(inside) if !counted && started.elapsed() < PROMPT => {
                promptly("leave", inside.leave()).await??;
            }
            alone => {
                refused("an entry alone", alone, &[ErrorKind::TimedOut])?;
                return Ok(());
            }
        }
    }
}

/// L5: an acquire that is dropped at any await point, of what is free or held, leaves nothing.
pub(crate) async fn a_cancelled_acquire_leaves_nothing(
    harness: &dyn Harness,
    role: Role,
) -> Verdict {
    const QUIET: Duration = Duration::from_millis(300);
    let name = "given up";
    let (first, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    promptly("enqueue", role.prepare(&first, name)).await??;
    // What counts the deliveries of an item stays with the item.
    for session in [&first, &other] {
        let had = becomes_free(role, session, name, PROMPT, "at first").await?;
        promptly("a release", had.release()).await??;
    }
    let baseline = count_keys(harness).await?;
    let mut cancelled = 0;
    for polls in 1..8 {
        match give_up_after(polls, QUIET, role.acquire(&first, name)).await {
            GaveUp::Finished(had) => {
                promptly("a release", had?.release()).await??;
                break;
            }
            GaveUp::Dropped | GaveUp::Quiet => cancelled += 1,
        }
        let had = becomes_free(role, &other, name, PROMPT, "after a cancelled acquire").await?;
        promptly("a release", had.release()).await??;
        keys_return_to(baseline, PROMPT, harness).await?;
    }
    let opponent = role.opponent();
    if !matches!(role, Role::Hold | Role::Participant) {
        let held = promptly("a grant of what is free", opponent.acquire(&other, name)).await??;
        let before = count_keys(harness).await?;
        for polls in 1..6 {
            match give_up_after(polls, QUIET, role.acquire(&first, name)).await {
                GaveUp::Finished(_) => {
                    return Err(Outcome::violated("an acquire ended while another held it"));
                }
                GaveUp::Dropped => cancelled += 1,
                GaveUp::Quiet => {
                    cancelled += 1;
                    keys_return_to(before, PROMPT, harness).await?;
                    break;
                }
            }
            keys_return_to(before, PROMPT, harness).await?;
        }
        promptly("a release", held.release()).await??;
        let had = becomes_free(role, &other, name, PROMPT, "after cancelled waits").await?;
        promptly("a release", had.release()).await??;
    }
    keys_return_to(baseline, PROMPT, harness).await?;
    held!("{cancelled} acquires were dropped at their await points and left nothing")
}

/// L6: a waiter whose session is closed gets an error, and blocks no other.
pub(crate) async fn a_waiter_ends_with_its_session(harness: &dyn Harness, role: Role) -> Verdict {
    let (holder, rival) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let mut contest =
        Contest::set(harness, (role.opponent(), role), &holder, &rival, "ended").await?;
    promptly("close", rival.close()).await??;
    let ended = contest
        .waiter
        .end(PROMPT, "the end of a waiter whose session was closed")
        .await?;
    refused("a wait of a closed session", ended, &[ErrorKind::Lost])?;
    promptly("a release", contest.held.release()).await??;
    next_is_served(harness, role, "ended").await?;
    held!("the waiter of a closed session got an error; the next was served")
}

/// L6: a waiter whose session runs out gets an error, and is never granted.
pub(crate) async fn a_waiter_ends_when_its_session_is_lost(
    harness: &dyn Harness,
    role: Role,
) -> Verdict {
    let linked = harness.linked().await?;
    let rival = promptly("open", open_on(&linked.store, harness.ttl())).await??;
    let holder = open(harness, LONG).await?;
    let mut contest =
        Contest::set(harness, (role.opponent(), role), &holder, &rival, "lost").await?;
    let ttl = rival.ttl();
    linked.link.silence();
    let silent = Instant::now();
    let ended = contest
        .waiter
        .end(ttl + SLACK, "the end of a waiter whose session ran out")
        .await?;
    let took = silent.elapsed();
    refused("a wait of a lost session", ended, &[ErrorKind::Lost])?;
    tokio::time::sleep((ttl + expiry_bound(harness).await?).saturating_sub(took)).await;
    promptly("a release", contest.held.release()).await??;
    next_is_served(harness, role, "lost").await?;
    held!("the waiter of a silent session got an error after {took:?}; the next was served")
}

/// A newcomer gets it: the waiter that is gone was not granted.
async fn next_is_served(harness: &dyn Harness, role: Role, name: &str) -> Step<()> {
    let (next, role) = (open(harness, LONG).await?, role.opponent());
    if role == Role::Participant {
        end(becomes_free(role, &next, name, PROMPT, "after the end of a waiter").await?).await?;
        return Ok(());
    }
    let mut waiter = waits(role, &next, name);
    end(waiter.end(PROMPT, "the grant to the next").await??).await
}
