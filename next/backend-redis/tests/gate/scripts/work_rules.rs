//! The rules of work queues: what may become of each item in a step, and how the keys agree.

use std::collections::{BTreeMap, BTreeSet};

use super::bench::Request;
use super::work::{Consumer, Item, Items, New, Place, QUEUES, Step, World};

/// The longest time for which the first consumer may wait beside an item: its own timer ends at most 120 ms late, and a sweep
/// follows.
const LONGEST: u64 = 302_000;

/// The items that a step gave to takes, by queue, session and nonce: place, item, token.
type Served = BTreeMap<(String, String, u64), Vec<(String, Item, u64)>>;

fn number_of(place: &str) -> u64 {
    place
        .split(':')
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}

impl World<'_> {
    /// Reads the items of all queues. Each is in one place, and its parts agree.
    fn observe(&self) -> Result<(Items, BTreeMap<String, Vec<Consumer>>), String> {
        let (mut items, mut consumers) = (Items::new(), BTreeMap::new());
        let keys = &self.bench.keys;
        for queue in QUEUES {
            let part = |part: &str| format!("{queue}/{part}");
            let (ready, delayed) = (keys.set(&part("ready")), keys.set(&part("delayed")));
            let (claims, mut values) = (keys.hash(&part("claims")), keys.hash(&part("values")));
            for (place, stored) in keys.hash(&part("items")) {
                let fields: Vec<_> = stored.splitn(3, ' ').collect();
                let mut places = Vec::new();
                places.extend(ready.contains_key(&place).then_some(Place::Ready));
                places.extend(delayed.get(&place).map(|due| Place::Delayed(*due as u64)));
                places.extend(claims.get(&place).and_then(|claim| {
                    let mut parts = claim.split(':');
                    let session = parts.next()?.to_owned();
                    let (nonce, token) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
                    Some(Place::Claimed { session, nonce, token })
                }));
                let [at] = &places[..] else {
                    return Err(format!("{place} of {queue} is in {places:?}"));
                };
                let Some(value) = values.remove(&place) else {
                    return Err(format!("{place} of {queue} has no value"));
                };
                let item = Item {
                    value,
                    id: fields[2].to_owned(),
                    counts: fields[1] == "1",
                    deliveries: fields[0]
                        .parse()
                        .map_err(|_| format!("{place} of {queue} is {stored:?}"))?,
                    place: at.clone(),
                };
                items.insert((queue.to_owned(), place), item);
            }
            let placed = ready.len() + delayed.len() + claims.len();
            let known = items.keys().filter(|(of, _)| of == queue).count();
            if placed != known || !values.is_empty() {
                return Err(format!(
                    "{queue} has {known} items, {placed} places, and values without an item: {values:?}"
                ));
            }
            let mut waiting: Vec<_> = keys.set(&part("consumers")).into_iter().collect();
            waiting.sort_by(|(_, a), (_, b)| a.total_cmp(b));
            let consumer = |(member, arrival): &(String, f64)| {
                let (session, nonce) = member.split_once(':').unwrap_or_default();
                let nonce = nonce.parse().unwrap_or_default();
                Consumer {
                    arrival: *arrival as u64,
                    session: session.to_owned(),
                    nonce,
                }
            };
            consumers.insert(queue.to_owned(), waiting.iter().map(consumer).collect());
            let wants = keys.hash(&part("wants"));
            if wants.keys().ne(keys.set(&part("consumers")).keys()) {
                return Err(format!("{queue} has the consumers {waiting:?}, who want {wants:?}"));
            }
        }
        Ok((items, consumers))
    }

    /// Compares the queues with the indexes of the sessions, and what is due with what has to be done.
    fn check_agreement(&self, items: &Items, consumers: &BTreeMap<String, Vec<Consumer>>) -> Result<(), String> {
        let (mut waiting, mut held) = (BTreeSet::new(), BTreeSet::new());
        for (session, nonce, entry) in self.bench.keys.entries() {
            let Some((claims, queue)) = entry.strip_prefix("q ").and_then(|entry| entry.split_once(' ')) else {
                continue;
            };
            if claims == "-" {
                waiting.insert(format!("{queue} {session}:{nonce}"));
            } else {
                held.extend(
                    claims
                        .split(',')
                        .map(|claim| format!("{queue} {session}:{nonce} {claim}")),
                );
            }
        }
        let places = consumers.iter().flat_map(|(queue, consumers)| {
            consumers
                .iter()
                .map(move |consumer| format!("{queue} {}:{}", consumer.session, consumer.nonce))
        });
        let places: BTreeSet<_> = places.collect();
        if places != waiting {
            return Err(format!("consumers are {places:?}, in the indexes are {waiting:?}"));
        }
        let claims = items.iter().filter_map(|((queue, place), item)| match &item.place {
            Place::Claimed { session, nonce, token } => Some(format!("{queue} {session}:{nonce} {token}@{place}")),
            _ => None,
        });
        let claims: BTreeSet<_> = claims.collect();
        if claims != held {
            return Err(format!("claims are {claims:?}, in the indexes are {held:?}"));
        }
        let due = self.bench.keys.set("deadlines");
        for queue in QUEUES {
            let of = || {
                items
                    .iter()
                    .filter(|((of, _), _)| of == queue)
                    .map(|(_, item)| &item.place)
            };
            let at = due.get(&format!("q/{queue}")).map_or(u64::MAX, |at| *at as u64);
            let first = of()
                .filter_map(|place| {
                    if let Place::Delayed(due) = place {
                        Some(*due)
                    } else {
                        None
                    }
                })
                .min();
            if first.is_some_and(|first| at > first) {
                return Err(format!(
                    "{queue} has an item that is due at {first:?}, and is served at {at}"
                ));
            }
            let waits = consumers.get(queue).is_some_and(|consumers| !consumers.is_empty());
            if waits && of().any(|place| *place == Place::Ready) && at > self.bench.now {
                return Err(format!("{queue} has a ready item and a consumer, and is not served"));
            }
        }
        Ok(())
    }

    fn check_ids(&mut self, items: &Items) -> Result<(), String> {
        let now = self.bench.now;
        for queue in QUEUES {
            let kept = self.bench.keys.set(&format!("{queue}/ids"));
            let of = |key: &(String, String)| key.0 == queue;
            if let Some((_, id)) = self.ids.iter().filter(|(key, _)| of(key)).find_map(|((_, id), until)| {
                let score = kept.get(id);
                let is_right = match until {
                    None => score == Some(&f64::INFINITY),
                    Some(until) if *until > now => score == Some(&(*until as f64)),
                    Some(until) => score.is_none_or(|score| score == &(*until as f64)),
                };
                (!is_right).then(|| {
                    (
                        queue,
                        format!("{id:?}, remembered until {until:?}, is kept until {score:?}"),
                    )
                })
            }) {
                return Err(format!("{queue}: the id {id}"));
            }
            if let Some(stray) = kept
                .keys()
                .find(|id| !self.ids.contains_key(&(queue.to_owned(), (*id).clone())))
            {
                return Err(format!("{queue} remembers {stray:?}, which no item had"));
            }
            // One that was forgotten stays so, even if the clock is set back.
            self.ids.retain(|(of, id), until| {
                of != queue || until.is_none_or(|until| until > now) || kept.contains_key(id)
            });
            let there = items
                .iter()
                .filter(|((of, _), item)| of == queue && item.counts && !item.id.is_empty());
            let there: BTreeSet<_> = there.map(|(_, item)| &item.id).collect();
            let open = self.ids.iter().filter(|(key, until)| of(key) && until.is_none());
            let open: BTreeSet<_> = open.map(|((_, id), _)| id).collect();
            if there != open {
                return Err(format!(
                    "{queue} has items with the ids {there:?}, and takes {open:?} for those"
                ));
            }
        }
        Ok(())
    }

    /// Compares the items after a step with `base`, which has the step's own effect: whatever else happened is a delivery, a
    /// move to the dead letters, or the return of items of expired sessions.
    pub(crate) fn check_items(
        &mut self,
        request: &Request,
        step: &Step,
        entered: bool,
        base: Items,
        new: Vec<New>,
    ) -> Result<(), String> {
        let (items, consumers) = self.observe()?;
        if let (Step::Take(items, bytes, after), true) = (step, entered) {
            self.wants
                .insert((request.session.clone(), request.nonce), (*items, *bytes, *after));
        }
        let frees = matches!(step, Step::Sweep);
        let mut served = Served::new();
        let mut moved = Vec::new();
        for (key, item) in &base {
            match items.get(key) {
                None => moved.push((key.clone(), item.clone())),
                Some(now_there) => {
                    let same =
                        (&item.value, &item.id, item.counts) == (&now_there.value, &now_there.id, now_there.counts);
                    if !same || !self.may_become(item, now_there, frees) {
                        return Err(format!("{key:?} was {item:?} and is {now_there:?}"));
                    }
                    if let Place::Claimed { session, nonce, token } = &now_there.place
                        && item.place != now_there.place
                    {
                        let taken = served.entry((key.0.clone(), session.clone(), *nonce)).or_default();
                        taken.push((key.1.clone(), now_there.clone(), *token));
                    }
                }
            }
        }
        let mut added: Vec<_> = items.iter().filter(|(key, _)| !base.contains_key(*key)).collect();
        added.sort_by_key(|((_, place), _)| number_of(place));
        let mut new = new.into_iter();
        for ((queue, place), item) in added {
            let priority: u64 = place[..5].parse().unwrap_or_default();
            if number_of(place) <= self.last_token {
                return Err(format!("the number of {place} is not above {}", self.last_token));
            }
            if let Place::Claimed { session, nonce, token } = &item.place {
                let taken = served.entry((queue.clone(), session.clone(), *nonce)).or_default();
                taken.push((place.clone(), item.clone(), *token));
            }
            let claimed = u64::from(matches!(item.place, Place::Claimed { .. }));
            let dead = moved.iter().position(|((_, from), letter)| {
                (from[..5].parse(), &letter.value, &letter.id) == (Ok(priority), &item.value, &item.id)
            });
            if let Some(dead) = dead.filter(|_| queue == "queue/dead" && !item.counts) {
                let ((from, place), letter) = moved.remove(dead);
                if item.deliveries != claimed || !self.is_available(&letter, frees) {
                    return Err(format!("{place} of {from}, {letter:?}, is now {item:?}"));
                }
                let wants = self
                    .wants
                    .values()
                    .any(|(.., after)| *after > 0 && letter.deliveries >= *after);
                if !wants {
                    return Err(format!("{letter:?} of {from} was moved to the dead letters too early"));
                }
                self.forget_later(&from, Some(&letter));
                continue;
            }
            let Some(wanted) = new.next() else {
                return Err(format!("{item:?} of {queue} was never enqueued"));
            };
            let at = match wanted.delay {
                0 => item.place == Place::Ready || claimed == 1,
                delay => item.place == Place::Delayed(self.bench.now + delay),
            };
            let same = (priority, &item.value, &item.id) == (wanted.priority, &wanted.value, &wanted.id);
            if !at || !same || !item.counts || item.deliveries != claimed || *queue != request.own[0] {
                return Err(format!("{wanted:?} was enqueued, and is {item:?}"));
            }
        }
        if let Some(lost) = moved
            .first()
            .map(|lost| format!("{lost:?}"))
            .or_else(|| new.next().map(|new| format!("{new:?}")))
        {
            return Err(format!("lost: {lost}"));
        }
        self.check_served(request, step, &base, &items, &consumers, &served)?;
        self.check_agreement(&items, &consumers)?;
        self.check_ids(&items)?;
        let numbers = items.keys().map(|(_, place)| number_of(place));
        let arrivals = consumers.values().flatten().map(|consumer| consumer.arrival);
        let tokens = served.values().flatten().map(|(.., token)| *token);
        self.last_token = numbers
            .chain(arrivals)
            .chain(tokens)
            .max()
            .unwrap_or_default()
            .max(self.last_token);
        (self.items, self.consumers) = (items, consumers);
        Ok(())
    }

    /// Whether the owner of a claim has ended, so that a part of the sweep may return it.
    fn has_ended(&self, item: &Item) -> bool {
        match &item.place {
            Place::Claimed { session, .. } => !self.bench.lives(session) || self.bench.is_detached(session),
            _ => false,
        }
    }

    fn is_available(&self, item: &Item, frees: bool) -> bool {
        match item.place {
            Place::Ready => true,
            Place::Delayed(due) => due <= self.bench.now,
            Place::Claimed { .. } => frees && self.has_ended(item),
        }
    }

    fn may_become(&self, item: &Item, after: &Item, frees: bool) -> bool {
        if item == after {
            return true;
        }
        let more = u64::from(matches!(after.place, Place::Claimed { .. }));
        self.is_available(item, frees)
            && !matches!(after.place, Place::Delayed(_))
            && item.deliveries + more == after.deliveries
    }

    /// Checks that a take that was given items waited longest, got the first ones, not too many, and was notified.
    fn check_served(
        &self,
        request: &Request,
        step: &Step,
        base: &Items,
        items: &Items,
        consumers: &BTreeMap<String, Vec<Consumer>>,
        served: &Served,
    ) -> Result<(), String> {
        for ((queue, session, nonce), taken) in served {
            let mine = matches!(step, Step::Take(..)) && *session == request.session && *nonce == request.nonce;
            let known = self.consumers.get(queue).into_iter().flatten();
            let waited = known
                .clone()
                .find(|consumer| consumer.session == *session && consumer.nonce == *nonce);
            if !self.bench.lives(session) || waited.is_none() && !(mine && *queue == request.own[0]) {
                return Err(format!(
                    "{taken:?} of {queue} went to {session}:{nonce}, which does not wait"
                ));
            }
            let arrival = waited.map_or(u64::MAX, |consumer| consumer.arrival);
            let passed = consumers.get(queue).into_iter().flatten().find(|other| {
                let is_older = self.consumers.get(queue).is_some_and(|known| known.contains(other));
                is_older && other.arrival < arrival && self.bench.lives(&other.session)
            });
            if let Some(passed) = passed {
                return Err(format!(
                    "{session}:{nonce} was given items of {queue}, and {passed:?} waits since earlier"
                ));
            }
            let Some((most, bytes, after)) = self.wants.get(&(session.clone(), *nonce)) else {
                return Err(format!("{session}:{nonce} never wanted anything"));
            };
            let size: usize = taken.iter().map(|(_, item, _)| item.value.len()).sum();
            if taken.len() as u64 > *most || taken.len() > 1 && size as u64 > *bytes {
                return Err(format!(
                    "{session}:{nonce} wanted {most} items of {bytes} bytes, and was given {taken:?}"
                ));
            }
            if let Some(dead) = taken.iter().find(|(_, item, _)| *after > 0 && item.deliveries > *after) {
                return Err(format!(
                    "{session}:{nonce} takes {after} deliveries at most, and was given {dead:?}"
                ));
            }
            let mut last = self.last_token;
            let mut tokens: Vec<_> = taken.iter().map(|(.., token)| *token).collect();
            tokens.sort_unstable();
            for token in tokens {
                if token <= last {
                    return Err(format!("the token {token} of {session}:{nonce} is not above {last}"));
                }
                last = token;
            }
            let greatest = taken.iter().map(|(place, ..)| place).max();
            let passed = items.iter().find(|(key, item)| {
                key.0 == *queue
                    && item.place == Place::Ready
                    && Some(&key.1) < greatest
                    && base.get(*key).is_some_and(|before| self.is_available(before, false))
            });
            if let Some(passed) = passed {
                return Err(format!(
                    "{session}:{nonce} was given {taken:?} of {queue} before {passed:?}"
                ));
            }
            let channel = format!("session/{session}");
            let notified = |(to, message): &(String, String)| to.ends_with(&channel) && *message == nonce.to_string();
            if !mine && !self.bench.messages.iter().any(notified) {
                return Err(format!("{session}:{nonce} was given {taken:?} and was not notified"));
            }
        }
        Ok(())
    }

    /// The first consumer that lives is given an item within a bound, if there is one for it.
    pub(crate) fn check_progress(&mut self) -> Result<(), String> {
        let now = self.bench.now;
        for queue in QUEUES {
            let waiting = self.consumers.get(queue).cloned().unwrap_or_default();
            let first = waiting.iter().find(|consumer| self.bench.lives(&consumer.session));
            // A consumer behind an expired one looks when the lease ahead has ended, and its own look finds the item.
            let first = first.filter(|consumer| self.bench.acts(&consumer.session));
            let mut of = self
                .items
                .iter()
                .filter(|((of, _), _)| of == queue)
                .map(|(_, item)| item);
            let there = of.any(|item| match &item.place {
                Place::Ready => true,
                Place::Delayed(due) => *due <= now,
                Place::Claimed { session, .. } => !self.bench.lives(session),
            });
            let since = match first.filter(|_| there) {
                None => {
                    self.waits_since.remove(queue);
                    continue;
                }
                Some(first) => {
                    let id = (first.session.clone(), first.nonce, now);
                    let known = self.waits_since.entry(queue.to_owned()).or_insert_with(|| id.clone());
                    if (&known.0, known.1) != (&id.0, id.1) {
                        *known = id;
                    }
                    known.clone()
                }
            };
            if now.saturating_sub(since.2) > LONGEST && !self.clock_was_set {
                return Err(format!(
                    "{queue} has an item for {}:{} since {} us",
                    since.0,
                    since.1,
                    now - since.2
                ));
            }
        }
        Ok(())
    }
}
