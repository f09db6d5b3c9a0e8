//! A case, and what comes of it.

use std::fmt;

use futures_util::future::BoxFuture;
use tenure_core::{Error, ErrorKind, Guarantees, Line};

use crate::harness::{Harness, Need, why_out_of_order};
use crate::patient::{Patient, unless_away};
use crate::timeline::Timeline;

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
        /// Whether the case judged what it saw. Otherwise an error that it did not expect, or an
        /// answer that did not come, cut it short: that breaks a promise, but shows nothing about
        /// one that was not made.
        judged: bool,
        /// Whether that error was of the kind `Unavailable`.
        unavailable: bool,
        /// Whether something came later than the attack allows. That shows what was not promised, and breaks a promise
        /// only if it is late again and again.
        late: bool,
        /// The history that shows it, where the case recorded one.
        history: Option<Box<Timeline>>,
    },
    /// The store's [`Guarantees`] deny it.
    NotPromised {
        /// The line of the matrix that denies it.
        line: Line,
        /// Why, in the words of the store.
        reason: String,
        /// What came of the attack all the same.
        seen: Seen,
        /// The history behind a counterexample, where the case recorded one.
        history: Option<Box<Timeline>>,
    },
    /// A control was missing, or the stage could not be set. Never counts as passed.
    NotRun {
        /// What was missing.
        why: String,
        /// Whether the harness has no control for the case, or the store not the primitive. A case that is not
        /// excused was expected to run: too many of them [fail the report](crate::FLOOR_PERCENT).
        excused: bool,
    },
}

/// What came of an attack on something that is not promised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It really went wrong: this is why it is not promised.
    Counterexample(String),
    /// It went well. Perhaps the store could promise more; perhaps only another event would show
    /// why it does not.
    Survived(String),
    /// The harness has no control over the event.
    NoControl(String),
    /// The event could not be brought about, or the attack was cut short, for this reason.
    NotBroughtAbout(String),
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
            judged: true,
            unavailable: false,
            late: false,
            history: None,
        }
    }

    /// The same outcome, with the history that shows what went wrong.
    #[must_use]
    pub fn with_history(mut self, timeline: Timeline) -> Self {
        if let Self::Violated { history, .. } | Self::NotPromised { history, .. } = &mut self {
            *history = Some(Box::new(timeline));
        }
        self
    }

    /// The history that shows what went wrong, where the case recorded one.
    pub fn history(&self) -> Option<&Timeline> {
        match self {
            Self::Violated { history, .. } | Self::NotPromised { history, .. } => {
                history.as_deref()
            }
            Self::Held { .. } | Self::NotRun { .. } => None,
        }
    }

    /// The promise was broken, but the case was cut short before it could judge: nothing is shown by
    /// that about a promise that was not made.
    pub fn cut_short(why: impl Into<String>) -> Self {
        Self::Violated {
            counterexample: why.into(),
            judged: false,
            unavailable: false,
            late: false,
            history: None,
        }
    }

    /// Something came later than it should.
    pub(crate) fn late(what: impl Into<String>) -> Self {
        let mut outcome = Self::cut_short(what);
        if let Self::Violated { late, .. } = &mut outcome {
            *late = true;
        }
        outcome
    }

    /// The same outcome, now as the judgement of the case.
    #[must_use]
    pub fn judged(mut self) -> Self {
        if let Self::Violated { judged, .. } = &mut self {
            *judged = true;
        }
        self
    }

    /// The same outcome, and when it was: `words` go before what was seen instead.
    #[must_use]
    pub fn when(self, words: impl fmt::Display) -> Self {
        match self {
            Self::Violated {
                counterexample,
                judged,
                unavailable,
                late,
                history,
            } => Self::Violated {
                counterexample: format!("{words}{counterexample}"),
                judged,
                unavailable,
                late,
                history,
            },
            other => other,
        }
    }

    /// Nothing was shown, although the case was expected to run.
    pub fn not_run(why: impl Into<String>) -> Self {
        Self::NotRun {
            why: why.into(),
            excused: false,
        }
    }

    /// Nothing was shown: the harness or the store does not have what the case needs.
    pub fn excused(why: impl Into<String>) -> Self {
        Self::NotRun {
            why: why.into(),
            excused: true,
        }
    }

    /// Whether the case should have shown something and did not: a limit was missed, an error was unexpected, or a
    /// control failed. That may be the machine's fault, so [`run`](crate::run) repeats the case.
    pub const fn is_unjudged(&self) -> bool {
        matches!(
            self,
            Self::Violated { judged: false, .. } | Self::NotRun { excused: false, .. }
        )
    }

    /// Whether the case ended in an error of the kind `Unavailable` that it did not expect.
    pub(crate) const fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::Violated {
                unavailable: true,
                ..
            }
        )
    }

    /// A word or two: `held`, `violated`, `denied, shown`, `denied, survived`, `denied, no control here`,
    /// `denied, not brought about`, `not run`.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Held { .. } => "held",
            Self::Violated { .. } => "violated",
            Self::NotPromised { seen, .. } => match seen {
                Seen::Counterexample(_) => "denied, shown",
                Seen::Survived(_) => "denied, survived",
                Seen::NoControl(_) => NO_CONTROL,
                Seen::NotBroughtAbout(_) => NOT_BROUGHT_ABOUT,
            },
            Self::NotRun { .. } => "not run",
        }
    }

    /// What was seen, in words.
    pub fn details(&self) -> String {
        match self {
            Self::Held { evidence } => evidence.clone(),
            Self::Violated { counterexample, .. } => counterexample.clone(),
            Self::NotPromised { reason, seen, .. } => match seen {
                Seen::Counterexample(seen) => format!("{reason}; seen: {seen}"),
                Seen::Survived(seen) => format!("{reason}; but this attack was survived: {seen}"),
                Seen::NoControl(why) => format!("{reason}; no control here: {why}"),
                Seen::NotBroughtAbout(why) => format!("{reason}; not brought about: {why}"),
            },
            Self::NotRun { why, .. } => why.clone(),
        }
    }
}

pub(crate) const NO_CONTROL: &str = "denied, no control here";
pub(crate) const NOT_BROUGHT_ABOUT: &str = "denied, not brought about";

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.details())
    }
}

/// An error that a case did not expect breaks the promise; what is not offered proves nothing, and neither does a
/// test bed that is out of order.
impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Unsupported => Self::excused(error.chain().to_string()),
            _ if why_out_of_order(&error).is_some() => Self::not_run(error.chain().to_string()),
            kind => Self::Violated {
                counterexample: format!("an unexpected error: {error}", error = error.chain()),
                judged: false,
                unavailable: kind == ErrorKind::Unavailable,
                late: false,
                history: None,
            },
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
    /// It does not.
    Denied {
        /// The line of the matrix that says so.
        line: Line,
        /// Why, in the words of the store.
        reason: String,
    },
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
        match (outcome, unless_away(|| harness.clean_up()).await) {
            // The attack itself held: a store that is gone by now breaks no promise, and proves none.
            (Outcome::Held { evidence }, Err(error)) => {
                let left = format!(
                    "{evidence}; but what was left could not be removed: {error}",
                    error = error.chain()
                );
                match error.kind() {
                    ErrorKind::Unavailable => Outcome::not_run(left),
                    _ => Outcome::violated(left),
                }
            }
            (outcome, _) => outcome,
        }
    }

    async fn judge(&self, harness: &dyn Harness) -> Outcome {
        let patient = Patient::new(harness, self);
        let harness: &dyn Harness = &patient;
        let attack = async || patient.excuse(either((self.attack)(harness).await));
        let promise = match crate::cases::guarantees(harness).await {
            Ok(guarantees) => (self.promise)(&guarantees),
            Err(error) => {
                return Outcome::not_run(format!(
                    "the store does not say what it promises: {error}",
                    error = error.chain()
                ));
            }
        };
        let missing = self
            .needs
            .iter()
            .find(|need| !harness.offers().contains(need));
        match (promise, missing) {
            (Promise::Made, Some(missing)) => Outcome::excused(no_way_to(*missing)),
            (Promise::Denied { line, reason }, Some(missing)) => Outcome::NotPromised {
                line,
                reason,
                seen: Seen::NoControl(no_way_to(*missing)),
                history: None,
            },
            (Promise::Made, None) => match attack().await {
                away if away.is_unavailable() => patient.unless_gone(away).await,
                outcome => outcome,
            },
            (Promise::Denied { line, reason }, None) => {
                let (seen, history) = match attack().await {
                    Outcome::Held { evidence } => (Seen::Survived(evidence), None),
                    Outcome::Violated {
                        counterexample,
                        judged,
                        late,
                        history,
                        ..
                    } if judged || late => (Seen::Counterexample(counterexample), history),
                    Outcome::NotRun { why, excused: true } => (Seen::NoControl(why), None),
                    broken_off => (Seen::NotBroughtAbout(broken_off.details()), None),
                };
                Outcome::NotPromised {
                    line,
                    reason,
                    seen,
                    history,
                }
            }
        }
    }
}

fn no_way_to(control: Need) -> String {
    format!("there is no way to {}", control.describe())
}

fn either(verdict: Verdict) -> Outcome {
    match verdict {
        Ok(outcome) | Err(outcome) => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::out_of_order;

    #[test]
    fn a_test_bed_that_fails_is_nobodys_violation() {
        let failed = out_of_order(std::io::Error::other("no room on the disk"));
        assert_eq!(
            Outcome::from(failed).to_string(),
            "not run: the test bed failed: no room on the disk"
        );

        let refused = Error::new(ErrorKind::Unavailable, "nobody listens")
            .with_source(std::io::Error::other("refused"));
        assert_eq!(Outcome::from(refused).word(), "violated");
    }
}
