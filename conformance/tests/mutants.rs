//! Stores that break the rules, and the cases that must notice.
//!
//! Each mutant is the embedded store with one thing broken in between. For every case of the list
//! at least one mutant must make it say `Violated`: a case that cannot fail proves nothing. And
//! the same wrapper with nothing broken must pass, or the mutants would prove nothing.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[path = "mutants/barrier.rs"]
mod barrier;
#[path = "squares/proved.rs"]
mod proved;
#[path = "mutants/rw_lock.rs"]
mod rw_lock;
#[path = "mutants/store.rs"]
mod store;

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;

use barrier::{Bug as OfBarriers, Gates};
use rw_lock::Bug as OfRwLocks;
use store::{Bug, CAUGHT, Mutants, election, queue};
use tenure_conformance::format::{self, About};
use tenure_conformance::table::{Square, TABLE};
use tenure_conformance::{CASES, Case, Outcome, Report, Subject, run};

/// A bug, and the cases that must catch it.
type Row<B> = (B, &'static [&'static str]);

#[test]
fn every_case_can_fail() {
    // Those of the table and of limits have their mutants in `squares.rs`.
    let squares = TABLE.iter().flat_map(|row| row.squares);
    let squares = squares.filter_map(|square| match square {
        Square::Case(id) => Some(id),
        Square::Reason(_) => None,
    });
    let caught: HashSet<&str> = CAUGHT
        .iter()
        .chain(election::CAUGHT)
        .chain(queue::CAUGHT)
        .flat_map(|(_, ids)| ids.iter().copied())
        .chain(barrier::CAUGHT.iter().flat_map(|(_, ids)| *ids).copied())
        .chain(rw_lock::CAUGHT.iter().flat_map(|(_, ids)| *ids).copied())
        .chain(proved::LIMITS.iter().copied())
        .chain(squares)
        .collect();
    for case in CASES {
        assert!(caught.contains(case.id), "no mutant makes {} fail", case.id);
    }
    assert_eq!(
        caught.len(),
        CASES.len(),
        "a mutant names a case that is not there"
    );
}

/// How often a case may look again for a mutant that it missed. Most are told by time, and the first time all run
/// beside each other; some break a rule only where one of two things comes first.
const AGAIN: usize = 5;

async fn looked_for<S: Subject + 'static>(subject: S, ids: &[&str]) -> Report {
    run(
        vec![Arc::new(subject)],
        |case| ids.contains(&case.id),
        |_| {},
    )
    .await
}

/// Whose turn it is to look again: one at a time, whatever the table.
static AGAIN_TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// All mutants at once; and then, one after the other, those that were missed.
async fn hunt<B, S>(table: impl Iterator<Item = &'static Row<B>>, subject: fn(B) -> S)
where
    B: Copy + Debug + Send + Sync + 'static,
    S: Subject + 'static,
{
    let mut runs = tokio::task::JoinSet::new();
    for (bug, ids) in table {
        runs.spawn(async move { (bug, ids, looked_for(subject(*bug), ids).await) });
    }
    let (mut caught, mut missed) = (Vec::new(), Vec::new());
    while let Some(done) = runs.join_next().await {
        let (bug, ids, report) = done.unwrap();
        for id in *ids {
            match report.columns[0].outcome(id) {
                Some(Outcome::Violated { counterexample, .. }) => {
                    caught.push(format!("{bug:?}, {id}: {counterexample}"));
                }
                other => missed.push((*bug, *id, format!("{other:?}"))),
            }
        }
    }
    let mut never = Vec::new();
    for (bug, id, mut outcome) in missed {
        let _turn = AGAIN_TURN.lock().await;
        let mut again = 0;
        loop {
            if again == AGAIN {
                never.push(format!("{bug:?}, {id}: {outcome}"));
                break;
            }
            again += 1;
            let report = looked_for(subject(bug), &[id]).await;
            match report.columns[0].outcome(id) {
                Some(Outcome::Violated { counterexample, .. }) => {
                    let first = format!("missed {again} times, the first: {outcome}");
                    caught.push(format!("{bug:?}, {id}: {counterexample} ({first})"));
                    break;
                }
                other => outcome = format!("{other:?}"),
            }
        }
    }
    // Alone, so that they are not lost among pages of those that were caught.
    assert!(never.is_empty(), "not caught:\n{}", never.join("\n"));
    println!("{}", caught.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_mutant_is_caught() {
    let table = CAUGHT.iter().chain(election::CAUGHT).chain(queue::CAUGHT);
    hunt(table, Mutants).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_barrier_mutant_is_caught() {
    hunt(barrier::CAUGHT.iter(), Gates).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_mutant_of_read_write_locks_is_caught() {
    hunt(rw_lock::CAUGHT.iter(), rw_lock::Mutants).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_wrapper_without_a_bug_passes() {
    let subject: Arc<dyn Subject> = Arc::new(Mutants(Bug::Nothing));
    let caught = CAUGHT.iter().chain(election::CAUGHT);
    let ours = |case: &Case| caught.clone().any(|(_, ids)| ids.contains(&case.id));
    let report = run(vec![subject], ours, |_| {}).await;
    assert!(report.exit_ok(), "{report}");
    let cases = CASES.iter().filter(|case| ours(case)).count();
    assert_eq!(report.tally().held, cases, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_same_gate_without_a_bug_passes() {
    let subject: Arc<dyn Subject> = Arc::new(Gates(OfBarriers::Nothing));
    let report = run(vec![subject], |case| case.rule.starts_with('B'), |_| {}).await;
    assert!(report.exit_ok(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn read_write_locks_without_a_bug_pass() {
    let ids: Vec<&str> = rw_lock::CAUGHT
        .iter()
        .flat_map(|(_, ids)| *ids)
        .copied()
        .collect();
    let distinct: HashSet<&str> = ids.iter().copied().collect();
    let report = looked_for(rw_lock::Mutants(OfRwLocks::Nothing), &ids).await;
    assert!(report.exit_ok(), "{report}");
    assert_eq!(report.tally().held, distinct.len(), "{report}");
}

/// What a case recorded is in the report, as the picture of what went wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_violation_shows_its_history() {
    for (bug, id) in [
        (Bug::NoExclusion, "l1_random_histories_stay_exclusive"),
        (
            Bug::Queue(queue::Bug::ForgetsPriorities),
            "q2_random_consumers_lose_and_double_nothing",
        ),
        (Bug::BlindCommit, "t1_appended_lists_have_no_cycles"),
        (Bug::HalfCommit, "t1_the_bank_keeps_its_money"),
    ] {
        let subject: Arc<dyn Subject> = Arc::new(Mutants(bug));
        let report = run(vec![subject], |case| case.id == id, |_| {}).await;
        let outcome = report.columns[0].outcome(id).unwrap();
        let history = outcome
            .history()
            .unwrap_or_else(|| panic!("{id}: {outcome}"));
        let wrong = history.bars.iter().filter(|bar| bar.offends).count();
        assert!(wrong > 0 && wrong < history.bars.len(), "{id}: {history:?}");
        assert!(history.lanes.len() > 1, "{id}: {history:?}");
        let page = format::html(&report, &About::now());
        assert_eq!(page.matches("<g class=\"bar ").count(), history.bars.len());
    }
}
