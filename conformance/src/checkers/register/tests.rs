use proptest::prelude::*;

use super::super::jsonl::round_trip;
use super::super::search::{BUDGET, Finding, check};
use super::super::simulate::{done, failed, lost, overlapped};
use super::RegisterAnswer::{Refused, Value, Written};
use super::RegisterCall::{CompareAndSet, Read, Write};
use super::*;
use crate::cases::Random;

const KEY: u64 = 0;

fn read(value: u64, version: u64) -> (RegisterCall, RegisterAnswer) {
    let (value, version) = (Some(value), Some(version));
    (Read { key: KEY }, Value { value, version })
}

fn write(value: u64, version: u64) -> (RegisterCall, RegisterAnswer) {
    let version = Some(version);
    (Write { key: KEY, value }, Written { version })
}

fn at(span: (u64, u64), (call, answer): (RegisterCall, RegisterAnswer)) -> RegisterOperation {
    done(0, span, call, answer)
}

fn judge(history: &[RegisterOperation]) -> Finding {
    check::<Register>(history, BUDGET)
}

fn words(finding: Finding) -> String {
    match finding {
        Finding::Violated(violation) => violation.what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_during_a_write_may_see_either() {
    let history = [
        at((0, 1), write(1, 1)),
        at((2, 9), write(2, 5)),
        at((3, 4), read(1, 1)),
        at((5, 6), read(2, 5)),
    ];
    assert_eq!(judge(&history), Finding::Linearizable(4));
}

#[test]
fn a_stale_read_is_found_and_shown() {
    let history = [
        at((0, 1), write(1, 1)),
        at((2, 3), write(2, 5)),
        at((4, 5), read(1, 1)),
    ];
    let words = words(judge(&history));
    assert!(words.contains("key 0: no order of all 3"), "{words}");
    assert!(words.contains("none of these can be next"), "{words}");
    assert!(words.contains("Read { key: 0 } -> Value"), "{words}");
}

#[test]
fn the_first_operation_can_be_the_wrong_one() {
    let words = words(judge(&[at((0, 1), read(1, 1))]));
    assert!(words.contains("Read"), "{words}");
}

#[test]
fn a_read_that_goes_back_is_found() {
    let history = [
        at((0, 1), write(1, 1)),
        at((2, 9), write(2, 5)),
        at((3, 4), read(2, 5)),
        at((5, 6), read(1, 1)),
    ];
    words(judge(&history));
}

#[test]
fn a_lost_write_may_come_late_or_never() {
    let lost_write = lost(3, 0, Write { key: KEY, value: 7 });
    let never = [lost_write.clone(), at((2, 3), write(1, 1))];
    assert_eq!(judge(&never), Finding::Linearizable(1));
    let mut late = never.to_vec();
    late.push(at((8, 9), read(7, 4)));
    assert_eq!(judge(&late), Finding::Linearizable(2));
    late.push(at((10, 11), read(1, 1)));
    words(judge(&late));
    let mut not_at_all = late[1..3].to_vec();
    not_at_all.push(failed(3, (0, 1), Write { key: KEY, value: 7 }));
    words(judge(&not_at_all));
}

#[test]
fn two_that_swap_the_same_version_are_found() {
    let swap = |value, version| {
        let expect = Expect::Version(1);
        let version = Some(version);
        let call = CompareAndSet {
            key: KEY,
            expect,
            value,
        };
        (call, Written { version })
    };
    let first = [at((0, 1), write(1, 1)), at((2, 9), swap(2, 2))];
    assert_eq!(judge(&first), Finding::Linearizable(2));
    let mut both = first.to_vec();
    both.push(at((2, 9), swap(3, 3)));
    words(judge(&both));
    both[2].fate = super::super::Fate::Done(Refused);
    assert_eq!(judge(&both), Finding::Linearizable(3));
}

#[test]
fn versions_that_fall_are_found() {
    words(judge(&[at((0, 1), write(1, 5)), at((2, 3), write(2, 4))]));
    words(judge(&[at((0, 1), write(1, 5)), at((2, 3), write(2, 5))]));
}

#[test]
fn keys_do_not_disturb_one_another() {
    let (call, answer) = (
        Read { key: 1 },
        Value {
            value: None,
            version: Some(0),
        },
    );
    let history = [at((0, 1), write(1, 1)), done(1, (2, 3), call, answer)];
    assert_eq!(judge(&history), Finding::Linearizable(2));
}

#[test]
fn a_search_without_end_is_given_up() {
    // Writes of which nothing is known, and a read that none of their orders explains.
    let mut history: Vec<_> = (0..40)
        .map(|value| lost(9, 0, Write { key: KEY, value }))
        .collect();
    history.push(at((1, 2), read(99, 9)));
    match check::<Register>(&history, 2_000) {
        Finding::Unknown(why) => assert!(why.contains("within 2000 states"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_long_history_is_quick() {
    let history = simulated(&mut Random::seeded(1), 20_000, 5, 0);
    assert_eq!(judge(&history), Finding::Linearizable(20_000));
}

fn simulated(random: &mut Random, steps: usize, spread: u64, lost: u64) -> Vec<RegisterOperation> {
    let mut registers = [(None, 0), (None, 0)];
    let steps = (1..=steps as u64)
        .map(|step| {
            let key = random.below(2);
            let (value, version) = &mut registers[usize::try_from(key).unwrap()];
            let told = |version: u64| Some(version).filter(|_| key == 0);
            match random.below(4) {
                0 => {
                    (*value, *version) = (Some(step), step);
                    let version = told(step);
                    (Write { key, value: step }, Written { version })
                }
                1 => {
                    let (expect, found) = match random.below(3) {
                        0 => (Expect::Version(*version), true),
                        1 => (Expect::Value(*value), true),
                        _ => (Expect::Value(Some(u64::MAX)), false),
                    };
                    let call = CompareAndSet {
                        key,
                        expect,
                        value: step,
                    };
                    if !found {
                        return (call, Refused);
                    }
                    (*value, *version) = (Some(step), step);
                    let version = told(step);
                    (call, Written { version })
                }
                _ => {
                    let (value, version) = (*value, told(*version));
                    (Read { key }, Value { value, version })
                }
            }
        })
        .collect();
    overlapped(random, steps, spread, lost)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
        let history = simulated(&mut Random::seeded(seed), 60, 3, 5);
        prop_assert!(matches!(judge(&history), Finding::Linearizable(_)));
        round_trip(&history);
    }

    #[test]
    fn a_read_of_another_value_fails(seed: u64) {
        let mut random = Random::seeded(seed);
        let mut history = simulated(&mut random, 60, 2, 0);
        let reads: Vec<usize> = (0..60).filter(|index| matches!(history[*index].input, Read { .. })).collect();
        prop_assume!(!reads.is_empty());
        let chosen = reads[usize::try_from(random.below(reads.len() as u64)).unwrap()];
        // No write has this value.
        history[chosen].fate = super::super::Fate::Done(Value { value: Some(1_000), version: None });
        prop_assert!(matches!(judge(&history), Finding::Violated(_)));
    }

    #[test]
    fn a_read_of_the_far_past_fails(seed: u64) {
        let mut random = Random::seeded(seed);
        let mut history = simulated(&mut random, 60, 2, 0);
        let last = history.last().unwrap().ended.unwrap().as_millis();
        let late = u64::try_from(last).unwrap() + 10;
        history.push(done(0, (late, late + 1), Read { key: KEY }, Value { value: None, version: None }));
        prop_assume!(history.iter().any(|op| matches!(op.input, Write { key: KEY, .. })));
        prop_assert!(matches!(judge(&history), Finding::Violated(_)));
    }
}
