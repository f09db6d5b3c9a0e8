//! What operators do, and what comes of it (rules O1 and O4): see the table in docs/postgres.md.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use support::Database;
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, FencingToken, Item, LossReason, SessionOptions, Store};
use tenure_postgres::{PostgresBackend, PostgresConfig};
use tenure_testbed::PostgresServer;

const TTL: Duration = Duration::from_secs(5);

async fn store(url: &str) -> tenure_core::Result<Store<PostgresBackend>> {
    let url = format!("{url}?sslmode=disable");
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    tenure_postgres::connect(config).await
}

fn options() -> SessionOptions {
    SessionOptions::new().ttl(TTL)
}

/// The restored server knows nothing of what was granted since the backup; holders learn of it, and tokens go on
/// rising without anybody's doing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_backup_ends_sessions_and_tokens_rise() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let store = store(&server.url()).await.unwrap();
    let session = store.open(options()).await.unwrap();
    let queue = session.queue("q").unwrap();
    queue.enqueue("before").await.unwrap();
    let mut server = tokio::task::spawn_blocking(move || {
        server.save_backup().unwrap();
        std::mem::replace(&mut server, PostgresServer::start().unwrap())
    })
    .await
    .unwrap();
    queue.enqueue("after").await.unwrap();
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    let token = guard.token();

    let _server = tokio::task::spawn_blocking(move || {
        server.restore().unwrap();
        server
    })
    .await
    .unwrap();
    let lost = tokio::time::timeout(TTL, guard.lost()).await;
    assert!(lost.is_ok(), "the holder believes that it holds");
    assert!(!guard.is_valid());

    let again = store.open(options()).await.unwrap();
    let next = again.locker("l").unwrap().try_lock().await.unwrap();
    assert!(next.token() > token, "{} after {token}", next.token());
    let queue = again.queue("q").unwrap();
    let delivery = queue.try_dequeue().await.unwrap().unwrap();
    assert_eq!(delivery.value(), b"before");
    assert!(queue.len().await.unwrap() <= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raised_token_floor_outlives_a_crash_and_never_falls() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let before = store(&server.url()).await.unwrap();
    let session = before.open(options()).await.unwrap();
    let token = |name: &'static str| {
        let lock = session.locker(name).unwrap();
        async move { lock.try_lock().await.unwrap().token() }
    };
    let first = token("a").await;
    let floor = FencingToken::new(first.get() + (1 << 50));
    before.raise_token_floor(floor).await.unwrap();
    let second = token("b").await;
    assert!(second >= floor, "{second} under a floor of {floor}");
    // Neither a lower one nor the same changes anything.
    before.raise_token_floor(first).await.unwrap();
    before.raise_token_floor(floor).await.unwrap();
    let third = token("c").await;
    assert!(
        third > second && third.get() < second.get() + 100,
        "{third}"
    );

    server.restart_async().await.unwrap();
    let after = store(&server.url()).await.unwrap();
    let session = after.open(options()).await.unwrap();
    let fourth = session.locker("a").unwrap().try_lock().await.unwrap();
    assert!(fourth.token() > third, "{} after {third}", fourth.token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminated_backend_ends_its_session_only() {
    let database = Database::new().await;
    let (one, other) = (database.session(TTL).await, database.session(TTL).await);
    let guard = one.locker("l").unwrap().lock().await.unwrap();
    let kept = other.locker("kept").unwrap().lock().await.unwrap();
    let end = format!(
        "SELECT pg_terminate_backend(pid) FROM tenure.sessions WHERE id = {}",
        one.id()
    );
    let mut sql = database.sql().await;
    sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    let lost = tokio::time::timeout(TTL, guard.lost()).await;
    assert_eq!(lost.unwrap(), LossReason::Revoked);
    assert!(kept.is_valid());
    let free = other.locker("l").unwrap().lock().await.unwrap();
    assert!(free.token() > guard.token());
}

/// A transaction that stays open keeps dead rows, but no step waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transaction_that_pins_xmin_blocks_nothing() {
    let database = Database::new().await;
    let session = database.session(TTL).await;
    let mut pin = database.sql().await;
    pin.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        .await
        .unwrap();
    pin.execute("SELECT count(*) FROM tenure.sessions")
        .await
        .unwrap();
    for number in 0..20 {
        let guard = session.locker("l").unwrap().lock().await.unwrap();
        guard.release().await.unwrap();
        let queue = session.queue("q").unwrap();
        let item = Item::new(format!("{number}"));
        queue.enqueue(item).await.unwrap();
        queue
            .try_dequeue()
            .await
            .unwrap()
            .unwrap()
            .ack()
            .await
            .unwrap();
    }
    pin.execute("ROLLBACK").await.unwrap();
    assert!(session.is_valid());
}

/// Connections that exist go on; every new one needs the new password.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_password_refuses_new_sessions_only() {
    let server = PostgresServer::builder()
        .user("app", "old")
        .start_async()
        .await
        .unwrap();
    server
        .sql("GRANT CREATE ON DATABASE postgres TO app")
        .unwrap();
    let url = |password: &str| format!("postgres://app:{password}@{}/postgres", server.address());
    let before = store(&url("old")).await.unwrap();
    let session = before.open(options()).await.unwrap();
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    server.sql("ALTER ROLE app PASSWORD 'new'").unwrap();

    let refused = before.open(options()).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unauthorized, "{refused}");
    guard.release().await.unwrap();
    let again = session.locker("l").unwrap().lock().await.unwrap();
    again.release().await.unwrap();
    let after = store(&url("new")).await.unwrap();
    after.open(options()).await.unwrap();
    assert!(session.is_valid());
}

/// A role's share of the server's connections: it refuses the new, and harms neither its own sessions nor others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connection_limit_of_a_role_refuses_new_sessions_only() {
    let server = PostgresServer::builder()
        .user("app", "a")
        .start_async()
        .await
        .unwrap();
    server
        .sql("GRANT CREATE ON DATABASE postgres TO app; ALTER ROLE app CONNECTION LIMIT 6")
        .unwrap();
    let url = format!("postgres://app:a@{}/postgres", server.address());
    let store = store(&url).await.unwrap();
    let mut sessions = Vec::new();
    let refused = loop {
        match store.open(options()).await {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        assert!(sessions.len() < 6, "as many as one likes");
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
    assert!(refused.to_string().contains("connections"), "{refused}");
    for session in &sessions {
        let guard = session.locker("l").unwrap().lock().await.unwrap();
        guard.release().await.unwrap();
    }
    let other = server.url() + "?sslmode=disable";
    PgConnection::connect(&other).await.unwrap();
}

/// Another application takes locks until the server's table has no room: what is held stays held, what needs a lock
/// is refused, and goes on when there is room again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn full_lock_table_refuses_new_locks_only() {
    let server = PostgresServer::builder()
        .setting("max_connections", 20)
        .setting("max_locks_per_transaction", 10)
        .start_async()
        .await
        .unwrap();
    let store = store(&server.url()).await.unwrap();
    let session = store.open(options()).await.unwrap();
    let held = session.locker("held").unwrap().lock().await.unwrap();
    let other = server.url() + "?sslmode=disable";
    let mut other = PgConnection::connect(&other).await.unwrap();
    let mut taken = 0;
    let full = loop {
        let take = format!("SELECT pg_advisory_lock({taken})");
        match other.execute(sqlx::AssertSqlSafe(take)).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    let code = full.as_database_error().and_then(|error| error.code());
    assert_eq!(code.as_deref(), Some("53200"), "{full}");

    let mut refused = None;
    let mut more = Vec::new();
    // A few entries may be left: those of the last statement that failed.
    for number in 0..20 {
        let name = format!("lock {number}");
        match session.locker(&name).unwrap().try_lock().await {
            Ok(guard) => more.push(guard),
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.unwrap();
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    assert!(held.is_valid() && session.is_valid());
    other
        .execute("SELECT pg_advisory_unlock_all()")
        .await
        .unwrap();
    let lock = session.locker("after").unwrap();
    lock.try_lock().await.unwrap().release().await.unwrap();
    held.release().await.unwrap();
}
