//! Transactional memory: one map of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tenure_core::backend::{
    Commit, CommitOutcome, CommitRecord, Fence, Key, KeyRead, Marker, Resolution, Snapshot, StoredValue, Write,
};
use tenure_core::compare::{OpResult, StmEntry};
use tenure_core::{Error, Result};

use super::entries::{Location, Outcome};
use super::{Look, Member, State, too_late};
use crate::planted::Bug;

/// The keys of a namespace.
#[derive(Default)]
pub(super) struct Data {
    /// Raised by each commit that writes, and by the end of each session with keys.
    revision: u64,
    /// The revision of the last removal.
    removed: u64,
    keys: BTreeMap<Key, Stored>,
}

struct Stored {
    value: Arc<[u8]>,
    created: u64,
    modified: u64,
    version: u64,
    /// The session that the key ends with.
    session: Option<u64>,
}

impl Data {
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    fn entry(&self, key: &Key) -> Option<StmEntry> {
        let stored = self.keys.get(key)?;
        let value = Arc::clone(&stored.value);
        Some(StmEntry::new(value, stored.created, stored.modified, stored.version))
    }
}

impl State {
    pub(crate) fn read(&mut self, member: &Member, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot> {
        self.lease(member)?;
        let stale = self.planted.has(Bug::StaleRead);
        let values = keys.iter().map(|read| {
            let stored = self.data.keys.get(&read.key)?;
            let mut modified = stored.modified;
            if stale {
                modified = read.known.filter(|known| *known > 0).unwrap_or(modified);
            }
            let value = (read.known != Some(modified)).then(|| Arc::clone(&stored.value));
            Some(StoredValue::new(value, stored.created, modified, stored.version))
        });
        let values = values.collect();
        let revision = match at {
            Some(at) if self.planted.has(Bug::SnapshotMixed) => at,
            _ => self.data.revision,
        };
        Ok(Snapshot::new(revision, values))
    }

    pub(crate) fn commit(&mut self, member: &Member, commit: &Commit) -> Result<CommitOutcome> {
        let carry_out = |state: &mut Self| {
            if let Some(fence) = &commit.fence
                && !state.holds(member, fence)
                && !state.planted.has(Bug::FenceIgnored)
            {
                return Ok(Outcome::FenceLost);
            }
            let succeeded = state.planted.has(Bug::CompareIgnored)
                || commit
                    .compares
                    .iter()
                    .all(|compare| compare.holds(state.data.entry(compare.key()).as_ref()));
            let writes = if succeeded { &commit.then } else { &commit.or_else };
            if writes.iter().any(|write| !matches!(write, Write::Get(_))) {
                state.data.revision += 1;
            }
            let results = writes
                .iter()
                .map(|write| state.write(member, write))
                .collect::<Result<_>>()?;
            let record = CommitRecord::new(succeeded, state.data.revision, results);
            Ok(Outcome::Committed(record))
        };
        match self.once(member, commit.marker, carry_out)? {
            Outcome::Committed(record) => Ok(CommitOutcome::Done(record)),
            Outcome::FenceLost => Ok(CommitOutcome::FenceLost),
            Outcome::Aborted => Err(too_late()),
            _ => Err(Outcome::of_another_step()),
        }
    }

    /// Returns the outcome of a commit. If it was not carried out, a mark takes its slot, so that it never will be.
    pub(crate) fn resolve(&mut self, member: &Member, marker: Marker) -> Result<Resolution> {
        let resolution = match self.once(member, marker, |_| Ok(Outcome::Aborted))? {
            Outcome::Committed(record) => Resolution::Committed {
                succeeded: record.succeeded,
                revision: record.revision,
            },
            Outcome::FenceLost | Outcome::Aborted => Resolution::Aborted,
            _ => return Err(Outcome::of_another_step()),
        };
        match self.planted.has(Bug::ResolvedAborted) {
            true => Ok(Resolution::Aborted),
            false => Ok(resolution),
        }
    }

    /// Returns whether the guard of `fence` holds in this step.
    fn holds(&mut self, member: &Member, fence: &Fence) -> bool {
        let object = self.object(fence.kind, &fence.name);
        let lease = self.sessions.get(&member.session);
        let held = lease.and_then(|lease| lease.entries.get(&fence.nonce));
        held.filter(|held| held.object == object)
            .is_some_and(|held| match &held.location {
                Location::WaitQueue(arrival) => {
                    self.token_in_wait_queue(&object, *arrival) == Some(fence.token)
                        && (!fence.exclusive || self.is_exclusive(&object, *arrival))
                }
                Location::Claims(claims) => claims.contains_key(&fence.token),
                Location::Generation(arrival) => self.token_in_generation(&object, *arrival) == Some(fence.token),
                Location::Consumer(_) => false,
            })
    }

    fn write(&mut self, member: &Member, write: &Write) -> Result<OpResult> {
        Ok(match write {
            Write::Get(key) => OpResult::Get(self.data.entry(key)),
            Write::Put { key, value, leased } => {
                let revision = self.data.revision;
                let stored = self.data.keys.entry(key.clone()).or_insert_with(|| Stored {
                    value: Arc::default(),
                    created: revision,
                    modified: revision,
                    version: 0,
                    session: None,
                });
                stored.value = Arc::clone(value);
                stored.modified = revision;
                stored.version += 1;
                let session = leased.then_some(member.session);
                let before = std::mem::replace(&mut stored.session, session);
                self.bind(key, before, session);
                self.wake_observers(key);
                OpResult::Put
            }
            Write::Delete(key) => {
                self.remove_key(key);
                OpResult::Delete
            }
            // Refused by `check`.
            _ => return Err(Error::unsupported("this write")),
        })
    }

    /// Moves a key from the session that it ended with to another.
    fn bind(&mut self, key: &Key, before: Option<u64>, after: Option<u64>) {
        if let Some(lease) = before.and_then(|session| self.sessions.get_mut(&session)) {
            lease.leased.remove(key);
        }
        if let Some(lease) = after.and_then(|session| self.sessions.get_mut(&session)) {
            lease.leased.insert(key.clone());
        }
    }

    fn remove_key(&mut self, key: &Key) {
        if let Some(stored) = self.data.keys.remove(key) {
            self.data.removed = self.data.revision;
            self.bind(key, stored.session, None);
            self.wake_observers(key);
        }
    }

    /// Removes the keys of a session that has ended.
    pub(super) fn drop_leased(&mut self, keys: BTreeSet<Key>) {
        if !keys.is_empty() {
            self.data.revision += 1;
        }
        for key in keys {
            self.remove_key(&key);
        }
    }

    /// Returns at once if one of `keys` may have changed after `revision`. Removed keys leave nothing behind, so an absent
    /// key may have changed if any key was removed since.
    pub(crate) fn look_at_keys(&mut self, member: &Member, keys: &[Key], revision: u64) -> Result<Look<()>> {
        self.lease(member)?;
        let changed = |key: &Key| match self.data.keys.get(key) {
            Some(stored) => stored.modified > revision,
            None => self.data.removed > revision,
        };
        if keys.iter().any(changed) {
            return Ok(Look::Done(()));
        }
        let sessions = keys.iter().filter_map(|key| self.data.keys.get(key)?.session);
        Ok(Look::Until(self.first_end(sessions.chain([member.session]))))
    }
}

/// Refuses a commit that the store does not understand. It has no limits beside those of core.
pub(crate) fn check(commit: &Commit) -> Result<()> {
    let mut writes = commit.then.iter().chain(&commit.or_else);
    match writes.all(|write| matches!(write, Write::Get(_) | Write::Put { .. } | Write::Delete(_))) {
        true => Ok(()),
        false => Err(Error::unsupported("this write")),
    }
}
