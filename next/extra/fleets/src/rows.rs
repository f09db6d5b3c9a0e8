//! The rows of the table of fleets.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use redis::AsyncCommands as _;
use tenure_core::SessionOptions;
use tenure_testbed::{RedisOptions, RedisServer};

use crate::fleet::{Worker, compare, rate};
use crate::work::connect;
use crate::{Result, bare};

/// A row.
pub struct Row {
    /// Its name on the command line.
    pub name: &'static str,
    /// Its title.
    pub what: &'static str,
    measure: for<'r> fn(&'r RedisServer) -> LocalBoxFuture<'r, Result>,
}

/// All rows.
pub const ROWS: &[Row] = &[
    Row {
        name: "pair",
        what: "a lock without contention, acquired and released, beside two bare scripts",
        measure: |server| Box::pin(pair(server)),
    },
    Row {
        name: "handoff",
        what: "one lock wanted by many processes, beside a baton in a list",
        measure: |server| Box::pin(handoff(server)),
    },
    Row {
        name: "transfer",
        what: "transfers between five accounts, beside one script",
        measure: |server| Box::pin(transfer(server)),
    },
    Row {
        name: "readers",
        what: "the death of a writer that readers wait for: messages a reader, and the time until the last one reads",
        measure: |server| Box::pin(readers(server)),
    },
    Row {
        name: "waiting",
        what: "clients that wait for one lock: requests while nothing happens, and memory",
        measure: |server| Box::pin(waiting(server)),
    },
    Row {
        name: "depth",
        what: "taking from a queue of ten items and of a million",
        measure: |server| Box::pin(depth(server)),
    },
];

/// Measures the rows of these names, each on a new server, or all.
///
/// # Errors
///
/// Those of the measurements, and for a name that is none.
pub async fn run(names: &[&str]) -> Result {
    if let Some(name) = names.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        return Err(format!("there is no row {name:?}: `list` prints them").into());
    }
    for row in ROWS.iter().filter(|row| names.is_empty() || names.contains(&row.name)) {
        println!("# {}: {}", row.name, row.what);
        let server = RedisServer::start(RedisOptions::default().without_persistence())?;
        (row.measure)(&server).await?;
    }
    Ok(())
}

fn arguments<const N: usize>(words: [&str; N]) -> Vec<String> {
    words.map(str::to_owned).to_vec()
}

async fn pair(server: &RedisServer) -> Result {
    let url = server.url();
    for callers in ["1", "16", "100"] {
        let with = arguments([callers]);
        compare(
            &format!("lock and release, {callers} callers in one process"),
            ("bare", async || rate("bare-pair", &url, 1, &with).await),
            ("tenure", async || rate("pair", &url, 1, &with).await),
        )
        .await?;
    }
    Ok(())
}

async fn handoff(server: &RedisServer) -> Result {
    let url = server.url();
    bare::connect(&url).await?.rpush::<_, _, u64>("baton", "baton").await?;
    for processes in [2, 16, 100] {
        compare(
            &format!("hand-offs of one lock, {processes} processes"),
            ("bare", async || rate("bare-baton", &url, processes, &[]).await),
            ("tenure", async || rate("lock", &url, processes, &[]).await),
        )
        .await?;
    }
    Ok(())
}

async fn transfer(server: &RedisServer) -> Result {
    let url = server.url();
    for (processes, callers) in [(1, "1"), (1, "16"), (10, "1")] {
        let with = arguments([callers]);
        compare(
            &format!("transfers, {processes} processes with {callers} callers"),
            ("bare", async || rate("bare-transfer", &url, processes, &with).await),
            ("tenure", async || rate("transfer", &url, processes, &with).await),
        )
        .await?;
    }
    Ok(())
}

/// Waits until the sum of the sizes of the sorted sets of waiters is `count`.
async fn until_waiting(server: &RedisServer, count: u64) -> Result {
    loop {
        let mut waiting = 0;
        for key in server.admin().keys("*/waiters")? {
            waiting += server.admin().query::<u64>(&["ZCARD", &key])?;
        }
        if waiting == count {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn readers(server: &RedisServer) -> Result {
    let url = server.url();
    for count in [100_u64, 1_000] {
        let name = format!("shared-{count}");
        let writer = Worker::start("writer", &url, &arguments([&name])).await?;
        let mut readers = Worker::start("readers", &url, &arguments([&name, &count.to_string()])).await?;
        until_waiting(server, count).await?;
        let calls =
            || -> Result<(u64, u64)> { Ok((server.admin().calls("spublish")?, server.admin().calls("evalsha")?)) };
        let before = calls()?;
        writer.kill().await?;
        readers.tell("go").await?;
        let micros = readers.figures().await?[0];
        let after = calls()?;
        println!(
            "{count} readers after their writer died (TTL 3 s): {:.2} messages and {:.2} scripts a reader, the last after {:.2} s",
            (after.0 - before.0) as f64 / count as f64,
            (after.1 - before.1) as f64 / count as f64,
            micros / 1e6
        );
    }
    Ok(())
}

async fn waiting(server: &RedisServer) -> Result {
    const QUIET: Duration = Duration::from_secs(20);
    let url = server.url();
    let store = connect(&url).await?;
    let holder = store.open(SessionOptions::new()).await?;
    let guard = holder.lock("wanted").await?;
    for count in [100_u64, 1_000] {
        let mut figures = Vec::new();
        for how in ["rest", "wait"] {
            let before = server.admin().keys("*/session/*")?.len();
            let clients = Worker::start("clients", &url, &arguments([&count.to_string(), how])).await?;
            if how == "wait" {
                until_waiting(server, count).await?;
            }
            let scripts = server.admin().calls("evalsha")?;
            tokio::time::sleep(QUIET).await;
            let scripts = server.admin().calls("evalsha")? - scripts;
            figures.push((scripts as f64 / count as f64, clients.memory()? as f64 / count as f64));
            clients.kill().await?;
            // Their leases end.
            while server.admin().keys("*/session/*")?.len() > before {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        println!(
            "{count} clients, in {QUIET:?} with renewals every 10 s: {:.2} scripts a waiting client, {:.2} a resting one; {:.1} kB \
             a waiting client, {:.1} a resting one",
            figures[1].0, figures[0].0, figures[1].1, figures[0].1
        );
    }
    Ok(guard.release().await?)
}

async fn depth(server: &RedisServer) -> Result {
    const BATCH: usize = 32; // the most items of an enqueue
    let url = server.url();
    let store = connect(&url).await?;
    let session = store.open(SessionOptions::new()).await?;
    let fill = async |name: &str, count: usize| -> Result {
        let queue = session.queue(name);
        for _ in 0..count / BATCH {
            queue.enqueue_many((0..BATCH).map(|_| "an item")).await?;
        }
        Ok(())
    };
    fill("deep", 1_000_000).await?;
    compare(
        "taken and acknowledged, one at a time",
        ("depth 10", async || {
            rate("take", &url, 1, &arguments(["shallow"])).await
        }),
        ("depth 1,000,000", async || {
            rate("take", &url, 1, &arguments(["deep"])).await
        }),
    )
    .await
}
