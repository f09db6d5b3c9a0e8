//! The operations of many clients, with the instants between which each may have taken effect.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tenure_core::{Effect, ErrorKind, Result};

/// The end of an operation, as its client observed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome<O> {
    /// The operation took effect, and this is its answer.
    Ok(O),
    /// The operation certainly had no effect and never will.
    Failed,
    /// The operation may have taken effect: it timed out, its answer was lost, or its client died.
    Unknown,
}

/// One operation of one client. Instants are those of the journal's [`Timeline`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation<I, O> {
    /// The client.
    pub client: u64,
    /// The instant of the call.
    pub invoked: u64,
    /// The instant of the return; without an answer, that of [`settle`](Journal::settle) if it is later. `None` if the
    /// effect may still come.
    pub returned: Option<u64>,
    /// The request.
    pub input: I,
    /// The outcome.
    pub outcome: Outcome<O>,
}

impl<I, O> Operation<I, O> {
    /// Returns the answer of an operation that took effect.
    pub const fn answer(&self) -> Option<&O> {
        match &self.outcome {
            Outcome::Ok(answer) => Some(answer),
            Outcome::Failed | Outcome::Unknown => None,
        }
    }

    /// Returns whether the operation may have taken effect.
    pub const fn is_possible(&self) -> bool {
        !matches!(self.outcome, Outcome::Failed)
    }

    /// Returns whether the outcome is unknown.
    pub const fn is_unknown(&self) -> bool {
        matches!(self.outcome, Outcome::Unknown)
    }

    /// Returns the last instant at which the operation can have taken effect.
    pub fn latest(&self) -> u64 {
        self.returned.unwrap_or(u64::MAX)
    }

    /// Returns whether this operation was over before `other` began. Equal instants decide nothing.
    pub fn precedes<J, P>(&self, other: &Operation<J, P>) -> bool {
        self.latest() < other.invoked
    }
}

impl<I: fmt::Display, O: fmt::Display> fmt::Display for Operation<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {}: {} -> ", self.client, self.input)?;
        match &self.outcome {
            Outcome::Ok(answer) => write!(f, "{answer}")?,
            Outcome::Failed => f.write_str("failed")?,
            Outcome::Unknown => f.write_str("unknown")?,
        }
        match self.returned {
            Some(returned) => write!(f, " [{} to {returned}]", self.invoked),
            None => write!(f, " [from {}]", self.invoked),
        }
    }
}

/// The clock of one or several journals. Cheap to clone; clones share the clock.
#[derive(Clone)]
pub struct Timeline(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Timeline {
    /// Creates a logical clock: each reading is greater than all earlier ones. It orders the operations of one process
    /// exactly, also while the time of the runtime is paused.
    pub fn logical() -> Self {
        let next = AtomicU64::new(0);
        Self::new(move || next.fetch_add(1, Ordering::SeqCst))
    }

    /// Creates a clock that counts the nanoseconds since its creation.
    pub fn monotonic() -> Self {
        let start = Instant::now();
        Self::new(move || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Creates a clock from a function that never goes back. Several processes can share one of the operating system's.
    pub fn new(now: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// Returns the current instant.
    pub fn now(&self) -> u64 {
        (self.0)()
    }
}

impl fmt::Debug for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Timeline")
    }
}

/// Identifies an operation of a [`Journal`] that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "an operation without an end stays unknown"]
pub struct Ticket(usize);

/// A thread-safe record of operations.
///
/// An operation without a recorded end has the outcome [`Unknown`](Outcome::Unknown). The record therefore stays true
/// if a client dies, panics, or is cancelled.
#[derive(Debug)]
pub struct Journal<I, O> {
    timeline: Timeline,
    operations: Mutex<Vec<Operation<I, O>>>,
}

impl<I, O> Journal<I, O> {
    /// Creates an empty journal.
    pub const fn new(timeline: Timeline) -> Self {
        Self {
            timeline,
            operations: Mutex::new(Vec::new()),
        }
    }

    /// Records the call of an operation. To be used immediately before the call.
    pub fn invoke(&self, client: u64, input: I) -> Ticket {
        self.with(|operations, now| {
            operations.push(Operation {
                client,
                invoked: now,
                returned: None,
                input,
                outcome: Outcome::Unknown,
            });
            Ticket(operations.len() - 1)
        })
    }

    /// Records the return of an operation. To be used immediately after the return.
    ///
    /// An unknown outcome leaves the operation open, because its effect may still come; see [`settle`](Self::settle).
    pub fn end(&self, ticket: Ticket, outcome: Outcome<O>) {
        self.with(|operations, now| {
            if let Some(operation) = operations.get_mut(ticket.0) {
                if !matches!(outcome, Outcome::Unknown) {
                    operation.returned = Some(now);
                }
                operation.outcome = outcome;
            }
        });
    }

    /// Records that nothing of the operations of `client` that have no answer has an effect after this instant, and that
    /// the store has freed all that they may have taken: its session was closed, for example, or has expired in the
    /// store.
    pub fn settle(&self, client: u64) {
        self.with(|operations, now| {
            let open = |it: &&mut Operation<I, O>| it.client == client && it.returned.is_none();
            for operation in operations.iter_mut().filter(open) {
                operation.returned = Some(now);
            }
        });
    }

    /// Runs `call` as one operation, which is failed if its error has no [`Effect`], and unknown after every other
    /// error, or if the future is dropped. `Lost` is unknown, too: the store may have granted the request until the
    /// session ended.
    ///
    /// # Errors
    ///
    /// As for `call`.
    ///
    /// # Cancel safety
    ///
    /// As for `call`.
    pub async fn record<T>(
        &self,
        client: u64,
        input: I,
        call: impl Future<Output = Result<T>>,
        answer: impl FnOnce(&T) -> O,
    ) -> Result<T> {
        let ticket = self.invoke(client, input);
        let result = call.await;
        let outcome = match &result {
            Ok(value) => Outcome::Ok(answer(value)),
            Err(error) if error.effect() == Effect::None && error.kind() != ErrorKind::Lost => Outcome::Failed,
            Err(_) => Outcome::Unknown,
        };
        self.end(ticket, outcome);
        result
    }

    /// Returns the operations so far, in the order of their calls.
    pub fn operations(&self) -> Vec<Operation<I, O>>
    where
        I: Clone,
        O: Clone,
    {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the clock under the lock, so that the order of the record is the order of the instants.
    fn with<T>(&self, change: impl FnOnce(&mut Vec<Operation<I, O>>, u64) -> T) -> T {
        let mut operations = self.operations.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.timeline.now();
        change(&mut operations, now)
    }
}
