//! Transactional memory of the embedded store: a map, and steps on it under the store's mutex.
//!
//! There are no old revisions to read at: core reads again what an attempt read before, with
//! each further read.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{
    Done, Fence, Kind, Outcome, Read, Resolution, Slot, Slots, Stm, Transaction, path,
};
use tenure_core::{Effect, Entry, Error, ErrorKind, Name, Namespace, Op, OpResult, Result};

use crate::session::MemorySession;
use crate::store::{Member, Object, State, shrink};

/// The namespace's keys, as one session of the embedded store sees them.
#[derive(Debug)]
pub struct MemoryStm(Arc<MemorySession>);

impl MemoryStm {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self(session)
    }

    fn slots(&self) -> &Slots {
        &self.0.slots
    }

    /// Sends `transaction` for as long as its slot turns out to have moved.
    async fn send(&self, transaction: &Transaction) -> Result<Outcome> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        loop {
            let slot = self.slots().of(transaction.nonce());
            let (me, transaction) = (member.clone(), transaction.clone());
            let nonce = transaction.nonce();
            let sending = link.round_trip(store, None, move |state| {
                state.transact(&me, slot, &transaction)
            });
            match sending.await? {
                Step::Moved(last) => self.slots().moved(nonce, last),
                Step::Ended(outcome) => return Ok(outcome),
            }
        }
    }
}

#[async_trait]
impl Stm for MemoryStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        if at.is_some() {
            // Never asked for: what is read here is not repeatable.
            return Err(Error::new(
                ErrorKind::Conflict,
                "there is no past to read in",
            ));
        }
        let (me, keys) = (member.clone(), keys.to_vec());
        let reading = link.round_trip(store, None, move |state| state.read(&me, &keys));
        reading.await
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let nonce = transaction.nonce();
        if !transaction.writes() {
            let answer = self.send(transaction).await;
            return answer.map_err(|error| error.with_effect(Effect::None));
        }
        let slot = self.slots().take(nonce).await;
        let answer = self.send(transaction).await;
        let last = self.slots().of(nonce).map_or(slot.last, |slot| slot.last);
        match &answer {
            Ok(Outcome::Done(done)) => self.slots().settle(nonce, done.revision),
            Ok(Outcome::FenceLost) => self.slots().settle(nonce, last),
            Err(error) if error.effect() == Effect::None => self.slots().settle(nonce, last),
            // The slot stays this commit's until it is resolved.
            Err(_) => {}
        }
        answer
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let nonce = transaction.nonce();
        let Some(slot) = self.slots().of(nonce) else {
            return Err(crate::error::no_such_commit());
        };
        let me = member.clone();
        let resolving = link.round_trip(store, None, move |state| state.abort(&me, slot, nonce));
        match resolving.await {
            Ok((resolution, last)) => {
                self.slots().settle(nonce, last);
                Ok(resolution)
            }
            Err(error) => {
                if !error.is_retryable() {
                    self.slots().settle(nonce, slot.last);
                }
                Err(error)
            }
        }
    }

    fn check(&self, transaction: &Transaction) -> Result<()> {
        // As long as the keys are in a networked store: the same limits everywhere.
        let namespace = &self.0.namespace;
        transaction.check(|name| path(namespace, Kind::Data, name).len())
    }
}

/// What the store has under keys.
#[derive(Debug, Default)]
pub(crate) struct Data {
    /// Raised by every transaction that may write.
    revision: u64,
    entries: HashMap<(Namespace, Name), Entry>,
}

impl Data {
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The last commit that used a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marker {
    revision: u64,
    nonce: u64,
    /// Whether its comparisons held; none if it was aborted.
    committed: Option<bool>,
}

/// What came of one request to commit.
pub(crate) enum Step {
    Ended(Outcome),
    /// Nothing, because its slot was written at this revision.
    Moved(u64),
}

impl State {
    fn read(&mut self, member: &Member, keys: &[Name]) -> Result<Read> {
        let namespace = self.lease(member)?.namespace.clone();
        let get = |key: &Name| {
            self.data
                .entries
                .get(&(namespace.clone(), key.clone()))
                .cloned()
        };
        Ok(Read {
            revision: self.data.revision,
            repeatable: false,
            entries: keys.iter().map(get).collect(),
        })
    }

    fn transact(
        &mut self,
        member: &Member,
        slot: Option<Slot>,
        transaction: &Transaction,
    ) -> Result<Step> {
        let lease = self.lease(member)?;
        let namespace = lease.namespace.clone();
        if let Some(slot) = slot {
            let last = lease.markers.get(&slot.number);
            let last = last.map_or(0, |marker| marker.revision);
            if last != slot.last {
                return Ok(Step::Moved(last));
            }
        }
        if let Some(fence) = &transaction.fence
            && !self.holds(&namespace, fence)
        {
            return Ok(Step::Ended(Outcome::FenceLost));
        }
        let holds = |compare: &tenure_core::Compare<Name>| {
            let key = (namespace.clone(), compare.key().clone());
            compare.holds(self.data.entries.get(&key))
        };
        let succeeded = transaction.compares.iter().all(holds);
        if slot.is_some() {
            self.data.revision += 1;
        }
        let branch = match succeeded {
            true => &transaction.then,
            false => &transaction.or_else,
        };
        let results = branch.iter().map(|op| self.data.apply(&namespace, op));
        let results = results.collect();
        let revision = self.data.revision;
        if let Some(slot) = slot {
            let marker = Marker {
                revision,
                nonce: transaction.nonce(),
                committed: Some(succeeded),
            };
            self.lease(member)?.markers.insert(slot.number, marker);
        }
        Ok(Step::Ended(Outcome::Done(Done {
            revision,
            succeeded,
            results,
        })))
    }

    /// Says what came of the commit `nonce`, and when its slot was last written; sees to it that
    /// it never happens if it has not.
    fn abort(&mut self, member: &Member, slot: Slot, nonce: u64) -> Result<(Resolution, u64)> {
        let next = self.data.revision + 1;
        let lease = self.lease(member)?;
        match lease.markers.get(&slot.number) {
            Some(marker) if marker.revision != slot.last => {
                let resolution = match marker.committed {
                    Some(succeeded) if marker.nonce == nonce => Resolution::Committed {
                        revision: marker.revision,
                        succeeded,
                    },
                    // Another's, which came first: this one cannot come any more.
                    _ => Resolution::Aborted,
                };
                Ok((resolution, marker.revision))
            }
            _ => {
                let marker = Marker {
                    revision: next,
                    nonce,
                    committed: None,
                };
                lease.markers.insert(slot.number, marker);
                self.data.revision = next;
                Ok((Resolution::Aborted, next))
            }
        }
    }

    /// Whether what `fence` names is held now, by whatever session.
    fn holds(&self, namespace: &Namespace, fence: &Fence) -> bool {
        let session = fence.session().as_str().parse().unwrap_or(0);
        let object = Object {
            namespace: namespace.clone(),
            kind: fence.kind(),
            name: fence.name().clone(),
        };
        let (nonce, token) = (fence.nonce(), fence.token());
        match object.kind {
            // By the token alone: the ask of a delivery is not the one that took the item.
            Kind::Queue => self.has_delivery(session, &object, token),
            _ => {
                self.token_of(namespace, session, object.kind, &object.name, nonce) == Some(token)
                    || self.is_inside(session, &object, nonce, token)
            }
        }
    }
}

impl Data {
    fn apply(&mut self, namespace: &Namespace, op: &Op<Name>) -> OpResult {
        let key = (namespace.clone(), op.key().clone());
        match op {
            Op::Get(_) => OpResult::Get(self.entries.get(&key).cloned()),
            Op::Put(_, value) => {
                let now = self.revision;
                let entry = self.entries.entry(key).or_insert_with(|| Entry {
                    value: Vec::new(),
                    created: now,
                    modified: now,
                    version: 0,
                });
                // Not `clone_from`, which keeps the room of a larger value.
                entry.value = value.clone();
                entry.modified = now;
                entry.version += 1;
                OpResult::Put
            }
            Op::Delete(_) => {
                self.entries.remove(&key);
                shrink(&mut self.entries);
                OpResult::Delete
            }
        }
    }
}
