//! Double barriers.
//!
//! The participants of a generation wait until the last one arrives, which lets all of them in with one step. The next
//! generation begins when all have left, so two generations never overlap.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;

use tenure_core::backend::{Grant, Joined, Nonce, Request};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};

use super::entries::Location;
use super::{EndCause, Look, Member, Object, State, no_place};
use crate::planted::Bug;

/// The present generation of a double barrier.
pub(super) struct Generation {
    count: u32,
    /// By number of arrival.
    participants: BTreeMap<u64, Participant>,
    /// The tokens of the participants, once they have entered.
    tokens: Option<RangeInclusive<u64>>,
}

struct Participant {
    session: u64,
    nonce: Nonce,
    token: Option<FencingToken>,
}

impl State {
    pub(crate) fn enter(&mut self, member: &Member, request: &Request, count: NonZeroU32) -> Result<Joined> {
        let object = self.object_of(request);
        if !self.begin(member, request)? {
            if let Some(generation) = self.generations.get(&object) {
                generation.check(count.get()).or_else(|error| match generation.tokens {
                    Some(_) if self.planted.has(Bug::OneTooMany) => Ok(()),
                    None if self.planted.has(Bug::CountIgnored) => Ok(()),
                    _ => Err(error),
                })?;
            }
            let arrival = self.next_arrival();
            self.add_entry(member, request.nonce(), &object, Location::Generation(arrival))?;
            let generation = self.generations.entry(object.clone()).or_insert_with(|| Generation {
                count: count.get(),
                participants: BTreeMap::new(),
                tokens: None,
            });
            let participant = Participant {
                session: member.session,
                nonce: request.nonce(),
                token: None,
            };
            generation.participants.insert(arrival, participant);
            self.let_in(&object);
        }
        Ok(match self.look_in_generation(member, request)? {
            Look::Done(grant) => Joined::Granted(grant),
            Look::Until(_) => Joined::Waiting,
        })
    }

    /// Lets all participants in if none is missing.
    fn let_in(&mut self, object: &Object) {
        let Some(generation) = self.generations.get_mut(object) else {
            return;
        };
        let mut missing = (generation.count as usize).saturating_sub(generation.participants.len());
        if self.planted.has(Bug::EntersEarly) && generation.participants.len() > 1 {
            missing = missing.saturating_sub(1);
        }
        if missing > 0 {
            return;
        }
        // In the order of arrival; below 2^53 for as long as any process lives.
        let first = self.last_token + 1;
        let mut wake = Vec::new();
        for participant in generation.participants.values_mut() {
            self.last_token += 1;
            participant.token = Some(FencingToken::new(self.last_token));
            wake.push((participant.session, participant.nonce));
        }
        generation.tokens = Some(first..=self.last_token);
        for (session, nonce) in wake {
            self.wake_request(session, nonce);
        }
    }

    pub(crate) fn look_in_generation(&mut self, member: &Member, request: &Request) -> Result<Look<Grant>> {
        let held = self.entry(member, request)?;
        let Location::Generation(_) = held.location else {
            return Err(no_place());
        };
        Ok(match self.grants(member.session, &held).into_iter().next() {
            Some(grant) => Look::Done(grant),
            None => Look::Until(self.first_end([member.session])),
        })
    }

    pub(super) fn token_in_generation(&self, object: &Object, arrival: u64) -> Option<FencingToken> {
        self.generations.get(object)?.participants.get(&arrival)?.token
    }

    /// Removes a participant, whose entry is gone.
    pub(super) fn leave_generation(&mut self, object: &Object, arrival: u64, cause: EndCause) {
        let Some(generation) = self.generations.get_mut(object) else {
            return;
        };
        if self.planted.has(Bug::DeadCount) && cause == EndCause::Lost && generation.tokens.is_none() {
            return;
        }
        generation.participants.remove(&arrival);
        if generation.participants.is_empty() {
            self.generations.remove(object);
        }
        self.wake_observers(object);
    }

    /// Looks whether all participants of the generation with `token` have left.
    pub(crate) fn look_for_others(&mut self, member: &Member, name: &Name, token: FencingToken) -> Result<Look<()>> {
        self.lease(member)?;
        let generation = self.generations.get(&self.object(Kind::DoubleBarrier, name));
        let generation = generation.filter(|generation| {
            generation
                .tokens
                .as_ref()
                .is_some_and(|tokens| tokens.contains(&token.get()))
        });
        Ok(
            match generation.and_then(|generation| generation.participants.first_key_value()) {
                Some((_, first)) if !self.planted.has(Bug::LeavesEarly) => {
                    Look::Until(self.first_end([first.session, member.session]))
                }
                _ => Look::Done(()),
            },
        )
    }
}

impl Generation {
    /// Refuses a participant if the generation is complete, or if it expects another count.
    fn check(&self, count: u32) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::Conflict, message));
        if self.tokens.is_some() {
            return refuse(format!(
                "all {} participants are inside: enter again when they have left",
                self.count
            ));
        }
        if self.count != count {
            return refuse(format!(
                "participants wait to be {}, not {count}: all must give the same count",
                self.count
            ));
        }
        Ok(())
    }
}
