//! All kinds of holdings behind one interface, so that each rule of the contract is written once.
//!
//! A [`Role`] is one way to hold an object. The modules below contain the rules, generic over the role; the
//! [table](crate::table) states which rule applies to which role.

mod cancellation;
mod expiry;
mod isolation;
mod lease;
mod order;
mod release;
mod scene;
mod wakeup;

pub(crate) use cancellation::*;
pub(crate) use expiry::*;
pub(crate) use isolation::*;
pub(crate) use lease::*;
pub(crate) use order::*;
pub(crate) use release::*;
pub(crate) use scene::{Fixture, of_all};
pub(crate) use wakeup::*;

use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::{
    BarrierGuard, Delivery, ErrorKind, FencingToken, Guarantees, Holding, Leadership, LockGuard, LossReason, NewItem,
    Participant, ReadGuard, Result, Session, WriteGuard,
};

use crate::case::Promise;
use crate::promise;

/// The number of items in a batch of deliveries.
pub(crate) const BATCH: usize = 4;

/// How long a try lasts where the role can only be tried by a wait with a limit. A store whose entry takes two writes needs more
/// than 50 ms on a busy machine.
const TRY: Duration = Duration::from_millis(500);

/// One way to hold an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The holder of a lock.
    Lock,
    /// A reader of a read-write lock.
    Reader,
    /// A writer of a read-write lock.
    Writer,
    /// The leader of an election.
    Leadership,
    /// A consumer with one item of a queue.
    Delivery,
    /// A consumer with several items that were taken together.
    Batch,
    /// The holder of a barrier.
    Hold,
    /// A participant inside a double barrier.
    Participant,
}

impl Role {
    /// Every role, in the order of the table's columns.
    pub const ALL: [Self; 8] = [
        Self::Lock,
        Self::Reader,
        Self::Writer,
        Self::Leadership,
        Self::Delivery,
        Self::Batch,
        Self::Hold,
        Self::Participant,
    ];

    /// Returns the word for the role.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Reader => "reader",
            Self::Writer => "writer",
            Self::Leadership => "leadership",
            Self::Delivery => "delivery",
            Self::Batch => "batch",
            Self::Hold => "hold",
            Self::Participant => "participant",
        }
    }

    /// Returns the primitive that has the role.
    pub const fn primitive(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Reader | Self::Writer => "rw_lock",
            Self::Leadership => "election",
            Self::Delivery | Self::Batch => "queue",
            Self::Hold | Self::Participant => "barrier",
        }
    }

    /// Returns the line of the matrix for this role, where `line` is that of the rule.
    pub(crate) const fn line(self, line: Option<Line>) -> Option<Line> {
        match (self, line) {
            (Self::Reader | Self::Writer, Some(Line::HandOff | Line::MutualExclusion)) => Some(Line::RwOrder),
            (Self::Delivery | Self::Batch, Some(Line::MutualExclusion | Line::Expiry)) => Some(Line::QueueDelivery),
            (Self::Hold | Self::Participant, Some(Line::Expiry)) => Some(Line::Barriers),
            (_, line) => line,
        }
    }

    /// Returns whether a deployment promises this role what it promises a lock; `line` is that of the cell.
    pub(crate) fn promise(self, line: Option<Line>, guarantees: &Guarantees) -> Promise {
        match self {
            Self::Reader | Self::Writer if line == Some(Line::RwOrder) => promise::rw_by_arrival(guarantees),
            Self::Reader | Self::Writer => promise::rw_locks(guarantees),
            Self::Delivery | Self::Batch => promise::delivers_until_acknowledged(guarantees),
            Self::Hold | Self::Participant => promise::the_dead_do_not_count(guarantees),
            Self::Lock | Self::Leadership => Promise::Made,
        }
    }

    /// Returns the role that a holder of this role excludes.
    pub(crate) const fn opponent(self) -> Self {
        match self {
            Self::Reader => Self::Writer,
            other => other,
        }
    }

    /// Returns the number of parts of the object.
    pub(crate) const fn units(self) -> usize {
        match self {
            Self::Batch => BATCH,
            _ => 1,
        }
    }

    /// Returns whether the object is a queue, whose items come back after a release.
    pub(crate) const fn is_of_a_queue(self) -> bool {
        matches!(self, Self::Delivery | Self::Batch)
    }

    /// Prepares the object so that it can be acquired: a delivery needs an item.
    pub(crate) async fn prepare(self, session: &Session, name: &str) -> Result<()> {
        if !self.is_of_a_queue() {
            return Ok(());
        }
        let items = (0..self.units()).map(|number| NewItem::new(format!("{name} {number}")));
        session.queue(name).enqueue_many(items).await
    }

    /// Acquires what is free. A second hold of a barrier is refused instead of waiting.
    pub(crate) async fn acquire(self, session: &Session, name: &str) -> Result<Held> {
        Ok(match self {
            Self::Lock => Held::Lock(session.lock(name).await?),
            Self::Reader => Held::Reader(session.read_lock(name).await?),
            Self::Writer => Held::Writer(session.write_lock(name).await?),
            Self::Leadership => Held::Leadership(session.election(name).campaign(name).await?),
            Self::Delivery => Held::Deliveries(vec![session.queue(name).dequeue().await?]),
            Self::Batch => Held::Deliveries(session.queue(name).dequeue_many(BATCH).await?),
            Self::Hold => Held::Barrier(session.barrier(name).hold().await?),
            Self::Participant => Held::Participant(session.double_barrier(name, 1).enter().await?),
        })
    }

    /// Waits as the waiters of this role do: behind the holder of a barrier, or for a second participant.
    pub(crate) async fn wait(self, session: &Session, name: &str) -> Result<Held> {
        match self {
            Self::Hold => {
                session.barrier(name).wait().await?;
                Ok(Held::Passed)
            }
            Self::Participant => {
                let participant = session.double_barrier(name, 2).enter().await?;
                Ok(Held::Participant(participant))
            }
            Self::Batch => {
                let (queue, mut all) = (session.queue(name), Vec::new());
                while all.len() < BATCH {
                    all.extend(queue.dequeue_many(BATCH - all.len()).await?);
                }
                Ok(Held::Deliveries(all))
            }
            _ => self.acquire(session, name).await,
        }
    }

    /// Waits like [`wait`](Self::wait), for no longer than `limit`. `None` if the role has no such form.
    pub(crate) async fn wait_for(self, session: &Session, name: &str, limit: Duration) -> Option<Result<Held>> {
        let waiting = async {
            Ok(Some(match self {
                Self::Lock => Held::Lock(session.locker(name).lock_timeout(limit).await?),
                Self::Reader => Held::Reader(session.rw_lock(name).read_timeout(limit).await?),
                Self::Writer => Held::Writer(session.rw_lock(name).write_timeout(limit).await?),
                Self::Leadership => {
                    let election = session.election(name);
                    Held::Leadership(election.campaign_timeout(name, limit).await?)
                }
                Self::Delivery => {
                    let queue = session.queue(name);
                    Held::Deliveries(vec![queue.dequeue_timeout(limit).await?])
                }
                Self::Hold => {
                    session.barrier(name).wait_timeout(limit).await?;
                    Held::Passed
                }
                Self::Participant => {
                    let barrier = session.double_barrier(name, 2);
                    Held::Participant(barrier.enter_timeout(limit).await?)
                }
                Self::Batch => return Ok(None),
            }))
        };
        waiting.await.transpose()
    }

    /// Tries to acquire; returns `None` if another session has the object.
    pub(crate) async fn attempt(self, session: &Session, name: &str) -> Result<Option<Held>> {
        Ok(match self {
            Self::Lock => session.try_lock(name).await?.map(Held::Lock),
            Self::Reader => session.rw_lock(name).try_read().await?.map(Held::Reader),
            Self::Writer => session.rw_lock(name).try_write().await?.map(Held::Writer),
            Self::Leadership => {
                let election = session.election(name);
                election.try_campaign(name).await?.map(Held::Leadership)
            }
            Self::Delivery | Self::Batch => {
                let delivery = session.queue(name).try_dequeue().await?;
                delivery.map(|delivery| Held::Deliveries(vec![delivery]))
            }
            Self::Hold => match session.barrier(name).hold().await {
                Err(error) if error.kind() == ErrorKind::Conflict => None,
                held => Some(Held::Barrier(held?)),
            },
            // A participant beyond the count is refused, or waits for the next generation.
            Self::Participant => match session.double_barrier(name, 1).enter_timeout(TRY).await {
                Err(error) if matches!(error.kind(), ErrorKind::Conflict | ErrorKind::TimedOut) => None,
                inside => Some(Held::Participant(inside?)),
            },
        })
    }
}

/// A holding of a role.
#[derive(Debug)]
pub(crate) enum Held {
    Lock(LockGuard),
    Reader(ReadGuard),
    Writer(WriteGuard),
    Leadership(Leadership),
    Deliveries(Vec<Delivery>),
    Barrier(BarrierGuard),
    Participant(Participant),
    /// Nothing: the waiter of a barrier has passed it.
    Passed,
}

impl Held {
    pub(crate) fn holdings(&self) -> Vec<&Holding> {
        match self {
            Self::Lock(it) => vec![it],
            Self::Reader(it) => vec![it],
            Self::Writer(it) => vec![it],
            Self::Leadership(it) => vec![it],
            Self::Deliveries(all) => all.iter().map(|it| &**it).collect(),
            Self::Participant(it) => vec![it],
            // A held barrier has the validity and the signal of its session.
            Self::Barrier(_) | Self::Passed => Vec::new(),
        }
    }

    /// Returns why a part was lost, if one was.
    pub(crate) fn loss(&self) -> Option<LossReason> {
        match self {
            Self::Barrier(it) => it.loss(),
            _ => self.holdings().iter().find_map(|holding| holding.loss()),
        }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// Returns the tokens. The items of a batch may share one: they are one grant.
    pub(crate) fn tokens(&self) -> Vec<FencingToken> {
        match self {
            Self::Barrier(it) => vec![it.token()],
            _ => self.holdings().iter().map(|it| it.token()).collect(),
        }
    }

    /// Returns the parts that no other session may hold at the same time: the items of deliveries, or the object.
    pub(crate) fn parts(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Deliveries(all) => all.iter().map(|it| it.value().to_vec()).collect(),
            _ => vec![b"it".to_vec()],
        }
    }

    /// Releases the object for the next waiter.
    pub(crate) async fn release(self) -> Result<()> {
        match self {
            Self::Lock(it) => it.release().await,
            Self::Reader(it) => it.release().await,
            Self::Writer(it) => it.release().await,
            Self::Leadership(it) => it.resign().await,
            Self::Deliveries(all) => {
                for delivery in all {
                    delivery.nack().await?;
                }
                Ok(())
            }
            Self::Barrier(it) => it.release().await,
            Self::Participant(it) => it.leave().await,
            Self::Passed => Ok(()),
        }
    }

    /// Releases the object for good: deliveries are acknowledged.
    pub(crate) async fn finish(self) -> Result<()> {
        match self {
            Self::Deliveries(all) => {
                for delivery in all {
                    delivery.ack().await?;
                }
                Ok(())
            }
            other => other.release().await,
        }
    }

    /// Adds the rest of a batch.
    pub(crate) fn join(&mut self, more: Self) {
        if let (Self::Deliveries(all), Self::Deliveries(more)) = (self, more) {
            all.extend(more);
        }
    }
}
