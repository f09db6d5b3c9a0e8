//! Transactions on a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use support::{Database, server};
use tenure_core::backend::StoreUrl;
use tenure_core::{
    Compare, Effect, ErrorKind, MAX_VALUE_BYTES, Namespace, Op, OpResult, Result, Session,
    SessionOptions, StmHandle, Store,
};
use tenure_postgres::{PostgresBackend, PostgresConfig, PostgresSession, PostgresStm};
use tenure_testbed::{Direction, PostgresServer, Proxy};

/// So long that no renewal comes in between.
const TTL: Duration = Duration::from_secs(60);

type Stm = StmHandle<PostgresStm>;

async fn increment(stm: &Stm, key: &str) -> Result<u64> {
    stm.run(async |tx| {
        let count: u64 = tx.get_as(key).await?.unwrap_or(0);
        tx.put_as(key, &(count + 1))?;
        Ok(count + 1)
    })
    .await
}

async fn version(stm: &Stm, key: &str) -> u64 {
    let entry = stm.get(key).await.unwrap();
    entry.map_or(0, |entry| entry.version)
}

/// A store whose connections go through a proxy.
async fn linked(db: &Database) -> (Store<PostgresBackend>, Proxy) {
    let proxy = Proxy::start(server().address()).unwrap();
    let url = format!(
        "postgres://postgres@{}/{}?sslmode=disable&timeout=2s",
        proxy.address(),
        db.name
    );
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    (tenure_postgres::connect(config).await.unwrap(), proxy)
}

async fn open(store: &Store<PostgresBackend>) -> Session<PostgresSession> {
    store.open(SessionOptions::new().ttl(TTL)).await.unwrap()
}

async fn status(sql: &mut PgConnection, question: String) -> String {
    let row = sql.fetch_one(AssertSqlSafe(question)).await.unwrap();
    row.get(0)
}

/// A request as it would come late, for keys that it does not touch.
fn late(root: &str, session: &str, slot: i32, last: u64) -> String {
    format!(
        "SELECT status FROM tenure.stm_commit('{root}', {session}, {slot}, {last}, 1, NULL, NULL, NULL, NULL, NULL, \
         '{{}}', '{{}}', '{{}}', '{{}}', '{{}}', '{{1}}', '{{late}}', '{{x}}', '{{}}', '{{}}', '{{}}', '{{t,f}}')"
    )
}

const ROOT: &str = "tenure/1/default";

#[tokio::test]
async fn cut_at_any_byte_a_commit_is_done_once() {
    let db = Database::new().await;
    let (store, proxy) = linked(&db).await;
    let (session, other) = (open(&store).await, db.session(TTL).await);
    let (stm, other) = (session.stm().unwrap(), other.stm().unwrap());
    let mut written = 0;
    for direction in [Direction::Up, Direction::Down] {
        for bytes in (0..600).step_by(29) {
            let trigger = proxy.cut_after(direction, bytes);
            stm.put("blind", bytes.to_string()).await.unwrap();
            written += 1;
            assert_eq!(
                version(&other, "blind").await,
                written,
                "{direction:?} {bytes}"
            );
            proxy.heal();
            assert!(trigger.has_fired() || bytes > 80, "{direction:?} {bytes}");
        }
    }
    assert!(session.is_valid());
    let markers = db.number("SELECT count(*) FROM tenure.markers").await;
    assert!(markers < 3, "{markers}");
}

#[tokio::test]
async fn cut_at_any_byte_a_fenced_commit_is_whole_or_refused() {
    let db = Database::new().await;
    let (store, proxy) = linked(&db).await;
    let (session, other) = (open(&store).await, db.session(TTL).await);
    let (stm, other) = (session.stm().unwrap(), other.stm().unwrap());
    let (mut done, mut refused) = (0, 0);
    for direction in [Direction::Up, Direction::Down] {
        for bytes in (0..500).step_by(83) {
            let holder = open(&store).await;
            let guard = holder.locker("l").unwrap().lock().await.unwrap();
            let before = version(&other, "guarded").await;
            proxy.cut_after(direction, bytes);
            let fenced = stm.fenced_by(&guard).txn().then([Op::put("guarded", "x")]);
            let outcome = fenced.commit().await;
            let after = version(&other, "guarded").await;
            match outcome {
                Ok(_) => {
                    done += 1;
                    assert_eq!(after, before + 1, "{direction:?} {bytes}");
                }
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.kind(), ErrorKind::Lost, "{direction:?} {bytes}");
                    assert_eq!(error.effect(), Effect::None);
                    assert_eq!(after, before, "{direction:?} {bytes}: {error}");
                }
            }
            proxy.heal();
        }
    }
    assert!(done > 0 && refused > 0, "{done} done, {refused} refused");
}

#[tokio::test]
async fn requests_that_come_late_do_nothing() {
    let db = Database::new().await;
    let session = db.session(TTL).await;
    let stm = session.stm().unwrap();
    let first = stm.put("a", "1").await.unwrap();
    let second = stm.put("a", "2").await.unwrap();
    assert!(second > first);
    let id = session.id().to_string();
    let mut sql = db.sql().await;
    // The slot was used since.
    assert_eq!(status(&mut sql, late(ROOT, &id, 0, first)).await, "moved");
    let resolve = |slot: i32, last: u64| {
        format!("SELECT status FROM tenure.stm_resolve('{ROOT}', {id}, {slot}, {last}, 7)")
    };
    assert_eq!(status(&mut sql, resolve(0, first)).await, "aborted");
    // What is doubted and has not come never comes.
    assert_eq!(status(&mut sql, resolve(9, 0)).await, "aborted");
    assert_eq!(status(&mut sql, late(ROOT, &id, 9, 0)).await, "moved");
    session.close().await.unwrap();
    assert_eq!(status(&mut sql, late(ROOT, &id, 20, 0)).await, "lost");
    assert_eq!(status(&mut sql, resolve(20, 0)).await, "unknown");
    assert_eq!(status(&mut sql, resolve(0, second)).await, "aborted");
    assert_eq!(
        db.number("SELECT count(*) FROM tenure.data WHERE path = 'late'")
            .await,
        0
    );
    // In the time of a living one it is done: the requests above make sense.
    let session = db.session(TTL).await;
    let id = session.id().to_string();
    assert_eq!(status(&mut sql, late(ROOT, &id, 0, 0)).await, "done");
}

#[tokio::test]
async fn markers_are_few_and_those_of_the_dead_are_collected() {
    let db = Database::new().await;
    let (session, ended) = (db.session(TTL).await, db.session(TTL).await);
    let stm = session.stm().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let stm = stm.clone();
        tasks.spawn(async move {
            for _ in 0..20 {
                increment(&stm, "count").await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(version(&stm, "count").await, 200);
    assert!(db.number("SELECT count(*) FROM tenure.markers").await <= 10);
    ended.stm().unwrap().put("a", "1").await.unwrap();
    ended.close().await.unwrap();
    let mut sql = db.sql().await;
    let before = db
        .number("SELECT count(DISTINCT session) FROM tenure.markers")
        .await;
    sql.execute("SELECT tenure.stm_sweep()").await.unwrap();
    assert_eq!(
        (
            before,
            db.number("SELECT count(DISTINCT session) FROM tenure.markers")
                .await
        ),
        (2, 2)
    );
    sql.execute("UPDATE tenure.markers SET since = since - interval '2 minutes'")
        .await
        .unwrap();
    sql.execute("SELECT tenure.stm_sweep()").await.unwrap();
    assert_eq!(
        db.number("SELECT count(DISTINCT session) FROM tenure.markers")
            .await,
        1
    );
    increment(&stm, "count").await.unwrap();
}

/// What a snapshot at revision r shows was written up to r, and what a later one shows anew was written
/// after r: nobody sees revision 11 before 10.
#[tokio::test(flavor = "multi_thread")]
async fn revisions_are_seen_in_their_order() {
    const KEYS: u64 = 8;
    let db = Database::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for key in 0..KEYS {
        let session = db.session(TTL).await;
        let stop = Arc::clone(&stop);
        writers.push(tokio::spawn(async move {
            let stm = session.stm().unwrap();
            while !stop.load(Ordering::Relaxed) {
                stm.put(format!("{key}"), "x").await.unwrap();
            }
        }));
    }
    let session = db.session(TTL).await;
    let stm = session.stm().unwrap();
    let mut last = (0, BTreeMap::new());
    let until = Instant::now() + Duration::from_secs(2);
    let mut changes = 0;
    while Instant::now() < until {
        let gets = (0..KEYS).map(|key| Op::get(format!("{key}")));
        let seen = stm.txn().then(gets).commit().await.unwrap();
        let modified = seen
            .results
            .iter()
            .enumerate()
            .map(|(key, result)| match result {
                OpResult::Get(entry) => (key, entry.as_ref().map_or(0, |entry| entry.modified)),
                other => panic!("{other:?}"),
            });
        let modified: BTreeMap<_, _> = modified.collect();
        for (key, now) in &modified {
            assert!(*now <= seen.revision, "{now} at {}", seen.revision);
            if last.1.get(key).is_some_and(|before| before != now) {
                changes += 1;
                assert!(*now > last.0, "{now} came up after {}", last.0);
            }
        }
        last = (seen.revision, modified);
    }
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(changes > 20, "{changes} changes: too little happened");
}

#[tokio::test]
async fn who_waited_for_the_turn_is_compared_again() {
    let db = Database::new().await;
    let sessions = [db.session(TTL).await, db.session(TTL).await];
    let stms = sessions.each_ref().map(|session| session.stm().unwrap());
    increment(&stms[0], "count").await.unwrap();
    // Both find all as they had read it, and then wait.
    let mut sql = db.sql().await;
    sql.execute("BEGIN; SELECT FROM tenure.revisions FOR UPDATE")
        .await
        .unwrap();
    let tasks = stms
        .clone()
        .map(|stm| tokio::spawn(async move { increment(&stm, "count").await }));
    db.until("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()", 2)
        .await;
    sql.execute("COMMIT").await.unwrap();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let entry = stms[0].get("count").await.unwrap().unwrap();
    assert_eq!((entry.value, entry.version), (b"3".to_vec(), 3));
}

/// The end of a request, as a process sends it that is stopped at the worst moment: the statement is done,
/// and the transaction open.
#[tokio::test]
async fn who_is_stopped_in_its_turn_is_ended() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[kind], &length[..], body].concat()
    }

    let db = Database::new().await;
    let session = db.session(TTL).await;
    let stm = session.stm().unwrap();
    stm.put("a", "1").await.unwrap();
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
    let lock = format!("\0SELECT tenure.stm_lock('{ROOT}')\0\0\0");
    let request = [
        message(b'P', lock.as_bytes()),
        message(b'B', &[0; 8]),
        message(b'E', &[0; 5]),
    ];
    stopped.write_all(&request.concat()).await.unwrap();
    db.until(
        "SELECT count(*) FROM pg_locks AS l JOIN pg_class AS c ON c.oid = l.relation \
        WHERE c.relname = 'revisions' AND l.mode = 'RowShareLock'",
        1,
    )
    .await;
    let waiting = stm.clone();
    let waiting = tokio::spawn(async move { waiting.put("a", "2").await });
    db.until("SELECT tenure.stm_unblock(interval '1 hour')", 0)
        .await;
    assert!(!waiting.is_finished());
    db.until("SELECT tenure.stm_unblock(interval '0.3 seconds')", 1)
        .await;
    waiting.await.unwrap().unwrap();
    assert_eq!(version(&stm, "a").await, 2);
}

#[tokio::test]
async fn a_default_isolation_of_the_database_changes_nothing() {
    let db = Database::new().await;
    let alter = format!(
        "ALTER DATABASE {} SET default_transaction_isolation = 'serializable'",
        db.name
    );
    server().sql(alter).unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let session = db.session(TTL).await;
        tasks.spawn(async move {
            let stm = session.stm().unwrap();
            for _ in 0..20 {
                increment(&stm, "count").await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let session = db.session(TTL).await;
    assert_eq!(version(&session.stm().unwrap(), "count").await, 80);
}

#[tokio::test]
async fn names_and_values_may_be_anything() {
    let db = Database::new().await;
    // What is escaped grows threefold, and nothing of this repeats.
    let mut seed = 1_u64;
    let mut odd = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        char::from(u8::try_from((seed >> 40) % 31).unwrap() + 1)
    };
    let (namespace, name): (String, String) = (
        (0..512).map(|_| odd()).collect(),
        (0..512).map(|_| odd()).collect(),
    );
    let config = db.config().namespace(Namespace::new(namespace).unwrap());
    let store = tenure_postgres::connect(config).await.unwrap();
    let stm = open(&store).await;
    let stm = stm.stm().unwrap();
    let all: Vec<u8> = (0..=255).collect();
    for key in [
        name.as_str(),
        "'; DROP SCHEMA tenure; --",
        "{a,b}",
        "\\",
        "\"",
        "NULL",
        "$1",
    ] {
        stm.put(key, all.clone()).await.unwrap();
        let entry = stm.get(key).await.unwrap().unwrap();
        assert_eq!((entry.value, entry.version), (all.clone(), 1), "{key:?}");
    }
    let large = vec![0; MAX_VALUE_BYTES];
    let swap = stm.txn().when([Compare::value(&name).eq(all)]).then([
        Op::get(&name),
        Op::put("large", large.clone()),
        Op::get("large"),
    ]);
    let done = swap.commit().await.unwrap();
    assert!(done.succeeded);
    match &done.results[2] {
        OpResult::Get(Some(entry)) => assert_eq!(entry.value, large),
        other => panic!("{other:?}"),
    }
    let many: Vec<String> = (0..2_000).map(|n| format!("many {n}")).collect();
    let read = stm.run(async |tx| tx.get_many(many.iter().map(String::as_str)).await);
    assert_eq!(read.await.unwrap().len(), 2_000);
    let none: [&str; 0] = [];
    assert_eq!(
        stm.run(async |tx| tx.get_many(none).await)
            .await
            .unwrap()
            .len(),
        0
    );
}

#[tokio::test]
async fn dropped_at_random_nothing_is_half_done_nor_stuck() {
    const ACCOUNTS: u64 = 4;
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let stm = a.stm().unwrap();
    let deposits = (0..ACCOUNTS).map(|account| Op::put(format!("{account}"), "100"));
    stm.txn().then(deposits).commit().await.unwrap();
    let mut tasks = Vec::new();
    for number in 0..200_u64 {
        let stm = [&a, &b][number as usize % 2].stm().unwrap();
        tasks.push(tokio::spawn(async move {
            let limit = Duration::from_micros(number * 7919 % 60_000);
            let (from, to) = (number % ACCOUNTS, (number + 1) % ACCOUNTS);
            let moving = stm.run(async |tx| {
                let found: i64 = tx.get_as(format!("{from}")).await?.unwrap();
                let gains: i64 = tx.get_as(format!("{to}")).await?.unwrap();
                tx.put_as(format!("{from}"), &(found - 1))?;
                tx.put_as(format!("{to}"), &(gains + 1))
            });
            tokio::time::timeout(limit, moving).await.is_ok()
        }));
    }
    let mut done = 0;
    for task in tasks {
        done += u32::from(task.await.unwrap());
    }
    // All places for markers are free again.
    let mut puts = tokio::task::JoinSet::new();
    for number in 0..100 {
        let stm = a.stm().unwrap();
        puts.spawn(async move { stm.put(format!("free {number}"), "").await.unwrap() });
    }
    while let Some(put) = puts.join_next().await {
        put.unwrap();
    }
    let mut sum = 0;
    for account in 0..ACCOUNTS {
        let entry = stm.get(format!("{account}")).await.unwrap().unwrap();
        sum += String::from_utf8(entry.value)
            .unwrap()
            .parse::<i64>()
            .unwrap();
    }
    assert_eq!(sum, 400, "after {done} that were not dropped");
}

#[tokio::test]
async fn a_commit_is_bound_to_any_guard() {
    let db = Database::new().await;
    let store = db.store().await;
    let (a, b) = (open(&store).await, open(&store).await);
    let stm = b.stm().unwrap();
    let doors = (
        a.double_barrier("d", 2).unwrap(),
        b.double_barrier("d", 2).unwrap(),
    );
    let (mine, other) = tokio::join!(doors.0.enter(), doors.1.enter());
    let (mine, other) = (mine.unwrap(), other.unwrap());
    let fenced = stm.fenced_by(&mine);
    let commit = || fenced.txn().then([Op::put("k", "v")]).commit();
    assert!(commit().await.unwrap().succeeded);
    let mut sql = db.sql().await;
    let out = format!(
        "DELETE FROM tenure.participants WHERE token = {}",
        mine.token()
    );
    sql.execute(AssertSqlSafe(out)).await.unwrap();
    let error = commit().await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Lost, Effect::None)
    );
    assert_eq!(version(&stm, "k").await, 1);
    drop(other);
    // Only reads, and bound all the same.
    let guard = a.locker("l").unwrap().lock().await.unwrap();
    let bound = stm.fenced_by(&guard);
    let read = bound.run(async |tx| tx.get("k").await);
    assert_eq!(read.await.unwrap().as_deref(), Some(&b"v"[..]));
    a.close().await.unwrap();
    let read = bound.run(async |tx| tx.get("k").await);
    assert_eq!(read.await.unwrap_err().kind(), ErrorKind::Lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bank_keeps_its_money_over_crashes_of_the_server() {
    const ACCOUNTS: u64 = 5;
    let mut server = PostgresServer::builder().start_async().await.unwrap();
    let url = server.url_of("postgres") + "?sslmode=disable";
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_postgres::connect(config).await.unwrap();
    let opener = open(&store).await;
    let deposits = (0..ACCOUNTS).map(|account| Op::put(format!("{account}"), "100"));
    let deposits = opener.stm().unwrap().txn().then(deposits).commit().await;
    let first = deposits.unwrap().revision;
    let stop = Arc::new(AtomicBool::new(false));
    let (done, unknown) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for task in 0..4_u64 {
        let (store, stop) = (store.clone(), Arc::clone(&stop));
        let (done, unknown) = (Arc::clone(&done), Arc::clone(&unknown));
        tasks.push(tokio::spawn(async move {
            let mut round = task;
            'sessions: while !stop.load(Ordering::Relaxed) {
                let Ok(session) = store.open(SessionOptions::new().ttl(TTL)).await else {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                let stm = session.stm().unwrap();
                while !stop.load(Ordering::Relaxed) {
                    round += 7;
                    let (from, to) = (round % ACCOUNTS, (round + task + 1) % ACCOUNTS);
                    let moved = stm
                        .run(async |tx| {
                            let found: i64 = tx.get_as(format!("{from}")).await?.unwrap();
                            tx.put_as(format!("{from}"), &(found - 1))?;
                            let gains: i64 = tx.get_as(format!("{to}")).await?.unwrap();
                            tx.put_as(format!("{to}"), &(gains + 1))?;
                            let count: u64 = tx.get_as("count").await?.unwrap_or(0);
                            tx.put_as("count", &(count + 1))
                        })
                        .await;
                    match moved.map_err(|error| error.kind()) {
                        Ok(()) => done.fetch_add(1, Ordering::Relaxed),
                        Err(ErrorKind::CommitUnknown) => unknown.fetch_add(1, Ordering::Relaxed),
                        Err(ErrorKind::Lost) => continue 'sessions,
                        Err(kind) => panic!("{kind:?}"),
                    };
                }
            }
        }));
    }
    let goal = async |more: u64| {
        let goal = done.load(Ordering::Relaxed) + more;
        while done.load(Ordering::Relaxed) < goal {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for _ in 0..3 {
        goal(20).await;
        server.kill().unwrap();
        server.restart_async().await.unwrap();
    }
    goal(20).await;
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let session = open(&store).await;
    let stm = session.stm().unwrap();
    let number = async |key: String| {
        let entry = stm.get(key).await.unwrap().unwrap();
        assert!(entry.modified >= first);
        String::from_utf8(entry.value)
            .unwrap()
            .parse::<i64>()
            .unwrap()
    };
    let mut sum = 0;
    for account in 0..ACCOUNTS {
        sum += number(format!("{account}")).await;
    }
    assert_eq!(sum, 500);
    let count = number("count".into()).await.cast_unsigned();
    let (done, unknown) = (
        done.load(Ordering::Relaxed),
        unknown.load(Ordering::Relaxed),
    );
    println!("{done} done, {unknown} unknown, {count} there");
    assert!(
        (done..=done + unknown).contains(&count),
        "{done} {unknown} {count}"
    );
}
