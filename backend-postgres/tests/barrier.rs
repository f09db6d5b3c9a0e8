//! Barriers and double barriers on a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor};
use support::{Database, server};
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, HoldFor, LossReason, SessionOptions};
use tenure_postgres::PostgresConfig;
use tenure_testbed::{Direction, Proxy};

const TTL: Duration = Duration::from_secs(5);
const HOLDS: &str = "SELECT count(*) FROM tenure.barriers";
const PLACES: &str =
    "SELECT (SELECT count(*) FROM tenure.participants) + (SELECT count(*) FROM tenure.rooms)";

async fn terminate(db: &Database, session: impl std::fmt::Display) {
    let terminate = format!("SELECT tenure.terminate({session})");
    db.sql()
        .await
        .execute(AssertSqlSafe(terminate))
        .await
        .unwrap();
}

#[tokio::test]
async fn held_waited_for_released() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (mine, other) = (a.barrier("b").unwrap(), b.barrier("b").unwrap());
    other.wait().await.unwrap();
    mine.hold(HoldFor::Good).await.unwrap();
    assert_eq!(
        other.hold(HoldFor::Session).await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert!(other.is_held().await.unwrap());
    let waiting = other.clone();
    let waiting = tokio::spawn(async move { waiting.wait().await });
    let limit = Duration::from_millis(200);
    assert_eq!(
        other.wait_timeout(limit).await.unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    // Released, and held by another at once: who waited goes on.
    assert!(mine.release().await.unwrap());
    other.hold(HoldFor::Good).await.unwrap();
    waiting.await.unwrap().unwrap();
    a.close().await.unwrap();
    b.close().await.unwrap();
    // It outlives its session, and the next one may end it.
    let c = db.session(TTL).await;
    let third = c.barrier("b").unwrap();
    assert!(third.is_held().await.unwrap());
    assert!(third.release().await.unwrap());
    assert!(!third.release().await.unwrap());
    assert_eq!(db.number(HOLDS).await, 0);
}

#[tokio::test]
async fn a_dead_holders_barrier_is_free_and_its_row_goes() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (mine, other) = (a.barrier("b").unwrap(), b.barrier("b").unwrap());
    mine.hold(HoldFor::Session).await.unwrap();
    let waiting = other.clone();
    let waiting = tokio::spawn(async move { waiting.wait().await.map(|()| Instant::now()) });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished());
    let ended = Instant::now();
    terminate(&db, a.id()).await;
    let heard = waiting.await.unwrap().unwrap();
    assert!(
        heard - ended < Duration::from_millis(1500),
        "{:?}",
        heard - ended
    );
    assert!(!other.is_held().await.unwrap());
    // A hold over the row of the dead.
    other.hold(HoldFor::Session).await.unwrap();
    assert_eq!(db.number(HOLDS).await, 1);
    b.close().await.unwrap();
    assert_eq!(db.number(HOLDS).await, 0);
    // After a crash of the server nobody knows the session: the sweep finds its row.
    let mut sql = db.sql().await;
    let orphan = "INSERT INTO tenure.barriers VALUES ('p', 5, 5, true, 5), ('q', 5, 6, false, 6)";
    sql.execute(orphan).await.unwrap();
    sql.execute("SELECT tenure.barrier_sweep()").await.unwrap();
    assert_eq!(
        db.number("SELECT count(*) FROM tenure.barriers WHERE path = 'q'")
            .await,
        1
    );
    assert_eq!(db.number(HOLDS).await, 1);
}

#[tokio::test]
async fn a_hold_that_nobody_heard_of_is_lifted() {
    let db = Database::new().await;
    for bytes in [0, 40, 90, 140, 200] {
        for direction in [Direction::Up, Direction::Down] {
            let proxy = Proxy::start(server().address()).unwrap();
            let url = format!(
                "postgres://postgres@{}/{}?sslmode=disable",
                proxy.address(),
                db.name
            );
            let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
            let store = tenure_postgres::connect(config).await.unwrap();
            let options = SessionOptions::new().ttl(Duration::from_secs(30));
            let session = store.open(options).await.unwrap();
            proxy.cut_after(direction, bytes);
            let held = session.barrier("b").unwrap().hold(HoldFor::Good).await;
            match held {
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Lost, "{direction:?} {bytes}");
                    db.until(HOLDS, 0).await;
                }
                Ok(()) => {
                    proxy.heal();
                    assert_eq!(db.number(HOLDS).await, 1);
                    let other = db.session(TTL).await;
                    assert!(other.barrier("b").unwrap().release().await.unwrap());
                }
            }
        }
    }
}

#[tokio::test]
async fn entered_and_left_by_generations() {
    let db = Database::new().await;
    let sessions = [
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    ];
    let inside = Arc::new(AtomicU32::new(0));
    let mut tasks = Vec::new();
    for session in &sessions {
        let door = session.double_barrier("d", 3).unwrap();
        let inside = Arc::clone(&inside);
        tasks.push(tokio::spawn(async move {
            let mut tokens = Vec::new();
            for round in 0..15 {
                let me = door.enter().await.unwrap();
                // All of this round have come, and none of the next.
                inside.fetch_add(1, Ordering::SeqCst);
                tokens.push(me.token());
                me.leave().await.unwrap();
                assert_eq!(inside.load(Ordering::SeqCst) / 3, round + 1);
            }
            tokens
        }));
    }
    let mut rounds = Vec::new();
    for task in tasks {
        rounds.push(task.await.unwrap());
    }
    for round in 1..15 {
        let before = rounds.iter().map(|tokens| tokens[round - 1]).max();
        let after = rounds.iter().map(|tokens| tokens[round]).min();
        assert!(before < after, "round {round}");
    }
    assert_eq!(db.number(PLACES).await, 0);
}

#[tokio::test]
async fn one_too_many_another_count_and_too_many() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let door = a.double_barrier("d", 2).unwrap();
    let first = tokio::spawn(async move { door.enter().await });
    db.until(PLACES, 2).await;
    let other = c.double_barrier("d", 3).unwrap().enter().await;
    assert_eq!(other.unwrap_err().kind(), ErrorKind::Conflict);
    let second = b.double_barrier("d", 2).unwrap().enter().await.unwrap();
    let first = first.await.unwrap().unwrap();
    let third = c.double_barrier("d", 2).unwrap().enter().await;
    assert_eq!(third.unwrap_err().kind(), ErrorKind::Conflict);
    let many = c.double_barrier("d", 1001).unwrap().enter().await;
    assert_eq!(many.unwrap_err().kind(), ErrorKind::TooLarge);
    let leaving = tokio::spawn(first.leave());
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!leaving.is_finished());
    drop(second);
    leaving.await.unwrap().unwrap();
    // Empty again: any count will do.
    c.double_barrier("d", 1)
        .unwrap()
        .enter()
        .await
        .unwrap()
        .leave()
        .await
        .unwrap();
    db.until(PLACES, 0).await;
}

#[tokio::test]
async fn the_dead_let_nobody_in_and_keep_nobody() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let door = a.double_barrier("d", 2).unwrap();
    let dead = tokio::spawn(async move { door.enter().await });
    db.until(PLACES, 2).await;
    terminate(&db, a.id()).await;
    assert_eq!(dead.await.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    let door = b.double_barrier("d", 2).unwrap();
    let alone = door.enter_timeout(Duration::from_millis(300)).await;
    assert_eq!(alone.unwrap_err().kind(), ErrorKind::TimedOut);
    // It is taken out in the background.
    db.until(PLACES, 0).await;
    let (one, two) = (door.clone(), c.double_barrier("d", 2).unwrap());
    let (one, two) = tokio::join!(one.enter(), two.enter());
    let (one, two) = (one.unwrap(), two.unwrap());
    let leaving = tokio::spawn(one.leave());
    terminate(&db, c.id()).await;
    let ended = Instant::now();
    leaving.await.unwrap().unwrap();
    assert!(
        ended.elapsed() < Duration::from_millis(1500),
        "{:?}",
        ended.elapsed()
    );
    assert_eq!(two.lost().await, LossReason::Revoked);
    assert_eq!(two.leave().await.unwrap_err().kind(), ErrorKind::Lost);
    db.until(PLACES, 0).await;
}

#[tokio::test]
async fn who_is_taken_out_by_hand_learns_of_it() {
    let db = Database::new().await;
    let a = db.session(Duration::from_secs(2)).await;
    let inside = a.double_barrier("d", 1).unwrap().enter().await.unwrap();
    let mut sql = db.sql().await;
    sql.execute("DELETE FROM tenure.participants")
        .await
        .unwrap();
    let lost = tokio::time::timeout(TTL, inside.lost()).await.unwrap();
    assert_eq!(lost, LossReason::Revoked);
    assert!(a.is_valid());
}

#[tokio::test]
async fn hundreds_of_enters_dropped_at_random_leave_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut tasks = Vec::new();
    for number in 0..400_u64 {
        let session = if number % 2 == 0 { &a } else { &b };
        let door = session
            .double_barrier(format!("d{}", number % 5), 3)
            .unwrap();
        let barrier = session.barrier(format!("b{}", number % 5)).unwrap();
        tasks.push(tokio::spawn(async move {
            let limit = Duration::from_micros(number * 7919 % 150_000);
            let _ = tokio::time::timeout(limit, async {
                match number % 3 {
                    0 => drop(barrier.hold(HoldFor::Session).await),
                    1 => drop(barrier.wait().await),
                    _ => {
                        if let Ok(inside) = door.enter().await {
                            let _ = inside.leave().await;
                        }
                    }
                }
            })
            .await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    db.until(PLACES, 0).await;
    for name in 0..5 {
        let _ = a
            .barrier(format!("b{name}"))
            .unwrap()
            .release()
            .await
            .unwrap();
    }
    assert_eq!(db.number(HOLDS).await, 0);
}
