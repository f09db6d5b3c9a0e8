//! Double barriers: rules B2 to B4.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::{DoubleBarrierHandle, ErrorKind, Participant, Result, Session};

use super::{granted, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::stress::Random;
use crate::tools::{
    LONG, LOOK, PROMPT, Task, at_every_await_point, count_keys, done, ensure, held, keys_return_to, open, promptly,
    refused, spawn,
};

cases! { CASES:
    b2_participants_enter_and_leave_together "B2"
        "no participant enters before all have entered, or leaves before all have left"
        (None) [] always;
    b2_rounds_do_not_meet "B2" "the participants of one round meet none of another round" (None) [] always;
    b2_cancelled_leave_still_leaves "B2" "a leave that is dropped at any await point takes effect" (None) [] always;
    b3_one_too_many_is_refused "B3"
        "a surplus participant and a late one do not get in; later the barrier is used again"
        (None) [] always;
    b3_crowd_enters_in_full_rounds "B3" "of a crowd as many enter as the count says, or a multiple" (None) [] always;
    b3_another_count_is_refused "B3"
        "a participant with another count is refused, and lets no other in" (None) [] always;
    b4_participant_that_gave_up_does_not_count "B4"
        "participants that timed out or were dropped do not count, and leave nothing"
        (Some(Line::Cancellation)) [] prompt_cancellation;
}

fn entering(barrier: &DoubleBarrierHandle) -> Task<Result<Participant>> {
    let barrier = barrier.clone();
    spawn(async move { barrier.enter().await })
}

/// Starts to enter, and waits until the store knows the participant.
async fn enter(harness: &dyn Harness, barrier: &DoubleBarrierHandle) -> Step<Task<Result<Participant>>> {
    let barrier = barrier.clone();
    waiter(harness, async move { barrier.enter().await }).await
}

fn leaving(inside: Participant) -> Task<Result<()>> {
    spawn(async move { inside.leave().await })
}

async fn all_inside(tasks: impl IntoIterator<Item = Task<Result<Participant>>>) -> Step<Vec<Participant>> {
    // All of them start before the first is waited for.
    let (tasks, mut inside): (Vec<_>, _) = (tasks.into_iter().collect(), Vec::new());
    for mut task in tasks {
        let entered = tokio::time::timeout(PROMPT, granted(&mut task, "an entry")).await;
        let late = |_| Outcome::violated(format!("all had entered, and one was not let in within {PROMPT:?}"));
        inside.push(entered.map_err(late)??);
    }
    Ok(inside)
}

async fn all_leave(inside: Vec<Participant>) -> Step<()> {
    let leaves: Vec<_> = inside.into_iter().map(leaving).collect();
    for mut leave in leaves {
        granted(&mut leave, "a leave, after all had left").await?;
    }
    Ok(())
}

/// Opens `count` sessions, each with its handle on a double barrier for all of them.
async fn party(harness: &dyn Harness, count: u32) -> Step<Vec<(Session, DoubleBarrierHandle)>> {
    let mut party = Vec::new();
    for _ in 0..count {
        let session = open(harness, LONG).await?;
        let barrier = session.double_barrier("phase", count);
        party.push((session, barrier));
    }
    Ok(party)
}

/// Passes a round: all enter and leave.
async fn passes(party: &[(Session, DoubleBarrierHandle)]) -> Step<()> {
    all_leave(all_inside(party.iter().map(|(_, barrier)| entering(barrier))).await?).await
}

async fn b2_participants_enter_and_leave_together(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 3).await?;
    let mut entries = Vec::new();
    for (_, barrier) in &party[..2] {
        entries.push(enter(harness, barrier).await?);
        still_waiting(
            "before all participants had entered",
            &entries.iter().collect::<Vec<_>>(),
        )
        .await?;
    }
    entries.push(entering(&party[2].1));
    let mut inside = all_inside(entries).await?;
    let tokens: std::collections::BTreeSet<_> = inside.iter().map(|inside| inside.token()).collect();
    ensure!(
        inside.iter().all(|inside| inside.is_valid()),
        "a participant inside is not valid"
    );
    let last = inside.pop();
    let mut leaves: Vec<_> = inside.into_iter().map(leaving).collect();
    still_waiting("before all participants had left", &leaves.iter().collect::<Vec<_>>()).await?;
    if let Some(last) = last {
        done("the leave of the last participant", last.leave()).await?;
    }
    for leave in &mut leaves {
        granted(leave, "a leave, after all had left").await?;
    }
    held!("three entered after the third had come, and left after the third had left; tokens {tokens:?}")
}

async fn b2_rounds_do_not_meet(harness: &dyn Harness) -> Verdict {
    const COUNT: u32 = 4;
    const ROUNDS: usize = 12;
    let party = party(harness, COUNT).await?;
    let counters = || -> Arc<Vec<AtomicUsize>> { Arc::new((0..ROUNDS).map(|_| AtomicUsize::new(0)).collect()) };
    let (came, left) = (counters(), counters());
    let mut tasks = Vec::new();
    for (number, (_, barrier)) in party.iter().enumerate() {
        let (barrier, came, left) = (barrier.clone(), Arc::clone(&came), Arc::clone(&left));
        tasks.push(spawn(async move {
            let mut random = Random::new(number as u64);
            for round in 0..ROUNDS {
                came[round].fetch_add(1, Ordering::SeqCst);
                let inside = loop {
                    match barrier.enter().await {
                        // The round before has not left.
                        Err(error) if error.kind() == ErrorKind::Conflict => tokio::time::sleep(LOOK / 10).await,
                        entered => break entered?,
                    }
                };
                let seen = came[round].load(Ordering::SeqCst);
                ensure!(
                    seen == COUNT as usize,
                    "round {round}: one entered when {seen} of {COUNT} had come"
                );
                if random.below(3) == 0 {
                    tokio::time::sleep(Duration::from_millis(random.below(8))).await;
                }
                left[round].fetch_add(1, Ordering::SeqCst);
                if random.below(4) == 0 {
                    // Leaves without waiting for the others.
                    drop(inside);
                    continue;
                }
                inside.leave().await?;
                let seen = left[round].load(Ordering::SeqCst);
                ensure!(
                    seen == COUNT as usize,
                    "round {round}: one left when {seen} of {COUNT} had left"
                );
            }
            Ok::<_, Outcome>(())
        }));
    }
    for task in &mut tasks {
        task.end(PROMPT, "the rounds of a participant").await??;
    }
    held!("{COUNT} participants passed {ROUNDS} rounds, and none met another round")
}

async fn b2_cancelled_leave_still_leaves(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let baseline = count_keys(harness).await?;
    let other = std::cell::RefCell::new(None);
    let dropped = at_every_await_point(
        async || {
            let mut inside = all_inside(party.iter().map(|(_, barrier)| entering(barrier))).await?;
            *other.borrow_mut() = inside.pop();
            let one = inside
                .pop()
                .ok_or_else(|| Outcome::not_run("a party of two is not two"))?;
            Ok(one.leave())
        },
        async |_| {
            let other = other.borrow_mut().take();
            if let Some(other) = other {
                done("a leave, after the other's leave was dropped", other.leave()).await?;
            }
            keys_return_to(baseline, harness).await
        },
    );
    let dropped = dropped.await?;
    held!("{dropped} leaves were dropped, and the other participant left each time")
}

async fn b3_one_too_many_is_refused(harness: &dyn Harness) -> Verdict {
    let (party, late) = (party(harness, 2).await?, open(harness, LONG).await?);
    let late = late.double_barrier("phase", 2);
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut inside = all_inside(party.iter().map(|(_, barrier)| entering(barrier))).await?;
        // Refused, or kept waiting for the next round: it must not get in.
        let not_in = &[ErrorKind::Conflict, ErrorKind::TimedOut];
        let limit = Duration::from_millis(200);
        let surplus = promptly("an answer to one too many", late.enter_timeout(limit)).await?;
        answers.push(refused("one participant too many", surplus, not_in)?.kind());
        let mut first = inside.pop().map(leaving);
        let surplus = promptly("an answer to a late one", late.enter_timeout(limit)).await?;
        answers.push(refused("a participant while one is left inside", surplus, not_in)?.kind());
        all_leave(inside).await?;
        if let Some(first) = &mut first {
            granted(first, "a leave, after all had left").await?;
        }
    }
    passes(&party).await?;
    held!("a third participant of two did not get in ({answers:?}), and the next rounds passed")
}

async fn b3_crowd_enters_in_full_rounds(harness: &dyn Harness) -> Verdict {
    const COUNT: u32 = 3;
    const CROWD: usize = 7;
    let sessions = party(harness, COUNT).await?;
    let (mut entered, mut others) = (0, 0);
    for round in 0..4 {
        let (go, going) = tokio::sync::watch::channel(false);
        let mut tasks = Vec::new();
        for number in 0..CROWD {
            // Two tasks of one session are two participants.
            let (barrier, mut going) = (
                sessions[number % sessions.len()].0.double_barrier("phase", COUNT),
                going.clone(),
            );
            tasks.push(spawn(async move {
                let entered = barrier.enter_timeout(Duration::from_secs(1)).await;
                // No participant leaves before all have their answer.
                let _ = going.wait_for(|going| *going).await;
                match entered {
                    Ok(inside) => inside.leave().await.map(|()| true),
                    Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::TimedOut) => Ok(false),
                    Err(error) => Err(error),
                }
            }));
        }
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let _ = go.send(true);
        let mut inside = 0;
        for task in &mut tasks {
            inside += usize::from(granted(task, "an answer to one of a crowd").await?);
        }
        ensure!(
            inside > 0 && inside.is_multiple_of(COUNT as usize),
            "round {round}: {inside} of {CROWD} entered a barrier for {COUNT}"
        );
        entered += inside;
        others += CROWD - inside;
    }
    held!("{entered} entered in rounds of {COUNT}, {others} did not")
}

async fn b3_another_count_is_refused(harness: &dyn Harness) -> Verdict {
    let (party, other) = (party(harness, 2).await?, open(harness, LONG).await?);
    let first = enter(harness, &party[0].1).await?;
    for count in [1, 3, 4] {
        let another = promptly(
            "an answer to another count",
            other.double_barrier("phase", count).enter(),
        )
        .await?;
        refused("another count", another, &[ErrorKind::Conflict])?;
    }
    still_waiting("after participants with another count were refused", &[&first]).await?;
    let inside = all_inside([first, entering(&party[1].1)]).await?;
    all_leave(inside).await?;
    let alone = done("a party of one", other.double_barrier("phase", 1).enter()).await?;
    done("leave", alone.leave()).await?;
    let none = promptly("an answer to a count of zero", other.double_barrier("phase", 0).enter()).await?;
    refused("a count of zero", none, &[ErrorKind::Config])?;
    held!("counts of 1, 3 and 4 were refused while one waited for 2, and a later round had another count")
}

async fn b4_participant_that_gave_up_does_not_count(harness: &dyn Harness) -> Verdict {
    let (party, baseline) = (party(harness, 3).await?, count_keys(harness).await?);
    let limit = Duration::from_millis(200);
    for _ in 0..2 {
        let timed = promptly("enter_timeout", party[0].1.enter_timeout(limit)).await?;
        refused("a participant that waits alone", timed, &[ErrorKind::TimedOut])?;
    }
    keys_return_to(baseline, harness).await?;
    let timed = promptly("enter_timeout", party[2].1.enter_timeout(limit)).await?;
    refused("a third participant, after two gave up", timed, &[ErrorKind::TimedOut])?;
    // The last participant is dropped at each await point, perhaps while it is let in.
    let others = std::cell::RefCell::new(Vec::new());
    let dropped = at_every_await_point(
        async || {
            for (_, barrier) in &party[..2] {
                let entry = enter(harness, barrier).await?;
                others.borrow_mut().push(entry);
            }
            Ok(party[2].1.enter())
        },
        async |last| {
            let mut others = std::mem::take(&mut *others.borrow_mut());
            if let Some(last) = last {
                return all_leave(all_inside(others).await?.into_iter().chain([last?]).collect()).await;
            }
            still_or_out(&mut others).await?;
            keys_return_to(baseline, harness).await
        },
    );
    let dropped = dropped.await?;
    passes(&party).await?;
    held!("two that timed out and {dropped} that were dropped did not count, and left nothing")
}

/// Ends participants beside one that was dropped: all were let in with it, and leave without it; or none was, and
/// they are dropped too.
async fn still_or_out(others: &mut Vec<Task<Result<Participant>>>) -> Step<()> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    let entered = others.iter().filter(|task| task.is_finished()).count();
    ensure!(
        entered == 0 || entered == others.len(),
        "{entered} of {} were let in beside one that was dropped",
        others.len()
    );
    match entered {
        0 => others.clear(),
        _ => all_leave(all_inside(others.drain(..)).await?).await?,
    }
    Ok(())
}
