use proptest::prelude::*;

use super::super::queue::{PriorityQueue, QueueAnswer, QueueCall};
use super::super::register::{Expect, Register, RegisterAnswer, RegisterCall};
use super::*;
use crate::cases::Random;

/// Whether some order of all that is known, and of some of the rest, is the model's; by trying
/// them all.
fn ordered<M: Model>(history: &[OperationOf<M>], left: &mut Vec<usize>, state: &M::State) -> bool {
    if left.iter().all(|index| history[*index].answer().is_none()) {
        return true;
    }
    for place in 0..left.len() {
        let next = left[place];
        let late = |other: &usize| history[*other].precedes(&history[next]);
        if left.iter().any(late) {
            continue;
        }
        let Some(after) = M::step(state, &history[next].input, history[next].answer()) else {
            continue;
        };
        left.remove(place);
        if ordered::<M>(history, left, &after) {
            return true;
        }
        left.insert(place, next);
    }
    false
}

fn agree<M: Model>(history: &[OperationOf<M>]) -> bool {
    let mut left: Vec<usize> = (0..history.len())
        .filter(|index| history[*index].possible())
        .collect();
    let expected = ordered::<M>(history, &mut left, &M::initial());
    match check::<M>(history, BUDGET) {
        Finding::Linearizable(_) => expected,
        Finding::Violated(_) => !expected,
        Finding::Unknown(why) => panic!("{why}"),
    }
}

fn with<I, O>(
    random: &mut Random,
    count: u64,
    call: impl Fn(&mut Random) -> (I, O),
) -> Vec<Operation<I, O>> {
    (0..count)
        .map(|_| {
            let (input, output) = call(random);
            let called = random.below(20);
            let time = Duration::from_millis;
            Operation {
                client: 0,
                called: time(called),
                ended: Some(time(called + random.below(15))),
                input,
                fate: match random.below(10) {
                    0 | 1 => Fate::Unknown,
                    2 => Fate::Failed,
                    _ => Fate::Done(output),
                },
            }
        })
        .collect()
}

fn register(random: &mut Random) -> (RegisterCall, RegisterAnswer) {
    let (key, value) = (0, random.below(3));
    let version = Some(random.below(4)).filter(|_| random.below(3) == 0);
    match random.below(4) {
        0 => (
            RegisterCall::Write { key, value },
            RegisterAnswer::Written { version },
        ),
        1 => {
            let expect = match random.below(2) {
                0 => Expect::Version(random.below(4)),
                _ => Expect::Value(Some(random.below(3))),
            };
            let call = RegisterCall::CompareAndSet { key, expect, value };
            match random.below(2) {
                0 => (call, RegisterAnswer::Refused),
                _ => (call, RegisterAnswer::Written { version }),
            }
        }
        _ => {
            let value = Some(value).filter(|_| random.below(4) > 0);
            (
                RegisterCall::Read { key },
                RegisterAnswer::Value { value, version },
            )
        }
    }
}

fn queue(random: &mut Random) -> (QueueCall, QueueAnswer) {
    let (item, token) = (random.below(2), random.below(2));
    let (priority, by) = (u16::try_from(random.below(2)).unwrap(), random.below(2));
    let ended = |random: &mut Random| match random.below(3) {
        0 => QueueAnswer::Lost,
        _ => QueueAnswer::Done,
    };
    let taken = |random: &mut Random| match random.below(3) {
        0 => QueueAnswer::Empty,
        _ => QueueAnswer::Delivered {
            item,
            token,
            count: 1 + u32::from(random.below(4) == 0),
        },
    };
    match random.below(8) {
        0..3 => (QueueCall::Enqueue { item, priority }, QueueAnswer::Done),
        3 | 4 => (QueueCall::Dequeue { by }, taken(random)),
        5 => (QueueCall::Pop, taken(random)),
        6 => (QueueCall::Depart { by }, QueueAnswer::Done),
        _ if random.below(2) == 0 => (QueueCall::Acknowledge { item, token }, ended(random)),
        _ => (QueueCall::Return { item, token }, ended(random)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn the_verdict_on_a_register_is_that_of_trying_all_orders(seed: u64, count in 1..7_u64) {
        let history = with(&mut Random::seeded(seed), count, register);
        prop_assert!(agree::<Register>(&history), "{:?}", history);
    }

    #[test]
    fn the_verdict_on_a_queue_is_that_of_trying_all_orders(seed: u64, count in 1..7_u64) {
        let history = with(&mut Random::seeded(seed), count, queue);
        prop_assert!(agree::<PriorityQueue>(&history), "{:?}", history);
    }
}
