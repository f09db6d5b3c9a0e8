//! The short form of the storm, on every store, as a part of every day's tests; and its controls: what
//! must go wrong in it.
//!
//! The long form is `tenure conform --long`.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::Subject;
use tenure_conformance::stores::{MemoryHarness, MemorySubject};
use tenure_conformance::storm::{self, Kind, Plan, Run, Verdict};
use tenure_core::Isolation;

async fn weathered(subject: &dyn Subject, seed: u64) {
    let harness = storm::stage(subject).await.unwrap();
    let run = storm::run(&*harness, seed, &Plan::short()).await;
    println!(
        "{}: {:?} {:?} {:?} {:?}",
        subject.name(),
        run.verdict,
        run.counts,
        run.faults,
        run.took
    );
    assert!(
        matches!(run.verdict, Verdict::Passed),
        "{}, seed {seed}: {:?}",
        subject.name(),
        run.verdict
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_weathers_a_storm() {
    for seed in 1..=2 {
        weathered(&MemorySubject, seed).await;
    }
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_weathers_a_storm() {
    let subject = tenure_conformance::stores::RedisSubject::start().await;
    weathered(&subject.unwrap(), 1).await;
}

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_weathers_a_storm() {
    let subject = tenure_conformance::stores::EtcdSubject::start().await;
    weathered(&subject.unwrap(), 1).await;
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgres_weathers_a_storm() {
    let subject = tenure_conformance::stores::PostgresSubject::start().await;
    weathered(&subject.unwrap(), 1).await;
}
