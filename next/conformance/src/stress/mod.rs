//! Stress: clients of every role on one store under faults, whose histories the [checkers](crate::checkers) judge.
//!
//! A run is determined by its seed: on one thread with a paused clock two runs have the same histories, byte for byte.

use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tenure_core::Kind;

use crate::checkers::list_append::Transaction;
use crate::checkers::lock::LockOperation;
use crate::checkers::queue::QueueOperation;
use crate::checkers::{Timeline, jsonl};
use crate::harness::Harness;
use crate::outcome::{Outcome, Step};
use crate::tools::{LONG, done, expiry_bound, open};

mod clients;
mod faults;
mod judge;
mod objects;
mod sweep;

use self::clients::Client;
pub(crate) use self::clients::{append_to_lists, contend, share_a_queue};
use self::faults::Faults;
pub use self::judge::{Promised, Summary, judge_file};
use self::objects::{Contended, Lists, Shared};
pub use self::sweep::{Failure, sweep};

/// A generator of numbers that repeats itself for a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, 0 for a limit of 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next().checked_rem(limit).unwrap_or_default()
    }

    pub(crate) fn up_to(&mut self, limit: Duration) -> Duration {
        let limit = u64::try_from(limit.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(limit))
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = usize::try_from(self.below(from.len() as u64)).unwrap_or_default();
        from.get(at).copied()
    }
}

/// The size of a run.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// How many clients work at the same time.
    pub clients: u64,
    /// How many turns each client takes.
    pub turns: u32,
    /// Whether links fail, clients pause and die, and sessions are revoked.
    pub faults: bool,
}

impl Plan {
    /// Describes a run of 8 clients with 40 turns each, under faults.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            clients: 8,
            turns: 40,
            faults: true,
        }
    }

    /// Sets the number of clients.
    #[must_use]
    pub const fn clients(mut self, clients: u64) -> Self {
        self.clients = clients;
        self
    }

    /// Sets the number of turns of each client.
    #[must_use]
    pub const fn turns(mut self, turns: u32) -> Self {
        self.turns = turns;
        self
    }
}

/// The observations of the clients of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Histories {
    /// The history of the lock.
    pub lock: Vec<LockOperation>,
    /// The history of the read-write lock.
    pub rw_lock: Vec<LockOperation>,
    /// The history of the election.
    pub election: Vec<LockOperation>,
    /// The history of the queue.
    pub queue: Vec<QueueOperation>,
    /// The history of the lists.
    pub lists: Vec<Transaction>,
    /// The faults that the clients met, in words.
    pub faults: Vec<String>,
}

impl Histories {
    /// Writes the histories as JSON lines, one after another.
    ///
    /// # Errors
    ///
    /// Those of the writer.
    pub fn write(&self, to: &mut impl io::Write) -> io::Result<()> {
        for history in [&self.lock, &self.rw_lock, &self.election] {
            jsonl::write(to, history)?;
        }
        jsonl::write(to, &self.queue)?;
        jsonl::write(to, &self.lists)
    }
}

/// The objects that all clients of a run share.
struct World {
    ttl: Duration,
    bound: Duration,
    lock: Contended,
    rw_lock: Contended,
    election: Contended,
    queue: Shared,
    lists: Lists,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

impl World {
    fn new(ttl: Duration, bound: Duration) -> Self {
        let timeline = Timeline::logical();
        Self {
            ttl,
            bound,
            lock: Contended::new("stress", &timeline),
            rw_lock: Contended::new("stress", &timeline),
            election: Contended::new("stress", &timeline),
            queue: Shared::new("stress", &timeline),
            lists: Lists::new("stress", &timeline, Duration::from_millis(15)),
        }
    }

    fn histories(&self, faults: Vec<String>) -> Histories {
        Histories {
            lock: self.lock.journal.operations(),
            rw_lock: self.rw_lock.journal.operations(),
            election: self.election.journal.operations(),
            queue: self.queue.journal.operations(),
            lists: self.lists.journal.operations(),
            faults,
        }
    }
}

/// Runs the clients of `plan` on the store of `harness`, and returns what they observed.
///
/// # Errors
///
/// An outcome that ends the run early: the store failed in a way that no client can expect, or a control failed.
pub async fn run(harness: &dyn Harness, plan: &Plan) -> Result<Histories, Outcome> {
    let world = World::new(harness.ttl() * 3, expiry_bound(harness).await?);
    let faults = Faults::new(plan, harness);
    let over = Mutex::new(0);
    let (world, faults, over) = (&world, &faults, &over);
    let clients = (0..plan.clients).map(|id| async move {
        let lived = Client::new(id, plan, world, faults, harness).live().await;
        *over.lock() += 1;
        lived
    });
    let ended = || *over.lock() == plan.clients;
    let observers = (0..2).map(|id| world.election.observe(harness, id, ended));
    let contended = [
        (&world.lock, Kind::Lock),
        (&world.rw_lock, Kind::RwLock),
        (&world.election, Kind::Election),
    ];
    let watchers = contended.map(|(object, kind)| object.watch_waiters(harness, kind, ended));
    let (lived, observed, watched, injected) = tokio::join!(
        biased;
        join_all(clients),
        join_all(observers),
        join_all(watchers),
        faults.inject(world, ended)
    );
    let beside = observed.into_iter().chain(watched).chain([injected]);
    for result in lived.into_iter().chain(beside) {
        result?;
    }
    finish(harness, world).await?;
    Ok(world.histories(faults.words()))
}

/// Reads everything at the end, so that the checkers know what is missing.
async fn finish(harness: &dyn Harness, world: &World) -> Step<()> {
    let session = open(harness, LONG).await?;
    world.queue.drain(&session).await?;
    world
        .lists
        .read_all(&session, tenure_core::Isolation::default())
        .await?;
    world.election.leader(u64::MAX, &session).await?;
    done("close", session.close()).await
}
