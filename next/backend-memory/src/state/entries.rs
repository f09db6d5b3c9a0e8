//! The entries of sessions, and the records that keep a repeated or late request from acting.

use std::collections::BTreeMap;
use std::ops::Bound;

use tenure_core::backend::{
    CommitRecord, Departure, EndOutcome, Entry, EntryState, Grant, Marker, Mode, Nonce, Page, Request,
};
use tenure_core::{Error, ErrorKind, FencingToken, Result};

use super::queue::ItemPlace;
use super::{EndCause, Member, Object, State, no_place, too_late};
use crate::planted::Bug;

/// How many entries a page has.
const PAGE: usize = 250;

/// An entry of a session.
#[derive(Clone)]
pub(super) struct StoredEntry {
    pub(super) object: Object,
    pub(super) location: Location,
}

/// Where an entry is found.
#[derive(Clone)]
pub(super) enum Location {
    /// In a wait queue, by its number of arrival.
    WaitQueue(u64),
    /// Among the waiting consumers of a queue, by its number of arrival.
    Consumer(u64),
    /// At these items of a queue, by the token of each claim.
    Claims(BTreeMap<FencingToken, ItemPlace>),
    /// In the generation of a double barrier, by its number of arrival.
    Generation(u64),
}

/// The answer of a step, as its slot keeps it.
#[derive(Clone)]
pub(super) enum Outcome {
    Done,
    Ends(Vec<EndOutcome>),
    Count(u64),
    Committed(CommitRecord),
    FenceLost,
    /// The mark that keeps a commit from being carried out.
    Aborted,
}

/// The nonces of requests that have ended, as ranges: from the first one to the one after the last. They are few, because all
/// below the oldest request in flight are one number.
#[derive(Default)]
pub(super) struct EndedNonces {
    below: u64,
    ranges: BTreeMap<u64, u64>,
}

impl EndedNonces {
    fn contains(&self, nonce: Nonce) -> bool {
        let nonce = nonce.get();
        nonce < self.below
            || self
                .ranges
                .range(..=nonce)
                .next_back()
                .is_some_and(|(_, &end)| nonce < end)
    }

    pub(super) fn insert(&mut self, nonce: Nonce) {
        if self.contains(nonce) {
            return;
        }
        let nonce = nonce.get();
        let end = self.ranges.remove(&(nonce + 1)).unwrap_or(nonce + 1);
        match self.ranges.range_mut(..nonce).next_back() {
            Some((_, before)) if *before == nonce => *before = end,
            _ => drop(self.ranges.insert(nonce, end)),
        }
    }

    /// Forgets what is below `oldest`, and refuses all of it.
    fn forget_below(&mut self, oldest: Nonce) {
        self.below = self.below.max(oldest.get());
        while let Some(range) = self.ranges.first_entry()
            && *range.key() < self.below
        {
            let end = range.remove();
            if end > self.below {
                self.ranges.insert(self.below, end);
            }
        }
    }

    /// Returns the lowest nonce above `last` that is not refused as one of those below the oldest request in flight.
    pub(super) fn first_above(&self, last: Nonce) -> Nonce {
        Nonce::new(self.below.max(last.get() + 1))
    }

    pub(super) fn len(&self) -> usize {
        self.ranges.len()
    }
}

impl Outcome {
    pub(super) fn ends(self) -> Result<Vec<EndOutcome>> {
        match self {
            Self::Ends(left) => Ok(left),
            _ => Err(Self::of_another_step()),
        }
    }

    pub(super) fn count(self) -> Result<u64> {
        match self {
            Self::Count(count) => Ok(count),
            _ => Err(Self::of_another_step()),
        }
    }

    pub(super) fn of_another_step() -> Error {
        Error::new(ErrorKind::Internal, "two steps of one session have the same nonce")
    }
}

impl State {
    /// Begins a step of `request`: notes its nonce, and returns whether it has an entry. One that has ended is refused.
    pub(super) fn begin(&mut self, member: &Member, request: &Request) -> Result<bool> {
        let planted = self.planted;
        let lease = self.lease(member)?;
        lease.last_nonce = lease.last_nonce.max(request.nonce());
        lease.ended_nonces.forget_below(request.oldest_open());
        if lease.entries.contains_key(&request.nonce()) {
            return Ok(!planted.has(Bug::RepeatedJoinJoinsAgain));
        }
        match lease.ended_nonces.contains(request.nonce()) && !planted.has(Bug::LateJoinActs) {
            true => Err(too_late()),
            false => Ok(false),
        }
    }

    /// Gives the session an entry.
    pub(super) fn add_entry(
        &mut self,
        member: &Member,
        nonce: Nonce,
        object: &Object,
        location: Location,
    ) -> Result<()> {
        let capacity = self.capacity;
        let lease = self.lease(member)?;
        if lease.entries.len() >= capacity {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a session has at most {capacity} entries: open another session"),
            ));
        }
        let object = object.clone();
        lease.entries.insert(nonce, StoredEntry { object, location });
        Ok(())
    }

    /// Returns the entry of `request`.
    pub(super) fn entry(&mut self, member: &Member, request: &Request) -> Result<StoredEntry> {
        let object = self.object_of(request);
        let lease = self.lease(member)?;
        let held = lease.entries.get(&request.nonce());
        held.filter(|held| held.object == object).cloned().ok_or_else(no_place)
    }

    /// Runs a step that leaves no entry once for its marker.
    pub(super) fn once(
        &mut self,
        member: &Member,
        marker: Marker,
        step: impl FnOnce(&mut Self) -> Result<Outcome>,
    ) -> Result<Outcome> {
        let planted = self.planted;
        let lease = self.lease(member)?;
        lease.last_nonce = lease.last_nonce.max(marker.nonce);
        match lease.slots.get(&marker.slot) {
            Some((_, Outcome::Aborted)) if planted.has(Bug::LateCommitLands) => {}
            Some((last, outcome)) if *last == marker.nonce && !planted.has(Bug::RepeatedStepActsAgain) => {
                return Ok(outcome.clone());
            }
            Some((last, _)) if *last > marker.nonce && !planted.has(Bug::LateStepActs) => {
                return Err(too_late());
            }
            _ => {}
        }
        let outcome = step(self)?;
        let lease = self.lease(member)?;
        lease.slots.insert(marker.slot, (marker.nonce, outcome.clone()));
        Ok(outcome)
    }

    /// Ends requests of wait queues or double barriers.
    pub(crate) fn leave(
        &mut self,
        member: &Member,
        marker: Marker,
        departures: &[Departure],
    ) -> Result<Vec<EndOutcome>> {
        let leave = |state: &mut Self| {
            let left = departures.iter().map(|departure| state.depart(member, departure));
            left.collect::<Result<_>>().map(Outcome::Ends)
        };
        self.once(member, marker, leave)?.ends()
    }

    fn depart(&mut self, member: &Member, departure: &Departure) -> Result<EndOutcome> {
        let request = &departure.request;
        // One that has ended already is no error.
        let _ = self.begin(member, request);
        let held = self.entry(member, request).ok();
        let granted = held.as_ref().map(|held| self.grants(member.session, held));
        let Some((held, granted)) = held.zip(granted) else {
            self.lease(member)?.ended_nonces.insert(request.nonce());
            if departure.token.is_some() && self.planted.has(Bug::ReleaseUnfenced) {
                return Ok(self.release_any_holder(&self.object_of(request)));
            }
            return Ok(EndOutcome::NotHeld);
        };
        let under = granted.first().map(|grant| grant.token);
        if departure.token.is_some() && departure.token != under {
            return Ok(EndOutcome::NotHeld);
        }
        if self.planted.has(Bug::WithdrawalIgnored) && under.is_none() {
            return Ok(EndOutcome::Ended);
        }
        let lease = self.lease(member)?;
        lease.entries.remove(&request.nonce());
        lease.ended_nonces.insert(request.nonce());
        self.end_entry(member.session, request.nonce(), held, EndCause::Left);
        Ok(EndOutcome::Ended)
    }

    /// Returns a page of the session's entries, those above `after`.
    pub(crate) fn page(&mut self, member: &Member, after: Option<Nonce>) -> Result<Page> {
        let lease = self.lease(member)?;
        let above = after.map_or(Bound::Unbounded, Bound::Excluded);
        let held: Vec<_> = lease
            .entries
            .range((above, Bound::Unbounded))
            .take(PAGE)
            .map(|(n, h)| (*n, h.clone()))
            .collect();
        let next = held.get(PAGE - 1).map(|(nonce, _)| nonce.get().to_be_bytes().to_vec());
        let mut entries = Vec::new();
        for (nonce, held) in held {
            let granted = self.grants(member.session, &held);
            let state = match granted.is_empty() {
                true => EntryState::Waiting,
                false => EntryState::Granted(granted),
            };
            if self.planted.has(Bug::EntriesOmit) && state != EntryState::Waiting {
                continue;
            }
            let mode = self.mode(&held);
            entries.push(Entry::new(nonce, held.object.kind, held.object.name, state).mode(mode));
        }
        Ok(match next {
            Some(next) => Page::with_next(entries, next),
            None => Page::last(entries),
        })
    }

    fn mode(&self, held: &StoredEntry) -> Mode {
        match &held.location {
            Location::WaitQueue(arrival) => self.mode_in_wait_queue(&held.object, *arrival),
            _ => Mode::Exclusive,
        }
    }

    /// Returns the grants of an entry: none while it waits.
    pub(super) fn grants(&self, session: u64, held: &StoredEntry) -> Vec<Grant> {
        let object = &held.object;
        let grant = |token, number| Grant::new(token, self.key(object, session, number));
        match &held.location {
            Location::WaitQueue(arrival) => self
                .token_in_wait_queue(object, *arrival)
                .map(|token| grant(token, *arrival))
                .into_iter()
                .collect(),
            Location::Consumer(_) => Vec::new(),
            Location::Claims(claims) => claims
                .iter()
                .map(|(token, place)| grant(*token, place.number))
                .collect(),
            Location::Generation(arrival) => self
                .token_in_generation(object, *arrival)
                .map(|token| grant(token, *arrival))
                .into_iter()
                .collect(),
        }
    }
}
