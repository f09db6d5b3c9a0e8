//! Barriers and double barriers: their state, and every step on it.
//!
//! A double barrier is open, with those who wait for the others, or closed, with those who are
//! inside. It closes in the step in which the last one comes, and opens in the step in which the
//! last one goes. So two generations never meet, and no dead one is ever counted: every step buries
//! the dead first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tenure_core::backend::{Alarm, path};
use tenure_core::{Error, FencingToken, LossReason, Moment, Namespace, Result};
use tokio::sync::Notify;

use super::{Attempt, CAPACITY, Granted, Member, Object, Signal, State};
use crate::error;

/// Barriers of both kinds.
#[derive(Debug, Default)]
pub(super) struct Barriers {
    holds: HashMap<Object, Hold>,
    /// Never empty ones.
    rooms: HashMap<Object, Room>,
    /// Of holds, and of generations.
    last: u64,
}

#[derive(Debug)]
struct Hold {
    number: u64,
    session: u64,
    nonce: u64,
    /// Whether it ends with its session.
    bound: bool,
    ended: Arc<Notify>,
}

#[derive(Debug)]
struct Room {
    count: u32,
    /// Once it is closed: its generation.
    generation: Option<u64>,
    /// By their numbers of arrival, which are their tokens.
    participants: BTreeMap<u64, Participant>,
    changed: Arc<Notify>,
}

#[derive(Debug)]
struct Participant {
    session: u64,
    nonce: u64,
    alarm: Alarm,
}

/// What somebody who waits at a barrier finds.
#[derive(Debug)]
pub(crate) enum Sight<T> {
    Done(T),
    /// Look again when it rings, or when this moment has come.
    Wait(Arc<Notify>, Option<Moment>),
}

/// What a participant got: the grant, and its generation.
pub(crate) type Entered = (Granted, u64);

/// Barriers.
impl State {
    /// Holds, once for each nonce, however often it is asked.
    pub(crate) fn hold(&mut self, member: &Member, attempt: &Attempt, bound: bool) -> Result<()> {
        let nonce = attempt.nonce;
        let lease = self.lease(member)?;
        if lease.decided.contains(&nonce) {
            return Ok(());
        }
        lease.not_withdrawn(nonce)?;
        if self.barriers.holds.contains_key(&attempt.object) {
            return Err(error::held());
        }
        let lease = self.lease(member)?;
        lease.decided.insert(nonce);
        if bound {
            lease.barriers.insert(nonce, attempt.object.clone());
        }
        self.barriers.last += 1;
        let hold = Hold {
            number: self.barriers.last,
            session: member.session,
            nonce,
            bound,
            ended: Arc::default(),
        };
        self.barriers.holds.insert(attempt.object.clone(), hold);
        Ok(())
    }

    /// The answer to a hold has arrived; what is still on its way finds the nonce all the same.
    pub(crate) fn hold_heard(&mut self, member: &Member, nonce: u64) {
        if let Some(lease) = self.sessions.get_mut(&member.session)
            && !lease.on_their_way.contains_key(&nonce)
        {
            lease.decided.remove(&nonce);
        }
    }

    /// Takes back what `nonce` held, or still would: also what outlives its session.
    pub(crate) fn unhold(&mut self, member: &Member, object: &Object, nonce: u64) {
        if let Some(lease) = self.sessions.get_mut(&member.session) {
            lease.decided.remove(&nonce);
            if let Some(way) = lease.on_their_way.get_mut(&nonce) {
                way.withdrawn = true;
            }
        }
        let hold = self.barriers.holds.get(object);
        if hold.is_some_and(|hold| (hold.session, hold.nonce) == (member.session, nonce)) {
            self.end_hold(object);
        }
    }

    /// The number of the hold that stands.
    pub(crate) fn held(&self, object: &Object) -> Option<u64> {
        self.barriers.holds.get(object).map(|hold| hold.number)
    }

    pub(crate) fn lift(&mut self, object: &Object, number: u64) {
        if self.held(object) == Some(number) {
            self.end_hold(object);
        }
    }

    /// Whether the hold `number` has ended.
    pub(crate) fn look_at_hold(&self, object: &Object, number: Option<u64>) -> Sight<()> {
        match self.barriers.holds.get(object) {
            Some(hold) if Some(hold.number) == number => {
                let holder = self.sessions.get(&hold.session).filter(|_| hold.bound);
                Sight::Wait(Arc::clone(&hold.ended), holder.map(|lease| lease.ends))
            }
            _ => Sight::Done(()),
        }
    }

    fn end_hold(&mut self, object: &Object) {
        if let Some(hold) = self.barriers.holds.remove(object) {
            if let Some(lease) = self.sessions.get_mut(&hold.session) {
                lease.barriers.remove(&hold.nonce);
            }
            self.signals.push(Signal::WakeAll(hold.ended));
        }
    }
}

/// Double barriers.
impl State {
    pub(crate) fn enter(
        &mut self,
        member: &Member,
        attempt: &Attempt,
        count: u32,
    ) -> Result<Sight<Entered>> {
        let room = self.barriers.rooms.get(&attempt.object);
        let refusal = match room {
            Some(room) if room.count != count => Some(error::another_count(room.count)),
            Some(room) if room.generation.is_some() => Some(error::one_too_many()),
            _ => None,
        };
        let lease = self.lease(member)?;
        lease.not_withdrawn(attempt.nonce)?;
        if lease.barriers.contains_key(&attempt.nonce) {
            return self.look_into_room(member, &attempt.object, attempt.nonce);
        }
        if let Some(refusal) = refusal {
            return Err(refusal);
        }
        if lease.load() >= CAPACITY {
            return Err(error::full(CAPACITY));
        }
        lease.barriers.insert(attempt.nonce, attempt.object.clone());
        let token = self.tokens.next(&attempt.object.namespace).get();
        let room = self.barriers.rooms.entry(attempt.object.clone());
        let room = room.or_insert_with(|| Room {
            count,
            generation: None,
            participants: BTreeMap::new(),
            changed: Arc::default(),
        });
        let participant = Participant {
            session: member.session,
            nonce: attempt.nonce,
            alarm: attempt.alarm.clone(),
        };
        room.participants.insert(token, participant);
        if u32::try_from(room.participants.len()) == Ok(count) {
            self.barriers.last += 1;
            room.generation = Some(self.barriers.last);
            self.signals
                .push(Signal::WakeAll(Arc::clone(&room.changed)));
        }
        self.look_into_room(member, &attempt.object, attempt.nonce)
    }

    /// Whether the participant `nonce` may go in.
    pub(crate) fn look_into_room(
        &mut self,
        member: &Member,
        object: &Object,
        nonce: u64,
    ) -> Result<Sight<Entered>> {
        self.lease(member)?;
        let found = self.barriers.rooms.get(object).and_then(|room| {
            let token = room.find(member.session, nonce)?;
            Some((room, token))
        });
        let Some((room, token)) = found else {
            return Err(error::removed_from_line());
        };
        Ok(match room.generation {
            None => Sight::Wait(Arc::clone(&room.changed), None),
            Some(generation) => {
                let key = key(object, member.session, token);
                let token = FencingToken::new(token);
                Sight::Done((Granted { token, key }, generation))
            }
        })
    }

    /// Whether all of `generation` have gone.
    pub(crate) fn look_after_others(&self, object: &Object, generation: u64) -> Sight<()> {
        match self.barriers.rooms.get(object) {
            Some(room) if room.generation == Some(generation) => {
                let leases = room
                    .participants
                    .values()
                    .filter_map(|participant| self.sessions.get(&participant.session));
                let ends = leases.map(|lease| lease.ends).min();
                Sight::Wait(Arc::clone(&room.changed), ends)
            }
            _ => Sight::Done(()),
        }
    }

    /// Takes out the participant that has `token`.
    pub(crate) fn go_out(
        &mut self,
        member: &Member,
        object: &Object,
        nonce: u64,
        token: FencingToken,
    ) -> Result<()> {
        if !self.sessions.contains_key(&member.session) {
            return Err(member.lost());
        }
        let room = self.barriers.rooms.get(object);
        if room.and_then(|room| room.find(member.session, nonce)) != Some(token.get()) {
            return Err(Error::lost(LossReason::Revoked));
        }
        self.take_participant(object, token.get());
        Ok(())
    }

    /// Takes out whatever `nonce` has, and whatever its requests on their way would get.
    pub(crate) fn take_back(&mut self, member: &Member, object: &Object, nonce: u64) {
        if let Some(lease) = self.sessions.get_mut(&member.session)
            && let Some(way) = lease.on_their_way.get_mut(&nonce)
        {
            way.withdrawn = true;
        }
        let room = self.barriers.rooms.get(object);
        if let Some(token) = room.and_then(|room| room.find(member.session, nonce)) {
            self.take_participant(object, token);
        }
    }

    /// Gives those who wait in the open rooms of `namespace` greater tokens, after the token floor rose: a
    /// participant has its token before it is let in. O(participants that wait).
    pub(super) fn renumber_waiting(&mut self, namespace: &Namespace) {
        for (object, room) in &mut self.barriers.rooms {
            if object.namespace == *namespace && room.generation.is_none() {
                let participants = std::mem::take(&mut room.participants);
                room.participants = participants
                    .into_values()
                    .map(|participant| (self.tokens.next(namespace).get(), participant))
                    .collect();
            }
        }
    }

    fn take_participant(&mut self, object: &Object, token: u64) -> Option<Participant> {
        let room = self.barriers.rooms.get_mut(object)?;
        let participant = room.participants.remove(&token)?;
        self.signals
            .push(Signal::WakeAll(Arc::clone(&room.changed)));
        if room.participants.is_empty() {
            self.barriers.rooms.remove(object);
        }
        if let Some(lease) = self.sessions.get_mut(&participant.session) {
            lease.barriers.remove(&participant.nonce);
        }
        Some(participant)
    }
}

impl Room {
    fn find(&self, session: u64, nonce: u64) -> Option<u64> {
        let found = self
            .participants
            .iter()
            .find(|(_, participant)| (participant.session, participant.nonce) == (session, nonce));
        found.map(|(&token, _)| token)
    }
}

/// What the rest of the state does to barriers.
impl State {
    /// The session of `at`, those of its asks that are at a barrier, has ended.
    pub(super) fn bury_at_barriers(
        &mut self,
        session: u64,
        at: BTreeMap<u64, Object>,
        alarmed: bool,
    ) {
        for (nonce, object) in at {
            if self.barriers.holds.contains_key(&object) {
                self.end_hold(&object);
                continue;
            }
            let room = self.barriers.rooms.get(&object);
            let token = room.and_then(|room| room.find(session, nonce));
            if let Some(participant) = token.and_then(|token| self.take_participant(&object, token))
                && alarmed
            {
                self.signals
                    .push(Signal::Alarm(participant.alarm, LossReason::Revoked));
            }
        }
    }

    /// A detached session keeps what it holds, and leaves where it was inside or waits.
    pub(super) fn detach_from_barriers(&mut self, session: u64) {
        let lease = self.sessions.get(&session);
        let at: Vec<_> = lease
            .into_iter()
            .flat_map(|lease| lease.barriers.clone())
            .collect();
        for (nonce, object) in at {
            let room = self.barriers.rooms.get(&object);
            if let Some(token) = room.and_then(|room| room.find(session, nonce)) {
                self.take_participant(&object, token);
            }
        }
    }

    /// Whether the participant `nonce` is inside, as `token`.
    pub(crate) fn is_inside(
        &self,
        session: u64,
        object: &Object,
        nonce: u64,
        token: FencingToken,
    ) -> bool {
        let room = self.barriers.rooms.get(object);
        let room = room.filter(|room| room.generation.is_some());
        room.and_then(|room| room.find(session, nonce)) == Some(token.get())
    }

    pub(super) fn barrier_keys(&self, namespace: &Namespace) -> Vec<String> {
        let ours = |object: &&Object| object.namespace == *namespace;
        let holds = self.barriers.holds.keys().filter(ours).map(hold_key);
        let rooms = self.barriers.rooms.iter();
        let inside = rooms
            .filter(|(object, _)| ours(object))
            .flat_map(|(object, room)| {
                let participants = room.participants.iter();
                participants.map(|(&token, participant)| key(object, participant.session, token))
            });
        holds.chain(inside).collect()
    }

    /// An operator removes what has the key `wanted`; says whether there was such a thing.
    pub(super) fn delete_at_barrier(&mut self, namespace: &Namespace, wanted: &str) -> bool {
        let ours = |object: &&Object| object.namespace == *namespace;
        let mut held = self.barriers.holds.keys().filter(ours);
        if let Some(object) = held.find(|object| hold_key(object) == wanted).cloned() {
            self.end_hold(&object);
            return true;
        }
        let mut rooms = self
            .barriers
            .rooms
            .iter()
            .filter(|(object, _)| ours(object));
        let found = rooms.find_map(|(object, room)| {
            let mut participants = room.participants.iter();
            let found = participants
                .find(|&(&token, participant)| key(object, participant.session, token) == wanted);
            Some((object.clone(), *found?.0, room.generation.is_some()))
        });
        let Some((object, token, inside)) = found else {
            return false;
        };
        if let Some(participant) = self.take_participant(&object, token)
            && inside
            && let Some(lease) = self.sessions.get(&participant.session)
            && lease.link.is_up()
        {
            self.signals
                .push(Signal::Alarm(participant.alarm, LossReason::Revoked));
        }
        true
    }

    /// How many hold or are inside, and how many wait.
    pub(super) fn count_at_barriers(&self) -> (usize, usize) {
        let rooms = self.barriers.rooms.values();
        let (closed, open): (Vec<_>, Vec<_>) = rooms.partition(|room| room.generation.is_some());
        let all =
            |rooms: Vec<&Room>| -> usize { rooms.iter().map(|room| room.participants.len()).sum() };
        (self.barriers.holds.len() + all(closed), all(open))
    }
}

fn hold_key(object: &Object) -> String {
    path(&object.namespace, object.kind, &object.name)
}

/// `<path of the object>/<session>-<token>`: what operators see.
fn key(object: &Object, session: u64, token: u64) -> String {
    format!("{}/{session}-{token}", hold_key(object))
}
