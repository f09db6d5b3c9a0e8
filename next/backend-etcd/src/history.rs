//! The history of the store as this client knows it.
//!
//! A restore from a backup, a lost disk or another cluster behind the same address: the store continues with less than it had
//! acknowledged. `etcdctl snapshot restore` keeps the cluster id, the member ids and the leases of the snapshot (3.4.23), so the
//! revision is the evidence: within one history a linearizable answer never shows a smaller revision than an answer that was
//! complete before the request was sent. The sessions of a lost history end (rule O4).

use std::sync::atomic::{AtomicU64, Ordering};

use etcd_client::ResponseHeader;
use parking_lot::Mutex;
use tenure_core::LossReason;
use tenure_core::backend::{SessionEvent, SessionEvents};

/// The state of the history before a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    epoch: u64,
    revision: i64,
}

#[derive(Default)]
pub(crate) struct History {
    /// How many histories were lost.
    epoch: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Zero before the first answer.
    cluster: u64,
    /// The greatest revision of an answer.
    revision: i64,
    /// The sessions that are notified of a loss, by their leases.
    sessions: Vec<(i64, SessionEvents)>,
}

impl History {
    /// Returns how many histories were lost.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Notifies a session when the history is lost. Returns the epoch to which the session belongs.
    pub(crate) fn register(&self, lease: i64, events: SessionEvents) -> u64 {
        let mut seen = self.seen.lock();
        seen.sessions.push((lease, events));
        self.epoch()
    }

    /// Forgets a session.
    pub(crate) fn unregister(&self, lease: i64) {
        let mut seen = self.seen.lock();
        if let Some(index) = seen.sessions.iter().position(|(registered, _)| *registered == lease) {
            seen.sessions.swap_remove(index);
        }
    }

    /// Returns the state before a request.
    pub(crate) fn mark(&self) -> Mark {
        let seen = self.seen.lock();
        Mark {
            epoch: self.epoch(),
            revision: seen.revision,
        }
    }

    /// Judges the answer to a request that was sent after `mark`; returns whether it is of the same history.
    pub(crate) fn judge(&self, mark: Mark, header: Option<&ResponseHeader>, is_linearizable: bool) -> bool {
        header.is_none_or(|header| self.judge_numbers(mark, header.cluster_id(), header.revision(), is_linearizable))
    }

    /// Returns whether the header of a stream is a reason to compare the histories.
    pub(crate) fn doubts(&self, header: &ResponseHeader) -> bool {
        let seen = self.seen.lock();
        let is_other = seen.cluster != 0 && header.cluster_id() != seen.cluster;
        is_other || header.revision() < seen.revision
    }

    fn judge_numbers(&self, mark: Mark, cluster: u64, revision: i64, is_linearizable: bool) -> bool {
        let mut seen = self.seen.lock();
        if self.epoch() != mark.epoch {
            return false;
        }
        let is_other = seen.cluster != 0 && cluster != seen.cluster;
        let has_fallen = is_linearizable && revision < mark.revision;
        if !is_other && !has_fallen {
            seen.cluster = cluster;
            seen.revision = seen.revision.max(revision);
            return true;
        }
        tracing::warn!(
            known = seen.revision,
            revision,
            is_other,
            "etcd has lost history that it had acknowledged, as by a restore: all sessions of this client end"
        );
        (seen.cluster, seen.revision) = (cluster, revision);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        for (_, events) in seen.sessions.drain(..) {
            events.report(SessionEvent::Lost(LossReason::Revoked));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_whose_revision_falls_is_lost_once() {
        let history = History::default();
        let (events, mut reports) = SessionEvents::channel();
        assert!(history.judge_numbers(history.mark(), 1, 207, true));
        history.register(7, events);
        let mark = history.mark();
        assert!(!history.judge_numbers(mark, 1, 9, true));
        assert!(!history.judge_numbers(mark, 1, 9, true), "sent before the loss");
        assert!(history.judge_numbers(history.mark(), 1, 9, true));
        assert_eq!(history.epoch(), 1);
        let lost = SessionEvent::Lost(LossReason::Revoked);
        assert_eq!(reports.try_recv().ok(), Some(lost));
        assert!(reports.try_recv().is_err());
    }

    #[test]
    fn history_is_not_lost_by_answers_that_overtake_each_other_or_lag() {
        let history = History::default();
        let first = history.mark();
        assert!(history.judge_numbers(history.mark(), 1, 12, true));
        assert!(history.judge_numbers(first, 1, 10, true), "sent before 12 was seen");
        assert!(history.judge_numbers(history.mark(), 1, 8, false), "a member that lags");
        assert_eq!((history.mark().revision, history.epoch()), (12, 0));
    }

    #[test]
    fn history_of_another_cluster_is_another_one() {
        let history = History::default();
        assert!(history.judge_numbers(history.mark(), 1, 12, true));
        assert!(!history.judge_numbers(history.mark(), 2, 500, false));
    }
}
