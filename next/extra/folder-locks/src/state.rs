//! The state of a namespace, and the steps on it. Each step runs alone, at one instant.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenure_core::backend::{Departure, EndOutcome, Entry, EntryState, Grant, Joined, Marker, Nonce, Request};
use tenure_core::name::{escape, object_at, path};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, LossReason, Name, Namespace, Result};

/// The version of this layout.
const LAYOUT: u32 = 1;

/// The greatest token floor. It leaves 2^52 tokens.
const GREATEST_FLOOR: u64 = 1 << 52;

#[derive(Serialize, Deserialize)]
pub(crate) struct State {
    layout: u32,
    /// The kernel's name of the time since the last reboot. Leases of another boot have ended.
    boot: String,
    last_token: u64,
    last_session: u64,
    sessions: BTreeMap<u64, Session>,
    /// The places of each object in the order of arrival. The first one holds. No queue is empty.
    queues: BTreeMap<String, Vec<Place>>,
    #[serde(skip)]
    now: Duration,
}

#[derive(Serialize, Deserialize)]
struct Session {
    /// For operators who read the file.
    label: String,
    ttl: Duration,
    /// Since the reboot.
    ends: Duration,
    /// Every nonce below this one has ended, or has a place.
    oldest_open: u64,
    /// The nonces from there on that have ended, as ranges: the first one, and the one after the last.
    ended: BTreeMap<u64, u64>,
    /// The last step of each slot, and for each of its departures whether it ended something.
    slots: BTreeMap<u16, (u64, Vec<bool>)>,
}

#[derive(Serialize, Deserialize)]
struct Place {
    session: u64,
    nonce: u64,
    token: Option<u64>,
}

/// The result of one look of a waiter.
pub(crate) enum Look {
    Granted(Grant),
    /// The place before it ends by itself at this instant, at the latest.
    Until(Duration),
}

impl Session {
    fn has_ended(&self, nonce: u64) -> bool {
        let before = self.ended.range(..=nonce).next_back();
        nonce < self.oldest_open || before.is_some_and(|(_, end)| nonce < *end)
    }

    fn end(&mut self, nonce: u64) {
        if self.has_ended(nonce) {
            return;
        }
        let end = self.ended.remove(&(nonce + 1)).unwrap_or(nonce + 1);
        match self.ended.range_mut(..nonce).next_back() {
            Some((_, before)) if *before == nonce => *before = end,
            _ => drop(self.ended.insert(nonce, end)),
        }
    }

    /// Forgets the nonces below the oldest one in use. A late request of theirs is refused all the same.
    fn forget(&mut self, request: &Request) {
        let oldest = self.oldest_open.max(request.oldest_open().get());
        self.oldest_open = oldest;
        self.ended.retain(|_, end| *end > oldest);
    }
}

impl State {
    pub(crate) fn parse(text: &[u8], boot: &str) -> Result<Self> {
        let new = || Self {
            layout: LAYOUT,
            boot: boot.into(),
            last_token: 0,
            last_session: 0,
            sessions: BTreeMap::new(),
            queues: BTreeMap::new(),
            now: Duration::ZERO,
        };
        if text.is_empty() {
            return Ok(new());
        }
        let broken = |error| Error::new(ErrorKind::Internal, "the folder's state is no state").with_source(error);
        let found: Self = serde_json::from_slice(text).map_err(broken)?;
        if found.layout != LAYOUT {
            let message = format!("the folder has layout {}, this is for layout {LAYOUT}", found.layout);
            return Err(Error::new(ErrorKind::Config, message));
        }
        Ok(match found.boot == boot {
            true => found,
            false => Self {
                last_token: found.last_token,
                last_session: found.last_session,
                ..new()
            },
        })
    }

    pub(crate) fn text(&self) -> Result<Vec<u8>> {
        let broken = |error| Error::new(ErrorKind::Internal, "cannot write the folder's state").with_source(error);
        serde_json::to_vec(self).map_err(broken)
    }

    /// Begins a step at `now`: removes the sessions that have ended.
    pub(crate) fn begin(&mut self, now: Duration) {
        self.now = now;
        let ended = self.sessions.iter().filter(|(_, session)| session.ends <= now);
        self.remove_sessions(&ended.map(|(number, _)| *number).collect());
    }

    fn remove_sessions(&mut self, ended: &BTreeSet<u64>) {
        if ended.is_empty() {
            return;
        }
        self.sessions.retain(|number, _| !ended.contains(number));
        for object in self.queues.keys().cloned().collect::<Vec<_>>() {
            // All of them before the next grant, so that none of them is granted anything.
            self.leave_queue(&object, |place| ended.contains(&place.session));
        }
    }

    /// Removes places, and grants the first one that is left.
    fn leave_queue(&mut self, object: &str, leaves: impl Fn(&Place) -> bool) {
        let Some(queue) = self.queues.get_mut(object) else {
            return;
        };
        queue.retain(|place| !leaves(place));
        match queue.first_mut() {
            None => drop(self.queues.remove(object)),
            Some(first) if first.token.is_none() => {
                self.last_token += 1;
                first.token = Some(self.last_token);
            }
            Some(_) => {}
        }
    }

    pub(crate) fn open(&mut self, ttl: Duration, label: String) -> u64 {
        self.last_session += 1;
        let session = Session {
            label,
            ttl,
            ends: self.now + ttl,
            oldest_open: 0,
            ended: BTreeMap::new(),
            slots: BTreeMap::new(),
        };
        self.sessions.insert(self.last_session, session);
        self.last_session
    }

    pub(crate) fn renew(&mut self, session: u64) -> Result<()> {
        let now = self.now;
        let session = self.session(session)?;
        session.ends = now + session.ttl;
        Ok(())
    }

    /// Ends a session. One that has ended already is no error.
    pub(crate) fn revoke(&mut self, session: u64) -> Result<()> {
        self.remove_sessions(&BTreeSet::from([session]));
        Ok(())
    }

    pub(crate) fn raise_token_floor(&mut self, floor: FencingToken) -> Result<()> {
        if floor.get() > GREATEST_FLOOR {
            let message = format!("a token floor of {floor}: {GREATEST_FLOOR} is the most");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        self.last_token = self.last_token.max(floor.get().saturating_sub(1));
        Ok(())
    }

    fn session(&mut self, number: u64) -> Result<&mut Session> {
        let session = self.sessions.get_mut(&number);
        session.ok_or_else(|| Error::lost(LossReason::Expired))
    }

    /// Returns the place of a request and the session of the place before it.
    fn place(&self, session: u64, request: &Request) -> Option<(&Place, Option<u64>)> {
        let queue = self.queues.get(&object(request.kind(), request.name()))?;
        let own = |place: &Place| (place.session, place.nonce) == (session, request.nonce().get());
        let index = queue.iter().position(own)?;
        let before = index.checked_sub(1).map(|before| queue[before].session);
        Some((&queue[index], before))
    }

    pub(crate) fn join(&mut self, space: &Namespace, session: u64, request: &Request, wait: bool) -> Result<Joined> {
        self.session(session)?.forget(request);
        let (object, nonce) = (object(request.kind(), request.name()), request.nonce().get());
        if self.place(session, request).is_none() {
            if self.session(session)?.has_ended(nonce) {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the request was withdrawn before it arrived",
                ));
            }
            if self.queues.contains_key(&object) && !wait {
                return Ok(Joined::Busy);
            }
            let place = Place {
                session,
                nonce,
                token: None,
            };
            self.queues.entry(object.clone()).or_default().push(place);
            self.leave_queue(&object, |_| false);
        }
        Ok(match self.look(space, session, request)? {
            Look::Granted(grant) => Joined::Granted(grant),
            Look::Until(_) => Joined::Waiting,
        })
    }

    pub(crate) fn look(&mut self, space: &Namespace, session: u64, request: &Request) -> Result<Look> {
        let own = self.session(session)?.ends;
        let gone = || Error::new(ErrorKind::Conflict, "the request has no place any more");
        let (place, before) = self.place(session, request).ok_or_else(gone)?;
        Ok(match place.token {
            Some(token) => Look::Granted(grant(space, request.kind(), request.name(), place, token)),
            None => {
                let before = before.and_then(|before| self.sessions.get(&before));
                Look::Until(before.map_or(own, |before| before.ends.min(own)))
            }
        })
    }

    pub(crate) fn leave(&mut self, session: u64, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let (slot, nonce) = (marker.slot.get(), marker.nonce.get());
        let ended = match self.session(session)?.slots.get(&slot) {
            Some((last, ended)) if *last == nonce => ended.clone(),
            Some((last, _)) if *last > nonce => {
                return Err(Error::new(ErrorKind::Conflict, "a later step has used the slot"));
            }
            _ => {
                let leaving = departures.iter().map(|departure| self.depart(session, departure));
                let ended = leaving.collect::<Result<Vec<_>>>()?;
                let session = self.session(session)?;
                // Markers and requests share their numbers, so that the ended ones make few ranges.
                session.end(nonce);
                session.slots.insert(slot, (nonce, ended.clone()));
                ended
            }
        };
        let outcome = |ended| match ended {
            true => EndOutcome::Ended,
            false => EndOutcome::NotHeld,
        };
        Ok(ended.into_iter().map(outcome).collect())
    }

    fn depart(&mut self, session: u64, departure: &Departure) -> Result<bool> {
        let request = &departure.request;
        let place = self.place(session, request).map(|(place, _)| place.token);
        let fenced = departure.token.map(FencingToken::get);
        if fenced.is_some() && place.is_some() && place != Some(fenced) {
            return Ok(false);
        }
        let nonce = request.nonce().get();
        let own = self.session(session)?;
        own.forget(request);
        own.end(nonce);
        let object = object(request.kind(), request.name());
        self.leave_queue(&object, |place| (place.session, place.nonce) == (session, nonce));
        Ok(place.is_some())
    }

    pub(crate) fn entries(&mut self, space: &Namespace, session: u64) -> Result<Vec<Entry>> {
        self.session(session)?;
        let mut entries = Vec::new();
        for (object, queue) in &self.queues {
            let Some((kind, name)) = object_at(object) else {
                continue;
            };
            for place in queue.iter().filter(|place| place.session == session) {
                let state = match place.token {
                    Some(token) => EntryState::Granted(vec![grant(space, kind, &name, place, token)]),
                    None => EntryState::Waiting,
                };
                entries.push(Entry::new(Nonce::new(place.nonce), kind, name.clone(), state));
            }
        }
        Ok(entries)
    }
}

/// Returns how the state calls an object: `object_at` is the inverse.
fn object(kind: Kind, name: &Name) -> String {
    format!("{kind}/{}", escape(name.as_str()))
}

fn grant(space: &Namespace, kind: Kind, name: &Name, place: &Place, token: u64) -> Grant {
    let key = format!("{}/{}-{}", path(space, kind, name), place.session, place.nonce);
    Grant::new(FencingToken::new(token), key)
}
