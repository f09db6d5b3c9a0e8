//! The verdict of the checkers on the histories of a run.

use std::collections::HashSet;
use std::fmt;

use tenure_core::Guarantees;
use tenure_core::guarantees::{EarlyRelease, HandOff, QueueOrder, RwOrder, Transactions};

use super::Histories;
use crate::checkers::jsonl::{self, ReadError, Recorded};
use crate::checkers::list_append::{self, Level, Transaction};
use crate::checkers::lock::{self, LockCall, LockOperation};
use crate::checkers::queue::{self, Account, Order, QueueCall, QueueOperation};
use crate::checkers::{Operation, Outcome, Proof, Violation};

/// The promises of a deployment about a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promised {
    /// The proof that a holding lasts.
    pub proof: Proof,
    /// Whether locks, read-write locks and elections are granted in the order of arrival.
    pub arrival_order: bool,
    /// Whether queues have an order.
    pub queue_order: bool,
    /// The isolation of transactions.
    pub isolation: Level,
}

impl Promised {
    /// Returns what `guarantees` promise.
    pub fn of(guarantees: &Guarantees) -> Self {
        Self {
            proof: match guarantees.early_release.value {
                EarlyRelease::Never => Proof::Guards,
                _ => Proof::Store,
            },
            arrival_order: guarantees.hand_off.value == HandOff::Fifo
                && !matches!(guarantees.rw_order.value, RwOrder::Unordered),
            queue_order: guarantees.queue_order.value == QueueOrder::PriorityThenFifo,
            isolation: match guarantees.isolation.value {
                Transactions::StrictSerializable => Level::StrictSerializable,
                _ => Level::Serializable,
            },
        }
    }
}

/// The contents of the histories of a run without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The lock.
    pub lock: lock::Summary,
    /// The read-write lock.
    pub rw_lock: lock::Summary,
    /// The election.
    pub election: lock::Summary,
    /// The items of the queue.
    pub queue: Account,
    /// The order of the queue, if it is promised.
    pub order: Option<Order>,
    /// The transactions.
    pub lists: list_append::Summary,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (object, it) in [
            ("lock", self.lock),
            ("read-write lock", self.rw_lock),
            ("election", self.election),
        ] {
            write!(
                f,
                "{object}: {} grants in one order, {} accesses accepted, {} refused; ",
                it.grants, it.accepted, it.refused
            )?;
        }
        let (queue, ordered) = (self.queue, self.order.map_or(0, |order| order.ordered));
        write!(
            f,
            "queue: {} items accepted, {} acknowledged, {} redelivered, {ordered} deliveries in order; {} transactions committed",
            queue.enqueued, queue.acknowledged, queue.redelivered, self.lists.committed
        )
    }
}

impl Histories {
    /// Judges all histories by what the deployment promises.
    ///
    /// The guards of a session that an operator has revoked are valid until their client learns of it, so that the
    /// answers of [`Check`](LockCall::Check) of such a client prove nothing.
    ///
    /// # Errors
    ///
    /// The first violation. Its text begins with the object; its operations are indices of the history of that object.
    pub fn judge(&self, guarantees: &Guarantees) -> Result<Summary, Violation> {
        let promised = Promised::of(guarantees);
        let check = |object: &str, history: &[LockOperation]| {
            let history = self.without(history, |call| matches!(call, LockCall::Check { .. }));
            of(object, check_lock(&history, promised))
        };
        let queue = self.without(&self.queue, |call| matches!(call, QueueCall::Check { .. }));
        let (queue, order) = of("the queue", check_queue(&queue, promised))?;
        let lists = list_append::check(&self.lists, promised.isolation);
        Ok(Summary {
            lock: check("the lock", &self.lock)?,
            rw_lock: check("the read-write lock", &self.rw_lock)?,
            election: check("the election", &self.election)?,
            queue,
            order,
            lists: of("the lists", lists)?,
        })
    }

    /// Returns the clients with a session that an operator revoked.
    fn revoked(&self) -> HashSet<u64> {
        let words = |fault: &String| {
            let client = fault.strip_prefix("Revoke of client ")?.split(' ').next()?;
            client.parse().ok()
        };
        self.faults.iter().filter_map(words).collect()
    }

    /// Returns a history in which the answers to some calls of revoked clients are unknown.
    fn without<I: Clone, O: Clone>(
        &self,
        history: &[Operation<I, O>],
        is_excused: impl Fn(&I) -> bool,
    ) -> Vec<Operation<I, O>> {
        let (revoked, mut history) = (self.revoked(), history.to_vec());
        for operation in &mut history {
            if revoked.contains(&operation.client) && is_excused(&operation.input) {
                operation.outcome = Outcome::Unknown;
            }
        }
        history
    }
}

/// Adds the object to the text of a violation.
fn of<T>(object: &str, verdict: Result<T, Violation>) -> Result<T, Violation> {
    verdict.map_err(|found| Violation {
        what: format!("{object}: {}", found.what),
        ..found
    })
}

fn check_lock(history: &[LockOperation], promised: Promised) -> Result<lock::Summary, Violation> {
    let mut summary = lock::check(history, promised.proof)?;
    if promised.arrival_order {
        summary.waited = lock::check_arrival(history)?;
    }
    Ok(summary)
}

fn check_queue(history: &[QueueOperation], promised: Promised) -> Result<(Account, Option<Order>), Violation> {
    let account = queue::check_account(history, promised.proof)?;
    let order = promised.queue_order.then(|| queue::check_order(history));
    Ok((account, order.transpose()?))
}

/// Judges all histories of a file of JSON lines, of whatever kinds, and returns the verdict of each in words.
///
/// # Errors
///
/// [`ReadError`] if a history has a line that cannot be read, counted from its header, or is of an unknown kind.
pub fn judge_file(file: &str, promised: Promised) -> Result<Vec<Result<String, Violation>>, ReadError> {
    let judge = |section: &str| {
        let bytes = section.as_bytes();
        Ok(match jsonl::kind(bytes)?.as_str() {
            LockOperation::KIND => check_lock(&jsonl::read(bytes)?, promised).map(|it| format!("{it:?}")),
            QueueOperation::KIND => check_queue(&jsonl::read(bytes)?, promised).map(|it| format!("{it:?}")),
            Transaction::KIND => {
                list_append::check(&jsonl::read(bytes)?, promised.isolation).map(|it| format!("{it:?}"))
            }
            kind => {
                let reason = format!("no checker judges a history of kind `{kind}`");
                return Err(ReadError { line: 1, reason });
            }
        })
    };
    jsonl::sections(file).into_iter().map(judge).collect()
}
