//! Which deployment promises what: the line of [`Guarantees`] that each case asks.

use tenure_core::Guarantees;
use tenure_core::guarantees::{
    Barriers, Cancellation, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit, HandOff, Line, LossSignal,
    MinorityLoss, NameIsolation, Observers, QueueDelivery, QueueOrder, Release, Resume, RwOrder, TokenOrder,
    Transactions, UnknownCommit,
};

use crate::case::Promise;

/// Makes a promise that no store may deny.
pub(crate) fn always(_: &Guarantees) -> Promise {
    Promise::Made
}

macro_rules! promises {
    ($($name:ident $field:ident $line:ident $made:expr;)*) => {$(
        pub(crate) fn $name(guarantees: &Guarantees) -> Promise {
            Promise::of(Line::$line, &guarantees.$field, $made)
        }
    )*};
}

promises! {
    one_holder_always mutual_exclusion MutualExclusion |it| *it == Exclusion::Always;
    tokens_rise token_order TokenOrder |it| *it >= TokenOrder::ClientCrash;
    tokens_survive_a_restart token_order TokenOrder |it| *it >= TokenOrder::StoreRestart;
    tokens_survive_a_failover token_order TokenOrder |it| *it >= TokenOrder::Failover;
    fifo hand_off HandOff |it| *it == HandOff::Fifo;
    expiry_is_bounded expiry Expiry |it| *it != Expiry::Unbounded;
    expiry_never_restarts expiry Expiry |it| matches!(it, Expiry::Within(_) | Expiry::WithinByClock(_));
    expiry_ignores_the_wall_clock expiry Expiry |it| matches!(it, Expiry::Within(_) | Expiry::WithinSinceRestart(_));
    never_early early_release EarlyRelease |it| *it == EarlyRelease::Never;
    loss_by_deadline loss_signal LossSignal |it| *it == LossSignal::ByDeadline;
    prompt_cancellation cancellation Cancellation |it| *it == Cancellation::Prompt;
    fenced_release fenced_release FencedRelease |it| *it == Release::Fenced;
    isolated_names name_isolation NameIsolation |it| *it == NameIsolation::Isolated;
    resumable resume Resume |it| *it == Resume::OneUse;
    observers_converge observers Observers |it| *it == Observers::Converge;
    delivers_until_acknowledged queue_delivery QueueDelivery |it| *it == QueueDelivery::AtLeastOnce;
    queues_in_order queue_order QueueOrder |it| *it == QueueOrder::PriorityThenFifo;
    durable durability Durability |it| *it == Durability::Durable;
    stored durability Durability |it| *it != Durability::Volatile;
    survives_minority_loss minority_loss MinorityLoss |it| *it == MinorityLoss::Survives;
    the_dead_do_not_count barriers Barriers |it| *it == Barriers::DeadRemoved;
    rw_locks rw_order RwOrder |it| *it != RwOrder::Unsupported;
    rw_by_arrival rw_order RwOrder |it| *it == RwOrder::Arrival;
    transactions isolation Isolation |it| *it != Transactions::Unsupported;
    strictly_serializable isolation Isolation |it| *it == Transactions::StrictSerializable;
    fenced_commit fenced_commit FencedCommit |it| *it == FencedCommit::Atomic;
    commits_are_resolved unknown_commit UnknownCommit |it| *it == UnknownCommit::Resolved;
}
