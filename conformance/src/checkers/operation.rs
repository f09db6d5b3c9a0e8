//! What clients called and what they were told: the history of every checker but the lock's.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use serde::{Deserialize, Serialize};

use super::jsonl::{maybe_nanos, nanos};

/// How an operation ended, as far as its client could learn.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate<O> {
    /// It took effect, and this was the answer.
    Done(O),
    /// It certainly had no effect, and never will.
    Failed,
    /// It may have taken effect, may do so later, or never: a lost answer, a client that died.
    Unknown,
}

/// One operation of one client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<I, O> {
    /// Who.
    pub client: usize,
    /// When it was called, since the history began.
    #[serde(with = "nanos")]
    pub called: Duration,
    /// When the client ceased to wait for it. If its fate is unknown, its effect may come later.
    #[serde(with = "maybe_nanos")]
    pub ended: Option<Duration>,
    /// What was asked.
    pub input: I,
    /// What came of it.
    pub fate: Fate<O>,
}

impl<I, O> Operation<I, O> {
    /// The answer, if there was one.
    pub fn answer(&self) -> Option<&O> {
        match &self.fate {
            Fate::Done(answer) => Some(answer),
            Fate::Failed | Fate::Unknown => None,
        }
    }

    /// When it had taken effect at the latest: for one that is known to be done.
    pub fn done_by(&self) -> Option<Duration> {
        self.answer().and(self.ended)
    }

    /// Whether it may have had an effect.
    pub fn possible(&self) -> bool {
        !matches!(self.fate, Fate::Failed)
    }

    /// What was known of this operation then: nothing, if it was not yet called, and not how it would end,
    /// if it had not.
    pub fn as_of(mut self, time: Duration) -> Option<Self> {
        if self.called > time {
            return None;
        }
        if self.ended.is_some_and(|ended| ended > time) {
            (self.ended, self.fate) = (None, Fate::Unknown);
        }
        Some(self)
    }

    /// Whether this was over, for certain, before `other` began. Equal times decide nothing.
    pub fn precedes<J, P>(&self, other: &Operation<J, P>) -> bool {
        self.done_by().is_some_and(|done| done < other.called)
    }
}

impl<I: fmt::Debug, O: fmt::Debug> fmt::Display for Operation<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (client, called, input) = (self.client, self.called, &self.input);
        write!(f, "client {client} {input:?} ")?;
        match (&self.fate, self.ended) {
            (Fate::Done(answer), Some(ended)) => {
                write!(f, "-> {answer:?} [{called:.3?} to {ended:.3?}]")
            }
            (Fate::Done(answer), None) => write!(f, "-> {answer:?} [from {called:.3?}]"),
            (Fate::Failed, _) => write!(f, "-> failed [from {called:.3?}]"),
            (Fate::Unknown, _) => write!(f, "-> unknown [from {called:.3?}]"),
        }
    }
}

/// Where in `history` the `operations` are, which must be borrowed from it. Without a search: there
/// may be many of both.
pub(super) fn places<'a, I: 'a, O: 'a>(
    history: &[Operation<I, O>],
    operations: impl IntoIterator<Item = &'a Operation<I, O>>,
) -> Vec<usize> {
    let start = history.as_ptr() as usize;
    let place = |operation: &Operation<I, O>| {
        let offset = (std::ptr::from_ref(operation) as usize).checked_sub(start)?;
        let place = offset / size_of::<Operation<I, O>>();
        (place < history.len()).then_some(place)
    };
    operations.into_iter().filter_map(place).collect()
}

/// Names an operation of a [`Journal`] until it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation that is never ended stays unknown"]
pub struct Ticket(usize);

/// Records the operations of many clients by one monotonic clock.
///
/// An operation that is never ended is of unknown fate, so a client that dies, panics or is
/// cancelled has told the truth.
#[derive(Debug)]
pub struct Journal<I, O> {
    start: Instant,
    operations: Mutex<Vec<Operation<I, O>>>,
}

impl<I, O> Default for Journal<I, O> {
    fn default() -> Self {
        Self::new()
    }
}

impl<I, O> Journal<I, O> {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            operations: Mutex::default(),
        }
    }

    /// With times since `start`, to be compared with those of others.
    pub fn since(start: Instant) -> Self {
        Self {
            start,
            operations: Mutex::default(),
        }
    }

    /// To be called right before the operation is.
    pub fn call(&self, client: usize, input: I) -> Ticket {
        let mut operations = self
            .operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        operations.push(Operation {
            client,
            called: self.start.elapsed(),
            ended: None,
            input,
            fate: Fate::Unknown,
        });
        Ticket(operations.len() - 1)
    }

    /// To be called right after the operation came back.
    pub fn end(&self, ticket: Ticket, fate: Fate<O>) {
        let mut operations = self
            .operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(operation) = operations.get_mut(ticket.0) {
            operation.ended = Some(self.start.elapsed());
            operation.fate = fate;
        }
    }

    /// The operation came back with this answer.
    pub fn done(&self, ticket: Ticket, answer: O) {
        self.end(ticket, Fate::Done(answer));
    }

    /// What was recorded so far, in the order of the calls.
    pub fn operations(&self) -> Vec<Operation<I, O>>
    where
        I: Clone,
        O: Clone,
    {
        let operations = self
            .operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        operations.clone()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    #[test]
    fn what_is_never_ended_is_unknown() {
        let journal: Journal<&str, u64> = Journal::new();
        let first = journal.call(0, "a");
        let _lost = journal.call(1, "b");
        journal.done(first, 7);
        let failed = journal.call(0, "c");
        journal.end(failed, Fate::Failed);
        let operations = journal.operations();
        assert_eq!(operations[0].answer(), Some(&7));
        assert_eq!(operations[1].fate, Fate::Unknown);
        assert_eq!(operations[1].done_by(), None);
        assert!(!operations[2].possible());
        assert!(!operations[0].precedes(&operations[1]));
        assert!(!operations[1].precedes(&operations[2]));
    }

    #[test]
    fn what_ends_later_is_not_known_yet() {
        let at = Duration::from_secs;
        let done = Operation {
            client: 0,
            called: at(2),
            ended: Some(at(4)),
            input: "a",
            fate: Fate::Done(7),
        };
        assert_eq!(done.clone().as_of(at(1)), None);
        let open = done.clone().as_of(at(3)).unwrap();
        assert_eq!((open.ended, open.fate), (None, Fate::Unknown));
        assert_eq!(done.clone().as_of(at(4)), Some(done));
    }
}
