//! All requests and holdings of a session.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::signal::Signal;
use crate::backend::{Grant, Marker, Mode, Nonce, Request, Slot};
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::name::{Kind, Name};
use crate::sync::Mutex;
use crate::token::FencingToken;

mod comparison;

/// The requests of a session, from before their first message until the store has confirmed that nothing of them is left.
pub(crate) struct RequestRegistry {
    state: Mutex<State>,
    /// Notified when an entry or a step ends.
    changed: Notify,
    capacity: usize,
    /// The lowest nonce in use. Shared with the requests.
    oldest_open: Arc<AtomicU64>,
    free_slots: Arc<Semaphore>,
}

/// A holding of a resumed session, as its reclaim describes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Unclaimed {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
    pub(crate) mode: Mode,
    pub(crate) token: FencingToken,
}

#[derive(Default)]
struct State {
    next: u64,
    entries: BTreeMap<Nonce, Entry>,
    /// The holdings of a resumed session that no guard has yet.
    unclaimed: HashMap<Unclaimed, Nonce>,
    /// How many departures wait for their confirmation.
    departing: usize,
    slots: Vec<Slot>,
    /// How many comparisons with the store have begun.
    comparisons: u64,
    /// The requests that were removed during the present comparison.
    removed: Option<HashSet<Nonce>>,
}

struct Entry {
    kind: Kind,
    stage: Stage,
    /// For the caller that waits for the grant.
    loss: Signal<LossReason>,
    /// Why the store has ended the request. Each signal is set afterwards, without the lock: a waker may drop a guard.
    lost: Option<LossReason>,
}

enum Stage {
    /// In flight, or waiting.
    Open,
    /// Granted.
    Held {
        tokens: Vec<HeldToken>,
        /// How many comparisons with the store had begun at the grant.
        comparisons: u64,
    },
    /// Being withdrawn.
    Withdrawn,
}

struct HeldToken {
    grant: Grant,
    loss: Signal<LossReason>,
    /// Whether its release has begun.
    departing: bool,
}

impl Entry {
    fn new(kind: Kind, stage: Stage) -> Self {
        Self {
            kind,
            stage,
            loss: Signal::new(),
            lost: None,
        }
    }

    fn departing(&self) -> usize {
        match &self.stage {
            Stage::Open => 0,
            Stage::Held { tokens, .. } => tokens.iter().filter(|held| held.departing).count(),
            Stage::Withdrawn => 1,
        }
    }
}

impl State {
    /// Adds an entry of the store that is to be withdrawn.
    fn insert_orphan(&mut self, nonce: Nonce, kind: Kind) {
        let entry = Entry::new(kind, Stage::Withdrawn);
        // A store with another history may have a nonce that no request has had yet.
        self.next = self.next.max(nonce.get() + 1);
        self.departing += entry.departing();
        self.entries.insert(nonce, entry);
    }

    fn oldest_open(&self) -> u64 {
        self.entries.keys().next().map_or(self.next, |nonce| nonce.get())
    }

    /// Returns whether no departure and no step is in flight.
    fn is_quiet(&self) -> bool {
        self.departing == 0 && self.slots.len() == usize::from(Slot::COUNT)
    }

    fn take_nonce(&mut self) -> Nonce {
        let nonce = Nonce::new(self.next);
        self.next += 1;
        nonce
    }

    /// Changes an entry, and removes it if `change` returns false.
    fn change(&mut self, nonce: Nonce, change: impl FnOnce(&mut Entry) -> bool) {
        let Some(entry) = self.entries.get_mut(&nonce) else {
            return;
        };
        let before = entry.departing();
        let stays = change(entry);
        let after = if stays { entry.departing() } else { 0 };
        self.departing = self.departing + after - before;
        if !stays {
            self.entries.remove(&nonce);
            if let Some(removed) = &mut self.removed {
                removed.insert(nonce);
            }
        }
    }
}

impl RequestRegistry {
    pub(crate) fn new(first: Nonce, capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                next: first.get(),
                slots: (0..Slot::COUNT).rev().map(Slot::new).collect(),
                ..State::default()
            }),
            changed: Notify::new(),
            capacity,
            oldest_open: Arc::new(first.get().into()),
            free_slots: Arc::new(Semaphore::new(usize::from(Slot::COUNT))),
        }
    }

    fn request(&self, nonce: Nonce, kind: Kind, name: &Name) -> Request {
        Request::new(nonce, kind, name.clone(), Arc::clone(&self.oldest_open))
    }

    /// Opens a request. If there is no room, waits for an entry that is being released or withdrawn.
    ///
    /// # Errors
    ///
    /// `TooLarge` if there is no room and no entry is being released or withdrawn.
    pub(crate) async fn open(&self, kind: Kind, name: &Name) -> Result<(Request, Signal<LossReason>)> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.entries.len() < self.capacity {
                    let nonce = state.take_nonce();
                    let entry = Entry::new(kind, Stage::Open);
                    let loss = entry.loss.clone();
                    state.entries.insert(nonce, entry);
                    return Ok((self.request(nonce, kind, name), loss));
                }
                if state.departing == 0 {
                    let message = format!(
                        "the session has {} requests and holdings, the most that the store carries: release some, or open another session",
                        self.capacity
                    );
                    return Err(Error::new(ErrorKind::TooLarge, message));
                }
            }
            changed.await;
        }
    }

    /// Records the grants of a request. Returns the loss signal of each.
    pub(crate) fn hold(&self, nonce: Nonce, grants: &[Grant]) -> Vec<Signal<LossReason>> {
        let mut state = self.state.lock();
        let comparisons = state.comparisons;
        let mut signals = Vec::with_capacity(grants.len());
        state.change(nonce, |entry| {
            let held = |grant: &Grant| {
                let loss = Signal::new();
                if let Some(reason) = entry.lost {
                    loss.set(reason);
                }
                signals.push(loss.clone());
                HeldToken {
                    grant: grant.clone(),
                    loss,
                    departing: false,
                }
            };
            let tokens = grants.iter().map(held).collect();
            entry.stage = Stage::Held { tokens, comparisons };
            true
        });
        signals
    }

    /// Records that a withdrawal, or the release of `token`, has begun.
    pub(crate) fn begin_end(&self, nonce: Nonce, token: Option<FencingToken>) {
        self.state.lock().change(nonce, |entry| {
            match (&mut entry.stage, token) {
                (Stage::Held { tokens, .. }, Some(token)) => {
                    for held in tokens.iter_mut().filter(|held| held.grant.token == token) {
                        held.departing = true;
                    }
                }
                _ => entry.stage = Stage::Withdrawn,
            }
            true
        });
    }

    /// Records that nothing is left of a request, or of its `token`.
    pub(crate) fn confirm_end(&self, nonce: Nonce, token: Option<FencingToken>) {
        let mut state = self.state.lock();
        state.change(nonce, |entry| match (&mut entry.stage, token) {
            (Stage::Held { tokens, .. }, Some(token)) => {
                tokens.retain(|held| held.grant.token != token);
                !tokens.is_empty()
            }
            _ => false,
        });
        let oldest = state.oldest_open();
        drop(state);
        self.oldest_open.fetch_max(oldest, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Records that the store has ended a request.
    pub(crate) fn lose(&self, nonce: Nonce, reason: LossReason) {
        let mut signals = Vec::new();
        self.state.lock().change(nonce, |entry| {
            entry.lost = Some(reason);
            signals.push(entry.loss.clone());
            if let Stage::Held { tokens, .. } = &entry.stage {
                signals.extend(tokens.iter().map(|held| held.loss.clone()));
            }
            true
        });
        for signal in signals {
            signal.set(reason);
        }
    }

    /// Takes the holding of a resumed session that no guard has yet, by an index: resumed holdings may be many.
    pub(crate) fn reclaim(&self, unclaimed: &Unclaimed) -> Option<(Request, Grant, Signal<LossReason>)> {
        let mut state = self.state.lock();
        let nonce = state.unclaimed.remove(unclaimed)?;
        let Stage::Held { tokens, .. } = &state.entries.get(&nonce)?.stage else {
            return None;
        };
        let held = tokens.iter().find(|held| held.grant.token == unclaimed.token)?;
        let request = self.request(nonce, unclaimed.kind, &unclaimed.name);
        Some((request, held.grant.clone(), held.loss.clone()))
    }

    /// Takes the identity of a step. Waits while all slots are in use.
    pub(crate) async fn marker(self: &Arc<Self>) -> MarkerLease {
        // The semaphore is never closed; without a permit there would still be a slot, or the fallback.
        let permit = Arc::clone(&self.free_slots).acquire_owned().await.ok();
        let mut state = self.state.lock();
        let slot = state.slots.pop().unwrap_or(Slot::new(0));
        MarkerLease {
            marker: Marker {
                nonce: state.take_nonce(),
                slot,
            },
            registry: Arc::clone(self),
            _permit: permit,
        }
    }

    /// Waits until no departure and no step is in flight.
    pub(crate) async fn quiet(&self) {
        self.until(State::is_quiet).await;
    }

    /// Waits until nothing is left of a request.
    pub(crate) async fn ended(&self, nonce: Nonce) {
        self.until(|state| !state.entries.contains_key(&nonce)).await;
    }

    async fn until(&self, holds: impl Fn(&State) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if holds(&self.state.lock()) {
                return;
            }
            changed.await;
        }
    }
}

/// The identity of one step. Its slot is free again after the drop.
pub(crate) struct MarkerLease {
    marker: Marker,
    registry: Arc<RequestRegistry>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl MarkerLease {
    pub(crate) const fn marker(&self) -> Marker {
        self.marker
    }
}

impl Drop for MarkerLease {
    fn drop(&mut self) {
        // Before the permit is returned.
        self.registry.state.lock().slots.push(self.marker.slot);
        self.registry.changed.notify_waiters();
    }
}
