//! The guarantees of the embedded store.

use std::time::Duration;

use tenure_core::Guarantees;
use tenure_core::guarantees::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};

/// The longest delay of a waiter's timer: tokio's timers have a resolution of 1 ms, the rest allows for a busy scheduler.
const LATE: Duration = Duration::from_millis(250);

pub(crate) fn guarantees() -> Guarantees {
    Guarantees {
        deployment: "embedded, in the memory of this process".into(),
        scope: Scope::Process,
        mutual_exclusion: Claim::new(
            Exclusion::Always,
            "each step runs under one mutex, and the store and the holder judge a lease by the same clock",
        ),
        token_order: Claim::new(
            TokenOrder::ClientCrash,
            "each namespace has one counter, which ends with the process: use a networked store to outlive it",
        ),
        hand_off: Claim::new(
            HandOff::Fifo,
            "each name has a wait queue in the order of arrival; a release grants to the first waiter",
        ),
        expiry: Claim::new(
            Expiry::Within(LATE),
            "each waiter sleeps until the lease before it ends; a dead waiter keeps its place for its own TTL",
        ),
        early_release: Claim::new(
            EarlyRelease::Never,
            "a lease ends exactly its TTL after the last renewal, or on an operator's command",
        ),
        loss_signal: Claim::new(LossSignal::ByDeadline, "judged by the local clock, less a margin"),
        cancellation: Claim::new(
            Cancellation::Prompt,
            "a cancelled request is withdrawn by its nonce at once",
        ),
        fenced_release: Claim::new(Release::Fenced, "a release names its session, its nonce and its token"),
        name_isolation: Claim::new(
            NameIsolation::Isolated,
            "each namespace has its own state, and objects are found by kind and whole name",
        ),
        resume: Claim::new(
            Resume::OneUse,
            "a detached session can be resumed once, within the same process and its TTL",
        ),
        rw_order: Claim::new(
            RwOrder::Arrival,
            "readers and writers share one wait queue; adjacent readers are granted together",
        ),
        observers: Claim::new(
            Observers::Converge,
            "the states of elections are numbered under the mutex, and each change wakes the observers",
        ),
        queue_delivery: Claim::new(
            QueueDelivery::AtLeastOnce,
            "an item stays until it is acknowledged; the end of its consumer's session gives it back",
        ),
        queue_order: Claim::new(
            QueueOrder::PriorityThenFifo,
            "items are kept by priority and number of acceptance, and a returned item keeps both",
        ),
        barriers: Claim::new(
            Barriers::DeadRemoved,
            "participants and held barriers belong to a session, and end with it",
        ),
        isolation: Claim::new(
            Transactions::StrictSerializable,
            "a commit compares and writes under one mutex; each read of an attempt is compared with its earlier reads",
        ),
        fenced_commit: Claim::new(FencedCommit::Atomic, "the commit checks the guard under the same mutex"),
        unknown_commit: Claim::new(
            UnknownCommit::Resolved,
            "each commit leaves its outcome in a slot of its session, and resolving it closes the slot to it",
        ),
        durability: Claim::new(
            Durability::Volatile,
            "nothing is on disk: use a networked store to outlive the process",
        ),
        minority_loss: Claim::new(MinorityLoss::SingleMember, "the process is the store"),
    }
}
