use proptest::prelude::*;

use super::super::jsonl::round_trip;
use super::super::search::{BUDGET, Finding, check};
use super::super::simulate::{done, lost};
use super::QueueAnswer::{Delivered, Done, Empty, Lost};
use super::QueueCall::{Acknowledge, Depart, Dequeue, Enqueue, Pop};
use super::*;
use crate::cases::Random;

fn put(span: (u64, u64), item: u64, priority: u16) -> QueueOperation {
    done(0, span, Enqueue { item, priority }, Done)
}

fn take(span: (u64, u64), item: u64, token: u64, count: u32) -> QueueOperation {
    done(1, span, Dequeue { by: 1 }, Delivered { item, token, count })
}

fn judge(history: &[QueueOperation]) -> Finding {
    check::<PriorityQueue>(history, BUDGET)
}

fn wrong(history: &[QueueOperation]) -> bool {
    matches!(judge(history), Finding::Violated(_))
}

#[test]
fn the_urgent_goes_first_and_equals_as_they_came() {
    let puts = [put((0, 1), 1, 5), put((2, 3), 2, 0), put((4, 5), 3, 5)];
    let with = |items: [u64; 3]| {
        let mut history = puts.to_vec();
        for (at, item) in (10..).step_by(2).zip(items) {
            history.push(take((at, at + 1), item, at, 1));
        }
        history
    };
    assert_eq!(judge(&with([2, 1, 3])), Finding::Linearizable(6));
    assert!(wrong(&with([1, 2, 3])));
    assert!(wrong(&with([2, 3, 1])));
}

#[test]
fn enqueues_that_overlap_may_come_in_either_order() {
    let history = [
        put((0, 9), 1, 0),
        put((0, 9), 2, 0),
        take((10, 11), 2, 1, 1),
    ];
    assert_eq!(judge(&history), Finding::Linearizable(3));
}

#[test]
fn an_item_comes_back_when_its_session_departs() {
    let first = [put((0, 1), 1, 0), take((2, 3), 1, 1, 1)];
    let mut twice = first.to_vec();
    twice.push(take((6, 7), 1, 2, 2));
    assert!(wrong(&twice), "it is still out");
    twice.push(lost(1, 4, Depart { by: 1 }));
    assert_eq!(judge(&twice), Finding::Linearizable(4 - 1));
    let acknowledge = |token| Acknowledge { item: 1, token };
    twice.push(done(1, (8, 9), acknowledge(1), Lost));
    assert_eq!(judge(&twice), Finding::Linearizable(4));
    twice.push(done(1, (10, 11), acknowledge(2), Done));
    assert_eq!(judge(&twice), Finding::Linearizable(5));
    twice[4].fate = super::super::Fate::Done(Done);
    assert!(wrong(&twice), "a stale acknowledgement was taken");
}

#[test]
fn a_token_that_does_not_rise_is_found() {
    let back = |token| {
        let call = QueueCall::Return { item: 1, token };
        done(1, (4, 5), call, Done)
    };
    let history = |second| {
        let again = take((6, 7), 1, second, 2);
        [put((0, 1), 1, 0), take((2, 3), 1, 7, 1), back(7), again]
    };
    assert_eq!(judge(&history(8)), Finding::Linearizable(4));
    assert!(wrong(&history(7)));
}

#[test]
fn empty_while_something_waits_is_found() {
    let empty = |span| done(1, span, Pop, Empty);
    assert_eq!(
        judge(&[empty((0, 5)), put((2, 3), 1, 0)]),
        Finding::Linearizable(2)
    );
    assert!(wrong(&[put((0, 1), 1, 0), empty((2, 3))]));
}

#[test]
fn a_lost_pop_may_have_taken_the_item() {
    let empty = done(1, (6, 7), Pop, Empty);
    let history = [put((0, 1), 1, 0), lost(2, 2, Pop), empty];
    assert_eq!(judge(&history), Finding::Linearizable(2));
}

#[test]
fn a_departure_that_could_do_nothing_yet_may_wait() {
    // Alone, the departure would do nothing before the dequeue, and must still come after it.
    let depart = done(2, (2, 9), Depart { by: 1 }, Done);
    let history = [
        put((0, 1), 1, 0),
        depart,
        take((3, 8), 1, 1, 1),
        take((10, 11), 1, 2, 2),
    ];
    assert_eq!(judge(&history), Finding::Linearizable(4));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
        let history = simulated::queue(&mut Random::seeded(seed), 40, 2, 4);
        let finding = judge(&history);
        prop_assert!(matches!(finding, Finding::Linearizable(_)), "{:?}", finding);
        round_trip(&history);
    }

    #[test]
    fn a_second_delivery_of_an_item_fails(seed: u64) {
        let mut random = Random::seeded(seed);
        let mut history = simulated::queue(&mut random, 40, 1, 0);
        let last = history.last().unwrap().ended.unwrap().as_millis();
        let late = u64::try_from(last).unwrap() + 10;
        let item = history.iter().find_map(|op| match op.answer() {
            Some(Delivered { item, .. }) => Some(*item),
            _ => None,
        });
        prop_assume!(item.is_some());
        history.push(take((late, late + 1), item.unwrap(), 1_000, 2));
        prop_assert!(wrong(&history));
    }
}
