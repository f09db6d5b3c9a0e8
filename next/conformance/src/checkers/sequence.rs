//! The parts that all checkers share: the verdict, and the order of holdings that exclude one another.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::journal::Operation;

/// How many operations the text of a violation shows, and how many characters of each.
const SHOWN: usize = 24;
const WIDTH: usize = 600;

/// A broken rule, with the operations that prove it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The counterexample as a text of several lines.
    pub what: String,
    /// The operations that prove it, as indices of the history.
    pub operations: Vec<usize>,
}

impl Violation {
    /// Describes a violation; the operations follow the text `what`, one a line.
    pub(super) fn new<I: fmt::Display, O: fmt::Display>(
        history: &[Operation<I, O>],
        what: impl Into<String>,
        operations: impl IntoIterator<Item = usize>,
    ) -> Self {
        let mut what = what.into();
        let mut operations: Vec<usize> = operations.into_iter().collect();
        operations.sort_unstable();
        operations.dedup();
        for index in operations.iter().take(SHOWN) {
            let line = history[*index].to_string();
            let cut = line.char_indices().nth(WIDTH).map(|(at, _)| at);
            let dots = if cut.is_some() { "..." } else { "" };
            let line = &line[..cut.unwrap_or(line.len())];
            what.push_str(&format!("\n  #{index} {line}{dots}"));
        }
        if let Some(more) = operations.len().checked_sub(SHOWN + 1) {
            what.push_str(&format!("\n  and {} more operations", more + 1));
        }
        Self { what, operations }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Violation {}

/// How a holder shares an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Alone: a lock, a leadership, or the writer of a read-write lock.
    Exclusive,
    /// With other shared holders: a reader.
    Shared,
}

/// The proof that a holding lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The store's answers, and each guard that says that it is valid.
    Guards,
    /// The store's answers alone: for a store that may free a holding before its guard knows. Exclusion is then a
    /// statement about the tokens that the gate accepts.
    Store,
}

/// One holding, within the limits that a history leaves open.
#[derive(Clone, Debug)]
pub(super) struct Holding {
    pub(super) token: u64,
    pub(super) mode: Mode,
    /// It began no earlier.
    pub(super) asked: u64,
    /// It began no later.
    pub(super) granted: u64,
    /// It ended no earlier.
    pub(super) held: u64,
    /// It ended no later.
    pub(super) ended: u64,
    /// The operations that show the grant, the last proof that it was held, and the end.
    pub(super) shown_by: [Option<usize>; 3],
}

impl Holding {
    pub(super) const fn new(token: u64, mode: Mode) -> Self {
        Self {
            token,
            mode,
            asked: 0,
            granted: u64::MAX,
            held: 0,
            ended: u64::MAX,
            shown_by: [None; 3],
        }
    }

    /// Notes that the holding had begun by `at`.
    pub(super) fn grant(&mut self, at: u64, operation: usize) {
        if self.shown_by[0].is_none() || at < self.granted {
            (self.granted, self.shown_by[0]) = (at, Some(operation));
        }
    }

    /// Notes that the holding had not ended at `at`.
    pub(super) fn prove(&mut self, at: u64, operation: usize) {
        if at >= self.held {
            (self.held, self.shown_by[1]) = (at, Some(operation));
        }
    }

    /// Notes that the holding was ended by an operation: after its call, before its return.
    pub(super) fn end(&mut self, called: u64, returned: u64, operation: usize) {
        self.prove(called, operation);
        if returned < self.ended {
            (self.ended, self.shown_by[2]) = (returned, Some(operation));
        }
    }

    /// Returns the operations that show it.
    pub(super) fn operations(&self) -> impl Iterator<Item = usize> {
        self.shown_by.into_iter().flatten()
    }
}

/// The latest end among the holdings that were placed.
#[derive(Clone, Copy, Default)]
struct Latest<'a> {
    end: u64,
    of: Option<&'a Holding>,
}

/// Finds one order that explains all holdings, which are sorted by token, and of one token by mode.
///
/// The tokens are the order: an exclusive holding begins after the end of all holdings below it, a shared one after the
/// end of the exclusive ones below it. Each is placed as early as possible; if one does not fit then, no order exists.
pub(super) fn explain<I: fmt::Display, O: fmt::Display>(
    history: &[Operation<I, O>],
    object: &str,
    holdings: &[Holding],
) -> Result<(), Violation> {
    let (mut any, mut exclusive) = (Latest::default(), Latest::default());
    for holding in holdings {
        let before = match holding.mode {
            Mode::Exclusive => any,
            Mode::Shared => exclusive,
        };
        let begin = before.end.max(holding.asked);
        let end = begin.max(holding.held);
        if begin > holding.granted || end > holding.ended {
            let (token, granted) = (holding.token, holding.granted);
            let mut operations: Vec<usize> = holding.operations().collect();
            let what = match before.of {
                Some(other) if begin > granted => {
                    operations.extend(other.operations());
                    format!(
                        "two holders: token {token} held {object} by instant {granted}, while token {} held it until instant {} at least",
                        other.token, before.end
                    )
                }
                _ => format!(
                    "token {token} held {object} at instant {end}, after that holding had ended by instant {}",
                    holding.ended
                ),
            };
            return Err(Violation::new(history, what, operations));
        }
        let latest = Latest { end, of: Some(holding) };
        if holding.mode == Mode::Exclusive {
            exclusive = latest;
        }
        if end >= any.end {
            any = latest;
        }
    }
    Ok(())
}

/// Numbers that became known one after the other: the greatest of them that was known before an instant.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Instant, greatest number so far, and its operation.
    facts: Vec<(u64, u64, usize)>,
}

impl Known {
    /// Collects facts: instant, number, operation.
    pub(super) fn new(facts: impl IntoIterator<Item = (u64, u64, usize)>) -> Self {
        let mut facts: Vec<_> = facts.into_iter().collect();
        facts.sort_unstable();
        for place in 1..facts.len() {
            let (_, number, operation) = facts[place - 1];
            if number >= facts[place].1 {
                (facts[place].1, facts[place].2) = (number, operation);
            }
        }
        Self { facts }
    }

    /// Returns the greatest number that was known before `instant`, with its operation.
    pub(super) fn before(&self, instant: u64) -> Option<(u64, usize)> {
        let count = self.facts.partition_point(|(at, ..)| *at < instant);
        let (_, number, operation) = *self.facts.get(count.checked_sub(1)?)?;
        Some((number, operation))
    }
}
