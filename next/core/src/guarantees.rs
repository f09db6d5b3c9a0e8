//! The guarantees of a deployment, as data.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind, Result};

mod values;

use values::Value;
pub use values::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};

/// One guarantee or its denial, with a reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarantee<T> {
    /// The guarantee.
    pub value: T,
    /// Why the deployment guarantees this much and not more, and what to change to get more.
    pub reason: Cow<'static, str>,
}

impl<T> Guarantee<T> {
    /// Claims `value` for this `reason`.
    pub fn new(value: T, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            value,
            reason: reason.into(),
        }
    }
}

macro_rules! lines {
    ($($(#[$doc:meta])* $field:ident: $type:ident, $line:ident $rule:literal $title:literal;)*) => {
        /// The guarantees of one live deployment: one field for each line of the matrix.
        ///
        /// A backend derives them from the live server and its settings, never from the product's name. The conformance
        /// suite attacks each claimed guarantee and produces a counterexample for each denied one.
        ///
        /// Backends build it as a literal with every field, on purpose: a new field is a compile error in every backend that
        /// does not set it, so that no backend claims a guarantee by omission.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Guarantees {
            /// The store in words, with version and topology: `etcd 3.4.23, 1 member`.
            pub deployment: String,
            /// Whose clients the store coordinates.
            pub scope: Scope,
            $($(#[$doc])* pub $field: Guarantee<$type>,)*
        }

        /// A line of the matrix. Conformance cases name the line that they attack.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Line {
            $($(#[$doc])* $line,)*
        }

        impl Line {
            /// All lines, in the order of the matrix.
            pub const ALL: &'static [Self] = &[$(Self::$line),*];

            /// Returns the line's stable id: the name of its field.
            pub const fn id(self) -> &'static str {
                match self { $(Self::$line => stringify!($field),)* }
            }

            /// Returns the line's title.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$line => $title,)* }
            }

            /// Returns the line's rule in the contract; empty if the line concerns several rules.
            pub const fn rule(self) -> &'static str {
                match self { $(Self::$line => $rule,)* }
            }
        }

        impl Guarantees {
            /// Returns the value of `line` in words, and its reason.
            pub fn claim(&self, line: Line) -> (String, &str) {
                match line { $(Line::$line => (self.$field.value.to_string(), &self.$field.reason),)* }
            }
        }

        $(impl Requirement for $type {
            const TITLE: &'static str = Line::$line.title();

            fn claimed(guarantees: &Guarantees) -> (Self, &str) {
                (guarantees.$field.value, &guarantees.$field.reason)
            }
        })*
    };
}

lines! {
    /// L1: at most one valid guard for a name.
    mutual_exclusion: Exclusion, MutualExclusion "L1" "mutual exclusion";
    /// L2: the events across which tokens stay ordered.
    token_order: TokenOrder, TokenOrder "L2" "token order survives";
    /// L3: the order in which waiters are granted.
    hand_off: HandOff, HandOff "L3" "hand-off order";
    /// S3: the latest time at which the store frees the holdings of a dead session. The earliest is the TTL.
    expiry: Expiry, Expiry "S3" "dead holder freed";
    /// S3: whether the store may free a live lease before its TTL.
    early_release: EarlyRelease, EarlyRelease "S3" "freed before its TTL";
    /// S2: the latest time at which a holder detects its loss.
    loss_signal: LossSignal, LossSignal "S2" "loss signalled";
    /// L5: how soon the store removes a cancelled wait.
    cancellation: Cancellation, Cancellation "L5" "cancelled wait removed";
    /// L7: the effect of a release by a session that is no longer the holder.
    fenced_release: Release, FencedRelease "L7" "late release";
    /// L8: whether names can collide.
    name_isolation: NameIsolation, NameIsolation "L8" "names";
    /// S4: whether a session can be detached and resumed.
    resume: Resume, Resume "S4" "detach and resume";
    /// R2: the order in which readers and writers are granted.
    rw_order: RwOrder, RwOrder "R2" "readers and writers";
    /// E4: what an observer of an election sees.
    observers: Observers, Observers "E4" "election observed";
    /// Q1: how often an accepted item is delivered.
    queue_delivery: QueueDelivery, QueueDelivery "Q1" "queued item delivered";
    /// Q3: the order in which items are delivered.
    queue_order: QueueOrder, QueueOrder "Q3" "queue order";
    /// B4: the effect of a participant's death on a double barrier, and on a barrier held for its session.
    barriers: Barriers, Barriers "B4" "a participant's death";
    /// T1: the consistency of committed transactions, at the levels `SerializableSnapshot` and `Serializable`.
    isolation: Transactions, Isolation "T1" "transactions";
    /// T3: whether a transaction can be bound to a guard.
    fenced_commit: FencedCommit, FencedCommit "T3" "commit bound to a guard";
    /// T4: the handling of a commit whose answer was lost.
    unknown_commit: UnknownCommit, UnknownCommit "T4" "commit without an answer";
    /// Whether an acknowledged write survives a crash of the store, or of the member that acknowledged it.
    durability: Durability, Durability "" "acknowledged grant";
    /// Whether the store stays available when a minority of its members is lost.
    minority_loss: MinorityLoss, MinorityLoss "" "minority lost";
}

/// A property that an application can require of a store: see [`Guarantees::require`]. Other crates cannot implement it.
pub trait Requirement: Value {
    #[doc(hidden)]
    const TITLE: &'static str;

    /// Returns the value that the deployment guarantees, and the reason for it.
    #[doc(hidden)]
    fn claimed(guarantees: &Guarantees) -> (Self, &str);
}

impl Requirement for Scope {
    const TITLE: &'static str = "scope";

    fn claimed(guarantees: &Guarantees) -> (Self, &str) {
        (guarantees.scope, "")
    }
}

impl Guarantees {
    /// Returns the guarantees if they include `wanted`, so that requirements can be chained.
    ///
    /// Call it once after connecting: an application that was tested on one store then refuses to start on a weaker one.
    ///
    /// ```
    /// # fn check(guarantees: &tenure_core::Guarantees) -> tenure_core::Result<()> {
    /// use tenure_core::guarantees::{Exclusion, Scope, TokenOrder};
    ///
    /// guarantees
    ///     .require(Scope::Network)?
    ///     .require(Exclusion::Always)?
    ///     .require(TokenOrder::StoreRestart)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// `Unsupported`, with what is required, what is guaranteed, and why.
    pub fn require<R: Requirement>(&self, wanted: R) -> Result<&Self> {
        let (claimed, reason) = R::claimed(self);
        if claimed.includes(wanted) {
            return Ok(self);
        }
        let (deployment, title) = (&self.deployment, R::TITLE);
        let separator = if reason.is_empty() { "" } else { ": " };
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the application requires `{title}: {wanted}`, but {deployment} guarantees `{claimed}`{separator}{reason}"
            ),
        ))
    }
}
