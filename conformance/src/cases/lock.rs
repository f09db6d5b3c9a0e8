//! Locks: rules L1 to L4, L6 and L7.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_core::{ErrorKind, FenceGate, LockGuard, LossReason, Session};

pub use super::limits::l3_two_hundred_waiters_are_served;
use super::mass_death::{Wanted, survivor_is_served};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked};

/// How long a waiter may take to hear of a release when its connection broke meanwhile: to
/// connect anew takes time, but nowhere near the third of [`LONG`] after which things are checked.
const RECONNECT: Duration = Duration::from_secs(12);

/// A holder that stopped, and its successor.
struct Succession {
    process: Process,
    first: LockGuard,
    second: LockGuard,
    /// Whether the first counted itself valid when the second was granted.
    overlap: bool,
    waited: Duration,
    /// Keeps the second's and the first's leases alive.
    _sessions: (Session, Session),
}

/// Stops a holder for as long as it takes another to get the lock, and lets it go on.
async fn succession(harness: &dyn Harness) -> std::result::Result<Succession, Outcome> {
    let process = Process::start()?;
    let store = harness.connect().await?;
    let (session, first) = process.holds(store, harness.ttl(), "estate").await?;
    let other = open(harness, LONG).await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut waiting = waiter(other.locker("estate")?);
    arrivals.one_more().await?;
    let limit = session.ttl() + expiry_bound(harness).await? + SLACK;
    let paused = process.pause().await;
    let at = Instant::now();
    let second = waiting
        .end(limit, "the grant to the next after the holder was stopped")
        .await??;
    let (overlap, waited) = (first.is_valid(), at.elapsed());
    drop(paused);
    Ok(Succession {
        process,
        first,
        second,
        overlap,
        waited,
        _sessions: (session, other),
    })
}

/// L1: a stopped holder is succeeded only when it is no longer valid.
pub async fn l1_a_paused_holder_is_succeeded_after_its_end(harness: &dyn Harness) -> Verdict {
    let it = succession(harness).await?;
    ensure!(
        !it.overlap,
        "{:?} after the holder was stopped another was granted, and both count as valid",
        it.waited
    );
    ensure!(
        it.second.token() > it.first.token(),
        "the successor's token {} is not above {}",
        it.second.token(),
        it.first.token()
    );
    ensure!(it.second.is_valid(), "the successor's guard is not valid");
    held!(
        "granted to the next {:?} after the holder was stopped; tokens {}, {}",
        it.waited,
        it.first.token(),
        it.second.token()
    )
}

/// L2: a resource that checks tokens refuses a late writer. One that does not, does not: the
/// control that must let the write through, or the case would prove nothing.
pub async fn l2_a_stale_token_is_refused_at_the_resource(harness: &dyn Harness) -> Verdict {
    let fenced = Arc::new(FenceGate::new("nobody"));
    let unfenced = Arc::new(Mutex::new("nobody"));
    let it = succession(harness).await?;
    let write = |token, who: &'static str| {
        let (fenced, unfenced) = (Arc::clone(&fenced), Arc::clone(&unfenced));
        async move {
            *unfenced.lock().unwrap_or_else(PoisonError::into_inner) = who;
            fenced.write(token, |value| *value = who)
        }
    };
    let (old, new) = (it.first.token(), it.second.token());
    ensure!(
        write(new, "the successor").await.is_ok(),
        "the valid holder's write was refused"
    );
    // The first goes on where it was stopped, without a look at its guard.
    let late = it
        .process
        .run(write(old, "the one who was stopped"))
        .await?;
    let (protected, open) = (
        fenced.read(|value| *value),
        *unfenced.lock().unwrap_or_else(PoisonError::into_inner),
    );
    if open != "the one who was stopped" {
        return Err(Outcome::not_run(
            "the unfenced control did not take the late write",
        ));
    }
    ensure!(
        late.is_err() && protected == "the successor",
        "a write under the old token {old} passed the gate that had seen {new}"
    );
    held!("the gate refused token {old} after {new}; without a gate the late write went through")
}

/// L3: `try_lock` does not overtake those who wait.
pub async fn l3_try_lock_does_not_overtake(harness: &dyn Harness) -> Verdict {
    let (holder, patient, hasty) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    for _ in 0..5 {
        let guard = promptly("lock", holder.locker("door")?.lock()).await??;
        let mut arrivals = Arrivals::watch(harness).await?;
        let mut waiting = waiter(patient.locker("door")?);
        arrivals.one_more().await?;
        let pushing = hasty.locker("door")?;
        let mut push = spawn(async move {
            loop {
                match pushing.try_lock().await {
                    Err(e) if e.kind() == ErrorKind::WouldBlock => tokio::task::yield_now().await,
                    Err(e) => return Err(e),
                    Ok(guard) => {
                        let token = guard.token();
                        return guard.release().await.map(|()| token);
                    }
                }
            }
        });
        give_back(guard).await?;
        let waited = waiting
            .end(PROMPT, "the grant to the one who waited")
            .await??;
        let token = waited.token();
        give_back(waited).await?;
        let pushed = push
            .end(PROMPT, "the grant to the one who came later")
            .await??;
        ensure!(
            pushed > token,
            "try_lock got token {pushed} before one who stood in line and got {token}"
        );
    }
    held!("five times the one in line came first")
}

/// L3: what operators do to the store in passing does not leave a waiter asleep.
pub async fn l3_no_wake_up_is_lost_in_a_disturbance(harness: &dyn Harness) -> Verdict {
    let (holder, waiting) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let operator = operator(harness)?;
    let mut took = Vec::new();
    for round in 0..3 {
        let guard = within(RECONNECT, "lock", holder.locker("bed")?.lock()).await??;
        let mut arrivals = Arrivals::watch(harness).await?;
        let mut sleeper = waiter(waiting.locker("bed")?);
        arrivals.one_more().await?;
        let mut guard = Some(guard);
        // The release before, amid and after it.
        let at = Instant::now();
        if round == 0
            && let Some(guard) = guard.take()
        {
            let_go(guard).await?;
        }
        if round == 1
            && let Some(guard) = guard.take()
        {
            let (released, disturbed) = tokio::join!(let_go(guard), operator.disturb());
            released?;
            disturbed?;
        } else {
            operator.disturb().await?;
        }
        if let Some(guard) = guard.take() {
            let_go(guard).await?;
        }
        let woken = sleeper
            .end(RECONNECT, &format!("the waiter's grant in round {round}"))
            .await??;
        took.push(at.elapsed());
        let_go(woken).await?;
    }
    held!("granted {took:?} after a release around which the store was disturbed")
}

/// L3: those who wait keep their places when the store restarts.
pub async fn l3_waiters_keep_their_places_in_a_restart(harness: &dyn Harness) -> Verdict {
    let (holder, one, two) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    let guard = promptly("lock", holder.locker("line")?.lock()).await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut first = waiter(one.locker("line")?);
    arrivals.one_more().await?;
    let mut second = waiter(two.locker("line")?);
    arrivals.one_more().await?;
    control("the restart", operator(harness)?.restart()).await?;
    let_go(guard).await?;
    let first = first.end(RECONNECT, "the first waiter's grant").await??;
    ensure!(
        !second.is_finished(),
        "both waiters were granted after the restart"
    );
    let token = first.token();
    let_go(first).await?;
    let second = second.end(RECONNECT, "the second waiter's grant").await??;
    ensure!(
        second.token() > token,
        "the second waiter's token {} is not above {token}",
        second.token()
    );
    held!("two waiters were granted in their order after the restart")
}

/// L3: a dead waiter at the head is in the way no longer than stated.
pub async fn l3_a_dead_waiter_delays_no_longer_than_stated(harness: &dyn Harness) -> Verdict {
    let bound = expiry_bound(harness).await?;
    let holder = open(harness, LONG).await?;
    let guard = promptly("lock", holder.locker("line")?.lock()).await??;
    let process = Process::start()?;
    let (store, ttl) = (harness.connect().await?, harness.ttl());
    let doomed = process
        .run(async move { open_on(&store, ttl).await })
        .await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let handle = doomed.locker("line")?;
    process.start_in(async move {
        // Never granted: its process dies first.
        let _guard = handle.lock().await;
        std::future::pending::<()>().await;
    });
    arrivals.one_more().await?;
    let other = open(harness, LONG).await?;
    let mut living = waiter(other.locker("line")?);
    arrivals.one_more().await?;
    process.kill().await;
    let killed = Instant::now();
    give_back(guard).await?;
    let limit = doomed.ttl() + bound + SLACK;
    let granted = living
        .end(limit, "the grant to the one behind a dead waiter")
        .await??;
    let took = killed.elapsed();
    give_back(granted).await?;
    held!(
        "granted {took:?} after the waiter ahead died; its TTL was {:?}, the stated bound is {bound:?}",
        doomed.ttl()
    )
}

/// A waiter, the lock it waits for, and who comes after it.
struct Queue {
    guard: LockGuard,
    waiting: Task<tenure_core::Result<LockGuard>>,
    after: Task<tenure_core::Result<LockGuard>>,
    _sessions: [Session; 2],
}

async fn queue(harness: &dyn Harness, waiter_of: &Session) -> std::result::Result<Queue, Outcome> {
    let (holder, last) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let guard = promptly("lock", holder.locker("line")?.lock()).await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let waiting = waiter(waiter_of.locker("line")?);
    arrivals.one_more().await?;
    let after = waiter(last.locker("line")?);
    arrivals.one_more().await?;
    Ok(Queue {
        guard,
        waiting,
        after,
        _sessions: [holder, last],
    })
}

impl Queue {
    /// The waiter ends with an error within `limit`, and is in nobody's way after `clear`.
    async fn judge(mut self, limit: Duration, clear: Duration, reason: LossReason) -> Verdict {
        let at = Instant::now();
        let answer = self
            .waiting
            .end(limit, "the waiter's end with its session")
            .await?;
        let told = at.elapsed();
        let error = refused("a waiter whose session ended", answer, &[ErrorKind::Lost])?;
        ensure!(
            error.loss() == Some(reason),
            "the waiter's error says {:?} where `{reason}` is the truth: {error}",
            error.loss(),
            error = error.chain()
        );
        give_back(self.guard).await?;
        let next = self
            .after
            .end(clear, "the grant to the one behind it")
            .await??;
        give_back(next).await?;
        held!("the waiter was told `{reason}` after {told:?}, and the one behind it came next")
    }
}

/// L6: a waiter whose session was revoked by an operator gets an error.
pub async fn l6_a_waiter_ends_when_its_session_is_revoked(harness: &dyn Harness) -> Verdict {
    let session = open(harness, harness.ttl()).await?;
    let limit = session.ttl() + SLACK;
    let queue = queue(harness, &session).await?;
    operator(harness)?.revoke(session.id()).await?;
    queue.judge(limit, PROMPT, LossReason::Revoked).await
}

/// L6: a waiter that was removed together with the holder before it is not granted in its place.
pub async fn l6_a_waiter_deleted_with_its_predecessor_is_not_granted(
    harness: &dyn Harness,
) -> Verdict {
    const ROUNDS: usize = 4;
    let mut deleted = 0;
    for round in 0..ROUNDS {
        for second_holds in [false, true] {
            revoked_with_its_holder(harness, second_holds)
                .await
                .map_err(|outcome| in_round(round, outcome))?;
        }
        for order in [Order::WaiterFirst, Order::AtOnce] {
            deleted += usize::from(
                deleted_with_its_holder(harness, order)
                    .await
                    .map_err(|outcome| in_round(round, outcome))?,
            );
        }
    }
    held!(
        "{} times a session was revoked that held and waited, and {deleted} times a holding was deleted with the wait behind it; no waiter was granted what it had lost",
        ROUNDS * 2
    )
}

fn in_round(round: usize, outcome: Outcome) -> Outcome {
    outcome.when(format_args!("in round {round}, "))
}

/// Holder and waiter of one session, which an operator revokes: both end with it. A store may
/// treat a session's first ask for a name differently from its second: either of them holds.
async fn revoked_with_its_holder(
    harness: &dyn Harness,
    second_holds: bool,
) -> std::result::Result<(), Outcome> {
    let session = open(harness, harness.ttl()).await?;
    let handle = session.locker("both")?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut guard = promptly("lock", handle.lock()).await??;
    arrivals.one_more().await?;
    let mut waiting = waiter(handle.clone());
    arrivals.one_more().await?;
    if second_holds {
        give_back(guard).await?;
        guard = waiting.end(PROMPT, "the second ask's grant").await??;
        arrivals = Arrivals::watch(harness).await?;
        waiting = waiter(handle);
        arrivals.one_more().await?;
    }
    operator(harness)?.revoke(session.id()).await?;
    let limit = session.ttl() + SLACK;
    let answer = waiting
        .end(
            limit,
            "the end of a waiter that was revoked with its holder",
        )
        .await?;
    refused(
        "a waiter whose session was revoked, and with it the holder before it",
        answer,
        &[ErrorKind::Lost],
    )?;
    drop(guard);
    Ok(())
}

/// How an operator removes a holder and the waiter behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The waiter is gone before the holder is: there is no moment at which it is at the head.
    WaiterFirst,
    /// Both are asked for at the same time.
    AtOnce,
}

/// Holder and waiter of two sessions, whose keys an operator deletes. The waiter may take a new
/// place, and between the two deletions it may be granted; but it must not count as valid while
/// another does. Says whether there was anything to delete: a place in line may leave no key.
async fn deleted_with_its_holder(
    harness: &dyn Harness,
    order: Order,
) -> std::result::Result<bool, Outcome> {
    let (holder, behind, third) = (
        open(harness, LONG).await?,
        open(harness, harness.ttl()).await?,
        open(harness, LONG).await?,
    );
    let operator = operator(harness)?;
    let guard = promptly("lock", holder.locker("pair")?.lock()).await??;
    let before = operator.keys().await?;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut waiting = waiter(behind.locker("pair")?);
    arrivals.one_more().await?;
    let mut place = operator.keys().await?;
    place.retain(|key| !before.contains(key));
    let others = place.len();
    // A stage may list more of a waiter than its place.
    place.retain(|key| key.contains("pair"));
    let [place] = place.as_slice() else {
        if others > 0 {
            return Err(Outcome::not_run(format!(
                "which of {others} keys is the waiter's place cannot be told"
            )));
        }
        return Ok(false);
    };
    if order == Order::WaiterFirst {
        operator.delete(place).await?;
        operator.delete(guard.key()).await?;
    } else {
        let (one, two) = tokio::join!(operator.delete(guard.key()), operator.delete(place));
        one?;
        // A waiter that heard of the first may have left, or had the lock, by then.
        let _ = two;
    }
    let limit = behind.ttl() + SLACK;
    let answer = waiting
        .end(
            limit,
            "the end of a waiter that was deleted with its holder",
        )
        .await?;
    let granted = match answer {
        Ok(granted) => granted,
        Err(error) if error.kind() == ErrorKind::Lost => return Ok(true),
        Err(error) => return Err(error.into()),
    };
    let at = Instant::now();
    let probe = third.locker("pair")?;
    while granted.is_valid() {
        match promptly("an answer to try_lock", probe.try_lock()).await? {
            Ok(another) => {
                // What was deleted while it was held may be missed only by the next checks.
                let patience = match order {
                    Order::WaiterFirst => Duration::ZERO,
                    Order::AtOnce => limit,
                };
                let _ = tokio::time::timeout(patience, granted.lost()).await;
                ensure!(
                    !granted.is_valid() || !another.is_valid(),
                    "{order:?}: a waiter was granted under token {} in the place of the holder with which it was deleted, another under {}; after {:?} both count as valid",
                    granted.token(),
                    another.token(),
                    at.elapsed()
                );
                let_go(another).await?;
                return Ok(true);
            }
            // It has a place after all.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if at.elapsed() > Duration::from_millis(600) {
                    let_go(granted).await?;
                    return Ok(true);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// L7: when an operator deletes a holding, its holder is told though its session lives.
pub async fn l7_a_deleted_holding_is_noticed(harness: &dyn Harness) -> Verdict {
    let session = open(harness, harness.ttl()).await?;
    let guard = promptly("lock", session.locker("deleted")?.lock()).await??;
    let kept = promptly("lock", session.locker("kept")?.lock()).await??;
    let at = Instant::now();
    operator(harness)?.delete(guard.key()).await?;
    let limit = session.ttl() + SLACK;
    let reason = within(limit, "the loss signal after a deletion", guard.lost()).await?;
    let noticed = at.elapsed();
    ensure!(
        reason == LossReason::Revoked && !guard.is_valid(),
        "an operator deleted the holding, and the loss says `{reason}`"
    );
    ensure!(
        session.is_valid() && kept.is_valid(),
        "the deletion of one holding ended its session or another holding"
    );
    held!(
        "noticed after {noticed:?} with a TTL of {:?}",
        session.ttl()
    )
}

/// L7: the holder of a deleted holding does not free the lock for the one who has it now.
pub async fn l7_releasing_a_deleted_holding_spares_the_successor(harness: &dyn Harness) -> Verdict {
    let (session, other, third) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    let guard = promptly("lock", session.locker("deleted")?.lock()).await??;
    let mut arrivals = Arrivals::watch(harness).await?;
    let mut next = waiter(other.locker("deleted")?);
    arrivals.one_more().await?;
    operator(harness)?.delete(guard.key()).await?;
    let next = next
        .end(PROMPT, "the grant to the next after a deletion")
        .await??;
    ensure!(
        next.token() > guard.token(),
        "the successor's token {} is not above {}",
        next.token(),
        guard.token()
    );
    let answer = promptly("an answer", guard.release()).await?;
    refused("a release of a deleted holding", answer, &[ErrorKind::Lost])?;
    stays_taken(&third.locker("deleted")?, "the successor").await?;
    give_back(next).await?;
    held!("the release said Lost, and the successor kept the lock")
}

/// How a process lets go of a guard whose session it detaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LetsGo {
    /// Begins a release before it detaches, and does not wait for it.
    BeforeDetach,
    /// Drops the guard between the detach and the resume.
    BeforeResume,
    /// Drops it when it has been reclaimed elsewhere.
    ByDrop,
    /// Releases it when it has been reclaimed elsewhere.
    ByRelease,
}

/// L7: whatever a process still does about a lock that was reclaimed elsewhere does not free it.
pub async fn l7_a_late_release_spares_a_reclaimed_holding(harness: &dyn Harness) -> Verdict {
    let (store, other) = (harness.connect().await?, open(harness, LONG).await?);
    let mut kept = Vec::new();
    for way in [
        LetsGo::BeforeDetach,
        LetsGo::BeforeResume,
        LetsGo::ByDrop,
        LetsGo::ByRelease,
    ] {
        let name = format!("heirloom-{way:?}");
        let probe = other.locker(name.as_str())?;
        let session = open(harness, LONG).await?;
        let guard = promptly("lock", session.locker(name.as_str())?.lock()).await??;
        let token = guard.token();
        let mut guard = Some(guard);
        if way == LetsGo::BeforeDetach
            && let Some(guard) = guard.take()
        {
            let _ = give_up_after(1, PROMPT, guard.release()).await;
        }
        let id = promptly("detach", session.detach()).await??;
        if way == LetsGo::BeforeResume {
            drop(guard.take());
        }
        let resumed = promptly("resume", store.resume(&id)).await??;
        let handle = resumed.locker(name.as_str())?;
        let reclaimed = match promptly("an answer to reclaim", handle.reclaim(token)).await? {
            // What was released before may be gone, or may have been left to be reclaimed.
            Err(error) if way == LetsGo::BeforeDetach && error.kind() == ErrorKind::Lost => {
                give_back(becomes_free(PROMPT, "after a release and a detach", &probe).await?)
                    .await?;
                promptly("close", resumed.close()).await??;
                continue;
            }
            answer => answer?,
        };
        match (way, guard.take()) {
            (LetsGo::ByRelease, Some(guard)) => {
                let answer = promptly("an answer", guard.release()).await?;
                let what = "a release of what was reclaimed elsewhere";
                refused(what, answer, &[ErrorKind::Lost])?;
            }
            (_, guard) => drop(guard),
        }
        stays_taken(
            &probe,
            &format!("one who reclaimed it, let go of {way:?} by the first,"),
        )
        .await?;
        ensure!(
            reclaimed.is_valid() && reclaimed.token() == token,
            "reclaimed under token {token}, let go of {way:?} by the first, and then lost: {:?}",
            reclaimed.loss()
        );
        give_back(reclaimed).await?;
        give_back(becomes_free(PROMPT, "after the release", &probe).await?).await?;
        promptly("close", resumed.close()).await??;
        kept.push(way);
    }
    held!("what was reclaimed stayed held though the first let go of it: {kept:?}")
}

/// L7: a release that the store did not confirm is repeated until it does.
pub async fn l7_an_unconfirmed_release_is_repeated(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let session = promptly("open", open_on(&store, LONG)).await??;
    let other = open(harness, LONG).await?;
    let guard = promptly("lock", session.locker("unconfirmed")?.lock()).await??;
    link.silence();
    // Given up by its caller, who has better things to do.
    let _ = tokio::time::timeout(Duration::from_millis(300), guard.release()).await;
    link.heal();
    let healed = Instant::now();
    let next = becomes_free(
        RECONNECT,
        "after the silence",
        &other.locker("unconfirmed")?,
    )
    .await?;
    let took = healed.elapsed();
    give_back(next).await?;
    held!("free {took:?} after the silence in which it was released; TTL {LONG:?}")
}

/// L3: a holder and many waiters die at the same moment.
pub async fn l3_a_mass_death_delays_no_longer_than_stated(harness: &dyn Harness) -> Verdict {
    survivor_is_served(harness, Wanted::Lock).await
}

/// L7: one who lost the lock is told so, and does not free it for the one who has it now.
pub async fn l7_a_late_release_spares_the_successor(harness: &dyn Harness) -> Verdict {
    let it = succession(harness).await?;
    let probe = open(harness, LONG).await?.locker("estate")?;
    let first = it.first;
    let answer = it.process.run(async move { first.release().await }).await?;
    refused(
        "a release by one who was stopped",
        answer,
        &[ErrorKind::Lost],
    )?;
    // What core sends after it in the background must not free the lock either.
    stays_taken(&probe, "the successor").await?;
    ensure!(it.second.is_valid(), "the successor's guard was lost");
    give_back(it.second).await?;
    held!("the late release said Lost, and the successor kept the lock")
}
