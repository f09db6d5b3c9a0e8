//! Locks on a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, Row};
use support::{Database, TICKETS};
use tenure_core::{ErrorKind, LossReason};

const TTL: Duration = Duration::from_secs(5);

#[tokio::test]
async fn taken_refused_given_back() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (mine, other) = (a.locker("orders").unwrap(), b.locker("orders").unwrap());
    let guard = mine.lock().await.unwrap();
    assert_eq!(
        other.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    // No re-entrancy.
    assert_eq!(
        mine.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    // Another name, and another kind of thing, are not in the way.
    drop(b.locker("order").unwrap().try_lock().await.unwrap());
    let token = guard.token();
    guard.release().await.unwrap();
    let next = other.try_lock().await.unwrap();
    assert!(next.token() > token);
    next.release().await.unwrap();
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn granted_in_the_order_of_arrival() {
    let db = Database::new().await;
    let sessions = [
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    ];
    let first = sessions[0].locker("l").unwrap().lock().await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..12_i64 {
        let (lock, order) = (
            sessions[number as usize % 3].locker("l").unwrap(),
            Arc::clone(&order),
        );
        tasks.push(tokio::spawn(async move {
            let guard = lock.lock().await.unwrap();
            order.lock().unwrap().push((number, guard.token()));
            guard.release().await.unwrap();
        }));
        db.until(TICKETS, number + 1).await;
    }
    first.release().await.unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    let order = order.lock().unwrap().clone();
    let numbers: Vec<_> = order.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (0..12).collect::<Vec<_>>());
    assert!(order.is_sorted_by_key(|(_, token)| *token));
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn a_wait_that_times_out_leaves_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let guard = a.locker("l").unwrap().lock().await.unwrap();
    let limit = Duration::from_millis(200);
    let late = b.locker("l").unwrap().lock_timeout(limit).await;
    assert_eq!(late.unwrap_err().kind(), ErrorKind::TimedOut);
    db.until(TICKETS, 0).await;
    guard.release().await.unwrap();
    drop(b.locker("l").unwrap().try_lock().await.unwrap());
}

#[tokio::test]
async fn who_withdraws_hands_on() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let guard = a.locker("l").unwrap().lock().await.unwrap();
    let second = b.locker("l").unwrap();
    let second = tokio::spawn(async move { second.lock().await });
    db.until(TICKETS, 1).await;
    let third = c.locker("l").unwrap();
    let third = tokio::spawn(async move { third.lock().await });
    db.until(TICKETS, 2).await;
    second.abort();
    db.until(TICKETS, 1).await;
    guard.release().await.unwrap();
    let guard = tokio::time::timeout(TTL, third).await.unwrap().unwrap();
    guard.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_terminated_holder_is_told_and_the_next_is_granted() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let held = a.locker("l").unwrap().lock().await.unwrap();
    let waiting = b.locker("l").unwrap();
    let waiting = tokio::spawn(async move { (waiting.lock().await, Instant::now()) });
    db.until(TICKETS, 1).await;
    let mut sql = db.sql().await;
    let terminate = format!("SELECT tenure.terminate({})", a.id());
    let ended = Instant::now();
    let row = sql.fetch_one(AssertSqlSafe(terminate)).await.unwrap();
    assert!(row.get::<bool, _>(0));
    let (next, granted) = waiting.await.unwrap();
    let next = next.unwrap();
    assert!(next.token() > held.token());
    assert!(
        granted - ended < Duration::from_millis(1500),
        "{:?}",
        granted - ended
    );
    assert_eq!(held.lost().await, LossReason::Revoked);
    assert_eq!(held.release().await.unwrap_err().kind(), ErrorKind::Lost);
    // Its own is spared.
    next.release().await.unwrap();
}

#[tokio::test]
async fn the_server_ends_who_is_silent() {
    let db = Database::new().await;
    let ttl = Duration::from_secs(2);
    // A process whose runtime stands still: nobody renews.
    let (tell, told) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let silent = db.config();
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (held, guard) = runtime.block_on(async {
            let store = tenure_postgres::connect(silent).await.unwrap();
            let options = tenure_core::SessionOptions::new().ttl(ttl);
            let session = store.open(options).await.unwrap();
            // Before the last that the server hears of it.
            let held = Instant::now();
            (held, session.locker("l").unwrap().lock().await.unwrap())
        });
        tell.send(held).unwrap();
        let _ = ended.recv();
        assert!(!guard.is_valid());
        drop(guard);
    });
    // Not while this runtime stands still: its session has to be renewed.
    let told = tokio::task::spawn_blocking(move || told.recv());
    let held = told.await.unwrap().unwrap();
    let session = db.session(TTL).await;
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    let after = held.elapsed();
    assert!(after >= ttl, "{after:?}");
    assert!(after < ttl + Duration::from_secs(10), "{after:?}");
    guard.release().await.unwrap();
    end.send(()).unwrap();
    thread.join().unwrap();
}

#[tokio::test]
async fn a_closed_session_frees_at_once_and_wakes_who_waits() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let _held = a.locker("l").unwrap().lock().await.unwrap();
    let lost = b.locker("l").unwrap();
    let lost = tokio::spawn(async move { lost.lock().await });
    db.until(TICKETS, 1).await;
    let next = c.locker("l").unwrap();
    let next = tokio::spawn(async move { next.lock().await });
    db.until(TICKETS, 2).await;
    b.close().await.unwrap();
    assert_eq!(lost.await.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    a.close().await.unwrap();
    let next = tokio::time::timeout(TTL, next).await.unwrap().unwrap();
    next.unwrap().release().await.unwrap();
    db.until("SELECT count(*) FROM tenure.sessions", 1).await;
}

#[tokio::test]
async fn an_operator_takes_one_lock_away() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let held = a.locker("l").unwrap().lock().await.unwrap();
    let kept = a.locker("k").unwrap().lock().await.unwrap();
    let holding = held.key().rsplit_once('#').unwrap().1.to_owned();
    let mut sql = db.sql().await;
    let evict = format!("SELECT tenure.evict('{holding}')");
    sql.execute(AssertSqlSafe(evict)).await.unwrap();
    assert_eq!(held.lost().await, LossReason::Revoked);
    drop(b.locker("l").unwrap().lock().await.unwrap());
    assert!(kept.is_valid());
}

#[tokio::test]
async fn a_wait_holds_back_no_vacuum_and_blocks_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let _held = a.locker("l").unwrap().lock().await.unwrap();
    let waiting = b.locker("l").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    db.until(TICKETS, 1).await;
    db.until(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tenure' \
         AND (backend_xmin IS NOT NULL OR state <> 'idle')",
        0,
    )
    .await;
    assert_eq!(
        db.number("SELECT count(*) FROM pg_locks WHERE NOT granted")
            .await,
        0
    );
    waiting.abort();
}

#[tokio::test]
async fn tokens_rise_over_a_crash_that_takes_the_sequence_back() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let before = session.locker("l").unwrap().lock().await.unwrap().token();
    session.close().await.unwrap();
    let mut sql = db.sql().await;
    // What a crash leaves: an unlogged table is empty, and a sequence may be behind.
    sql.execute("TRUNCATE tenure.life").await.unwrap();
    sql.execute("SELECT setval('tenure.tokens', 1)")
        .await
        .unwrap();
    let session = db.session(TTL).await;
    let after = session.locker("l").unwrap().lock().await.unwrap().token();
    assert!(after > before);
    assert!(after.get() < 1 << 53);
}

#[tokio::test]
async fn a_thousand_waits_dropped_at_random_leave_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut tasks = Vec::new();
    for number in 0..1000_u64 {
        let session = if number % 2 == 0 { &a } else { &b };
        let lock = session.locker(format!("l{}", number % 7)).unwrap();
        tasks.push(tokio::spawn(async move {
            let limit = Duration::from_micros(number * 7919 % 200_000);
            let _ = tokio::time::timeout(limit, lock.lock()).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    db.until(TICKETS, 0).await;
    // Two sessions' own.
    db.until(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
         (SELECT oid FROM pg_database WHERE datname = current_database())",
        2,
    )
    .await;
    drop(a.locker("l0").unwrap().try_lock().await.unwrap());
}

#[tokio::test]
async fn an_order_that_names_nothing_says_how_it_is_written() {
    let db = Database::new().await;
    let _session = db.session(TTL).await;
    let mut sql = db.sql().await;
    for (order, hint) in [
        ("SELECT tenure.evict('orders')", "SESSION:NONCE"),
        ("SELECT tenure.evict('17:xyz')", "SESSION:NONCE"),
        (
            "SELECT tenure.evict_delivery('17')",
            "QUEUE:PRIORITY:NUMBER",
        ),
    ] {
        let refused = sql.execute(order).await.unwrap_err();
        assert!(refused.to_string().contains(hint), "{refused}");
    }
    // A session that is not there is no mistake: it may have ended.
    sql.execute("SELECT tenure.evict('17:00000000000000a1')")
        .await
        .unwrap();
}
