//! What is left after a crash, a promotion and a copy; and what is claimed of it.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::{Connection, Executor, Row};
use support::{Database, server, within};
use tenure_core::backend::StoreUrl;
use tenure_core::{
    Durability, ErrorKind, FencingToken, Guarantees, Item, SessionOptions, TokenOrder,
};
use tenure_postgres::PostgresConfig;
use tenure_testbed::{PostgresReplica, PostgresServer};

const TTL: Duration = Duration::from_secs(5);

fn config(url: impl AsRef<str>) -> PostgresConfig {
    PostgresConfig::from_url(StoreUrl::parse(url.as_ref()).unwrap()).unwrap()
}

/// The token of the last of so many grants.
async fn grants(url: impl AsRef<str>, count: usize) -> FencingToken {
    // A server that has just recovered, on a busy machine, takes its time.
    let url = format!("{}?timeout=30s", url.as_ref());
    let store = tenure_postgres::connect(config(url)).await.unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let lock = session.locker("l").unwrap();
    let mut last = None;
    for _ in 0..count {
        let guard = lock.lock().await.unwrap();
        assert!(last < Some(guard.token()));
        last = Some(guard.token());
        guard.release().await.unwrap();
    }
    last.unwrap()
}

async fn claims(url: impl AsRef<str>) -> Guarantees {
    let store = tenure_postgres::connect(config(url)).await.unwrap();
    store.guarantees().await.unwrap()
}

/// Grants do not wait for the disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_over_a_crash_right_after_many_grants() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let mut before = grants(server.url(), 1000).await;
    for _ in 0..2 {
        server.kill().unwrap();
        server.restart_async().await.unwrap();
        let after = grants(server.url(), 300).await;
        assert!(after > before, "{after} after {before}");
        before = after;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_rise_over_a_promotion_of_a_standby_that_lagged() {
    let mut pair = PostgresReplica::start_async().await.unwrap();
    grants(pair.primary.url(), 1).await;
    pair.wait_in_sync().unwrap();
    pair.cut_replication();
    let before = grants(pair.primary.url(), 200).await;
    let behind = "SELECT last_value FROM tenure.tokens";
    let standby: u64 = pair.standby.sql(behind).unwrap().parse().unwrap();
    assert!(standby < before.get(), "it does not lag");
    pair.primary.kill().unwrap();
    pair.promote().unwrap();
    let after = grants(pair.standby.url(), 1).await;
    assert!(after > before, "{after} after {before}");
}

/// Long before a renewal would show it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_the_server_is_noticed_at_once() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let store = tenure_postgres::connect(config(server.url()))
        .await
        .unwrap();
    let long = Duration::from_secs(600);
    let session = store.open(SessionOptions::new().ttl(long)).await.unwrap();
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    let lead = session.election("e").unwrap().campaign("me").await.unwrap();
    server.kill().unwrap();
    tokio::time::timeout(Duration::from_secs(20), async {
        guard.lost().await;
        lead.lost().await;
    })
    .await
    .unwrap();
}

/// A copy has the sequence as it was; and so has the restore of a dump.
#[tokio::test]
async fn tokens_rise_in_a_copy_that_takes_the_place_of_its_original() {
    let db = Database::new().await;
    grants(server().url_of(&db.name), 1).await;
    let mut sql = db.sql().await;
    sql.execute("SELECT tenure.revive()").await.unwrap();
    drop(sql);
    let copy = format!("CREATE DATABASE copy TEMPLATE {}", db.name);
    // Until the last connection of the template has ended.
    let mut tries = 0;
    while let Err(error) = server().sql(&copy) {
        tries += 1;
        assert!(tries < 400, "{error}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let before = grants(server().url_of(&db.name), 50).await;
    let after = grants(server().url_of("copy"), 1).await;
    assert!(after > before, "{after} after {before}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_claimed_is_read_off_the_server() {
    let pair = PostgresReplica::start_async().await.unwrap();
    let url = pair.primary.url();
    let asynchronous = claims(&url).await;
    let version = pair.primary.version();
    assert_eq!(
        asynchronous.deployment,
        format!("PostgreSQL {version}, 1 standby, asynchronous")
    );
    assert_eq!(asynchronous.token_order.value, TokenOrder::Failover);
    assert_eq!(asynchronous.durability.value, Durability::Volatile);
    assert!(asynchronous.durability.reason.contains("may lack"));

    pair.set_synchronous(true).unwrap();
    let synchronous = claims(&url).await;
    let deployment = &synchronous.deployment;
    assert!(
        deployment.contains("1 standby, synchronous"),
        "{deployment}"
    );
    assert_eq!(synchronous.durability.value, Durability::Stored);
    assert!(
        synchronous
            .durability
            .reason
            .contains("disk and on that of")
    );
    pair.primary
        .set("synchronous_commit", "remote_write")
        .unwrap();
    let reason = claims(&url).await.durability.reason;
    assert!(reason.contains("in the memory of"), "{reason}");
    pair.primary.set("synchronous_commit", "local").unwrap();
    let deployment = claims(&url).await.deployment;
    assert!(deployment.ends_with("asynchronous"), "{deployment}");

    pair.primary.set("synchronous_commit", "on").unwrap();
    pair.primary.set("full_page_writes", "off").unwrap();
    let careless = claims(&url).await;
    assert_eq!(careless.token_order.value, TokenOrder::ClientCrash);
    assert!(careless.deployment.ends_with("fsync off"));
    assert_eq!(careless.durability.value, Durability::Volatile);
    assert!(careless.durability.reason.contains("not safe"));
}

#[tokio::test]
async fn sessions_wait_for_the_disk_where_the_server_would_not() {
    let server = PostgresServer::builder().setting("synchronous_commit", "off");
    let server = server.start_async().await.unwrap();
    let store = tenure_postgres::connect(config(server.url()))
        .await
        .unwrap();
    assert!(
        store
            .guarantees()
            .await
            .unwrap()
            .deployment
            .ends_with("alone")
    );
    let before = grants(server.url(), 1).await;
    assert!(grants(server.url(), 1).await > before);
}

/// The lock table is the whole server's: a quarter of it is the most that sessions take.
#[tokio::test]
async fn a_full_lock_table_is_not_what_others_meet() {
    let server = PostgresServer::builder()
        .setting("max_connections", 20)
        .setting("max_locks_per_transaction", 16);
    let server = server.start_async().await.unwrap();
    let (budget, url) = (20 * 16 / 4, server.url());
    let store = tenure_postgres::connect(config(&url)).await.unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let mut guards = Vec::new();
    let refused = loop {
        let lock = session.locker(format!("l{}", guards.len())).unwrap();
        match lock.try_lock().await {
            Ok(guard) => guards.push(guard),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::TooLarge, "{refused}");
    assert!(
        refused
            .chain()
            .to_string()
            .contains("max_locks_per_transaction"),
        "{refused}"
    );
    // The session has its own lock besides, and a reservation.
    assert_eq!(guards.len(), budget - 2);
    // Others are not in the way of it, nor it of them.
    grants(&url, 3).await;
    let locks = "SELECT count(pg_advisory_lock(i)) FROM generate_series(1, 100) AS i";
    assert_eq!(server.sql(locks).unwrap(), "100");
    assert!(guards.iter().all(|guard| guard.is_valid()));
    guards.pop().unwrap().release().await.unwrap();
    drop(session.locker("again").unwrap().try_lock().await.unwrap());
    session.close().await.unwrap();
}

/// The next renewal would be twenty seconds away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_learns_of_the_servers_death_at_once() {
    let mut server = PostgresServer::start_async().await.unwrap();
    let store = tenure_postgres::connect(config(server.url()))
        .await
        .unwrap();
    let long = SessionOptions::new().ttl(Duration::from_secs(60));
    let session = store.open(long).await.unwrap();
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    server.kill().unwrap();
    let lost = tokio::time::timeout(Duration::from_secs(5), guard.lost()).await;
    assert!(lost.is_ok(), "the holder believes that it holds");
    assert!(!guard.is_valid());
}

/// A server does not end its connections all at one moment: the session's is there when the end of another is
/// noticed, and gone a moment later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_learns_of_a_death_that_takes_its_time() {
    let server = PostgresServer::start_async().await.unwrap();
    let store = tenure_postgres::connect(config(server.url()))
        .await
        .unwrap();
    let long = SessionOptions::new().ttl(Duration::from_secs(60));
    let session = store.open(long).await.unwrap();
    let guard = session.locker("l").unwrap().lock().await.unwrap();
    let main = server.sql("SELECT pid FROM tenure.sessions").unwrap();
    let others = server.sql(
        "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
         AND pid <> pg_backend_pid() AND pid NOT IN (SELECT pid FROM tenure.sessions)",
    );
    let others = others.unwrap().replace('\n', " ");
    let signal = |signal: &str, pids: &str| {
        let kill = format!("kill -{signal} {pids}");
        let done = std::process::Command::new("sh")
            .args(["-c", &kill])
            .status();
        assert!(done.unwrap().success(), "{kill}");
    };
    // Nobody comes in any more.
    signal("STOP", &server.pid().to_string());
    signal("TERM", &others);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(guard.is_valid(), "its connection is there");
    signal("TERM", &main);
    let lost = tokio::time::timeout(Duration::from_secs(15), guard.lost()).await;
    signal("CONT", &server.pid().to_string());
    assert!(lost.is_ok(), "the holder believes that it holds");
}

/// Whoever is ended while it waits for a standby is done all the same, and seen: PostgreSQL has it so.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_not_found_before_the_standby_has_it() {
    let pair = PostgresReplica::builder().synchronous(true);
    let pair = pair.start_async().await.unwrap();
    let store = tenure_postgres::connect(config(pair.primary.url()))
        .await
        .unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    session.stm().unwrap().put("a", "1").await.unwrap();
    let sql = async || {
        sqlx::PgConnection::connect(&pair.primary.url())
            .await
            .unwrap()
    };
    let (mut commits, mut resolves) = (sql().await, sql().await);
    pair.cut_replication();
    let commit = format!(
        "SELECT status FROM tenure.stm_commit('tenure/1/default', {}, 9, 0, 7, NULL, NULL, NULL, NULL, NULL, \
         '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{1}}', '{{x}}', '{{x}}', '{{}}', '{{}}', '{{}}', '{{t,f}}')",
        session.id()
    );
    let committing =
        tokio::spawn(async move { commits.execute(sqlx::AssertSqlSafe(commit)).await });
    let waits = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
        WHERE wait_event = 'SyncRep' AND query LIKE '%stm_commit%'";
    for tries in 0.. {
        if pair.primary.sql(waits).unwrap() == "1" {
            break;
        }
        assert!(tries < 400, "it does not wait for the standby");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    committing.await.unwrap().unwrap_err();
    let resolve = format!(
        "SELECT status FROM tenure.stm_resolve('tenure/1/default', {}, 9, 0, 7)",
        session.id()
    );
    let mut resolving = tokio::spawn(async move {
        let row = resolves.fetch_one(sqlx::AssertSqlSafe(resolve)).await;
        row.unwrap().get::<String, _>(0)
    });
    let early = tokio::time::timeout(Duration::from_secs(1), &mut resolving).await;
    assert!(early.is_err(), "found: {early:?}");
    pair.heal_replication();
    assert_eq!(resolving.await.unwrap(), "committed");
}

/// Waits until the question is answered like this.
async fn says(server: &PostgresServer, question: impl AsRef<str>, wanted: impl Fn(&str) -> bool) {
    let asking = async {
        while !wanted(&server.sql(&question).unwrap()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    within(TTL * 2, question.as_ref(), asking).await;
}

/// A flush that stalls, for longer than the TTL, keeps its caller waiting, and neither renewals nor other steps.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_live_on_while_what_they_store_waits_for_a_dead_standby() {
    const TTL: Duration = Duration::from_secs(1);
    let server = PostgresServer::start_async().await.unwrap();
    let store = tenure_postgres::connect(config(server.url()))
        .await
        .unwrap();
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let queue = session.queue("q").unwrap();
    queue
        .enqueue_many(["a", "b", "c"].map(Item::from))
        .await
        .unwrap();
    let mut taken = queue.dequeue_many(3).await.unwrap();
    let (c, b, a) = (
        taken.pop().unwrap(),
        taken.pop().unwrap(),
        taken.pop().unwrap(),
    );
    server.set("synchronous_standby_names", "dead").unwrap();
    let set = "SELECT current_setting('synchronous_standby_names')";
    says(&server, set, |names| names == "dead").await;
    let enqueues = queue.clone();
    let large = (0..32).map(|n| Item::new(vec![n; 60_000]));
    let enqueues = tokio::spawn(async move { enqueues.enqueue_many(large).await });
    let acks = tokio::spawn(async move { a.ack().await });
    let later = tokio::spawn(async move { b.nack_after(TTL * 60).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    says(&server, waits, |waiting| waiting != "0").await;
    // Longer than any limit of a request, too.
    let until = tokio::time::Instant::now() + TTL * 7;
    let mut steps = 0;
    while tokio::time::Instant::now() < until {
        let lock = session.locker("l").unwrap();
        within(TTL, "a lock", lock.lock())
            .await
            .unwrap()
            .release()
            .await
            .unwrap();
        steps += 1;
    }
    assert!(session.is_valid() && c.is_valid(), "after {steps} steps");
    assert!(!enqueues.is_finished() && !acks.is_finished() && !later.is_finished());
    // One connection waits, however many steps do.
    let waiting = server.sql(waits).unwrap();
    assert_eq!(waiting, "1");
    server.set("synchronous_standby_names", "").unwrap();
    for stored in [enqueues, acks, later] {
        within(TTL * 5, "what waited", stored)
            .await
            .unwrap()
            .unwrap();
    }
    c.ack().await.unwrap();
    let depth = queue.depth().await.unwrap();
    assert_eq!((depth.ready, depth.in_flight, depth.delayed), (32, 0, 1));
}

/// A commit waits for a synchronous standby, whether there is one or not. What is only in the server's memory
/// does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_handed_on_though_the_synchronous_standby_is_dead() {
    let server = PostgresServer::start_async().await.unwrap();
    let url = server.url();
    let open = async || {
        let store = tenure_postgres::connect(config(&url)).await.unwrap();
        store.open(SessionOptions::new().ttl(TTL * 2)).await
    };
    let (a, b) = (open().await.unwrap(), open().await.unwrap());
    let queue = a.queue("q").unwrap();
    queue.enqueue("x").await.unwrap();
    server.set("synchronous_standby_names", "dead").unwrap();
    let set = "SELECT current_setting('synchronous_standby_names')";
    says(&server, set, |names| names == "dead").await;
    let waiting =
        |name: &str| format!("SELECT count(*) FROM tenure.tickets WHERE path LIKE '%/{name}'");
    let work = async {
        // More than the 32 numbers of a sequence that are logged at once.
        for round in 0..40 {
            let name = format!("l{round}");
            let held_by_a = a.locker(&name).unwrap().lock().await.unwrap();
            let next = b.locker(&name).unwrap();
            let next = tokio::spawn(async move { next.lock().await });
            says(&server, waiting(&name), |tickets| tickets == "1").await;
            held_by_a.release().await.unwrap();
            next.await.unwrap().unwrap().release().await.unwrap();
        }
        let leads = a.election("e").unwrap().campaign("a").await.unwrap();
        let next = b.election("e").unwrap();
        let next = tokio::spawn(async move { next.campaign("b").await });
        says(&server, waiting("e"), |tickets| tickets == "1").await;
        leads.resign().await.unwrap();
        next.await.unwrap().unwrap().resign().await.unwrap();
        let rooms = [&a, &b].map(|session| session.double_barrier("d", 2).unwrap());
        let (one, other) = tokio::join!(rooms[0].enter(), rooms[1].enter());
        let (one, other) = tokio::join!(one.unwrap().leave(), other.unwrap().leave());
        one.unwrap();
        other.unwrap();
        open().await.unwrap().close().await.unwrap();
    };
    within(TTL * 4, "what is in memory", work).await;
    // What is stored waits. Cancelled meanwhile, PostgreSQL says that it is done, with a warning that the client
    // library tells nobody: `docs/postgres.md` says so.
    let enqueues = tokio::spawn(async move { queue.enqueue("y").await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    says(&server, waits, |waiting| waiting != "0").await;
    assert!(!enqueues.is_finished());
    server
        .sql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        .unwrap();
    within(TTL, "what was cancelled", enqueues)
        .await
        .unwrap()
        .unwrap();
    server.set("synchronous_standby_names", "").unwrap();
}
