//! Double barriers over Redis, side by side with the raw commands that a barrier without leases,
//! generations and counts of the dead would need (INCR, SUBSCRIBE, PUBLISH), on one server in one
//! run: from the moment when the last participant enters until each of them is inside.
//!
//! ```text
//! cargo bench -p tenure-redis --bench barrier             # 300 rounds
//! cargo bench -p tenure-redis --bench barrier -- 50       # so many
//! ```
//!
//! Needs redis-server on the PATH. Only the ratios mean something on another machine.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use hdrhistogram::Histogram;
use redis::AsyncCommands;
use tenure_core::SessionOptions;
use tenure_redis::RedisConfig;
use tenure_testbed::RedisServer;
use tokio::sync::Barrier;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// When the last one of a round began to enter, and how long after it each was inside.
struct Round {
    party: u32,
    began: Mutex<Instant>,
    took: Mutex<Histogram<u64>>,
}

impl Round {
    fn new(party: u32) -> Fallible<Arc<Self>> {
        Ok(Arc::new(Self {
            party,
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
            "{what}: {} inside after the last one's enter, p50 {:.2?} p99 {:.2?} max {:.2?} ({} entries)",
            self.party,
            at(0.5),
            at(0.99),
            at(1.0),
            took.len()
        );
    }
}

/// Every participant with a session of its own; the last enters a while after the others.
async fn ours(redis: &RedisServer, party: u32, rounds: u32) -> Fallible {
    let store = tenure_redis::connect(RedisConfig::new(redis.address().to_string())).await?;
    let round = Round::new(party)?;
    let left = Round::new(party)?;
    let meet = Arc::new(Barrier::new(party as usize));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..party {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(60)))
            .await?;
        let (round, left, meet) = (Arc::clone(&round), Arc::clone(&left), Arc::clone(&meet));
        tasks.spawn(async move {
            let barrier = session.double_barrier("standing", party)?;
            for _ in 0..rounds {
                meet.wait().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    round.begins();
                }
                let inside = barrier.enter().await?;
                round.inside();
                meet.wait().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    left.begins();
                }
                inside.leave().await?;
                left.inside();
            }
            session.close().await?;
            Fallible::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    round.print("tenure, enter");
    left.print("tenure, leave (outside after the last one's leave)");
    Ok(())
}

/// A counter, and a channel on which the last one calls.
async fn raw(redis: &RedisServer, party: u32, rounds: u32) -> Fallible {
    let round = Round::new(party)?;
    let meet = Arc::new(Barrier::new(party as usize));
    let client = redis::Client::open(redis.url())?;
    let connection = client.get_multiplexed_async_connection().await?;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..party {
        let (mut connection, round, meet) =
            (connection.clone(), Arc::clone(&round), Arc::clone(&meet));
        let mut channel = client.get_async_pubsub().await?;
        tasks.spawn(async move {
            channel.subscribe("raw").await?;
            for turn in 0..rounds {
                meet.wait().await;
                if number == 0 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    round.begins();
                }
                let count: u32 = connection.incr(format!("raw/{turn}"), 1).await?;
                if count == party {
                    let () = connection.publish("raw", turn).await?;
                }
                channel.on_message().next().await.ok_or("no message")?;
                round.inside();
            }
            Fallible::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    round.print("INCR and PUBLISH");
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
    let redis = RedisServer::start()?;
    println!("Redis {}, {rounds} rounds", redis.version());
    raw(&redis, 10, rounds).await?;
    ours(&redis, 10, rounds).await?;
    raw(&redis, 100, rounds.div_ceil(10)).await?;
    ours(&redis, 100, rounds.div_ceil(10)).await?;
    Ok(())
}
