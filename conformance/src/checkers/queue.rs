//! A queue with priorities and acknowledgements: its vocabulary, and a [`Model`] to search with.
//!
//! The search is for short histories: keep the queue below some hundred items and the clients few.
//! For long ones there is [`total_queue`](super::total_queue), which reads the same history.

use serde::{Deserialize, Serialize};

use super::jsonl::Line;
use super::operation::Operation;
use super::search::Model;
use crate::timeline::Timeline;

/// What can be asked of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueCall {
    /// To take an item in.
    Enqueue {
        /// The item; no two in a history are the same.
        item: u64,
        /// The lower the sooner.
        priority: u16,
    },
    /// To hand out an item, which stays until it is acknowledged.
    Dequeue {
        /// The session that gets it.
        by: u64,
    },
    /// To hand out an item, and acknowledge it in the same step.
    Pop,
    /// To forget an item: the work is done.
    Acknowledge {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// To take an item back, at its old place.
    Return {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// To take back whatever a session has: it was closed, or it may have expired from the time of
    /// this call on (then its fate is unknown).
    Depart {
        /// The session.
        by: u64,
    },
}

/// What a queue answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueAnswer {
    /// It was done: to everything but a dequeue and a pop.
    Done,
    /// To a dequeue and a pop.
    Delivered {
        /// The item.
        item: u64,
        /// The token of this delivery, greater than that of the item's delivery before.
        token: u64,
        /// How often the item was delivered, this time included.
        count: u32,
    },
    /// To a pop, where its caller learns of no delivery.
    Popped {
        /// The item.
        item: u64,
    },
    /// To a dequeue and a pop, if there is nothing to hand out.
    Empty,
    /// To an acknowledgement and a return, if the delivery is no longer in force.
    Lost,
}

/// The history of a queue.
pub type QueueOperation = Operation<QueueCall, QueueAnswer>;

impl Line for QueueOperation {
    const KIND: &'static str = "queue";
}

/// The picture of a history in which the operations at `places` went wrong.
pub fn timeline(history: &[QueueOperation], places: &[usize]) -> Timeline {
    Timeline::of_operations(history, places, |call, answer| {
        let told = match answer {
            Some(QueueAnswer::Delivered { item, .. } | QueueAnswer::Popped { item }) => {
                format!(" {item}")
            }
            Some(QueueAnswer::Empty) => " nothing".to_owned(),
            Some(QueueAnswer::Lost) => ": lost".to_owned(),
            Some(QueueAnswer::Done) | None => String::new(),
        };
        match call {
            QueueCall::Enqueue { item, .. } => format!("put {item}"),
            QueueCall::Dequeue { .. } => format!("get{told}"),
            QueueCall::Pop => format!("pop{told}"),
            QueueCall::Acknowledge { item, .. } => format!("ack {item}{told}"),
            QueueCall::Return { item, .. } => format!("give back {item}{told}"),
            QueueCall::Depart { .. } => "depart".to_owned(),
        }
    })
}

/// One queue: by priority, then in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct PriorityQueue;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    /// Under the token, unless the answer to the dequeue was lost.
    Session(u64, Option<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Item {
    item: u64,
    priority: u16,
    holder: Holder,
    count: u32,
    /// The last that was told.
    token: Option<u64>,
}

/// What a queue holds, in the order in which it is handed out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueState(Vec<Item>);

impl QueueState {
    fn enqueued(&self, item: u64, priority: u16) -> Self {
        let mut items = self.0.clone();
        let place = items.partition_point(|before| before.priority <= priority);
        let (holder, count, token) = (Holder::Nobody, 0, None);
        items.insert(
            place,
            Item {
                item,
                priority,
                holder,
                count,
                token,
            },
        );
        Self(items)
    }

    /// Hands out the first item, to a session or (`None`) for good.
    fn handed_out(&self, by: Option<u64>, answer: Option<&QueueAnswer>) -> Option<Self> {
        let head = self.0.iter().position(|item| item.holder == Holder::Nobody);
        let (Some(head), told) = (head, answer) else {
            // A dequeue that found nothing has no effect, answered or not.
            let fits = matches!(answer, None | Some(QueueAnswer::Empty));
            return fits.then(|| self.clone());
        };
        let first = self.0[head];
        let told = match told {
            None => None,
            Some(&QueueAnswer::Delivered { item, token, count })
                if (item, count) == (first.item, first.count + 1) && first.token < Some(token) =>
            {
                Some(token)
            }
            Some(&QueueAnswer::Popped { item }) if by.is_none() && item == first.item => None,
            Some(_) => return None,
        };
        let mut items = self.0.clone();
        match by {
            None => {
                items.remove(head);
            }
            Some(by) => {
                items[head].holder = Holder::Session(by, told);
                items[head].count += 1;
                items[head].token = told.or(first.token);
            }
        }
        Some(Self(items))
    }

    /// The place of an item that is out under this token.
    fn held(&self, item: u64, token: u64) -> Option<usize> {
        self.0.iter().position(|held| {
            held.item == item
                && matches!(held.holder, Holder::Session(_, Some(under)) if under == token)
        })
    }

    /// Ends a delivery: takes the item away, or takes it back.
    fn ended(
        &self,
        (item, token): (u64, u64),
        answer: Option<&QueueAnswer>,
        gone: bool,
    ) -> Option<Self> {
        let held = self.held(item, token);
        match (held, answer) {
            (None, None | Some(QueueAnswer::Lost)) => Some(self.clone()),
            (Some(place), None | Some(QueueAnswer::Done)) => {
                let mut items = self.0.clone();
                if gone {
                    items.remove(place);
                } else {
                    items[place].holder = Holder::Nobody;
                }
                Some(Self(items))
            }
            _ => None,
        }
    }

    fn departed(&self, session: u64) -> Self {
        let mut items = self.0.clone();
        for item in &mut items {
            if matches!(item.holder, Holder::Session(by, _) if by == session) {
                item.holder = Holder::Nobody;
            }
        }
        Self(items)
    }
}

impl Model for PriorityQueue {
    type Key = ();
    type Input = QueueCall;
    type Output = QueueAnswer;
    type State = QueueState;

    fn key(_: &QueueCall) {}

    fn initial() -> QueueState {
        QueueState(Vec::new())
    }

    fn step(
        state: &QueueState,
        input: &QueueCall,
        output: Option<&QueueAnswer>,
    ) -> Option<QueueState> {
        let done = matches!(output, None | Some(QueueAnswer::Done));
        match *input {
            QueueCall::Enqueue { item, priority } => done.then(|| state.enqueued(item, priority)),
            QueueCall::Dequeue { by } => state.handed_out(Some(by), output),
            QueueCall::Pop => state.handed_out(None, output),
            QueueCall::Acknowledge { item, token } => state.ended((item, token), output, true),
            QueueCall::Return { item, token } => state.ended((item, token), output, false),
            QueueCall::Depart { by } => done.then(|| state.departed(by)),
        }
    }

    fn only_looks(_: &QueueCall, output: &QueueAnswer) -> bool {
        matches!(output, QueueAnswer::Empty | QueueAnswer::Lost)
    }
}

#[cfg(test)]
pub(crate) mod simulated;
#[cfg(test)]
mod tests;
