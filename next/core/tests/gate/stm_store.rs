//! A store with transactional memory that loses and delays answers on command. Its locks are always free, and its
//! elections show observers what a test wants.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, BackendSession, Commit, CommitOutcome, CommitRecord, Departure, Election, EndOutcome, Grant, Joined, Key,
    KeyRead, LeaderUpdate, Lease, Locker, Marker, Mode, Nonce, Opened, Page, Request, Resolution, SessionEvents, Slot,
    Snapshot, Stm, StoredValue, WaitQueue, Write,
};
use tenure_core::clock::Clock;
use tenure_core::executor::Executor;
use tenure_core::{
    Effect, Error, ErrorKind, FencingToken, Guarantees, Name, OpResult, Result, Session, SessionId, SessionOptions,
    StmEntry, Store,
};
use tokio::sync::Notify;

/// A fault of one call.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    LoseRequest,
    LoseAnswer,
    /// The call fails, and the request arrives this much later.
    Late(Duration),
    Refuse(ErrorKind),
}

#[derive(Default)]
struct State {
    revision: u64,
    keys: BTreeMap<Key, Stored>,
    /// The keys at each earlier revision.
    history: BTreeMap<u64, BTreeMap<Key, Stored>>,
    slots: HashMap<(SessionId, Slot), (Nonce, Option<Recorded>)>,
    sessions: u64,
    faults: HashMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
    calls: HashMap<&'static str, usize>,
    bytes: usize,
    fence_lost: bool,
    fences: Vec<bool>,
    updates: VecDeque<Result<LeaderUpdate>>,
    proclaimed: Vec<u64>,
}

#[derive(Clone)]
struct Stored {
    entry: StmEntry,
    owner: Option<SessionId>,
}

#[derive(Clone)]
struct Recorded {
    succeeded: bool,
    revision: u64,
}

impl State {
    fn entry(&self, key: &Key) -> Option<&StmEntry> {
        self.keys.get(key).map(|stored| &stored.entry)
    }

    fn apply(&mut self, session: &SessionId, commit: &Commit) -> Result<CommitOutcome> {
        let slot = (session.clone(), commit.marker.slot);
        match self.slots.get(&slot) {
            Some((nonce, _)) if *nonce > commit.marker.nonce => {
                return Err(Error::new(ErrorKind::Conflict, "too late"));
            }
            Some((nonce, None)) if *nonce == commit.marker.nonce => {
                return Err(Error::new(ErrorKind::Conflict, "aborted"));
            }
            Some((nonce, Some(_))) if *nonce == commit.marker.nonce => {
                return Err(Error::new(ErrorKind::Unavailable, "the answer is not kept").with_effect(Effect::Unknown));
            }
            _ => {}
        }
        if let Some(fence) = &commit.fence {
            self.fences.push(fence.exclusive);
            if self.fence_lost {
                return Ok(CommitOutcome::FenceLost);
            }
        }
        let succeeded = commit
            .compares
            .iter()
            .all(|compare| compare.holds(self.entry(compare.key())));
        let branch = if succeeded { &commit.then } else { &commit.or_else };
        if branch.iter().any(|write| !matches!(write, Write::Get(_))) {
            self.history.insert(self.revision, self.keys.clone());
            self.revision += 1;
        }
        let revision = self.revision;
        let mut results = Vec::new();
        for write in branch {
            results.push(match write {
                Write::Get(key) => OpResult::Get(self.entry(key).cloned()),
                Write::Put { key, value, leased } => {
                    let (created, version) = self
                        .entry(key)
                        .map_or((revision, 1), |old| (old.created, old.version + 1));
                    let entry = StmEntry::new(value.to_vec(), created, revision, version);
                    let owner = leased.then(|| session.clone());
                    self.keys.insert(key.clone(), Stored { entry, owner });
                    OpResult::Put
                }
                Write::Delete(key) => {
                    self.keys.remove(key);
                    OpResult::Delete
                }
                _ => panic!("an operation that this store does not know"),
            });
        }
        let recorded = Recorded { succeeded, revision };
        self.slots.insert(slot, (commit.marker.nonce, Some(recorded)));
        Ok(CommitOutcome::Done(CommitRecord::new(succeeded, revision, results)))
    }
}

/// The store, and the control over it.
#[derive(Clone)]
pub(crate) struct StmStore {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    clock: Clock,
    snapshots: bool,
}

impl StmStore {
    /// A store that keeps no snapshots.
    pub(crate) fn new() -> Self {
        Self {
            state: Arc::default(),
            changed: Arc::default(),
            clock: Clock::tokio(),
            snapshots: false,
        }
    }

    pub(crate) fn with_snapshots() -> Self {
        Self {
            snapshots: true,
            ..Self::new()
        }
    }

    pub(crate) async fn session(&self) -> Session {
        let store = Store::new(self.clone());
        store
            .open(SessionOptions::new().ttl(Duration::from_secs(10)))
            .await
            .unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets the next call of `step` meet `fault`.
    pub(crate) fn once(&self, step: &'static str, fault: Fault) {
        self.state().faults.entry(step).or_default().push_back(fault);
    }

    /// Lets every call of `step` meet `fault`.
    pub(crate) fn always(&self, step: &'static str, fault: Fault) {
        self.state().always.insert(step, fault);
    }

    /// Ends [`always`](Self::always).
    pub(crate) fn heal(&self, step: &'static str) {
        self.state().always.remove(step);
    }

    pub(crate) fn calls(&self, step: &'static str) -> usize {
        self.state().calls.get(step).copied().unwrap_or_default()
    }

    /// Returns how many bytes of values were read.
    pub(crate) fn bytes(&self) -> usize {
        self.state().bytes
    }

    pub(crate) fn lose_fences(&self) {
        self.state().fence_lost = true;
    }

    /// Returns which fences of commits wanted the holding to be exclusive.
    pub(crate) fn fences(&self) -> Vec<bool> {
        self.state().fences.clone()
    }

    pub(crate) fn keys(&self) -> usize {
        self.state().keys.len()
    }

    /// Lets the next calls of `observe` answer so, and later ones wait.
    pub(crate) fn show(&self, updates: impl IntoIterator<Item = Result<LeaderUpdate>>) {
        self.state().updates.extend(updates);
        self.changed.notify_waiters();
    }

    /// Returns the numbers of the proclamations.
    pub(crate) fn proclaimed(&self) -> Vec<u64> {
        self.state().proclaimed.clone()
    }

    async fn step<T: Send + 'static>(
        &self,
        step: &'static str,
        apply: impl Fn(&mut State) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let fault = {
            let mut state = self.state();
            *state.calls.entry(step).or_default() += 1;
            let once = state.faults.get_mut(step).and_then(VecDeque::pop_front);
            once.or(state.always.get(step).copied())
        };
        let store = self.clone();
        let apply = move || {
            let answer = apply(&mut store.state());
            store.changed.notify_waiters();
            answer
        };
        let lost = || Error::new(ErrorKind::Unavailable, "no answer").with_effect(Effect::Unknown);
        tokio::task::yield_now().await;
        match fault {
            None => {}
            Some(Fault::LoseRequest) => return Err(lost()),
            Some(Fault::LoseAnswer) => {
                apply()?;
                return Err(lost());
            }
            Some(Fault::Late(by)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    let _ = apply();
                });
                return Err(lost());
            }
            Some(Fault::Refuse(kind)) => return Err(Error::new(kind, "refused")),
        }
        let answer = apply();
        tokio::task::yield_now().await;
        answer
    }
}

#[async_trait]
impl Backend for StmStore {
    async fn open(&self, ttl: Duration, _label: &str, _events: SessionEvents) -> Result<Opened> {
        let opening = self.step("open", |state| {
            state.sessions += 1;
            Ok(SessionId::new(state.sessions.to_string()))
        });
        let id = opening.await?;
        let session = StmSession {
            store: self.clone(),
            id: id.clone(),
        };
        Ok(Opened::new(Arc::new(session), id, ttl))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("guarantees"))
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn executor(&self) -> Result<Executor> {
        Executor::current()
    }
}

struct StmSession {
    store: StmStore,
    id: SessionId,
}

#[async_trait]
impl Lease for StmSession {
    async fn renew(&self) -> Result<()> {
        self.store.step("renew", |_| Ok(())).await
    }

    async fn revoke(&self) -> Result<()> {
        let id = self.id.clone();
        let revoking = self.store.step("revoke", move |state| {
            state.keys.retain(|_, stored| stored.owner.as_ref() != Some(&id));
            Ok(())
        });
        revoking.await
    }

    async fn entries(&self, _cursor: Option<&[u8]>) -> Result<Page> {
        Err(Error::new(ErrorKind::Unavailable, "this store lists nothing"))
    }
}

impl BackendSession for StmSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(self)
    }
}

impl Locker for StmSession {}

#[async_trait]
impl WaitQueue for StmSession {
    async fn join(&self, request: &Request, _: Mode, _: Option<&[u8]>, _: bool) -> Result<Joined> {
        let token = FencingToken::new(request.nonce().get());
        Ok(Joined::Granted(Grant::new(token, "key")))
    }

    async fn wait(&self, _: &Request) -> Result<Option<Grant>> {
        Ok(None)
    }

    async fn leave(&self, _: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        Ok(vec![EndOutcome::Ended; departures.len()])
    }
}

#[async_trait]
impl Election for StmSession {
    async fn proclaim(&self, _: &Request, _: FencingToken, number: u64, _: &[u8]) -> Result<()> {
        let proclaiming = self.store.step("proclaim", move |state| {
            state.proclaimed.push(number);
            Ok(())
        });
        proclaiming.await
    }

    async fn observe(&self, _: &Name, _: Option<u64>) -> Result<LeaderUpdate> {
        let mut changed = std::pin::pin!(self.store.changed.notified());
        loop {
            changed.as_mut().enable();
            let next = self.store.state().updates.pop_front();
            if let Some(next) = next {
                return next;
            }
            changed.as_mut().await;
            changed.set(self.store.changed.notified());
        }
    }
}

#[async_trait]
impl Stm for StmSession {
    async fn read(&self, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot> {
        let (keys, snapshots) = (keys.to_vec(), self.store.snapshots);
        let reading = self.store.step("read", move |state| {
            let earlier = at
                .filter(|_| snapshots)
                .and_then(|at| Some((at, state.history.get(&at)?.clone())));
            let (revision, stored) = earlier.unwrap_or_else(|| (state.revision, state.keys.clone()));
            let value = |read: &KeyRead| {
                let entry = &stored.get(&read.key)?.entry;
                let is_known = read.known == Some(entry.modified);
                let value = (!is_known).then(|| entry.value.clone());
                Some(StoredValue::new(value, entry.created, entry.modified, entry.version))
            };
            let values: Vec<_> = keys.iter().map(value).collect();
            let sent = values.iter().flatten().filter_map(|value| value.value.as_ref());
            state.bytes += sent.map(|value| value.len()).sum::<usize>();
            Ok(Snapshot::new(revision, values))
        });
        reading.await
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome> {
        let (id, commit) = (self.id.clone(), commit.clone());
        self.store.step("commit", move |state| state.apply(&id, &commit)).await
    }

    async fn resolve(&self, marker: Marker) -> Result<Resolution> {
        let id = self.id.clone();
        let resolving = self.store.step("resolve", move |state| {
            let slot = state
                .slots
                .entry((id.clone(), marker.slot))
                .or_insert((marker.nonce, None));
            if slot.0 < marker.nonce {
                *slot = (marker.nonce, None);
            }
            Ok(match &slot.1 {
                Some(Recorded { succeeded, revision }) => Resolution::Committed {
                    succeeded: *succeeded,
                    revision: *revision,
                },
                None => Resolution::Aborted,
            })
        });
        resolving.await
    }

    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()> {
        let mut changed = std::pin::pin!(self.store.changed.notified());
        loop {
            changed.as_mut().enable();
            let is_newer = |key: &Key| {
                self.store
                    .state()
                    .entry(key)
                    .is_none_or(|entry| entry.modified > revision)
            };
            if keys.iter().any(is_newer) {
                return Ok(());
            }
            changed.as_mut().await;
            changed.set(self.store.changed.notified());
        }
    }

    fn check(&self, _: &Commit) -> Result<()> {
        Ok(())
    }
}
