//! What the checkers say of a run.

use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Counts;
use super::client::Shared;
use crate::case::Outcome;
use crate::checkers::list_append::{self, Level, Transaction};
use crate::checkers::queue::{self, QueueOperation};
use crate::checkers::{
    Event, Fate, Violation, What, exclusion, fencing, jsonl, linearizable, total_queue,
};
use crate::timeline::Timeline;

/// All that the clients of a run saw.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Histories {
    /// Of each lock.
    pub locks: Vec<Vec<Event>>,
    /// Of the lists.
    pub lists: Vec<Transaction>,
    /// Of the queue.
    pub items: Vec<QueueOperation>,
}

impl Histories {
    /// Writes them into `folder`, as files whose names begin with `name`, and returns their paths.
    /// [`jsonl::read`] reads them back.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn write(&self, folder: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let mut paths = Vec::new();
        for (number, events) in (1..).zip(&self.locks) {
            let path = folder.join(format!("{name}-lock-{number}.jsonl"));
            jsonl::write(&mut BufWriter::new(File::create(&path)?), events)?;
            paths.push(path);
        }
        let path = folder.join(format!("{name}-lists.jsonl"));
        jsonl::write(&mut BufWriter::new(File::create(&path)?), &self.lists)?;
        paths.push(path);
        let path = folder.join(format!("{name}-queue.jsonl"));
        jsonl::write(&mut BufWriter::new(File::create(&path)?), &self.items)?;
        paths.push(path);
        Ok(paths)
    }
}

pub(super) fn count(histories: &Histories, shared: &Shared) -> Counts {
    let events = || histories.locks.iter().flatten();
    let count = |wanted: fn(&What) -> bool| events().filter(|event| wanted(&event.what)).count();
    let mut unknown = shared.unknown_commits.load(Ordering::Relaxed);
    unknown += count(|what| matches!(what, What::Unknown));
    let lost = |transaction: &&Transaction| transaction.fate == Fate::Unknown;
    unknown += histories.lists.iter().filter(lost).count();
    let lost = |operation: &&QueueOperation| operation.fate == Fate::Unknown;
    unknown += histories.items.iter().filter(lost).count();
    Counts {
        locks: shared.lock_operations.load(Ordering::Relaxed),
        transactions: shared.transactions.load(Ordering::Relaxed),
        queue: shared.queue_operations.load(Ordering::Relaxed),
        unknown,
        refused: count(|what| matches!(what, What::WriteRefused(..))),
        overlaps: histories
            .locks
            .iter()
            .map(|events| exclusion::overlaps(events).len())
            .sum(),
    }
}

pub(super) fn judge(histories: &Histories, shared: &Shared) -> Result<(), Outcome> {
    for (lock, events) in shared.locks.iter().zip(&histories.locks) {
        judge_lock(&without_belief(events, &shared.excused()))?;
        lock.judge(shared.plan.fenced).map_err(Outcome::violated)?;
    }
    if let Some(broken) = shared.broken() {
        return Err(Outcome::violated(broken));
    }
    let findings = list_append::check(&histories.lists);
    if let Some(anomaly) = findings.first(Level::StrictSerializable) {
        let picture = list_append::timeline(&histories.lists, &anomaly.transactions);
        let broken = Outcome::violated(format!("the lists: {anomaly}"));
        return Err(broken.with_history(picture));
    }
    let account = total_queue::check(&histories.items);
    let overtaking = account.overtakings.first();
    let overtaking = overtaking.filter(|_| shared.said.ordered);
    if let Some(violation) = account.violations.first().or(overtaking) {
        let picture = queue::timeline(&histories.items, &violation.places);
        let broken = Outcome::violated(format!("the queue: {}", violation.what));
        return Err(broken.with_history(picture));
    }
    Ok(())
}

fn judge_lock(events: &[Event]) -> Result<(), Outcome> {
    let broken = |what: &str, violation: Violation| {
        Outcome::violated(format!("{what}: {}", violation.what))
            .with_history(Timeline::of_a_lock(events, &violation.places))
    };
    fencing::grants_rise(events).map_err(|v| broken("tokens", v))?;
    fencing::accepted_in_order(events).map_err(|v| broken("the register", v))?;
    linearizable::check(events).map_err(|v| broken("the lock's history", v))?;
    Ok(())
}

/// The same lines without what holders believed in times in which leases were ended before their
/// end. Tokens, and what the register took, stay.
fn without_belief(events: &[Event], excused: &[(Duration, Duration)]) -> Vec<Event> {
    let excused = |at: Duration| excused.iter().any(|(from, to)| (*from..=*to).contains(&at));
    let mut kept = Vec::with_capacity(events.len());
    for event in events {
        let mut event = event.clone();
        if excused(event.at) {
            match event.what {
                What::Looks(_) | What::Valid(_) => continue,
                What::WriteRefused(token, true) => event.what = What::WriteRefused(token, false),
                _ => {}
            }
        }
        kept.push(event);
    }
    kept
}
