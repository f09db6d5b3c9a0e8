//! Barriers and double barriers: rules B1 to B4.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tenure_core::{
    BarrierHandle, DoubleBarrierHandle, ErrorKind, HoldFor, Inside, Result, Session,
};

use super::cancel::{QUIET, at_every_await_point, was_last};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::Harness;

/// Long enough for one who passes too early to be seen.
const A_WHILE: Duration = Duration::from_millis(300);

type Step<T> = std::result::Result<T, Outcome>;

fn sleeper(barrier: BarrierHandle) -> Task<Result<()>> {
    spawn(async move { barrier.wait().await })
}

fn entering(barrier: DoubleBarrierHandle) -> Task<Result<Inside>> {
    spawn(async move { barrier.enter().await })
}

fn leaving(inside: Inside) -> Task<Result<()>> {
    spawn(async move { inside.leave().await })
}

async fn none_passes<T>(what: &str, tasks: &[&Task<T>]) -> Step<()> {
    tokio::time::sleep(A_WHILE).await;
    ensure!(tasks.iter().all(|task| !task.is_finished()), "{what}");
    Ok(())
}

async fn release(barrier: &BarrierHandle) -> Step<bool> {
    Ok(promptly("a release", barrier.release()).await??)
}

/// B1: `wait` returns at once if nothing is held, else only after a release.
pub async fn b1_wait_returns_only_after_a_release(harness: &dyn Harness) -> Verdict {
    let (keeper, guest, other) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    let (held, seen) = (keeper.barrier("gate")?, guest.barrier("gate")?);
    promptly("wait at a free barrier", seen.wait()).await??;
    ensure!(!seen.is_held().await?, "a barrier that nobody held is held");
    promptly("hold", held.hold(HoldFor::Session)).await??;
    ensure!(seen.is_held().await?, "a held barrier is not held");
    let mut waiters = [sleeper(seen.clone()), sleeper(other.barrier("gate")?)];
    none_passes(
        "a waiter passed a held barrier",
        &waiters.each_ref().map(|waiter| waiter),
    )
    .await?;
    let limited = seen.wait_timeout(Duration::from_millis(50)).await;
    refused("wait_timeout", limited, &[ErrorKind::TimedOut])?;
    let at = Instant::now();
    // By another than the one who held it.
    ensure!(release(&seen).await?, "a release found nothing held");
    for waiter in &mut waiters {
        waiter.end(PROMPT, "a waiter's return").await??;
    }
    let took = at.elapsed();
    ensure!(!release(&held).await?, "a second release found it held");
    promptly("wait after the release", seen.wait()).await??;
    held!("two waiters went on {took:?} after the release, none before")
}

/// B1: one hold at a time, whoever asks.
pub async fn b1_a_second_hold_is_refused(harness: &dyn Harness) -> Verdict {
    let (first, second) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (mine, others) = (first.barrier("gate")?, second.barrier("gate")?);
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        promptly("hold", mine.hold(hold_for)).await??;
        for (whose, again) in [("another session's", &others), ("one's own", &mine)] {
            for hold_for in [HoldFor::Session, HoldFor::Good] {
                let refusal = promptly("hold", again.hold(hold_for)).await?;
                refused(whose, refusal, &[ErrorKind::Conflict])?;
            }
        }
        ensure!(mine.is_held().await?, "a refused hold ended the first");
        ensure!(release(&others).await?, "a release found nothing held");
        ensure!(!mine.is_held().await?, "a refused hold was left behind");
    }
    held!("every second hold was refused with Conflict")
}

/// B1: a hold for the session ends when that is closed, one for good does not.
pub async fn b1_a_hold_ends_with_its_session_or_outlives_it(harness: &dyn Harness) -> Verdict {
    let guest = open(harness, LONG).await?;
    let seen = guest.barrier("gate")?;
    let session = open(harness, LONG).await?;
    let held = session.barrier("gate")?;
    promptly("hold", held.hold(HoldFor::Session)).await??;
    let mut waiter = sleeper(seen.clone());
    none_passes("a waiter passed a held barrier", &[&waiter]).await?;
    promptly("close", session.close()).await??;
    waiter
        .end(PROMPT, "the end of a hold with its session")
        .await??;

    let session = open(harness, LONG).await?;
    promptly("hold", session.barrier("gate")?.hold(HoldFor::Good)).await??;
    let mut waiter = sleeper(seen.clone());
    promptly("close", session.close()).await??;
    none_passes("a hold for good ended with its session", &[&waiter]).await?;
    ensure!(
        seen.is_held().await?,
        "a hold for good ended with its session"
    );
    ensure!(
        release(&seen).await?,
        "what is held for good was not released"
    );
    waiter.end(PROMPT, "the waiter's return").await??;
    held!("the hold for a session ended with it, the one for good did not")
}

/// B1: a release wakes those who wait also if the barrier is held again right after it.
pub async fn b1_every_release_is_heard(harness: &dyn Harness) -> Verdict {
    const ROUNDS: usize = 20;
    let (keeper, guest) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (held, seen) = (keeper.barrier("gate")?, guest.barrier("gate")?);
    promptly("hold", held.hold(HoldFor::Session)).await??;
    for round in 0..ROUNDS {
        let mut waiter = sleeper(seen.clone());
        // It has met the hold: it asks, and is told so, in the order of this client's requests.
        tokio::time::sleep(Duration::from_millis(20)).await;
        ensure!(seen.is_held().await?, "the hold of round {round} is gone");
        ensure!(release(&held).await?, "a release found nothing held");
        promptly("hold", held.hold(HoldFor::Session)).await??;
        let what = format!("in round {round}, the return of one who waited through a release");
        waiter.end(PROMPT, &what).await??;
    }
    held!("{ROUNDS} releases, each with a new hold right after it, were all heard")
}

/// Sessions of `n` connections, and the double barrier that they meet at.
async fn party(harness: &dyn Harness, n: u32) -> Result<Vec<(Session, DoubleBarrierHandle)>> {
    let mut party = Vec::new();
    for _ in 0..n {
        let session = open(harness, LONG).await?;
        let barrier = session.double_barrier("phase", n)?;
        party.push((session, barrier));
    }
    Ok(party)
}

/// Enters; while the last generation has not left, again.
async fn when_it_opens(barrier: &DoubleBarrierHandle) -> Result<Inside> {
    loop {
        match barrier.enter().await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            entered => return entered,
        }
    }
}

async fn all_in(tasks: Vec<Task<Result<Inside>>>, limit: Duration) -> Step<Vec<Inside>> {
    let mut inside = Vec::new();
    for mut task in tasks {
        inside.push(
            task.end(limit, "an entry after the last had come")
                .await??,
        );
    }
    Ok(inside)
}

async fn all_out(inside: Vec<Inside>) -> Step<()> {
    let leaving: Vec<_> = inside.into_iter().map(leaving).collect();
    for mut task in leaving {
        task.end(PROMPT, "leaving, all having left").await??;
    }
    Ok(())
}

/// B2: nobody is let in before all have come, nor out before all have left.
pub async fn b2_nobody_passes_before_all_are_there(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 3).await?;
    let mut tasks = Vec::new();
    for (_, barrier) in &party[..2] {
        tasks.push(entering(barrier.clone()));
        let early: Vec<_> = tasks.iter().collect();
        none_passes("one was let in before all had come", &early).await?;
    }
    // Somebody who comes and is turned away wakes nobody for good.
    let other = open(harness, LONG).await?;
    for _ in 0..5 {
        let another = other.double_barrier("phase", 4)?;
        let refusal = promptly("an answer to another count", another.enter()).await?;
        refused("another count", refusal, &[ErrorKind::Conflict])?;
    }
    let early: Vec<_> = tasks.iter().collect();
    none_passes("one was let in before all had come", &early).await?;
    let at = Instant::now();
    tasks.push(entering(party[2].1.clone()));
    let mut inside = all_in(tasks, PROMPT).await?;
    let took = at.elapsed();
    let tokens: std::collections::HashSet<_> = inside.iter().map(|inside| inside.token()).collect();
    ensure!(tokens.len() == 3, "two participants have the same token");
    let last = inside.pop();
    let leaves: Vec<_> = inside.into_iter().map(leaving).collect();
    let early: Vec<_> = leaves.iter().collect();
    none_passes("one was let out before all had left", &early).await?;
    let at = Instant::now();
    if let Some(inside) = last {
        promptly("the last one's leaving", inside.leave()).await??;
    }
    for mut leave in leaves {
        leave.end(PROMPT, "leaving, all having left").await??;
    }
    held!(
        "let in {took:?} after the third had come, out {:?} after the last had left",
        at.elapsed()
    )
}

/// B2, B4: round after round, fast ones entering again while slow ones still leave.
pub async fn b2_generations_do_not_meet(harness: &dyn Harness) -> Verdict {
    const PARTY: usize = 5;
    const ROUNDS: usize = 30;
    let party = party(harness, 5).await?;
    let (came, left): (Arc<Vec<AtomicUsize>>, Arc<Vec<AtomicUsize>>) = (
        Arc::new((0..ROUNDS).map(|_| AtomicUsize::new(0)).collect()),
        Arc::new((0..ROUNDS).map(|_| AtomicUsize::new(0)).collect()),
    );
    let rounds = |seed: u64, barrier: DoubleBarrierHandle| {
        let (came, left) = (Arc::clone(&came), Arc::clone(&left));
        spawn(async move {
            let mut random = Random::seeded(seed);
            for round in 0..ROUNDS {
                came[round].fetch_add(1, Ordering::SeqCst);
                let inside = when_it_opens(&barrier).await?;
                let seen = came[round].load(Ordering::SeqCst);
                ensure!(
                    seen == PARTY,
                    "one was let in in round {round} when {seen} of {PARTY} had come"
                );
                // Some leave at once, others hold up the rest.
                if random.below(3) == 0 {
                    tokio::time::sleep(random.up_to(Duration::from_millis(8))).await;
                }
                left[round].fetch_add(1, Ordering::SeqCst);
                if random.below(4) == 0 {
                    // Leaves without waiting for the others, and is in nobody's way.
                    drop(inside);
                    continue;
                }
                inside.leave().await?;
                let seen = left[round].load(Ordering::SeqCst);
                ensure!(
                    seen == PARTY,
                    "one was let out in round {round} when {seen} of {PARTY} had left"
                );
            }
            Ok::<_, Outcome>(())
        })
    };
    let tasks: Vec<_> = (0_u64..)
        .zip(party.iter())
        .map(|(seed, (_, barrier))| rounds(seed, barrier.clone()))
        .collect();
    for mut task in tasks {
        task.end(Duration::from_secs(30), "the rounds of one participant")
            .await??;
    }
    held!("{PARTY} participants made {ROUNDS} rounds, and none met another generation")
}

/// B3: one too many is refused at once, until all have left; then the barrier serves again.
pub async fn b3_one_too_many_is_refused(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let late = open(harness, LONG).await?;
    let late = late.double_barrier("phase", 2)?;
    let baseline = count_keys(harness).await?;
    for _ in 0..2 {
        let tasks = party.iter().map(|(_, barrier)| entering(barrier.clone()));
        let mut inside = all_in(tasks.collect(), PROMPT).await?;
        let full = count_keys(harness).await?;
        let refusal = promptly("an answer to one too many", late.enter()).await?;
        refused("one too many", refusal, &[ErrorKind::Conflict])?;
        let last = inside.pop();
        let mut first = all_of(inside);
        // One has left: there is room, but not in this generation.
        keys_return_to(full.saturating_sub(1), PROMPT, harness).await?;
        let refusal = promptly("an answer to a latecomer", late.enter()).await?;
        refused("a latecomer", refusal, &[ErrorKind::Conflict])?;
        if let Some(inside) = last {
            promptly("the last one's leaving", inside.leave()).await??;
        }
        for task in &mut first {
            task.end(PROMPT, "leaving, all having left").await??;
        }
        keys_return_to(baseline, PROMPT, harness).await?;
    }
    held!("a third of two, and a latecomer, were refused with Conflict; the next round was let in")
}

fn all_of(inside: Vec<Inside>) -> Vec<Task<Result<()>>> {
    inside.into_iter().map(leaving).collect()
}

/// B3: many at once: as many as are wanted are let in, each of the others is refused or waits for
/// the next round, and no round is of another size.
pub async fn b3_a_crowd_is_let_in_by_the_party(harness: &dyn Harness) -> Verdict {
    const PARTY: usize = 3;
    const CROWD: usize = 7;
    let crowd = party(harness, 3).await?;
    let mut more = Vec::new();
    for (session, _) in &crowd {
        // Two tasks of one session are two participants.
        more.push(session.double_barrier("phase", 3)?);
        more.push(session.double_barrier("phase", 3)?);
    }
    more.push(crowd[0].1.clone());
    let mut seen = (0, 0);
    for round in 0..5 {
        let (came, go) = tokio::sync::watch::channel(false);
        let tasks: Vec<_> = more
            .iter()
            .map(|barrier| {
                let (barrier, mut go) = (barrier.clone(), go.clone());
                spawn(async move {
                    let entered = barrier.enter_timeout(Duration::from_secs(1)).await;
                    // Nobody leaves before all have their answer.
                    let _ = go.wait_for(|go| *go).await;
                    match entered {
                        Ok(inside) => inside.leave().await.map(|()| true),
                        Err(error) => match error.kind() {
                            ErrorKind::Conflict => Ok(false),
                            _ => Err(error),
                        },
                    }
                })
            })
            .collect();
        tokio::time::sleep(A_WHILE).await;
        let _ = came.send(true);
        let mut passed = 0;
        for mut task in tasks {
            match task.end(PROMPT, "an answer to one of the crowd").await? {
                Ok(true) => passed += 1,
                Ok(false) => seen.1 += 1,
                // Came when the others had left, and found too few for another round.
                Err(error) if error.kind() == ErrorKind::TimedOut => seen.1 += 1,
                Err(error) => return Err(error.into()),
            }
        }
        ensure!(
            passed > 0 && passed % PARTY == 0,
            "in round {round}, {passed} of {CROWD} were let in, by parties of {PARTY}"
        );
        seen.0 += passed;
    }
    held!("{} were let in, {} refused", seen.0, seen.1)
}

/// B3: those who do not agree on the count are refused, not the one who came first.
pub async fn b3_another_count_is_refused(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let other = open(harness, LONG).await?;
    let mut first = entering(party[0].1.clone());
    none_passes("one was let in alone", &[&first]).await?;
    for count in [1, 3] {
        let another = other.double_barrier("phase", count)?;
        let refusal = promptly("an answer to another count", another.enter()).await?;
        refused("another count", refusal, &[ErrorKind::Conflict])?;
        ensure!(!first.is_finished(), "one who was refused let another in");
    }
    let mut second = entering(party[1].1.clone());
    let inside = vec![
        first.end(PROMPT, "the first one's entry").await??,
        second.end(PROMPT, "the second one's entry").await??,
    ];
    let refusal = promptly("an answer", other.double_barrier("phase", 3)?.enter()).await?;
    refused(
        "another count while they are in",
        refusal,
        &[ErrorKind::Conflict],
    )?;
    all_out(inside).await?;
    let alone = other.double_barrier("phase", 1)?;
    promptly("a party of one", alone.enter())
        .await??
        .leave()
        .await?;
    refused(
        "a party of none",
        other.double_barrier("phase", 0),
        &[ErrorKind::Config],
    )?;
    held!("counts of 1 and 3 were refused where 2 was given, and nobody was let in by them")
}

/// A participant in a process of its own, which waits at the barrier or is inside.
async fn doomed(
    harness: &dyn Harness,
    process: &Process,
) -> std::result::Result<(Session, DoubleBarrierHandle), Outcome> {
    let (store, ttl) = (harness.connect().await?, harness.ttl());
    let opening = async move {
        let session = open_on(&store, ttl).await?;
        let barrier = session.double_barrier("phase", 2)?;
        Ok::<_, tenure_core::Error>((session, barrier))
    };
    Ok(process.run(opening).await??)
}

/// B4: one who died while waiting lets nobody in.
pub async fn b4_the_dead_let_nobody_in(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let process = Process::start()?;
    let (session, barrier) = doomed(harness, &process).await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    process.start_in(async move {
        let _inside = barrier.enter().await;
        std::future::pending::<()>().await;
    });
    arrivals.one_more().await?;
    process.kill().await;
    tokio::time::sleep(session.ttl() + bound + SLACK).await;
    let party = party(harness, 2).await?;
    let mut tasks = vec![entering(party[0].1.clone())];
    none_passes("one was let in with a dead one", &[&tasks[0]]).await?;
    tasks.push(entering(party[1].1.clone()));
    all_out(all_in(tasks, PROMPT).await?).await?;
    held!("a dead participant did not count: the next two let each other in")
}

/// B4: one who died inside keeps the others no longer than its lease; nor a later generation.
pub async fn b4_leaving_does_not_wait_for_the_dead(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let process = Process::start()?;
    let (session, barrier) = doomed(harness, &process).await?;
    let party = party(harness, 2).await?;
    let mut survivor = entering(party[0].1.clone());
    process
        .run(async move {
            let inside = barrier.enter().await;
            // The process ends with it inside.
            std::mem::forget(inside);
        })
        .await?;
    let inside = survivor.end(PROMPT, "the survivor's entry").await??;
    process.kill().await;
    let killed = Instant::now();
    let limit = session.ttl() + bound + SLACK;
    within(limit, "leaving when the other is dead", inside.leave()).await??;
    let took = killed.elapsed();
    let tasks = party.iter().map(|(_, barrier)| entering(barrier.clone()));
    all_out(all_in(tasks.collect(), PROMPT).await?).await?;
    held!(
        "left {took:?} after the other had died; its TTL was {:?}, the stated bound is {bound:?}",
        session.ttl()
    )
}

/// B4: when all have died inside, the barrier serves others.
pub async fn b4_a_barrier_outlives_its_participants(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let process = Process::start()?;
    let (session, one) = doomed(harness, &process).await?;
    let (_, two) = doomed(harness, &process).await?;
    process
        .run(async move {
            let both = tokio::join!(one.enter(), two.enter());
            std::mem::forget(both);
        })
        .await?;
    process.kill().await;
    tokio::time::sleep(session.ttl() + bound + SLACK).await;
    let party = party(harness, 2).await?;
    let mut tasks = vec![entering(party[0].1.clone())];
    none_passes("one was let in where the dead had been", &[&tasks[0]]).await?;
    tasks.push(entering(party[1].1.clone()));
    all_out(all_in(tasks, PROMPT).await?).await?;
    held!("after both participants had died inside, the next two were served as the first were")
}

/// B4: nor does one who gave up in the moment of being let in hold up the others.
pub async fn b4_a_cancelled_last_enter_holds_nobody_up(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let (caller, other) = (&party[0].1, &party[1].1);
    let baseline = count_keys(harness).await?;
    at_every_await_point!("the last enter", |polls| {
        let mut first = entering(other.clone());
        let mut arrivals = Arrivals {
            harness,
            seen: baseline,
        };
        arrivals.one_more().await?;
        let last = was_last(give_up_after(polls, QUIET, caller.enter()).await)?;
        // Whether it was let in in that moment or not: nobody is left inside with it.
        if let Ok(entered) = first.end(A_WHILE * 2, "an entry").await {
            promptly("leaving after a cancelled one", entered?.leave()).await??;
        }
        drop(first);
        alone_again(other).await?;
        keys_return_to(baseline, PROMPT, harness).await?;
        Ok(last)
    })
}

/// Until whoever enters a barrier for two waits alone: what was cancelled is taken back in the
/// background, promptly.
async fn alone_again(barrier: &DoubleBarrierHandle) -> Result<(), Outcome> {
    let start = Instant::now();
    loop {
        let met = match barrier.enter_timeout(Duration::from_millis(100)).await {
            Err(error) if error.kind() == ErrorKind::TimedOut => return Ok(()),
            Err(error) if error.kind() != ErrorKind::Conflict => return Err(error.into()),
            met => met,
        };
        if start.elapsed() > PROMPT {
            return Err(Outcome::violated(format!(
                "{PROMPT:?} after a cancelled enter the next one does not wait alone: {met:?}"
            )));
        }
        if let Ok(met) = met {
            promptly("leaving one who had gone away", met.leave()).await??;
        }
        // An answer may come without a pause in which anything is taken back.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// B2: who gave up leaving has left all the same.
pub async fn b2_a_cancelled_leave_still_leaves(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let baseline = count_keys(harness).await?;
    at_every_await_point!("leave", |polls| {
        let tasks = party.iter().map(|(_, barrier)| entering(barrier.clone()));
        let mut inside = all_in(tasks.collect(), PROMPT).await?;
        let (Some(one), Some(two)) = (inside.pop(), inside.pop()) else {
            return Err(Outcome::not_run("a party of two is not two"));
        };
        let last = was_last(give_up_after(polls, QUIET, one.leave()).await)?;
        promptly("leaving when the other gave up leaving", two.leave()).await??;
        keys_return_to(baseline, PROMPT, harness).await?;
        Ok(last)
    })
}

/// B4: a participant that is dropped at any await point of its entry does not count, and leaves nothing.
pub async fn b4_a_cancelled_enter_leaves_nothing(harness: &dyn Harness) -> Verdict {
    let party = party(harness, 2).await?;
    let (caller, other) = (&party[0].1, &party[1].1);
    let baseline = count_keys(harness).await?;
    let limited = caller.enter_timeout(Duration::from_millis(100)).await;
    refused("enter_timeout", limited, &[ErrorKind::TimedOut])?;
    at_every_await_point!("enter", |polls| {
        let last = was_last(give_up_after(polls, QUIET, caller.enter()).await)?;
        // Its request may still be on its way, and meet another's before it is taken back: once.
        let met = other.enter_timeout(Duration::from_millis(100)).await;
        let kinds = [ErrorKind::TimedOut, ErrorKind::Conflict];
        match met {
            Ok(met) => promptly("leaving one who had gone away", met.leave()).await??,
            refusal => drop(refused("one after a cancelled one", refusal, &kinds)?),
        }
        alone_again(other).await?;
        keys_return_to(baseline, PROMPT, harness).await?;
        Ok(last)
    })
}
