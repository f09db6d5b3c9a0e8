use tokio::time::Instant;

use proptest::prelude::*;

use super::super::jsonl::round_trip;
use super::super::operation::Fate;
use super::super::simulate::{done, failed, lost, overlapped};
use super::*;
use crate::cases::Random;

const X: u64 = 0;
const Y: u64 = 1;

fn a(key: u64, value: u64) -> Step {
    Step::Append { key, value }
}

fn r(key: u64) -> Step {
    Step::Read { key }
}

/// Transactions that all overlap, so that real time says nothing.
fn together(transactions: &[(&[Step], &[&[u64]])]) -> Vec<Transaction> {
    let all = transactions.iter().enumerate();
    all.map(|(client, (steps, lists))| {
        let lists = lists.iter().map(|list| list.to_vec()).collect();
        done(client, (0, 9), steps.to_vec(), lists)
    })
    .collect()
}

fn classes(history: &[Transaction]) -> Vec<Class> {
    let findings = check(history);
    let mut classes: Vec<_> = findings.anomalies.iter().map(|found| found.class).collect();
    classes.sort_unstable();
    classes.dedup();
    classes
}

#[test]
fn what_is_serial_passes() {
    let history = together(&[
        (&[a(X, 1), a(Y, 1)], &[]),
        (&[r(X), a(X, 2)], &[&[1]]),
        (&[r(X), r(Y), a(X, 3), r(X)], &[&[1, 2], &[1], &[1, 2, 3]]),
        (&[r(Z_EMPTY)], &[&[]]),
    ]);
    let findings = check(&history);
    assert_eq!(findings.anomalies, vec![]);
    assert_eq!(findings.committed, 4);
}

const Z_EMPTY: u64 = 7;

#[test]
fn g0_dirty_writes() {
    let history = together(&[
        (&[a(X, 1), a(Y, 1)], &[]),
        (&[a(X, 2), a(Y, 2)], &[]),
        (&[r(X)], &[&[1, 2]]),
        (&[r(Y)], &[&[2, 1]]),
    ]);
    assert_eq!(classes(&history), [Class::G0]);
    let findings = check(&history);
    let found = findings.first(Level::ReadCommitted).unwrap();
    let words = found.to_string();
    assert!(
        words.starts_with("G0: a cycle of 2 transactions:"),
        "{words}"
    );
    for line in [
        "T0 appended to list 0 right before T1 appended 2",
        "T1 appended to list 1 right before T0 appended 1",
    ] {
        assert!(words.contains(line), "{words}");
    }
    assert!(words.contains("T0 = client 0"), "{words}");
}

#[test]
fn g1a_aborted_reads() {
    let mut history = together(&[(&[r(X)], &[&[1]])]);
    history.push(failed(1, (0, 9), vec![a(X, 1)]));
    assert_eq!(classes(&history), [Class::G1a]);
    // It may have committed, and did.
    history[1] = lost(1, 0, vec![a(X, 1)]);
    assert_eq!(check(&history).committed, 2);
    assert_eq!(classes(&history), []);
}

#[test]
fn g1b_intermediate_reads() {
    let history = together(&[(&[a(X, 1), a(X, 2)], &[]), (&[r(X)], &[&[1]])]);
    assert!(classes(&history).contains(&Class::G1b));
    let own = together(&[(&[a(X, 1), r(X), a(X, 2)], &[&[1]])]);
    assert_eq!(classes(&own), []);
}

#[test]
fn g1c_circular_information() {
    let history = together(&[(&[a(X, 1), r(Y)], &[&[1]]), (&[a(Y, 1), r(X)], &[&[1]])]);
    assert_eq!(classes(&history), [Class::G1c]);
    let findings = check(&history);
    assert!(
        findings.anomalies[0]
            .to_string()
            .contains("T1 read 1 in list 0, which T0")
    );
}

#[test]
fn g_single_read_skew() {
    let history = together(&[
        (&[a(X, 1), a(Y, 1)], &[]),
        (&[r(X), r(Y)], &[&[], &[1]]),
        (&[r(X)], &[&[1]]),
    ]);
    assert_eq!(classes(&history), [Class::GSingle]);
    let findings = check(&history);
    assert_eq!(findings.first(Level::ReadCommitted), None);
    assert!(findings.first(Level::Snapshot).is_some());
}

#[test]
fn g2_write_skew() {
    let history = together(&[
        (&[r(X), a(Y, 1)], &[&[]]),
        (&[r(Y), a(X, 1)], &[&[]]),
        (&[r(X), r(Y)], &[&[1], &[1]]),
    ]);
    assert_eq!(classes(&history), [Class::G2]);
    let findings = check(&history);
    assert_eq!(findings.first(Level::Snapshot), None);
    let words = findings.first(Level::Serializable).unwrap().to_string();
    assert!(
        words.contains("T0 read list 0 without 1, which T1 appended"),
        "{words}"
    );
    // Also if nobody read what they wrote.
    assert_eq!(classes(&history[..2]), [Class::G2]);
    // But not if one of them may never have committed.
    let mut unknown = history[..2].to_vec();
    unknown[1].fate = Fate::Unknown;
    assert_eq!(classes(&unknown), []);
}

#[test]
fn lost_updates() {
    let history = together(&[
        (&[r(X), a(X, 1)], &[&[]]),
        (&[r(X), a(X, 2)], &[&[]]),
        (&[r(X)], &[&[1, 2]]),
    ]);
    assert_eq!(classes(&history), [Class::LostUpdate, Class::GSingle]);
}

#[test]
fn reads_that_fit_no_order() {
    let history = together(&[
        (&[a(X, 1)], &[]),
        (&[a(X, 2)], &[]),
        (&[r(X)], &[&[1, 2]]),
        (&[r(X)], &[&[2]]),
    ]);
    assert_eq!(classes(&history), [Class::IncompatibleOrder]);
    assert!(
        check(&history).anomalies[0]
            .to_string()
            .contains("at place 0")
    );
}

#[test]
fn appends_that_changed_places() {
    let history = together(&[(&[a(X, 1), a(X, 2)], &[]), (&[r(X)], &[&[2, 1]])]);
    assert!(classes(&history).contains(&Class::IncompatibleOrder));
    let hole = together(&[(&[a(X, 1), a(X, 2)], &[]), (&[r(X)], &[&[2]])]);
    assert!(classes(&hole).contains(&Class::IncompatibleOrder));
}

#[test]
fn reads_that_cannot_be() {
    let nobody = together(&[(&[r(X)], &[&[5]])]);
    assert_eq!(classes(&nobody), [Class::Impossible]);
    let twice = together(&[(&[a(X, 1)], &[]), (&[r(X)], &[&[1, 1]])]);
    assert_eq!(classes(&twice), [Class::Impossible]);
    let same = together(&[(&[a(X, 1)], &[]), (&[a(X, 1)], &[])]);
    assert_eq!(classes(&same), [Class::Impossible]);
}

#[test]
fn reads_at_odds_with_their_own_transaction() {
    let blind = together(&[(&[a(X, 1), r(X)], &[&[]])]);
    assert_eq!(classes(&blind), [Class::Internal]);
    let foreseen = together(&[(&[r(X), a(X, 1)], &[&[1]])]);
    assert_eq!(classes(&foreseen), [Class::Internal]);
    let changing = together(&[(&[a(X, 1)], &[]), (&[r(X), r(X)], &[&[], &[1]])]);
    assert_eq!(classes(&changing), [Class::Internal]);
}

#[test]
fn a_stale_read_is_wrong_in_real_time_only() {
    let history = [
        done(0, (0, 1), vec![a(X, 1)], vec![]),
        done(1, (2, 3), vec![r(X)], vec![vec![]]),
        done(1, (4, 5), vec![r(X)], vec![vec![1]]),
    ];
    let findings = check(&history);
    assert_eq!(findings.first(Level::Serializable), None);
    let found = findings.first(Level::StrictSerializable).unwrap();
    assert_eq!((found.class, found.real_time), (Class::GSingle, true));
    let words = found.to_string();
    assert!(words.contains("T0 had ended before T1 began"), "{words}");
    assert!(words.contains("a cycle of 2 transactions"), "{words}");
    let mut overlapping = history.to_vec();
    overlapping[1] = done(1, (1, 3), vec![r(X)], vec![vec![]]);
    assert_eq!(check(&overlapping).anomalies, vec![]);
    // When its end is unknown, it may have been late.
    let mut late = history.to_vec();
    late[0].fate = Fate::Unknown;
    assert_eq!(check(&late).anomalies, vec![]);
}

#[test]
fn keys_live_for_their_share() {
    let mut keys = Keys::new(2, 3);
    let values: Vec<_> = (0..4).map(|_| keys.append(0)).collect();
    assert_eq!(values, [a(0, 1), a(0, 2), a(0, 3), a(2, 1)]);
    assert_eq!(keys.read(1), r(1));
}

type Done = (Vec<Step>, Lists);

/// Transactions one after the other, some of which abort.
fn serial(random: &mut Random, count: usize) -> Vec<Done> {
    let mut keys = Keys::new(8, 64);
    let mut lists: std::collections::HashMap<u64, Vec<u64>> = Default::default();
    (0..count)
        .map(|_| {
            let mut read = Vec::new();
            let steps = (0..=random.below(4))
                .map(|_| {
                    let choice = random.next();
                    let step = if random.below(2) == 0 {
                        keys.append(choice)
                    } else {
                        keys.read(choice)
                    };
                    match step {
                        Step::Append { key, value } => lists.entry(key).or_default().push(value),
                        Step::Read { key } => read.push(lists.entry(key).or_default().clone()),
                    }
                    step
                })
                .collect();
            (steps, read)
        })
        .collect()
}

fn simulated(random: &mut Random, count: usize, lost: u64) -> Vec<Transaction> {
    let steps = serial(random, count);
    let mut history = overlapped(random, steps, 5, lost);
    for index in 0..count / 10 {
        let steps = vec![r(X), a(u64::MAX, index as u64)];
        let ghost = if index % 2 == 0 {
            Fate::Unknown
        } else {
            Fate::Failed
        };
        let mut transaction = history[index * 10].clone();
        (transaction.input, transaction.fate) = (steps, ghost);
        history.push(transaction);
    }
    history
}

/// Run with `CHECKER_TRANSACTIONS=100000` to measure.
#[test]
fn many_transactions_are_quick() {
    let count = std::env::var("CHECKER_TRANSACTIONS")
        .ok()
        .and_then(|count| count.parse().ok());
    let history = simulated(&mut Random::seeded(1), count.unwrap_or(5_000), 1);
    let started = Instant::now();
    assert_eq!(check(&history).anomalies, vec![]);
    println!(
        "{} transactions in {:.1?}",
        history.len(),
        started.elapsed()
    );
}

/// A store whose transactions read their own snapshot, some behind, and all commit.
#[test]
fn a_store_that_is_broken_throughout_is_judged_too() {
    let mut random = Random::seeded(2);
    let mut keys = Keys::new(8, 64);
    let mut lists: std::collections::HashMap<u64, Vec<u64>> = Default::default();
    let count = std::env::var("CHECKER_TRANSACTIONS")
        .ok()
        .and_then(|count| count.parse().ok());
    let steps = (0..count.unwrap_or(2_000))
        .map(|_| {
            let (seen, written) = (keys.read(random.next()), keys.append(random.next()));
            let Step::Read { key } = seen else {
                unreachable!()
            };
            let mut list = lists.get(&key).cloned().unwrap_or_default();
            list.truncate(
                list.len()
                    .saturating_sub(usize::try_from(random.below(4)).unwrap()),
            );
            if let Step::Append { key, value } = written {
                lists.entry(key).or_default().push(value);
            }
            (vec![seen, written], vec![list])
        })
        .collect();
    let history = overlapped(&mut random, steps, 5, 0);
    let started = Instant::now();
    let findings = check(&history);
    println!(
        "{} transactions, {} anomalies, in {:.1?}",
        history.len(),
        findings.anomalies.len(),
        started.elapsed()
    );
    assert!(findings.first(Level::Serializable).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
        let history = simulated(&mut Random::seeded(seed), 150, 5);
        prop_assert_eq!(check(&history).anomalies, vec![]);
        round_trip(&history);
    }

    /// Reads one element less than there is: stale, and no longer in the transaction's place.
    #[test]
    fn a_stale_read_fails(seed: u64) {
        let mut random = Random::seeded(seed);
        let mut steps = serial(&mut random, 100);
        // A read, and by whom its list was last written some transactions earlier.
        let stale = steps.iter().position(|(steps, lists)| {
            steps.len() == 1 && lists.first().is_some_and(|list| !list.is_empty())
        });
        prop_assume!(stale.is_some());
        steps[stale.unwrap()].1[0].pop();
        // One after the other: real time tells.
        let history = overlapped(&mut random, steps, 0, 0);
        prop_assert!(check(&history).first(Level::StrictSerializable).is_some());
    }

    /// Two transactions at once on a snapshot each, as under snapshot isolation.
    #[test]
    fn a_write_skew_anywhere_fails(seed: u64) {
        let mut random = Random::seeded(seed);
        let mut steps = serial(&mut random, 100);
        let (x, y) = (1_000, 1_001);
        let at = usize::try_from(random.below(90)).unwrap();
        steps.insert(at, (vec![r(x), a(y, 1)], vec![vec![]]));
        steps.insert(at + 3, (vec![r(y), a(x, 1)], vec![vec![]]));
        let history = overlapped(&mut random, steps, 9, 0);
        let findings = check(&history);
        let found = findings.first(Level::Serializable);
        prop_assert_eq!(found.map(|found| found.class), Some(Class::G2));
        prop_assert!(findings.first(Level::Snapshot).is_none());
    }
}

/// Whether some order of all transactions explains all reads; by trying them all.
fn explained(history: &[Transaction], real_time: bool) -> bool {
    fn search(
        history: &[Transaction],
        left: &mut Vec<usize>,
        lists: &mut std::collections::HashMap<u64, Vec<u64>>,
        real_time: bool,
    ) -> bool {
        if left.is_empty() {
            return true;
        }
        for place in 0..left.len() {
            let next = left[place];
            let late = |other: &usize| history[*other].precedes(&history[next]);
            if real_time && left.iter().any(late) {
                continue;
            }
            let before = lists.clone();
            let mut answers = history[next].answer().unwrap().iter();
            let fits = history[next].input.iter().all(|step| match *step {
                Step::Append { key, value } => {
                    lists.entry(key).or_default().push(value);
                    true
                }
                Step::Read { key } => lists.entry(key).or_default() == answers.next().unwrap(),
            });
            left.remove(place);
            if fits && search(history, left, lists, real_time) {
                return true;
            }
            left.insert(place, next);
            *lists = before;
        }
        false
    }
    let mut left = (0..history.len()).collect();
    search(history, &mut left, &mut Default::default(), real_time)
}

/// Transactions that read what they like, as long as it begins like the final list.
fn arbitrary(random: &mut Random) -> Vec<Transaction> {
    let mut lists: [Vec<u64>; 2] = Default::default();
    let small = |random: &mut Random, limit: u64| usize::try_from(random.below(limit)).unwrap();
    let transactions: Vec<Vec<Step>> = (0..2 + random.below(4))
        .map(|_| {
            (0..=random.below(3))
                .map(|_| {
                    let key = random.below(2);
                    let list = &mut lists[usize::try_from(key).unwrap()];
                    if random.below(2) == 0 {
                        return r(key);
                    }
                    let value = list.len() as u64;
                    let at = if random.below(3) == 0 {
                        small(random, value + 1)
                    } else {
                        list.len()
                    };
                    list.insert(at, value);
                    a(key, value)
                })
                .collect()
        })
        .collect();
    let all = transactions.into_iter().enumerate();
    all.map(|(client, steps)| {
        let reads = steps.iter().filter_map(|step| match step {
            Step::Read { key } => Some(&lists[usize::try_from(*key).unwrap()]),
            Step::Append { .. } => None,
        });
        let answer = reads
            .map(|list| list[..small(random, list.len() as u64 + 1)].to_vec())
            .collect();
        let called = random.below(20);
        done(client, (called, called + random.below(20)), steps, answer)
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5_000))]

    #[test]
    fn the_verdict_is_that_of_trying_all_orders(seed: u64) {
        let history = arbitrary(&mut Random::seeded(seed));
        let findings = check(&history);
        let serializable = findings.first(Level::Serializable).is_none();
        prop_assert_eq!(serializable, explained(&history, false), "{:?} {:?}", findings, history);
        let strict = findings.first(Level::StrictSerializable).is_none();
        prop_assert_eq!(strict, explained(&history, true), "{:?} {:?}", findings, history);
    }
}
