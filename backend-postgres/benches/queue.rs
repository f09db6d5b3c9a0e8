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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sqlx::{Connection, Executor, PgConnection, Row};
use tenure_bench_kit::queue::{Next, depth, flow, wake};
use tenure_bench_kit::{Fallible, how_much, quantiles};
use tenure_core::Store;
use tenure_core::backend::StoreUrl;
use tenure_postgres::{PostgresBackend, PostgresConfig};
use tenure_testbed::PostgresServer;

async fn store(server: &PostgresServer) -> Fallible<Store<PostgresBackend>> {
    let config = PostgresConfig::from_url(StoreUrl::parse(&server.url())?)?;
    Ok(tenure_postgres::connect(config).await?)
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
    println!("SKIP LOCKED of one: {}", quantiles(&taken));
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
    let seconds = how_much(5.0, 0.2);
    let rounds = if seconds < 1.0 { 20 } else { 1_000 };
    let server = PostgresServer::start()?;
    println!("PostgreSQL {}, {seconds} s", server.version());
    let length = Duration::from_secs_f64(seconds);
    let connect = async || store(&server).await;
    depth(&connect().await?, rounds).await?;
    wake(&connect().await?, &connect().await?, rounds).await?;
    for clients in [1, 4] {
        flow(connect, clients, Next::Afterwards, length).await?;
    }
    raw(&server)
        .await?
        .execute(
            "CREATE TABLE raw (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, value bytea)",
        )
        .await?;
    raw_take(&server, rounds).await?;
    raw_flow(&server, 4, length).await
}
