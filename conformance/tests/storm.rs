//! The short form of the storm, on every store, as a part of every day's tests; and its controls: what
//! must go wrong in it.
//!
//! The long form is `tenure conform --long`.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use tenure_conformance::Subject;
use tenure_conformance::stores::{MemoryHarness, MemorySubject};
use tenure_conformance::storm::{self, Histories, Kind, Plan, Run, Verdict};
use tenure_core::Isolation;

async fn once(subject: &dyn Subject, seed: u64) -> Run {
    let harness = storm::stage(subject).await.unwrap();
    storm::run(&*harness, seed, &Plan::short()).await
}

async fn weathered(subject: &dyn Subject, seed: u64) -> Run {
    let mut run = once(subject, seed).await;
    if let Verdict::Invalid { why } = &run.verdict {
        // The machine was too busy; it may be less so in a moment.
        println!("{}: {why}", subject.name());
        run = once(subject, seed).await;
    }
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
    run
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_weathers_a_storm() {
    for seed in 1..=2 {
        comes_back(&weathered(&MemorySubject, seed).await);
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

#[cfg(feature = "etcd")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_of_etcd_lose_their_leader_and_nothing_else() {
    use tenure_conformance::stores::{EtcdSetup, EtcdSubject};

    let run = weathered(&EtcdSubject::set_up(EtcdSetup::ThreeMembers), 1).await;
    for kind in [Kind::FailedOver, Kind::MinorityLost] {
        assert!(run.faults.contains_key(&kind), "{:?}", run.faults);
    }
    let whole = run.histories.earlier.is_empty();
    assert!(whole, "judged in full across every change of leader");
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_standby_has_all_that_was_stored() {
    use tenure_conformance::stores::{PostgresSetup, PostgresSubject};

    let subject = PostgresSubject::set_up(PostgresSetup::SynchronousStandby);
    let run = weathered(&subject, 1).await;
    assert_eq!(run.faults.get(&Kind::FailedOver), Some(&1));
    assert!(run.histories.earlier.is_empty(), "judged in full");
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lags_keeps_the_order_of_tokens() {
    use tenure_conformance::stores::{RedisSetup, RedisSubject};

    let subject = RedisSubject::set_up(RedisSetup::AsynchronousReplica).await;
    let run = weathered(&subject.unwrap(), 1).await;
    assert_eq!(run.faults.get(&Kind::FailedOver), Some(&1));
    let [earlier] = &run.histories.earlier[..] else {
        panic!("one failover, so two epochs");
    };
    assert!(!earlier.lists.is_empty() && !earlier.items.is_empty());
    assert!(!run.histories.lists.is_empty(), "it went on");
}

/// Whoever may forget does, and is caught where it is judged as one that does not.
#[cfg(any(feature = "redis", feature = "postgres"))]
async fn forgets(subject: &dyn Subject) {
    let mut plan = Plan::short()
        .in_a_hurry()
        .as_if_durable()
        .only([Kind::FailedOver]);
    plan.faults = 1;
    // What was lost is waited for in vain.
    plan.hang = std::time::Duration::from_secs(15);
    let mut last = None;
    for seed in 1..=3 {
        let harness = storm::stage(subject).await.unwrap();
        let run = storm::run(&*harness, seed, &plan).await;
        match run.verdict {
            Verdict::Violated { what, .. } => {
                let stored = ["the lists", "the queue", "a commit under"];
                assert!(stored.iter().any(|word| what.contains(word)), "{what}");
                println!("{}, seed {seed}: {what}", subject.name());
                return;
            }
            other => last = Some(other),
        }
    }
    panic!("{} forgot nothing: {last:?}", subject.name());
}

#[cfg(feature = "postgres")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_asynchronous_standby_judged_as_durable_is_caught() {
    use tenure_conformance::stores::{PostgresSetup, PostgresSubject};

    forgets(&PostgresSubject::set_up(PostgresSetup::AsynchronousStandby)).await;
}

#[cfg(feature = "redis")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_judged_without_epochs_is_caught() {
    use tenure_conformance::stores::{RedisSetup, RedisSubject};

    let subject = RedisSubject::set_up(RedisSetup::AsynchronousReplica).await;
    forgets(&subject.unwrap()).await;
}

/// The same storm in which something must go wrong: so long as it does not, with the next seed.
async fn goes_wrong(plan: &Plan, word: &str) {
    let mut last = None;
    for seed in 1..=6 {
        let run = storm::run(&MemoryHarness::new(), seed, plan).await;
        match run.verdict {
            Verdict::Violated { ref what, .. } => {
                assert!(what.contains(word), "seed {seed}: {what}");
                println!("seed {seed}: {what}");
                comes_back(&run);
                return;
            }
            other => last = Some(other),
        }
    }
    panic!("six storms, and nothing went wrong: {last:?}");
}

/// The files have what the judge had.
fn comes_back(run: &Run) {
    use std::fs::File;
    use std::io::BufReader;
    use tenure_conformance::checkers::{Event, jsonl, list_append, queue};

    // Of its own: runs on several stores have the same seed, and one of them ends first.
    static RUNS: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    let number = RUNS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("tenure-storm-{}-{number}", std::process::id()));
    let files = run.histories.write(&folder, "run").unwrap();
    let open = |name: &str| {
        let path = files.iter().find(|path| path.ends_with(name)).unwrap();
        BufReader::new(File::open(path).unwrap())
    };
    let locks: Vec<Event> = jsonl::read(open("run-lock-1.jsonl")).unwrap();
    assert_eq!(locks, run.histories.locks[0]);
    let lists: Vec<list_append::Transaction> = jsonl::read(open("run-lists.jsonl")).unwrap();
    assert_eq!(lists, run.histories.lists);
    let items: Vec<queue::QueueOperation> = jsonl::read(open("run-queue.jsonl")).unwrap();
    assert_eq!(items, run.histories.items);
    let name = |verdict: &Verdict| match verdict {
        Verdict::Violated { what, .. } => what.clone(),
        other => format!("{other:?}"),
    };
    let again = storm::replay(&files[0]).unwrap();
    assert_eq!(name(&again), name(&run.verdict));
    let all = Histories::read(&files[0]).unwrap();
    assert_eq!(all.evidence, run.histories.evidence);
    let edn = storm::elle(&files[0]).unwrap();
    let invoked = edn.lines().filter(|line| line.contains(":type :invoke"));
    assert_eq!(invoked.count(), lists.len());
    std::fs::remove_dir_all(&folder).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_register_that_looks_at_no_token_is_caught() {
    let mut plan = Plan::short()
        .in_a_hurry()
        .unfenced()
        .only([Kind::ClientPaused]);
    plan.faults = 8;
    goes_wrong(&plan, "register").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_compare_nothing_are_caught() {
    let mut plan = Plan::short()
        .in_a_hurry()
        .isolation(Isolation::ReadCommitted);
    plan.operations = 3_000;
    goes_wrong(&plan, "the lists").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_without_enough_operations_counts_for_nothing() {
    let mut plan = Plan::short();
    plan.calm = usize::MAX;
    plan.limit = std::time::Duration::from_millis(500);
    let run = storm::run(&MemoryHarness::new(), 1, &plan).await;
    assert!(matches!(run.verdict, Verdict::Invalid { .. }), "{run:?}");
    assert_eq!(run.faults(), 0);

    let mut plan = Plan::short();
    plan.operations = usize::MAX;
    plan.limit = std::time::Duration::from_secs(3);
    let run = storm::run(&MemoryHarness::new(), 1, &plan).await;
    assert!(
        matches!(run.verdict, Verdict::Invalid { .. }),
        "{:?}",
        run.verdict
    );
}
