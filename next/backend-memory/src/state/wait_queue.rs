//! Wait queues: locks, read-write locks and elections.
//!
//! A queue has its places in the order of arrival: first the holders, then the waiters. A waiter sleeps until the lease of
//! the place before it ends. The step that grants a waiter wakes it, and a place that leaves the middle wakes the one
//! behind it, so a release wakes only those that it grants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tenure_core::backend::{EndOutcome, Grant, Joined, Leader, LeaderUpdate, Marker, Mode, Nonce, Request};
use tenure_core::{Error, FencingToken, Kind, LossReason, Name, Result};

use super::entries::{Location, Outcome};
use super::{EndCause, Look, Member, Object, State, no_place};
use crate::planted::Bug;

mod election;

/// The wait queue of one object.
#[derive(Default)]
pub(super) struct WaitQueue {
    /// By number of arrival.
    places: BTreeMap<u64, Place>,
    waiting: BTreeSet<u64>,
    /// The places that want the object alone, holders and waiters.
    exclusive: BTreeSet<u64>,
    /// The number of the election's state.
    version: u64,
    /// Whether a planted defect has reversed the order.
    reversed: bool,
}

struct Place {
    session: u64,
    nonce: Nonce,
    mode: Mode,
    token: Option<FencingToken>,
    /// The value that a candidate or leader proclaims.
    value: Arc<[u8]>,
    /// The number of the last proclamation.
    proclaimed: u64,
    /// The value that the candidate joined with, for a planted defect.
    brought: Arc<[u8]>,
}

impl WaitQueue {
    fn holders(&self) -> usize {
        self.places.len() - self.waiting.len()
    }

    /// Returns whether the object has room beside its holders for `mode`.
    fn has_room(&self, mode: Mode) -> bool {
        let holder_is_alone = || {
            // Holders precede waiters, so only the first exclusive place can hold.
            let alone = self.exclusive.first();
            alone.is_some_and(|place| !self.waiting.contains(place))
        };
        self.holders() == 0 || (mode == Mode::Shared && !holder_is_alone())
    }

    fn next(&self) -> Option<u64> {
        match self.reversed {
            true => self.waiting.last(),
            false => self.waiting.first(),
        }
        .copied()
    }

    fn leader(&self) -> Option<&Place> {
        let (_, first) = self.places.first_key_value()?;
        first.token.map(|_| first)
    }
}

/// Joining, waiting, leaving.
impl State {
    pub(crate) fn join(
        &mut self,
        member: &Member,
        request: &Request,
        mode: Mode,
        value: Option<&[u8]>,
        wait: bool,
    ) -> Result<Joined> {
        let object = self.object_of(request);
        if !self.begin(member, request)? {
            let free = self
                .wait_queues
                .get(&object)
                .is_none_or(|queue| queue.waiting.is_empty() && queue.has_room(mode));
            if !free && !wait && !self.planted.has(Bug::TryLeavesEntry) {
                return Ok(Joined::Busy);
            }
            let arrival = self.next_arrival();
            self.add_entry(member, request.nonce(), &object, Location::WaitQueue(arrival))?;
            let value = Arc::<[u8]>::from(value.unwrap_or_default());
            let queue = self.wait_queues.entry(object.clone()).or_default();
            queue.waiting.insert(arrival);
            if mode != Mode::Shared {
                queue.exclusive.insert(arrival);
            }
            let place = Place {
                session: member.session,
                nonce: request.nonce(),
                mode,
                token: None,
                brought: Arc::clone(&value),
                value,
                proclaimed: 0,
            };
            queue.places.insert(arrival, place);
            if self.planted.has(Bug::ReaderOvertakes) && mode == Mode::Shared && queue.has_room(mode) {
                self.grant_place(&object, arrival);
            }
            self.grant(&object);
            if self.planted.has(Bug::TryLeavesEntry) && !free && !wait {
                return Ok(Joined::Busy);
            }
        }
        Ok(match self.look_in_wait_queue(member, request)? {
            Look::Done(grant) => Joined::Granted(grant),
            Look::Until(_) => Joined::Waiting,
        })
    }

    /// Returns the grant of `request`, or how long it has to wait at least.
    pub(crate) fn look_in_wait_queue(&mut self, member: &Member, request: &Request) -> Result<Look<Grant>> {
        let held = self.entry(member, request)?;
        let Location::WaitQueue(arrival) = held.location else {
            return Err(no_place());
        };
        if let Some(grant) = self.grants(member.session, &held).into_iter().next() {
            return Ok(Look::Done(grant));
        }
        let queue = self.wait_queues.get(&held.object);
        let before = queue.and_then(|queue| queue.places.range(..arrival).next_back());
        let before = before.map(|(_, place)| place.session);
        Ok(Look::Until(self.first_end(before.into_iter().chain([member.session]))))
    }

    pub(super) fn mode_in_wait_queue(&self, object: &Object, arrival: u64) -> Mode {
        let place = self
            .wait_queues
            .get(object)
            .and_then(|queue| queue.places.get(&arrival));
        place.map_or(Mode::Exclusive, |place| place.mode)
    }

    pub(super) fn token_in_wait_queue(&self, object: &Object, arrival: u64) -> Option<FencingToken> {
        self.wait_queues.get(object)?.places.get(&arrival)?.token
    }

    /// Grants the first waiters for which there is room.
    pub(super) fn grant(&mut self, object: &Object) {
        while let Some(queue) = self.wait_queues.get(object)
            && let Some(next) = queue.next()
            && let Some(place) = queue.places.get(&next)
        {
            let mut room = queue.has_room(place.mode);
            if self.planted.has(Bug::TwoHolders) && object.kind != Kind::RwLock {
                room |= queue.holders() < 2;
            }
            if self.planted.has(Bug::ReaderBesideWriter) {
                room |= place.mode == Mode::Shared;
            }
            if self.planted.has(Bug::WriterBesideReaders) {
                let own = |other: &Place| other.session == place.session && other.token.is_some();
                room |= queue.has_room(Mode::Shared) && queue.places.values().any(own);
            }
            if !room {
                return;
            }
            self.grant_place(object, next);
        }
    }

    fn grant_place(&mut self, object: &Object, arrival: u64) {
        let token = match self.planted.has(Bug::TokenRepeated) {
            true => FencingToken::new(1),
            false => self.next_token(),
        };
        let Some(queue) = self.wait_queues.get_mut(object) else {
            return;
        };
        queue.waiting.remove(&arrival);
        if let Some(place) = queue.places.get_mut(&arrival) {
            place.token = Some(token);
            let (session, nonce) = (place.session, place.nonce);
            self.wake_request(session, nonce);
            self.leader_changed(object);
        }
    }

    /// Removes a place, whose entry is gone. The next waiters are granted when the step is settled.
    pub(super) fn leave_wait_queue(&mut self, object: &Object, arrival: u64, cause: EndCause) {
        let Some(queue) = self.wait_queues.get_mut(object) else {
            return;
        };
        let waited = queue.waiting.contains(&arrival);
        if self.planted.has(Bug::DeadWaiterGranted) && waited && cause == EndCause::Lost {
            return;
        }
        queue.waiting.remove(&arrival);
        queue.exclusive.remove(&arrival);
        queue.places.remove(&arrival);
        let behind = queue
            .places
            .range(arrival..)
            .next()
            .map(|(_, place)| (place.session, place.nonce));
        queue.reversed |= self.planted.has(Bug::LeaveReorders) && waited && behind.is_some();
        if let Some((session, nonce)) = behind {
            // It slept until the lease of the removed place ended.
            self.wake_request(session, nonce);
        }
        if !waited {
            self.leader_changed(object);
        }
        if self
            .wait_queues
            .get(object)
            .is_some_and(|queue| queue.places.is_empty())
        {
            self.wait_queues.remove(object);
        }
    }

    /// Releases an object under any token: a planted defect.
    pub(super) fn release_any_holder(&mut self, object: &Object) -> EndOutcome {
        let leader = self.wait_queues.get(object).and_then(WaitQueue::leader);
        let Some((session, nonce)) = leader.map(|place| (place.session, place.nonce)) else {
            return EndOutcome::NotHeld;
        };
        let lease = self.sessions.get_mut(&session);
        if let Some(held) = lease.and_then(|lease| lease.entries.remove(&nonce)) {
            self.end_entry(session, nonce, held, EndCause::Lost);
        }
        EndOutcome::Ended
    }

    pub(crate) fn downgrade(
        &mut self,
        member: &Member,
        marker: Marker,
        request: &Request,
        token: FencingToken,
    ) -> Result<()> {
        let downgrade = |state: &mut Self| {
            let (object, arrival) = state.holding(member, request, token)?;
            if state.planted.has(Bug::DowngradeReleases) {
                return Ok(state.release_any_holder(&object)).map(|_| Outcome::Done);
            }
            let next = state.planted.has(Bug::DowngradeRaisesToken).then(|| state.next_token());
            if let Some(queue) = state.wait_queues.get_mut(&object)
                && let Some(place) = queue.places.get_mut(&arrival)
            {
                place.mode = Mode::Shared;
                place.token = next.or(place.token);
                queue.exclusive.remove(&arrival);
            }
            if !state.planted.has(Bug::DowngradeGrantsNoReader) {
                state.touched.insert(object);
            }
            Ok(Outcome::Done)
        };
        self.once(member, marker, downgrade).map(drop)
    }

    /// Returns the object and the place that `request` holds under `token`.
    fn holding(&mut self, member: &Member, request: &Request, token: FencingToken) -> Result<(Object, u64)> {
        self.lease(member)?;
        match self.entry(member, request) {
            Ok(held) => match held.location {
                Location::WaitQueue(arrival) if self.token_in_wait_queue(&held.object, arrival) == Some(token) => {
                    Ok((held.object, arrival))
                }
                _ => Err(Error::lost(LossReason::Revoked)),
            },
            Err(_) => Err(Error::lost(LossReason::Revoked)),
        }
    }

    /// Returns whether the place of a holder has its object alone.
    pub(super) fn is_exclusive(&self, object: &Object, arrival: u64) -> bool {
        self.wait_queues
            .get(object)
            .is_some_and(|queue| queue.exclusive.contains(&arrival))
    }
}
