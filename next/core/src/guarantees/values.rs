//! The values of the lines of the matrix.

use std::fmt;
use std::time::Duration;

/// A value that can be compared with another of its line. Public in a private module, so that no other crate implements it.
pub trait Value: Copy + fmt::Display {
    /// Returns whether this guarantee includes `wanted`.
    fn includes(self, wanted: Self) -> bool;
}

macro_rules! in_words {
    ($($(#[$meta:meta])* $type:ident { $($(#[$doc:meta])* $value:ident $words:literal,)* })*) => {$(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum $type {
            $($(#[$doc])* $value,)*
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$value => $words,)* })
            }
        }
    )*};
}

macro_rules! in_order {
    ($($(#[$meta:meta])* $type:ident { $($values:tt)* })*) => {$(
        in_words! {
            $(#[$meta])*
            ///
            /// Each value includes those before it.
            #[derive(PartialOrd, Ord)]
            $type { $($values)* }
        }

        impl Value for $type {
            fn includes(self, wanted: Self) -> bool {
                self >= wanted
            }
        }
    )*};
}

in_order! {
    /// Whose clients a store coordinates.
    Scope {
        /// The clients of one process.
        Process "one process",
        /// The processes of one machine.
        Host "one machine",
        /// The processes of all machines that reach the store.
        Network "a network",
    }

    /// L2: the events across which tokens stay ordered.
    TokenOrder {
        /// No event: tokens may repeat.
        None "nothing",
        /// A crash of clients.
        ClientCrash "client crash",
        /// A crash and restart of the store.
        StoreRestart "store restart",
        /// The loss of a member, with failover.
        Failover "failover",
    }

    /// L3: the order in which waiters are granted.
    HandOff {
        /// No specified order.
        Unordered "unordered",
        /// The order of arrival, across processes.
        Fifo "FIFO",
    }

    /// S3: whether the store may free a live lease before its TTL.
    EarlyRelease {
        /// On the events that the reason lists.
        OnEvents "on some events",
        /// Only on an operator's command.
        Never "never",
    }

    /// S2: the latest time at which a holder detects that it lost its holding.
    LossSignal {
        /// The local deadline, independent of the network.
        ByDeadline "by the deadline",
    }

    /// L5: how soon the store removes a cancelled wait.
    Cancellation {
        /// When the session ends, at the latest.
        UntilSessionEnds "with its session",
        /// As soon as the store answers.
        Prompt "at once",
    }

    /// L7: the effect of a release by a session that is no longer the holder.
    Release {
        /// The release may free the lock of another holder.
        Unfenced "may free another's",
        /// The release fails with `Lost`, and the new holder keeps the lock.
        Fenced "refused as Lost",
    }

    /// L8: whether names can collide.
    NameIsolation {
        /// Names are used verbatim, to share them with other clients: one name may contain another.
        Verbatim "verbatim, may nest",
        /// Different names never block each other.
        Isolated "isolated",
    }

    /// S4: whether a session can outlive its process.
    Resume {
        /// A session cannot be detached.
        Unsupported "no",
        /// A session can be detached, and resumed once.
        OneUse "yes, once",
    }

    /// R2: fairness between readers and writers.
    RwOrder {
        /// The store has no read-write locks.
        Unsupported "none",
        /// No specified order: readers or writers may starve.
        Unordered "unordered",
        /// The order of arrival; consecutive readers are granted together. Neither readers nor writers starve.
        Arrival "by arrival",
    }

    /// E4: what an observer of an election sees.
    Observers {
        /// The store has no elections.
        Unsupported "none",
        /// The observer may miss the latest state, or see an older one again, after some events.
        MayMiss "may miss the latest",
        /// The observer sees the present state first, and the latest one eventually, even if its connection fails. It never
        /// sees an older state after a newer one.
        Converge "to the latest state, never back",
    }

    /// Q3: the order in which the items of a queue are delivered.
    QueueOrder {
        /// The store has no queues.
        Unsupported "none",
        /// No specified order.
        Unordered "unordered",
        /// By priority, then by acceptance. A returned item keeps its place.
        PriorityThenFifo "by priority, then FIFO",
    }

    /// B4: the effect of a participant's death on its barriers.
    Barriers {
        /// The store has no barriers.
        Unsupported "none",
        /// The other participants wait until an operator removes the dead one.
        Blocked "blocks the others",
        /// As `DeadRemoved`, among clients that use tenure. Another client may block the others, or pass alone.
        Cooperative "removed, among tenure's own",
        /// A participant no longer counts once its session has ended, neither to enter nor to leave. A barrier held for the
        /// session is released. `expiry` bounds the delay.
        DeadRemoved "removed",
    }

    /// T1: the consistency of committed transactions.
    Transactions {
        /// The store has no transactions.
        Unsupported "none",
        /// Transactions appear to run one after another, in an order that may differ from real time.
        Serializable "serializable",
        /// Transactions appear to run one after another, each at an instant between its call and its return.
        StrictSerializable "strictly serializable",
    }

    /// T3: a transaction bound to a guard.
    FencedCommit {
        /// The store cannot bind a transaction to a guard.
        Unsupported "none",
        /// The transaction commits only if the guard is held in the store in the same atomic step.
        Atomic "only while held in the store",
    }

    /// T4: the handling of a commit whose answer was lost.
    UnknownCommit {
        /// The store has no transactions.
        Unsupported "none",
        /// The commit is reported as `CommitUnknown`.
        Reported "reported as unknown",
        /// The outcome is determined as soon as the store answers again, if the session is alive. Otherwise the commit is
        /// reported as `CommitUnknown`.
        Resolved "resolved",
    }

    /// Whether an acknowledged write survives a crash of the store.
    Durability {
        /// All data ends with the store's process.
        Volatile "in memory only",
        /// Items of queues and writes of transactions are on disk. Holdings are not, and end with the store's process.
        Stored "stored data on disk, holdings in memory",
        /// The write is on disk before it is acknowledged.
        Durable "on disk",
    }

    /// Whether the store stays available when a minority of its members is lost.
    MinorityLoss {
        /// The store has one member: there is no minority to lose.
        SingleMember "no: one member",
        /// The store stays available.
        Survives "survived",
    }
}

in_words! {
    /// L1: mutual exclusion. `Always` includes the other two, which exclude each other.
    Exclusion {
        /// At most one valid guard, under every fault that the suite injects.
        Always "always",
        /// At most one valid guard unless one of the events of `early_release` occurs. The tokens that a resource accepts stay in
        /// order even then.
        UnlessReleasedEarly "unless released early",
        /// At most one valid guard among clients that follow the protocol: another client may interfere.
        Cooperative "among tenure's own",
    }

    /// Q1: how often an accepted item of a queue is delivered. No value includes another.
    QueueDelivery {
        /// The item is delivered until a consumer acknowledges it: at least once, and to one consumer at a time.
        AtLeastOnce "at least once",
        /// A consumer may remove an item before its work is done, and crash: the item is delivered at most once.
        AtMostOnce "at most once",
        /// The store has no queues.
        Unsupported "none",
    }
}

impl Value for Exclusion {
    fn includes(self, wanted: Self) -> bool {
        self == Self::Always || self == wanted
    }
}

impl Value for QueueDelivery {
    fn includes(self, wanted: Self) -> bool {
        self == wanted
    }
}

/// S3: the latest time at which the store frees a dead session's holdings. `Within` includes every value with a longer bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// Within the TTL plus this duration.
    Within(Duration),
    /// Within the TTL plus this duration, counted from the last restart or leader change of the store.
    WithinSinceRestart(Duration),
    /// Within the TTL plus this duration, by the store's wall clock. If that clock is set back, expiry is delayed by as much.
    WithinByClock(Duration),
    /// No bound.
    Unbounded,
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Within(bound) => write!(f, "TTL + {bound:?}"),
            Self::WithinSinceRestart(bound) => {
                write!(f, "TTL + {bound:?}, restarted at each leader change")
            }
            Self::WithinByClock(bound) => {
                write!(f, "TTL + {bound:?}, later if its clock is set back")
            }
            Self::Unbounded => f.write_str("no bound"),
        }
    }
}

impl Value for Expiry {
    fn includes(self, wanted: Self) -> bool {
        match (self, wanted) {
            (_, Self::Unbounded) => true,
            (
                Self::Within(bound),
                Self::Within(wanted) | Self::WithinSinceRestart(wanted) | Self::WithinByClock(wanted),
            )
            | (Self::WithinSinceRestart(bound), Self::WithinSinceRestart(wanted))
            | (Self::WithinByClock(bound), Self::WithinByClock(wanted)) => bound <= wanted,
            _ => false,
        }
    }
}
