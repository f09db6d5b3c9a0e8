//! The fixtures of the rules: a holder, another session that wants the same objects, and scenes in which one wait serves
//! all roles.

use std::time::Duration;

use futures_util::future::{join, join_all};
use tenure_core::{ErrorKind, LossReason, Result, Session};
use tokio::time::Instant;

use super::{Held, Role};
use crate::harness::{Harness, Link};
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::*;

/// Returns the outcome of each role: `set` prepares each, `event` happens once for all, then `judge` judges all side by
/// side, and `meanwhile` runs beside them.
///
/// A role whose preparation failed is not judged further; the others go on without it.
pub(super) async fn play<S, E>(
    roles: &[Role],
    set: impl AsyncFn(Role) -> Step<S>,
    event: impl AsyncFnOnce(&[S]) -> Step<E>,
    meanwhile: impl Future<Output = ()>,
    judge: impl AsyncFn(Role, S, &E) -> Verdict,
) -> Step<Vec<Outcome>> {
    let (mut ready, mut states, mut outcomes) = (Vec::new(), Vec::new(), Vec::new());
    for role in roles {
        // One after the other: a waiter's arrival shows only as one more key in the store.
        match set(*role).await {
            Ok(state) => {
                ready.push((*role, outcomes.len()));
                states.push(state);
                outcomes.push(Outcome::not_run("not judged"));
            }
            Err(outcome) => outcomes.push(outcome),
        }
    }
    if ready.is_empty() {
        return Ok(outcomes);
    }
    let happened = event(&states).await?;
    let judged = ready
        .iter()
        .zip(states)
        .map(|((role, _), state)| judge(*role, state, &happened));
    let ((), verdicts) = join(meanwhile, join_all(judged)).await;
    for (verdict, (_, place)) in verdicts.into_iter().zip(ready) {
        outcomes[place] = verdict.unwrap_or_else(|outcome| outcome);
    }
    Ok(outcomes)
}

/// A scene in which nothing happens while the roles are judged.
pub(super) async fn nothing() {}

/// Returns the outcomes of a scene; one that could not be set up judges no role.
pub(crate) fn of_all(roles: &[Role], outcomes: Step<Vec<Outcome>>) -> Vec<Outcome> {
    outcomes.unwrap_or_else(|outcome| vec![outcome; roles.len()])
}

/// Returns the name of an object of `role`: the roles of a scene do not meet, although some share a primitive.
pub(super) fn named(what: &str, role: Role) -> String {
    format!("{what} {}", role.word())
}

/// The objects that the holder of a [`Fixture`] has. One object alone would prove nothing about a second.
const NAMES: [&str; 2] = ["fixture", "fixture/2"];

/// A holder, and another session that wants its objects.
pub(crate) struct Fixture {
    pub(crate) holder: Session,
    pub(crate) other: Session,
}

impl Fixture {
    /// Opens the sessions, the holder's with `ttl`.
    pub(crate) async fn open(harness: &dyn Harness, ttl: Duration) -> Step<Self> {
        Ok(Self {
            holder: open(harness, ttl).await?,
            other: open(harness, LONG).await?,
        })
    }

    /// Opens the sessions, the holder's over a link that can be disturbed.
    pub(super) async fn linked(harness: &dyn Harness, ttl: Duration) -> Step<(Self, Box<dyn Link>)> {
        let (holder, link) = open_linked(harness, ttl).await?;
        let other = open(harness, LONG).await?;
        Ok((Self { holder, other }, link))
    }

    /// Lets the holder acquire the objects of `role`.
    pub(crate) async fn hold(&self, role: Role) -> Step<Vec<Held>> {
        let mut all = Vec::new();
        for name in NAMES {
            let name = named(name, role);
            done("enqueue", role.prepare(&self.other, &name)).await?;
            let held = done("a grant of what is free", role.acquire(&self.holder, &name)).await?;
            let came = held.parts().len();
            ensure!(came == role.units(), "of {} items {came} came together", role.units());
            all.push(held);
        }
        Ok(all)
    }

    /// Checks that no other session is granted the objects of `role`.
    pub(crate) async fn is_kept(&self, role: Role, when: &str) -> Step<()> {
        for name in NAMES {
            let kept = is_kept(role, &self.other, &named(name, role), when).await;
            kept.map_err(|outcome| self.unless_starved(outcome))?;
        }
        Ok(())
    }

    /// Checks at intervals for `period` that no other session is granted the objects of `role`.
    pub(super) async fn is_kept_for(&self, role: Role, period: Duration, when: &str) -> Step<()> {
        let until = Instant::now() + period;
        while Instant::now() < until {
            self.is_kept(role, when).await?;
            tokio::time::sleep((period / 12).min(until - Instant::now())).await;
        }
        self.is_kept(role, when).await
    }

    /// Checks like [`is_kept_for`](Self::is_kept_for) while nothing renews the session: answers after `deadline` judge
    /// nothing.
    pub(super) async fn is_kept_until(&self, role: Role, period: Duration, deadline: Instant, when: &str) -> Step<()> {
        let kept = self.is_kept_for(role, period, when).await;
        in_time!(
            kept.is_ok() || Instant::now() < deadline,
            "the answers took so long that the lease was over"
        );
        kept
    }

    /// Checks that the holder believes what it holds to be valid.
    pub(crate) fn is_valid(&self, all: &[Held], when: &str) -> Step<()> {
        match all.iter().find(|held| !held.is_valid()) {
            None => Ok(()),
            Some(lost) => Err(self.unless_starved(Outcome::violated(format!(
                "{when}, the holder had lost it: {:?}",
                lost.loss()
            )))),
        }
    }

    /// Turns a violation into a missing judgement if the holder knows that it did not renew in time.
    fn unless_starved(&self, outcome: Outcome) -> Outcome {
        match self.holder.loss() {
            Some(LossReason::Expired | LossReason::Unreachable) => {
                Outcome::unjudged(format!("the lease was not renewed: {outcome}"))
            }
            _ => outcome,
        }
    }

    /// Waits until the session was just renewed, so that nearly a whole TTL is left; returns its deadline.
    pub(super) async fn renewed(&self) -> Step<Instant> {
        let ttl = self.holder.ttl();
        let renewed = async {
            let mut before = self.holder.remaining();
            loop {
                tokio::time::sleep(Duration::from_millis(2)).await;
                let left = self.holder.remaining();
                if left > before {
                    break Instant::now() + left.min(ttl);
                }
                before = left;
            }
        };
        within(ttl + slack(), "a renewal", renewed).await
    }

    /// Waits until the objects of `role` are free, up to `limit`, and ends what the other session was granted.
    pub(super) async fn becomes_free(&self, role: Role, limit: Duration, what: &str) -> Step<Duration> {
        let started = Instant::now();
        for name in NAMES {
            let left = limit.saturating_sub(started.elapsed());
            let held = becomes_free(role, &self.other, &named(name, role), left, what).await?;
            done("the end of what was freed", held.finish()).await?;
        }
        Ok(started.elapsed())
    }

    /// Starts a waiter for each object of `role`; none for a participant, whose waiters wait for others.
    pub(super) async fn waiters(&self, harness: &dyn Harness, role: Role) -> Step<Vec<Task<Result<Held>>>> {
        let mut waiters = Vec::new();
        if role != Role::Participant {
            for name in NAMES {
                let name = named(name, role);
                waiters.push(arrived(harness, role.opponent(), &self.other, &name).await?);
            }
        }
        Ok(waiters)
    }
}

/// Checks that `other` is not granted an object that another session holds.
pub(super) async fn is_kept(role: Role, other: &Session, name: &str, when: &str) -> Step<()> {
    let attempts: &[Role] = match role {
        Role::Writer => &[Role::Reader, Role::Writer],
        Role::Reader => &[Role::Writer],
        _ => &[role],
    };
    for attempt in attempts {
        let answer = done("an answer to a try", attempt.attempt(other, name)).await?;
        if let Some(granted) = answer {
            // Release first: the second holder must exist no longer than the check needs.
            let _ = promptly("a release", granted.release()).await?;
            return Err(Outcome::violated(format!(
                "{when}, what a {} holds was granted to another",
                role.word()
            )));
        }
    }
    Ok(())
}

/// Tries until the whole object is free, for no longer than `limit`.
pub(super) async fn becomes_free(role: Role, session: &Session, name: &str, limit: Duration, what: &str) -> Step<Held> {
    let started = Instant::now();
    let mut granted: Option<Held> = None;
    loop {
        let attempt = role.opponent().attempt(session, name);
        match (done("an answer to a try", attempt).await?, &mut granted) {
            (Some(more), None) => granted = Some(more),
            (Some(more), Some(granted)) => granted.join(more),
            (None, _) => {
                in_time!(
                    started.elapsed() < limit,
                    "{what}: after {limit:?}, {} of {} were free",
                    granted.as_ref().map_or(0, |granted| granted.parts().len()),
                    role.units()
                );
                tokio::time::sleep(LOOK).await;
            }
        }
        if let Some(all) = granted.take_if(|granted| granted.parts().len() >= role.units()) {
            return Ok(all);
        }
    }
}

/// A holder, and a waiter that has arrived behind it.
pub(super) struct Contention {
    pub(super) held: Held,
    pub(super) waiter: Task<Result<Held>>,
}

impl Contention {
    /// Lets `holder` acquire as `held`, and `other` wait as `waiting`.
    pub(super) async fn set(
        harness: &dyn Harness,
        (held, waiting): (Role, Role),
        holder: &Session,
        other: &Session,
        name: &str,
    ) -> Step<Self> {
        if held == Role::Participant {
            // A participant that leaves waits until the other has left.
            let (first, second) = (holder.double_barrier(name, 2), other.double_barrier(name, 2));
            let both = async { tokio::try_join!(first.enter(), second.enter()) };
            let (first, second) = done("the entry of both", both).await?;
            let waiter = spawn(async move { second.leave().await.map(|()| Held::Passed) });
            settle().await;
            return Ok(Self {
                held: Held::Participant(first),
                waiter,
            });
        }
        done("enqueue", held.prepare(holder, name)).await?;
        let held = done("a grant of what is free", held.acquire(holder, name)).await?;
        let waiter = arrived(harness, waiting, other, name).await?;
        Ok(Self { held, waiter })
    }

    /// Checks that the waiter still waits.
    pub(super) fn waits(&self, when: &str) -> Step<()> {
        ensure!(!self.waiter.is_finished(), "{when}, the wait ended");
        Ok(())
    }
}

/// Starts a waiter, and returns it once it has arrived in the wait queue.
pub(super) async fn arrived(
    harness: &dyn Harness,
    role: Role,
    session: &Session,
    name: &str,
) -> Step<Task<Result<Held>>> {
    let mut arrivals = Arrivals::watch(harness).await?;
    let waiter = waiter(role, session, name);
    match role {
        // The waiter of a barrier leaves no key in the store.
        Role::Hold => settle().await,
        _ => arrivals.one_more().await?,
    }
    Ok(waiter)
}

/// Starts a waiter.
pub(super) fn waiter(role: Role, session: &Session, name: &str) -> Task<Result<Held>> {
    let (session, name) = (session.clone(), name.to_owned());
    spawn(async move { role.wait(&session, &name).await })
}

/// Ends a holding that a fault may have cost its holder already.
pub(super) async fn end(held: Held) -> Step<()> {
    match promptly("an answer to a release", held.finish()).await? {
        Err(error) if !matches!(error.kind(), ErrorKind::Lost | ErrorKind::Unavailable) => Err(error.into()),
        _ => Ok(()),
    }
}
