//! Work queues.
//!
//! An item stays until it is acknowledged. The step that makes an item available gives it to the consumer that has waited
//! longest, and wakes only this one. The end of a delay or of a lease is no step: the first consumer sleeps until the
//! earliest of them, the others until the lease of the consumer before them ends.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tenure_core::backend::{
    Claim, EndOutcome, Item, Joined, Marker, Nonce, PeekedItem, QueueDepth, Request, Return, SessionEvent, TakeLimit,
    TakenItem,
};
use tenure_core::clock::Moment;
use tenure_core::value::MAX_VALUE_BYTES;
use tenure_core::{DEDUPLICATION_WINDOW, Error, ErrorKind, FencingToken, Kind, LossReason, Name, Result};

use super::entries::{Location, Outcome, StoredEntry};
use super::{EndCause, Look, Member, Object, State, no_place};
use crate::planted::Bug;

mod consumers;

/// How many ids a step forgets at most. Each step adds fewer on average, so they do not pile up.
const FORGOTTEN_BY_A_STEP: usize = 64;

/// The place of an item in the order of its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemPlace {
    priority: u16,
    /// The number of its acceptance.
    pub(super) number: u64,
}

/// One queue.
#[derive(Default)]
pub(super) struct WorkQueue {
    items: BTreeMap<ItemPlace, Stored>,
    ready: BTreeSet<ItemPlace>,
    delayed: BTreeSet<(Moment, ItemPlace)>,
    /// By number of arrival.
    consumers: BTreeMap<u64, Consumer>,
    /// The ids of items that are present, and of those that were removed, with the time until which they are remembered.
    ids: BTreeMap<Name, Option<Moment>>,
}

struct Stored {
    value: Arc<[u8]>,
    id: Option<Name>,
    /// Whether the id keeps others out. The id of a dead letter is only shown, because a dead letter is never a duplicate.
    id_counts: bool,
    deliveries: u32,
    /// The session, the take and the token of its consumer.
    claim: Option<(u64, Nonce, FencingToken)>,
    visible: Option<Moment>,
}

struct Consumer {
    session: u64,
    nonce: Nonce,
    limit: TakeLimit,
}

/// The ids of removed items in the order in which they are forgotten.
#[derive(Default)]
pub(super) struct Forgetting(VecDeque<(Moment, Object, Name)>);

impl WorkQueue {
    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn ids(&self) -> usize {
        self.ids.len()
    }

    /// Makes the items available whose delay is over.
    fn advance(&mut self, now: Moment) {
        while let Some(&(visible, place)) = self.delayed.first()
            && visible <= now
        {
            self.delayed.pop_first();
            self.ready.insert(place);
        }
    }

    fn in_flight(&self) -> usize {
        self.items.len() - self.ready.len() - self.delayed.len()
    }

    /// Takes an item out of the order in which items are available.
    fn hide(&mut self, place: ItemPlace) {
        self.ready.remove(&place);
        if let Some(visible) = self.items.get(&place).and_then(|item| item.visible) {
            self.delayed.remove(&(visible, place));
        }
    }

    fn first_consumer(&self) -> Option<(u64, Nonce)> {
        let (_, first) = self.consumers.first_key_value()?;
        Some((first.session, first.nonce))
    }
}

/// Producers.
impl State {
    pub(crate) fn enqueue(&mut self, member: &Member, marker: Marker, name: &Name, items: &[Item]) -> Result<()> {
        if let Some(item) = items.iter().find(|item| item.value.len() > MAX_VALUE_BYTES) {
            let size = item.value.len();
            let message = format!("an item of {size} bytes; {MAX_VALUE_BYTES} is the most: store it elsewhere");
            return Err(Error::new(ErrorKind::TooLarge, message).on(name.as_str()));
        }
        let object = self.object(Kind::Queue, name);
        let enqueue = |state: &mut Self| {
            for item in items {
                state.accept(&object, item);
            }
            state.touched.insert(object);
            Ok(Outcome::Done)
        };
        self.once(member, marker, enqueue).map(drop)
    }

    fn accept(&mut self, object: &Object, item: &Item) {
        let (now, planted) = (self.now, self.planted);
        let queue = self.queues.entry(object.clone()).or_default();
        if let Some(id) = &item.id {
            let known = queue
                .ids
                .get(id)
                .is_some_and(|until| until.is_none_or(|until| until > now));
            if known && !planted.has(Bug::DuplicateAccepted) {
                return;
            }
            queue.ids.insert(id.clone(), None);
        }
        let stored = Stored {
            value: Arc::clone(&item.value),
            id: item.id.clone(),
            id_counts: item.id.is_some(),
            deliveries: 0,
            claim: None,
            visible: None,
        };
        self.store(object, item.priority, stored, item.delay);
    }

    /// Puts an item at the end of its priority.
    fn store(&mut self, object: &Object, mut priority: u16, item: Stored, delay: Duration) {
        if self.planted.has(Bug::PriorityIgnored) {
            priority = 0;
        }
        let number = self.next_arrival();
        let place = ItemPlace { priority, number };
        self.queues.entry(object.clone()).or_default().items.insert(place, item);
        self.make_available(object, place, delay);
    }

    /// Makes an item available after `delay`.
    fn make_available(&mut self, object: &Object, place: ItemPlace, mut delay: Duration) {
        if self.planted.has(Bug::DelayIgnored) {
            delay = Duration::ZERO;
        }
        let Some(queue) = self.queues.get_mut(object) else {
            return;
        };
        let Some(item) = queue.items.get_mut(&place) else {
            return;
        };
        item.claim = None;
        item.visible = (!delay.is_zero()).then(|| self.now + delay);
        match item.visible {
            Some(visible) => drop(queue.delayed.insert((visible, place))),
            None => drop(queue.ready.insert(place)),
        }
        if let Some((session, nonce)) = queue.first_consumer() {
            // It sleeps until the earliest event that it knew.
            self.wake_request(session, nonce);
        }
    }

    /// Removes an item for good, and remembers its id for a while.
    fn remove_item(&mut self, object: &Object, place: ItemPlace) -> Option<Stored> {
        let until = self.now + DEDUPLICATION_WINDOW;
        let queue = self.queues.get_mut(object)?;
        queue.hide(place);
        let item = queue.items.remove(&place)?;
        if let Some(id) = item.id.as_ref().filter(|_| item.id_counts) {
            queue.ids.insert(id.clone(), Some(until));
            self.ids.0.push_back((until, object.clone(), id.clone()));
        }
        Some(item)
    }

    pub(super) fn forget_ids(&mut self) {
        for _ in 0..FORGOTTEN_BY_A_STEP {
            if self.ids.0.front().is_none_or(|(until, ..)| *until > self.now) {
                return;
            }
            let Some((until, object, id)) = self.ids.0.pop_front() else {
                return;
            };
            if let Some(queue) = self.queues.get_mut(&object)
                && queue.ids.get(&id) == Some(&Some(until))
            {
                queue.ids.remove(&id);
                self.drop_if_empty(&object);
            }
        }
    }

    fn drop_if_empty(&mut self, object: &Object) {
        let empty = |queue: &WorkQueue| queue.items.is_empty() && queue.consumers.is_empty() && queue.ids.is_empty();
        if self.queues.get(object).is_some_and(empty) {
            self.queues.remove(object);
        }
    }

    pub(crate) fn purge(&mut self, member: &Member, marker: Marker, name: &Name) -> Result<u64> {
        let object = self.object(Kind::Queue, name);
        let purge = |state: &mut Self| {
            let queue = state.queues.get(&object);
            let mut places: Vec<_> = queue
                .into_iter()
                .flat_map(|queue| queue.items.keys().copied())
                .collect();
            if state.planted.has(Bug::PurgeSkipsInFlight) {
                places.retain(|place| queue.is_some_and(|queue| queue.ready.contains(place)));
            }
            for place in &places {
                if let Some((session, nonce, token)) = state.remove_item(&object, *place).and_then(|item| item.claim)
                    && state.end_claim(session, nonce, token)
                {
                    state.report(session, SessionEvent::RequestLost(nonce, LossReason::Revoked));
                }
            }
            state.touched.insert(object);
            Ok(Outcome::Count(places.len() as u64))
        };
        self.once(member, marker, purge)?.count()
    }

    pub(crate) fn depth(&mut self, member: &Member, name: &Name) -> Result<QueueDepth> {
        self.lease(member)?;
        let (now, object) = (self.now, self.object(Kind::Queue, name));
        Ok(self.queues.get_mut(&object).map_or_else(QueueDepth::default, |queue| {
            queue.advance(now);
            QueueDepth::new(
                queue.ready.len() as u64,
                queue.in_flight() as u64,
                queue.delayed.len() as u64,
            )
        }))
    }

    pub(crate) fn peek(&mut self, member: &Member, name: &Name) -> Result<Option<PeekedItem>> {
        self.lease(member)?;
        let (now, object) = (self.now, self.object(Kind::Queue, name));
        Ok(self.queues.get_mut(&object).and_then(|queue| {
            queue.advance(now);
            let place = queue.ready.first()?;
            let item = queue.items.get(place)?;
            let mut peeked = PeekedItem::new(Arc::clone(&item.value), place.priority);
            peeked.id = item.id.clone();
            peeked.deliveries = item.deliveries;
            Some(peeked)
        }))
    }
}
