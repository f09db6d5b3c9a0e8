use proptest::prelude::*;

use super::super::queue::QueueAnswer::{Delivered, Done, Empty, Lost};
use super::super::queue::QueueCall::{Acknowledge, Dequeue, Enqueue, Pop, Return};
use super::super::queue::{PriorityQueue, simulated};
use super::super::search::{self, BUDGET, Finding};
use super::super::simulate::{done, failed, lost};
use super::*;
use crate::cases::Random;

type Span = (u64, u64);

fn put(span: Span, item: u64, priority: u16) -> QueueOperation {
    done(0, span, Enqueue { item, priority }, Done)
}

fn take(span: Span, item: u64, token: u64, count: u32) -> QueueOperation {
    let answer = Delivered { item, token, count };
    done(1, span, Dequeue { by: 1 }, answer)
}

fn acknowledge(span: Span, item: u64, token: u64) -> QueueOperation {
    done(1, span, Acknowledge { item, token }, Done)
}

fn give_back(span: Span, item: u64, token: u64) -> QueueOperation {
    done(1, span, Return { item, token }, Done)
}

fn a_life() -> Vec<QueueOperation> {
    vec![
        put((0, 1), 1, 0),
        take((2, 3), 1, 7, 1),
        acknowledge((10, 11), 1, 7),
    ]
}

/// The one violation.
fn wrong(history: &[QueueOperation]) -> String {
    let account = check(history);
    assert_eq!(account.violations.len(), 1, "{account:?}");
    account.violations[0].what.clone()
}

fn fine(history: &[QueueOperation]) {
    let account = check(history);
    assert_eq!(account.violations, vec![], "{account:?}");
}

#[test]
fn what_goes_in_comes_out_once() {
    let account = check(&a_life());
    let counted = (account.enqueued, account.delivered, account.acknowledged);
    assert_eq!(counted, (1, 1, 1));
    assert_eq!(account.violations, vec![]);
    assert_eq!(account.overtakings, vec![]);
}

#[test]
fn a_lost_item_is_found() {
    let words = wrong(&a_life()[..1]);
    assert!(words.contains("item 1 was taken in and never delivered"));
    assert!(words.contains("client 0 Enqueue"), "{words}");
    assert!(wrong(&a_life()[..2]).contains("never acknowledged"));
}

#[test]
fn what_may_not_have_gone_in_need_not_come_out() {
    let (item, priority) = (2, 0);
    fine(&[lost(0, 0, Enqueue { item, priority })]);
    fine(&[failed(0, (0, 1), Enqueue { item, priority })]);
}

#[test]
fn a_pop_that_was_lost_may_have_taken_one_and_no_more() {
    let mut history = vec![put((0, 1), 1, 0), put((2, 3), 2, 0), lost(1, 4, Pop)];
    assert!(wrong(&history).contains("item 2"));
    history.push(lost(1, 4, Pop));
    fine(&history);
    history.push(done(1, (8, 9), Pop, Empty));
    fine(&history);
}

#[test]
fn an_item_out_of_thin_air_is_found() {
    assert!(wrong(&a_life()[1..]).contains("never taken in"));
    let mut early = a_life();
    early[0] = put((8, 9), 1, 0);
    assert!(wrong(&early).contains("before anybody asked"));
    let mut refused = a_life();
    refused[0].fate = Fate::Failed;
    assert!(wrong(&refused).contains("never taken in"));
}

#[test]
fn a_second_acknowledgement_is_found() {
    let mut history = a_life();
    history.push(acknowledge((12, 13), 1, 7));
    assert!(wrong(&history).contains("acknowledged 2 times"));
    history[3].fate = Fate::Done(Lost);
    fine(&history);
}

#[test]
fn an_item_that_comes_back_after_its_acknowledgement_is_found() {
    let mut history = a_life();
    history.push(take((12, 13), 1, 8, 2));
    assert!(wrong(&history).contains("after it had been acknowledged"));
}

#[test]
fn a_stale_holder_that_may_still_end_it_is_found() {
    let mut history = a_life();
    history.push(take((5, 6), 1, 8, 2));
    assert!(wrong(&history).contains("two holders: token 7"));
    history[2].fate = Fate::Done(Lost);
    history.push(acknowledge((10, 11), 1, 8));
    fine(&history);
}

#[test]
fn tokens_that_fall_or_repeat_are_found() {
    let with = |token, count| {
        let mut history = a_life();
        history[2] = give_back((4, 5), 1, 7);
        history.push(take((6, 7), 1, token, count));
        history.push(acknowledge((8, 9), 1, token));
        history
    };
    fine(&with(8, 2));
    let account = check(&with(6, 2));
    assert!(
        account.violations[0].what.contains("two holders"),
        "{account:?}"
    );
    let account = check(&with(7, 2));
    assert!(account.violations[0].what.contains("twice under token 7"));
}

#[test]
fn counts_that_nothing_explains_are_found() {
    let mut history = a_life();
    history[1] = take((2, 3), 1, 7, 2);
    assert!(wrong(&history).contains("0 times at most"));
    history.push(lost(3, 1, Dequeue { by: 4 }));
    fine(&history);

    let mut again = a_life();
    again[2] = give_back((4, 5), 1, 7);
    again.push(take((6, 7), 1, 8, 1));
    again.push(acknowledge((8, 9), 1, 8));
    assert!(wrong(&again).contains("count 1, after a delivery with count 1"));
}

#[test]
fn an_overtaking_is_told_apart() {
    let run = |priorities: [u16; 2], first: u64| {
        let second = 3 - first;
        vec![
            put((0, 1), 1, priorities[0]),
            put((2, 3), 2, priorities[1]),
            take((4, 5), first, 1, 1),
            take((6, 7), second, 2, 1),
            acknowledge((8, 9), first, 1),
            acknowledge((8, 9), second, 2),
        ]
    };
    for (priorities, first, overtakings) in [
        ([0, 0], 1, 0),
        ([0, 0], 2, 1),
        ([0, 5], 1, 0),
        ([0, 5], 2, 1),
        ([5, 0], 1, 1),
        ([5, 0], 2, 0),
    ] {
        let account = check(&run(priorities, first));
        assert_eq!(account.violations, vec![]);
        assert_eq!(account.overtakings.len(), overtakings, "{account:?}");
    }
    let words = check(&run([0, 0], 2)).overtakings[0].what.clone();
    assert!(words.contains("item 1 was waiting and before it, but item 2"));

    // Either came first, or was out at the time.
    let mut overlap = run([0, 0], 2);
    overlap[1] = put((0, 3), 2, 0);
    assert_eq!(check(&overlap).overtakings, vec![]);
    let mut unseen = run([0, 0], 2);
    unseen.push(lost(3, 3, Dequeue { by: 9 }));
    assert_eq!(check(&unseen).overtakings, vec![]);
}

/// A dequeue that somebody ceased to wait for.
fn given_up(span: Span) -> QueueOperation {
    let mut dequeue = lost(9, span.0, Dequeue { by: 9 });
    dequeue.ended = Some(Duration::from_millis(span.1));
    dequeue
}

/// Two items, of which the second is handed out first, from 30 to 31; the first comes later, with this count.
fn second_first(count: u32, unseen: QueueOperation) -> Vec<QueueOperation> {
    vec![
        put((0, 1), 1, 0),
        put((2, 3), 2, 0),
        unseen,
        take((30, 31), 2, 1, 1),
        take((40, 41), 1, 2, count),
        acknowledge((50, 51), 1, 2),
        acknowledge((50, 51), 2, 1),
    ]
}

fn leeway(given_back: u64, away: u64) -> Leeway {
    Leeway {
        given_back: Some(Duration::from_millis(given_back)),
        ..Leeway::within(Duration::from_millis(away))
    }
}

#[test]
fn a_dequeue_that_was_given_up_is_conceded_until_it_has_given_back() {
    let overtakings = |unseen, leeway: &Leeway| {
        let account = check_within(&second_first(1, unseen), leeway);
        assert_eq!(account.violations, vec![]);
        (account.overtakings.len(), account.ordered)
    };
    let quiet = leeway(5, 20);
    assert_eq!(overtakings(given_up((4, 5)), &quiet), (1, 1), "long over");
    assert_eq!(
        overtakings(given_up((4, 27)), &quiet),
        (0, 0),
        "may be away"
    );
    let mut trouble = quiet;
    trouble.trouble = vec![(Duration::from_millis(14), Duration::from_millis(15))];
    assert_eq!(
        overtakings(given_up((12, 13)), &trouble),
        (0, 0),
        "kept for longer"
    );
    assert_eq!(
        overtakings(given_up((4, 5)), &trouble),
        (1, 1),
        "over before that"
    );
    let all = Leeway::within(Duration::MAX);
    assert_eq!(overtakings(given_up((4, 5)), &all), (0, 0));
}

#[test]
fn the_count_shows_whether_somebody_died_with_an_item() {
    let found = |count, leeway: &Leeway| {
        let died = lost(9, 15, Dequeue { by: 9 });
        let account = check_within(&second_first(count, died), leeway);
        assert_eq!(account.violations, vec![]);
        account.overtakings.len()
    };
    assert_eq!(found(1, &leeway(5, 20)), 1, "nobody had it");
    assert_eq!(found(2, &leeway(5, 20)), 0, "the dead had it");
    assert_eq!(found(1, &Leeway::within(Duration::from_millis(20))), 0);
    let mut forgotten = leeway(5, 20);
    forgotten.forgotten = vec![(Duration::from_millis(18), Duration::from_millis(20))];
    assert_eq!(found(1, &forgotten), 0, "the count was forgotten");
}

#[test]
fn a_count_is_raised_by_those_alone_who_were_there() {
    let counted = |died: u64, leeway: &Leeway| {
        let history = [
            put((0, 1), 1, 0),
            lost(9, died, Dequeue { by: 9 }),
            take((30, 31), 1, 1, 1),
            give_back((32, 33), 1, 1),
            take((40, 41), 1, 2, 3),
            acknowledge((50, 51), 1, 2),
        ];
        check_within(&history, leeway).violations.len()
    };
    assert_eq!(counted(28, &leeway(5, 20)), 0);
    assert_eq!(counted(35, &leeway(5, 20)), 0);
    assert_eq!(counted(8, &leeway(5, 20)), 1, "gone before");
    assert_eq!(counted(45, &leeway(5, 20)), 1, "not yet there");
    assert_eq!(counted(8, &Leeway::within(Duration::MAX)), 0);
}

#[test]
fn an_item_that_was_given_back_keeps_its_place() {
    let mut history = vec![
        put((0, 1), 1, 0),
        put((2, 3), 2, 0),
        take((4, 5), 1, 1, 1),
        give_back((6, 7), 1, 1),
        take((8, 9), 2, 2, 1),
        take((10, 11), 1, 3, 2),
        acknowledge((12, 13), 2, 2),
        acknowledge((12, 13), 1, 3),
    ];
    fine(&history);
    assert_eq!(check(&history).overtakings.len(), 1);
    history[4] = take((6, 9), 2, 2, 1);
    assert_eq!(check(&history).overtakings, vec![]);
}

#[test]
fn a_long_run_is_quick() {
    let history = simulated::queue(&mut Random::seeded(3), 3_000, 4, 0);
    let account = check(&history);
    assert!(account.enqueued > 1_000);
    assert_eq!(account.violations, vec![]);
    assert_eq!(account.overtakings, vec![]);
}

fn dropped(history: &[QueueOperation], gone: u64) -> Vec<QueueOperation> {
    let mut kept = history.to_vec();
    kept.retain(|operation| match operation.input {
        Acknowledge { item, .. } => item != gone,
        _ => !matches!(operation.answer(), Some(Delivered { item, .. }) if *item == gone),
    });
    kept
}

/// Loses answers and whole operations, and exchanges the times of some.
fn disturbed(random: &mut Random) -> Vec<QueueOperation> {
    let mut history = simulated::queue(random, 12, 2, 0);
    for _ in 0..=random.below(3) {
        let mut any = || usize::try_from(random.below(history.len().max(1) as u64)).unwrap();
        let (one, other) = (any(), any());
        if history.is_empty() {
            break;
        }
        match random.below(4) {
            0 => history[one].fate = Fate::Unknown,
            1 => drop(history.remove(one)),
            _ => {
                let (first, second) = (history[one].clone(), history[other].clone());
                (history[one].called, history[one].ended) = (second.called, second.ended);
                (history[other].called, history[other].ended) = (first.called, first.ended);
            }
        }
    }
    history
}

/// All that it says is wrong, but for what a drain would have shown.
fn complaints(history: &[QueueOperation]) -> Vec<String> {
    let account = check(history);
    let all = account.violations.into_iter().chain(account.overtakings);
    all.map(|violation| violation.what)
        .filter(|words| !words.contains(" never "))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// It says less than a search, and never more.
    #[test]
    fn what_a_search_can_order_is_not_complained_of(seed: u64) {
        let history = disturbed(&mut Random::seeded(seed));
        if let Finding::Linearizable(_) = search::check::<PriorityQueue>(&history, BUDGET) {
            prop_assert_eq!(complaints(&history), Vec::<String>::new());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn correct_runs_pass(seed: u64) {
        let account = check(&simulated::queue(&mut Random::seeded(seed), 120, 3, 5));
        prop_assert_eq!(account.violations, vec![]);
        prop_assert_eq!(account.overtakings, vec![]);
    }

    #[test]
    fn a_run_that_drops_an_item_fails(seed: u64) {
        let history = simulated::queue(&mut Random::seeded(seed), 60, 3, 0);
        let account = check(&dropped(&history, 1));
        prop_assume!(account.enqueued > 0);
        prop_assert!(account.violations.iter().any(|violation| violation.what.contains("item 1 was taken in")));
    }

    #[test]
    fn a_run_with_two_items_exchanged_fails(seed: u64) {
        let mut history = simulated::queue(&mut Random::seeded(seed), 60, 0, 0);
        let deliveries: Vec<usize> = (0..history.len())
            .filter(|index| matches!(history[*index].answer(), Some(Delivered { count: 1, .. })))
            .collect();
        prop_assume!(deliveries.len() > 1);
        let (first, second) = (history[deliveries[0]].clone(), history[deliveries[1]].clone());
        history[deliveries[0]].fate = second.fate;
        history[deliveries[1]].fate = first.fate;
        let account = check(&history);
        prop_assert!(account.violations.len() + account.overtakings.len() > 0);
    }
}
