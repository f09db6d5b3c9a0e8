//! What a deployment promises, as data.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

/// One promise (or its denial), and the reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim<T> {
    /// What is promised.
    pub value: T,
    /// Why that much, or why not more; with what to change to get more.
    pub reason: Cow<'static, str>,
}

impl<T> Claim<T> {
    /// `value`, because of `reason`.
    pub fn new(value: T, reason: impl Into<Cow<'static, str>>) -> Self {
        Self {
            value,
            reason: reason.into(),
        }
    }
}

/// What one live deployment guarantees: a field for each line of the matrix.
///
/// A backend reads it off the server and its settings, never off the brand. The conformance
/// suite attacks what is claimed and produces a counterexample for what is denied.
///
/// It is built as a literal with every field, on purpose: whoever adds a line here meets every
/// backend that does not answer it. Nobody claims by omission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guarantees {
    /// The store in words, with version and shape: `etcd 3.4.23, 1 member`.
    pub deployment: String,
    /// L1: at most one valid guard for a name.
    pub mutual_exclusion: Claim<Exclusion>,
    /// L2: what the order of tokens survives.
    pub token_order: Claim<TokenOrder>,
    /// L3: in which order waiters are granted.
    pub hand_off: Claim<HandOff>,
    /// S3: how late the store frees what a dead session held. The earliest is the TTL.
    pub expiry: Claim<Expiry>,
    /// S3: whether the store may free a live lease before its TTL.
    pub early_release: Claim<EarlyRelease>,
    /// S2: when a holder learns of its loss.
    pub loss_signal: Claim<LossSignal>,
    /// L5: how soon a cancelled wait is gone from the store.
    pub cancellation: Claim<Cancellation>,
    /// L7: what a release by somebody who no longer holds does.
    pub fenced_release: Claim<Release>,
    /// L8: whether names can collide.
    pub name_isolation: Claim<NameIsolation>,
    /// S4: whether a session can be detached and resumed.
    pub resume: Claim<Resume>,
    /// E4: what an observer of an election is promised.
    pub observers: Claim<Observers>,
    /// B4: what the death of a participant does to a double barrier, and to what its session holds.
    pub barriers: Claim<Barriers>,
    /// T1: what committed transactions are like, at the serializable levels.
    pub isolation: Claim<Transactions>,
    /// T3: whether a transaction can be bound to a guard.
    pub fenced_commit: Claim<FencedCommit>,
    /// T4: what becomes of a commit whose answer was lost.
    pub unknown_commit: Claim<UnknownCommit>,
    /// Q1: how often an accepted item is delivered.
    pub queue_delivery: Claim<QueueDelivery>,
    /// Q3: in which order items are delivered.
    pub queue_order: Claim<QueueOrder>,
    /// Whether what was acknowledged outlives the crash of the store, or of the member that acknowledged it.
    pub durability: Claim<Durability>,
    /// Whether the store goes on when a minority of its members is lost.
    pub minority_loss: Claim<MinorityLoss>,
    /// R2: in which order readers and writers are granted.
    pub rw_order: Claim<RwOrder>,
}

/// L1: mutual exclusion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Exclusion {
    /// At most one valid guard, under every fault that the suite knows.
    Always,
    /// Only as long as the events of `early_release` stay away; the tokens that a resource
    /// accepts stay in order even then.
    UnlessReleasedEarly,
    /// Only among those who follow the same protocol: a foreign client may break in.
    Cooperative,
}

/// L2: what the order of tokens survives. Each value includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum TokenOrder {
    /// Nothing: tokens may repeat.
    None,
    /// The crash of clients.
    ClientCrash,
    /// The crash and restart of the store.
    StoreRestart,
    /// The loss of a member, with failover.
    Failover,
}

/// L3: the order of hand-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HandOff {
    /// In the order of arrival, across processes.
    Fifo,
    /// In no stated order.
    Unordered,
}

/// S3: how late the store frees a dead session's holdings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// Within TTL plus this.
    Within(Duration),
    /// Within TTL plus this, counted anew from each restart or change of leader of the store.
    WithinOrAnew(Duration),
    /// Within TTL plus this by the store's wall clock: when that is set back, as much later.
    WithinByClock(Duration),
    /// Without a bound.
    Unbounded,
}

/// S3: whether the store may free a live lease before its TTL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EarlyRelease {
    /// Never, short of an operator's order.
    Never,
    /// On the events that the reason lists.
    OnEvents,
}

/// S2: when a holder learns that it lost its holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LossSignal {
    /// By the local deadline, whatever the network does.
    ByDeadline,
}

/// L5: how soon a cancelled wait is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancellation {
    /// As soon as the store answers.
    Prompt,
    /// When the session ends.
    UntilSessionEnds,
}

/// L7: a release by one who no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Release {
    /// Is told `Lost`, and spares the new holder.
    Fenced,
    /// May free the new holder's lock.
    Unfenced,
}

/// L8: whether names can meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameIsolation {
    /// Different names never block each other.
    Isolated,
    /// Names are taken verbatim, to be shared with foreign clients: one may contain another.
    Verbatim,
}

/// S4: whether a session survives its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resume {
    /// It can be detached, and resumed once.
    OneUse,
    /// It cannot.
    Unsupported,
}

/// E4: what an observer of an election is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Observers {
    /// Starts with the present, ends up at the latest state whatever happens to its connection, and
    /// never shows an older state after a newer one.
    Converge,
    /// May stay behind, or go back, after some events.
    MayMiss,
}

/// B4: what the death of a participant does to the barriers that it was at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Barriers {
    /// From the end of its session on it does not count, neither to let others in nor to keep them
    /// from leaving, and a barrier held for the session is free. How late that is, `expiry` says.
    WithoutTheDead,
    /// As before, among tenure's own: a foreign client may keep others waiting, or pass alone.
    Cooperative,
    /// The others wait until somebody cleans up.
    HeldUp,
}

/// T1: what committed transactions are like, at the levels `SerializableSnapshot` and
/// `Serializable`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Transactions {
    /// As if one after the other, each at an instant between its call and its return.
    StrictSerializable,
    /// As if one after the other, in an order that need not be that of time.
    Serializable,
    /// There are none.
    Unsupported,
}

/// T3: a transaction that is bound to a guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FencedCommit {
    /// Commits only if that is held in the store in the same atomic step.
    Atomic,
    /// There is none.
    Unsupported,
}

/// T4: a commit whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnknownCommit {
    /// Is found out as soon as the store answers again within the session's life; else it is
    /// reported as `CommitUnknown`.
    Resolved,
    /// Is reported as `CommitUnknown`.
    Reported,
    /// There is none.
    Unsupported,
}

/// Q1: how often an accepted item of a queue is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueDelivery {
    /// Until a consumer acknowledges it: at least once, and to one consumer at a time.
    AtLeastOnce,
    /// Some consumer may remove an item before its work is done, and die: at most once.
    AtMostOnce,
}

/// Q3: the order in which items of a queue are delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueueOrder {
    /// By priority, then as the store accepted them; what comes back keeps its place.
    PriorityThenFifo,
    /// In no stated order.
    Unordered,
}

/// Whether an acknowledged grant outlives the store's own crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Durability {
    /// It is on disk before it is acknowledged.
    Durable,
    /// What is stored is: items of queues, and what transactions wrote. What is held is not, and ends with the
    /// store's process.
    Stored,
    /// It is gone with the store's process.
    Volatile,
}

/// Whether the store goes on when a minority of its members is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MinorityLoss {
    /// It does.
    Survives,
    /// There is no minority to lose: one member is all.
    SingleMember,
}

/// R2: fairness between readers and writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RwOrder {
    /// In the order in which the store saw them arrive, neighbouring readers together: neither
    /// side starves.
    Arrival,
    /// In no order: one side may starve.
    Unordered,
    /// There are no read-write locks.
    Unsupported,
}

/// One line of the matrix, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Which line.
    pub line: Line,
    /// What is promised, in a few words.
    pub value: String,
    /// Why.
    pub reason: String,
}

macro_rules! lines {
    ($($line:ident $field:ident $rule:literal $title:literal;)*) => {
        /// A line of the matrix: what a conformance case attacks.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Line {
            $(#[doc = $title] $line,)*
        }

        impl Line {
            /// All lines, in the order of the matrix.
            pub const ALL: &'static [Self] = &[$(Self::$line),*];

            /// The line's title.
            pub const fn title(self) -> &'static str {
                match self { $(Self::$line => $title,)* }
            }

            /// The rule of the contract that it is about; empty where the line is wider than one.
            pub const fn rule(self) -> &'static str {
                match self { $(Self::$line => $rule,)* }
            }
        }

        impl Guarantees {
            /// The matrix's column for this deployment.
            pub fn rows(&self) -> Vec<Row> {
                vec![$(Row {
                    line: Line::$line,
                    value: self.$field.value.to_string(),
                    reason: self.$field.reason.to_string(),
                },)*]
            }
        }
    };
}

lines! {
    MutualExclusion mutual_exclusion "L1" "mutual exclusion";
    TokenOrder token_order "L2" "token order survives";
    HandOff hand_off "L3" "hand-off order";
    Expiry expiry "S3" "dead holder freed";
    EarlyRelease early_release "S3" "freed before its TTL";
    LossSignal loss_signal "S2" "loss signalled";
    Cancellation cancellation "L5" "cancelled wait gone";
    FencedRelease fenced_release "L7" "late release";
    NameIsolation name_isolation "L8" "names";
    Resume resume "S4" "detach and resume";
    RwOrder rw_order "R2" "readers and writers";
    Observers observers "E4" "election observed";
    QueueDelivery queue_delivery "Q1" "queued item delivered";
    QueueOrder queue_order "Q3" "queue order";
    Barriers barriers "B4" "a participant's death";
    Isolation isolation "T1" "transactions";
    FencedCommit fenced_commit "T3" "commit bound to a guard";
    UnknownCommit unknown_commit "T4" "commit without an answer";
    Durability durability "" "acknowledged grant";
    MinorityLoss minority_loss "" "minority lost";
}

macro_rules! words {
    ($type:ident { $($value:ident => $words:literal,)* }) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $words,)* })
            }
        }
    };
}

words!(Exclusion {
    Always => "always",
    UnlessReleasedEarly => "unless released early",
    Cooperative => "among tenure's own",
});
words!(TokenOrder {
    None => "nothing",
    ClientCrash => "client crash",
    StoreRestart => "store restart",
    Failover => "failover",
});
words!(HandOff { Fifo => "FIFO", Unordered => "unordered", });
words!(EarlyRelease { Never => "never", OnEvents => "on some events", });
words!(LossSignal { ByDeadline => "by the deadline", });
words!(Cancellation { Prompt => "at once", UntilSessionEnds => "with its session", });
words!(Release { Fenced => "refused as Lost", Unfenced => "may free another's", });
words!(NameIsolation { Isolated => "isolated", Verbatim => "verbatim, may nest", });
words!(Resume { OneUse => "yes, once", Unsupported => "no", });
words!(Observers {
    Converge => "to the latest state, never back",
    MayMiss => "may stay behind",
});

words!(Barriers {
    WithoutTheDead => "it does not count",
    Cooperative => "among tenure's own",
    HeldUp => "holds the others up",
});

words!(Transactions {
    StrictSerializable => "strictly serializable",
    Serializable => "serializable",
    Unsupported => "none",
});
words!(FencedCommit { Atomic => "only while held in the store", Unsupported => "none", });
words!(UnknownCommit {
    Resolved => "found out",
    Reported => "reported as unknown",
    Unsupported => "none",
});
words!(QueueDelivery { AtLeastOnce => "at least once", AtMostOnce => "at most once", });
words!(QueueOrder { PriorityThenFifo => "by priority, then FIFO", Unordered => "unordered", });
words!(Durability {
    Durable => "on disk",
    Stored => "in memory only, but what is stored on disk",
    Volatile => "in memory only",
});
words!(MinorityLoss { Survives => "survived", SingleMember => "no: one member", });
words!(RwOrder {
    Arrival => "by arrival",
    Unordered => "unordered",
    Unsupported => "none here",
});

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within(bound) => write!(f, "TTL + {bound:?}"),
            Self::WithinOrAnew(bound) => write!(f, "TTL + {bound:?}, anew at each leader change"),
            Self::WithinByClock(bound) => {
                write!(f, "TTL + {bound:?}, later if its clock is set back")
            }
            Self::Unbounded => f.write_str("no bound"),
        }
    }
}
