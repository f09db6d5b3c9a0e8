//! Queues: the items, who has them, and who waits for one.
//!
//! An item stays in the map until it is acknowledged; `ready` and `delayed` say which of them
//! can be delivered, now and later. Whoever makes an item ready gives it, in the same step, to the
//! consumer that waited longest, and wakes that one alone.
//!
//! No step happens when a delay or a consumer's lease is over, unless somebody makes one: that is
//! the first in the line of waiting consumers, which sleeps no longer than until then. The others
//! sleep until the lease of the one before them ends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tenure_core::backend::{Held, Kind, Redacted, Want, path};
use tenure_core::{
    Depth, Error, FencingToken, ID_MEMORY, Item, LossReason, Moment, Name, Namespace, Peeked,
    Result,
};
use tokio::sync::Notify;

use super::{CAPACITY, Member, Object, Signal, State, is_far_too_large, key, shrink};
use crate::error;

/// Where an item stands: its priority, and its number of arrival.
type Place = (u16, u64);

/// One queue. Never kept when it is empty and has nothing to remember.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: BTreeMap<Place, Entry>,
    ready: BTreeSet<Place>,
    delayed: BTreeSet<(Moment, Place)>,
    /// Who waits for an item, in the order of arrival.
    waits: BTreeMap<u64, Wait>,
    /// The ids in use, and until when those of items that have left are remembered.
    ids: HashMap<Name, Option<Moment>>,
}

/// The ids of items that have left, of all queues, in the order in which they are forgotten.
#[derive(Debug, Default)]
pub(super) struct Leaving(VecDeque<(Moment, Object, Name)>);

/// How many ids one step forgets at most. Each left its queue in a step, most alone: they do not pile up, and no
/// step takes long.
const FORGOTTEN_BY_A_STEP: usize = 64;

struct Entry {
    value: Arc<[u8]>,
    id: Option<Name>,
    deliveries: u32,
    claim: Option<Claim>,
    not_before: Option<Moment>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("value", &Redacted(&self.value))
            .field("deliveries", &self.deliveries)
            .field("claim", &self.claim)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    session: u64,
    /// Of the ask that took it.
    nonce: u64,
    token: FencingToken,
}

#[derive(Debug)]
struct Wait {
    session: u64,
    nonce: u64,
    want: Want,
    waiter: Arc<Notify>,
}

/// What one session has to do with queues.
#[derive(Debug, Default)]
pub(super) struct Dealings {
    /// By token.
    claims: BTreeMap<u64, (Object, Place)>,
    /// The claims by the nonce of the ask that took them.
    taken: HashMap<u64, Vec<u64>>,
    /// By nonce.
    waits: BTreeMap<u64, (Object, u64)>,
    /// The enqueues whose answer has not come back, so that none is repeated: `true` once it has,
    /// but another request of it is still on its way.
    sent: HashMap<u64, bool>,
}

impl Dealings {
    pub(super) fn len(&self) -> usize {
        self.claims.len() + self.waits.len()
    }

    /// No request of the enqueue `nonce` is on its way any more.
    pub(super) fn arrived(&mut self, nonce: u64) {
        if self.sent.get(&nonce) == Some(&true) {
            self.sent.remove(&nonce);
        }
    }
}

/// A delivery, in the store's words.
pub(crate) struct Delivered {
    pub(crate) token: FencingToken,
    pub(crate) key: String,
    pub(crate) value: Arc<[u8]>,
    pub(crate) priority: u16,
    pub(crate) deliveries: u32,
}

impl fmt::Debug for Delivered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivered")
            .field("token", &self.token)
            .field("key", &self.key)
            .field("value", &Redacted(&self.value))
            .finish_non_exhaustive()
    }
}

/// What a consumer finds.
#[derive(Debug)]
pub(crate) enum Found {
    Items(Vec<Delivered>),
    /// Look again when woken, or when this moment has come.
    Wait(Arc<Notify>, Moment),
}

impl Queue {
    fn is_empty(&self) -> bool {
        self.items.is_empty() && self.waits.is_empty() && self.ids.is_empty()
    }

    /// What `now` has made ready.
    fn advance(&mut self, now: Moment) {
        while let Some(&(moment, place)) = self.delayed.first()
            && moment <= now
        {
            self.delayed.pop_first();
            self.ready.insert(place);
        }
    }

    /// Whether an item with this id would be the second.
    fn knows(&self, id: &Name, now: Moment) -> bool {
        match self.ids.get(id) {
            Some(Some(until)) => *until > now,
            Some(None) => true,
            None => false,
        }
    }

    fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.items.remove(&place)?;
        self.ready.remove(&place);
        if let Some(moment) = entry.not_before {
            self.delayed.remove(&(moment, place));
        }
        Some(entry)
    }

    /// Gives the item at `place` back to its place.
    fn put_back(&mut self, place: Place, not_before: Option<Moment>) {
        if let Some(entry) = self.items.get_mut(&place) {
            entry.claim = None;
            entry.not_before = not_before;
            match not_before {
                Some(moment) => drop(self.delayed.insert((moment, place))),
                None => drop(self.ready.insert(place)),
            }
        }
    }

    fn waiter_before(&self, arrival: u64) -> Option<&Wait> {
        self.waits
            .range(..arrival)
            .next_back()
            .map(|(_, wait)| wait)
    }
}

/// What producers do.
impl State {
    /// Accepts `items`, once for each `nonce`.
    pub(crate) fn enqueue(
        &mut self,
        member: &Member,
        object: &Object,
        nonce: u64,
        items: &[Item],
    ) -> Result<()> {
        let lease = self.lease(member)?;
        if lease.queues.sent.contains_key(&nonce) {
            return Ok(());
        }
        lease.queues.sent.insert(nonce, false);
        for item in items {
            self.accept(
                object,
                item.get_priority(),
                item.value().into(),
                item.get_id(),
            );
        }
        self.serve(object);
        Ok(())
    }

    /// The answer to the enqueue `nonce` has come back: it is not sent again.
    pub(crate) fn enqueued(&mut self, member: &Member, nonce: u64) {
        if let Some(lease) = self.sessions.get_mut(&member.session) {
            if lease.on_their_way.contains_key(&nonce) {
                lease.queues.sent.insert(nonce, true);
            } else {
                lease.queues.sent.remove(&nonce);
            }
        }
    }

    fn accept(&mut self, object: &Object, priority: u16, value: Arc<[u8]>, id: Option<&Name>) {
        let now = self.now;
        let number = self.last_place + 1;
        let queue = self.queues.entry(object.clone()).or_default();
        queue.advance(now);
        if let Some(id) = id {
            if queue.knows(id, now) {
                return;
            }
            queue.ids.insert(id.clone(), None);
        }
        self.last_place = number;
        let entry = Entry {
            value,
            id: id.cloned(),
            deliveries: 0,
            claim: None,
            not_before: None,
        };
        queue.items.insert((priority, number), entry);
        queue.ready.insert((priority, number));
    }

    /// Removes what no consumer has.
    pub(crate) fn purge(&mut self, member: &Member, object: &Object) -> Result<u64> {
        self.lease(member)?;
        let Some(queue) = self.queues.get_mut(object) else {
            return Ok(0);
        };
        let free = |(_, entry): &(&Place, &Entry)| entry.claim.is_none();
        let places: Vec<Place> = queue.items.iter().filter(free).map(|(at, _)| *at).collect();
        for place in &places {
            self.remove_item(object, *place);
        }
        self.tidy(object);
        Ok(places.len() as u64)
    }
}

/// What consumers do.
impl State {
    /// Takes what is there; if that is nothing, waits in line if `wait`.
    pub(crate) fn take(
        &mut self,
        member: &Member,
        object: &Object,
        nonce: u64,
        want: &Want,
        wait: bool,
    ) -> Result<Option<Found>> {
        let arrival = self.last_place + 1;
        let lease = self.lease(member)?;
        let dealings = &lease.queues;
        let known = dealings.taken.contains_key(&nonce) || dealings.waits.contains_key(&nonce);
        if !known {
            lease.not_withdrawn(nonce)?;
            if lease.load() + want.most > CAPACITY {
                return Err(error::full(CAPACITY));
            }
            let place = (object.clone(), arrival);
            lease.queues.waits.insert(nonce, place);
            self.last_place = arrival;
            let wait = Wait {
                session: member.session,
                nonce,
                want: want.clone(),
                waiter: Arc::default(),
            };
            let queue = self.queues.entry(object.clone()).or_default();
            queue.waits.insert(arrival, wait);
            self.serve(object);
        }
        match self.found(member, nonce) {
            Ok(Found::Wait(..)) if !wait => {
                self.leave_queue(member.session, nonce);
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// What the take under `nonce` has come to.
    pub(crate) fn found(&mut self, member: &Member, nonce: u64) -> Result<Found> {
        let lease = self.lease(member)?;
        if let Some((object, _)) = lease.queues.waits.get(&nonce).cloned() {
            // A delay may be over.
            self.serve(&object);
        }
        let lease = self.lease(member)?;
        if let Some(tokens) = lease.queues.taken.get(&nonce) {
            let places: Vec<_> = tokens
                .iter()
                .filter_map(|token| lease.queues.claims.get(token).cloned())
                .collect();
            let delivered = places
                .iter()
                .filter_map(|(object, place)| self.delivered(object, *place));
            return Ok(Found::Items(delivered.collect()));
        }
        let Some((object, arrival)) = lease.queues.waits.get(&nonce).cloned() else {
            return Err(error::removed_from_line());
        };
        let queue = self.queues.get(&object);
        let Some((queue, wait)) = queue.and_then(|q| Some((q, q.waits.get(&arrival)?))) else {
            return Err(error::removed_from_line());
        };
        let ends = |session| self.sessions.get(&session).map(|lease| lease.ends);
        let until = match queue.waiter_before(arrival) {
            Some(before) => ends(before.session),
            None => {
                let claims = queue.items.values().filter_map(|entry| entry.claim);
                let freed = claims.filter_map(|claim| ends(claim.session)).min();
                let due = queue.delayed.first().map(|(moment, _)| *moment);
                [freed, due].into_iter().flatten().min()
            }
        };
        // Nothing to come by itself: the own session's end is as good as any.
        let until = until.or_else(|| ends(member.session)).unwrap_or(self.now);
        Ok(Found::Wait(Arc::clone(&wait.waiter), until))
    }

    fn delivered(&self, object: &Object, place: Place) -> Option<Delivered> {
        let entry = self.queues.get(object)?.items.get(&place)?;
        let claim = entry.claim?;
        Some(Delivered {
            token: claim.token,
            key: key(object, claim.session, place.1),
            value: Arc::clone(&entry.value),
            priority: place.0,
            deliveries: entry.deliveries,
        })
    }

    /// Removes for good what is delivered under `token`.
    pub(crate) fn ack(
        &mut self,
        member: &Member,
        object: &Object,
        token: FencingToken,
    ) -> Result<()> {
        let place = self.let_go(member, object, token)?;
        self.remove_item(object, place);
        self.tidy(object);
        Ok(())
    }

    /// Gives back what is delivered under `token`, to be delivered again after `delay`.
    pub(crate) fn nack(
        &mut self,
        member: &Member,
        object: &Object,
        token: FencingToken,
        delay: Duration,
    ) -> Result<()> {
        let place = self.let_go(member, object, token)?;
        let not_before = (!delay.is_zero()).then(|| self.now + delay);
        if let Some(queue) = self.queues.get_mut(object) {
            queue.put_back(place, not_before);
            // It sleeps until what was the next event before this one.
            if let (Some(_), Some((_, first))) = (not_before, queue.waits.first_key_value()) {
                self.signals.push(Signal::Wake(Arc::clone(&first.waiter)));
            }
        }
        self.serve(object);
        Ok(())
    }

    /// Takes the claim `token` from its session, and says where its item stands.
    fn let_go(&mut self, member: &Member, object: &Object, token: FencingToken) -> Result<Place> {
        let lease = self
            .sessions
            .get_mut(&member.session)
            .ok_or_else(|| member.lost())?;
        match lease.queues.claims.get(&token.get()) {
            Some((claimed, _)) if claimed == object => {}
            _ => return Err(Error::lost(LossReason::Revoked)),
        }
        let place = self.unclaim(member.session, token.get());
        place
            .map(|(_, place)| place)
            .ok_or_else(|| Error::lost(LossReason::Revoked))
    }

    /// Forgets a claim in the session's own books.
    fn unclaim(&mut self, session: u64, token: u64) -> Option<(Object, Place)> {
        let dealings = &mut self.sessions.get_mut(&session)?.queues;
        let (object, place) = dealings.claims.remove(&token)?;
        let claim = self.queues.get(&object)?.items.get(&place)?.claim?;
        if let Some(tokens) = dealings.taken.get_mut(&claim.nonce) {
            tokens.retain(|other| *other != token);
            if tokens.is_empty() {
                dealings.taken.remove(&claim.nonce);
            }
        }
        Some((object, place))
    }

    /// Gives back what `nonce` took, as if it had never been delivered, and its place in line.
    pub(super) fn leave_queue(&mut self, session: u64, nonce: u64) {
        let Some(lease) = self.sessions.get_mut(&session) else {
            return;
        };
        let tokens = lease.queues.taken.get(&nonce).cloned().unwrap_or_default();
        let wait = lease.queues.waits.remove(&nonce);
        if let Some((object, arrival)) = wait {
            self.stop_waiting(&object, arrival);
        }
        for token in tokens {
            if let Some((object, place)) = self.unclaim(session, token) {
                if let Some(queue) = self.queues.get_mut(&object) {
                    if let Some(entry) = queue.items.get_mut(&place) {
                        entry.deliveries -= 1;
                    }
                    queue.put_back(place, None);
                }
                self.serve(&object);
            }
        }
    }

    fn stop_waiting(&mut self, object: &Object, arrival: u64) {
        if let Some(queue) = self.queues.get_mut(object)
            && let Some(wait) = queue.waits.remove(&arrival)
        {
            self.signals.push(Signal::Wake(wait.waiter));
            // It slept until the end of this one's lease, or has to keep the time from now on.
            if let Some((_, behind)) = queue.waits.range(arrival..).next() {
                self.signals.push(Signal::Wake(Arc::clone(&behind.waiter)));
            }
        }
        self.tidy(object);
    }

    /// Takes everything from a session that has ended.
    pub(super) fn bury_dealings(&mut self, dealings: Dealings) {
        // Waits first, so that none of them is served with what the claims give back.
        for (object, arrival) in dealings.waits.into_values() {
            self.stop_waiting(&object, arrival);
        }
        let mut objects = Vec::new();
        for (object, place) in dealings.claims.into_values() {
            if let Some(queue) = self.queues.get_mut(&object) {
                queue.put_back(place, None);
            }
            if !objects.contains(&object) {
                objects.push(object);
            }
        }
        for object in objects {
            self.serve(&object);
        }
    }

    /// At a detach: a delivery means nothing without the work that went on beside it.
    pub(super) fn drop_dealings(&mut self, session: u64) {
        if let Some(lease) = self.sessions.get_mut(&session) {
            let dealings = std::mem::take(&mut lease.queues);
            self.bury_dealings(dealings);
        }
    }

    /// Gives what is ready to those who wait.
    fn serve(&mut self, object: &Object) {
        let mut objects = vec![object.clone()];
        while let Some(object) = objects.pop() {
            while let Some(served) = self.serve_first(&object) {
                // What went to another queue may be waited for there.
                objects.extend(served);
            }
            self.tidy(&object);
        }
    }

    /// Serves the first who waits. `None` if nobody does, or nothing is ready; else where dead
    /// letters went, if there were any.
    fn serve_first(&mut self, object: &Object) -> Option<Option<Object>> {
        let now = self.now;
        let queue = self.queues.get_mut(object)?;
        queue.advance(now);
        let (&arrival, wait) = queue.waits.first_key_value()?;
        let (session, nonce, want) = (wait.session, wait.nonce, wait.want.clone());
        let mut tokens = Vec::new();
        let mut dead = Vec::new();
        while tokens.len() < want.most
            && let Some(place) = queue.ready.pop_first()
        {
            let Some(entry) = queue.items.get_mut(&place) else {
                continue;
            };
            if let Some(letters) = &want.dead_letters
                && entry.deliveries >= letters.after.get()
            {
                dead.push(place);
                continue;
            }
            let token = self.tokens.next(&object.namespace);
            entry.deliveries += 1;
            entry.not_before = None;
            entry.claim = Some(Claim {
                session,
                nonce,
                token,
            });
            tokens.push((token.get(), place));
        }
        let mut letters = Vec::new();
        for place in dead {
            letters.extend(
                self.remove_item(object, place)
                    .map(|entry| (place.0, entry)),
            );
        }
        let queue = self.queues.get_mut(object)?;
        let waiter = match tokens.is_empty() {
            true => None,
            false => queue.waits.remove(&arrival).map(|wait| wait.waiter),
        };
        // The next one keeps the time from now on.
        let next = queue.waits.first_key_value();
        let next = next.map(|(_, wait)| Arc::clone(&wait.waiter));
        if let Some(waiter) = &waiter {
            self.signals.push(Signal::Wake(Arc::clone(waiter)));
            if let Some(next) = next.filter(|_| self.keeps_time(object)) {
                self.signals.push(Signal::Wake(next));
            }
            if let Some(lease) = self.sessions.get_mut(&session) {
                lease.queues.waits.remove(&nonce);
                // Another request of this take may still be on its way: it must not take more when
                // these have been settled.
                if let Some(way) = lease.on_their_way.get_mut(&nonce) {
                    way.withdrawn = true;
                }
                let numbers = tokens.iter().map(|(token, _)| *token).collect();
                lease.queues.taken.insert(nonce, numbers);
                for (token, place) in tokens {
                    lease.queues.claims.insert(token, (object.clone(), place));
                }
            }
        }
        let address = want.dead_letters.filter(|_| !letters.is_empty());
        let elsewhere = address.map(|address| Object {
            name: address.queue,
            ..object.clone()
        });
        if let Some(elsewhere) = &elsewhere {
            for (priority, entry) in letters {
                self.accept(elsewhere, priority, entry.value, None);
            }
        }
        (waiter.is_some() || elsewhere.is_some()).then_some(elsewhere)
    }

    /// Whether somebody has to keep the time for this queue: a delay that ends, or a lease.
    fn keeps_time(&self, object: &Object) -> bool {
        let queue = self.queues.get(object);
        queue.is_some_and(|queue| queue.ready.len() < queue.items.len())
    }

    /// Removes an item, and remembers its id for a while.
    fn remove_item(&mut self, object: &Object, place: Place) -> Option<Entry> {
        let until = self.now + ID_MEMORY;
        let queue = self.queues.get_mut(object)?;
        let entry = queue.remove(place)?;
        if let Some(id) = &entry.id {
            queue.ids.insert(id.clone(), Some(until));
            let leaving = &mut self.leaving_ids.0;
            leaving.push_back((until, object.clone(), id.clone()));
        }
        Some(entry)
    }

    /// Forgets ids whose time is over: O(1) amortised.
    pub(super) fn forget_ids(&mut self) {
        self.forget_up_to(FORGOTTEN_BY_A_STEP);
    }

    fn forget_up_to(&mut self, most: usize) {
        for _ in 0..most {
            let leaving = &mut self.leaving_ids.0;
            if leaving.front().is_none_or(|(until, ..)| *until > self.now) {
                return;
            }
            let Some((until, object, id)) = leaving.pop_front() else {
                return;
            };
            if is_far_too_large(leaving.len(), leaving.capacity()) {
                leaving.shrink_to(leaving.len() * 2);
            }
            if let Some(queue) = self.queues.get_mut(&object)
                && queue.ids.get(&id) == Some(&Some(until))
            {
                queue.ids.remove(&id);
                shrink(&mut queue.ids);
                self.tidy(&object);
            }
        }
    }

    fn tidy(&mut self, object: &Object) {
        if self.queues.get(object).is_some_and(Queue::is_empty) {
            self.queues.remove(object);
            shrink(&mut self.queues);
        }
    }
}

fn item_key(object: &Object, (priority, number): Place) -> String {
    let path = path(&object.namespace, object.kind, &object.name);
    format!("{path}/item/{priority}/{number}")
}

/// What can be seen.
impl State {
    pub(crate) fn depth(&mut self, object: &Object) -> Depth {
        let now = self.now;
        let Some(queue) = self.queues.get_mut(object) else {
            return Depth::default();
        };
        queue.advance(now);
        let (all, ready, delayed) = (queue.items.len(), queue.ready.len(), queue.delayed.len());
        Depth::new(ready as u64, (all - ready - delayed) as u64, delayed as u64)
    }

    pub(crate) fn peek(&mut self, object: &Object) -> Option<Peeked> {
        let now = self.now;
        let queue = self.queues.get_mut(object)?;
        queue.advance(now);
        let place = queue.ready.first()?;
        let entry = queue.items.get(place)?;
        Some(Peeked {
            value: entry.value.to_vec(),
            priority: place.0,
            deliveries: entry.deliveries,
        })
    }

    /// Whether a delivery that a session counts as its own is not: by its token, since the ask that
    /// took it is gone.
    pub(super) fn is_missing(dealings: &Dealings, held: &Held) -> bool {
        held.kind == Kind::Queue && !dealings.claims.contains_key(&held.token.get())
    }

    /// Whether a session has the delivery `token` of that queue.
    pub(crate) fn has_delivery(&self, session: u64, object: &Object, token: FencingToken) -> bool {
        let claims = self
            .sessions
            .get(&session)
            .map(|lease| &lease.queues.claims);
        let claim = claims.and_then(|claims| claims.get(&token.get()));
        claim.is_some_and(|(of, _)| of == object)
    }

    /// The claims and waits of a namespace, as operators see them.
    pub(super) fn queue_keys(&self, namespace: &Namespace) -> impl Iterator<Item = (String, u64)> {
        let queues = self.queues.iter();
        queues
            .filter(move |(object, _)| object.namespace == *namespace)
            .flat_map(|(object, queue)| {
                let claims = queue.items.iter().filter_map(|(place, entry)| {
                    let claim = entry.claim?;
                    Some((key(object, claim.session, place.1), claim.session))
                });
                let waits = queue.waits.iter();
                claims.chain(
                    waits
                        .map(|(arrival, wait)| (key(object, wait.session, *arrival), wait.session)),
                )
            })
    }

    /// The items of a namespace that nobody has, as operators see them.
    pub(super) fn item_keys(
        &self,
        namespace: &Namespace,
    ) -> impl Iterator<Item = (String, &Object, Place)> {
        let queues = self.queues.iter();
        queues
            .filter(move |(object, _)| object.namespace == *namespace)
            .flat_map(|(object, queue)| {
                let free = queue
                    .items
                    .iter()
                    .filter(|(_, entry)| entry.claim.is_none());
                free.map(move |(place, _)| (item_key(object, *place), object, *place))
            })
    }

    fn delete_item(&mut self, namespace: &Namespace, wanted: &str) -> bool {
        let mut items = self.item_keys(namespace);
        let found = items.find(|(key, ..)| key == wanted);
        let Some((object, place)) = found.map(|(_, object, place)| (object.clone(), place)) else {
            return false;
        };
        drop(items);
        let removed = self.remove_item(&object, place).is_some();
        self.tidy(&object);
        removed
    }

    /// Removes the item or wait, or gives back the delivery, that operators see as `wanted`.
    pub(super) fn delete_dealing(&mut self, namespace: &Namespace, wanted: &str) -> bool {
        if self.delete_item(namespace, wanted) {
            return true;
        }
        let found = self.queue_keys(namespace).find(|(key, _)| key == wanted);
        let Some((_, session)) = found else {
            return false;
        };
        let Some(lease) = self.sessions.get(&session) else {
            return false;
        };
        let is = |object: &Object, number| key(object, session, number) == wanted;
        let mut claims = lease.queues.claims.iter();
        let claim = claims.find(|(_, (object, place))| is(object, place.1));
        if let Some((&token, _)) = claim {
            if let Some((object, place)) = self.unclaim(session, token) {
                if let Some(queue) = self.queues.get_mut(&object) {
                    queue.put_back(place, None);
                }
                self.serve(&object);
            }
            return true;
        }
        let mut waits = lease.queues.waits.iter();
        let wait = waits.find(|(_, (object, arrival))| is(object, *arrival));
        let nonce = wait.map(|(&nonce, _)| nonce);
        if let Some(nonce) = nonce {
            self.leave_queue(session, nonce);
        }
        nonce.is_some()
    }

    /// The ids that are in use or remembered. Forgets first what steps to come would.
    pub(super) fn remembered_ids(&mut self) -> usize {
        self.forget_up_to(usize::MAX);
        self.queues.values().map(|queue| queue.ids.len()).sum()
    }

    /// Items, claims, waits.
    pub(super) fn queued(&self) -> (usize, usize, usize) {
        self.queues.values().fold((0, 0, 0), |(a, b, c), queue| {
            let claims = queue.items.values().filter(|entry| entry.claim.is_some());
            (
                a + queue.items.len(),
                b + claims.count(),
                c + queue.waits.len(),
            )
        })
    }
}
