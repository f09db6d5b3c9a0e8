//! Each square of the table notices that its rule is broken for its role.
//!
//! One delegating wrapper around the embedded store breaks one rule in one way for one role at a
//! time. The case of the square must say `Violated`, and must hold without the bug. Everything runs
//! under a paused clock, on one thread.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[path = "squares/proved.rs"]
mod proved;
#[path = "squares/wrapper.rs"]
mod wrapper;

use std::time::Duration;

use tenure_conformance::roles::Role;
use tenure_conformance::table::{Square, TABLE};
use tenure_conformance::{CASES, Outcome};
use wrapper::{At, Bug, Stage, Trouble};

/// The generic ways to break each rule, by the end of its cases' names.
const BROKEN: &[(&str, &[Bug])] = &[
    ("ends_with_its_session", &[Bug::OutlivesItsSession]),
    ("ends_with_a_dropped_session", &[Bug::NeverLetsGo]),
    (
        "outlives_three_ttls",
        &[
            Bug::EndsAfter(0.8),
            Bug::EndsAfter(1.1),
            Bug::EndsAfter(2.5),
        ],
    ),
    ("loss_is_signalled", &[Bug::PartOfTheTtl(0.6)]),
    (
        "keeps_a_long_ttl",
        &[Bug::PartOfTheTtl(0.5), Bug::PartOfTheTtl(0.85)],
    ),
    ("outlives_a_silence", &[Bug::FreedBy(Trouble::Silence)]),
    ("outlives_a_cut", &[Bug::FreedBy(Trouble::Cut)]),
    ("outlives_slow_answers", &[Bug::FreedBy(Trouble::Mute)]),
    ("ends_after_a_silence", &[Bug::PartOfTheTtl(4.0)]),
    (
        "goes_to_a_waiter_after_a_silence",
        &[Bug::PartOfTheTtl(4.0)],
    ),
    ("ends_with_a_revoked_session", &[Bug::OutlivesItsSession]),
    (
        "excludes_others",
        &[Bug::SharedWithAll, Bug::SharedInItsSession],
    ),
    (
        "tokens_rise",
        &[Bug::ConstantToken, Bug::TokenForgetsWhenIdle],
    ),
    (
        "keeps_order_when_waiters_give_up",
        &[
            Bug::CancelTurnsTheOrder(At::Head),
            Bug::CancelTurnsTheOrder(At::Middle),
            Bug::CancelTurnsTheOrder(At::End),
        ],
    ),
    (
        "is_handed_on_at_once",
        &[Bug::GrantIsLate(Duration::from_millis(250))],
    ),
    (
        "is_waited_for_without_requests",
        &[Bug::Polls(Duration::from_millis(500))],
    ),
    (
        "wakes_after_a_silence",
        &[
            Bug::DeafAfter(Trouble::Silence),
            Bug::MissesIn(Trouble::Silence),
        ],
    ),
    ("wakes_after_a_cut", &[Bug::DeafAfter(Trouble::Cut)]),
    (
        "wakes_though_news_is_lost",
        &[Bug::DeafAfter(Trouble::Mute), Bug::MissesIn(Trouble::Mute)],
    ),
    ("try_leaves_nothing", &[Bug::TryQueues]),
    (
        "limit_bounds_the_wait",
        &[Bug::WithdrawsNothing, Bug::LetsPass],
    ),
    (
        "cancelled_acquire_leaves_nothing",
        &[Bug::WithdrawsNothing, Bug::ReleasesNothing],
    ),
    (
        "waiter_ends_with_its_session",
        &[Bug::Ghosts, Bug::CannotClose],
    ),
    (
        "waiter_ends_when_its_session_is_lost",
        &[Bug::PartOfTheTtl(60.0), Bug::FrozenClock],
    ),
    ("drop_releases", &[Bug::ReleasesNothing]),
    ("late_release_spares_the_next", &[Bug::ReleasesTheNext]),
    (
        "meets_no_other_name_or_kind",
        &[Bug::MeetsKinds, Bug::MeetsNames],
    ),
    (
        "meets_no_other_namespace",
        &[Bug::MeetsNamespaces, Bug::ReleasesInAllNamespaces],
    ),
];

/// The ways to break a limit, and the cases that must notice.
const LIMITS: &[(&str, Role, &[Bug])] = &[
    (
        "t5_values_of_every_size_come_back",
        Role::Lock,
        &[
            Bug::CutsValues(65_536),
            Bug::CutsValues(4_095),
            Bug::CutsValues(1_048_575),
        ],
    ),
    (
        "t5_every_operation_counts",
        Role::Lock,
        &[
            Bug::DropsWritesBeyond(64),
            Bug::DropsWritesBeyond(1),
            Bug::DropsWritesBeyond(124),
            Bug::DropsDeletes,
            Bug::DropsComparesBeyond(10),
            Bug::DropsComparesBeyond(124),
            Bug::DropsComparesBeyond(0),
        ],
    ),
    ("t2_a_delete_deletes", Role::Lock, &[Bug::DropsDeletes]),
    (
        "q1_items_of_every_size_come_back",
        Role::Lock,
        &[Bug::CutsValues(65_536), Bug::CutsValues(255)],
    ),
    (
        "e4_values_of_every_size_are_seen",
        Role::Lock,
        &[Bug::CutsValues(65_536), Bug::CutsValues(255)],
    ),
    (
        "q2_a_whole_batch_comes_back",
        Role::Batch,
        &[Bug::LosesTheRestOfABatch(1), Bug::LosesTheRestOfABatch(31)],
    ),
    (
        "q3_every_priority_counts",
        Role::Lock,
        &[Bug::PriorityBits(8), Bug::PriorityBits(15)],
    ),
    (
        "q1_a_deep_queue_is_whole",
        Role::Lock,
        &[Bug::LosesItemsBeyond(512), Bug::LosesItemsBeyond(992)],
    ),
    (
        "l3_two_hundred_waiters_are_served",
        Role::Lock,
        &[Bug::DeafBeyond(100), Bug::DeafBeyond(199)],
    ),
];

/// Squares that a way to break the rule does not reach, because the role has no such thing.
fn reaches(role: Role, what: &str, bug: Bug) -> bool {
    use Role::*;
    match bug {
        Bug::LetsPass => role == Hold,
        // What crossed with the cancellation is released there, not withdrawn.
        Bug::WithdrawsNothing if what.starts_with("cancelled_") => role != Participant,
        Bug::ReleasesNothing => role != Hold,
        Bug::WithdrawsNothing if what.starts_with("limit_") => role != Hold,
        Bug::Ghosts | Bug::PartOfTheTtl(_) if what.starts_with("waiter_") => {
            // Waiting for these leaves nothing in the store.
            !matches!(role, Hold | Participant)
        }
        // The wrapper does not break the late release of the single deliveries of a batch.
        Bug::ReleasesTheNext | Bug::ReleasesInAllNamespaces => role != Batch,
        Bug::SharedInItsSession => !matches!(role, Reader | Delivery | Batch),
        _ => true,
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

fn outcome(id: &str, role: Role, bug: Bug) -> Outcome {
    let case = CASES.iter().find(|case| case.id == id).unwrap();
    let started = std::time::Instant::now();
    let ran = runtime().block_on(async { case.run(&Stage::new(role, bug)).await });
    println!("{id} {bug:?} {:?}", started.elapsed());
    ran
}

/// The squares that have a case: the end of its name, the role, the name.
fn squares() -> impl Iterator<Item = (&'static str, Role, &'static str)> {
    let squares = TABLE
        .iter()
        .flat_map(|row| Role::ALL.into_iter().zip(row.squares));
    squares.filter_map(|(role, square)| match square {
        Square::Case(id) => {
            let (_, rest) = id.split_once('_')?;
            let (_, what) = rest.split_once('_')?;
            Some((what, role, id))
        }
        Square::Reason(_) => None,
    })
}

#[test]
fn the_list_of_limits_is_whole() {
    let limits: Vec<&str> = LIMITS.iter().map(|(id, ..)| *id).collect();
    assert_eq!(limits, proved::LIMITS);
}

#[test]
fn every_square_holds_without_a_bug() {
    let only = std::env::var("SQUARES").unwrap_or_default();
    let mut wrong = Vec::new();
    for (_, role, id) in squares().filter(|(_, _, id)| id.contains(&only)) {
        let outcome = outcome(id, role, Bug::Nothing);
        if !matches!(outcome, Outcome::Held { .. }) {
            wrong.push(format!("{id}: {outcome}"));
        }
    }
    for &(id, role, _) in LIMITS.iter().filter(|(id, ..)| id.contains(&only)) {
        let outcome = outcome(id, role, Bug::Nothing);
        if !matches!(outcome, Outcome::Held { .. }) {
            wrong.push(format!("{id}: {outcome}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of them:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn every_square_catches_its_mutants_three_times_of_three() {
    let only = std::env::var("SQUARES").unwrap_or_default();
    let mut missed = Vec::new();
    let mut caught = 0;
    for (what, role, id) in squares().filter(|(_, _, id)| id.contains(&only)) {
        let broken = BROKEN.iter().find(|(end, _)| *end == what);
        let bugs = broken.map_or(&[][..], |(_, bugs)| *bugs);
        assert!(!bugs.is_empty(), "no mutant breaks {id}");
        for &bug in bugs.iter().filter(|bug| reaches(role, what, **bug)) {
            for _ in 0..3 {
                match outcome(id, role, bug) {
                    Outcome::Violated { counterexample, .. } => {
                        caught += 1;
                        println!("{id}, {bug:?}: {counterexample}");
                    }
                    other => {
                        missed.push(format!("{id}, {bug:?}: {other}"));
                        break;
                    }
                }
            }
        }
    }
    for &(id, role, bugs) in LIMITS.iter().filter(|(id, ..)| id.contains(&only)) {
        for &bug in bugs {
            for _ in 0..3 {
                match outcome(id, role, bug) {
                    Outcome::Violated { counterexample, .. } => {
                        caught += 1;
                        println!("{id}, {bug:?}: {counterexample}");
                    }
                    other => {
                        missed.push(format!("{id}, {bug:?}: {other}"));
                        break;
                    }
                }
            }
        }
    }
    println!("{caught} runs of mutants caught");
    assert!(
        missed.is_empty(),
        "{} missed:\n{}",
        missed.len(),
        missed.join("\n")
    );
}

/// `TENURE_WRITE_DOCS=1 cargo test -p tenure-conformance --test squares catalogue` rewrites the page.
#[test]
fn the_catalogue_in_the_docs_is_that_of_the_table() {
    let page = tenure_conformance::table::catalogue();
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/catalogue.md");
    if std::env::var_os("TENURE_WRITE_DOCS").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        there == page,
        "docs/catalogue.md is not what the table says: TENURE_WRITE_DOCS=1 writes it"
    );
}
