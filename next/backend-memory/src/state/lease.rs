//! Sessions and their leases.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tenure_core::backend::{Key, Nonce, SessionEvent, SessionEvents, Slot};
use tenure_core::clock::Moment;
use tenure_core::{Error, ErrorKind, LossReason, Result};

use super::entries::{EndedNonces, Location, Outcome, StoredEntry};
use super::{EndCause, State};
use crate::planted::Bug;

/// How a session names itself with each step.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) session: u64,
    /// Rises with each resumption, so that a process that has detached the session cannot change it any more.
    incarnation: u64,
    /// Why the session ended, kept here so that the store can forget it.
    ended: Arc<OnceLock<LossReason>>,
}

/// A session.
pub(super) struct SessionRecord {
    label: String,
    ttl: Duration,
    opened: Moment,
    pub(super) ends: Moment,
    incarnation: u64,
    detached: bool,
    ended: Arc<OnceLock<LossReason>>,
    pub(super) events: SessionEvents,
    pub(super) entries: BTreeMap<Nonce, StoredEntry>,
    pub(super) ended_nonces: EndedNonces,
    /// By slot: the last step and its answer.
    pub(super) slots: BTreeMap<Slot, (Nonce, Outcome)>,
    /// The keys that end with the session.
    pub(super) leased: BTreeSet<Key>,
    pub(super) last_nonce: Nonce,
}

/// Leases.
impl State {
    pub(crate) fn open(&mut self, session: u64, ttl: Duration, label: &str, events: SessionEvents) -> Member {
        if self.planted.has(Bug::TokensRestart) && self.sessions.is_empty() {
            self.last_token = 0;
        }
        let ttl = match self.planted.has(Bug::TtlCapped) {
            true => ttl.min(Duration::from_secs(5)),
            false => ttl,
        };
        let ended = Arc::<OnceLock<_>>::default();
        let lease = SessionRecord {
            label: label.to_owned(),
            ttl,
            opened: self.now,
            ends: self.now,
            incarnation: 0,
            detached: false,
            ended: Arc::clone(&ended),
            events,
            entries: BTreeMap::new(),
            ended_nonces: EndedNonces::default(),
            slots: BTreeMap::new(),
            leased: BTreeSet::new(),
            last_nonce: Nonce::new(0),
        };
        self.sessions.insert(session, lease);
        self.extend(session);
        Member {
            session,
            incarnation: 0,
            ended,
        }
    }

    pub(crate) fn labels(&self) -> Vec<(u64, String)> {
        let sessions = self.sessions.iter();
        sessions.map(|(number, lease)| (*number, lease.label.clone())).collect()
    }

    pub(crate) fn renew(&mut self, member: &Member) -> Result<()> {
        self.lease(member)?;
        self.extend(member.session);
        Ok(())
    }

    /// Lets the lease end a TTL after this step.
    fn extend(&mut self, session: u64) {
        let Some(lease) = self.sessions.get_mut(&session) else {
            return;
        };
        self.leases.remove(&(lease.ends, session));
        let mut ttl = lease.ttl;
        if self.planted.has(Bug::ExpiresEarly) {
            ttl = ttl * 2 / 3;
        }
        if self.planted.has(Bug::NeverExpires) {
            ttl *= 1000;
        }
        lease.ends = self.now + ttl;
        if self.planted.has(Bug::EndsAfterFiveTtls) {
            lease.ends = lease.ends.min(lease.opened + lease.ttl * 5);
        }
        self.leases.insert((lease.ends, session));
        if self.planted.has(Bug::HeldBarrierLapses) && self.now > lease.opened + lease.ttl * 2 {
            let keys = std::mem::take(&mut lease.leased);
            self.drop_leased(keys);
        }
    }

    pub(crate) fn revoke(&mut self, member: &Member) -> Result<()> {
        match self.lease(member) {
            Err(error) if error.loss() == Some(LossReason::Detached) => Err(error),
            Err(_) => Ok(()),
            Ok(_) => {
                self.end_session(member.session, LossReason::Closed);
                Ok(())
            }
        }
    }

    pub(crate) fn detach(&mut self, member: &Member, kept: &[Nonce]) -> Result<()> {
        if let Some(lease) = self.sessions.get(&member.session)
            && (lease.detached, lease.incarnation) == (true, member.incarnation)
        {
            // Repeated, because the answer was lost.
            return Ok(());
        }
        let kept: BTreeSet<_> = match self.planted.has(Bug::DetachFreesAll) {
            true => BTreeSet::new(),
            false => kept.iter().copied().collect(),
        };
        let lease = self.lease(member)?;
        lease.detached = true;
        let (stay, go) = std::mem::take(&mut lease.entries)
            .into_iter()
            .partition(|(nonce, _)| kept.contains(nonce));
        lease.entries = stay;
        // The guards of held barriers are gone, and no reclaim exists for them.
        let leased = std::mem::take(&mut lease.leased);
        self.end_entries(member.session, go);
        self.drop_leased(leased);
        Ok(())
    }

    /// Continues a detached session. Returns its new identity, its TTL, and a nonce above all of its nonces.
    pub(crate) fn resume(&mut self, session: u64, events: SessionEvents) -> Result<(Member, Duration, Nonce)> {
        let expired = || Error::lost(LossReason::Expired);
        let lease = self.sessions.get_mut(&session).ok_or_else(expired)?;
        if !lease.detached && !self.planted.has(Bug::ResumedTwice) {
            let message = "the session is not detached: it was resumed already, or its process still has it";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        lease.detached = false;
        lease.incarnation += 1;
        lease.events = events;
        let member = Member {
            session,
            incarnation: lease.incarnation,
            ended: Arc::clone(&lease.ended),
        };
        let first = lease.ended_nonces.first_above(lease.last_nonce);
        let resumed = (member, lease.ttl, first);
        let arrivals: Vec<_> = lease.entries.values().cloned().collect();
        for held in arrivals {
            if let Location::WaitQueue(arrival) = held.location {
                self.reset_proclamations(&held.object, arrival);
            }
        }
        Ok(resumed)
    }

    /// Returns the session of `member`, if it may act.
    pub(super) fn lease(&mut self, member: &Member) -> Result<&mut SessionRecord> {
        let ended = || Error::lost(member.ended.get().copied().unwrap_or(LossReason::Expired));
        let lease = self.sessions.get_mut(&member.session).ok_or_else(ended)?;
        let acts = !lease.detached && lease.incarnation == member.incarnation;
        match acts || self.planted.has(Bug::DetachedActs) {
            true => Ok(lease),
            false => Err(Error::lost(LossReason::Detached)),
        }
    }

    pub(super) fn expire_sessions(&mut self) {
        while let Some(&(ends, session)) = self.leases.first()
            && ends <= self.now
        {
            self.end_session(session, LossReason::Expired);
        }
        // Only now, so that nothing is granted to a session that has ended at the same time.
        self.settle();
    }

    /// Ends a session with all that it has; returns whether it was alive.
    pub(crate) fn end_session(&mut self, session: u64, reason: LossReason) -> bool {
        if reason == LossReason::Revoked {
            self.report(session, SessionEvent::Lost(reason));
        }
        let Some(lease) = self.sessions.remove(&session) else {
            return false;
        };
        self.leases.remove(&(lease.ends, session));
        // First, because the waiters of the session read it when they are woken.
        let _ = lease.ended.set(reason);
        self.end_entries(session, lease.entries);
        if !self.planted.has(Bug::LeasedKeyOutlives) {
            self.drop_leased(lease.leased);
        }
        true
    }

    fn end_entries(&mut self, session: u64, entries: BTreeMap<Nonce, StoredEntry>) {
        for (nonce, held) in entries {
            self.end_entry(session, nonce, held, EndCause::Lost);
        }
    }

    /// Ends one request of a session on an operator's command; returns whether it existed.
    pub(crate) fn take_away(&mut self, session: u64, nonce: Nonce) -> bool {
        let lease = self.sessions.get_mut(&session);
        let Some(held) = lease.and_then(|lease| lease.entries.remove(&nonce)) else {
            return false;
        };
        self.end_entry(session, nonce, held, EndCause::Lost);
        self.report(session, SessionEvent::RequestLost(nonce, LossReason::Revoked));
        true
    }

    /// Removes the place or the claims of an entry that its session has no more.
    pub(super) fn end_entry(&mut self, session: u64, nonce: Nonce, held: StoredEntry, cause: EndCause) {
        match held.location {
            Location::WaitQueue(arrival) => self.leave_wait_queue(&held.object, arrival, cause),
            Location::Consumer(arrival) => self.leave_consumers(&held.object, arrival),
            Location::Claims(claims) => self.give_back_all(&held.object, claims.into_values(), cause),
            Location::Generation(arrival) => self.leave_generation(&held.object, arrival, cause),
        }
        self.wake_request(session, nonce);
        self.touched.insert(held.object);
    }
}
