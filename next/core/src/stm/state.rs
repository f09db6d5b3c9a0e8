//! The reads and writes of one attempt of a transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::Isolation;
use crate::backend::{Key, KeyRead, Snapshot, StoredValue};
use crate::compare::{OpResult, StmEntry};
use crate::error::{Error, ErrorKind, Result};
use crate::name::Name;

/// The state of a key as a transaction knows it.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) value: Option<Arc<[u8]>>,
    /// 0 for an absent key.
    pub(super) modified: u64,
}

impl From<Option<StmEntry>> for Seen {
    fn from(entry: Option<StmEntry>) -> Self {
        let modified = entry.as_ref().map_or(0, |entry| entry.modified);
        let value = entry.map(|entry| entry.value);
        Self { value, modified }
    }
}

/// The reads and writes of an attempt that has ended.
#[derive(Default)]
pub(super) struct Ended {
    /// Whether a key that it read has changed: it cannot commit.
    pub(super) stale: bool,
    pub(super) reads: BTreeMap<Name, Seen>,
    /// `None` deletes the key.
    pub(super) writes: BTreeMap<Name, Option<Arc<[u8]>>>,
    /// The revision at which all reads were true; that of the first read for levels without a snapshot.
    pub(super) at: Option<u64>,
}

impl Ended {
    /// Returns the state of the next attempt, which probably reads the same keys.
    pub(super) fn start_again(self) -> AttemptState {
        let expected = self.reads.into_iter().map(|(key, seen)| (key, Some(seen)));
        AttemptState {
            expected: expected.collect(),
            ..AttemptState::default()
        }
    }
}

/// The reads and writes of an attempt, and the keys it will probably read.
#[derive(Default)]
pub(super) struct AttemptState {
    pub(super) over: bool,
    pub(super) done: Ended,
    /// Read at the same revision, but not requested by the closure yet.
    current: BTreeMap<Name, Seen>,
    /// To be read with the next request, with what an earlier attempt saw.
    expected: BTreeMap<Name, Option<Seen>>,
}

impl AttemptState {
    /// Returns the state of an attempt that starts with what a failed commit read at `revision`.
    pub(super) fn current(revision: u64, keys: Vec<Name>, results: Vec<OpResult>) -> Self {
        let seen = keys.into_iter().zip(results).filter_map(|(key, result)| match result {
            OpResult::Get(entry) => Some((key, Seen::from(entry))),
            _ => None,
        });
        let mut state = Self {
            current: seen.collect(),
            ..Self::default()
        };
        state.done.at = Some(revision);
        state
    }

    /// Adds keys that the attempt probably reads.
    pub(super) fn prefetch(&mut self, keys: &[Name]) {
        for key in keys {
            self.expected.entry(key.clone()).or_default();
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.over {
            let message = "this attempt of the transaction has ended: use the one that the closure is given";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        if self.done.stale {
            let message = "what this transaction read has changed: pass this error on, and it runs again";
            return Err(Error::new(ErrorKind::Conflict, message).retryable(true));
        }
        Ok(())
    }

    /// Returns what is known of `names`, or `None` if any is missing.
    pub(super) fn recall(&mut self, names: &[Name]) -> Result<Option<Vec<Seen>>> {
        self.check()?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if let Some(seen) = self.current.remove(name) {
                self.done.reads.insert(name.clone(), seen);
            }
            match self.done.reads.get(name) {
                Some(seen) => found.push(seen.clone()),
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    fn knows(&self, name: &Name) -> bool {
        self.done.reads.contains_key(name) || self.current.contains_key(name)
    }

    /// Returns what the transaction has seen of `name`, at whichever revision.
    fn seen(&self, name: &Name) -> Option<&Seen> {
        let current = self.done.reads.get(name).or_else(|| self.current.get(name));
        current.or_else(|| self.expected.get(name)?.as_ref())
    }

    /// Returns the keys to read so that `names` become known, and the revision to read them at.
    pub(super) fn wanted(&self, names: &[Name], isolation: Isolation, validates: bool) -> (Vec<KeyRead>, Option<u64>) {
        let at = self.done.at.filter(|_| isolation.reads_a_snapshot());
        let new = names.iter().chain(self.expected.keys());
        let mut wanted: BTreeSet<&Name> = new.filter(|name| !self.knows(name)).collect();
        if at.is_some() && validates {
            wanted.extend(self.done.reads.keys().chain(self.current.keys()));
        }
        let read = |name: &Name| KeyRead {
            key: Key::data(name.clone()),
            known: self.seen(name).map(|seen| seen.modified),
        };
        (wanted.into_iter().map(read).collect(), at)
    }

    /// Pairs the answer with the keys, and fills in the values that the store did not send.
    fn answer(&self, keys: Vec<KeyRead>, snapshot: Snapshot) -> Result<Vec<(Name, Seen)>> {
        if keys.len() != snapshot.values.len() {
            return Err(Error::new(ErrorKind::Internal, "the store answered for other keys"));
        }
        let pair = |(read, stored): (KeyRead, Option<StoredValue>)| {
            let name = read.key.name;
            let Some(stored) = stored else {
                let (value, modified) = (None, 0);
                return Ok((name, Seen { value, modified }));
            };
            let modified = stored.modified;
            let kept = || self.seen(&name).filter(|seen| seen.modified == modified)?.value.clone();
            match stored.value.or_else(kept) {
                value @ Some(_) => Ok((name, Seen { value, modified })),
                None => Err(Error::new(
                    ErrorKind::Internal,
                    "the store left out a value that is not known",
                )),
            }
        };
        keys.into_iter().zip(snapshot.values).map(pair).collect()
    }

    /// Keeps an answer that does not belong to the snapshot, so that its values need not be sent again.
    pub(super) fn expect(&mut self, keys: Vec<KeyRead>, snapshot: Snapshot) -> Result<()> {
        for (name, seen) in self.answer(keys, snapshot)? {
            self.expected.insert(name, Some(seen));
        }
        Ok(())
    }

    /// Extends the snapshot by an answer that belongs to it.
    pub(super) fn learn(&mut self, keys: Vec<KeyRead>, snapshot: Snapshot, isolation: Isolation) -> Result<()> {
        let revision = snapshot.revision;
        for (name, seen) in self.answer(keys, snapshot)? {
            self.expected.remove(&name);
            match self.done.reads.get(&name) {
                Some(before) => self.done.stale |= before.modified != seen.modified,
                None => {
                    self.current.insert(name, seen);
                }
            }
        }
        if isolation.reads_a_snapshot() || self.done.at.is_none() {
            self.done.at = Some(revision);
        }
        self.check()
    }
}
