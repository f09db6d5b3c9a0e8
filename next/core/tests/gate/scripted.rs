//! A small store in memory that loses, delays and repeats answers on command.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque, btree_map};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, BackendSession, Departure, EndOutcome, Entry, EntryState, Grant, Joined, Lease, Locker, Marker, Mode,
    Nonce, Opened, Page, Request, RwLock, SessionEvent, SessionEvents, Slot, WaitQueue,
};
use tenure_core::clock::{Clock, Moment};
use tenure_core::executor::Executor;
use tenure_core::{
    Effect, Error, ErrorKind, FencingToken, Guarantees, Kind, LossReason, Name, Result, Session, SessionId,
    SessionOptions, Store,
};
use tokio::sync::Notify;

/// A fault of one call of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// The request does not reach the store.
    LoseRequest,
    /// The request takes effect, and its answer is lost.
    LoseAnswer,
    /// The call fails, and the request arrives this much later.
    Late(Duration),
    /// The request travels for this long, and the answer too.
    Delay(Duration),
    /// The call never ends.
    Hang,
    Panic,
    /// The store refuses.
    Refuse(ErrorKind),
}

#[derive(Default)]
struct State {
    next_session: u64,
    token: u64,
    sessions: HashMap<SessionId, Record>,
    detached: HashSet<SessionId>,
    /// The requests for each lock in their order; the first holds it.
    queues: HashMap<(Kind, Name), VecDeque<(SessionId, Nonce)>>,
    once: HashMap<&'static str, VecDeque<Fault>>,
    always: HashMap<&'static str, Fault>,
    calls: HashMap<&'static str, usize>,
    /// The markers of all downgrades that were sent.
    markers: Vec<Marker>,
    downgrades: usize,
}

/// An entry: its kind and name, and the token once it is granted.
type Stored = (Kind, Name, Option<FencingToken>);

struct Record {
    ttl: Duration,
    expires: Moment,
    entries: BTreeMap<Nonce, Stored>,
    withdrawn: BTreeSet<Nonce>,
    /// The highest watermark of a request: those below join no more.
    floor: Nonce,
    slots: HashMap<Slot, Nonce>,
    events: SessionEvents,
}

impl State {
    fn grant_heads(&mut self) {
        for queue in self.queues.values() {
            let Some((session, nonce)) = queue.front() else {
                continue;
            };
            let entry = self
                .sessions
                .get_mut(session)
                .and_then(|record| record.entries.get_mut(nonce));
            if let Some((_, _, token @ None)) = entry {
                self.token += 1;
                *token = Some(FencingToken::new(self.token));
            }
        }
    }

    fn remove(&mut self, session: &SessionId, nonce: Nonce) -> Option<FencingToken> {
        let record = self.sessions.get_mut(session)?;
        let (kind, name, token) = record.entries.remove(&nonce)?;
        let queue = self.queues.entry((kind, name)).or_default();
        queue.retain(|entry| *entry != (session.clone(), nonce));
        self.grant_heads();
        token
    }

    fn end(&mut self, session: &SessionId) {
        let nonces: Vec<_> = self
            .sessions
            .get(session)
            .into_iter()
            .flat_map(|record| record.entries.keys().copied())
            .collect();
        for nonce in nonces {
            self.remove(session, nonce);
        }
        self.sessions.remove(session);
        self.detached.remove(session);
    }
}

/// The store, and the control over it.
#[derive(Clone)]
pub(crate) struct Scripted {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    clock: Clock,
    library: bool,
    capacity: usize,
}

impl Scripted {
    /// A store whose work runs on the test's runtime, under its clock.
    pub(crate) fn paused() -> Self {
        Self::with_clock(Clock::tokio(), false)
    }

    /// A store whose work runs on the library's thread.
    pub(crate) fn on_the_library() -> Self {
        Self::with_clock(Clock::boot_time(), true)
    }

    /// A store whose work runs on the runtime that opens a session, by the machine's clock.
    pub(crate) fn on_the_current_runtime() -> Self {
        Self::with_clock(Clock::boot_time(), false)
    }

    fn with_clock(clock: Clock, library: bool) -> Self {
        Self {
            state: Arc::default(),
            changed: Arc::default(),
            clock,
            library,
            capacity: 1_000,
        }
    }

    pub(crate) fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    pub(crate) async fn session(&self, ttl: Duration) -> Session {
        let store = Store::new(self.clone());
        store.open(SessionOptions::new().ttl(ttl)).await.unwrap()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        let now = self.clock.now();
        let expired: Vec<_> = state
            .sessions
            .iter()
            .filter(|(_, record)| record.expires <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in expired {
            state.end(&id);
        }
        state
    }

    /// Lets the next call of `step` meet `fault`.
    pub(crate) fn once(&self, step: &'static str, fault: Fault) {
        self.state().once.entry(step).or_default().push_back(fault);
    }

    /// Lets every call of `step` meet `fault`.
    pub(crate) fn always(&self, step: &'static str, fault: Fault) {
        self.state().always.insert(step, fault);
    }

    /// Ends [`always`](Self::always).
    pub(crate) fn heal(&self, step: &'static str) {
        self.state().always.remove(step);
    }

    /// Ends every fault.
    pub(crate) fn calm(&self) {
        let mut state = self.state();
        state.once.clear();
        state.always.clear();
    }

    /// Counts the calls of `step`.
    pub(crate) fn calls(&self, step: &'static str) -> usize {
        self.state().calls.get(step).copied().unwrap_or_default()
    }

    /// Returns the markers of all downgrades that were sent, and how many took effect.
    pub(crate) fn downgrades(&self) -> (Vec<Marker>, usize) {
        let state = self.state();
        (state.markers.clone(), state.downgrades)
    }

    /// Counts the withdrawals that the store has to remember.
    pub(crate) fn withdrawals(&self) -> usize {
        self.state()
            .sessions
            .values()
            .map(|record| record.withdrawn.len())
            .sum()
    }

    /// Counts the entries of all sessions.
    pub(crate) fn entries(&self) -> usize {
        self.state().sessions.values().map(|record| record.entries.len()).sum()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.state().sessions.len()
    }

    pub(crate) fn report(&self, session: &Session, event: SessionEvent) {
        self.state().sessions[session.id()].events.report(event);
    }

    /// Ends a session in the store, as an operator does.
    pub(crate) fn kill(&self, session: &Session) {
        self.state().end(session.id());
        self.changed.notify_waiters();
    }

    /// Removes the entries of `session`, as a store does that lost its history. Returns the nonces.
    pub(crate) fn forget(&self, session: &Session) -> Vec<Nonce> {
        let mut state = self.state();
        let nonces: Vec<_> = state.sessions[session.id()].entries.keys().copied().collect();
        for nonce in &nonces {
            state.remove(session.id(), *nonce);
        }
        drop(state);
        self.changed.notify_waiters();
        nonces
    }

    /// Adds an entry that no request made, as a store does that lost the end of a request.
    pub(crate) fn plant(&self, session: &Session, nonce: Nonce, name: &str) {
        let name = Name::new(name).unwrap();
        let mut state = self.state();
        state
            .sessions
            .get_mut(session.id())
            .unwrap()
            .entries
            .insert(nonce, (Kind::Lock, name.clone(), None));
        state
            .queues
            .entry((Kind::Lock, name))
            .or_default()
            .push_back((session.id().clone(), nonce));
        state.grant_heads();
    }

    /// Waits until the store has no entry.
    pub(crate) async fn until_empty(&self) {
        self.until(|store| store.entries() == 0).await;
    }

    pub(crate) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..30_000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("the condition was not met");
    }

    async fn step<T: Send + 'static>(
        &self,
        step: &'static str,
        apply: impl Fn(&mut State) -> Result<T> + Send + Sync + 'static,
    ) -> Result<T> {
        let fault = {
            let mut state = self.state();
            *state.calls.entry(step).or_default() += 1;
            let once = state.once.get_mut(step).and_then(VecDeque::pop_front);
            once.or(state.always.get(step).copied())
        };
        let store = self.clone();
        let apply = move || {
            let answer = apply(&mut store.state());
            if !matches!(step, "wait" | "entries" | "renew") {
                store.changed.notify_waiters();
            }
            answer
        };
        let lost = || Error::new(ErrorKind::Unavailable, "no answer").with_effect(Effect::Unknown);
        // A point before the request has arrived, and one before the answer has.
        tokio::task::yield_now().await;
        match fault {
            None => {}
            Some(Fault::LoseRequest) => return Err(lost()),
            Some(Fault::LoseAnswer) => {
                apply()?;
                return Err(lost());
            }
            Some(Fault::Late(by)) => {
                let clock = self.clock.clone();
                tokio::spawn(async move {
                    clock.sleep(by).await;
                    let _ = apply();
                });
                return Err(lost());
            }
            Some(Fault::Delay(by)) => {
                self.clock.sleep(by).await;
                let answer = apply();
                self.clock.sleep(by).await;
                return answer;
            }
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Panic) => panic!("scripted"),
            Some(Fault::Refuse(kind)) => return Err(Error::new(kind, "refused")),
        }
        let answer = apply();
        tokio::task::yield_now().await;
        answer
    }
}

#[async_trait]
impl Backend for Scripted {
    async fn open(&self, ttl: Duration, _label: &str, events: SessionEvents) -> Result<Opened> {
        let clock = self.clock.clone();
        let opening = self.step("open", move |state| {
            state.next_session += 1;
            let id = SessionId::new(state.next_session.to_string());
            let record = Record {
                ttl,
                expires: clock.now() + ttl,
                entries: BTreeMap::new(),
                withdrawn: BTreeSet::new(),
                floor: Nonce::new(0),
                slots: HashMap::new(),
                events: events.clone(),
            };
            state.sessions.insert(id.clone(), record);
            Ok(id)
        });
        let id = opening.await?;
        Ok(self.opened(id, ttl))
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let session = id.clone();
        let resuming = self.step("resume", move |state| {
            let lost = || Error::lost(LossReason::Expired);
            let record = state.sessions.get_mut(&session).ok_or_else(lost)?;
            record.events = events.clone();
            let next = record.entries.keys().next_back().map_or(1, |nonce| nonce.get() + 1);
            let ttl = record.ttl;
            match state.detached.remove(&session) {
                true => Ok((ttl, next)),
                false => Err(Error::new(ErrorKind::Conflict, "resumed before")),
            }
        });
        let (ttl, next) = resuming.await?;
        Ok(self.opened(id.clone(), ttl).first_nonce(Nonce::new(next)))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("guarantees"))
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn executor(&self) -> Result<Executor> {
        match self.library {
            true => Executor::library(),
            false => Executor::current(),
        }
    }
}

impl Scripted {
    fn opened(&self, id: SessionId, ttl: Duration) -> Opened {
        let session = ScriptedSession {
            store: self.clone(),
            id: id.clone(),
        };
        Opened::new(Arc::new(session), id, ttl).capacity(self.capacity)
    }
}

fn ended() -> Error {
    Error::lost(LossReason::Revoked)
}

struct ScriptedSession {
    store: Scripted,
    id: SessionId,
}

#[async_trait]
impl Lease for ScriptedSession {
    async fn renew(&self) -> Result<()> {
        let (id, clock) = (self.id.clone(), self.store.clock.clone());
        let renewing = self.store.step("renew", move |state| {
            let record = state.sessions.get_mut(&id).ok_or_else(ended)?;
            record.expires = clock.now() + record.ttl;
            Ok(())
        });
        renewing.await
    }

    async fn revoke(&self) -> Result<()> {
        let id = self.id.clone();
        let revoking = self.store.step("revoke", move |state| {
            state.end(&id);
            Ok(())
        });
        revoking.await
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        let (id, kept) = (self.id.clone(), kept.to_vec());
        let detaching = self.store.step("detach", move |state| {
            let record = state.sessions.get(&id).ok_or_else(ended)?;
            let freed: Vec<_> = record
                .entries
                .keys()
                .copied()
                .filter(|nonce| !kept.contains(nonce))
                .collect();
            for nonce in freed {
                state.remove(&id, nonce);
            }
            state.detached.insert(id.clone());
            Ok(())
        });
        detaching.await
    }

    /// Pages of one entry each.
    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        let id = self.id.clone();
        let after = cursor.map(|cursor| u64::from_be_bytes(cursor.try_into().unwrap()));
        let listing = self.store.step("entries", move |state| {
            let record = state.sessions.get(&id).ok_or_else(ended)?;
            let next = record
                .entries
                .iter()
                .find(|(nonce, _)| after.is_none_or(|after| nonce.get() > after));
            Ok(next.map_or(Page::last(Vec::new()), |(nonce, (kind, name, token))| {
                let state = match token {
                    Some(token) => EntryState::Granted(vec![Grant::new(*token, name.as_str())]),
                    None => EntryState::Waiting,
                };
                let entry = Entry::new(*nonce, *kind, name.clone(), state);
                Page::with_next(vec![entry], nonce.get().to_be_bytes().to_vec())
            }))
        });
        listing.await
    }
}

impl BackendSession for ScriptedSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self)
    }
}

impl Locker for ScriptedSession {}

/// All of its requests are exclusive.
#[async_trait]
impl RwLock for ScriptedSession {
    async fn downgrade(&self, marker: Marker, _request: &Request, _token: FencingToken) -> Result<()> {
        let id = self.id.clone();
        self.store.state().markers.push(marker);
        let downgrading = self.store.step("downgrade", move |state| {
            let record = state.sessions.get_mut(&id).ok_or_else(ended)?;
            let last = record.slots.insert(marker.slot, marker.nonce);
            if last > Some(marker.nonce) {
                return Err(Error::new(ErrorKind::Conflict, "the slot was used again"));
            }
            if last != Some(marker.nonce) {
                state.downgrades += 1;
            }
            Ok(())
        });
        downgrading.await
    }
}

#[async_trait]
impl WaitQueue for ScriptedSession {
    async fn join(&self, request: &Request, _mode: Mode, _value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        let (id, nonce, floor) = (self.id.clone(), request.nonce(), request.oldest_open());
        let (kind, name) = (request.kind(), request.name().clone());
        let joining = self.store.step("join", move |state| {
            let record = state.sessions.get_mut(&id).ok_or_else(ended)?;
            record.floor = record.floor.max(floor);
            record.withdrawn = record.withdrawn.split_off(&record.floor);
            let ended = record.withdrawn.contains(&nonce) || nonce < record.floor;
            if ended && !record.entries.contains_key(&nonce) {
                return Err(Error::new(ErrorKind::Conflict, "withdrawn"));
            }
            let queue = state.queues.entry((kind, name.clone())).or_default();
            if let btree_map::Entry::Vacant(place) = record.entries.entry(nonce) {
                if !queue.is_empty() && !wait {
                    return Ok(Joined::Busy);
                }
                queue.push_back((id.clone(), nonce));
                place.insert((kind, name.clone(), None));
            }
            state.grant_heads();
            Ok(match state.sessions[&id].entries[&nonce].2 {
                Some(token) => Joined::Granted(Grant::new(token, name.as_str())),
                None => Joined::Waiting,
            })
        });
        joining.await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let (id, nonce) = (self.id.clone(), request.nonce());
        for _ in 0..10 {
            let mut changed = std::pin::pin!(self.store.changed.notified());
            changed.as_mut().enable();
            let session = id.clone();
            let looking = self.store.step("wait", move |state| {
                let record = state.sessions.get(&session).ok_or_else(ended)?;
                let place = record.entries.get(&nonce);
                let (_, name, token) = place.ok_or_else(|| Error::new(ErrorKind::Conflict, "no place"))?;
                Ok(token.map(|token| Grant::new(token, name.as_str())))
            });
            if let Some(grant) = looking.await? {
                return Ok(Some(grant));
            }
            tokio::select! {
                () = changed => {}
                () = self.store.clock.sleep(Duration::from_millis(100)) => {}
            }
        }
        Ok(None)
    }

    async fn leave(&self, _marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let (id, departures) = (self.id.clone(), departures.to_vec());
        let leaving = self.store.step("leave", move |state| {
            let mut answers = Vec::new();
            for departure in &departures {
                let nonce = departure.request.nonce();
                let Some(record) = state.sessions.get_mut(&id) else {
                    return Err(ended());
                };
                record.withdrawn.insert(nonce);
                let held = record
                    .entries
                    .get(&nonce)
                    .is_some_and(|(_, _, token)| departure.token.is_none() || departure.token == *token);
                answers.push(if held { EndOutcome::Ended } else { EndOutcome::NotHeld });
                if held {
                    state.remove(&id, nonce);
                }
            }
            Ok(answers)
        });
        leaving.await
    }
}

/// Polls `future` up to `times` times, and drops it unless it has ended.
pub(crate) async fn polled<F: Future>(future: F, times: usize) -> Option<F::Output> {
    let mut future = Box::pin(future);
    let mut left = times;
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Runs `scene` with a number of polls after which its future is dropped: 0, 1, 2, ... until it returns true, because its
/// future had ended before.
pub(crate) async fn at_every_await_point(scene: impl AsyncFn(usize) -> bool) {
    for polls in 0..200 {
        if scene(polls).await {
            assert!(polls > 2, "the future never waited, so that nothing was cancelled");
            return;
        }
    }
    panic!("the future never ended");
}
