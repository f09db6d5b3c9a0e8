//! The entries of the registry, compared with those of the store.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use super::{Entry, HeldToken, RequestRegistry, Stage, Unclaimed};
use crate::backend::{Entry as Listed, EntryState, Grant, Nonce, Request};
use crate::error::LossReason;
use crate::runtime::signal::Signal;

impl RequestRegistry {
    /// Takes the entries of a resumed session. Returns those that cannot be reclaimed, to be withdrawn.
    pub(crate) fn resume(&self, listed: Vec<Listed>) -> Vec<Request> {
        let mut state = self.state.lock();
        let mut orphans = Vec::new();
        for Listed {
            nonce,
            kind,
            name,
            state: reported,
            mode,
        } in listed
        {
            let grants = match reported {
                EntryState::Granted(grants) if kind.has_wait_queue() => grants,
                _ => {
                    orphans.push(state.request(nonce, kind, &name));
                    state.insert_orphan(nonce, kind);
                    continue;
                }
            };
            for grant in &grants {
                let (name, token) = (name.clone(), grant.token);
                state.unclaimed.insert(
                    Unclaimed {
                        kind,
                        name,
                        mode,
                        token,
                    },
                    nonce,
                );
            }
            let held = |grant| HeldToken {
                grant,
                loss: Signal::new(),
                departing: false,
            };
            let tokens = grants.into_iter().map(held).collect();
            let entry = Entry::new(kind, Stage::Held { tokens, comparisons: 0 });
            state.insert(nonce, entry);
        }
        // The orphans are older than the first new request.
        state.oldest_open.store(state.oldest_open(), Ordering::Release);
        orphans
    }

    /// Returns the requests whose holdings a detached session keeps.
    pub(crate) fn kept(&self) -> Vec<Nonce> {
        let state = self.state.lock();
        let kept = state.entries.iter().filter(|(_, entry)| match &entry.stage {
            Stage::Held { tokens, .. } => {
                entry.kind.has_wait_queue() && tokens.iter().any(|held| held.loss.get().is_none() && !held.departing)
            }
            _ => false,
        });
        kept.map(|(nonce, _)| *nonce).collect()
    }

    /// Begins a comparison with the store.
    pub(crate) fn begin_comparison(&self) {
        let mut state = self.state.lock();
        state.comparisons += 1;
        state.removed = Some(HashSet::new());
    }

    /// Ends a comparison with the store, and raises the loss of each holding that the store should list and does not. `listed`
    /// is `None` if the store did not answer. Returns the orphans, to be withdrawn.
    pub(crate) fn end_comparison(&self, listed: Option<Vec<Listed>>) -> Vec<Request> {
        let mut state = self.state.lock();
        let removed = state.removed.take().unwrap_or_default();
        let Some(listed) = listed else {
            return Vec::new();
        };
        let mut orphans = Vec::new();
        let mut granted: HashMap<Nonce, Vec<Grant>> = HashMap::new();
        for Listed {
            nonce,
            kind,
            name,
            state: reported,
            ..
        } in listed
        {
            // A page may list a request that ended since. One that began since is in the registry.
            if !state.entries.contains_key(&nonce) && !removed.contains(&nonce) {
                orphans.push(state.request(nonce, kind, &name));
                state.insert_orphan(nonce, kind);
            } else if let EntryState::Granted(grants) = reported {
                granted.insert(nonce, grants);
            }
        }
        let walk = state.comparisons;
        let mut gone = Vec::new();
        for (nonce, entry) in &state.entries {
            let Stage::Held { tokens, comparisons } = &entry.stage else {
                continue;
            };
            // A grant that crossed with the walk may be on no page.
            if *comparisons >= walk {
                continue;
            }
            let listed = granted.get(nonce).map_or(&[][..], Vec::as_slice);
            let unlisted = |held: &&HeldToken| !listed.iter().any(|grant| grant.token == held.grant.token);
            for held in tokens.iter().filter(|held| !held.departing).filter(unlisted) {
                gone.push((held.loss.clone(), held.grant.key.clone()));
            }
        }
        // Without the lock: a waker may drop a guard.
        drop(state);
        for (loss, key) in gone {
            if loss.set(LossReason::Revoked) {
                tracing::warn!(%key, "a holding is not in the store any more");
            }
        }
        for orphan in &orphans {
            let (nonce, kind, name) = (orphan.nonce(), orphan.kind().as_str(), orphan.name().as_str());
            tracing::warn!(%nonce, kind, name, "the store has an entry that this session does not: withdrawing it");
        }
        orphans
    }
}
