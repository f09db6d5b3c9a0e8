//! What this client knows of a queue: the items near its head, and who has which.
//!
//! One standing watch on everything under the queue feeds it, read up once when the watch stands.
//! Items are known up to a *horizon*, so that neither memory nor a reading grows with the depth;
//! claims, counts and delays are known all.
//!
//! Revisions decide, never the order of messages: a deletion at revision `d` ends what was created
//! before `d`, and what our own transactions did is noted when they are answered, which may be
//! before or after the watch tells of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::{Event, EventType};
use tenure_core::backend::Want;
use tokio::sync::Notify;

use super::Served;
use super::keys::{Keys, Part, Place};
use crate::session::EtcdSession;
use crate::watcher::{Sink, Watch};

/// Items in one reading.
pub(super) const PAGE: usize = 512;
/// More items than this are not kept: those at the end are read again when their time comes.
const WINDOW: usize = 4 * PAGE;
/// An unused watch is closed when it is disturbed after so long.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No watch.
    Closed,
    /// Asked for, not standing.
    Opening,
    /// Standing; what was before is not read.
    Stale,
    Reading,
    /// Everything up to the horizon is known.
    Complete,
}

/// One change under the queue, in our words.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) part: Part,
    /// When it was put, and when its key was created; `None` for a deletion.
    pub(super) put: Option<Put>,
    pub(super) revision: i64,
}

#[derive(Clone, Debug)]
pub(super) struct Put {
    pub(super) created: i64,
    pub(super) lease: i64,
    /// The number in the value: of deliveries, or of milliseconds.
    pub(super) number: u64,
    /// The id in an item's key, escaped.
    pub(super) name: Option<Arc<str>>,
}

/// Somebody who wants items.
pub(super) struct Waiter {
    pub(super) session: Arc<EtcdSession>,
    pub(super) nonce: u64,
    pub(super) want: Want,
    /// Not to wait: nothing is an answer, too.
    pub(super) at_once: bool,
    pub(super) told: Arc<Notify>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Claimed {
    pub(super) created: i64,
    pub(super) lease: i64,
}

pub(super) struct State {
    pub(super) stage: Stage,
    /// Counts the streams: what was asked on one says nothing about the next.
    pub(super) stream: u64,
    pub(super) watch: Option<Watch>,
    /// What the last reading knows of: older news is none.
    read_at: i64,
    /// News of parts of a revision that are to be told together, or that came during a reading.
    held_back: Vec<Change>,
    /// News of items beyond the horizon, while a reading of them is on its way.
    beyond: Option<Vec<Change>>,
    /// Items up to here are known; all, if `None`.
    pub(super) horizon: Option<Place>,
    /// With their create revisions, and the ids in their keys.
    pub(super) items: BTreeMap<Place, (i64, Option<Arc<str>>)>,
    pub(super) claims: BTreeMap<Place, Claimed>,
    /// The claims by lease, to find whose claims stand before an item.
    pub(super) by_lease: HashMap<i64, BTreeSet<Place>>,
    /// Deliveries, with the revision of their last change.
    pub(super) counts: HashMap<Place, (i64, u32)>,
    /// The revision of the last change, and when the delay is over by our clock.
    pub(super) delayed: HashMap<Place, (i64, Instant)>,
    due: BTreeSet<(Instant, Place)>,
    /// Items that can be claimed.
    pub(super) ready: BTreeSet<Place>,
    pub(super) epoch: i64,
    pub(super) tail: i64,
    /// By arrival.
    pub(super) waiters: BTreeMap<u64, Waiter>,
    pub(super) arrivals: u64,
    /// What was found for whom, by nonce.
    pub(super) served: HashMap<u64, Served>,
    pub(super) used: Instant,
}

impl Default for State {
    fn default() -> Self {
        Self {
            stage: Stage::Closed,
            stream: 0,
            watch: None,
            read_at: 0,
            held_back: Vec::new(),
            beyond: None,
            horizon: None,
            items: BTreeMap::new(),
            claims: BTreeMap::new(),
            by_lease: HashMap::new(),
            counts: HashMap::new(),
            delayed: HashMap::new(),
            due: BTreeSet::new(),
            ready: BTreeSet::new(),
            epoch: 0,
            tail: 0,
            waiters: BTreeMap::new(),
            arrivals: 0,
            served: HashMap::new(),
            used: Instant::now(),
        }
    }
}

impl State {
    /// Forgets what was read; who waits stays.
    fn clear(&mut self) {
        self.held_back.clear();
        self.beyond = None;
        self.horizon = None;
        self.items.clear();
        self.claims.clear();
        self.by_lease.clear();
        self.counts.clear();
        self.delayed.clear();
        self.due.clear();
        self.ready.clear();
        (self.epoch, self.tail) = (0, 0);
    }

    /// Takes over a reading of everything, made at `revision`.
    pub(super) fn complete(&mut self, revision: i64, found: Vec<Change>, horizon: Option<Place>) {
        let news = std::mem::take(&mut self.held_back);
        self.clear();
        self.read_at = revision;
        for change in found {
            self.apply(change);
        }
        self.horizon = horizon;
        self.stage = Stage::Complete;
        self.tell(news);
    }

    /// Begins a reading of everything: what happens from now on is told after it.
    pub(super) fn start_reading(&mut self) {
        self.stage = Stage::Reading;
        self.held_back.clear();
    }

    /// Begins to read the items beyond the horizon; says what that is.
    pub(super) fn start_page(&mut self) -> Option<Place> {
        self.beyond = Some(Vec::new());
        self.horizon
    }

    /// Takes over a reading of what is beyond the horizon, made at `revision`.
    pub(super) fn complete_page(
        &mut self,
        revision: i64,
        found: Vec<Change>,
        horizon: Option<Place>,
    ) {
        let news = self.beyond.take().unwrap_or_default();
        self.horizon = horizon;
        for change in found {
            self.apply(change);
        }
        for change in news {
            // Older ones the reading knows; those of before it are all told by now or to come.
            if change.revision > revision {
                self.apply(change);
            }
        }
    }

    fn tell(&mut self, news: Vec<Change>) {
        for change in news {
            if change.revision > self.read_at {
                self.apply(change);
            }
        }
    }

    pub(super) fn apply(&mut self, change: Change) {
        let at = change.revision;
        let place = match change.part {
            Part::Item(place) => {
                if self.horizon.is_some_and(|horizon| place > horizon) {
                    if let Some(beyond) = &mut self.beyond {
                        beyond.push(change);
                    }
                    return self.bound();
                }
                match change.put {
                    Some(put) => drop(self.items.insert(place, (put.created, put.name))),
                    None if self.items.get(&place).is_some_and(|(made, _)| *made < at) => {
                        self.items.remove(&place);
                    }
                    None => {}
                }
                place
            }
            Part::Claim(place) => {
                let known = self.claims.get(&place).copied();
                match change.put {
                    // Ours may be noted already, and with a later one.
                    Some(put) if known.is_none_or(|known| known.created < put.created) => {
                        self.unclaim(place);
                        let (created, lease) = (put.created, put.lease);
                        self.claims.insert(place, Claimed { created, lease });
                        self.by_lease.entry(lease).or_default().insert(place);
                    }
                    None if known.is_some_and(|known| known.created < at) => self.unclaim(place),
                    _ => {}
                }
                place
            }
            Part::Count(place) => {
                if self
                    .counts
                    .get(&place)
                    .is_none_or(|(changed, _)| *changed < at)
                {
                    match change.put {
                        Some(put) => {
                            let count = u32::try_from(put.number).unwrap_or(u32::MAX);
                            self.counts.insert(place, (at, count));
                        }
                        None => drop(self.counts.remove(&place)),
                    }
                }
                place
            }
            Part::Delayed(place) => {
                if self
                    .delayed
                    .get(&place)
                    .is_none_or(|(changed, _)| *changed < at)
                {
                    if let Some((_, due)) = self.delayed.remove(&place) {
                        self.due.remove(&(due, place));
                    }
                    if let Some(put) = change.put {
                        // From when we heard of it, which is after the delay began: never early.
                        let due = Instant::now() + Duration::from_millis(put.number);
                        self.delayed.insert(place, (at, due));
                        self.due.insert((due, place));
                    }
                }
                place
            }
            Part::Tail => return self.tail = self.tail.max(at),
            Part::Epoch => return self.epoch = self.epoch.max(at),
            Part::Other => return,
        };
        self.weigh(place);
        self.trim();
    }

    fn unclaim(&mut self, place: Place) {
        if let Some(claimed) = self.claims.remove(&place)
            && let Some(places) = self.by_lease.get_mut(&claimed.lease)
        {
            places.remove(&place);
            if places.is_empty() {
                self.by_lease.remove(&claimed.lease);
            }
        }
    }

    /// Whether the item at `place` can be claimed.
    fn weigh(&mut self, place: Place) {
        let free = self.items.contains_key(&place) && !self.claims.contains_key(&place);
        let due = self.delayed.get(&place).map(|(_, due)| *due);
        if free && due.is_none_or(|due| due <= Instant::now()) {
            self.ready.insert(place);
        } else {
            self.ready.remove(&place);
        }
    }

    /// A reading that its reader let go of must not collect news for ever.
    fn bound(&mut self) {
        let beyond = self.beyond.as_ref().map_or(0, Vec::len);
        if self.held_back.len().max(beyond) > 4 * WINDOW {
            self.stage = Stage::Stale;
            self.held_back.clear();
            self.beyond = None;
        }
    }

    fn trim(&mut self) {
        while self.items.len() > WINDOW {
            if let Some((last, _)) = self.items.pop_last() {
                self.ready.remove(&last);
            }
            self.horizon = self.items.last_key_value().map(|(place, _)| *place);
        }
    }

    /// Makes ready what is due, and says when the next will be.
    pub(super) fn advance(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some(&(due, place)) = self.due.first() {
            if due > now {
                return Some(due);
            }
            self.due.pop_first();
            self.weigh(place);
        }
        None
    }

    /// The sessions that have an item before `place`.
    pub(super) fn leases_before(&self, place: Place) -> Vec<i64> {
        let first = |places: &BTreeSet<Place>| places.first().is_some_and(|first| *first < place);
        let before = self.by_lease.iter().filter(|(_, places)| first(places));
        before.map(|(lease, _)| *lease).collect()
    }

    /// Whether somebody waits who can be served.
    pub(super) fn has_claims(&self) -> bool {
        self.stage == Stage::Complete && !self.ready.is_empty() && !self.waiters.is_empty()
    }

    pub(super) fn waiter(&self, nonce: u64) -> Option<(u64, &Waiter)> {
        let mut waiters = self.waiters.iter();
        let found = waiters.find(|(_, waiter)| waiter.nonce == nonce);
        found.map(|(arrival, waiter)| (*arrival, waiter))
    }

    pub(super) fn serve(&mut self, nonce: u64, served: Served) {
        let arrival = self.waiter(nonce).map(|(arrival, _)| arrival);
        if let Some(waiter) = arrival.and_then(|arrival| self.waiters.remove(&arrival)) {
            self.served.insert(nonce, served);
            waiter.told.notify_one();
        }
        self.used = Instant::now();
    }

    pub(super) fn close(&mut self) {
        self.stage = Stage::Closed;
        self.stream += 1;
        self.watch = None;
        self.clear();
    }
}

/// The view, and who waits for it to change.
pub(super) struct View {
    keys: Keys,
    state: Mutex<State>,
    pub(super) changed: Notify,
}

impl View {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Read again: what is known does not fit what the store says.
    pub(super) fn distrust(&self) {
        let mut state = self.lock();
        if state.stage == Stage::Complete {
            state.stage = Stage::Stale;
        }
    }

    fn change(&self, event: &Event) -> Option<Change> {
        let kv = event.kv()?;
        let part = self.keys.parse(kv.key());
        let put = (event.event_type() == EventType::Put).then(|| Put {
            created: kv.create_revision(),
            lease: kv.lease(),
            number: match part {
                Part::Count(_) | Part::Delayed(_) => number(kv.value()),
                _ => 0,
            },
            name: match part {
                Part::Item(_) => self.keys.name_in(kv.key()),
                _ => None,
            },
        });
        let revision = kv.mod_revision();
        Some(Change {
            part,
            put,
            revision,
        })
    }
}

/// The number that a count or a delay holds.
pub(super) fn number(value: &[u8]) -> u64 {
    let text = std::str::from_utf8(value).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

impl Sink for View {
    fn opened(&self, watch: i64, _revision: i64) {
        let mut state = self.lock();
        // A watch that was closed and replaced may still be answered: it is of no use any more.
        let current = state.watch.as_ref().is_some_and(|own| own.id() == watch);
        if current && state.stage == Stage::Opening {
            state.stage = Stage::Stale;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn deleted(&self, _: &[(&[u8], i64)], _: bool) {}

    fn events(&self, events: &[Event], whole: bool) -> bool {
        self.hear(events, whole);
        true
    }

    fn broken(&self) {
        let mut state = self.lock();
        if state.stage != Stage::Closed {
            state.stream += 1;
            state.stage = Stage::Opening;
            state.held_back.clear();
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

impl View {
    fn hear(&self, events: &[Event], whole: bool) {
        let mut state = self.lock();
        let news = events.iter().filter_map(|event| self.change(event));
        match state.stage {
            // A reading that begins later knows of it.
            Stage::Closed | Stage::Opening | Stage::Stale => return,
            Stage::Reading => {
                state.held_back.extend(news);
                return state.bound();
            }
            Stage::Complete => {}
        }
        state.held_back.extend(news);
        if !whole {
            return;
        }
        let news = std::mem::take(&mut state.held_back);
        state.tell(news);
        if state.waiters.is_empty() && state.used.elapsed() > IDLE {
            state.close();
        }
        drop(state);
        self.changed.notify_waiters();
    }
}
