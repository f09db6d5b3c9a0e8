//! The state of one namespace of an embedded store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tenure_core::backend::{Key, Nonce, Request, SessionEvent};
use tenure_core::clock::Moment;
use tenure_core::name::path;
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Namespace, Result};
use tokio::sync::Notify;

mod barrier;
mod entries;
mod lease;
mod queue;
mod space;
mod stm;
mod wait_queue;

pub(crate) use lease::Member;
use space::Signal;
pub(crate) use space::{Look, Space, StoreState, Topic};
pub(crate) use stm::check as check_commit;

use crate::config::Limits;
use crate::planted::{Bug, Planted};

/// An object, such as one lock or one queue, or a key of transactional memory.
type Object = Key;

/// The greatest token floor. It leaves 2^52 tokens, which no process uses up.
const GREATEST_FLOOR: u64 = 1 << 52;

/// Why an entry ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EndCause {
    /// Its client withdrew or released it.
    Left,
    /// Its session lost it, with the session or alone.
    Lost,
}

/// The state of one namespace.
pub(crate) struct State {
    namespace: Namespace,
    planted: Planted,
    capacity: usize,
    /// The instant of the current step.
    now: Moment,
    sessions: BTreeMap<u64, lease::SessionRecord>,
    /// The sessions by the end of their leases.
    leases: BTreeSet<(Moment, u64)>,
    /// No wait queue is empty.
    wait_queues: BTreeMap<Object, wait_queue::WaitQueue>,
    /// The greatest version of a vacancy of an election that has no wait queue.
    vacancy: u64,
    /// No queue is empty, but for the ids that it remembers.
    queues: BTreeMap<Object, queue::WorkQueue>,
    ids: queue::Forgetting,
    /// No generation is empty.
    generations: BTreeMap<Object, barrier::Generation>,
    data: stm::Data,
    last_token: u64,
    /// Numbers arrivals at wait queues, queues and generations, acceptances of items, states of elections, and waiters.
    last_arrival: u64,
    /// The objects in which something may be free for the first waiter.
    touched: BTreeSet<Object>,
    waiters: BTreeMap<Topic, BTreeMap<u64, Arc<Notify>>>,
    signals: Vec<Signal>,
}

impl State {
    fn new(namespace: Namespace, limits: Limits, planted: Planted, now: Moment) -> Self {
        Self {
            namespace,
            planted,
            capacity: limits.capacity,
            now,
            sessions: BTreeMap::new(),
            leases: BTreeSet::new(),
            wait_queues: BTreeMap::new(),
            vacancy: 0,
            queues: BTreeMap::new(),
            ids: queue::Forgetting::default(),
            generations: BTreeMap::new(),
            data: stm::Data::default(),
            last_token: 0,
            last_arrival: 0,
            touched: BTreeSet::new(),
            waiters: BTreeMap::new(),
            signals: Vec::new(),
        }
    }

    /// Makes every later token at least `floor`.
    pub(crate) fn raise_token_floor(&mut self, floor: FencingToken) -> Result<()> {
        if floor.get() > GREATEST_FLOOR {
            let message = format!("a token floor of {floor}: {GREATEST_FLOOR} is the most, to leave tokens above it");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        if !self.planted.has(Bug::FloorIgnored) {
            self.last_token = self.last_token.max(floor.get().saturating_sub(1));
        }
        Ok(())
    }

    /// Returns a token above all earlier ones of the namespace.
    fn next_token(&mut self) -> FencingToken {
        self.last_token += 1;
        FencingToken::new(self.last_token)
    }

    fn next_arrival(&mut self) -> u64 {
        self.last_arrival += 1;
        self.last_arrival
    }

    /// Returns when the first lease of `sessions` ends.
    fn first_end(&self, sessions: impl IntoIterator<Item = u64>) -> Option<Moment> {
        let leases = sessions.into_iter().filter_map(|session| self.sessions.get(&session));
        leases.map(|lease| lease.ends).min()
    }

    /// Grants the objects, and delivers the items, that this step has made available.
    fn settle(&mut self) {
        while let Some(object) = self.touched.pop_first() {
            match object.kind {
                Kind::Queue => self.serve(&object),
                _ => self.grant(&object),
            }
        }
    }

    fn wake(&mut self, topic: &Topic) {
        let waiters = self.waiters.get(topic).into_iter().flat_map(BTreeMap::values);
        self.signals.extend(waiters.cloned().map(Signal::Wake));
    }

    fn wake_request(&mut self, session: u64, nonce: Nonce) {
        self.wake(&Topic::Request(session, nonce));
    }

    fn wake_observers(&mut self, object: &Object) {
        self.wake(&Topic::Object(object.clone()));
    }

    fn report(&mut self, session: u64, event: SessionEvent) {
        if let Some(lease) = self.sessions.get(&session) {
            self.signals.push(Signal::Report(lease.events.clone(), event));
        }
    }

    fn object(&self, kind: Kind, name: &Name) -> Object {
        let kind = match self.planted.has(Bug::KindsMeet) && kind.has_wait_queue() {
            true => Kind::Lock,
            false => kind,
        };
        Object {
            kind,
            name: name.clone(),
        }
    }

    fn object_of(&self, request: &Request) -> Object {
        self.object(request.kind(), request.name())
    }

    /// Returns `<path of the object>/<session>-<number>`: how operators see a holding.
    fn key(&self, object: &Object, session: u64, number: u64) -> String {
        let path = path(&self.namespace, object.kind, &object.name);
        format!("{path}/{session}-{number}")
    }

    pub(crate) fn footprint(&mut self) -> Footprint {
        let (sessions, queues) = (self.sessions.values(), self.queues.values());
        Footprint {
            sessions: sessions.len(),
            entries: sessions.clone().map(|lease| lease.entries.len()).sum(),
            past: sessions.map(|lease| lease.ended_nonces.len()).sum(),
            items: queues.clone().map(queue::WorkQueue::len).sum(),
            ids: queues.map(queue::WorkQueue::ids).sum(),
            keys: self.data.len(),
            waiters: self.waiters.values().map(BTreeMap::len).sum(),
            objects: self.wait_queues.len() + self.queues.len() + self.generations.len(),
        }
    }
}

/// How much an embedded store keeps for one namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Sessions, live or detached.
    pub sessions: usize,
    /// Entries of sessions: holdings and waits.
    pub entries: usize,
    /// Ranges of nonces that sessions keep in order to refuse late requests.
    pub past: usize,
    /// WorkQueue of queues.
    pub items: usize,
    /// Ids of items that are present or were removed a while ago.
    pub ids: usize,
    /// Keys of transactional memory.
    pub keys: usize,
    /// Registrations of futures that wait.
    pub waiters: usize,
    /// Wait queues, queues and double barriers.
    pub objects: usize,
}

/// The error of a request that arrives after its end, or of a step whose slot holds a later one.
fn too_late() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the request arrived after it was withdrawn or replaced: nothing was changed",
    )
}

/// The error of a request without a place.
fn no_place() -> Error {
    Error::new(ErrorKind::Conflict, "the request has no place any more: join again")
}
