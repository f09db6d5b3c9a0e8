//! A lock with fencing tokens, as a [`Model`] to search with.
//!
//! [`linearizable`](super::linearizable) judges the same histories without a search, and is what
//! the cases use; the two must agree, which is tested here.

use std::collections::{BTreeMap, HashMap};

use tenure_core::FencingToken;

use super::history::{Event, What};
use super::operation::{Fate, Operation};
use super::search::Model;

/// What can be asked of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockCall {
    /// To have it.
    Acquire,
    /// Whether it is still held.
    Look(FencingToken),
    /// To let go of it.
    Release(FencingToken),
    /// The holder's time is up, sooner or later, if it did not release.
    Expire(FencingToken),
}

/// What a lock answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockAnswer {
    /// To an acquire.
    Granted(FencingToken),
    /// It is held; or it was until now, and is released.
    Held,
}

/// An operation on a lock.
pub type LockOperation = Operation<LockCall, LockAnswer>;

/// One lock.
#[derive(Clone, Copy, Debug)]
pub struct FencedLock;

/// Whether it is held, and what tokens it may still grant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct LockState {
    held: bool,
    newest: Option<FencingToken>,
}

impl Model for FencedLock {
    type Key = ();
    type Input = LockCall;
    type Output = LockAnswer;
    type State = LockState;

    fn key(_: &LockCall) {}

    fn initial() -> LockState {
        LockState::default()
    }

    fn step(state: &LockState, input: &LockCall, output: Option<&LockAnswer>) -> Option<LockState> {
        let holds = |token| state.held && state.newest == Some(token);
        match (*input, output) {
            (LockCall::Acquire, Some(&LockAnswer::Granted(token))) => {
                let next = !state.held && state.newest < Some(token);
                next.then_some(LockState {
                    held: true,
                    newest: Some(token),
                })
            }
            // A grant that nobody saw was given back.
            (LockCall::Acquire, _) => None,
            (LockCall::Look(token), _) => holds(token).then_some(*state),
            (LockCall::Release(token) | LockCall::Expire(token), _) => {
                holds(token).then_some(LockState {
                    held: false,
                    ..*state
                })
            }
        }
    }

    fn only_looks(input: &LockCall, _: &LockAnswer) -> bool {
        matches!(input, LockCall::Look(_))
    }
}

/// The operations in a recorded history.
pub fn operations(events: &[Event]) -> Vec<LockOperation> {
    let mut operations = Vec::new();
    let mut began: HashMap<usize, &Event> = HashMap::new();
    // Those who did not release, or did not hear that they had.
    let mut kept: BTreeMap<FencingToken, LockOperation> = BTreeMap::new();
    for event in events {
        let (input, output) = match event.what {
            What::Asked | What::Looks(_) | What::Commits(_) | What::Releasing(_) => {
                began.insert(event.client, event);
                continue;
            }
            What::Granted(token) => (LockCall::Acquire, LockAnswer::Granted(token)),
            What::Valid(token) | What::Committed(token) => {
                (LockCall::Look(token), LockAnswer::Held)
            }
            What::Released(token) => (LockCall::Release(token), LockAnswer::Held),
            _ => continue,
        };
        let called = began.get(&event.client).map_or(event.at, |begun| begun.at);
        let operation = Operation {
            client: event.client,
            called,
            ended: Some(event.at),
            input,
            fate: Fate::Done(output),
        };
        match event.what {
            What::Granted(token) => {
                let expiry = Operation {
                    ended: None,
                    input: LockCall::Expire(token),
                    fate: Fate::Unknown,
                    ..operation.clone()
                };
                kept.insert(token, expiry);
            }
            What::Released(token) => {
                kept.remove(&token);
            }
            _ => {}
        }
        operations.push(operation);
    }
    operations.extend(kept.into_values());
    operations
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::linearizable;
    use super::super::search::{BUDGET, Finding, check};
    use super::*;
    use crate::cases::Random;

    /// Holdings at any times, under tokens that mostly rise.
    fn arbitrary(random: &mut Random, holdings: usize) -> Vec<Event> {
        let mut events = Vec::new();
        for client in 0..holdings {
            let place = u64::try_from(client).unwrap();
            let jump = if random.below(6) == 0 { 15 } else { 0 };
            let token = FencingToken::new(10 * place + jump + 1);
            let mut at = 12 * place + random.below(12);
            let mut tell = |random: &mut Random, what| {
                let time = Duration::from_millis(at);
                at += random.below(8);
                events.push(Event {
                    at: time,
                    client,
                    what,
                });
            };
            tell(random, What::Asked);
            tell(random, What::Granted(token));
            if random.below(3) > 0 {
                tell(random, What::Looks(token));
                tell(random, What::Valid(token));
            }
            if random.below(3) > 0 {
                tell(random, What::Releasing(token));
                if random.below(3) > 0 {
                    tell(random, What::Released(token));
                }
            }
        }
        events.sort_by_key(|event| event.at);
        events
    }

    #[test]
    fn both_verdicts_are_common() {
        let histories = (0..400).map(|seed| arbitrary(&mut Random::seeded(seed), 4));
        let fine = histories
            .filter(|events| linearizable::check(events).is_ok())
            .count();
        assert!((40..360).contains(&fine), "{fine} of 400 are fine");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5_000))]

        #[test]
        fn the_search_and_the_shortcut_agree(seed: u64, holdings in 1..7_usize) {
            let events = arbitrary(&mut Random::seeded(seed), holdings);
            let shortcut = linearizable::check(&events);
            let searched = check::<FencedLock>(&operations(&events), BUDGET);
            let agree = match &searched {
                Finding::Linearizable(_) => shortcut.is_ok(),
                Finding::Violated(_) => shortcut.is_err(),
                Finding::Unknown(_) => false,
            };
            prop_assert!(agree, "{:?}\n{:?}\n{:?}", shortcut, searched, events);
        }
    }
}
