//! Many runs, one seed after another.

use std::fmt;
use std::ops::Range;

use crate::harness::Harness;

use super::{Histories, Plan, Summary, run};
use crate::tools::guarantees;

/// A run that broke a rule, or could not judge.
#[derive(Debug)]
#[non_exhaustive]
pub struct Failure {
    /// The seed of the run.
    pub seed: u64,
    /// Whether the run was judged: a repetition of the seed on the same machine may find nothing otherwise.
    pub judged: bool,
    /// The counterexample, or what was missing.
    pub what: String,
    /// The observations of the clients, if the run came to its end.
    pub histories: Option<Box<Histories>>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}", self.seed, self.what)?;
        let faults = self.histories.iter().flat_map(|histories| &histories.faults);
        faults
            .enumerate()
            .try_for_each(|(number, fault)| write!(f, "\n  fault {number}: {fault}"))
    }
}

/// Runs `plan` with each of `seeds` on a store of its own, which `make` makes, until a run fails.
///
/// # Errors
///
/// The first failure.
pub async fn sweep(
    make: impl AsyncFn(u64) -> tenure_core::Result<Box<dyn Harness>>,
    seeds: Range<u64>,
    plan: &Plan,
) -> Result<Vec<Summary>, Failure> {
    let mut summaries = Vec::new();
    for seed in seeds {
        let failure = |judged, what: String, histories| Failure {
            seed,
            judged,
            what,
            histories,
        };
        let harness = make(seed).await;
        let harness = harness.map_err(|error| failure(false, error.chain().to_string(), None))?;
        let plan = Plan { seed, ..plan.clone() };
        let histories = run(&*harness, &plan).await;
        let histories = histories.map_err(|outcome| failure(!outcome.is_unjudged(), outcome.to_string(), None))?;
        let promised = guarantees(&*harness).await;
        let promised = promised.map_err(|outcome| failure(false, outcome.to_string(), None))?;
        match histories.judge(&promised) {
            Ok(summary) => summaries.push(summary),
            Err(violation) => {
                return Err(failure(true, violation.to_string(), Some(Box::new(histories))));
            }
        }
    }
    Ok(summaries)
}
