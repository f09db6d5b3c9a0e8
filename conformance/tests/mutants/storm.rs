//! Mutants in the storm: what the long form has to notice.

use tenure_conformance::storm::{self, Kind, Plan, Verdict};

use super::queue::Bug as OfQueues;
use super::{Bug, Duration, Mutex, Stage, World};

/// The first few seeds; a storm that is borne by a mutant may have been a calm one.
async fn caught(bug: Bug, kinds: &[Kind], words: &[&str]) {
    let mut plan = Plan::short().only(kinds);
    // Some never come to rest; that would be enough of a violation.
    plan.hang = Duration::from_secs(10);
    let mut last = None;
    for seed in 1..=4 {
        let stage = Stage(Mutex::new(World::new(bug).unwrap()));
        match storm::run(&stage, seed, &plan).await.verdict {
            Verdict::Violated { what, .. } => {
                let expected = words.iter().any(|word| what.contains(word));
                assert!(expected, "{bug:?}, seed {seed}: {what}");
                println!("{bug:?}, seed {seed}: {what}");
                return;
            }
            other => last = Some(other),
        }
    }
    panic!("{bug:?} was borne: {last:?}");
}

/// What clients suffer on any store.
const CLIENTS: &[Kind] = &[Kind::ClientPaused, Kind::ClientKilled, Kind::CutOff];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_wrapper_weathers_a_storm() {
    let stage = Stage(Mutex::new(World::new(Bug::Nothing).unwrap()));
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
async fn a_consumer_that_looks_now_and_then_is_caught() {
    let bug = Bug::Queue(OfQueues::Polling);
    caught(bug, CLIENTS, &["waited", "achieved nothing"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_that_looks_at_no_priority_is_caught() {
    let bug = Bug::Queue(OfQueues::NoPriorities);
    caught(bug, CLIENTS, &["the queue: item"]).await;
}
