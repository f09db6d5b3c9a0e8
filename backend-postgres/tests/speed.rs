//! What a lock costs beside PostgreSQL's own. Numbers for people: run by hand, on a quiet machine.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::time::{Duration, Instant};

use sqlx::Executor;
use sqlx::postgres::{PgAdvisoryLock, PgAdvisoryLockKey};
use support::Database;

const TTL: Duration = Duration::from_secs(10);
const ROUNDS: u32 = 2000;

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
#[ignore = "a measurement"]
async fn uncontended() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let lock = session.locker("orders").unwrap();
    let mut connection = db.sql().await;
    let raw = PgAdvisoryLock::with_key(PgAdvisoryLockKey::BigInt(7));
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // By turns, so that what else the machine does meets both.
    for _ in 0..ROUNDS {
        let start = Instant::now();
        lock.lock().await.unwrap().release().await.unwrap();
        ours.push(start.elapsed());
        let start = Instant::now();
        let guard = raw.acquire(&mut connection).await.unwrap();
        let _ = guard.release_now().await.unwrap();
        theirs.push(start.elapsed());
    }
    let (ours, theirs) = (median(ours), median(theirs));
    println!(
        "lock + release: ours {ours:?}, PgAdvisoryLock {theirs:?}, {:.2}",
        ours.as_secs_f64() / theirs.as_secs_f64()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn handed_on() {
    let db = Database::new().await;
    let mut ours = Vec::new();
    let mut local = Vec::new();
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    for (one, other, times) in [(&a, &b, &mut ours), (&a, &a, &mut local)] {
        let (one, other) = (one.locker("l").unwrap(), other.locker("l").unwrap());
        for _ in 0..300 {
            let guard = one.lock().await.unwrap();
            let next = other.clone();
            let next = tokio::spawn(async move {
                let guard = next.lock().await.unwrap();
                (Instant::now(), guard)
            });
            tokio::time::sleep(Duration::from_millis(4)).await;
            let start = Instant::now();
            guard.release().await.unwrap();
            let (granted, guard) = next.await.unwrap();
            times.push(granted - start);
            guard.release().await.unwrap();
        }
    }
    let mut theirs = Vec::new();
    let mut first = db.sql().await;
    let mut second = Some(db.sql().await);
    for _ in 0..300 {
        first
            .execute(sqlx::query("SELECT pg_advisory_lock(7)"))
            .await
            .unwrap();
        let mut other = second.take().unwrap();
        let next = tokio::spawn(async move {
            other
                .execute(sqlx::query("SELECT pg_advisory_lock(7)"))
                .await
                .unwrap();
            (Instant::now(), other)
        });
        tokio::time::sleep(Duration::from_millis(4)).await;
        let start = Instant::now();
        first
            .execute(sqlx::query("SELECT pg_advisory_unlock(7)"))
            .await
            .unwrap();
        let (granted, mut other) = next.await.unwrap();
        theirs.push(granted - start);
        other
            .execute(sqlx::query("SELECT pg_advisory_unlock(7)"))
            .await
            .unwrap();
        second = Some(other);
    }
    println!(
        "hand-off: between processes {:?}, within one session {:?}, pg_advisory_lock {:?}",
        median(ours),
        median(local),
        median(theirs)
    );
}
