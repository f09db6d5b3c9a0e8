//! Functions, operators, types and relations that another role plants in the search path: none of them may run as
//! the application's role, and none as the operator's.

#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tenure_core::backend::StoreUrl;
use tenure_core::{HoldFor, Item, Op, SessionOptions};
use tenure_postgres::PostgresConfig;
use tenure_testbed::PostgresServer;

/// Everything in `pg_catalog` that takes or gives ordinary types gets a namesake in the schema `earlier`, which
/// stands before `pg_catalog` in the path of the database, and, with arguments that match literals better, in
/// `public`. Each counts its calls in a sequence, which no rollback takes back.
const TRAPS: &str = include_str!("support/traps.sql");

/// What ran, of what was planted.
const SPRUNG: &str = "SELECT coalesce(string_agg(sequencename, ', ' ORDER BY sequencename), '') \
    FROM pg_catalog.pg_sequences WHERE schemaname = 'loot' AND last_value IS NOT NULL";

/// A server whose database `shop` is full of traps, all planted by the role `evil`.
async fn trapped() -> PostgresServer {
    let server = PostgresServer::builder().user("evil", "e").user("app", "a");
    let server = server.start_async().await.unwrap();
    server.sql("CREATE DATABASE shop").unwrap();
    server
        .sql_in(
            "shop",
            "GRANT CREATE ON SCHEMA public TO PUBLIC; \
             GRANT CREATE ON DATABASE shop TO app; GRANT CREATE ON DATABASE shop TO evil",
        )
        .unwrap();
    let mut evil = PgConnection::connect(&url(&server, "evil:e"))
        .await
        .unwrap();
    evil.execute(sqlx::raw_sql(TRAPS)).await.unwrap();
    server
        .sql("ALTER DATABASE shop SET search_path = earlier, public, pg_catalog")
        .unwrap();
    server
}

fn url(server: &PostgresServer, user: &str) -> String {
    format!(
        "postgres://{user}@127.0.0.1:{}/shop?sslmode=disable",
        server.port()
    )
}

fn config(url: &str) -> PostgresConfig {
    PostgresConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

/// A superuser's connection that falls into no trap.
async fn safe(server: &PostgresServer) -> PgConnection {
    let url = url(server, "postgres");
    let mut sql = PgConnection::connect(&url).await.unwrap();
    sql.execute("SET search_path = pg_catalog, pg_temp")
        .await
        .unwrap();
    sql
}

async fn sprung(server: &PostgresServer) -> String {
    let mut sql = safe(server).await;
    sqlx::query_scalar(SPRUNG)
        .fetch_one(&mut sql)
        .await
        .unwrap()
}

/// Every primitive, contended where that takes other steps.
async fn use_all(url: &str) -> tenure_core::Result<()> {
    let store = tenure_postgres::connect(config(url)).await?;
    let options = || SessionOptions::new().ttl(Duration::from_secs(5));
    let one = store.open(options()).await?;
    let two = store.open(options()).await?;
    let short = Duration::from_millis(200);
    store.guarantees().await?;

    let held = one.locker("l")?.lock().await?;
    assert!(two.locker("l")?.try_lock().await.is_err());
    assert!(two.locker("l")?.lock_timeout(short).await.is_err());
    let next = two.locker("l")?;
    let (granted, released) = tokio::join!(next.lock(), held.release());
    released?;

    let lock = granted?;
    let rw = (one.rw_lock("rw")?, two.rw_lock("rw")?);
    let writer = rw.0.write().await?;
    let (reader, downgraded) = tokio::join!(rw.1.read(), writer.downgrade());
    reader?.release().await?;
    downgraded?.release().await?;

    let elections = (one.election("e")?, two.election("e")?);
    let mut seen = elections.1.observe();
    let leader = elections.0.campaign("a").await?;
    leader.proclaim("b").await?;
    elections.1.leader().await?;
    seen.next().await.unwrap()?;
    let (second, resigned) = tokio::join!(elections.1.campaign("c"), leader.resign());
    resigned?;
    second?.resign().await?;

    let queue = one.queue("q")?;
    let other = two.queue("q")?;
    queue.enqueue(Item::new("1").id("id")?.priority(3)).await?;
    queue.enqueue_many([Item::new("2"), Item::new("3")]).await?;
    queue.peek().await?;
    queue.depth().await?;
    other.dequeue().await?.ack().await?;
    other.dequeue().await?.nack().await?;
    other.dequeue().await?.nack_after(short).await?;
    drop(other.dequeue_many(2).await?);
    other.pop().await?;
    queue.purge().await?;
    assert!(other.dequeue_timeout(short).await.is_err());
    let (taken, enqueued) = tokio::join!(other.dequeue(), queue.enqueue("4"));
    enqueued?;
    taken?.ack().await?;

    let barrier = one.barrier("b")?;
    barrier.hold(HoldFor::Session).await?;
    barrier.is_held().await?;
    let waiter = two.barrier("b")?;
    let (waited, released) = tokio::join!(waiter.wait(), barrier.release());
    released?;
    waited?;
    let rooms = (one.double_barrier("d", 2)?, two.double_barrier("d", 2)?);
    let (a, b) = tokio::join!(rooms.0.enter(), rooms.1.enter());
    let (a, b) = tokio::join!(a?.leave(), b?.leave());
    a?;
    b?;

    let stm = one.stm()?;
    stm.put("k", "v").await?;
    stm.run(async |tx| {
        tx.get("k").await?;
        tx.put("k", "w")?;
        tx.delete("gone")
    })
    .await?;
    let put = [Op::put("k", "x")];
    two.stm()?.fenced_by(&lock).txn().then(put).commit().await?;
    stm.delete("k").await?;
    lock.release().await?;
    one.close().await?;
    two.close().await
}

/// What the documentation hands to operators, and what the library runs now and then.
const OPERATORS: &[&str] = &[
    "SELECT tenure.evict_path('tenure/1/default/lock/x')",
    "SELECT tenure.evict('1:00000000000000a1')",
    "SELECT tenure.evict_delivery('3:0:17')",
    "SELECT tenure.terminate(1)",
    "SELECT tenure.sweep()",
    "SELECT tenure.end_silent()",
    "SELECT tenure.stm_sweep()",
    "SELECT tenure.queue_collect(0)",
    "SELECT tenure.election_collect()",
    "SELECT tenure.me()",
    "SELECT tenure.alive(1)",
    "SELECT tenure.hex(1)",
    "SELECT tenure.place()",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_another_role_planted_in_the_search_path_runs() {
    let server = trapped().await;
    let used = use_all(&url(&server, "app:a")).await;
    assert_eq!(sprung(&server).await, "", "as the application: {used:?}");
    used.unwrap();

    // As a superuser: the library, its migration, and what operators call.
    let root = url(&server, "postgres");
    let used = use_all(&root).await;
    assert_eq!(sprung(&server).await, "", "as a superuser: {used:?}");
    used.unwrap();
    let mut sql = PgConnection::connect(&root).await.unwrap();
    let migration = tenure_postgres::migration();
    let applied = sql.execute(sqlx::raw_sql(AssertSqlSafe(migration))).await;
    assert_eq!(sprung(&server).await, "", "the migration: {applied:?}");
    applied.unwrap();
    // Relations of the session itself come before all others, unless the path says otherwise.
    for relation in ["pg_locks", "pg_stat_activity", "pg_database"] {
        let view = format!("CREATE TEMP VIEW {relation} AS SELECT * FROM earlier.{relation}");
        sql.execute(AssertSqlSafe(view)).await.unwrap();
    }
    for call in OPERATORS {
        let called = sql.execute(*call).await;
        assert_eq!(sprung(&server).await, "", "{call}: {called:?}");
        called.unwrap();
    }
    let removed = tenure_postgres::remove_namespace(config(&root)).await;
    assert_eq!(sprung(&server).await, "", "the removal: {removed:?}");
    removed.unwrap();

    // The traps work: a plain statement falls into them.
    let _ = sql
        .execute("SELECT hashtextextended('x', 0), 1::bigint = 1::bigint")
        .await;
    let fell = sprung(&server).await;
    assert!(fell.contains("hashtextextended"), "{fell}");
    assert!(fell.contains("operator ="), "{fell}");
}

/// Each function sets its own path, or was parsed with the migration's.
#[tokio::test]
async fn every_function_of_the_schema_has_a_search_path_of_its_own() {
    let server = trapped().await;
    tenure_postgres::connect(config(&url(&server, "app:a")))
        .await
        .unwrap();
    const BARE: &str = "SELECT proname::text FROM pg_proc \
        WHERE pronamespace = 'tenure'::regnamespace AND prosqlbody IS NULL \
        AND NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (proconfig), false)";
    let mut sql = safe(&server).await;
    let bare: Vec<String> = sqlx::query_scalar(BARE).fetch_all(&mut sql).await.unwrap();
    assert!(bare.is_empty(), "functions without a search path: {bare:?}");
}
