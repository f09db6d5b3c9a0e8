//! Transactions over Redis, side by side with the raw commands, on one server in one run: SET for a
//! blind write, WATCH/GET/MULTI/EXEC for an increment.
//!
//! ```text
//! cargo bench -p tenure-redis --bench stm             # a second for each line
//! cargo bench -p tenure-redis --bench stm -- 5        # so many
//! ```
//!
//! Needs redis-server on the PATH. Only the ratios mean something on another machine.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use tenure_bench_kit::{Fallible, how_much};
use tenure_core::{Op, Session, SessionOptions};
use tenure_redis::{RedisConfig, RedisSession};
use tenure_testbed::RedisServer;

/// Runs `step` in `tasks` tasks for so long, and prints how often it was done and how long it took.
async fn measure<S, F>(what: &str, tasks: u64, limit: Duration, step: impl Fn(u64) -> S) -> Fallible
where
    S: FnMut() -> F + Send + 'static,
    F: Future<Output = Fallible> + Send,
{
    let took = Arc::new(Mutex::new(Histogram::<u64>::new(3)?));
    let mut running = tokio::task::JoinSet::new();
    let began = Instant::now();
    for task in 0..tasks {
        let (mut step, took) = (step(task), Arc::clone(&took));
        running.spawn(async move {
            let mut mine = Histogram::<u64>::new(3)?;
            while began.elapsed() < limit {
                let at = Instant::now();
                step().await?;
                mine.record(at.elapsed().as_micros().try_into()?)?;
            }
            took.lock().unwrap().add(&mine)?;
            Fallible::Ok(())
        });
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let took = took.lock().unwrap();
    let at = |quantile| Duration::from_micros(took.value_at_quantile(quantile));
    println!(
        "{what:<44} {tasks:>3} at a time {:>8.0}/s  p50 {:>9.2?} p99 {:>9.2?}",
        took.len() as f64 / seconds,
        at(0.5),
        at(0.99)
    );
    Ok(())
}

async fn watched(mut connection: MultiplexedConnection, key: String) -> Fallible {
    loop {
        let () = redis::cmd("WATCH")
            .arg(&key)
            .query_async(&mut connection)
            .await?;
        let count: Option<u64> = connection.get(&key).await?;
        let mut exec = redis::pipe();
        exec.atomic().set(&key, count.unwrap_or(0) + 1).ignore();
        let done: Option<()> = exec.query_async(&mut connection).await?;
        if done.is_some() {
            return Ok(());
        }
    }
}

async fn incremented(session: &Session<RedisSession>, key: &str) -> Fallible {
    let stm = session.stm()?.attempts(10_000);
    let counting = stm.run(async |tx| {
        let count: u64 = tx.get_as(key).await?.unwrap_or(0);
        tx.put_as(key, &(count + 1))
    });
    Ok(counting.await?)
}

async fn all(redis: &RedisServer, limit: Duration) -> Fallible {
    let client = redis::Client::open(redis.url())?;
    let shared = client.get_multiplexed_async_connection().await?;
    let store = tenure_redis::connect(RedisConfig::new(redis.address().to_string())).await?;
    let mut sessions = Vec::new();
    let mut own = Vec::new();
    for _ in 0..16 {
        let options = SessionOptions::new().ttl(Duration::from_secs(60));
        sessions.push(Arc::new(store.open(options).await?));
        // WATCH is a connection's business: each needs one of its own.
        own.push(client.get_multiplexed_async_connection().await?);
    }
    let guard = sessions[0].locker("guard")?.lock().await?;
    let guard = Arc::new(guard);
    for tasks in [1, 16] {
        measure("SET", tasks, limit, |task| {
            let connection = shared.clone();
            move || {
                let mut connection = connection.clone();
                async move { Ok(connection.set(format!("raw/{task}"), "value").await?) }
            }
        })
        .await?;
        measure("put", tasks, limit, |task| {
            let session = Arc::clone(&sessions[task as usize]);
            move || {
                let session = Arc::clone(&session);
                async move {
                    let stm = session.stm()?;
                    stm.put(format!("put/{task}"), "value").await?;
                    Ok(())
                }
            }
        })
        .await?;
        measure("put, fenced by a lock", tasks, limit, |task| {
            let (session, guard) = (Arc::clone(&sessions[task as usize]), Arc::clone(&guard));
            move || {
                let (session, guard) = (Arc::clone(&session), Arc::clone(&guard));
                async move {
                    let put = Op::put(format!("put/{task}"), "value");
                    let stm = session.stm()?;
                    stm.txn().then([put]).fenced_by(&guard).commit().await?;
                    Ok(())
                }
            }
        })
        .await?;
        for (which, one_key) in [("a key each", false), ("one key", true)] {
            let key = move |task: u64| {
                if one_key {
                    "all".into()
                } else {
                    format!("n/{task}")
                }
            };
            measure(
                &format!("WATCH, GET, MULTI, SET, EXEC: {which}"),
                tasks,
                limit,
                |task| {
                    let connection = own[task as usize].clone();
                    move || watched(connection.clone(), format!("raw/{}", key(task)))
                },
            )
            .await?;
            measure(
                &format!("run of an increment: {which}"),
                tasks,
                limit,
                |task| {
                    let session = Arc::clone(&sessions[task as usize]);
                    move || {
                        let session = Arc::clone(&session);
                        async move { incremented(&session, &key(task)).await }
                    }
                },
            )
            .await?;
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let limit = Duration::from_secs_f64(how_much(1.0, 0.02));
    let redis = RedisServer::start()?;
    println!("Redis {}, {limit:?} each", redis.version());
    all(&redis, limit).await
}
