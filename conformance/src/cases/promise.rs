//! Which deployment promises what: the line of [`Guarantees`] that each case asks.

use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit,
    Guarantees, HandOff, Line, LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery,
    QueueOrder, Release, Resume, RwOrder, TokenOrder, Transactions, UnknownCommit,
};

use crate::case::Promise;

fn claims<T>(line: Line, claim: &Claim<T>, made: impl FnOnce(&T) -> bool) -> Promise {
    if made(&claim.value) {
        Promise::Made
    } else {
        Promise::Denied {
            line,
            reason: claim.reason.to_string(),
        }
    }
}

/// What no store may deny.
pub(crate) fn always(_: &Guarantees) -> Promise {
    Promise::Made
}

pub(crate) fn one_holder_always(g: &Guarantees) -> Promise {
    claims(Line::MutualExclusion, &g.mutual_exclusion, |it| {
        *it == Exclusion::Always
    })
}

pub(crate) fn tokens_rise(g: &Guarantees) -> Promise {
    claims(Line::TokenOrder, &g.token_order, |order| {
        *order >= TokenOrder::ClientCrash
    })
}

pub(crate) fn tokens_survive_a_restart(g: &Guarantees) -> Promise {
    claims(Line::TokenOrder, &g.token_order, |order| {
        *order >= TokenOrder::StoreRestart
    })
}

pub(crate) fn tokens_survive_a_failover(g: &Guarantees) -> Promise {
    claims(Line::TokenOrder, &g.token_order, |order| {
        *order >= TokenOrder::Failover
    })
}

pub(crate) fn fifo(g: &Guarantees) -> Promise {
    claims(Line::HandOff, &g.hand_off, |order| *order == HandOff::Fifo)
}

pub(crate) fn expiry_is_bounded(g: &Guarantees) -> Promise {
    claims(Line::Expiry, &g.expiry, |expiry| {
        *expiry != Expiry::Unbounded
    })
}

pub(crate) fn expiry_is_never_counted_anew(g: &Guarantees) -> Promise {
    claims(Line::Expiry, &g.expiry, |expiry| {
        matches!(expiry, Expiry::Within(_) | Expiry::WithinByClock(_))
    })
}

pub(crate) fn expiry_heeds_no_wall_clock(g: &Guarantees) -> Promise {
    claims(Line::Expiry, &g.expiry, |expiry| {
        matches!(expiry, Expiry::Within(_) | Expiry::WithinOrAnew(_))
    })
}

pub(crate) fn never_early(g: &Guarantees) -> Promise {
    claims(Line::EarlyRelease, &g.early_release, |early| {
        *early == EarlyRelease::Never
    })
}

pub(crate) fn loss_by_deadline(g: &Guarantees) -> Promise {
    claims(Line::LossSignal, &g.loss_signal, |signal| {
        *signal == LossSignal::ByDeadline
    })
}

pub(crate) fn prompt_cancellation(g: &Guarantees) -> Promise {
    claims(Line::Cancellation, &g.cancellation, |it| {
        *it == Cancellation::Prompt
    })
}

pub(crate) fn fenced_release(g: &Guarantees) -> Promise {
    claims(Line::FencedRelease, &g.fenced_release, |it| {
        *it == Release::Fenced
    })
}

pub(crate) fn isolated_names(g: &Guarantees) -> Promise {
    claims(Line::NameIsolation, &g.name_isolation, |it| {
        *it == NameIsolation::Isolated
    })
}

pub(crate) fn resumable(g: &Guarantees) -> Promise {
    claims(Line::Resume, &g.resume, |it| *it == Resume::OneUse)
}

pub(crate) fn resumable_and_prompt(g: &Guarantees) -> Promise {
    match resumable(g) {
        Promise::Made => prompt_cancellation(g),
        denied => denied,
    }
}

pub(crate) fn resumable_and_fenced(g: &Guarantees) -> Promise {
    match resumable(g) {
        Promise::Made => fenced_release(g),
        denied => denied,
    }
}

pub(crate) fn observers_converge(g: &Guarantees) -> Promise {
    claims(Line::Observers, &g.observers, |it| {
        *it == Observers::Converge
    })
}

pub(crate) fn observers_converge_and_expiry_is_bounded(g: &Guarantees) -> Promise {
    match observers_converge(g) {
        Promise::Made => expiry_is_bounded(g),
        denied => denied,
    }
}

pub(crate) fn delivers_until_acknowledged(g: &Guarantees) -> Promise {
    claims(Line::QueueDelivery, &g.queue_delivery, |it| {
        *it == QueueDelivery::AtLeastOnce
    })
}

pub(crate) fn queues_in_order(g: &Guarantees) -> Promise {
    claims(Line::QueueOrder, &g.queue_order, |it| {
        *it == QueueOrder::PriorityThenFifo
    })
}

pub(crate) fn durable(g: &Guarantees) -> Promise {
    claims(Line::Durability, &g.durability, |it| {
        *it == Durability::Durable
    })
}

/// What is stored, as against what is held.
pub(crate) fn stored(g: &Guarantees) -> Promise {
    claims(Line::Durability, &g.durability, |it| {
        matches!(it, Durability::Durable | Durability::Stored)
    })
}

pub(crate) fn stored_transactions(g: &Guarantees) -> Promise {
    all([transactions(g), stored(g)])
}

pub(crate) fn fifo_and_durable(g: &Guarantees) -> Promise {
    match fifo(g) {
        Promise::Made => durable(g),
        denied => denied,
    }
}

pub(crate) fn survives_minority_loss(g: &Guarantees) -> Promise {
    claims(Line::MinorityLoss, &g.minority_loss, |it| {
        *it == MinorityLoss::Survives
    })
}

pub(crate) fn the_dead_do_not_count(g: &Guarantees) -> Promise {
    claims(Line::Barriers, &g.barriers, |it| {
        *it == Barriers::WithoutTheDead
    })
}

pub(crate) fn rw_locks(g: &Guarantees) -> Promise {
    claims(Line::RwOrder, &g.rw_order, |order| {
        *order != RwOrder::Unsupported
    })
}

pub(crate) fn rw_by_arrival(g: &Guarantees) -> Promise {
    claims(Line::RwOrder, &g.rw_order, |order| {
        *order == RwOrder::Arrival
    })
}

/// The first that is denied, if any is.
fn all<const N: usize>(promises: [Promise; N]) -> Promise {
    let denied = |promise: &Promise| matches!(promise, Promise::Denied { .. });
    promises.into_iter().find(denied).unwrap_or(Promise::Made)
}

pub(crate) fn rw_by_arrival_and_expiry(g: &Guarantees) -> Promise {
    all([rw_by_arrival(g), expiry_is_bounded(g)])
}

pub(crate) fn rw_tokens_rise(g: &Guarantees) -> Promise {
    all([rw_locks(g), tokens_rise(g)])
}

pub(crate) fn rw_resumable(g: &Guarantees) -> Promise {
    all([rw_locks(g), resumable(g)])
}

pub(crate) fn rw_prompt_cancellation(g: &Guarantees) -> Promise {
    all([rw_locks(g), prompt_cancellation(g)])
}

/// Nobody need have transactions; who has them keeps these rules.
pub(crate) fn transactions(g: &Guarantees) -> Promise {
    claims(Line::Isolation, &g.isolation, |it| {
        *it != Transactions::Unsupported
    })
}

pub(crate) fn serializable(g: &Guarantees) -> Promise {
    claims(Line::Isolation, &g.isolation, |it| {
        matches!(
            it,
            Transactions::StrictSerializable | Transactions::Serializable
        )
    })
}

pub(crate) fn strictly_serializable(g: &Guarantees) -> Promise {
    claims(Line::Isolation, &g.isolation, |it| {
        *it == Transactions::StrictSerializable
    })
}

pub(crate) fn fenced_commit(g: &Guarantees) -> Promise {
    claims(Line::FencedCommit, &g.fenced_commit, |it| {
        *it == FencedCommit::Atomic
    })
}

pub(crate) fn commits_are_resolved(g: &Guarantees) -> Promise {
    claims(Line::UnknownCommit, &g.unknown_commit, |it| {
        *it == UnknownCommit::Resolved
    })
}

pub(crate) fn durable_transactions(g: &Guarantees) -> Promise {
    match commits_are_resolved(g) {
        Promise::Made => durable(g),
        denied => denied,
    }
}
