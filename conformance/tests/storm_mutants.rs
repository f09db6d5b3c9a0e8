//! Mutants in the storm: what the long form has to notice.
//!
//! Not among the cases' mutants: a storm takes all that the machine has, and those measure time.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[allow(dead_code)] // What the cases look for.
#[path = "mutants/rw_lock.rs"]
mod rw_lock;
#[allow(dead_code)] // What the cases look for.
#[path = "mutants/store.rs"]
mod store;

use std::time::Duration;

use tenure_conformance::Harness;
use tenure_conformance::storm::{self, Kind, Plan, Verdict};

use rw_lock::Bug as OfRwLocks;
use store::election::Bug as OfElections;
use store::queue::Bug as OfQueues;
use store::{Bug, Stage};
use tokio::sync::Semaphore;

/// The first few seeds; a storm that is borne by a mutant may have been a calm one.
async fn caught(bug: Bug, kinds: &[Kind], words: &[&str]) {
    let stage = || Stage::new(bug).unwrap();
    caught_on(&format!("{bug:?}"), stage, kinds, words).await;
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrapper_weathers_a_storm() {
    let stage = Stage::new(Bug::Nothing).unwrap();
    let run = storm::run(&stage, 1, &Plan::short().only(CLIENTS)).await;
    assert!(matches!(run.verdict, Verdict::Passed), "{:?}", run.verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_without_exclusion_are_caught() {
    let words = ["register", "the lock's history"];
    caught(Bug::NoExclusion, CLIENTS, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_repeat_are_caught() {
    caught(Bug::ConstantToken, CLIENTS, &["tokens"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_that_compare_nothing_are_caught() {
    caught(Bug::BlindCommit, CLIENTS, &["the lists"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_loses_what_the_dead_had_is_caught() {
    let bug = Bug::Queue(OfQueues::DeletesOnTake);
    caught(bug, &[Kind::ClientKilled], &["the queue: item"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_delivers_to_two_at_a_time_is_caught() {
    let bug = Bug::Queue(OfQueues::Shared);
    caught(bug, CLIENTS, &["the queue"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_that_looks_now_and_then_is_caught() {
    caught(Bug::Polling, CLIENTS, &["waited", "achieved nothing"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waits_that_are_never_withdrawn_are_caught() {
    let kinds = &[Kind::Cancelled];
    caught(Bug::WithdrawNothing, kinds, &["waited", "achieved nothing"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_looks_at_no_priority_is_caught() {
    let bug = Bug::Queue(OfQueues::NoPriorities);
    caught(bug, CLIENTS, &["the queue: item"]).await;
}

async fn caught_election(bug: OfElections, words: &[&str]) {
    caught(Bug::Election(bug), CLIENTS, words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_leaders_at_a_time_are_caught() {
    caught_election(OfElections::EverybodyLeads, &["the election"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_with_the_same_token_are_caught() {
    caught_election(OfElections::ConstantToken, &["the election, tokens"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes several storms: a minute"]
async fn an_observer_that_goes_back_is_caught() {
    caught_election(OfElections::GoesBack, &["an observer went back"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes several storms: a minute"]
async fn a_deposed_leader_that_is_believed_is_caught() {
    // Its resignations remove whoever comes first, and nobody tells them.
    let words = ["the election", "waited", "achieved nothing"];
    caught_election(OfElections::Unfenced, &words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes several storms: a minute"]
async fn a_proclamation_that_comes_twice_is_caught() {
    caught_election(OfElections::Echo, &["the election"]).await;
}

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
