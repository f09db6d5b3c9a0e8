//! Queues over Redis: what depth costs, how soon an item reaches a waiting consumer, and how many pass,
//! side by side with a list (`RPUSH`, `BLMOVE` to a list of one's own, `LREM`) over the same client.
//!
//! ```text
//! cargo bench -p tenure-redis --bench queue            # everything, about half a minute
//! cargo bench -p tenure-redis --bench queue -- 5       # seconds for each throughput
//! ```
//!
//! Needs redis-server on the PATH (or `TENURE_REDIS_SERVER`). Only the ratios mean something on
//! another machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, cmd};
use tenure_bench_kit::queue::{Next, depth, flow, wake};
use tenure_bench_kit::{Fallible, how_much, quantiles};
use tenure_core::Store;
use tenure_redis::{RedisBackend, RedisConfig};
use tenure_testbed::RedisServer;

async fn store(redis: &RedisServer) -> Fallible<Store<RedisBackend>> {
    Ok(tenure_redis::connect(RedisConfig::new(redis.address().to_string())).await?)
}

async fn raw(redis: &RedisServer) -> Fallible<MultiplexedConnection> {
    let info = format!("redis://{}/?protocol=resp3", redis.address())
        .into_connection_info()?
        .set_tcp_settings(TcpSettings::default().set_nodelay(true));
    Ok(redis::Client::open(info)?
        .get_multiplexed_async_connection()
        .await?)
}

/// The take of the tutorials: to a list of one's own, from which it is removed when it is done.
async fn raw_take(connection: &mut MultiplexedConnection, mine: &str) -> Fallible<Option<Vec<u8>>> {
    let mut take = cmd("LMOVE");
    take.arg("raw").arg(mine).arg("LEFT").arg("RIGHT");
    Ok(take.query_async(connection).await?)
}

async fn raw_done(connection: &mut MultiplexedConnection, mine: &str, item: &[u8]) -> Fallible {
    let mut done = cmd("LREM");
    done.arg(mine).arg(1).arg(item);
    Ok(done.query_async(connection).await?)
}

async fn raw_cycle(redis: &RedisServer, rounds: usize) -> Fallible {
    let mut connection = raw(redis).await?;
    let mut taken = Histogram::<u64>::new(3)?;
    for number in 0..rounds {
        let mut put = cmd("RPUSH");
        put.arg("raw").arg(format!("{number:0100}"));
        put.query_async::<()>(&mut connection).await?;
        let start = Instant::now();
        let item = raw_take(&mut connection, "mine").await?;
        taken.record(start.elapsed().as_micros().try_into()?)?;
        raw_done(&mut connection, "mine", &item.ok_or("no item")?).await?;
    }
    println!("LMOVE of one: {}", quantiles(&taken));
    Ok(())
}

async fn raw_wake(redis: &RedisServer, rounds: usize) -> Fallible {
    let mut producing = raw(redis).await?;
    let mut reached = Histogram::<u64>::new(3)?;
    // A blocked command needs a connection of its own.
    let consuming = raw(redis).await?;
    for _ in 0..rounds {
        let mut connection = consuming.clone();
        let waiting = tokio::spawn(async move {
            let mut take = cmd("BLMOVE");
            take.arg("raw").arg("mine").arg("LEFT").arg("RIGHT").arg(0);
            let item: redis::RedisResult<Vec<u8>> = take.query_async(&mut connection).await;
            (item, Instant::now())
        });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        let mut put = cmd("RPUSH");
        put.arg("raw").arg("x");
        put.query_async::<()>(&mut producing).await?;
        let (item, at) = waiting.await?;
        reached.record((at - start).as_micros().try_into()?)?;
        raw_done(&mut producing, "mine", &item?).await?;
    }
    println!("RPUSH to a waiting BLMOVE: {}", quantiles(&reached));
    Ok(())
}

/// Tasks that put one in, take one and remove it.
async fn raw_flow(redis: &RedisServer, tasks: usize, clients: usize, length: Duration) -> Fallible {
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(raw(redis).await?);
    }
    let (stop, passed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut working = Vec::new();
    for task in 0..tasks * 2 {
        let mut connection = connections[task % clients].clone();
        let (stop, passed) = (Arc::clone(&stop), Arc::clone(&passed));
        working.push(tokio::spawn(async move {
            let mine = format!("mine {task}");
            while !stop.load(Ordering::Relaxed) {
                if task < tasks {
                    let mut put = cmd("RPUSH");
                    put.arg("raw").arg(format!("{task} item"));
                    put.query_async::<()>(&mut connection).await?;
                } else if let Some(item) = raw_take(&mut connection, &mine).await? {
                    raw_done(&mut connection, &mine, &item).await?;
                    passed.fetch_add(1, Ordering::Relaxed);
                }
            }
            Fallible::Ok(())
        }));
    }
    tokio::time::sleep(length).await;
    let rate = passed.load(Ordering::Relaxed) as f64 / length.as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in working {
        task.await??;
    }
    println!("a list, {tasks} and {tasks}, {clients} connections: {rate:.0} items/s");
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let seconds = how_much(5.0, 0.2);
    let rounds = if seconds < 1.0 { 20 } else { 1_000 };
    let redis = RedisServer::start()?;
    println!("redis {}, {seconds} s", redis.version());
    let length = Duration::from_secs_f64(seconds);
    let connect = async || store(&redis).await;
    depth(&connect().await?, rounds).await?;
    wake(&connect().await?, &connect().await?, rounds).await?;
    for clients in [1, 4] {
        flow(connect, clients, Next::Afterwards, length).await?;
    }
    raw_cycle(&redis, rounds).await?;
    raw_wake(&redis, rounds).await?;
    for clients in [1, 4] {
        raw_flow(&redis, 4, clients, length).await?;
    }
    Ok(())
}
