//! Transactions that append to lists and read them.
//!
//! A list reveals the order of its writers, so that a history reveals what each transaction depended on. The method is
//! that of K. Kingsbury and P. Alvaro, "Elle: inferring isolation anomalies from experimental observations" (VLDB
//! 2020); the anomalies have the names of A. Adya, "Weak consistency" (MIT, 1999).
//!
//! Each appended value is unique within its list, and a read returns the whole list. [`Lists`] chooses steps that keep
//! lists short. The check takes O(n log n + r) for n transactions and r elements in all reads, and a bounded search for
//! the shortest cycle if there is one. A list whose last appends were never read costs the product of these appends and
//! of the reads of its last state: end a run with a read of each list.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::journal::Operation;
use super::jsonl::Recorded;
use super::sequence::Violation;

mod cycles;
mod graph;
mod versions;

/// One step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Appends a value to a list.
    Append {
        /// The list.
        key: u64,
        /// The value, unique within the list.
        value: u64,
    },
    /// Reads a list.
    Read {
        /// The list.
        key: u64,
    },
}

/// The steps of a transaction, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Steps(pub Vec<Step>);

/// The lists that the reads of a transaction returned, in the order of its steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Reads(pub Vec<Vec<u64>>);

/// One transaction. It is failed only if it certainly did not commit.
pub type Transaction = Operation<Steps, Reads>;

impl Recorded for Transaction {
    const KIND: &'static str = "list-append";
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, step) in self.0.iter().enumerate() {
            let comma = if place > 0 { ", " } else { "" };
            match step {
                Step::Append { key, value } => write!(f, "{comma}append {value} to list {key}")?,
                Step::Read { key } => write!(f, "{comma}read list {key}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for Reads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("committed")?;
        self.0.iter().try_for_each(|list| write!(f, ", {list:?}"))
    }
}

/// A choice of steps over a few lists, each of which is replaced by a new one after some appends.
#[derive(Clone, Debug)]
pub struct Lists {
    /// The key of each list, and how many appends it had.
    active: Vec<(u64, u64)>,
    next: u64,
    length: u64,
}

impl Lists {
    /// Creates `active` lists at a time for `length` appends each; 8 and 64 are good numbers.
    pub fn new(active: u64, length: u64) -> Self {
        let active = active.max(1);
        Self {
            active: (0..active).map(|key| (key, 0)).collect(),
            next: active,
            length,
        }
    }

    /// Returns a step that reads one of the lists; `choice` may be any number.
    pub fn read(&self, choice: u64) -> Step {
        let (key, _) = self.active[self.place(choice)];
        Step::Read { key }
    }

    /// Returns a step that appends a new value to one of the lists.
    pub fn append(&mut self, choice: u64) -> Step {
        let place = self.place(choice);
        self.active[place].1 += 1;
        let (key, value) = self.active[place];
        if value >= self.length {
            self.active[place] = (self.next, 0);
            self.next += 1;
        }
        Step::Append { key, value }
    }

    /// Returns the keys of all lists so far, for the reads at the end of a run.
    pub const fn keys(&self) -> std::ops::Range<u64> {
        0..self.next
    }

    fn place(&self, choice: u64) -> usize {
        usize::try_from(choice % self.active.len() as u64).unwrap_or_default()
    }
}

/// A kind of anomaly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// A read returned a value that was never appended, or one value twice; or the workload appended a value twice.
    Impossible,
    /// A transaction did not see its own appends, or saw a list change between two reads.
    Internal,
    /// No order of the appends explains two reads of a list, or a read and the steps of the writer.
    IncompatibleOrder,
    /// Two transactions read the same state of a list, and then both appended to it.
    LostUpdate,
    /// Dirty write: a cycle of write-write dependencies.
    G0,
    /// Aborted read: a transaction read what an aborted one had appended.
    G1a,
    /// Intermediate read: a transaction read an append after which the writer appended more.
    G1b,
    /// Circular information flow: a cycle of write-write and write-read dependencies.
    G1c,
    /// A cycle with exactly one anti-dependency (read-write), such as read skew.
    GSingle,
    /// A cycle with several anti-dependencies, such as write skew.
    G2,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Impossible => "impossible read",
            Self::Internal => "internal inconsistency",
            Self::IncompatibleOrder => "incompatible order",
            Self::LostUpdate => "lost update",
            Self::G0 => "G0 (dirty write)",
            Self::G1a => "G1a (aborted read)",
            Self::G1b => "G1b (intermediate read)",
            Self::G1c => "G1c (circular information flow)",
            Self::GSingle => "G-single",
            Self::G2 => "G2",
        })
    }
}

/// A level of isolation that a store promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Excludes G0, G1a, G1b and G1c.
    ReadCommitted,
    /// Also excludes lost updates and G-single: snapshot isolation, among others. G2 is possible.
    Snapshot,
    /// Excludes all cycles.
    Serializable,
    /// Excludes all cycles, also those with real time as an order.
    StrictSerializable,
}

/// One anomaly, with its counterexample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// The kind of anomaly.
    pub class: Class,
    /// Whether it is one only because a transaction had ended before another began.
    pub real_time: bool,
    /// The counterexample.
    pub violation: Violation,
}

impl Anomaly {
    fn new(history: &[Transaction], class: Class, what: &str, transactions: impl IntoIterator<Item = usize>) -> Self {
        Self {
            class,
            real_time: false,
            violation: Violation::new(history, format!("{class}: {what}"), transactions),
        }
    }

    /// Returns whether a store of this level must not have the anomaly.
    pub fn breaks(&self, level: Level) -> bool {
        let lowest = match self.class {
            _ if self.real_time => Level::StrictSerializable,
            Class::GSingle | Class::LostUpdate | Class::Internal => Level::Snapshot,
            Class::G2 => Level::Serializable,
            _ => Level::ReadCommitted,
        };
        lowest <= level
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.violation.fmt(f)
    }
}

/// The contents of a history without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Transactions that are known to have committed: by their answer, or because they were read.
    pub committed: usize,
    /// Lists that were read or appended to.
    pub lists: usize,
    /// Anomalies that the level permits.
    pub permitted: usize,
}

/// Judges a history.
///
/// # Errors
///
/// The first anomaly that `level` excludes.
pub fn check(history: &[Transaction], level: Level) -> Result<Summary, Violation> {
    let (summary, anomalies) = analyse(history);
    match anomalies.into_iter().find(|found| found.breaks(level)) {
        Some(found) => Err(found.violation),
        None => Ok(summary),
    }
}

/// Returns all anomalies of a history, of cycles the shortest one of the worst class in each strongly connected
/// component.
pub fn anomalies(history: &[Transaction]) -> Vec<Anomaly> {
    analyse(history).1
}

fn analyse(history: &[Transaction]) -> (Summary, Vec<Anomaly>) {
    let (versions, mut anomalies) = versions::infer(history);
    let graph = graph::Graph::new(history, &versions);
    anomalies.extend(cycles::find(history, &graph));
    let summary = Summary {
        committed: versions.committed.iter().filter(|committed| **committed).count(),
        lists: versions.lists.len(),
        permitted: anomalies.len(),
    };
    (summary, anomalies)
}
