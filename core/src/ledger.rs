//! What the transactions of one process know of each other: so that conflicts between them are
//! settled here, and not by commits that the store refuses.
//!
//! Everything here is a hint. The store decides every commit by its own comparisons; a ledger
//! that is wrong, or empty, costs a round trip.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::name::Name;
use crate::value::Redacted;

/// For how many keys the newest revision is remembered.
const REMEMBERED: usize = 4_096;

/// How long a commit waits for those of the same process that are before it at a key. Bounded,
/// because one of them may be waiting for this one: a transaction inside a transaction.
const PATIENCE: Duration = Duration::from_secs(1);

/// What was read under a key, or written.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) value: Option<Arc<[u8]>>,
    /// 0 if absent.
    pub(crate) modified: u64,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seen")
            .field("value", &self.value.as_deref().map(Redacted))
            .field("modified", &self.modified)
            .finish()
    }
}

/// A consistent picture of some keys, at one revision.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) revision: u64,
    pub(crate) seen: BTreeMap<Name, Seen>,
}

/// What the sessions of one `Store` share.
#[derive(Debug, Default)]
pub(crate) struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The newest revision at which a key is known to have been written.
    newest: HashMap<Name, u64>,
    /// Only of keys at which somebody stands or waits.
    queues: HashMap<Name, Arc<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// First come, first served; those who only read the key stand side by side.
    lock: Arc<RwLock<()>>,
    /// What the last commit that stood here left: the next one need not read it.
    last: Mutex<Option<Arc<Picture>>>,
}

impl Ledger {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `keys` were written at `revision`.
    pub(crate) fn wrote<'a>(
        ledger: &Arc<Self>,
        keys: impl Iterator<Item = &'a Name>,
        revision: u64,
    ) {
        let mut inner = ledger.inner();
        for key in keys {
            if inner.newest.len() >= REMEMBERED && !inner.newest.contains_key(key) {
                inner.newest.clear();
            }
            let newest = inner.newest.entry(key.clone()).or_default();
            *newest = revision.max(*newest);
        }
    }

    /// Whether a commit here has certainly written `key` after `revision`.
    pub(crate) fn is_newer(&self, key: &Name, revision: u64) -> bool {
        let newest = self.inner().newest.get(key).copied();
        newest.is_some_and(|newest| newest > revision)
    }

    /// Forgets what the store's own word contradicts: a store restored from a backup goes back.
    pub(crate) fn forget<'a>(&self, keys: impl Iterator<Item = &'a Name>) {
        let mut inner = self.inner();
        for key in keys {
            inner.newest.remove(key);
        }
    }

    /// Leaves `picture` for those who wait at its keys.
    pub(crate) fn leave(&self, picture: &Arc<Picture>) {
        let inner = self.inner();
        for key in picture.seen.keys() {
            if let Some(queue) = inner.queues.get(key) {
                let mut last = queue.last.lock().unwrap_or_else(PoisonError::into_inner);
                if last
                    .as_ref()
                    .is_none_or(|last| last.revision < picture.revision)
                {
                    *last = Some(Arc::clone(picture));
                }
            }
        }
    }
}

/// Places at the front of some keys' queues.
#[derive(Debug)]
pub(crate) struct Places {
    ledger: Arc<Ledger>,
    /// By key: whether it stands there alone. In the order of the keys, so that no two wait for
    /// each other.
    keys: BTreeMap<Name, (bool, Arc<Queue>)>,
    guards: Vec<Side>,
}

#[derive(Debug)]
enum Side {
    Shared(#[allow(dead_code)] OwnedRwLockReadGuard<()>),
    Alone(#[allow(dead_code)] OwnedRwLockWriteGuard<()>),
}

impl Places {
    /// Queues at `keys` (alone where `true`) and waits for the turn at all of them; for no longer
    /// than a moment.
    pub(crate) async fn take(ledger: &Arc<Ledger>, keys: BTreeMap<Name, bool>) -> Self {
        let mut places = Self {
            ledger: Arc::clone(ledger),
            keys: BTreeMap::new(),
            guards: Vec::with_capacity(keys.len()),
        };
        {
            let mut inner = ledger.inner();
            for (key, alone) in keys {
                let queue = Arc::clone(inner.queues.entry(key.clone()).or_default());
                places.keys.insert(key, (alone, queue));
            }
        }
        let (keys, guards) = (&places.keys, &mut places.guards);
        let turn = async {
            for (alone, queue) in keys.values() {
                let lock = Arc::clone(&queue.lock);
                guards.push(if *alone {
                    Side::Alone(lock.write_owned().await)
                } else {
                    Side::Shared(lock.read_owned().await)
                });
            }
        };
        // Too late: then the store decides alone.
        let _ = tokio::time::timeout(PATIENCE, turn).await;
        places
    }

    /// Whether these are places at all of `keys` already.
    pub(crate) fn cover(&self, keys: &BTreeMap<Name, bool>) -> bool {
        let stands = |(key, alone): (&Name, &bool)| {
            let found = self.keys.get(key);
            found.is_some_and(|(here, _)| *here || !alone)
        };
        self.guards.len() == self.keys.len() && keys.iter().all(stands)
    }

    /// The newest picture that was left at these keys, if it is newer than `revision`.
    pub(crate) fn newest(&self, revision: u64) -> Option<Arc<Picture>> {
        let last = |(_, queue): &(bool, Arc<Queue>)| {
            let last = queue.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.clone()
        };
        let pictures = self.keys.values().filter_map(last);
        let newest = pictures.max_by_key(|picture| picture.revision);
        newest.filter(|picture| picture.revision > revision)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        self.guards.clear();
        let mut inner = self.ledger.inner();
        for (key, (_, queue)) in std::mem::take(&mut self.keys) {
            drop(queue);
            // Clones are made under the ledger's lock alone: the last to leave sees that it is.
            if inner
                .queues
                .get(&key)
                .is_some_and(|queue| Arc::strong_count(queue) == 1)
            {
                inner.queues.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[(&str, bool)]) -> BTreeMap<Name, bool> {
        let named = |(key, alone): &(&str, bool)| (Name::new(key).unwrap(), *alone);
        keys.iter().map(named).collect()
    }

    fn picture(revision: u64, of: &[&str]) -> Arc<Picture> {
        let seen = |key: &&str| {
            let seen = Seen {
                value: None,
                modified: 0,
            };
            (Name::new(key).unwrap(), seen)
        };
        Arc::new(Picture {
            revision,
            seen: of.iter().map(seen).collect(),
        })
    }

    #[tokio::test]
    async fn who_waits_finds_what_the_one_before_left() {
        let ledger = Arc::<Ledger>::default();
        let first = Places::take(&ledger, keys(&[("a", true), ("b", false)])).await;
        assert!(first.cover(&keys(&[("a", false), ("b", false)])));
        assert!(!first.cover(&keys(&[("b", true)])));
        let second = tokio::spawn({
            let ledger = Arc::clone(&ledger);
            async move { Places::take(&ledger, keys(&[("a", true)])).await }
        });
        // Side by side with whoever only reads it, too.
        let reader = Places::take(&ledger, keys(&[("b", false)])).await;
        tokio::task::yield_now().await;
        assert!(!second.is_finished());
        ledger.leave(&picture(7, &["a", "c"]));
        ledger.leave(&picture(6, &["a"]));
        drop(first);
        let second = second.await.unwrap();
        assert_eq!(second.newest(0).unwrap().revision, 7);
        assert!(second.newest(7).is_none());
        assert!(reader.newest(0).is_none());
        drop(second);
        drop(reader);
        assert!(ledger.inner().queues.is_empty(), "queues stay behind");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_who_gives_up_leaves_nothing() {
        let ledger = Arc::<Ledger>::default();
        let first = Places::take(&ledger, keys(&[("a", true)])).await;
        let waiting = Places::take(&ledger, keys(&[("a", true)]));
        let dropped = tokio::time::timeout(PATIENCE / 2, waiting).await;
        assert!(dropped.is_err());
        let late = Places::take(&ledger, keys(&[("a", true)])).await;
        assert!(!late.cover(&keys(&[("a", false)])), "it has no turn");
        drop(first);
        drop(late);
        assert!(ledger.inner().queues.is_empty(), "queues stay behind");
    }

    #[test]
    fn the_newest_revision_counts_and_is_bounded() {
        let ledger = Arc::<Ledger>::default();
        let a = Name::new("a").unwrap();
        Ledger::wrote(&ledger, [&a].into_iter(), 7);
        Ledger::wrote(&ledger, [&a].into_iter(), 5);
        assert!(ledger.is_newer(&a, 6) && !ledger.is_newer(&a, 7));
        ledger.forget([&a].into_iter());
        assert!(!ledger.is_newer(&a, 1));
        for n in 0..3 * REMEMBERED {
            let key = Name::new(n.to_string()).unwrap();
            Ledger::wrote(&ledger, [&key].into_iter(), 1);
        }
        assert!(ledger.inner().newest.len() <= REMEMBERED);
    }
}
