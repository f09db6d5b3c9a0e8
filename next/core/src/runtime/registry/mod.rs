//! All requests and holdings of a session.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::signal::Signal;
use crate::backend::{Grant, Mode, Nonce, Request};
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::name::{Kind, Name};
use crate::sync::{Mutex, Notify};
use crate::token::FencingToken;

mod comparison;
#[cfg(shuttle)]
pub(crate) mod interleavings;

/// The requests of a session, from before their first message until the store has confirmed that nothing of them is left.
pub(crate) struct RequestRegistry {
    state: Mutex<State>,
    /// Wakes one of the requests that wait for room.
    room: Notify,
    /// Notified when no departure is in flight any more.
    quiet: Notify,
    capacity: usize,
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
    /// The requests that [`Request::oldest_open`] must not pass.
    open: BTreeSet<Nonce>,
    /// Shared with the requests.
    oldest_open: Arc<AtomicU64>,
    /// How much room the entries take.
    size: usize,
    /// The holdings of a resumed session that no guard has yet.
    unclaimed: HashMap<Unclaimed, Nonce>,
    /// How many departures wait for their confirmation.
    departing: usize,
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
    /// Set when nothing is left of the request, if a caller waits for that.
    ended: Option<Signal<()>>,
}

/// The part of an entry in the sums of the registry.
#[derive(Default)]
struct Weight {
    size: usize,
    departing: usize,
    open: bool,
}

enum Stage {
    /// Its join may be in flight.
    Open,
    /// It has a place in the store.
    Waiting,
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
            ended: None,
        }
    }

    fn weight(&self) -> Weight {
        let (size, departing, open) = match &self.stage {
            Stage::Open => (1, 0, true),
            Stage::Waiting => (1, 0, false),
            // A take has a holding for each of its items.
            Stage::Held { tokens, .. } => (tokens.len(), tokens.iter().filter(|held| held.departing).count(), false),
            Stage::Withdrawn => (1, 1, true),
        };
        Weight { size, departing, open }
    }
}

impl State {
    /// Adds an entry of the store that is to be withdrawn.
    fn insert_orphan(&mut self, nonce: Nonce, kind: Kind) {
        // A store with another history may have a nonce that no request has had yet.
        self.next = self.next.max(nonce.get() + 1);
        self.insert(nonce, Entry::new(kind, Stage::Withdrawn));
    }

    fn insert(&mut self, nonce: Nonce, entry: Entry) {
        self.account(nonce, &Weight::default(), &entry.weight());
        self.entries.insert(nonce, entry);
    }

    fn account(&mut self, nonce: Nonce, before: &Weight, after: &Weight) {
        self.size = self.size + after.size - before.size;
        self.departing = self.departing + after.departing - before.departing;
        match after.open {
            true => self.open.insert(nonce),
            false => self.open.remove(&nonce),
        };
        self.oldest_open.fetch_max(self.oldest_open(), Ordering::AcqRel);
    }

    fn oldest_open(&self) -> u64 {
        self.open.first().map_or(self.next, |nonce| nonce.get())
    }

    fn request(&self, nonce: Nonce, kind: Kind, name: &Name) -> Request {
        Request::new(nonce, kind, name.clone(), Arc::clone(&self.oldest_open))
    }

    fn take_nonce(&mut self) -> Nonce {
        let nonce = Nonce::new(self.next);
        self.next += 1;
        nonce
    }

    /// Changes an entry. Removes and returns it if `change` returns false.
    fn change(&mut self, nonce: Nonce, change: impl FnOnce(&mut Entry) -> bool) -> Option<Entry> {
        let entry = self.entries.get_mut(&nonce)?;
        let before = entry.weight();
        let stays = change(entry);
        let after = if stays { entry.weight() } else { Weight::default() };
        self.account(nonce, &before, &after);
        if stays {
            return None;
        }
        if let Some(removed) = &mut self.removed {
            removed.insert(nonce);
        }
        self.entries.remove(&nonce)
    }
}

impl RequestRegistry {
    pub(crate) fn new(first: Nonce, capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                next: first.get(),
                oldest_open: Arc::new(first.get().into()),
                ..State::default()
            }),
            room: Notify::new(),
            quiet: Notify::new(),
            capacity,
        }
    }

    /// Opens a request. If there is no room, waits for an entry that is being released or withdrawn. A take needs room for one
    /// item, and may be given more.
    ///
    /// # Errors
    ///
    /// `TooLarge` if there is no room and no entry is being released or withdrawn.
    pub(crate) async fn register(&self, kind: Kind, name: &Name) -> Result<(Request, Signal<LossReason>)> {
        if let Some(opened) = self.try_open(kind, name) {
            return opened;
        }
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            room.as_mut().enable();
            if let Some(opened) = self.try_open(kind, name) {
                // There may be room for the next one too, or none for any.
                self.room.notify_one();
                return opened;
            }
            room.await;
        }
    }

    fn try_open(&self, kind: Kind, name: &Name) -> Option<Result<(Request, Signal<LossReason>)>> {
        let mut state = self.state.lock();
        if state.size >= self.capacity {
            return (state.departing == 0).then(|| Err(self.full()));
        }
        let nonce = state.take_nonce();
        let entry = Entry::new(kind, Stage::Open);
        let loss = entry.loss.clone();
        state.insert(nonce, entry);
        Some(Ok((state.request(nonce, kind, name), loss)))
    }

    /// Returns the error for a request without room.
    pub(crate) fn full(&self) -> Error {
        let message = format!(
            "the session has {} requests and holdings, the most that the store carries: release some, or open another session",
            self.capacity
        );
        Error::new(ErrorKind::TooLarge, message)
    }

    /// Records that the store has answered the join of a request that waits.
    pub(crate) fn begin_waiting(&self, nonce: Nonce) {
        self.state.lock().change(nonce, |entry| {
            entry.stage = Stage::Waiting;
            true
        });
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
        let removed = state.change(nonce, |entry| match (&mut entry.stage, token) {
            (Stage::Held { tokens, .. }, Some(token)) => {
                tokens.retain(|held| held.grant.token != token);
                !tokens.is_empty()
            }
            _ => false,
        });
        let quiet = state.departing == 0;
        drop(state);
        if let Some(ended) = removed.and_then(|entry| entry.ended) {
            ended.set(());
        }
        self.room.notify_one();
        if quiet {
            self.quiet.notify_waiters();
        }
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
        let request = state.request(nonce, unclaimed.kind, &unclaimed.name);
        Some((request, held.grant.clone(), held.loss.clone()))
    }

    /// Takes the nonce of a step.
    pub(crate) fn take_nonce(&self) -> Nonce {
        self.state.lock().take_nonce()
    }

    /// Waits until no departure is in flight.
    pub(crate) async fn quiet(&self) {
        loop {
            let mut quiet = std::pin::pin!(self.quiet.notified());
            quiet.as_mut().enable();
            if self.state.lock().departing == 0 {
                return;
            }
            quiet.await;
        }
    }

    /// Waits until nothing is left of a request.
    pub(crate) async fn ended(&self, nonce: Nonce) {
        let ended = match self.state.lock().entries.get_mut(&nonce) {
            Some(entry) => entry.ended.get_or_insert_with(Signal::new).wait(),
            None => return,
        };
        ended.await;
    }
}
