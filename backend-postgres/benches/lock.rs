//! Locks over PostgreSQL, side by side with bare advisory locks over the same client, on one server in
//! one run.
//!
//! ```text
//! cargo bench -p tenure-postgres --bench lock          # everything, some twenty seconds
//! cargo bench -p tenure-postgres --bench lock -- 5     # seconds for each measurement
//! ```
//!
//! Needs a PostgreSQL (see the test bed). Only the ratios mean something on another machine.
//!
//! On one machine a round trip costs a sixth when the client and the server's process happen to share a
//! CPU, which the scheduler decides for each connection anew. So each gets CPUs of its own here (by
//! `taskset`), as if the server were elsewhere; the cost that no waiting hides is shown beside it, by
//! both on one CPU.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockKey};
use sqlx::{Connection, Executor, PgConnection};
use tenure_core::backend::StoreUrl;
use tenure_core::{Session, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresSession};
use tenure_testbed::PostgresServer;
use tokio::sync::Barrier;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

const TAKE: &str = "SELECT pg_advisory_lock(7)";
const GIVE: &str = "SELECT pg_advisory_unlock(7)";

fn url(server: &PostgresServer) -> String {
    server.url() + "?sslmode=disable"
}

/// Which CPU is whose from now on. The server's is that of connections to come.
fn place(server: &PostgresServer, ours: &str, theirs: &str) -> Fallible {
    for (cpus, pid) in [(ours, std::process::id()), (theirs, server.pid())] {
        let pid = pid.to_string();
        let set = Command::new("taskset")
            .args(["--all-tasks", "--cpu-list", "--pid", cpus, &pid])
            .stdout(Stdio::null())
            .status()?;
        if !set.success() {
            return Err(format!("no CPU {cpus} for process {pid}").into());
        }
    }
    Ok(())
}

async fn store(server: &PostgresServer) -> Fallible<Store<PostgresBackend>> {
    let config = PostgresConfig::from_url(StoreUrl::parse(&url(server))?)?;
    Ok(tenure_postgres::connect(config).await?)
}

/// A session with a connection of its own to hear over, as in another process.
async fn session(server: &PostgresServer) -> Fallible<Session<PostgresSession>> {
    let options = SessionOptions::new().ttl(Duration::from_secs(30));
    Ok(store(server).await?.open(options).await?)
}

async fn raw(server: &PostgresServer) -> Fallible<PgConnection> {
    Ok(PgConnection::connect(&url(server)).await?)
}

fn histogram() -> Fallible<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 10_000_000_000, 3)?)
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Two measurements beside each other, in microseconds.
#[expect(clippy::cast_precision_loss, reason = "for people")]
fn compare(what: &str, ours: &Histogram<u64>, name: &str, theirs: &Histogram<u64>) {
    let at = |times: &Histogram<u64>, part| times.value_at_quantile(part) as f64 / 1e3;
    println!(
        "{what:<30} {:>7.1} us (mean {:.1}, p99 {:.1}); {name} {:.1} us (mean {:.1}, p99 {:.1}); ratio of the medians {:.2}",
        at(ours, 0.5),
        ours.mean() / 1e3,
        at(ours, 0.99),
        at(theirs, 0.5),
        theirs.mean() / 1e3,
        at(theirs, 0.99),
        at(ours, 0.5) / at(theirs, 0.5),
    );
}

/// Lock and release with nobody else there, in turns with the client's own lock: two round trips each.
async fn uncontended(server: &PostgresServer, what: &str, seconds: u64) -> Fallible {
    let session = session(server).await?;
    let lock = session.locker("uncontended")?;
    let mut connection = raw(server).await?;
    let bare = PgAdvisoryLock::with_key(PgAdvisoryLockKey::BigInt(7));
    let (mut ours, mut theirs) = (histogram()?, histogram()?);
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for _ in 0..10 {
            let begin = Instant::now();
            lock.lock().await?.release().await?;
            ours.saturating_record(nanos(begin.elapsed()));
        }
        for _ in 0..10 {
            let begin = Instant::now();
            let guard = bare.acquire(&mut connection).await?;
            let _ = guard.release_now().await?;
            theirs.saturating_record(nanos(begin.elapsed()));
        }
    }
    compare(what, &ours, "PgAdvisoryLock", &theirs);
    session.close().await?;
    Ok(())
}

/// From the call of a release to the return of the lock that waits for it, in another process's stead,
/// in turns with a connection that blocks in `pg_advisory_lock`.
async fn parked(server: &PostgresServer, seconds: u64) -> Fallible {
    let (here, there) = (session(server).await?, session(server).await?);
    let (mine, other) = (here.locker("parked")?, there.locker("parked")?);
    let (mut first, mut second) = (raw(server).await?, raw(server).await?);
    let (mut ours, mut theirs) = (histogram()?, histogram()?);
    let end = Instant::now() + Duration::from_secs(2 * seconds);
    while Instant::now() < end {
        let guard = mine.lock().await?;
        let waiter = tokio::spawn({
            let other = other.clone();
            async move {
                let guard = other.lock().await?;
                Ok::<_, tenure_core::Error>((Instant::now(), guard))
            }
        });
        tokio::time::sleep(Duration::from_millis(3)).await; // parked
        let begin = Instant::now();
        guard.release().await?;
        let (granted, guard) = waiter.await??;
        ours.saturating_record(nanos(granted.saturating_duration_since(begin)));
        guard.release().await?;

        first.execute(sqlx::query(TAKE)).await?;
        let waiter = tokio::spawn(async move {
            second.execute(sqlx::query(TAKE)).await?;
            Ok::<_, sqlx::Error>((Instant::now(), second))
        });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let begin = Instant::now();
        first.execute(sqlx::query(GIVE)).await?;
        let (granted, connection) = waiter.await??;
        theirs.saturating_record(nanos(granted.saturating_duration_since(begin)));
        second = connection;
        second.execute(sqlx::query(GIVE)).await?;
    }
    compare(
        "parked hand-off",
        &ours,
        "blocked pg_advisory_lock",
        &theirs,
    );
    Ok(())
}

/// Contenders in a loop, each with connections of its own: how evenly they are served.
async fn contended(server: &PostgresServer, contenders: usize, seconds: u64) -> Fallible {
    let stop = Arc::new(AtomicBool::new(false));
    let inside = Arc::new(AtomicU64::new(0));
    let ready = Arc::new(Barrier::new(contenders + 1));
    let mut tasks = Vec::new();
    for _ in 0..contenders {
        let session = session(server).await?;
        let (stop, inside, ready) = (Arc::clone(&stop), Arc::clone(&inside), Arc::clone(&ready));
        tasks.push(tokio::spawn(async move {
            let lock = session.locker("contended")?;
            let mut grants = 0_u64;
            ready.wait().await;
            while !stop.load(Ordering::Relaxed) {
                let guard = lock.lock().await?;
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two holders");
                grants += 1;
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().await?;
            }
            session.close().await?;
            Ok::<_, tenure_core::Error>(grants)
        }));
    }
    ready.wait().await;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut grants = Vec::new();
    for task in tasks {
        grants.push(task.await??);
    }
    let total: u64 = grants.iter().sum();
    #[expect(clippy::cast_precision_loss, reason = "for a ratio")]
    let off = |grants: u64| 100.0 * (grants as f64 * contenders as f64 / total as f64 - 1.0);
    println!(
        "{contenders:>3} contenders in a loop       {:>7}/s; grants from {:+.1} % to {:+.1} % of the mean",
        total / seconds,
        off(grants.iter().copied().min().unwrap_or_default()),
        off(grants.iter().copied().max().unwrap_or_default()),
    );
    Ok(())
}

fn main() -> Fallible {
    let seconds = std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(3);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = PostgresServer::start()?;
        println!("PostgreSQL {}:", server.version());
        if std::thread::available_parallelism()?.get() > 1 {
            place(&server, "0", "0")?;
            uncontended(&server, "lock + release, one CPU", seconds).await?;
            place(&server, "0", "1")?;
        }
        uncontended(&server, "lock + release", seconds).await?;
        parked(&server, seconds).await?;
        for contenders in [2, 16] {
            contended(&server, contenders, seconds).await?;
        }
        Ok(())
    })
}
