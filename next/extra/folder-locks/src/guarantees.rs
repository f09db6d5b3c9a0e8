//! The guarantees of a folder.

use std::path::Path;
use std::time::Duration;

use tenure_core::Guarantees;
use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, Guarantee, HandOff, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, Scope, TokenOrder,
    Transactions, UnknownCommit,
};

/// The longest delay of a waiter: it looks every 10 ms, the rest allows for a busy machine.
const LATE: Duration = Duration::from_millis(500);

const ONLY_LOCKS: &str = "a folder has locks and nothing else";

pub(crate) fn guarantees(folder: &Path) -> Guarantees {
    Guarantees {
        deployment: format!("the folder {}", folder.display()),
        scope: Scope::Host,
        mutual_exclusion: Guarantee::new(
            Exclusion::Always,
            "steps run one at a time under a lock of the kernel, and all judge leases by the kernel's boot-time clock",
        ),
        token_order: Guarantee::new(
            TokenOrder::ClientCrash,
            "the counter is in a file, which is not forced to the disk: a power failure may take it back",
        ),
        hand_off: Guarantee::new(HandOff::Fifo, "each name has its places in the order of arrival"),
        expiry: Guarantee::new(
            Expiry::Within(LATE),
            "each waiter looks again when the lease before it ends",
        ),
        early_release: Guarantee::new(
            EarlyRelease::Never,
            "a lease ends exactly its TTL after its last renewal",
        ),
        loss_signal: Guarantee::new(LossSignal::ByDeadline, "judged by the local clock, less a margin"),
        cancellation: Guarantee::new(
            Cancellation::Prompt,
            "a cancelled request is withdrawn by its nonce at once",
        ),
        fenced_release: Guarantee::new(Release::Fenced, "a release names its session, its nonce and its token"),
        name_isolation: Guarantee::new(NameIsolation::Isolated, "objects are found by kind and whole name"),
        resume: Guarantee::new(Resume::Unsupported, "no session can be detached"),
        rw_order: Guarantee::new(RwOrder::Unsupported, ONLY_LOCKS),
        observers: Guarantee::new(Observers::Unsupported, ONLY_LOCKS),
        queue_delivery: Guarantee::new(QueueDelivery::Unsupported, ONLY_LOCKS),
        queue_order: Guarantee::new(QueueOrder::Unsupported, ONLY_LOCKS),
        barriers: Guarantee::new(Barriers::Unsupported, ONLY_LOCKS),
        isolation: Guarantee::new(Transactions::Unsupported, ONLY_LOCKS),
        fenced_commit: Guarantee::new(FencedCommit::Unsupported, ONLY_LOCKS),
        unknown_commit: Guarantee::new(UnknownCommit::Unsupported, ONLY_LOCKS),
        durability: Guarantee::new(Durability::Volatile, "nothing is forced to the disk"),
        minority_loss: Guarantee::new(MinorityLoss::SingleMember, "the machine is the store"),
    }
}
