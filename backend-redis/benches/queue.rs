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

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{IntoConnectionInfo, cmd};
use tenure_core::{Item, MAX_BATCH, QueueHandle, SessionOptions, Store};
use tenure_redis::{RedisBackend, RedisConfig, RedisQueue};
use tenure_testbed::RedisServer;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Queue = QueueHandle<RedisQueue>;

async fn store(redis: &RedisServer) -> Fallible<Store<RedisBackend>> {
    Ok(tenure_redis::connect(RedisConfig::new(redis.address().to_string())).await?)
}

async fn queue(store: &Store<RedisBackend>, name: &str) -> Fallible<Queue> {
    let options = SessionOptions::new().ttl(Duration::from_secs(60));
    Ok(store.open(options).await?.queue(name)?)
}

async fn fill(queue: &Queue, items: usize) -> Fallible {
    let mut left = items;
    while left > 0 {
        let batch = left.min(MAX_BATCH);
        queue
            .enqueue_many((0..batch).map(|_| Item::new([0; 100])))
            .await?;
        left -= batch;
    }
    Ok(())
}

/// One consumer after the other on queues of different depths, in turn.
async fn depth(redis: &RedisServer, rounds: usize) -> Fallible<f64> {
    let store = store(redis).await?;
    let queues = [
        (10, queue(&store, "shallow").await?),
        (10_000, queue(&store, "deep").await?),
    ];
    for (depth, queue) in &queues {
        fill(queue, *depth).await?;
        queue.dequeue().await?.ack().await?;
        fill(queue, 1).await?;
    }
    let mut taken = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
    for _ in 0..rounds {
        for (at, (_, queue)) in queues.iter().enumerate() {
            let start = Instant::now();
            let delivery = queue.dequeue().await?;
            taken[at].record(start.elapsed().as_micros().try_into()?)?;
            delivery.ack().await?;
            fill(queue, 1).await?;
        }
    }
    let at = |which: usize, q| taken[which].value_at_quantile(q);
    let ratio = at(1, 0.5) as f64 / at(0, 0.5) as f64;
    println!(
        "dequeue: at depth 10 p50 {} us p99 {} us, at depth 10,000 p50 {} us p99 {} us | ratio of medians {ratio:.2}",
        at(0, 0.5),
        at(0, 0.99),
        at(1, 0.5),
        at(1, 0.99),
    );
    Ok(ratio)
}

/// From before the enqueue, on one client, until a consumer that waits on another has it.
async fn wake(redis: &RedisServer, rounds: usize) -> Fallible {
    let producing = queue(&store(redis).await?, "woken").await?;
    let consuming = queue(&store(redis).await?, "woken").await?;
    let mut reached = Histogram::<u64>::new(3)?;
    for round in 0..rounds + 20 {
        let handle = consuming.clone();
        let waiting = tokio::spawn(async move { (handle.dequeue().await, Instant::now()) });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        producing.enqueue("x").await?;
        let (delivery, at) = waiting.await?;
        if round >= 20 {
            reached.record((at - start).as_micros().try_into()?)?;
        }
        delivery?.ack().await?;
    }
    println!(
        "enqueue to a waiting dequeue: p50 {} us, p99 {} us, max {} us of {rounds}",
        reached.value_at_quantile(0.5),
        reached.value_at_quantile(0.99),
        reached.max(),
    );
    Ok(())
}

/// Producers and consumers with a session each, one item at a time, every item acknowledged.
async fn flow(
    redis: &RedisServer,
    producers: usize,
    consumers: usize,
    clients: usize,
    length: Duration,
) -> Fallible {
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(store(redis).await?);
    }
    let name = format!("flow {clients}");
    let (stop, put, got) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let done = Arc::new(tokio::sync::Notify::new());
    let seen = Arc::new(Mutex::new(HashMap::<(usize, u64), u32>::new()));
    let (mut producing, mut consuming) = (Vec::new(), Vec::new());
    for producer in 0..producers {
        let queue = queue(&stores[producer % clients], &name).await?;
        let (stop, put, got) = (Arc::clone(&stop), Arc::clone(&put), Arc::clone(&got));
        producing.push(tokio::spawn(async move {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // No faster than they are consumed: it is the flow that is measured.
                if put.load(Ordering::Relaxed) > got.load(Ordering::Relaxed) + 1_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                queue.enqueue(format!("{producer} {number}")).await?;
                put.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
            Fallible::Ok(())
        }));
    }
    for consumer in 0..consumers {
        let queue = queue(&stores[consumer % clients], &name).await?;
        let (done, got, seen) = (Arc::clone(&done), Arc::clone(&got), Arc::clone(&seen));
        consuming.push(tokio::spawn(async move {
            let mut newest = HashMap::<usize, u64>::new();
            loop {
                // Not dropped before all is done: what a dropped dequeue had comes back, and then
                // it comes after what others took meanwhile.
                let delivery = tokio::select! {
                    delivery = queue.dequeue() => delivery?,
                    () = done.notified() => return Fallible::Ok(()),
                };
                let text = String::from_utf8(delivery.value().to_vec())?;
                let (producer, number) = text.split_once(' ').ok_or("no number")?;
                let (producer, number) = (producer.parse()?, number.parse()?);
                // What one producer put in one after the other comes one after the other.
                let before = newest.insert(producer, number);
                assert!(
                    before < Some(number),
                    "{producer}: {number} after {before:?}"
                );
                delivery.ack().await?;
                got.fetch_add(1, Ordering::Relaxed);
                *seen.lock().unwrap().entry((producer, number)).or_default() += 1;
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await; // warm
    let (start, before) = (Instant::now(), got.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let passed = got.load(Ordering::Relaxed) - before;
    let per_second = passed as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in producing {
        task.await??;
    }
    while got.load(Ordering::Relaxed) < put.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    done.notify_waiters();
    for task in consuming {
        task.await??;
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, put.load(Ordering::Relaxed), "lost");
    assert!(seen.values().all(|times| *times == 1), "acknowledged twice");
    println!(
        "{producers} producers, {consumers} consumers, {clients} clients: {per_second:.0} items/s, each acknowledged once, in order"
    );
    Ok(())
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
    println!(
        "LMOVE of one: p50 {} us, p99 {} us",
        taken.value_at_quantile(0.5),
        taken.value_at_quantile(0.99),
    );
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
    println!(
        "RPUSH to a waiting BLMOVE: p50 {} us, p99 {} us",
        reached.value_at_quantile(0.5),
        reached.value_at_quantile(0.99),
    );
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
    // `cargo bench` adds `--bench`; `cargo test --benches` runs this for a moment, to see that it works.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match arguments.iter().find_map(|a| a.parse::<f64>().ok()) {
        Some(seconds) => seconds,
        None if arguments.iter().any(|a| a == "--bench") => 5.0,
        None => 0.2,
    };
    let rounds = if seconds < 1.0 { 20 } else { 1_000 };
    let redis = RedisServer::start()?;
    println!("redis {}, {seconds} s", redis.version());
    depth(&redis, rounds).await?;
    wake(&redis, rounds).await?;
    for clients in [1, 4] {
        flow(&redis, 4, 4, clients, Duration::from_secs_f64(seconds)).await?;
    }
    raw_cycle(&redis, rounds).await?;
    raw_wake(&redis, rounds).await?;
    for clients in [1, 4] {
        raw_flow(&redis, 4, clients, Duration::from_secs_f64(seconds)).await?;
    }
    Ok(())
}
