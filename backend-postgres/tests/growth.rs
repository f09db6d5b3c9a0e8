//! A store in steady use does not grow (rule H1), counted in rows of all tables.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::Executor;
use support::Database;
use tenure_core::{HoldFor, Item, Session};
use tenure_postgres::PostgresSession;

/// So short that a session renews, and asks for a sweep, all the time.
const TTL: Duration = Duration::from_secs(3);

/// The rows of every table, but for the ones that a schema has from the beginning.
const ROWS: &str = "SELECT sum((xpath('/row/n/text()', query_to_xml( \
        format('SELECT count(*) AS n FROM tenure.%I', c.relname), false, true, '')))[1]::text::bigint)::bigint \
    FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE n.nspname = 'tenure' AND c.relkind = 'r' AND c.relname NOT IN ('layout', 'life', 'sweeps')";

/// As if everything had happened twenty minutes earlier, and the last sweep six seconds ago.
const TIME_PASSES: &str = "UPDATE tenure.queue_names SET until = until - interval '20 minutes' WHERE until IS NOT NULL; \
    UPDATE tenure.queues SET looked = looked - interval '20 minutes'; \
    UPDATE tenure.elections SET vacant = vacant - interval '2 hours', watched = watched - interval '2 hours'; \
    UPDATE tenure.markers SET since = since - interval '20 minutes'; \
    UPDATE tenure.sweeps SET last = last - interval '6 seconds'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_expired_are_collected_as_fast_as_they_come() {
    let database = Database::new().await;
    let session = database.session(TTL).await;
    session.queue("q").unwrap().enqueue("x").await.unwrap();
    let mut sql = database.sql().await;
    sql.execute(
        "INSERT INTO tenure.queue_names (queue, name, until) \
         SELECT q.id, 'n' || g, now() - interval '1 minute' \
         FROM tenure.queues AS q, generate_series(1, 30000) AS g",
    )
    .await
    .unwrap();
    // A minute's worth at 500/s is collected within two sweeps.
    database
        .until("SELECT count(*) FROM tenure.queue_names", 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn emptied_queues_are_collected_while_their_consumer_lives() {
    let database = Database::new().await;
    let session = database.session(TTL).await;
    let other = database.session(Duration::from_secs(10)).await;
    for number in 0..400 {
        reply(&session, number).await;
    }
    // One is in use all the time, and another keeps a delivery.
    let used = session.queue("reply/in flight").unwrap();
    used.enqueue("kept").await.unwrap();
    let kept = used.try_dequeue().await.unwrap().unwrap();
    let waiting = session.queue("reply/waited for").unwrap();
    let waiting = tokio::spawn(async move { waiting.dequeue().await });
    database
        .until("SELECT count(*) FROM tenure.queue_waits", 1)
        .await;

    database.sql().await.execute(TIME_PASSES).await.unwrap();
    database
        .until("SELECT count(*) FROM tenure.queues", 2)
        .await;
    database
        .until("SELECT count(*) FROM tenure.queue_consumers", 1)
        .await;
    kept.ack().await.unwrap();
    let again = other.queue("reply/waited for").unwrap();
    again.enqueue("x").await.unwrap();
    waiting.await.unwrap().unwrap().ack().await.unwrap();

    // The consumer that had this queue before is known in the one that took its name: its death gives
    // the item back.
    let queue = session.queue("reply/7").unwrap();
    queue.enqueue("again").await.unwrap();
    let _delivery = queue.try_dequeue().await.unwrap().unwrap();
    let terminate = format!("SELECT tenure.terminate({})", session.id());
    let mut sql = database.sql().await;
    sql.execute(sqlx::AssertSqlSafe(terminate)).await.unwrap();
    let back = other.queue("reply/7").unwrap();
    let back = tokio::time::timeout(Duration::from_secs(10), back.dequeue()).await;
    assert_eq!(back.unwrap().unwrap().value(), b"again");
}

async fn reply(session: &Session<PostgresSession>, number: usize) {
    let queue = session.queue(format!("reply/{number}")).unwrap();
    queue.enqueue("x").await.unwrap();
    let delivery = queue.try_dequeue().await.unwrap().unwrap();
    delivery.ack().await.unwrap();
}

/// Every primitive, under names that never come again.
async fn round(session: &Session<PostgresSession>, number: usize) {
    let name = |kind: &str| format!("{kind}/{number}");
    reply(session, number).await;
    let queue = session.queue(name("ids")).unwrap();
    let item = Item::new("x").id(name("id")).unwrap();
    queue.enqueue(item).await.unwrap();
    let delivery = queue.try_dequeue().await.unwrap().unwrap();
    delivery.ack().await.unwrap();
    let guard = session.locker(name("l")).unwrap().lock().await.unwrap();
    guard.release().await.unwrap();
    let lock = session.rw_lock(name("rw")).unwrap();
    lock.read().await.unwrap().release().await.unwrap();
    lock.write().await.unwrap().release().await.unwrap();
    let election = session.election(name("e")).unwrap();
    let leadership = election.campaign("me").await.unwrap();
    leadership.resign().await.unwrap();
    let barrier = session.barrier(name("b")).unwrap();
    barrier.hold(HoldFor::Session).await.unwrap();
    barrier.release().await.unwrap();
    let double = session.double_barrier(name("d"), 1).unwrap();
    double.enter().await.unwrap().leave().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steady_use_of_every_primitive_leaves_no_rows() {
    let database = Database::new().await;
    let session = database.session(TTL).await;
    for number in 0..250 {
        round(&session, number).await;
    }
    let short = database.session(TTL).await;
    round(&short, 1000).await;
    short.close().await.unwrap();
    assert!(database.number(ROWS).await > 250, "nothing was remembered");
    database.sql().await.execute(TIME_PASSES).await.unwrap();
    // The session's own row.
    database.until(ROWS, 1).await;
}
