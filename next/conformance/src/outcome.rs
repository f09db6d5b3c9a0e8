//! The outcome of a case.

use std::fmt;

use tenure_core::guarantees::Line;
use tenure_core::{Error, ErrorKind, LossReason};

use crate::harness::why_out_of_order;

/// The outcome of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The store promises the guarantee, was attacked, and kept it.
    Held {
        /// The observations of the attack.
        evidence: String,
    },
    /// The store promises the guarantee and broke it. Never repeated.
    Violated {
        /// The observation that contradicts the promise.
        counterexample: String,
    },
    /// The case was cut short before it could judge: a limit was missed, the store was unavailable, a control failed.
    /// The runner repeats it.
    Unjudged {
        /// The missing requirement.
        why: String,
    },
    /// The store's [`Guarantees`](tenure_core::Guarantees) deny the guarantee.
    NotPromised {
        /// The line of the matrix that denies it.
        line: Line,
        /// The reason, in the words of the store.
        reason: String,
        /// The result of the attack.
        seen: Seen,
    },
    /// The case did not run. It never counts as passed.
    NotRun {
        /// The missing requirement.
        why: String,
        /// Whether the harness has no control for the case, or the store not the primitive. A case that is not excused
        /// was expected to run; too many of them fail the report.
        excused: bool,
    },
}

/// The result of an attack on a guarantee that is not promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The attack produced this counterexample, which is the reason for the denial.
    Counterexample(String),
    /// The attack produced none. Perhaps the store could promise more; perhaps only another event shows why it does
    /// not.
    Survived(String),
    /// The harness has no control over the event.
    NoControl(String),
    /// The attack was cut short before it could judge.
    Unjudged(String),
}

/// The result of a case's function. `Err` is an outcome too: it ends the case early by `?`.
pub type Verdict = Result<Outcome, Outcome>;

/// The result of a step of a case.
pub type Step<T> = Result<T, Outcome>;

/// The observation of an outcome, shared or mutable.
macro_rules! text {
    ($outcome:expr) => {
        match $outcome {
            Outcome::Held { evidence: text }
            | Outcome::Violated { counterexample: text }
            | Outcome::Unjudged { why: text }
            | Outcome::NotRun { why: text, .. } => text,
            Outcome::NotPromised { seen, .. } => match seen {
                Seen::Counterexample(text) | Seen::Survived(text) | Seen::NoControl(text) | Seen::Unjudged(text) => {
                    text
                }
            },
        }
    };
}

impl Outcome {
    /// Creates the outcome of a promise that was kept.
    pub fn held(evidence: impl Into<String>) -> Self {
        Self::Held {
            evidence: evidence.into(),
        }
    }

    /// Creates the outcome of a promise that was broken.
    pub fn violated(counterexample: impl Into<String>) -> Self {
        Self::Violated {
            counterexample: counterexample.into(),
        }
    }

    /// Creates the outcome of a case that could not judge.
    pub fn unjudged(why: impl Into<String>) -> Self {
        Self::Unjudged { why: why.into() }
    }

    /// Creates the outcome of a case that was expected to run and did not.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self::NotRun {
            why: why.into(),
            excused: false,
        }
    }

    /// Creates the outcome of a case that did not run because the harness or the store lacks a requirement.
    pub fn excused(why: impl Into<String>) -> Self {
        Self::NotRun {
            why: why.into(),
            excused: true,
        }
    }

    /// Returns whether the case could not judge, so that a repetition may.
    pub const fn is_unjudged(&self) -> bool {
        matches!(
            self,
            Self::Unjudged { .. }
                | Self::NotPromised {
                    seen: Seen::Unjudged(_),
                    ..
                }
        )
    }

    /// Returns a word or two: `held`, `violated`, `not judged`, `denied, shown`, `denied, survived`,
    /// `denied, no control`, `denied, not judged`, `not run`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Violated { .. } => "violated",
            Self::Unjudged { .. } => "not judged",
            Self::NotPromised { seen, .. } => match seen {
                Seen::Counterexample(_) => "denied, shown",
                Seen::Survived(_) => "denied, survived",
                Seen::NoControl(_) => "denied, no control",
                Seen::Unjudged(_) => "denied, not judged",
            },
            Self::NotRun { .. } => "not run",
        }
    }

    /// Returns the observation, without the reason of a denial.
    pub fn seen(&self) -> &str {
        text!(self)
    }

    /// Judges what an attack saw on a guarantee that `line` denies for `reason`.
    #[must_use]
    pub(crate) fn of_a_denial(self, line: Line, reason: String) -> Self {
        let seen = match self {
            Self::Held { evidence } => Seen::Survived(evidence),
            Self::Violated { counterexample } => Seen::Counterexample(counterexample),
            Self::NotRun { why, excused: true } => Seen::NoControl(why),
            Self::Unjudged { why } | Self::NotRun { why, .. } => Seen::Unjudged(why),
            denied @ Self::NotPromised { .. } => return denied,
        };
        Self::NotPromised { line, reason, seen }
    }

    /// Adds `note` to what was seen.
    #[must_use]
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        let text: &mut String = text!(&mut self);
        text.push_str("; ");
        text.push_str(note);
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.word())?;
        if let Self::NotPromised { reason, .. } = self {
            write!(f, "{reason}; ")?;
        }
        f.write_str(self.seen())
    }
}

/// Judges an error that a case did not expect.
///
/// A primitive that the store does not have excuses the case. An unavailable store, a missed limit, a failed control
/// and a lease that was not renewed in time judge nothing. Every other error breaks the promise.
impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        let text = error.chain().to_string();
        let starved = matches!(error.loss(), Some(LossReason::Expired | LossReason::Unreachable));
        match error.kind() {
            _ if why_out_of_order(&error).is_some() => Self::unjudged(text),
            ErrorKind::Unsupported => Self::excused(text),
            ErrorKind::Unavailable | ErrorKind::TimedOut => Self::unjudged(format!("an unexpected error: {text}")),
            ErrorKind::Lost if starved => Self::unjudged(format!("an unexpected loss: {text}")),
            _ => Self::violated(format!("an unexpected error: {text}")),
        }
    }
}
