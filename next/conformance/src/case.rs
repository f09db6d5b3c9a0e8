//! A case: one attack on one promise.

use std::fmt;

use futures_util::future::LocalBoxFuture;
use tenure_core::Guarantees;
use tenure_core::guarantees::{Guarantee, Line};

use crate::harness::{Harness, Need};
use crate::outcome::{Outcome, Verdict};
use crate::promise;
use crate::roles::Role;

/// A deployment's promise, or denial, of the guarantee that a case attacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Promise {
    /// The deployment promises the guarantee.
    Made,
    /// The deployment does not promise it.
    Denied {
        /// The line of the matrix that denies it.
        line: Line,
        /// The reason, in the words of the store.
        reason: String,
    },
}

impl Promise {
    /// Returns the promise that `claim`, the line `line` of the matrix, makes if `made` says so of its value.
    pub fn of<T>(line: Line, claim: &Guarantee<T>, made: impl FnOnce(&T) -> bool) -> Self {
        if made(&claim.value) {
            return Self::Made;
        }
        Self::Denied {
            line,
            reason: claim.reason.to_string(),
        }
    }

    /// Returns this promise if it is denied, otherwise `other`.
    #[must_use]
    pub fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Made => other(),
            denied @ Self::Denied { .. } => denied,
        }
    }
}

/// A function that returns whether a deployment promises the guarantee.
pub type Promises = fn(&Guarantees) -> Promise;

/// How a case attacks.
#[derive(Clone, Copy)]
pub enum Attack {
    /// One function.
    Single(for<'a> fn(&'a dyn Harness) -> LocalBoxFuture<'a, Verdict>),
    /// A rule of the table, for one role.
    Cell(for<'a> fn(&'a dyn Harness, Role) -> LocalBoxFuture<'a, Verdict>, Role),
    /// A rule of the table that several roles are put to at once, with one wait for all; this case is that of one role.
    /// The function returns an outcome for each role.
    Scene(
        for<'a> fn(&'a dyn Harness, &'a [Role]) -> LocalBoxFuture<'a, Vec<Outcome>>,
        Role,
    ),
}

/// One attack on one promise.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Case {
    /// The name, which starts with the rule: `l3_waiters_are_granted_in_order`.
    pub id: &'static str,
    /// The rule of the contract: `L3`.
    pub rule: &'static str,
    /// The requirement, in a sentence.
    pub title: &'static str,
    /// The line of the matrix for which this is evidence.
    pub line: Option<Line>,
    /// The controls that the case needs.
    pub needs: &'static [Need],
    /// Whether a deployment promises the guarantee.
    pub promise: Promises,
    /// The attack, which runs whether the guarantee is promised or not.
    pub attack: Attack,
}

impl Case {
    /// Describes a case of a promise that no store may deny, which needs no control.
    pub const fn new(id: &'static str, rule: &'static str, title: &'static str, attack: Attack) -> Self {
        Self {
            id,
            rule,
            title,
            line: None,
            needs: &[],
            promise: promise::always,
            attack,
        }
    }

    /// Sets the line of the matrix, and whether a deployment promises the guarantee.
    #[must_use]
    pub const fn promised(mut self, line: Line, promise: Promises) -> Self {
        self.line = Some(line);
        self.promise = promise;
        self
    }

    /// Sets the controls that the case needs.
    #[must_use]
    pub const fn needs(mut self, needs: &'static [Need]) -> Self {
        self.needs = needs;
        self
    }

    /// Returns the promise that a deployment makes, which for a cell depends on the role too.
    pub fn promise(&self, guarantees: &Guarantees) -> Promise {
        match self.attack {
            Attack::Single(_) => (self.promise)(guarantees),
            Attack::Cell(_, role) | Attack::Scene(_, role) => {
                role.promise(self.line, guarantees).and(|| (self.promise)(guarantees))
            }
        }
    }

    /// Returns whether the case needs a store of its own: one of its controls affects every client of the store.
    pub fn wants_own_store(&self) -> bool {
        self.needs.iter().any(|need| need.wants_own_store())
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Case").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Declares the cases of a module, one line each, above their functions:
///
/// ```ignore
/// cases! { CASES:
///     e1_one_candidate_leads "E1" "one candidate leads at a time" (Some(Line::MutualExclusion)) [] always;
///     e4_observers_see_a_vacancy "E4" "an observer sees the vacancy" (None) [Silence, Keys] observers_converge;
/// }
///
/// async fn e1_one_candidate_leads(harness: &dyn Harness) -> Verdict { .. }
/// ```
///
/// The last word names a function of [`promise`](crate::promise). A function that is not declared is dead code and does
/// not pass clippy.
macro_rules! cases {
    ($list:ident: $($id:ident $rule:literal $title:literal ($line:expr) [$($need:ident),*] $promise:ident;)*) => {
        /// The cases of this module.
        pub(crate) const $list: &[$crate::case::Case] = &[$($crate::case::Case {
            id: stringify!($id),
            rule: $rule,
            title: $title,
            line: $line,
            needs: &[$($crate::harness::Need::$need),*],
            promise: $crate::promise::$promise,
            attack: $crate::case::Attack::Single(|harness| Box::pin($id(harness))),
        },)*];
    };
}
pub(crate) use cases;
