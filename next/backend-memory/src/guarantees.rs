//! The guarantees of the embedded store.

use std::time::Duration;

use tenure_core::Guarantees;
use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, Guarantee, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};

/// The longest delay of a waiter's timer: tokio's timers have a resolution of 1 ms, the rest allows for a busy scheduler.
const LATE: Duration = Duration::from_millis(250);

pub(crate) fn guarantees() -> Guarantees {
    Guarantees {
        deployment: "embedded, in the memory of this process".into(),
        scope: Scope::Process,
        mutual_exclusion: Guarantee::new(
            Exclusion::Always,
            "each step runs under one mutex, and the store and the holder judge a lease by the same clock",
        ),
        token_order: Guarantee::new(
            TokenOrder::ClientCrash,
            "each namespace has one counter, which ends with the process: use a networked store to outlive it",
        ),
        hand_off: Guarantee::new(
            HandOff::Fifo,
            "each name has a wait queue in the order of arrival; a release grants to the first waiter",
        ),
        expiry: Guarantee::new(
            Expiry::Within(LATE),
            "each waiter sleeps until the lease before it ends; a dead waiter keeps its place for its own TTL",
        ),
        early_release: Guarantee::new(
            EarlyRelease::Never,
            "a lease ends exactly its TTL after the last renewal, or on an operator's command",
        ),
        loss_signal: Guarantee::new(LossSignal::ByDeadline, "judged by the local clock, less a margin"),
        cancellation: Guarantee::new(
            Cancellation::Prompt,
            "a cancelled request is withdrawn by its nonce at once",
        ),
        fenced_release: Guarantee::new(Release::Fenced, "a release names its session, its nonce and its token"),
        name_isolation: Guarantee::new(
            NameIsolation::Isolated,
            "each namespace has its own state, and objects are found by kind and whole name",
        ),
        resume: Guarantee::new(
            Resume::OneUse,
            "a detached session can be resumed once, within the same process and its TTL",
        ),
        rw_order: Guarantee::new(
            RwOrder::Arrival,
            "readers and writers share one wait queue; adjacent readers are granted together",
        ),
        observers: Guarantee::new(
            Observers::Converge,
            "the states of elections are numbered under the mutex, and each change wakes the observers",
        ),
        queue_delivery: Guarantee::new(
            QueueDelivery::AtLeastOnce,
            "an item stays until it is acknowledged; the end of its consumer's session gives it back",
        ),
        queue_order: Guarantee::new(
            QueueOrder::PriorityThenFifo,
            "items are kept by priority and number of acceptance, and a returned item keeps both",
        ),
        barriers: Guarantee::new(
            Barriers::DeadRemoved,
            "participants and held barriers belong to a session, and end with it",
        ),
        isolation: Guarantee::new(
            Transactions::StrictSerializable,
            "a commit compares and writes under one mutex; each read of an attempt is compared with its earlier reads",
        ),
        fenced_commit: Guarantee::new(FencedCommit::Atomic, "the commit checks the guard under the same mutex"),
        unknown_commit: Guarantee::new(
            UnknownCommit::Resolved,
            "each commit leaves its outcome in a slot of its session, and resolving it closes the slot to it",
        ),
        durability: Guarantee::new(
            Durability::Volatile,
            "nothing is on disk: use a networked store to outlive the process",
        ),
        minority_loss: Guarantee::new(MinorityLoss::SingleMember, "the process is the store"),
    }
}
