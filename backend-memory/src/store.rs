//! The state of the embedded store, and every step on it.
//!
//! For each lock there is a *line* of places in the order of arrival; the first place holds the
//! lock, as in etcd's lock recipe. A place has a side: neighbouring readers at the front hold
//! together, and in the line of a plain lock everybody writes. A place knows its session, and goes
//! with it. A step is one critical section: it reads the clock, buries sessions whose lease has
//! ended, and acts.
//!
//! Queues have a file of their own (`store/queue.rs`).
//!
//! There is no background task. Whoever waits sleeps until the lease of the place that it waits
//! for ends, or until it is woken because that place went away. So a release wakes one waiter (or
//! one batch of readers), and a dead place is found by the one behind it.

pub(crate) mod election;
mod queue;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tenure_core::backend::{Alarm, Held, Kind, Redacted, Side, path};
use tenure_core::{
    Clock, Error, ErrorKind, FencingToken, LossReason, Moment, Name, Namespace, Result,
};
use tokio::sync::{Notify, watch};

use self::election::Elections;
use crate::error;
use crate::faults::Link;
use crate::stm::{Data, Marker};

mod barrier;
mod rw_lock;
mod tokens;

use barrier::Barriers;
pub(crate) use barrier::{Entered, Sight};
pub(crate) use queue::{Delivered, Found};
use tokens::Tokens;

/// How many holdings and waits one session carries.
pub const CAPACITY: usize = 10_000;

/// What a store keeps, counted: a store in steady use does not grow (rule H1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Footprint {
    /// Leases, live or detached.
    pub sessions: usize,
    /// Names that are held.
    pub holdings: usize,
    /// Places in line.
    pub waits: usize,
    /// Elections that somebody waits to see a change of.
    pub observed: usize,
    /// Items of queues that were not acknowledged.
    pub items: usize,
    /// Ids by which queues know an item again: of items, and of those that left a while ago.
    pub ids: usize,
    /// Requests that are still on their way over a faulty link.
    pub on_their_way: usize,
    /// Keys of transactional memory.
    pub keys: usize,
    /// Markers of commits.
    pub markers: usize,
}

/// One store, whoever is connected to it.
#[derive(Debug)]
pub(crate) struct Shared {
    clock: Clock,
    state: Mutex<State>,
}

impl Shared {
    pub(crate) fn new(clock: Clock) -> Self {
        let state = State {
            now: clock.now(),
            sessions: HashMap::new(),
            leases: BTreeSet::new(),
            lines: HashMap::new(),
            barriers: Barriers::default(),
            queues: HashMap::new(),
            leaving_ids: queue::Leaving::default(),
            last_session: 0,
            last_place: 0,
            tokens: Tokens::default(),
            elections: Elections::default(),
            data: Data::default(),
            signals: Vec::new(),
        };
        Self {
            clock,
            state: Mutex::new(state),
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A step that needs no clock and wakes nobody: for drops, which may come when the runtime
    /// whose clock this is has gone.
    pub(crate) fn without_time(&self, step: impl FnOnce(&mut State)) {
        step(&mut self.lock());
    }

    /// One step on the state, at one instant.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        let (done, signals) = {
            let mut state = self.lock();
            // Read under the lock, so that time never goes back from one step to the next.
            state.now = self.clock.now();
            state.bury_the_dead();
            state.forget_ids();
            let done = step(&mut state);
            (done, std::mem::take(&mut state.signals))
        };
        // Outside the lock: a waker is somebody else's code.
        for signal in signals {
            match signal {
                Signal::Wake(waiter) => waiter.notify_one(),
                Signal::Tell(observers) => observers.send_replace(()),
                Signal::WakeAll(bell) => bell.notify_waiters(),
                Signal::Alarm(alarm, reason) => alarm.raise(reason),
                Signal::Forget(link) => drop(link),
            }
        }
        done
    }
}

/// Whether a collection has had far more than it keeps: at least three quarters of it were removed since.
fn is_far_too_large(len: usize, capacity: usize) -> bool {
    capacity > 64 && len < capacity / 8
}

/// Gives back the room that `map` does not need any more, after a removal. O(1) amortised.
pub(crate) fn shrink<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    if is_far_too_large(map.len(), map.capacity()) {
        map.shrink_to(map.len() * 2);
    }
}

/// A lock, or another thing that has a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Object {
    pub(crate) namespace: Namespace,
    pub(crate) kind: Kind,
    pub(crate) name: Name,
}

/// What a session presents with every request.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) session: u64,
    /// Raised by each resume, so that the process that detached has no say any more.
    pub(crate) incarnation: u64,
    /// Why the store ended the lease, once it has. Here, so that the store can forget the dead.
    pub(crate) ended: Arc<OnceLock<LossReason>>,
}

impl Member {
    fn lost(&self) -> Error {
        Error::lost(self.ended.get().copied().unwrap_or(LossReason::Expired))
    }
}

/// An attempt, in the store's words.
#[derive(Clone)]
pub(crate) struct Attempt {
    pub(crate) object: Object,
    /// `Write` for whatever is not shared.
    pub(crate) side: Side,
    pub(crate) nonce: u64,
    pub(crate) alarm: Alarm,
    /// What a candidate stands for.
    pub(crate) value: Option<Arc<[u8]>>,
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attempt")
            .field("object", &self.object)
            .field("side", &self.side)
            .field("nonce", &self.nonce)
            .field("value", &self.value.as_deref().map(Redacted))
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place")
            .field("session", &self.session)
            .field("nonce", &self.nonce)
            .field("side", &self.side)
            .field("token", &self.token)
            .field("value", &self.value.as_deref().map(Redacted))
            .finish_non_exhaustive()
    }
}

/// A grant, in the store's words.
#[derive(Clone, Debug)]
pub(crate) struct Granted {
    pub(crate) token: FencingToken,
    pub(crate) key: String,
}

/// What an attempt that joined a line finds.
#[derive(Debug)]
pub(crate) enum Look {
    Granted(Granted),
    /// Look again when woken, or when this moment has come.
    Wait(Arc<Notify>, Moment),
}

#[derive(Debug)]
pub(crate) struct Lease {
    pub(crate) namespace: Namespace,
    ttl: Duration,
    ends: Moment,
    incarnation: u64,
    detached: bool,
    ended: Arc<OnceLock<LossReason>>,
    link: Link,
    /// By nonce: which line, and where in it.
    places: BTreeMap<u64, (Object, u64)>,
    queues: queue::Dealings,
    /// By nonce: requests that a faulty link has not delivered yet. A withdrawal is remembered
    /// exactly as long as there is one that could come after it.
    on_their_way: HashMap<u64, Way>,
    /// By nonce: which barriers it is at, or holds for itself.
    barriers: BTreeMap<u64, Object>,
    /// Nonces of holds whose answer has not arrived yet: asked again, they have held already.
    decided: HashSet<u64>,
    /// By slot: the last commit of this session that used it.
    pub(crate) markers: HashMap<u32, Marker>,
}

#[derive(Debug, Default)]
struct Way {
    requests: usize,
    withdrawn: bool,
}

struct Place {
    session: u64,
    nonce: u64,
    side: Side,
    /// Set when the place comes to the front.
    token: Option<FencingToken>,
    /// A holding of a resumed session that nobody has taken up yet.
    unclaimed: bool,
    waiter: Arc<Notify>,
    alarm: Alarm,
    /// What a candidate stands for, or a leader has proclaimed.
    value: Option<Arc<[u8]>>,
    /// The number of the last proclamation.
    proclaimed: u64,
}

#[derive(Debug)]
enum Signal {
    Wake(Arc<Notify>),
    /// Whoever observes.
    Tell(watch::Sender<()>),
    /// Those who have looked, and wait for a change.
    WakeAll(Arc<Notify>),
    Alarm(Alarm, LossReason),
    /// The last of a link takes its late requests with it, and those lock the store.
    Forget(Link),
}

#[derive(Debug)]
pub(crate) struct State {
    /// When the current step happens.
    now: Moment,
    sessions: HashMap<u64, Lease>,
    /// The sessions by the end of their leases.
    leases: BTreeSet<(Moment, u64)>,
    /// Never empty ones. The key of a place is its number of arrival.
    lines: HashMap<Object, BTreeMap<u64, Place>>,
    barriers: Barriers,
    queues: HashMap<Object, queue::Queue>,
    leaving_ids: queue::Leaving,
    last_session: u64,
    last_place: u64,
    tokens: Tokens,
    elections: Elections,
    /// Transactional memory.
    pub(crate) data: Data,
    /// Whom to tell once the step is done.
    signals: Vec<Signal>,
}

/// Sessions.
impl State {
    pub(crate) fn open(&mut self, namespace: Namespace, ttl: Duration, link: Link) -> Member {
        self.last_session += 1;
        let session = self.last_session;
        let ended = Arc::default();
        let ends = self.now + ttl;
        self.leases.insert((ends, session));
        let lease = Lease {
            namespace,
            ttl,
            ends,
            incarnation: 0,
            detached: false,
            ended: Arc::clone(&ended),
            link,
            places: BTreeMap::new(),
            queues: queue::Dealings::default(),
            on_their_way: HashMap::new(),
            barriers: BTreeMap::new(),
            decided: HashSet::new(),
            markers: HashMap::new(),
        };
        self.sessions.insert(session, lease);
        Member {
            session,
            incarnation: 0,
            ended,
        }
    }

    pub(crate) fn renew(&mut self, member: &Member) -> Result<()> {
        let now = self.now;
        let lease = self.lease(member)?;
        let (before, after) = (lease.ends, now + lease.ttl);
        lease.ends = after;
        self.leases.remove(&(before, member.session));
        self.leases.insert((after, member.session));
        Ok(())
    }

    /// Ends the lease on its owner's behalf. Ending it twice is once.
    pub(crate) fn revoke(&mut self, member: &Member) {
        if self.lease(member).is_ok() {
            self.bury(member.session, LossReason::Closed);
        }
    }

    /// Leaves the record that [`resume`](Self::resume) uses up: the holdings with the nonces `held`
    /// stay; waits, and what was let go of, go.
    pub(crate) fn detach(&mut self, member: &Member, held: &HashSet<u64>) -> Result<()> {
        match self.sessions.get_mut(&member.session) {
            // Again, after the answer was lost.
            Some(lease) if lease.detached && lease.incarnation == member.incarnation => {
                return Ok(());
            }
            _ => {}
        }
        let lease = self.lease(member)?;
        lease.detached = true;
        let places: Vec<_> = lease
            .places
            .iter()
            .map(|(nonce, place)| (*nonce, place.clone()))
            .collect();
        for (nonce, (object, arrival)) in places {
            let holds = self.place(&object, arrival).is_some_and(|place| {
                place.unclaimed = place.token.is_some() && held.contains(&nonce);
                place.unclaimed
            });
            if !holds {
                self.leave(&object, arrival);
            }
        }
        self.detach_from_barriers(member.session);
        self.drop_dealings(member.session);
        Ok(())
    }

    pub(crate) fn resume(
        &mut self,
        session: u64,
        namespace: &Namespace,
        link: Link,
    ) -> Result<(Member, Duration)> {
        let lease = match self.sessions.get_mut(&session) {
            Some(lease) if lease.namespace == *namespace => lease,
            _ => return Err(Error::lost(LossReason::Expired)),
        };
        if !lease.detached {
            return Err(Error::new(
                ErrorKind::Conflict,
                "the session was never detached, or has been resumed already: open a new one",
            ));
        }
        lease.detached = false;
        lease.incarnation += 1;
        let before = std::mem::replace(&mut lease.link, link);
        self.signals.push(Signal::Forget(before));
        let member = Member {
            session,
            incarnation: lease.incarnation,
            ended: Arc::clone(&lease.ended),
        };
        Ok((member, lease.ttl))
    }

    /// The nonces of `held` that hold nothing any more.
    pub(crate) fn missing(&mut self, member: &Member, held: &[Held]) -> Result<Vec<u64>> {
        let lease = self.lease(member)?;
        Ok(held
            .iter()
            .filter(|held| match held.kind {
                Kind::Queue => Self::is_missing(&lease.queues, held),
                _ => {
                    !lease.places.contains_key(&held.nonce)
                        && !lease.barriers.contains_key(&held.nonce)
                }
            })
            .map(|held| held.nonce)
            .collect())
    }

    pub(crate) fn lease(&mut self, member: &Member) -> Result<&mut Lease> {
        match self.sessions.get_mut(&member.session) {
            Some(lease) if lease.detached || lease.incarnation != member.incarnation => {
                Err(Error::lost(LossReason::Detached))
            }
            Some(lease) => Ok(lease),
            None => Err(member.lost()),
        }
    }

    fn bury_the_dead(&mut self) {
        while let Some(&(ends, session)) = self.leases.first() {
            if ends > self.now {
                break;
            }
            self.bury(session, LossReason::Expired);
        }
    }

    fn bury(&mut self, session: u64, reason: LossReason) {
        let lease = self.sessions.remove(&session);
        shrink(&mut self.sessions);
        let Some(lease) = lease else {
            return;
        };
        self.leases.remove(&(lease.ends, session));
        // Whoever still waits in its name learns why from here.
        let _ = lease.ended.set(reason);
        let mut left = Vec::new();
        for (object, arrival) in lease.places.into_values() {
            if let Some(place) = self.take_out(&object, arrival) {
                left.push((object, arrival, place.side));
                self.signals.push(Signal::Wake(place.waiter));
                if reason == LossReason::Revoked && lease.link.is_up() {
                    self.signals.push(Signal::Alarm(place.alarm, reason));
                }
            }
        }
        // Only now, so that none of the dead is granted what another of them frees.
        for (object, arrival, side) in left {
            self.close_gap(&object, arrival, side);
        }
        let alarmed = reason == LossReason::Revoked && lease.link.is_up();
        self.bury_at_barriers(session, lease.barriers, alarmed);
        self.bury_dealings(lease.queues);
        self.signals.push(Signal::Forget(lease.link));
    }
}

/// Lines.
impl State {
    /// Takes a place in line: only the first one, or any if `wait`.
    pub(crate) fn join(
        &mut self,
        member: &Member,
        attempt: &Attempt,
        wait: bool,
    ) -> Result<Option<Look>> {
        let next = self.last_place + 1;
        let free = self.lines.get(&attempt.object).is_none_or(|line| {
            // Readers in front of readers all hold: where nobody writes, nobody waits.
            attempt.side == Side::Read && line.values().all(|place| place.side == Side::Read)
        });
        let lease = self.lease(member)?;
        lease.not_withdrawn(attempt.nonce)?;
        if !lease.places.contains_key(&attempt.nonce) {
            if !free && !wait {
                return Ok(None);
            }
            if lease.load() >= CAPACITY {
                return Err(error::full(CAPACITY));
            }
            lease
                .places
                .insert(attempt.nonce, (attempt.object.clone(), next));
            self.last_place = next;
            let place = Place {
                session: member.session,
                nonce: attempt.nonce,
                side: attempt.side,
                token: None,
                unclaimed: false,
                waiter: Arc::default(),
                alarm: attempt.alarm.clone(),
                value: attempt.value.clone(),
                proclaimed: 0,
            };
            self.lines
                .entry(attempt.object.clone())
                .or_default()
                .insert(next, place);
            self.grant_front(&attempt.object);
        }
        self.look(member, attempt.nonce).map(Some)
    }

    /// What the place of `nonce` has come to.
    pub(crate) fn look(&mut self, member: &Member, nonce: u64) -> Result<Look> {
        let lease = self.lease(member)?;
        let Some((object, arrival)) = lease.places.get(&nonce).cloned() else {
            return Err(error::removed_from_line());
        };
        let line = self.lines.get(&object);
        let Some(place) = line.and_then(|line| line.get(&arrival)) else {
            return Err(error::removed_from_line());
        };
        if let Some(token) = place.token {
            let key = key(&object, member.session, arrival);
            return Ok(Look::Granted(Granted { token, key }));
        }
        let side = place.side;
        let ends = |place: &Place| self.sessions.get(&place.session).map(|lease| lease.ends);
        let before = line
            .into_iter()
            .flat_map(|line| line.range(..arrival).rev());
        let before = before.map(|(_, place)| place);
        // Readers wait for the writer in front of their batch; a writer waits for whoever is next
        // to it, and for all of them if that is a batch that holds.
        let until = match side {
            Side::Read => before
                .skip_while(|place| place.side == Side::Read)
                .map(ends)
                .next(),
            Side::Write => {
                let mut before = before.peekable();
                match before.peek() {
                    Some(next) if next.token.is_none() => Some(ends(next)),
                    _ => before.map(ends).max(),
                }
            }
        };
        let until = until.flatten().unwrap_or(self.now);
        Ok(Look::Wait(Arc::clone(&place.waiter), until))
    }

    /// Gives up what `nonce` holds under `token`.
    pub(crate) fn release(
        &mut self,
        member: &Member,
        nonce: u64,
        token: FencingToken,
    ) -> Result<()> {
        let place = self
            .sessions
            .get(&member.session)
            .ok_or_else(|| member.lost())?
            .places
            .get(&nonce)
            .cloned();
        let (object, arrival) = place.ok_or_else(|| Error::lost(LossReason::Revoked))?;
        match self.place(&object, arrival) {
            Some(place) if place.token == Some(token) => {
                self.leave(&object, arrival);
                Ok(())
            }
            _ => Err(Error::lost(LossReason::Revoked)),
        }
    }

    /// Removes whatever `nonce` has, and whatever its requests on their way would get.
    pub(crate) fn withdraw(&mut self, member: &Member, nonce: u64) {
        let Some(lease) = self.sessions.get_mut(&member.session) else {
            return;
        };
        if let Some(way) = lease.on_their_way.get_mut(&nonce) {
            way.withdrawn = true;
        }
        self.leave_queue(member.session, nonce);
        let Some(lease) = self.sessions.get(&member.session) else {
            return;
        };
        if let Some((object, arrival)) = lease.places.get(&nonce).cloned()
            && let Some(place) = self.leave(&object, arrival)
        {
            self.signals.push(Signal::Wake(place.waiter));
        }
    }

    /// Takes up, for `attempt`, what the session held under `token` before it was detached.
    pub(crate) fn reclaim(
        &mut self,
        member: &Member,
        attempt: &Attempt,
        token: FencingToken,
    ) -> Result<Option<Granted>> {
        let lease = self.lease(member)?;
        lease.not_withdrawn(attempt.nonce)?;
        let Some((&arrival, place)) = self
            .lines
            .get_mut(&attempt.object)
            .and_then(|line| line.iter_mut().find(|(_, at)| at.token == Some(token)))
        else {
            return Ok(None);
        };
        let ours = place.session == member.session && place.side == attempt.side;
        if !ours || !(place.unclaimed || place.nonce == attempt.nonce) {
            return Ok(None);
        }
        let before = std::mem::replace(&mut place.nonce, attempt.nonce);
        place.unclaimed = false;
        place.proclaimed = 0;
        place.alarm = attempt.alarm.clone();
        let lease = self.lease(member)?;
        if let Some(place) = lease.places.remove(&before) {
            lease.places.insert(attempt.nonce, place);
        }
        let key = key(&attempt.object, member.session, arrival);
        Ok(Some(Granted { token, key }))
    }

    /// Under which token a session holds this, by the ask `nonce`.
    pub(crate) fn token_of(
        &self,
        namespace: &Namespace,
        session: u64,
        kind: Kind,
        name: &Name,
        nonce: u64,
    ) -> Option<FencingToken> {
        let (object, arrival) = self.sessions.get(&session)?.places.get(&nonce)?;
        let ours = object.namespace == *namespace && object.kind == kind && object.name == *name;
        let place = self.lines.get(object)?.get(arrival)?;
        place.token.filter(|_| ours)
    }

    fn place(&mut self, object: &Object, arrival: u64) -> Option<&mut Place> {
        self.lines.get_mut(object)?.get_mut(&arrival)
    }

    /// Takes a place out of its line, and lets those know who waited for it.
    fn leave(&mut self, object: &Object, arrival: u64) -> Option<Place> {
        let place = self.take_out(object, arrival)?;
        self.close_gap(object, arrival, place.side);
        Some(place)
    }

    fn take_out(&mut self, object: &Object, arrival: u64) -> Option<Place> {
        let line = self.lines.get_mut(object)?;
        let place = line.remove(&arrival)?;
        if line.is_empty() {
            self.lines.remove(object);
            shrink(&mut self.lines);
            self.election_changed(object);
        }
        if let Some(lease) = self.sessions.get_mut(&place.session) {
            lease.places.remove(&place.nonce);
        }
        Some(place)
    }

    /// Grants what has become free where a place of `side` went, and has those who slept until the
    /// end of its lease look for whom they wait now: the writer behind, and the readers in between
    /// if they waited for a writer.
    fn close_gap(&mut self, object: &Object, arrival: u64, side: Side) {
        self.grant_front(object);
        let Some(line) = self.lines.get(object) else {
            return;
        };
        for (_, behind) in line.range(arrival..) {
            let waited = behind.side == Side::Write || side == Side::Write;
            if waited && behind.token.is_none() {
                self.signals.push(Signal::Wake(Arc::clone(&behind.waiter)));
            }
            if behind.side == Side::Write {
                break;
            }
        }
    }

    /// Grants the first place, and if that reads, the readers right behind it.
    fn grant_front(&mut self, object: &Object) {
        let Some(line) = self.lines.get_mut(object) else {
            return;
        };
        let (mut first, mut granted) = (true, false);
        for place in line.values_mut() {
            if place.side == Side::Write && !first {
                break;
            }
            if place.token.is_none() {
                place.token = Some(self.tokens.next(&object.namespace));
                granted = true;
                self.signals.push(Signal::Wake(Arc::clone(&place.waiter)));
            }
            if place.side == Side::Write {
                break;
            }
            first = false;
        }
        if granted {
            self.election_changed(object);
        }
    }
}

/// Requests on their way.
impl State {
    pub(crate) fn set_out(&mut self, member: &Member, nonce: u64) {
        if let Some(lease) = self.sessions.get_mut(&member.session) {
            lease.on_their_way.entry(nonce).or_default().requests += 1;
        }
    }

    pub(crate) fn arrived(&mut self, member: &Member, nonce: u64) {
        let Some(lease) = self.sessions.get_mut(&member.session) else {
            return;
        };
        if let Some(way) = lease.on_their_way.get_mut(&nonce) {
            way.requests -= 1;
            if way.requests == 0 {
                lease.on_their_way.remove(&nonce);
                lease.decided.remove(&nonce);
                lease.queues.arrived(nonce);
            }
        }
    }
}

impl Lease {
    /// How much the session holds and waits for.
    fn load(&self) -> usize {
        self.places.len() + self.barriers.len() + self.queues.len()
    }

    fn not_withdrawn(&self, nonce: u64) -> Result<()> {
        match self.on_their_way.get(&nonce) {
            Some(way) if way.withdrawn => Err(Error::withdrawn()),
            _ => Ok(()),
        }
    }
}

/// The operator's view.
impl State {
    /// The keys of one namespace, sorted.
    pub(crate) fn keys(&self, namespace: &Namespace) -> Vec<String> {
        let mut keys: Vec<_> = self.places(namespace).map(|(key, ..)| key).collect();
        keys.extend(self.barrier_keys(namespace));
        keys.extend(self.queue_keys(namespace).map(|(key, _)| key));
        keys.extend(self.item_keys(namespace).map(|(key, ..)| key));
        keys.sort_unstable();
        keys
    }

    /// Removes one place, and alarms whoever holds it.
    pub(crate) fn delete(&mut self, namespace: &Namespace, wanted: &str) -> bool {
        let found = self
            .places(namespace)
            .find(|(key, ..)| key == wanted)
            .map(|(_, object, arrival)| (object.clone(), arrival));
        let Some((object, arrival)) = found else {
            return self.delete_at_barrier(namespace, wanted)
                || self.delete_dealing(namespace, wanted);
        };
        let Some(place) = self.leave(&object, arrival) else {
            return false;
        };
        let up = |lease: &Lease| lease.link.is_up();
        self.signals.push(Signal::Wake(place.waiter));
        // Over a silent link the news does not travel: the next audit brings it.
        if place.token.is_some() && self.sessions.get(&place.session).is_some_and(up) {
            self.signals
                .push(Signal::Alarm(place.alarm, LossReason::Revoked));
        }
        true
    }

    /// Ends a session by an operator's order.
    pub(crate) fn end(&mut self, namespace: &Namespace, session: u64) -> bool {
        let ours = |lease: &Lease| lease.namespace == *namespace;
        let found = self.sessions.get(&session).is_some_and(ours);
        if found {
            self.bury(session, LossReason::Revoked);
        }
        found
    }

    pub(crate) fn footprint(&mut self) -> Footprint {
        let ids = self.remembered_ids();
        let places = self.lines.values().flat_map(BTreeMap::values);
        let waits = places.filter(|place| place.token.is_none()).count();
        let (at_barriers, before_barriers) = self.count_at_barriers();
        let (items, claims, in_queues) = self.queued();
        Footprint {
            sessions: self.sessions.len(),
            observed: self.elections.observed(),
            holdings: self.lines.len() + at_barriers + claims,
            waits: waits + before_barriers + in_queues,
            items,
            ids,
            on_their_way: self
                .sessions
                .values()
                .map(|lease| lease.on_their_way.len())
                .sum(),
            keys: self.data.len(),
            markers: self
                .sessions
                .values()
                .map(|lease| lease.markers.len())
                .sum(),
        }
    }

    fn places(&self, namespace: &Namespace) -> impl Iterator<Item = (String, &Object, u64)> {
        self.lines
            .iter()
            .filter(move |(object, _)| object.namespace == *namespace)
            .flat_map(|(object, line)| {
                line.iter().map(move |(&arrival, place)| {
                    (key(object, place.session, arrival), object, arrival)
                })
            })
    }
}

/// `<path of the object>/<session>-<number of arrival>`: what operators see.
fn key(object: &Object, session: u64, arrival: u64) -> String {
    let path = path(&object.namespace, object.kind, &object.name);
    format!("{path}/{session}-{arrival}")
}
