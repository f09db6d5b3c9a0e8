//! Random histories of all primitives on real servers, under faults of links, of clients and of the server.
//!
//! The checkers of the suite judge them. A counterexample fails the test at once. A run that could not be judged is printed as
//! FLAKY and repeated. `TENURE_SEED` selects one seed.

use std::time::Duration;

use futures_util::future::join_all;
use tenure_conformance::stress::{Plan, run};
use tenure_conformance::{Harness, Linked, Need, Operator, async_trait};
use tenure_core::{ErrorKind, Result, SessionOptions, Store};
use tenure_redis::RedisHarness;
use tenure_testbed::RedisOptions;
use tokio::time::sleep;

/// How often a run is repeated that could not be judged.
const MOST_RUNS: usize = 5;

/// The harness of a server that restarts: an application connects again if the server is not there.
struct Patient(RedisHarness);

/// How often it does.
const ATTEMPTS: usize = 100;

impl Patient {
    /// Returns whether an attempt is to be repeated, after a while.
    async fn waits<T>(&self, attempt: usize, result: &Result<T>) -> bool {
        let is_away = matches!(result, Err(error) if error.kind() == ErrorKind::Unavailable);
        if is_away {
            sleep(Duration::from_millis(50)).await;
        }
        is_away && attempt < ATTEMPTS
    }
}

#[async_trait]
impl Harness for Patient {
    async fn connect(&self) -> Result<Store> {
        for attempt in 0.. {
            let result = self.0.connect().await;
            if !self.waits(attempt, &result).await {
                return result;
            }
        }
        unreachable!("an attempt is the last")
    }

    fn offers(&self) -> &[Need] {
        self.0.offers()
    }

    async fn linked(&self) -> Result<Linked> {
        for attempt in 0.. {
            let result = self.0.linked().await;
            if !self.waits(attempt, &result).await {
                return result;
            }
        }
        unreachable!("an attempt is the last")
    }

    fn operator(&self) -> Option<&dyn Operator> {
        self.0.operator()
    }
}

/// An operator's act on the server meanwhile.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// `SCRIPT FLUSH`.
    Flush,
    /// Killed and started again; nothing that was acknowledged is lost.
    Restart,
    /// Stopped for a while.
    Pause,
}

async fn happen(operator: &dyn Operator, event: Event) -> Result<()> {
    match event {
        Event::Flush => operator.disturb().await,
        Event::Restart => operator.restart().await,
        Event::Pause => {
            operator.pause().await?;
            sleep(Duration::from_millis(700)).await;
            operator.resume().await
        }
    }
}

/// Waits until nothing of the run is left, and returns what stays: sessions, holdings, waiters and items.
async fn what_is_left(harness: &Patient, operator: &dyn Operator) -> Result<Vec<String>> {
    // The renewals of one session sweep the remains of expired ones.
    let options = SessionOptions::new().ttl(Duration::from_secs(2));
    let session = harness.connect().await?.open(options).await?;
    let mut left = Vec::new();
    for _ in 0..600 {
        left = operator.keys().await?;
        let sessions = operator.sessions().await?;
        if left.is_empty() && sessions == 1 {
            break;
        }
        left.push(format!("{sessions} sessions"));
        sleep(Duration::from_millis(50)).await;
    }
    session.close().await?;
    Ok(left)
}

/// Runs one history. `Err` says why it could not be judged; a counterexample panics.
async fn judged(seed: u64, events: &[Event]) -> std::result::Result<String, String> {
    // A restart keeps what was acknowledged: each write is on the disk first.
    let harness = RedisHarness::start(RedisOptions::default()).await;
    let harness = Patient(harness.map_err(|error| error.chain().to_string())?);
    let operator = harness.operator().ok_or("no operator")?;
    let plan = Plan::new(seed).clients(6).turns(14);
    let disturbed = async {
        for (number, event) in events.iter().cycle().enumerate() {
            sleep(Duration::from_millis(900 + (seed * 7919 + number as u64 * 613) % 1700)).await;
            if let Err(error) = happen(operator, *event).await {
                return Err::<(), _>(format!("{event:?}: {}", error.chain()));
            }
        }
        std::future::pending().await
    };
    let histories = tokio::select! {
        ended = run(&harness, &plan) => ended,
        Err(error) = disturbed => return Err(error),
    };
    let histories = match histories {
        Err(outcome) if outcome.is_unjudged() => return Err(outcome.to_string()),
        Err(outcome) => panic!("seed {seed}: {outcome}"),
        Ok(histories) => histories,
    };
    let store = harness.connect().await.map_err(|error| error.chain().to_string())?;
    let guarantees = store.guarantees().await.map_err(|error| error.chain().to_string())?;
    let summary = match histories.judge(&guarantees) {
        Ok(summary) => summary,
        Err(violation) => {
            let file = std::env::temp_dir().join(format!("redis-history-{seed}.jsonl"));
            let written = std::fs::File::create(&file).and_then(|mut file| histories.write(&mut file));
            panic!(
                "seed {seed}: {violation}\n{:#?}\nin {}: {written:?}",
                histories.faults,
                file.display()
            );
        }
    };
    drop(store);
    let left = what_is_left(&harness, operator)
        .await
        .map_err(|error| error.chain().to_string())?;
    assert!(
        left.is_empty(),
        "seed {seed}: left after all sessions have ended: {left:#?}"
    );
    // The keys agree.
    if let Err(error) = harness.0.clean_up().await {
        panic!("seed {seed}: {}", error.chain());
    }
    Ok(summary.to_string())
}

async fn judge_in_the_end(seed: u64, events: &[Event]) {
    let mut why = Vec::new();
    while why.len() < MOST_RUNS {
        match judged(seed, events).await {
            Ok(summary) => return println!("seed {seed}: {summary}"),
            Err(flaky) => {
                println!("FLAKY seed {seed}: {flaky}");
                why.push(flaky);
            }
        }
    }
    panic!("seed {seed} was never judged: {why:#?}");
}

async fn histories(seeds: std::ops::Range<u64>, events: &[Event]) {
    let only: Option<u64> = std::env::var("TENURE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(seeds, |seed| seed..seed + 1);
    join_all(seeds.map(|seed| judge_in_the_end(seed, events))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_under_faults_of_links_keep_the_rules() {
    histories(1..4, &[Event::Flush]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_over_restarts_keep_the_rules() {
    histories(11..14, &[Event::Restart, Event::Flush]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_over_pauses_of_the_server_keep_the_rules() {
    histories(21..24, &[Event::Pause, Event::Restart]).await;
}
