//! Takes: how consumers are given items, and how they give them back.

use super::*;

/// Consumers.
impl State {
    pub(crate) fn take(
        &mut self,
        member: &Member,
        request: &Request,
        limit: &TakeLimit,
        wait: bool,
    ) -> Result<Joined<Vec<TakenItem>>> {
        let object = self.object_of(request);
        if !self.begin(member, request)? {
            let arrival = self.next_arrival();
            self.add_entry(member, request.nonce(), &object, Location::Consumer(arrival))?;
            let consumer = Consumer {
                session: member.session,
                nonce: request.nonce(),
                limit: limit.clone(),
            };
            self.queues
                .entry(object.clone())
                .or_default()
                .consumers
                .insert(arrival, consumer);
            self.serve(&object);
            self.settle();
        }
        Ok(match self.look_for_items(member, request)? {
            Look::Done(items) => Joined::Granted(items),
            Look::Until(_) if wait => Joined::Waiting,
            Look::Until(_) => {
                if let Some(held) = self.lease(member)?.entries.remove(&request.nonce()) {
                    self.end_entry(member.session, request.nonce(), held, EndCause::Left);
                }
                Joined::Busy
            }
        })
    }

    pub(crate) fn look_for_items(&mut self, member: &Member, request: &Request) -> Result<Look<Vec<TakenItem>>> {
        let object = self.object_of(request);
        // A delay may be over.
        self.serve(&object);
        let held = self.entry(member, request)?;
        let queue = self.queues.get(&object).ok_or_else(no_place)?;
        let arrival = match &held.location {
            Location::Consumer(arrival) => *arrival,
            Location::Claims(claims) => {
                let items = claims.iter().filter_map(|(token, place)| {
                    let item = queue.items.get(place)?;
                    let key = self.key(&object, member.session, place.number);
                    let mut taken = TakenItem::new(*token, key, Arc::clone(&item.value));
                    taken.priority = place.priority;
                    taken.id = item.id.clone();
                    taken.deliveries = item.deliveries;
                    Some(taken)
                });
                return Ok(Look::Done(items.collect()));
            }
            _ => return Err(no_place()),
        };
        let until = match queue.consumers.range(..arrival).next_back() {
            Some((_, before)) => self.first_end([before.session, member.session]),
            None => {
                // No consumer's lease ends before the first of all leases.
                let first = self
                    .leases
                    .first()
                    .filter(|_| queue.in_flight() > 0)
                    .map(|(_, session)| *session);
                let visible = queue.delayed.first().map(|(visible, _)| *visible);
                let ends = self.first_end(first.into_iter().chain([member.session]));
                visible.into_iter().chain(ends).min()
            }
        };
        Ok(Look::Until(until))
    }

    /// Gives available items to the waiting consumers.
    pub(crate) fn serve(&mut self, object: &Object) {
        let now = self.now;
        if let Some(queue) = self.queues.get_mut(object) {
            queue.advance(now);
        }
        while let Some(queue) = self.queues.get(object)
            && !queue.ready.is_empty()
            && let Some((&arrival, _)) = queue.consumers.first_key_value()
        {
            self.serve_consumer(object, arrival);
        }
        self.drop_if_empty(object);
    }

    /// Gives available items to one consumer: its share of them, if others wait too.
    fn serve_consumer(&mut self, object: &Object, arrival: u64) {
        let Some(queue) = self.queues.get(object) else {
            return;
        };
        let Some(consumer) = queue.consumers.get(&arrival) else {
            return;
        };
        let (session, nonce, limit) = (consumer.session, consumer.nonce, consumer.limit.clone());
        let most = limit.items.min(queue.ready.len() / queue.consumers.len()).max(1);
        let (mut claims, mut bytes) = (BTreeMap::new(), 0);
        while claims.len() < most
            && let Some(queue) = self.queues.get_mut(object)
            && let Some(&place) = queue.ready.first()
            && let Some(item) = queue.items.get_mut(&place)
        {
            if let Some((deliveries, name)) = &limit.dead_letter
                && item.deliveries >= (*deliveries).max(1)
            {
                self.move_to_dead_letter(object, place, name);
                continue;
            }
            bytes += item.value.len();
            if bytes > limit.bytes && !claims.is_empty() {
                break;
            }
            self.last_token += 1;
            let token = FencingToken::new(self.last_token);
            item.deliveries += u32::from(!self.planted.has(Bug::DeliveryNotCounted));
            item.claim = Some((session, nonce, token));
            item.visible = None;
            let again = self.planted.has(Bug::ItemToTwo) && item.deliveries < 2;
            if !again {
                queue.ready.remove(&place);
            }
            claims.insert(token, place);
            if again {
                break;
            }
        }
        if claims.is_empty() {
            return;
        }
        self.leave_consumers(object, arrival);
        self.wake_request(session, nonce);
        let lease = self.sessions.get_mut(&session);
        if let Some(held) = lease.and_then(|lease| lease.entries.get_mut(&nonce)) {
            held.location = Location::Claims(claims);
        }
    }

    fn move_to_dead_letter(&mut self, object: &Object, place: ItemPlace, name: &Name) {
        let Some(mut item) = self.remove_item(object, place) else {
            return;
        };
        if self.planted.has(Bug::DeadLetterDropped) {
            return;
        }
        let object = self.object(Kind::Queue, name);
        (item.deliveries, item.id_counts) = (0, false);
        self.store(&object, place.priority, item, Duration::ZERO);
        self.touched.insert(object);
    }

    /// Removes a waiting consumer, and wakes the one behind it, which slept until its lease ended.
    pub(crate) fn leave_consumers(&mut self, object: &Object, arrival: u64) {
        if let Some(queue) = self.queues.get_mut(object) {
            queue.consumers.remove(&arrival);
            let behind = queue.consumers.range(arrival..).next();
            if let Some((session, nonce)) = behind.map(|(_, consumer)| (consumer.session, consumer.nonce)) {
                self.wake_request(session, nonce);
            }
        }
    }

    /// Makes items available again whose consumer left or was lost. Those of a consumer that left were never seen.
    pub(in crate::state) fn give_back_all(
        &mut self,
        object: &Object,
        places: impl IntoIterator<Item = ItemPlace>,
        cause: EndCause,
    ) {
        for place in places {
            let planted = self.planted;
            let queue = self.queues.get_mut(object);
            let Some(item) = queue.and_then(|queue| queue.items.get_mut(&place)) else {
                continue;
            };
            if cause == EndCause::Left && !planted.has(Bug::WithdrawalCounts) {
                item.deliveries = item.deliveries.saturating_sub(1);
            }
            if (planted.has(Bug::WithdrawalLosesItems) && cause == EndCause::Left)
                || (planted.has(Bug::CrashedItemDropped) && cause == EndCause::Lost && item.deliveries > 2)
            {
                self.remove_item(object, place);
                continue;
            }
            self.give_back(object, place, Duration::ZERO);
        }
    }

    /// Makes an item available again at its old place.
    fn give_back(&mut self, object: &Object, place: ItemPlace, delay: Duration) {
        if self.planted.has(Bug::ReturnedItemLast)
            && let Some(item) = self.queues.get_mut(object).and_then(|queue| queue.items.remove(&place))
        {
            return self.store(object, place.priority, item, delay);
        }
        self.make_available(object, place, delay);
    }

    pub(crate) fn ack(&mut self, member: &Member, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>> {
        let ack = |state: &mut Self| {
            let mut left = Vec::new();
            for claim in claims {
                left.push(match state.settle_claim(member, claim)? {
                    Some((object, place)) if state.planted.has(Bug::AckIgnored) => {
                        state.give_back(&object, place, Duration::from_secs(60));
                        EndOutcome::Ended
                    }
                    Some((object, place)) => {
                        state.remove_item(&object, place);
                        EndOutcome::Ended
                    }
                    None if state.planted.has(Bug::LateAckSucceeds) => EndOutcome::Ended,
                    None => EndOutcome::NotHeld,
                });
            }
            Ok(Outcome::Ends(left))
        };
        self.once(member, marker, ack)?.ends()
    }

    pub(crate) fn nack(&mut self, member: &Member, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>> {
        let nack = |state: &mut Self| {
            let mut left = Vec::new();
            for back in returns {
                left.push(match state.settle_claim(member, &back.claim)? {
                    Some((object, place)) => {
                        match state.planted.has(Bug::NackLosesItem) {
                            true => drop(state.remove_item(&object, place)),
                            false => state.give_back(&object, place, back.delay),
                        }
                        EndOutcome::Ended
                    }
                    None => EndOutcome::NotHeld,
                });
            }
            Ok(Outcome::Ends(left))
        };
        self.once(member, marker, nack)?.ends()
    }

    /// Ends a claim of `member`; returns the item, or `None` if the claim is gone.
    fn settle_claim(&mut self, member: &Member, claim: &Claim) -> Result<Option<(Object, ItemPlace)>> {
        // One that has ended already is no error.
        let _ = self.begin(member, &claim.request);
        let object = self.object_of(&claim.request);
        let held = self
            .lease(member)?
            .entries
            .get(&claim.request.nonce())
            .filter(|held| held.object == object);
        let place = match held.map(|held| &held.location) {
            Some(Location::Claims(claims)) => claims.get(&claim.token).copied(),
            _ => None,
        };
        let Some(place) = place else {
            return Ok(None);
        };
        self.end_claim(member.session, claim.request.nonce(), claim.token);
        self.touched.insert(object.clone());
        Ok(Some((object, place)))
    }

    /// Removes a claim from its session; returns whether it was the last one of its take.
    pub(super) fn end_claim(&mut self, session: u64, nonce: Nonce, token: FencingToken) -> bool {
        let Some(lease) = self.sessions.get_mut(&session) else {
            return false;
        };
        let Some(StoredEntry {
            location: Location::Claims(claims),
            ..
        }) = lease.entries.get_mut(&nonce)
        else {
            return false;
        };
        claims.remove(&token);
        let last = claims.is_empty();
        if last {
            lease.entries.remove(&nonce);
            // A late copy of the take must not take more.
            lease.ended_nonces.insert(nonce);
        }
        last
    }

    pub(crate) fn withdraw_takes(&mut self, member: &Member, requests: &[Request]) -> Result<()> {
        for request in requests {
            let _ = self.begin(member, request);
            let lease = self.lease(member)?;
            lease.ended_nonces.insert(request.nonce());
            if let Some(held) = lease.entries.remove(&request.nonce()) {
                self.end_entry(member.session, request.nonce(), held, EndCause::Left);
            }
        }
        Ok(())
    }
}
