//! Everything that can be held, behind one face, so that each rule of the contract is written once.
//!
//! A [`Role`] is one way of holding something. The modules below have the rules, generic over the
//! role; [`table`](crate::table) says which rule meets which role in which case.

mod isolation;
mod keeping;
mod order;
mod scene;
mod waiting;

pub(crate) use isolation::*;
pub(crate) use keeping::*;
pub(crate) use order::*;
pub(crate) use waiting::*;

use tenure_core::{
    BarrierHandle, Delivery, Error, ErrorKind, FencingToken, Guarantees, HoldFor, Holding, Inside,
    Item, Leadership, Line, LockGuard, LossReason, ReadGuard, Result, Session, WriteGuard,
};

use crate::case::{Outcome, Promise};
use crate::cases::promise;

/// The result of a part of a case.
type Step<T> = std::result::Result<T, Outcome>;

/// How many items a batch of deliveries has.
const BATCH: usize = 4;

/// One way of holding something.
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
    /// A consumer with several items that came together.
    Batch,
    /// A barrier held for a session.
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

    /// The role as case names have it.
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

    /// The primitive that has the role.
    pub(crate) const fn primitive(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Reader | Self::Writer => "rw_lock",
            Self::Leadership => "election",
            Self::Delivery | Self::Batch => "queue",
            Self::Hold | Self::Participant => "barrier",
        }
    }

    /// The line of the matrix for this role, where `line` is that of the rule.
    pub(crate) const fn line(self, line: Option<Line>) -> Option<Line> {
        match (self, line) {
            (Self::Reader | Self::Writer, Some(Line::HandOff | Line::MutualExclusion)) => {
                Some(Line::RwOrder)
            }
            (Self::Delivery | Self::Batch, Some(Line::MutualExclusion | Line::Expiry)) => {
                Some(Line::QueueDelivery)
            }
            (Self::Hold | Self::Participant, Some(Line::Expiry)) => Some(Line::Barriers),
            (_, line) => line,
        }
    }

    /// Whether a deployment promises `rule` for this role.
    pub(crate) fn promise(
        self,
        line: Option<Line>,
        rule: fn(&Guarantees) -> Promise,
        guarantees: &Guarantees,
    ) -> Promise {
        let own = match self {
            Self::Reader | Self::Writer if line == Some(Line::HandOff) => {
                return promise::rw_by_arrival(guarantees);
            }
            Self::Reader | Self::Writer => promise::rw_locks(guarantees),
            Self::Delivery | Self::Batch => promise::delivers_until_acknowledged(guarantees),
            Self::Hold | Self::Participant => promise::the_dead_do_not_count(guarantees),
            Self::Lock | Self::Leadership => Promise::Made,
        };
        match own {
            Promise::Made => rule(guarantees),
            denied @ Promise::Denied { .. } => denied,
        }
    }

    /// Brings the object into the state in which the role can be had: a delivery needs an item.
    async fn prepare(self, session: &Session, name: &str) -> Result<()> {
        let items = match self {
            Self::Delivery => 1,
            Self::Batch => BATCH,
            _ => return Ok(()),
        };
        let item = |number| Item::new(format!("{name} {number}"));
        session
            .queue(name)?
            .enqueue_many((0..items).map(item))
            .await
    }

    /// Waits until it has the role. A held barrier and a participant are refused instead.
    async fn acquire(self, session: &Session, name: &str) -> Result<Held> {
        Ok(match self {
            Self::Lock => Held::Lock(session.locker(name)?.lock().await?),
            Self::Reader => Held::Reader(session.rw_lock(name)?.read().await?),
            Self::Writer => Held::Writer(session.rw_lock(name)?.write().await?),
            Self::Leadership => Held::Leadership(session.election(name)?.campaign(name).await?),
            Self::Delivery => Held::Deliveries(vec![session.queue(name)?.dequeue().await?]),
            Self::Batch => Held::Deliveries(session.queue(name)?.dequeue_many(BATCH).await?),
            Self::Hold => {
                let barrier = session.barrier(name)?;
                barrier.hold(HoldFor::Session).await?;
                Held::Barrier(barrier)
            }
            Self::Participant => Held::Inside(session.double_barrier(name, 1)?.enter().await?),
        })
    }

    /// As [`acquire`](Self::acquire), for no longer than `limit`. `None` where the role has no such form.
    async fn acquire_within(
        self,
        session: &Session,
        name: &str,
        limit: std::time::Duration,
    ) -> Option<Result<Held>> {
        let acquiring = async {
            Ok(Some(match self {
                Self::Lock => Held::Lock(session.locker(name)?.lock_timeout(limit).await?),
                Self::Reader => Held::Reader(session.rw_lock(name)?.read_timeout(limit).await?),
                Self::Writer => Held::Writer(session.rw_lock(name)?.write_timeout(limit).await?),
                Self::Leadership => {
                    let election = session.election(name)?;
                    Held::Leadership(election.campaign_timeout(name, limit).await?)
                }
                Self::Delivery => {
                    let queue = session.queue(name)?;
                    Held::Deliveries(vec![queue.dequeue_timeout(limit).await?])
                }
                Self::Hold => {
                    let barrier = session.barrier(name)?;
                    barrier.wait_timeout(limit).await?;
                    Held::Passed
                }
                Self::Participant => {
                    let barrier = session.double_barrier(name, 2)?;
                    Held::Inside(barrier.enter_timeout(limit).await?)
                }
                Self::Batch => return Ok(None),
            }))
        };
        acquiring.await.transpose()
    }

    /// One attempt that does not wait: `None` if another has the role.
    async fn attempt(self, session: &Session, name: &str) -> Result<Option<Held>> {
        let had = match self {
            Self::Lock => session.locker(name)?.try_lock().await.map(Held::Lock),
            Self::Reader => session.rw_lock(name)?.try_read().await.map(Held::Reader),
            Self::Writer => session.rw_lock(name)?.try_write().await.map(Held::Writer),
            Self::Leadership => {
                let election = session.election(name)?;
                election.try_campaign(name).await.map(Held::Leadership)
            }
            Self::Delivery | Self::Batch => {
                let delivery = session.queue(name)?.try_dequeue().await?;
                return Ok(delivery.map(|delivery| Held::Deliveries(vec![delivery])));
            }
            // These refuse at once.
            Self::Hold | Self::Participant => self.acquire(session, name).await,
        };
        match had {
            Ok(held) => Ok(Some(held)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error)
                if error.kind() == ErrorKind::Conflict
                    && matches!(self, Self::Hold | Self::Participant) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// The role that a holder of this one keeps out.
    const fn opponent(self) -> Self {
        match self {
            Self::Reader => Self::Writer,
            other => other,
        }
    }

    /// How many parts it has.
    const fn units(self) -> usize {
        match self {
            Self::Batch => BATCH,
            _ => 1,
        }
    }
}

/// What a role has got.
#[derive(Debug)]
enum Held {
    Lock(LockGuard),
    Reader(ReadGuard),
    Writer(WriteGuard),
    Leadership(Leadership),
    Deliveries(Vec<Delivery>),
    Barrier(BarrierHandle),
    Inside(Inside),
    /// Nothing: a waiter of a barrier has gone on.
    Passed,
}

impl Held {
    fn holdings(&self) -> Vec<&Holding> {
        match self {
            Self::Lock(it) => vec![it],
            Self::Reader(it) => vec![it],
            Self::Writer(it) => vec![it],
            Self::Leadership(it) => vec![it],
            Self::Deliveries(all) => all.iter().map(|it| &**it).collect(),
            Self::Inside(it) => vec![it],
            Self::Barrier(_) | Self::Passed => Vec::new(),
        }
    }

    /// Why a part of it was lost, if one was.
    fn loss(&self) -> Option<LossReason> {
        self.holdings().iter().find_map(|holding| holding.loss())
    }

    fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// The tokens, of which a batch has several and a held barrier has none.
    fn tokens(&self) -> Vec<FencingToken> {
        self.holdings().iter().map(|it| it.token()).collect()
    }

    /// What nobody else may have at the same time: the items of deliveries, or the name.
    fn parts(&self) -> Vec<Vec<u8>> {
        match self {
            Self::Deliveries(all) => all.iter().map(|it| it.value().to_vec()).collect(),
            _ => vec![b"it".to_vec()],
        }
    }

    /// Gives it back for the next.
    async fn release(self) -> Result<()> {
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
            Self::Barrier(it) => it.release().await.map(drop),
            Self::Inside(it) => it.leave().await,
            Self::Passed => Ok(()),
        }
    }

    /// Gives it back for good: deliveries are acknowledged.
    async fn finish(self) -> Result<()> {
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

    /// Adds what else was got: the rest of a batch.
    fn join(&mut self, more: Self) {
        if let (Self::Deliveries(all), Self::Deliveries(more)) = (self, more) {
            all.extend(more);
        }
    }
}

/// Whether the error says that a holding is not this holder's any more.
fn is_loss(error: &Error) -> bool {
    error.kind() == ErrorKind::Lost
}
