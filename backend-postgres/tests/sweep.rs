//! What becomes of what the dead leave, whatever stands in the way: many, others who are stuck, a clock that
//! jumps.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::Executor;
use support::{Database, server, within};
use tenure_core::SessionOptions;
use tenure_testbed::PostgresServer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const TTL: Duration = Duration::from_secs(5);

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// A connection, as a process leaves it that is stopped before it has sent all of a request: the statement
/// is done, and the transaction open.
async fn stopped_after(db: &Database, sql: &str) -> tokio::net::TcpStream {
    let mut stopped = tokio::net::TcpStream::connect(server().address())
        .await
        .unwrap();
    let hello = format!("\0\x03\0\0user\0postgres\0database\0{}\0\0", db.name);
    stopped
        .write_all(&message(0, hello.as_bytes())[1..])
        .await
        .unwrap();
    let mut answer = Vec::new();
    // Until it is ready for a query.
    while !answer.ends_with(b"Z\0\0\0\x05I") {
        assert!(stopped.read_buf(&mut answer).await.unwrap() > 0);
    }
    let request = [
        message(b'P', format!("\0{sql}\0\0\0").as_bytes()),
        message(b'B', &[0; 8]),
        message(b'E', &[0; 5]),
    ];
    stopped.write_all(&request.concat()).await.unwrap();
    stopped
}

/// A server has room for so many locks, and those who look after the dead are not to take it.
#[tokio::test]
async fn many_dead_are_collected_without_filling_the_lock_table() {
    let server = PostgresServer::builder()
        .setting("max_connections", 20)
        .setting("max_locks_per_transaction", 16);
    let server = server.start_async().await.unwrap();
    let url = tenure_core::backend::StoreUrl::parse(&server.url()).unwrap();
    let config = tenure_postgres::PostgresConfig::from_url(url).unwrap();
    drop(tenure_postgres::connect(config).await.unwrap());
    let left = "INSERT INTO tenure.markers SELECT n, 0, n, n, true, now() - interval '1 hour' \
            FROM generate_series(1, 5000) AS n; \
        INSERT INTO tenure.barriers SELECT 'b' || n, n, n, true, n FROM generate_series(1, 5000) AS n";
    server.sql(left).unwrap();
    for _ in 0..5 {
        server
            .sql("DELETE FROM tenure.sweeps; SELECT tenure.sweep()")
            .unwrap();
    }
    let rest =
        "SELECT (SELECT count(*) FROM tenure.markers) + (SELECT count(*) FROM tenure.barriers)";
    assert_eq!(server.sql(rest).unwrap(), "0");
}

/// What a stopped session keeps locked, the sweep itself may wait for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_a_row_is_ended_before_the_sweep_needs_it() {
    let db = Database::new().await;
    let consumer = db.session(TTL).await;
    let queue = consumer.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    let _delivery = queue.dequeue().await.unwrap();
    let mut sql = db.sql().await;
    let id = consumer.id().to_string();
    let lock = "SELECT FROM tenure.queues FOR UPDATE";
    let stopped = stopped_after(&db, lock).await;
    db.until(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation \
        WHERE c.relname = 'queues' AND l.mode = 'RowShareLock' AND l.database = \
            (SELECT oid FROM pg_database WHERE datname = current_database())",
        1,
    )
    .await;
    // It is a session's, whose lease is over; the consumer is dead.
    let over = format!(
        "INSERT INTO tenure.sessions SELECT 1, pid, backend_start, '', '0' FROM pg_stat_activity \
            WHERE state = 'active' AND query = '{lock}' AND datname = current_database(); \
        SELECT tenure.terminate({id})"
    );
    sql.execute(sqlx::raw_sql(sqlx::AssertSqlSafe(over)))
        .await
        .unwrap();
    sql.execute("SET statement_timeout = '3s'").await.unwrap();
    let mut tries = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        sql.execute("DELETE FROM tenure.sweeps").await.unwrap();
        let swept = sql.execute("SELECT tenure.sweep()").await;
        if db
            .number("SELECT count(*) FROM tenure.queue_dealt WHERE session IS NULL")
            .await
            == 1
        {
            break;
        }
        tries += 1;
        assert!(tries < 10, "{swept:?}");
    }
    drop(stopped);
}

/// A clock that is put forward makes everybody look late.
#[tokio::test]
async fn who_is_only_idle_is_not_ended_by_a_clock() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    let jump = "UPDATE tenure.sessions SET ttl = '-1 hour'; DELETE FROM tenure.sweeps; \
        SELECT tenure.sweep()";
    let mut sql = db.sql().await;
    sql.execute(sqlx::raw_sql(jump)).await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_put_back_keeps_nobody_from_looking() {
    let db = Database::new().await;
    let (dead, lives) = (db.session(TTL).await, db.session(TTL).await);
    let queue = dead.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    let _delivery = queue.dequeue().await.unwrap();
    let back = "UPDATE tenure.queues SET looked = looked + interval '1 hour'; \
        INSERT INTO tenure.sweeps VALUES (true, now() + interval '1 hour') \
            ON CONFLICT (one) DO UPDATE SET last = excluded.last";
    let mut sql = db.sql().await;
    sql.execute(sqlx::raw_sql(back)).await.unwrap();
    let end = format!("SELECT tenure.terminate({})", dead.id());
    sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    let next = lives.queue("q").unwrap();
    let next = within(TTL, "the item of the dead", next.dequeue()).await;
    assert_eq!(next.unwrap().count(), 2);
    sql.execute("SELECT tenure.sweep()").await.unwrap();
    let dead = "SELECT count(*) FROM tenure.sweeps WHERE last < clock_timestamp()";
    assert_eq!(db.number(dead).await, 1);
}

/// That rows cannot be cleared up now does not keep a lock from being free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_though_its_rows_are_in_somebodys_hands() {
    let db = Database::new().await;
    let options = SessionOptions::new().ttl(Duration::from_secs(20));
    let ends = db.store().await.open(options).await.unwrap();
    let lives = db.session(TTL).await;
    let queue = ends.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    let guard = ends.locker("l").unwrap().lock().await.unwrap();
    let mut sql = db.sql().await;
    sql.execute(sqlx::raw_sql("BEGIN; SELECT FROM tenure.queues FOR UPDATE"))
        .await
        .unwrap();
    ends.close().await.unwrap();
    let _lock = within(TTL, "the lock", lives.locker("l").unwrap().lock())
        .await
        .unwrap();
    drop((delivery, guard));
    sql.execute("ROLLBACK").await.unwrap();
    let next = lives.queue("q").unwrap();
    let _item = within(TTL, "the item", next.dequeue()).await.unwrap();
}

/// Two statements of one transaction, and meanwhile a sweep. What the first locked it has to wait for; it must
/// not have locked by then what the second needs.
async fn locked_beside_a_sweep(db: &Database, first: &'static str, second: &'static str) {
    let mut other = db.sql().await;
    other.execute("BEGIN").await.unwrap();
    other.execute(first).await.unwrap();
    let mut sweeper = db.sql().await;
    let sweep = tokio::spawn(async move {
        let sweep = "DELETE FROM tenure.sweeps; SELECT tenure.sweep()";
        sweeper.execute(sqlx::raw_sql(sweep)).await.map(drop)
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' \
        AND query LIKE '%tenure.sweep()%' AND datname = current_database()";
    db.until(waits, 1).await;
    other.execute(second).await.unwrap();
    other.execute("COMMIT").await.unwrap();
    sweep.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_locks_what_the_dead_leave_in_the_order_of_others() {
    let db = Database::new().await;
    // The one that is met first has what is to be locked last.
    let (first, second) = (db.session(TTL).await, db.session(TTL).await);
    let queues = [second.queue("a").unwrap(), first.queue("b").unwrap()];
    let mut deliveries = Vec::new();
    for queue in &queues {
        queue.enqueue("x").await.unwrap();
        deliveries.push(queue.dequeue().await.unwrap());
    }
    let mut sql = db.sql().await;
    for dead in [&first, &second] {
        let end = format!("SELECT tenure.terminate({})", dead.id());
        sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    }
    locked_beside_a_sweep(
        &db,
        "SELECT FROM tenure.queues WHERE path LIKE '%/a' FOR UPDATE",
        "SELECT FROM tenure.queues WHERE path LIKE '%/b' FOR UPDATE",
    )
    .await;
    assert_eq!(db.number("SELECT count(*) FROM tenure.sessions").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_locks_queues_before_rooms_whosever_they_are() {
    let db = Database::new().await;
    let (first, second) = (db.session(TTL).await, db.session(TTL).await);
    let barrier = first.double_barrier("r", 2).unwrap();
    let enters = tokio::spawn(async move { barrier.enter().await.map(drop) });
    db.until("SELECT count(*) FROM tenure.participants", 1)
        .await;
    let queue = second.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    let _delivery = queue.dequeue().await.unwrap();
    let mut sql = db.sql().await;
    for dead in [&first, &second] {
        let end = format!("SELECT tenure.terminate({})", dead.id());
        sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    }
    locked_beside_a_sweep(
        &db,
        "SELECT FROM tenure.queues FOR UPDATE",
        "SELECT FROM tenure.rooms FOR UPDATE",
    )
    .await;
    assert_eq!(db.number("SELECT count(*) FROM tenure.rooms").await, 0);
    enters.await.unwrap().unwrap_err();
}

/// Who waits stands in no queue's way: another may have locked the queue, and remove the row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_locks_a_queue_before_those_who_wait_for_it() {
    let db = Database::new().await;
    let dead = db.session(TTL).await;
    let queue = dead.queue("q").unwrap();
    let waits = tokio::spawn(async move { queue.dequeue().await.map(drop) });
    db.until("SELECT count(*) FROM tenure.queue_waits", 1).await;
    let end = format!("SELECT tenure.terminate({})", dead.id());
    let mut sql = db.sql().await;
    sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    locked_beside_a_sweep(
        &db,
        "SELECT FROM tenure.queues FOR UPDATE",
        "DELETE FROM tenure.queue_waits",
    )
    .await;
    waits.await.unwrap().unwrap_err();
}

/// A dead ticket is buried by one; another who meets it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_who_buries_a_ticket() {
    let db = Database::new().await;
    let (holds, dead, next) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let guard = holds.locker("l").unwrap().lock().await.unwrap();
    let lock = dead.locker("l").unwrap();
    let waits = tokio::spawn(async move { lock.lock().await.map(drop) });
    db.until(support::TICKETS, 1).await;
    let mut other = db.sql().await;
    other.execute("BEGIN").await.unwrap();
    other
        .execute("SELECT FROM tenure.tickets FOR UPDATE")
        .await
        .unwrap();
    let end = format!("SELECT tenure.terminate({})", dead.id());
    let mut sql = db.sql().await;
    sql.execute(sqlx::AssertSqlSafe(end)).await.unwrap();
    sql.execute("SET statement_timeout = '3s'").await.unwrap();
    let sweep = "DELETE FROM tenure.sweeps; SELECT tenure.sweep()";
    sql.execute(sqlx::raw_sql(sweep)).await.unwrap();
    // Its ticket is there, so it is not forgotten.
    assert_eq!(db.number("SELECT count(*) FROM tenure.sessions").await, 3);
    guard.release().await.unwrap();
    let lock = next.locker("l").unwrap();
    drop(within(TTL, "the lock", lock.lock()).await.unwrap());
    other.execute("COMMIT").await.unwrap();
    sql.execute(sqlx::raw_sql(sweep)).await.unwrap();
    assert_eq!(db.number("SELECT count(*) FROM tenure.sessions").await, 2);
    waits.await.unwrap().unwrap_err();
}

/// Sweeps go with renewals, and a session of a day renews every eight hours.
#[tokio::test]
async fn the_dead_are_collected_although_the_only_session_hardly_ever_renews() {
    let db = Database::new().await;
    let _session = db.session(Duration::from_secs(24 * 60 * 60)).await;
    let mut sql = db.sql().await;
    sql.execute(
        "INSERT INTO tenure.sessions VALUES (42, 1, now(), 'c', interval '1 second', now())",
    )
    .await
    .unwrap();
    const DEAD: &str = "SELECT count(*) FROM tenure.sessions WHERE id = 42";
    for _ in 0..1200 {
        if db.number(DEAD).await == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("nobody swept");
}
