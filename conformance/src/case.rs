//! A case, and what comes of it.

use std::fmt;

use futures_util::future::BoxFuture;
use tenure_core::{Error, ErrorKind, Guarantees, Line};

use crate::harness::{Harness, Need};

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The store promises it, was attacked, and kept it.
    Held {
        /// What was seen.
        evidence: String,
    },
    /// The store promises it and broke it.
    Violated {
        /// What was seen instead.
        counterexample: String,
    },
    /// The store's [`Guarantees`] deny it.
    NotPromised {
        /// Why, in the words of the store.
        reason: String,
        /// What the case saw, if it really went wrong.
        counterexample: Option<String>,
    },
    /// A control was missing, or the stage could not be set. Never counts as passed.
    NotRun {
        /// What was missing.
        why: String,
    },
}

impl Outcome {
    /// The promise was kept.
    pub fn held(evidence: impl Into<String>) -> Self {
        Self::Held {
            evidence: evidence.into(),
        }
    }

    /// The promise was broken.
    pub fn violated(counterexample: impl Into<String>) -> Self {
        Self::Violated {
            counterexample: counterexample.into(),
        }
    }

    /// Nothing was shown.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self::NotRun { why: why.into() }
    }

    /// One word: `held`, `violated`, `not promised`, `not run`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Violated { .. } => "violated",
            Self::NotPromised { .. } => "not promised",
            Self::NotRun { .. } => "not run",
        }
    }

    /// What was seen, in words.
    pub fn details(&self) -> String {
        match self {
            Self::Held { evidence } => evidence.clone(),
            Self::Violated { counterexample } => counterexample.clone(),
            Self::NotPromised {
                reason,
                counterexample: Some(seen),
            } => format!("{reason}; seen: {seen}"),
            Self::NotPromised { reason, .. } => reason.clone(),
            Self::NotRun { why } => why.clone(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.details())
    }
}

/// An error that a case did not expect breaks the promise; what is not offered proves nothing.
impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Unsupported => Self::not_run(error.to_string()),
            _ => Self::violated(format!("an unexpected error: {error}")),
        }
    }
}

/// What a case's function returns. `Err` is an outcome too: it ends the case early by `?`.
pub type Verdict = std::result::Result<Outcome, Outcome>;

/// Whether a deployment promises what a case attacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// It does.
    Made,
    /// It does not, for this reason.
    Denied(String),
}

/// One attack on one promise.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The name, which starts with the rule: `l3_first_come_first_served`.
    pub id: &'static str,
    /// The rule of the contract: `L3`.
    pub rule: &'static str,
    /// What must hold, in a sentence.
    pub title: &'static str,
    /// The line of the matrix that this is evidence for.
    pub line: Option<Line>,
    /// The controls without which it cannot run.
    pub needs: &'static [Need],
    /// Whether a deployment promises it.
    pub promise: fn(&Guarantees) -> Promise,
    /// The attack itself: attacks whatever is promised. Use [`run`](Self::run).
    pub attack: for<'a> fn(&'a dyn Harness) -> BoxFuture<'a, Verdict>,
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Case {
    /// Asks the store what it promises, attacks it, judges, and cleans up.
    ///
    /// What is promised must hold; for what is denied the attack may produce a counterexample.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the clean-up to the TTL.
    pub async fn run(&self, harness: &dyn Harness) -> Outcome {
        let outcome = self.judge(harness).await;
        match (outcome, harness.clean_up().await) {
            (Outcome::Held { evidence }, Err(error)) => Outcome::violated(format!(
                "{evidence}; but what was left could not be removed: {error}"
            )),
            (outcome, _) => outcome,
        }
    }

    async fn judge(&self, harness: &dyn Harness) -> Outcome {
        let promise = match crate::cases::guarantees(harness).await {
            Ok(guarantees) => (self.promise)(&guarantees),
            Err(error) => {
                return Outcome::not_run(format!(
                    "the store does not say what it promises: {error}"
                ));
            }
        };
        let missing = self
            .needs
            .iter()
            .find(|need| !harness.offers().contains(need));
        match (promise, missing) {
            (Promise::Made, Some(missing)) => {
                Outcome::not_run(format!("there is no way to {}", missing.describe()))
            }
            (Promise::Denied(reason), Some(_)) => Outcome::NotPromised {
                reason,
                counterexample: None,
            },
            (Promise::Made, None) => either((self.attack)(harness).await),
            (Promise::Denied(reason), None) => {
                let counterexample = match either((self.attack)(harness).await) {
                    Outcome::Violated { counterexample } => Some(counterexample),
                    _ => None,
                };
                Outcome::NotPromised {
                    reason,
                    counterexample,
                }
            }
        }
    }
}

fn either(verdict: Verdict) -> Outcome {
    match verdict {
        Ok(outcome) | Err(outcome) => outcome,
    }
}
