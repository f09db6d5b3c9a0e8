//! The stage of most rules: a holder, and another session that wants the same.

use std::time::Duration;

use tenure_core::{ErrorKind, Session};
use tokio::time::Instant;

use super::{BATCH, Held, Role, Step};
use crate::cases::tools::*;
use crate::harness::{Harness, Link, Linked};
use crate::patient::patience;

/// The objects that the holder of a [`Scene`] has: more than one, as one alone proves nothing of the second.
const NAMES: [&str; 3] = ["stage", "stage 2", "stage/3"];

/// A holder, and another session that wants what it holds.
pub(super) struct Scene {
    pub(super) role: Role,
    pub(super) holder: Session,
    pub(super) other: Session,
    pub(super) held: Vec<Held>,
}

impl Scene {
    /// The holder has several objects, on a connection of its own.
    pub(super) async fn set(harness: &dyn Harness, role: Role, ttl: Duration) -> Step<Self> {
        let holder = open(harness, ttl).await?;
        Self::with(harness, role, holder).await
    }

    /// As [`set`](Self::set), over a link that can be disturbed.
    pub(super) async fn linked(
        harness: &dyn Harness,
        role: Role,
        ttl: Duration,
    ) -> Step<(Self, Box<dyn Link>)> {
        let Linked { store, link } = harness.linked().await?;
        let holder = promptly("open", open_on(&store, ttl)).await??;
        Ok((Self::with(harness, role, holder).await?, link))
    }

    async fn with(harness: &dyn Harness, role: Role, holder: Session) -> Step<Self> {
        let other = open(harness, LONG).await?;
        let mut held = Vec::new();
        for name in NAMES {
            promptly("enqueue", role.prepare(&other, name)).await??;
            let had = promptly("a grant of what is free", role.acquire(&holder, name)).await??;
            ensure!(
                had.parts().len() == role.units(),
                "{} of {} items of a batch were delivered together",
                had.parts().len(),
                role.units()
            );
            held.push(had);
        }
        Ok(Self {
            role,
            holder,
            other,
            held,
        })
    }

    /// Everything is still the holder's. A grant to another while the holder counts itself valid is judged; without
    /// that, the holder may have been too slow to renew its lease.
    pub(super) async fn is_kept(&self, when: &str) -> Step<()> {
        for (name, held) in NAMES.iter().zip(&self.held) {
            let was_valid = held.is_valid();
            let kept = is_kept(self.role, &self.other, name, when).await;
            if let (Err(outcome), true) = (&kept, was_valid && !held.is_valid()) {
                return Err(crate::case::Outcome::cut_short(format!(
                    "{}; its holder had lost it: {:?}",
                    outcome.details(),
                    held.loss()
                )));
            }
            kept?;
        }
        Ok(())
    }

    /// Everything is kept for `period`; looks now and again.
    pub(super) async fn is_kept_for(&self, period: Duration, when: &str) -> Step<()> {
        let until = Instant::now() + period;
        while Instant::now() < until {
            self.is_kept(when).await?;
            tokio::time::sleep((period / 12).min(until - Instant::now())).await;
        }
        self.is_kept(when).await
    }

    /// Waits until the session was renewed a moment ago, so that nearly a whole TTL is left, and returns when that ends.
    /// How long the setting of the stage took on a busy machine is no matter then.
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
        within(ttl + SLACK, "a renewal", renewed).await
    }

    /// As [`is_kept_for`](Self::is_kept_for), in a silence: an answer that came after `deadline` says nothing.
    pub(super) async fn is_kept_in_a_silence(
        &self,
        period: Duration,
        deadline: Instant,
        when: &str,
    ) -> Step<()> {
        match self.is_kept_for(period, when).await {
            Err(_) if Instant::now() >= deadline => Err(crate::case::Outcome::not_run(
                "the answers took so long that the lease was over",
            )),
            judged => judged,
        }
    }

    /// The holder counts everything as its own.
    pub(super) fn is_valid(&self, when: &str) -> Step<()> {
        for held in &self.held {
            in_time!(
                held.is_valid(),
                "{when}, the holder had lost it: {:?}",
                held.loss()
            );
        }
        Ok(())
    }

    /// Everything becomes free within `limit`; ends what the other session got of it.
    pub(super) async fn becomes_free(&self, limit: Duration, what: &str) -> Step<Duration> {
        let started = Instant::now();
        for name in NAMES {
            let left = limit.saturating_sub(started.elapsed());
            let had = becomes_free(self.role, &self.other, name, left, what).await?;
            promptly("the end of what was freed", had.finish()).await??;
        }
        Ok(started.elapsed())
    }
}

/// Whether another holds all of it.
pub(super) async fn is_kept(role: Role, other: &Session, name: &str, when: &str) -> Step<()> {
    let attempts: &[Role] = match role {
        Role::Writer => &[Role::Reader, Role::Writer],
        Role::Reader => &[Role::Writer],
        _ => &[role],
    };
    for attempt in attempts {
        let answer = promptly("an answer to a try", attempt.attempt(other, name)).await??;
        if let Some(had) = answer {
            // Not a second holder for longer than it takes to say so.
            let _ = promptly("a release", had.release()).await?;
            return Err(crate::case::Outcome::violated(format!(
                "{when}, what a {} holds was granted to another",
                role.word()
            )));
        }
    }
    Ok(())
}

/// Tries until all of it is free, for no longer than `limit`.
pub(super) async fn becomes_free(
    role: Role,
    session: &Session,
    name: &str,
    limit: Duration,
    what: &str,
) -> Step<Held> {
    let started = Instant::now();
    let mut got: Option<Held> = None;
    loop {
        let attempt = role.opponent().attempt(session, name);
        match (promptly("an answer to a try", attempt).await??, &mut got) {
            (Some(more), None) => got = Some(more),
            (Some(more), Some(got)) => got.join(more),
            (None, _) => {
                if started.elapsed() >= limit * patience() {
                    return Err(crate::case::Outcome::late(format!(
                        "{what}: {limit:?} later {} of {} were free",
                        got.as_ref().map_or(0, |got| got.parts().len()),
                        role.units()
                    )));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        if let Some(all) = got.take_if(|got| got.parts().len() >= role.units()) {
            return Ok(all);
        }
    }
}

/// A holder, and a waiter that has arrived.
pub(super) struct Contest {
    pub(super) held: Held,
    pub(super) waiter: Task<tenure_core::Result<Held>>,
}

impl Contest {
    /// Lets `holder` have it as `held` and `rival` wait for it as `waiting`.
    pub(super) async fn set(
        harness: &dyn Harness,
        (held, waiting): (Role, Role),
        holder: &Session,
        rival: &Session,
        name: &str,
    ) -> Step<Self> {
        if held == Role::Participant {
            // One that leaves waits for the other inside.
            let (first, second) = (
                holder.double_barrier(name, 2)?,
                rival.double_barrier(name, 2)?,
            );
            let both = async { tokio::try_join!(first.enter(), second.enter()) };
            let (first, second) = promptly("the entry of both", both).await??;
            let waiter = spawn(async move { second.leave().await.map(|()| Held::Passed) });
            settle().await;
            return Ok(Self {
                held: Held::Inside(first),
                waiter,
            });
        }
        promptly("enqueue", held.prepare(holder, name)).await??;
        let held = promptly("a grant of what is free", held.acquire(holder, name)).await??;
        let mut arrivals = Arrivals::watch(harness).await?;
        let waiter = waits(waiting, rival, name);
        match waiting {
            // Places that leave no key.
            Role::Delivery | Role::Batch | Role::Hold => settle().await,
            _ => arrivals.one_more().await?,
        }
        Ok(Self { held, waiter })
    }

    /// The waiter has not been let in.
    pub(super) fn waits(&self, when: &str) -> Step<()> {
        ensure!(!self.waiter.is_finished(), "{when}, the waiter was let in");
        Ok(())
    }
}

/// A task that waits for `role`.
pub(super) fn waits(role: Role, session: &Session, name: &str) -> Task<tenure_core::Result<Held>> {
    let (session, name) = (session.clone(), name.to_owned());
    spawn(async move {
        match role {
            Role::Hold => {
                session.barrier(&name)?.wait().await?;
                Ok(Held::Passed)
            }
            Role::Batch => {
                let (queue, mut all) = (session.queue(&name)?, Vec::new());
                while all.len() < BATCH {
                    all.extend(queue.dequeue_many(BATCH - all.len()).await?);
                }
                Ok(Held::Deliveries(all))
            }
            _ => role.acquire(&session, &name).await,
        }
    })
}

/// Time for a request whose arrival nothing shows.
pub(super) async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Releases what a fault may have cost its holder already.
pub(super) async fn end(held: Held) -> Step<()> {
    match promptly("an answer to release", held.finish()).await? {
        Err(error) if !super::is_loss(&error) && error.kind() != ErrorKind::Unavailable => {
            Err(error.into())
        }
        _ => Ok(()),
    }
}
