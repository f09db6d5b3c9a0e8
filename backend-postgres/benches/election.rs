//! What elections and read-write locks over PostgreSQL cost, on one server in one run.
//!
//! ```text
//! cargo bench -p tenure-postgres --bench election        # everything, some ten seconds
//! cargo bench -p tenure-postgres --bench election -- 50  # rounds of each measurement
//! ```
//!
//! Needs a PostgreSQL (see the test bed). Only the ratios mean something on another machine.

use std::time::{Duration, Instant};

use tenure_bench_kit::{Fallible, how_much, on_two_workers};
use tenure_core::backend::StoreUrl;
use tenure_core::{MAX_VALUE_BYTES, Session, SessionOptions};
use tenure_postgres::{PostgresConfig, PostgresSession};
use tenure_testbed::PostgresServer;

/// A session with connections of its own, as in another process.
async fn session(server: &PostgresServer) -> Fallible<Session<PostgresSession>> {
    let url = server.url() + "?sslmode=disable";
    let config = PostgresConfig::from_url(StoreUrl::parse(&url)?)?;
    let store = tenure_postgres::connect(config).await?;
    let options = SessionOptions::new().ttl(Duration::from_secs(30));
    Ok(store.open(options).await?)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    println!(
        "{what:<34} p50 {:>9.1?}  p99 {:>9.1?}",
        at(50).unwrap_or_default(),
        at(99).unwrap_or_default()
    );
}

async fn terms(server: &PostgresServer, rounds: usize) -> Fallible {
    let (a, b) = (session(server).await?, session(server).await?);
    let (mine, other) = (a.election("e")?, b.election("e")?);
    let (mut terms, mut said, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        let lead = mine.campaign("one").await?;
        let elected = start.elapsed();
        let start = Instant::now();
        lead.proclaim("two").await?;
        said.push(start.elapsed());
        let start = Instant::now();
        other.leader().await?;
        asked.push(start.elapsed());
        let start = Instant::now();
        lead.resign().await?;
        terms.push(elected + start.elapsed());
    }
    report("campaign + resign", terms);
    report("proclaim", said);
    report("leader", asked);
    Ok(())
}

async fn observed(server: &PostgresServer, rounds: usize) -> Fallible {
    let (a, b) = (session(server).await?, session(server).await?);
    let lead = a.election("o")?.campaign("x").await?;
    let mut observer = b.election("o")?.observe();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        // It waits when the change comes.
        while let Some(Ok(_)) = observer.next().await {
            let _ = tell.send(Instant::now());
        }
    });
    told.recv().await.ok_or("no observer")?;
    for (what, size) in [("", 1), (" of 1 MiB", MAX_VALUE_BYTES)] {
        let (mut said, mut shown) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            tokio::time::sleep(Duration::from_millis(5)).await;
            let value = vec![u8::try_from(round % 128)?; size];
            let start = Instant::now();
            lead.proclaim(&value).await?;
            said.push(start.elapsed());
            shown.push(told.recv().await.ok_or("no observer")? - start);
        }
        report(&format!("proclaim{what}, observed"), said);
        report("  until it is shown", shown);
    }
    Ok(())
}

async fn handed_over(server: &PostgresServer, rounds: usize) -> Fallible {
    let (a, b) = (session(server).await?, session(server).await?);
    let handles = [a.election("h")?, b.election("h")?];
    let mut lead = handles[1].campaign("n").await?;
    let mut handed = Vec::new();
    for round in 0..rounds {
        let handle = handles[round % 2].clone();
        let next = tokio::spawn(async move { handle.campaign("n").await });
        while server.sql("SELECT count(*) FROM tenure.tickets")? == "0" {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let start = Instant::now();
        lead.resign().await?;
        lead = next.await??;
        handed.push(start.elapsed());
    }
    report("resign until the next leads", handed);
    Ok(())
}

async fn both_sides(server: &PostgresServer, rounds: usize) -> Fallible {
    let lock = session(server).await?.rw_lock("l")?;
    let (mut reads, mut writes, mut turns) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let start = Instant::now();
        lock.read().await?.release().await?;
        reads.push(start.elapsed());
        let start = Instant::now();
        lock.write().await?.release().await?;
        writes.push(start.elapsed());
        let guard = lock.write().await?;
        let start = Instant::now();
        let guard = guard.downgrade().await?;
        turns.push(start.elapsed());
        guard.release().await?;
    }
    report("read + release", reads);
    report("write + release", writes);
    report("downgrade", turns);
    Ok(())
}

fn main() -> Fallible {
    let rounds = how_much(500, 500);
    on_two_workers(async {
        let server = PostgresServer::start()?;
        println!("PostgreSQL {}:", server.version());
        terms(&server, rounds).await?;
        observed(&server, rounds).await?;
        handed_over(&server, rounds.min(100)).await?;
        both_sides(&server, rounds).await
    })
}
