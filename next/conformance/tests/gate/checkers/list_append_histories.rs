//! Transactions on lists.

use std::collections::HashMap;

use proptest::prelude::*;
use tenure_conformance::checkers::list_append::{
    Class, Level, Lists, Reads, Step, Steps, Transaction, anomalies, check,
};
use tenure_conformance::checkers::{Operation, Outcome};

use super::simulate::{self, Choices, Fate, World};
use super::{assert_found, assert_round_trip, failed, ok, unknown};

const X: u64 = 0;
const Y: u64 = 1;

/// Returns the history of a store that runs one transaction after the other.
fn history(choices: Choices) -> Vec<Transaction> {
    let mut world = World::new(6, choices);
    let (mut lists, mut store) = (Lists::new(3, 12), HashMap::new());
    while turn(&mut world, &mut lists, &mut store).is_some() {}
    world.finish()
}

fn turn(world: &mut World<Steps, Reads>, lists: &mut Lists, store: &mut HashMap<u64, Vec<u64>>) -> Option<()> {
    let client = world.turn()?;
    let fate = world.fate()?;
    let (mut steps, mut reads) = (Vec::new(), Vec::new());
    for _ in 0..=world.choices.below(4)? {
        let list = world.choices.below(3)?;
        let step = if world.choices.below(2)? == 0 {
            lists.read(list)
        } else {
            lists.append(list)
        };
        match step {
            Step::Read { key } => reads.push(store.get(&key).cloned().unwrap_or_default()),
            Step::Append { key, value } if matches!(fate, Fate::Answered | Fate::Lost) => {
                store.entry(key).or_default().push(value);
            }
            Step::Append { .. } => {}
        }
        steps.push(step);
    }
    let outcome = match fate {
        Fate::Answered => Outcome::Ok(Reads(reads)),
        Fate::Failed => Outcome::Failed,
        Fate::Lost | Fate::Dropped => Outcome::Unknown,
    };
    world.record(client, Steps(steps), outcome).map(|_| ())
}

proptest! {
    #![proptest_config(simulate::config())]
    #[test]
    fn transactions_of_a_serial_store_pass(seed: u64, length in 0_usize..1500) {
        let history = history(Choices::new(seed, length));
        assert_round_trip(&history);
        prop_assert_eq!(anomalies(&history), vec![]);
    }
}

#[test]
fn transactions_100000_of_a_serial_store_are_judged() {
    let history = history(Choices::new(7, 1_200_000));
    assert!(history.len() > 100_000, "{}", history.len());
    let summary = check(&history, Level::StrictSerializable).unwrap();
    assert!(
        summary.committed > 80_000 && summary.lists > 10_000 && summary.permitted == 0,
        "{summary:?}"
    );
}

fn a(key: u64, value: u64) -> Step {
    Step::Append { key, value }
}

fn r(key: u64) -> Step {
    Step::Read { key }
}

fn committed(span: (u64, u64), steps: &[Step], lists: &[&[u64]]) -> Transaction {
    let lists = lists.iter().map(|list| list.to_vec()).collect();
    ok(span, Steps(steps.to_vec()), Reads(lists))
}

/// Transactions that all overlap, so that real time says nothing.
fn together(transactions: &[(&[Step], &[&[u64]])]) -> Vec<Transaction> {
    transactions
        .iter()
        .map(|(steps, lists)| committed((0, 9), steps, lists))
        .collect()
}

/// Asserts that a history has anomalies of `class`, which `level` excludes and the level below it permits.
fn assert_class(history: &[Transaction], class: Class, level: Level, phrases: &[&str]) {
    let found = anomalies(history);
    let one = found.iter().find(|found| found.class == class);
    let one = one.unwrap_or_else(|| panic!("no {class} in {found:?}"));
    let below = match level {
        Level::ReadCommitted => None,
        Level::Snapshot => Some(Level::ReadCommitted),
        Level::Serializable => Some(Level::Snapshot),
        Level::StrictSerializable => Some(Level::Serializable),
    };
    assert!(
        one.breaks(level) && below.is_none_or(|below| !one.breaks(below)),
        "{one:?}"
    );
    for phrase in phrases.iter().chain([&class.to_string().as_str()]) {
        assert!(
            one.violation.what.contains(phrase),
            "expected {phrase:?} in: {}",
            one.violation
        );
    }
    assert_found(check(history, level), "");
    assert!(below.is_none_or(|below| check(history, below).is_ok()), "{found:?}");
}

#[test]
fn transactions_that_write_in_a_cycle_are_g0() {
    let history = together(&[
        (&[a(X, 1), a(Y, 1)], &[]),
        (&[a(X, 2), a(Y, 2)], &[]),
        (&[r(X)], &[&[1, 2]]),
        (&[r(Y)], &[&[2, 1]]),
    ]);
    let phrases = [
        "a cycle of 2 transactions",
        "ww: #0 appended to list 0 before #1 appended 2",
        "#0 client 0",
    ];
    assert_class(&history, Class::G0, Level::ReadCommitted, &phrases);
    // The same if an answer was lost: the reads show that the transaction committed.
    let mut history = history;
    history[0] = unknown(0, history[0].input.clone());
    assert_class(&history, Class::G0, Level::ReadCommitted, &phrases[..2]);
}

#[test]
fn transaction_that_reads_an_aborted_append_is_g1a() {
    let mut history = vec![
        failed((0, 9), Steps(vec![a(X, 1)])),
        committed((0, 9), &[r(X)], &[&[1]]),
    ];
    assert_class(
        &history,
        Class::G1a,
        Level::ReadCommitted,
        &["#1 read 1 in list 0", "#0 appended before it aborted"],
    );
    history[0] = unknown(0, Steps(vec![a(X, 1)]));
    assert_eq!(anomalies(&history), vec![], "the read shows that it committed");
}

#[test]
fn transaction_that_reads_an_intermediate_append_is_g1b() {
    let history = together(&[(&[a(X, 1), a(X, 2)], &[]), (&[r(X)], &[&[1]])]);
    assert_class(
        &history,
        Class::G1b,
        Level::ReadCommitted,
        &["up to 1, after which #0 appended more"],
    );
}

#[test]
fn transactions_that_read_each_other_are_g1c() {
    let history = together(&[(&[a(X, 1), r(Y)], &[&[1]]), (&[a(Y, 1), r(X)], &[&[1]])]);
    assert_class(
        &history,
        Class::G1c,
        Level::ReadCommitted,
        &["wr: #0 appended 1 to list 0, which #1 read"],
    );
}

#[test]
fn transaction_that_reads_half_of_another_is_g_single() {
    let history = together(&[
        (&[a(X, 1), a(Y, 1)], &[]),
        (&[r(X), r(Y)], &[&[1], &[]]),
        (&[r(Y)], &[&[1]]),
    ]);
    assert_class(
        &history,
        Class::GSingle,
        Level::Snapshot,
        &["rw: #1 read list 1 without 1, which #0 appended"],
    );
}

#[test]
fn transactions_that_update_one_state_are_a_lost_update() {
    let history = together(&[
        (&[r(X), a(X, 1)], &[&[]]),
        (&[r(X), a(X, 2)], &[&[]]),
        (&[r(X)], &[&[1, 2]]),
    ]);
    assert_class(
        &history,
        Class::LostUpdate,
        Level::Snapshot,
        &["#0 and #1 both read list 0 with 0 values"],
    );
}

#[test]
fn transactions_that_each_miss_the_other_are_g2() {
    let skew: [(&[Step], &[&[u64]]); 3] = [
        (&[r(X), a(Y, 1)], &[&[]]),
        (&[r(Y), a(X, 1)], &[&[]]),
        (&[r(X), r(Y)], &[&[1], &[1]]),
    ];
    assert_class(
        &together(&skew),
        Class::G2,
        Level::Serializable,
        &["a cycle of 2 transactions"],
    );
    // The same with appends that were never read.
    assert_class(
        &together(&skew[..2]),
        Class::G2,
        Level::Serializable,
        &["a cycle of 2 transactions"],
    );
}

#[test]
fn cycle_that_is_printed_is_the_shortest() {
    // Write skew over three lists, beside one over two.
    let (z, u, v) = (2, 3, 4);
    let history = together(&[
        (&[r(X), a(Y, 1)], &[&[]]),
        (&[r(Y), a(z, 1)], &[&[]]),
        (&[r(z), a(X, 1), a(u, 1), r(v)], &[&[], &[]]),
        (&[r(u), a(v, 1)], &[&[]]),
    ]);
    assert_class(
        &history,
        Class::G2,
        Level::Serializable,
        &["a cycle of 2 transactions", "#3 read list 3"],
    );
}

#[test]
fn transaction_that_reads_the_past_breaks_real_time_alone() {
    let history = [committed((0, 1), &[a(X, 1)], &[]), committed((2, 3), &[r(X)], &[&[]])];
    let phrases = [
        "with real time",
        "time: #0 ended before #1 began",
        "rw: #1 read list 0 without 1",
    ];
    assert_class(&history, Class::GSingle, Level::StrictSerializable, &phrases);
    let overlapping = [committed((0, 3), &[a(X, 1)], &[]), committed((2, 3), &[r(X)], &[&[]])];
    assert_eq!(anomalies(&overlapping), vec![]);
}

#[test]
fn read_that_no_order_explains_is_found() {
    let found = |transactions: &[(&[Step], &[&[u64]])], class, level| {
        assert_class(&together(transactions), class, level, &[]);
    };
    let writes: (&[Step], &[&[u64]]) = (&[a(X, 1)], &[]);
    let more: (&[Step], &[&[u64]]) = (&[a(X, 2)], &[]);
    let committed = Level::ReadCommitted;
    found(&[(&[r(X)], &[&[1]])], Class::Impossible, committed);
    found(&[writes, (&[r(X)], &[&[1, 1]])], Class::Impossible, committed);
    found(&[writes, writes], Class::Impossible, committed);
    found(
        &[writes, more, (&[r(X)], &[&[1, 2]]), (&[r(X)], &[&[2]])],
        Class::IncompatibleOrder,
        committed,
    );
    found(
        &[(&[a(X, 1), a(X, 2)], &[]), (&[r(X)], &[&[2, 1]])],
        Class::IncompatibleOrder,
        committed,
    );
    found(&[(&[a(X, 1), r(X)], &[&[]])], Class::Internal, Level::Snapshot);
    found(&[(&[r(X), a(X, 1)], &[&[1]])], Class::Internal, Level::Snapshot);
    found(
        &[writes, (&[r(X), r(X)], &[&[], &[1]])],
        Class::Internal,
        Level::Snapshot,
    );
}

#[test]
fn operation_of_a_transaction_is_printed_with_its_answer() {
    let transaction: Operation<Steps, Reads> = committed((1, 4), &[r(X), a(Y, 2)], &[&[3, 4]]);
    assert_eq!(
        transaction.to_string(),
        "client 0: read list 0, append 2 to list 1 -> committed, [3, 4] [1 to 4]"
    );
}
