//! Queues: the account of all items, and the order of their deliveries.
//!
//! * [`check_account`]: every accepted item is acknowledged exactly once or still there, with one valid consumer at a
//!   time,
//!   counted deliveries, and nothing from nowhere.
//! * [`check_order`]: items leave by priority, then in an order that is consistent with real time.
//!
//! A dequeue without an answer may have had an item that no client saw, also one that failed because its session ended.
//! This much is conceded to the counts and to the order from its call on, until it returned as failed, or until the
//! journal [settles](super::Journal::settle) it. A pop of unknown outcome may have removed an item for ever.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::journal::Operation;
use super::jsonl::Recorded;
use super::sequence::Violation;

mod account;
mod order;

pub use account::{Account, check_account};
pub use order::{Order, check_order};

/// A request to a queue. A purge, or a move to a dead-letter queue, has no request here: do not use them in such a
/// history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueCall {
    /// Enqueues an item. The items of a batch are one request each, with the same instants.
    Enqueue {
        /// The item, unique in the history.
        item: u64,
        /// The lower, the earlier.
        priority: u16,
        /// Whether it is invisible at first. Nothing is said about its order then.
        delayed: bool,
    },
    /// Takes items, which stay in the queue until they are acknowledged. Without `max` items it takes what there is.
    Dequeue {
        /// The most items.
        max: usize,
    },
    /// Takes an item and acknowledges it in the same step.
    Pop,
    /// Asks a delivery whether it is valid.
    Check {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// Acknowledges an item, which removes it.
    Ack {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// Returns an item to its place.
    Nack {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
        /// Whether it is invisible at first. Nothing is said about its order then.
        delayed: bool,
    },
    /// Lists all that the queue contains, waiting or delivered.
    List,
}

/// An item, as one consumer received it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// The item.
    pub item: u64,
    /// The token of the delivery, above those of the item's earlier deliveries.
    pub token: u64,
    /// How often the item was delivered, with this time.
    pub deliveries: u32,
}

/// An answer of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueAnswer {
    /// It was done: the item was accepted, acknowledged or returned; the delivery is valid.
    Done,
    /// The delivery was lost, or is not valid.
    Refused,
    /// The items of a dequeue, none if the queue was empty.
    Delivered(Vec<Delivered>),
    /// The item of a pop, `None` if the queue was empty.
    Popped(Option<u64>),
    /// The contents of the queue.
    Items(Vec<u64>),
}

/// One operation of a history of a queue.
pub type QueueOperation = Operation<QueueCall, QueueAnswer>;

impl Recorded for QueueOperation {
    const KIND: &'static str = "queue";
}

impl fmt::Display for QueueCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enqueue {
                item,
                priority,
                delayed,
            } => {
                let delayed = if *delayed { ", delayed" } else { "" };
                write!(f, "enqueue item {item}, priority {priority}{delayed}")
            }
            Self::Dequeue { max: 1 } => f.write_str("dequeue"),
            Self::Dequeue { max } => write!(f, "dequeue up to {max}"),
            Self::Pop => f.write_str("pop"),
            Self::Check { item, token } => write!(f, "check item {item} under token {token}"),
            Self::Ack { item, token } => write!(f, "ack item {item} under token {token}"),
            Self::Nack { item, token, .. } => write!(f, "nack item {item} under token {token}"),
            Self::List => f.write_str("list"),
        }
    }
}

impl fmt::Display for QueueAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done => f.write_str("ok"),
            Self::Refused => f.write_str("refused"),
            Self::Delivered(items) if items.is_empty() => f.write_str("empty"),
            Self::Delivered(items) => {
                for (place, it) in items.iter().enumerate() {
                    let comma = if place > 0 { "; " } else { "" };
                    let (item, token, deliveries) = (it.item, it.token, it.deliveries);
                    write!(f, "{comma}item {item}, token {token}, delivery {deliveries}")?;
                }
                Ok(())
            }
            Self::Popped(None) => f.write_str("empty"),
            Self::Popped(Some(item)) => write!(f, "item {item}"),
            Self::Items(items) => write!(f, "{items:?}"),
        }
    }
}

/// One delivery of an item.
struct Delivery {
    token: u64,
    deliveries: u32,
    operation: usize,
}

/// All operations on one item, as indices of the history.
#[derive(Default)]
struct Life {
    enqueue: Option<usize>,
    /// Sorted by token.
    deliveries: Vec<Delivery>,
    pops: Vec<usize>,
    /// Acknowledgements, returns and checks, with their tokens.
    steps: Vec<(u64, usize)>,
}

impl Life {
    fn operations(&self) -> impl Iterator<Item = usize> {
        let deliveries = self.deliveries.iter().map(|delivery| delivery.operation);
        let steps = self.steps.iter().map(|(_, operation)| *operation);
        let ends = self.enqueue.iter().chain(&self.pops).copied();
        ends.chain(deliveries).chain(steps)
    }
}

fn lives(history: &[QueueOperation]) -> Result<BTreeMap<u64, Life>, Violation> {
    let mut lives: BTreeMap<u64, Life> = BTreeMap::new();
    for (index, op) in history.iter().enumerate() {
        match op.input {
            QueueCall::Enqueue { item, .. } => {
                if let Some(first) = lives.entry(item).or_default().enqueue.replace(index) {
                    let what = format!("item {item} is not unique in the history, which proves nothing");
                    return Err(Violation::new(history, what, [first, index]));
                }
            }
            QueueCall::Check { item, token } | QueueCall::Ack { item, token } | QueueCall::Nack { item, token, .. } => {
                lives.entry(item).or_default().steps.push((token, index));
            }
            QueueCall::Dequeue { .. } | QueueCall::Pop | QueueCall::List => {}
        }
        match op.answer() {
            Some(QueueAnswer::Popped(Some(item))) => {
                lives.entry(*item).or_default().pops.push(index);
            }
            Some(QueueAnswer::Delivered(items)) => {
                for it in items {
                    lives.entry(it.item).or_default().deliveries.push(Delivery {
                        token: it.token,
                        deliveries: it.deliveries,
                        operation: index,
                    });
                }
            }
            _ => {}
        }
    }
    for life in lives.values_mut() {
        life.deliveries.sort_by_key(|delivery| delivery.token);
    }
    Ok(lives)
}

/// The times in which operations without an answer may have had items, to be counted.
#[derive(Default)]
struct Unseen {
    /// When each begins, and when each ends, sorted.
    from: Vec<u64>,
    to: Vec<u64>,
}

impl Unseen {
    fn new(history: &[QueueOperation]) -> Self {
        let mut unseen = Self::default();
        for op in history.iter().filter(|op| op.answer().is_none()) {
            let count = match op.input {
                QueueCall::Dequeue { max } => max,
                QueueCall::Pop => 1,
                _ => 0,
            };
            for _ in 0..count {
                unseen.from.push(op.invoked);
                unseen.to.push(op.latest());
            }
        }
        unseen.from.sort_unstable();
        unseen.to.sort_unstable();
        unseen
    }

    /// Returns how many items may have been with them at some time between two instants.
    fn between(&self, from: u64, to: u64) -> usize {
        let begun = self.from.partition_point(|begin| *begin <= to);
        begun.saturating_sub(self.to.partition_point(|end| *end < from))
    }
}

/// Returns the instants at which the pops of unknown outcome began: each may have removed any item since then.
fn unknown_pops(history: &[QueueOperation]) -> impl Iterator<Item = u64> + '_ {
    let unknown = history.iter().filter(|op| op.is_unknown());
    let pops = unknown.filter(|op| op.input == QueueCall::Pop);
    pops.map(|op| op.invoked)
}
