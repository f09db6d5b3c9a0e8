//! Mutants of read-write locks in the storm, in real time. All others: `storm_power.rs`.
//!
//! Not among the cases' mutants: a storm takes all that the machine has, and those measure time.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[allow(dead_code)] // What the cases look for.
#[path = "mutants/rw_lock.rs"]
mod rw_lock;

use std::time::Duration;

use tenure_conformance::Harness;
use tenure_conformance::storm::{self, Kind, Plan, Verdict};

use rw_lock::Bug as OfRwLocks;
use tokio::sync::Semaphore;

/// So many storms at a time: more would only take each other's time.
static AT_ONCE: Semaphore = Semaphore::const_new(4);

async fn caught_on<H: Harness>(bug: &str, stage: impl Fn() -> H, kinds: &[Kind], words: &[&str]) {
    let _turn = AT_ONCE.acquire().await.unwrap();
    let mut plan = Plan::short().only(kinds);
    if !words.contains(&"waited") {
        plan = plan.in_a_hurry();
    }
    // Some never come to rest; that would be enough of a violation.
    plan.hang = Duration::from_secs(10);
    let mut last = None;
    for seed in 1..=4 {
        match storm::run(&stage(), seed, &plan).await.verdict {
            Verdict::Violated { what, .. } => {
                let expected = words.iter().any(|word| what.contains(word));
                assert!(expected, "{bug}, seed {seed}: {what}");
                println!("{bug}, seed {seed}: {what}");
                return;
            }
            other => last = Some(other),
        }
    }
    panic!("{bug} was borne: {last:?}");
}

/// What clients suffer on any store.
const CLIENTS: &[Kind] = &[Kind::ClientPaused, Kind::ClientKilled, Kind::CutOff];

async fn caught_rw_lock(bug: OfRwLocks, words: &[&str]) {
    let stage = || rw_lock::stage(bug).unwrap();
    caught_on(&format!("{bug:?}"), stage, CLIENTS, words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrapper_of_read_write_locks_weathers_a_storm() {
    let stage = rw_lock::stage(OfRwLocks::Nothing).unwrap();
    let run = storm::run(&stage, 1, &Plan::short().only(CLIENTS)).await;
    assert!(matches!(run.verdict, Verdict::Passed), "{:?}", run.verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_keeps_nobody_out_is_caught() {
    caught_rw_lock(OfRwLocks::SharedWriters, &["the read-write lock"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_with_the_same_token_are_caught() {
    let words = ["the read-write lock, register and all: token"];
    caught_rw_lock(OfRwLocks::ConstantToken, &words).await;
}

/// Nothing is broken, and nothing proved.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_never_share_count_for_nothing() {
    let stage = rw_lock::stage(OfRwLocks::LoneReaders).unwrap();
    let plan = Plan::short().only([Kind::Cancelled]);
    let run = storm::run(&stage, 1, &plan).await;
    let Verdict::Invalid { why } = run.verdict else {
        panic!("{:?}", run.verdict);
    };
    assert!(why.contains("no two readers"), "{why}");
}
