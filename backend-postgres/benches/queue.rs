//! Queues over PostgreSQL: what depth costs, how soon an item reaches a waiting consumer, and how many pass,
//! side by side with a plain table (`FOR UPDATE SKIP LOCKED` in a transaction that stays open for the
//! work, `DELETE`) over the same client.
//!
//! ```text
//! cargo bench -p tenure-postgres --bench queue            # everything, about half a minute
//! cargo bench -p tenure-postgres --bench queue -- 5       # seconds for each throughput
//! ```
//!
//! Needs PostgreSQL's programs. Only the ratios mean something on
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
use sqlx::{Connection, Executor, PgConnection, Row};
use tenure_core::backend::StoreUrl;
use tenure_core::{Item, MAX_BATCH, QueueHandle, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresQueue};
use tenure_testbed::PostgresServer;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Queue = QueueHandle<PostgresQueue>;

async fn store(server: &PostgresServer) -> Fallible<Store<PostgresBackend>> {
    let config = PostgresConfig::from_url(StoreUrl::parse(&server.url())?)?;
    Ok(tenure_postgres::connect(config).await?)
}

async fn queue(store: &Store<PostgresBackend>, name: &str) -> Fallible<Queue> {
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
async fn depth(server: &PostgresServer, rounds: usize) -> Fallible<f64> {
    let store = store(server).await?;
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
async fn wake(server: &PostgresServer, rounds: usize) -> Fallible {
    let producing = queue(&store(server).await?, "woken").await?;
    let consuming = queue(&store(server).await?, "woken").await?;
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
    server: &PostgresServer,
    producers: usize,
    consumers: usize,
    clients: usize,
    length: Duration,
) -> Fallible {
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(store(server).await?);
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

async fn raw(server: &PostgresServer) -> Fallible<PgConnection> {
    Ok(PgConnection::connect(&(server.url() + "?sslmode=disable")).await?)
}

const PUT: &str = "INSERT INTO raw (value) VALUES ($1)";

/// The take of the tutorials: the row stays locked, and is deleted when the work is done.
const TAKE: &str = "SELECT id, value FROM raw ORDER BY id FOR UPDATE SKIP LOCKED LIMIT 1";

const DONE: &str = "DELETE FROM raw WHERE id = $1";

async fn raw_put(connection: &mut PgConnection, value: &[u8]) -> Fallible {
    connection.execute(sqlx::query(PUT).bind(value)).await?;
    Ok(())
}

/// Takes one and does away with it: how long the first half took, if there was one.
async fn raw_cycle(connection: &mut PgConnection) -> Fallible<Option<Duration>> {
    let start = Instant::now();
    let mut transaction = connection.begin().await?;
    let Some(row) = transaction.fetch_optional(sqlx::query(TAKE)).await? else {
        transaction.commit().await?;
        return Ok(None);
    };
    let took = start.elapsed();
    let done = sqlx::query(DONE).bind(row.get::<i64, _>(0));
    transaction.execute(done).await?;
    transaction.commit().await?;
    Ok(Some(took))
}

async fn raw_take(server: &PostgresServer, rounds: usize) -> Fallible {
    let mut connection = raw(server).await?;
    let mut taken = Histogram::<u64>::new(3)?;
    for _ in 0..rounds {
        raw_put(&mut connection, &[0; 100]).await?;
        let took = raw_cycle(&mut connection).await?.ok_or("no item")?;
        taken.record(took.as_micros().try_into()?)?;
    }
    println!(
        "SKIP LOCKED of one: p50 {} us, p99 {} us",
        taken.value_at_quantile(0.5),
        taken.value_at_quantile(0.99),
    );
    Ok(())
}

/// Tasks that put one in, and tasks that take one and remove it, a connection each.
async fn raw_flow(server: &PostgresServer, tasks: usize, length: Duration) -> Fallible {
    let (stop, put, got) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let mut working = Vec::new();
    for task in 0..tasks * 2 {
        let mut connection = raw(server).await?;
        let (stop, put, got) = (Arc::clone(&stop), Arc::clone(&put), Arc::clone(&got));
        working.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                if task < tasks {
                    if put.load(Ordering::Relaxed) > got.load(Ordering::Relaxed) + 1_000 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        continue;
                    }
                    raw_put(&mut connection, format!("{task} item").as_bytes()).await?;
                    put.fetch_add(1, Ordering::Relaxed);
                } else if raw_cycle(&mut connection).await?.is_some() {
                    got.fetch_add(1, Ordering::Relaxed);
                }
            }
            Fallible::Ok(())
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await; // warm
    let (start, before) = (Instant::now(), got.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let rate = (got.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in working {
        task.await??;
    }
    println!("a table, {tasks} and {tasks}, a connection each: {rate:.0} items/s");
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
    let server = PostgresServer::start()?;
    println!("PostgreSQL {}, {seconds} s", server.version());
    depth(&server, rounds).await?;
    wake(&server, rounds).await?;
    for clients in [1, 4] {
        flow(&server, 4, 4, clients, Duration::from_secs_f64(seconds)).await?;
    }
    raw(&server)
        .await?
        .execute(
            "CREATE TABLE raw (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value bytea)",
        )
        .await?;
    raw_take(&server, rounds).await?;
    raw_flow(&server, 4, Duration::from_secs_f64(seconds)).await
}
