//! Transactions that append to lists and read them: which cycles do they have?
//!
//! A list tells the order of its writers, so that what a transaction depended on can be read off
//! the history (K. Kingsbury and P. Alvaro, "Elle: inferring isolation anomalies from experimental
//! observations", VLDB 2020). The anomalies are named as by A. Adya (1999).
//!
//! Every append needs a value that is unique within its key. A read returns the whole list: let
//! keys live for some dozens of appends only, and use many of them one after the other
//! ([`Keys`]). With `n` transactions and `r` elements in all reads together, the check takes
//! O(n log n + r), and where there are cycles a bounded search in addition; a key whose last
//! appends nobody read costs (readers of its last state) x (such appends).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::fencing::Violation;
use super::jsonl::Line;
use super::operation::Operation;
use crate::timeline::Timeline;

mod cycles;
mod graph;
mod versions;

#[cfg(test)]
mod tests;

/// One step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Appends a value to a list.
    Append {
        /// Which list.
        key: u64,
        /// The value, of which the key sees no second.
        value: u64,
    },
    /// Reads a list.
    Read {
        /// Which list.
        key: u64,
    },
}

/// The lists that a transaction's reads found, in the order of its steps.
pub type Lists = Vec<Vec<u64>>;

/// A transaction: [`Fate::Failed`](super::Fate::Failed) is one that certainly did not commit.
pub type Transaction = Operation<Vec<Step>, Lists>;

impl Line for Transaction {
    const KIND: &'static str = "list-append";
}

/// Some lists at a time that take appends, each replaced by a new one when it has had its share.
#[derive(Debug)]
pub struct Keys {
    /// The key, and how many appends it had.
    active: Vec<(u64, u64)>,
    next: u64,
    share: u64,
}

impl Keys {
    /// `active` lists at a time, each for `share` appends; 8 and 64 are good numbers.
    pub fn new(active: u64, share: u64) -> Self {
        Self {
            active: (0..active.max(1)).map(|key| (key, 0)).collect(),
            next: active.max(1),
            share,
        }
    }

    fn slot(&mut self, choice: u64) -> &mut (u64, u64) {
        let count = self.active.len() as u64;
        &mut self.active[usize::try_from(choice % count).unwrap_or_default()]
    }

    /// A step that reads one of the lists; `choice` may be any number.
    pub fn read(&mut self, choice: u64) -> Step {
        let key = self.slot(choice).0;
        Step::Read { key }
    }

    /// A step that appends to one of the lists a value that it never had.
    pub fn append(&mut self, choice: u64) -> Step {
        let (next, share) = (self.next, self.share);
        let slot = self.slot(choice);
        slot.1 += 1;
        let (key, value) = *slot;
        if value >= share {
            *slot = (next, 0);
            self.next += 1;
        }
        Step::Append { key, value }
    }
}

/// What can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Class {
    /// A value was read that nobody appended, or twice in one list; or one was appended twice,
    /// which is the test's own mistake.
    Impossible,
    /// A transaction did not see its own appends, or saw a list change in between.
    Internal,
    /// Two reads of a list, neither of which begins with the other; or one that has a transaction's
    /// appends in another order than it made them.
    IncompatibleOrder,
    /// Two transactions appended to what was the same list when both had read it.
    LostUpdate,
    /// A cycle of writes.
    G0,
    /// A read of an aborted transaction's append.
    G1a,
    /// A read of an append that was not its transaction's last to that list.
    G1b,
    /// A cycle of writes and of reads of what was written.
    G1c,
    /// A cycle with exactly one read of what was then overwritten.
    GSingle,
    /// A cycle with several such reads: write skew, in the simplest case.
    G2,
}

/// What a store may promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// No G0 and no G1.
    ReadCommitted,
    /// Nor lost updates nor G-single; G2 may be. Snapshot isolation, among others.
    Snapshot,
    /// No cycles.
    Serializable,
    /// No cycles either if real time counts as an order.
    StrictSerializable,
}

/// One thing that is wrong, with its counterexample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// What.
    pub class: Class,
    /// Whether it is one only because of real time: one transaction had ended before another
    /// began.
    pub real_time: bool,
    /// In words.
    pub violation: Violation,
    /// The transactions of it, by their place in the history.
    pub transactions: Vec<usize>,
}

impl Anomaly {
    /// Whether a store of that level must not have it.
    pub fn breaks(&self, level: Level) -> bool {
        let lowest = match (self.real_time, self.class) {
            (true, _) => Level::StrictSerializable,
            (_, Class::GSingle | Class::LostUpdate | Class::Internal) => Level::Snapshot,
            (_, Class::G2) => Level::Serializable,
            _ => Level::ReadCommitted,
        };
        lowest <= level
    }
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let real_time = if self.real_time { " in real time" } else { "" };
        write!(f, "{:?}{real_time}: {}", self.class, self.violation.what)
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// How many transactions are known to have committed.
    pub committed: usize,
    /// All anomalies, but of cycles one for each knot.
    pub anomalies: Vec<Anomaly>,
}

impl Findings {
    /// The first anomaly that a store of that level must not have.
    pub fn first(&self, level: Level) -> Option<&Anomaly> {
        self.anomalies.iter().find(|found| found.breaks(level))
    }
}

/// Judges a history.
pub fn check(history: &[Transaction]) -> Findings {
    let (versions, mut anomalies) = versions::infer(history);
    let graph = graph::build(history, &versions);
    anomalies.extend(cycles::find(history, &graph));
    Findings {
        committed: versions
            .committed
            .iter()
            .filter(|committed| **committed)
            .count(),
        anomalies,
    }
}

/// The picture of a history in which the transactions at `places` went wrong: `k+v` for an append,
/// `k=[...]` for a read.
pub fn timeline(history: &[Transaction], places: &[usize]) -> Timeline {
    Timeline::of_operations(history, places, |steps, lists| {
        let mut lists = lists.into_iter().flatten();
        let step = |step: &Step| match step {
            Step::Append { key, value } => format!("{key}+{value}"),
            Step::Read { key } => {
                let list = lists.next().map_or_else(
                    || "?".to_owned(),
                    |list| {
                        // Its end says what was new to the reader.
                        let dots = if list.len() > 3 { ".." } else { "" };
                        let last = &list[list.len().saturating_sub(3)..];
                        let last: Vec<String> = last.iter().map(u64::to_string).collect();
                        format!("{dots}{}", last.join(" "))
                    },
                );
                format!("{key}=[{list}]")
            }
        };
        let steps: Vec<String> = steps.iter().map(step).collect();
        steps.join(" ")
    })
}

/// How a transaction is called in a counterexample.
fn name(index: usize) -> String {
    format!("T{index}")
}

/// The transactions of a counterexample, a line each. Long ones are cut.
fn told(history: &[Transaction], transactions: &[usize]) -> String {
    let mut listed: Vec<usize> = transactions.to_vec();
    listed.sort_unstable();
    listed.dedup();
    listed
        .into_iter()
        .map(|index| {
            let line = history[index].to_string();
            let cut = line.char_indices().nth(1_000);
            let line = cut.map_or(line.clone(), |(at, _)| format!("{}...", &line[..at]));
            format!("\n    {} = {line}", name(index))
        })
        .collect()
}
