//! Which history of the store this client knows, and how it notices that the store has another one.
//!
//! A restore from a backup, a lost disk or another cluster behind the same address: the store goes on with less
//! than it had acknowledged. `etcdctl snapshot restore` keeps the cluster id, the member ids and the leases of the
//! snapshot (seen on 3.4.23), so the revision is what tells: within one history a linearizable answer never
//! shows a smaller revision than one that was complete before it was asked for.
//!
//! Whatever rests on the lost history ends then: views are forgotten, waiters fail, alarms are raised, and the
//! sessions that were opened before are refused their next renewal.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use etcd_client::{
    DeleteResponse, GetResponse, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse,
    MemberListResponse, PutResponse, ResponseHeader, StatusResponse, TxnResponse,
};

/// An answer with a header.
pub(crate) trait Answer {
    /// Whether the member answers only after it has applied everything that was acknowledged before the
    /// question.
    const LINEARIZABLE: bool;

    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! answers {
    ($linearizable:literal: $($answer:ty),*) => {$(
        impl Answer for $answer {
            const LINEARIZABLE: bool = $linearizable;

            fn header(&self) -> Option<&ResponseHeader> {
                self.header()
            }
        }
    )*};
}

answers!(true: GetResponse, PutResponse, DeleteResponse, TxnResponse, LeaseGrantResponse, LeaseRevokeResponse);
answers!(false: LeaseTimeToLiveResponse, MemberListResponse, StatusResponse);

/// What rests on one history.
pub(crate) trait Forget: Send + Sync {
    /// The history is lost. Called from the task that found out; must not block.
    fn forget(&self);
}

/// Where in which history a question was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    epoch: u64,
    revision: i64,
}

pub(crate) struct History {
    /// How many histories were lost. Changed under the lock, read by every look at a guard.
    epoch: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    /// Zero before the first answer.
    cluster: u64,
    /// The greatest revision of an answer.
    revision: i64,
    /// The sum of the greatest revisions of the histories before this one.
    before: i64,
    resting: Vec<Weak<dyn Forget>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            epoch: AtomicU64::new(0),
            seen: Mutex::default(),
        }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `resting` forgets whenever a history is lost.
    pub(crate) fn rests(&self, resting: Weak<dyn Forget>) {
        self.seen().resting.push(resting);
    }

    /// How many histories were lost.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// What is added to a revision of the present history so that it is above all of those before.
    pub(crate) fn offset(&self) -> i64 {
        self.seen().before
    }

    /// Before a question.
    pub(crate) fn mark(&self) -> Mark {
        let seen = self.seen();
        Mark {
            epoch: self.epoch(),
            revision: seen.revision,
        }
    }

    /// Judges the answer to a question that was asked at `asked`; says whether it is of the same history. An
    /// answer that need not be linearizable is one only if its kind is, and `strict` is said.
    pub(crate) fn heard<T: Answer>(&self, asked: Mark, answer: &T, strict: bool) -> bool {
        answer.header().is_none_or(|header| {
            self.judge(
                asked,
                header.cluster_id(),
                header.revision(),
                strict && T::LINEARIZABLE,
            )
        })
    }

    /// Whether the header of a stream shows an older revision than was seen: reason enough to compare histories.
    pub(crate) fn doubts(&self, header: &ResponseHeader) -> bool {
        let seen = self.seen();
        let other = seen.cluster != 0 && header.cluster_id() != seen.cluster;
        other || header.revision() < seen.revision
    }

    fn judge(&self, asked: Mark, cluster: u64, revision: i64, linearizable: bool) -> bool {
        let mut seen = self.seen();
        if self.epoch() != asked.epoch {
            return false; // asked of a history that is lost
        }
        let other = seen.cluster != 0 && cluster != seen.cluster;
        let fell = linearizable && revision < asked.revision;
        if !other && !fell {
            seen.cluster = cluster;
            seen.revision = seen.revision.max(revision);
            return true;
        }
        tracing::warn!(
            known = seen.revision,
            revision,
            other_cluster = other,
            "etcd has lost acknowledged history (a restore?): every session of this client ends"
        );
        seen.before = seen.before.saturating_add(seen.revision);
        (seen.cluster, seen.revision) = (cluster, revision);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        seen.resting.retain(|resting| resting.strong_count() > 0);
        let resting: Vec<_> = seen.resting.iter().filter_map(Weak::upgrade).collect();
        drop(seen);
        for resting in resting {
            resting.forget();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Forgot(AtomicUsize);

    impl Forget for Forgot {
        fn forget(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn watched() -> (History, Arc<Forgot>) {
        let (history, forgot) = (History::new(), Arc::new(Forgot::default()));
        let resting: Weak<dyn Forget> = Arc::downgrade(&(Arc::clone(&forgot) as Arc<dyn Forget>));
        history.rests(resting);
        (history, forgot)
    }

    #[test]
    fn a_linearizable_fall_of_the_revision_loses_the_history_once() {
        let (history, forgot) = watched();
        assert!(history.judge(history.mark(), 1, 207, true));
        let asked = history.mark();
        assert!(!history.judge(asked, 1, 9, true));
        assert!(!history.judge(asked, 1, 9, true), "asked before the loss");
        assert!(history.judge(history.mark(), 1, 9, true));
        assert_eq!((history.epoch(), history.offset()), (1, 207));
        assert_eq!(forgot.0.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn answers_that_overtake_each_other_or_come_from_a_member_that_lags_prove_nothing() {
        let (history, forgot) = watched();
        let first = history.mark();
        assert!(history.judge(history.mark(), 1, 12, true));
        assert!(
            history.judge(first, 1, 10, true),
            "asked before 12 was seen"
        );
        assert!(
            history.judge(history.mark(), 1, 8, false),
            "a member that lags"
        );
        assert_eq!(history.mark().revision, 12);
        assert_eq!(forgot.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn another_cluster_is_another_history_whatever_its_revision() {
        let (history, forgot) = watched();
        assert!(history.judge(history.mark(), 1, 12, true));
        assert!(!history.judge(history.mark(), 2, 500, false));
        assert_eq!(forgot.0.load(Ordering::SeqCst), 1);
    }
}
