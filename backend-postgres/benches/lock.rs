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
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockKey};
use sqlx::{Connection, Executor, PgConnection};
use tenure_bench_kit::lock::{contended, hand_off};
use tenure_bench_kit::{Fallible, histogram, how_much, nanos, on_two_workers};
use tenure_core::backend::StoreUrl;
use tenure_core::{Session, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresSession};
use tenure_testbed::PostgresServer;

const TAKE: &str = "SELECT pg_advisory_lock(7)";
const GIVE: &str = "SELECT pg_advisory_unlock(7)";

/// After which who waits for a lock is taken to be parked.
const PARKED: Duration = Duration::from_millis(3);

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
        let took = hand_off(&mine, &other, PARKED).await?;
        ours.saturating_record(nanos(took));

        first.execute(sqlx::query(TAKE)).await?;
        let waiter = tokio::spawn(async move {
            second.execute(sqlx::query(TAKE)).await?;
            Ok::<_, sqlx::Error>((Instant::now(), second))
        });
        tokio::time::sleep(PARKED).await;
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

fn main() -> Fallible {
    let seconds = how_much(3, 3);
    on_two_workers(async {
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
            let mut sessions = Vec::new();
            for _ in 0..contenders {
                sessions.push(session(&server).await?);
            }
            contended(sessions, seconds).await?;
        }
        Ok(())
    })
}
