//! Double barriers over etcd, side by side with the algorithm of Go's recipe, on one server in one
//! run: from the moment when the last participant enters until each of them is inside.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench barrier             # 300 rounds
//! cargo bench -p tenure-etcd --bench barrier -- 50       # so many
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`). Only the ratios mean something on another machine.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{Client, EventType, GetOptions, PutOptions, WatchOptions};
use hdrhistogram::Histogram;
use tenure_core::SessionOptions;
use tenure_etcd::EtcdConfig;
use tenure_testbed::EtcdServer;
use tokio::sync::Barrier;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const PARTY: u32 = 10;

/// When the last one of a round began to enter, and how long after it each was inside.
struct Round {
    began: Mutex<Instant>,
    took: Mutex<Histogram<u64>>,
}

impl Round {
    fn new() -> Fallible<Arc<Self>> {
        Ok(Arc::new(Self {
            began: Mutex::new(Instant::now()),
            took: Mutex::new(Histogram::new(3)?),
        }))
    }

    fn begins(&self) {
        *self.began.lock().unwrap() = Instant::now();
    }

    fn inside(&self) {
        let took = self.began.lock().unwrap().elapsed();
        let took = took.as_micros().try_into().unwrap_or(u64::MAX);
        self.took.lock().unwrap().record(took).unwrap();
    }

    fn print(&self, what: &str) {
        let took = self.took.lock().unwrap();
        let at = |quantile| Duration::from_micros(took.value_at_quantile(quantile));
        println!(
            "{what}: {PARTY} inside after the last one's enter, p50 {:.2?} p99 {:.2?} max {:.2?} ({} entries)",
            at(0.5),
            at(0.99),
            at(1.0),
            took.len()
        );
    }
}

/// Every participant with a session of its own; the last enters a while after the others.
async fn ours(etcd: &EtcdServer, rounds: u32, fresh: bool) -> Fallible {
    let store = tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?;
    let round = Round::new()?;
    let meet = Arc::new(Barrier::new(PARTY as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PARTY {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(60)))
            .await?;
        let (round, meet) = (Arc::clone(&round), Arc::clone(&meet));
        tasks.spawn(async move {
            for turn in 0..rounds {
                let name = if fresh {
                    format!("fresh-{turn}")
                } else {
                    "standing".to_owned()
                };
                let barrier = session.double_barrier(name, PARTY)?;
                meet.wait().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    round.begins();
                }
                let inside = barrier.enter().await?;
                round.inside();
                inside.leave().await?;
            }
            session.close().await?;
            Fallible::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    round.print(if fresh {
        "tenure, a new barrier each round"
    } else {
        "tenure, one barrier"
    });
    Ok(())
}

/// The algorithm of etcd's `client/v3/experimental/recipes/double_barrier.go`, `Enter`.
async fn go(etcd: &EtcdServer, rounds: u32) -> Fallible {
    let round = Round::new()?;
    let meet = Arc::new(Barrier::new(PARTY as usize));
    let mut tasks = tokio::task::JoinSet::new();
    let shared = Client::connect([etcd.endpoint()], None).await?;
    for number in 0..PARTY {
        let (mut client, round, meet) = (shared.clone(), Arc::clone(&round), Arc::clone(&meet));
        tasks.spawn(async move {
            let lease = client.lease_grant(60, None).await?.id();
            for turn in 0..rounds {
                let (waiters, ready) = (format!("/go/{turn}/waiters"), format!("/go/{turn}/ready"));
                meet.wait().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    round.begins();
                }
                let leased = Some(PutOptions::new().with_lease(lease));
                let put = client
                    .put(format!("{waiters}/{number}"), "", leased)
                    .await?;
                let revision = put.header().ok_or("no header")?.revision();
                let all = client
                    .get(waiters, Some(GetOptions::new().with_prefix()))
                    .await?;
                if all.kvs().len() == PARTY as usize {
                    client.put(ready, "", None).await?;
                } else {
                    let since = WatchOptions::new().with_start_revision(revision);
                    let mut watch = client.watch(ready, Some(since)).await?;
                    'ready: while let Some(answer) = watch.message().await? {
                        for event in answer.events() {
                            if event.event_type() == EventType::Put {
                                break 'ready;
                            }
                        }
                    }
                }
                round.inside();
            }
            Fallible::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    round.print("Go's algorithm");
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    // `cargo bench` adds `--bench`; `cargo test --benches` runs this for a moment, to see that it works.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds = match arguments.iter().find_map(|a| a.parse().ok()) {
        Some(rounds) => rounds,
        None if arguments.iter().any(|a| a == "--bench") => 300,
        None => 3,
    };
    let etcd = EtcdServer::builder().fsync(true).start()?;
    println!("etcd {}, {rounds} rounds", etcd.version());
    ours(&etcd, rounds, false).await?;
    ours(&etcd, rounds, true).await?;
    go(&etcd, rounds.min(100)).await?;
    Ok(())
}
