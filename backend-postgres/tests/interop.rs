//! Locks shared with any SQL client.

#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use support::{Database, TICKETS, server};
use tenure_core::{ErrorKind, HandOff, NameIsolation, Session, SessionOptions, TokenOrder};
use tenure_postgres::PostgresSession;

const TTL: Duration = Duration::from_secs(5);

/// How a lock is called here, and what others take for it.
const SAME: &[(&str, &str)] = &[
    ("orders/1", "hashtextextended('orders/1', 0)"),
    ("zażółć", "hashtextextended('zażółć', 0)"),
    ("key:-42", "-42"),
    ("key:7", "7"),
    ("key:3,-4", "3, -4"),
];

async fn session(db: &Database) -> Session<PostgresSession> {
    let store = tenure_postgres::connect(db.config().interop(true));
    let options = SessionOptions::new().ttl(TTL);
    store.await.unwrap().open(options).await.unwrap()
}

async fn says(sql: &mut PgConnection, question: String) -> bool {
    let row = sql.fetch_one(AssertSqlSafe(question)).await.unwrap();
    row.get(0)
}

async fn take(sql: &mut PgConnection, key: &str) -> bool {
    says(sql, format!("SELECT pg_try_advisory_lock({key})")).await
}

async fn give(sql: &mut PgConnection, key: &str) -> bool {
    says(sql, format!("SELECT pg_advisory_unlock({key})")).await
}

#[tokio::test]
async fn each_keeps_the_other_out() {
    let db = Database::new().await;
    let session = session(&db).await;
    let mut sql = db.sql().await;
    for (name, key) in SAME {
        let lock = session.locker(*name).unwrap();
        for round in 0..2 {
            let guard = lock.try_lock().await.unwrap();
            assert!(!take(&mut sql, key).await, "{name} {round}");
            guard.release().await.unwrap();
            assert!(take(&mut sql, key).await, "{name} {round}");
            let refused = lock.try_lock().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::WouldBlock, "{name} {round}");
            assert!(give(&mut sql, key).await);
        }
    }
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn psql_shares_a_lock() {
    let db = Database::new().await;
    let session = session(&db).await;
    let ask = async || {
        let mut psql = Command::new("psql");
        psql.arg(server().url_of(&db.name)).args(["-tAc"]);
        psql.arg("SELECT pg_try_advisory_lock(hashtextextended('orders', 0))");
        let asked = tokio::task::spawn_blocking(move || psql.output().unwrap());
        String::from_utf8(asked.await.unwrap().stdout).unwrap()
    };
    let guard = session.locker("orders").unwrap().lock().await.unwrap();
    assert_eq!(ask().await.trim(), "f");
    guard.release().await.unwrap();
    assert_eq!(ask().await.trim(), "t");
    // Its connection has ended, and the lock with it.
    drop(session.locker("orders").unwrap().lock().await.unwrap());
}

#[tokio::test]
async fn a_foreign_release_is_noticed_and_ours_go_in_order() {
    let db = Database::new().await;
    for (name, key) in [SAME[0], SAME[4]] {
        let sessions = [session(&db).await, session(&db).await];
        let mut sql = db.sql().await;
        assert!(take(&mut sql, key).await);
        let order = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = Vec::new();
        for number in 0..6_usize {
            let lock = sessions[number % 2].locker(name).unwrap();
            let order = Arc::clone(&order);
            tasks.push(tokio::spawn(async move {
                let guard = lock.lock().await.unwrap();
                order.lock().unwrap().push((number, guard.token()));
                guard.release().await.unwrap();
            }));
            // The first of ours has the line of a pair already, and waits for the pair alone.
            let ahead = i64::from(name.contains(','));
            let waiting = i64::try_from(number).unwrap() + 1 - ahead;
            if waiting == 0 {
                let held = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 1 \
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
                db.until(held, 3).await;
            }
            db.until(TICKETS, waiting).await;
        }
        assert!(order.lock().unwrap().is_empty());
        assert!(give(&mut sql, key).await);
        for task in tasks {
            tokio::time::timeout(TTL, task).await.unwrap().unwrap();
        }
        let order = order.lock().unwrap().clone();
        let numbers: Vec<_> = order.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, (0..6).collect::<Vec<_>>());
        assert!(order.is_sorted_by_key(|(_, token)| *token));
        for session in sessions {
            session.close().await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_foreign_waiter_is_served() {
    let db = Database::new().await;
    let session = session(&db).await;
    for (name, key) in SAME {
        let guard = session.locker(*name).unwrap().lock().await.unwrap();
        let mut sql = db.sql().await;
        let waiting = tokio::spawn(async move {
            let lock = format!("SELECT pg_advisory_lock({key})");
            sql.execute(AssertSqlSafe(lock)).await.unwrap();
        });
        let blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
        db.until(blocked, 1).await;
        guard.release().await.unwrap();
        tokio::time::timeout(TTL, waiting).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_wait_for_a_pair_that_is_dropped_leaves_nothing() {
    let db = Database::new().await;
    let session = session(&db).await;
    let mut sql = db.sql().await;
    assert!(take(&mut sql, "3, -4").await);
    let lock = session.locker("key:3,-4").unwrap();
    let limit = Duration::from_millis(300);
    let late = lock.lock_timeout(limit).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    // The foreign one's, and the session's own.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = \
         (SELECT oid FROM pg_database WHERE datname = current_database())";
    db.until(locks, 2).await;
    assert!(give(&mut sql, "3, -4").await);
    drop(lock.try_lock().await.unwrap());
}

#[tokio::test]
async fn a_session_that_ends_frees_it_for_others() {
    let db = Database::new().await;
    let session = session(&db).await;
    let mut held = Vec::new();
    for (name, _) in SAME {
        held.push(session.locker(*name).unwrap().lock().await.unwrap());
    }
    session.close().await.unwrap();
    let mut sql = db.sql().await;
    for (_, key) in SAME {
        assert!(take(&mut sql, key).await);
    }
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let db = Database::new().await;
    let session = session(&db).await;
    for bad in [
        "key:x",
        "key:1,2,3",
        "key:007",
        "tenure/1/session/1",
        "tenure/1/default/lock/orders",
    ] {
        let lock = session.locker(bad).unwrap();
        assert_eq!(
            lock.lock().await.unwrap_err().kind(),
            ErrorKind::InvalidName
        );
        assert_eq!(
            lock.try_lock().await.unwrap_err().kind(),
            ErrorKind::InvalidName
        );
    }
    // Without interop it is a name like any other, and nobody else's lock.
    let plain = db.session(TTL).await;
    let _guard = plain.locker("key:7").unwrap().lock().await.unwrap();
    assert!(take(&mut db.sql().await, "7").await);
}

#[tokio::test]
async fn what_strangers_cannot_keep_is_denied() {
    let db = Database::new().await;
    let store = tenure_postgres::connect(db.config().interop(true))
        .await
        .unwrap();
    let claims = store.guarantees().await.unwrap();
    assert!(claims.deployment.ends_with(", interop"));
    assert_eq!(claims.token_order.value, TokenOrder::None);
    assert_eq!(claims.hand_off.value, HandOff::Unordered);
    assert_eq!(claims.name_isolation.value, NameIsolation::Verbatim);
}

/// PostgreSQL gives a session a second time what it has: two spellings would be two locks here.
#[tokio::test]
async fn a_key_has_one_spelling() {
    let db = Database::new().await;
    let session = session(&db).await;
    let guard = session.locker("key:3,-4").unwrap().try_lock().await;
    let guard = guard.unwrap();
    for name in ["key:3, -4", "key:+3,-4", "key:03,-04"] {
        let refused = session.locker(name).unwrap().try_lock().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidName, "{name}");
        assert!(
            refused.chain().to_string().contains("`key:3,-4`"),
            "{refused}"
        );
    }
    guard.release().await.unwrap();
    assert!(take(&mut db.sql().await, "3, -4").await);
}
