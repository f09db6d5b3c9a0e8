//! The outcomes of the cases on one store, and of each claim that the store makes.

mod json;
mod markdown;
mod text;

pub use self::markdown::{catalogue, to_markdown};

use std::time::Duration;

use tenure_core::Guarantees;
use tenure_core::guarantees::Line;

use crate::case::Case;
use crate::outcome::{Outcome, Seen};

/// How many percent of the cases that are not excused must run.
pub const MIN_RUN_PERCENT: usize = 90;

/// How many trials may be repeated although the machine did not stand still.
pub const MAX_FLAKY_TRIALS: usize = 3;

/// The outcome of one case.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Result {
    /// The case.
    pub case: Case,
    /// Its outcome, that of the last attempt.
    pub outcome: Outcome,
    /// How long all attempts of its trial took.
    pub took: Duration,
    /// The trial that it ran in: itself, or its scene.
    pub trial: &'static str,
    /// Why the trial was repeated, each time.
    pub repeated: Vec<String>,
    /// Whether the machine stood still in each attempt that could not judge.
    pub excused: bool,
}

/// The column of one store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The title of the column.
    pub store: String,
    /// The store's guarantees, if it could be asked for them.
    pub guarantees: Option<Guarantees>,
    /// The outcome of each case, in the order of the table.
    pub results: Vec<Result>,
}

/// The outcome of one claim of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claim {
    /// The line of the matrix.
    pub line: Line,
    /// The claim, in a few words.
    pub value: String,
    /// Why it claims this much and not more.
    pub reason: String,
    /// The [words](Outcome::word) of the line's cases, with their numbers: `held: 8, denied, shown: 2`.
    pub shown: String,
    /// The counterexamples that show a denial, or a broken promise.
    pub counterexamples: Vec<String>,
}

impl Report {
    pub(crate) fn new(store: &str, guarantees: Option<Guarantees>, results: Vec<Result>) -> Self {
        Self {
            store: store.to_owned(),
            guarantees,
            results,
        }
    }

    /// Returns the number of cases whose outcome has this [word](Outcome::word).
    pub fn count(&self, word: &str) -> usize {
        self.results
            .iter()
            .filter(|result| result.outcome.word() == word)
            .count()
    }

    /// Returns the trials that were repeated although the machine did not stand still, each once, with the reason.
    pub fn flaky(&self) -> Vec<(&'static str, &str)> {
        let repeated = self.results.iter().filter(|result| !result.excused);
        let mut flaky: Vec<(&str, &str)> = repeated
            .filter_map(|result| Some((result.trial, result.repeated.first()?.as_str())))
            .collect();
        flaky.dedup_by_key(|(trial, _)| *trial);
        flaky
    }

    /// Returns why the store did not pass, one reason each; nothing if it did.
    pub fn failures(&self) -> Vec<String> {
        let mut failures = Vec::new();
        let (mut ran, mut expected) = (0, 0);
        for result in &self.results {
            let (id, outcome) = (result.case.id, &result.outcome);
            match outcome {
                Outcome::NotRun { excused: true, .. }
                | Outcome::NotPromised {
                    seen: Seen::NoControl(_),
                    ..
                } => continue,
                Outcome::Violated { .. } | Outcome::Unjudged { .. } => {
                    failures.push(format!("{id}: {outcome}"));
                }
                _ => {}
            }
            expected += 1;
            ran += usize::from(!matches!(outcome, Outcome::NotRun { .. }));
        }
        let flaky = self.flaky();
        if flaky.len() > MAX_FLAKY_TRIALS {
            failures.push(format!(
                "{} trials were judged only when they were repeated, more than {MAX_FLAKY_TRIALS}",
                flaky.len()
            ));
        }
        if ran * 100 < expected * MIN_RUN_PERCENT || ran == 0 {
            failures.push(format!(
                "{ran} of {expected} cases ran, less than {MIN_RUN_PERCENT} percent"
            ));
        }
        failures
    }

    /// Returns whether the store passed.
    pub fn passed(&self) -> bool {
        self.failures().is_empty()
    }

    /// Returns the claims of the store, in the order of the matrix, with what became of each.
    pub fn claims(&self) -> Vec<Claim> {
        let Some(guarantees) = &self.guarantees else {
            return Vec::new();
        };
        let claim = |line: &Line| {
            let of_line = |result: &&Result| result.case.line == Some(*line);
            let results: Vec<&Result> = self.results.iter().filter(of_line).collect();
            let mut words: Vec<(&str, usize)> = Vec::new();
            for word in results.iter().map(|result| result.outcome.word()) {
                match words.iter_mut().find(|(known, _)| *known == word) {
                    Some((_, count)) => *count += 1,
                    None => words.push((word, 1)),
                }
            }
            let shown: Vec<String> = words.iter().map(|(word, count)| format!("{word}: {count}")).collect();
            let counterexamples = results.iter().filter_map(|result| match &result.outcome {
                Outcome::Violated { counterexample } => Some(counterexample.clone()),
                Outcome::NotPromised {
                    seen: Seen::Counterexample(seen),
                    ..
                } => Some(seen.clone()),
                _ => None,
            });
            let (value, reason) = guarantees.claim(*line);
            Claim {
                line: *line,
                value,
                reason: reason.to_owned(),
                shown: shown.join(", "),
                counterexamples: counterexamples.collect(),
            }
        };
        Line::ALL.iter().map(claim).collect()
    }

    /// Returns the summary in one line: `memory: 290 held, 4 denied, shown, 2 not run`.
    pub fn summary(&self) -> String {
        let mut parts = Vec::new();
        for result in &self.results {
            let word = result.outcome.word();
            if !parts.iter().any(|(known, _)| *known == word) {
                parts.push((word, self.count(word)));
            }
        }
        let parts: Vec<String> = parts.iter().map(|(word, count)| format!("{count} {word}")).collect();
        format!("{}: {}", self.store, parts.join(", "))
    }
}
