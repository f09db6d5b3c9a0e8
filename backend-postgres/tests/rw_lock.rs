//! Read-write locks on a real PostgreSQL.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use support::{BREAK_NUDGE, Database, MEND_NUDGE, ONLY_SESSIONS, Silent, TICKETS, within};
use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, LossReason, SessionOptions};
use tenure_postgres::PostgresConfig;

const TTL: Duration = Duration::from_secs(5);

/// How many have one of the lock's modes: sessions have theirs exclusively.
const READING: &str = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' \
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

#[tokio::test]
async fn readers_share_and_a_writer_is_alone() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let (mine, other) = (a.rw_lock("l").unwrap(), b.rw_lock("l").unwrap());
    // Two of one session, and one of another.
    let readers = [
        mine.read().await.unwrap(),
        mine.try_read().await.unwrap(),
        other.read().await.unwrap(),
    ];
    let c = db.session(TTL).await.rw_lock("l").unwrap();
    assert_eq!(
        c.try_write().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    for reader in readers {
        assert_eq!(
            c.try_write().await.unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        reader.release().await.unwrap();
    }
    let writer = c.try_write().await.unwrap();
    for lock in [&mine, &c] {
        assert_eq!(
            lock.try_read().await.unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        assert_eq!(
            lock.try_write().await.unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
    }
    writer.release().await.unwrap();
    drop(mine.try_read().await.unwrap());
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn an_upgrade_is_refused() {
    let db = Database::new().await;
    let lock = db.session(TTL).await.rw_lock("l").unwrap();
    let reader = lock.read().await.unwrap();
    assert_eq!(lock.write().await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(
        lock.try_write().await.unwrap_err().kind(),
        ErrorKind::Conflict
    );
    assert!(reader.is_valid());
    reader.release().await.unwrap();
    drop(lock.write().await.unwrap());
}

/// W r r W r: in that order, and neighbouring readers together.
#[tokio::test]
async fn granted_in_the_order_of_arrival_with_batches_of_readers() {
    let db = Database::new().await;
    let sessions = [
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    ];
    let first = sessions[0].rw_lock("l").unwrap().write().await.unwrap();
    let (inside, batch) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicI64::new(0)));
    let mut tasks = Vec::new();
    for (number, side) in "wrrrwrrwrw".chars().enumerate() {
        let lock = sessions[number % 3].rw_lock("l").unwrap();
        let (inside, batch) = (Arc::clone(&inside), Arc::clone(&batch));
        tasks.push(tokio::spawn(async move {
            if side == 'w' {
                let guard = lock.write().await.unwrap();
                assert_eq!(inside.fetch_add(100, Ordering::SeqCst), 0);
                batch.store(0, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(5)).await;
                assert_eq!(inside.fetch_sub(100, Ordering::SeqCst), 100);
                let token = guard.token();
                guard.release().await.unwrap();
                return token;
            }
            let guard = lock.read().await.unwrap();
            assert!(inside.fetch_add(1, Ordering::SeqCst) < 100);
            batch.fetch_add(1, Ordering::SeqCst);
            // Until the whole batch is in: if it were not let in together, this would not end.
            let size = if (1..=3).contains(&number) {
                3
            } else if number == 8 {
                1
            } else {
                2
            };
            while batch.load(Ordering::SeqCst) < size {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            inside.fetch_sub(1, Ordering::SeqCst);
            let token = guard.token();
            guard.release().await.unwrap();
            token
        }));
        db.until(TICKETS, number as i64 + 1).await;
    }
    let mut tokens = vec![first.token()];
    first.release().await.unwrap();
    for task in tasks {
        tokens.push(within(TTL * 2, "a turn", task).await.unwrap());
    }
    // A writer's is above every one before, and below every one after.
    for (at, side) in ".wrrrwrrwrw".chars().enumerate() {
        if side == 'w' {
            assert!(
                tokens[..at].iter().all(|before| *before < tokens[at]),
                "{tokens:?}"
            );
            assert!(
                tokens[at + 1..].iter().all(|after| *after > tokens[at]),
                "{tokens:?}"
            );
        }
    }
    assert_eq!(db.number(TICKETS).await, 0);
}

#[tokio::test]
async fn a_waiting_writer_is_not_overtaken_and_lets_in_when_it_gives_up() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let reader = a.rw_lock("l").unwrap().read().await.unwrap();
    let lock = b.rw_lock("l").unwrap();
    let limit = Duration::from_millis(700);
    let writer = tokio::spawn(async move { lock.write_timeout(limit).await });
    db.until(TICKETS, 1).await;
    let lock = c.rw_lock("l").unwrap();
    assert_eq!(
        lock.try_read().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    let behind = tokio::spawn(async move { lock.read().await });
    db.until(TICKETS, 2).await;
    assert_eq!(db.number(READING).await, 1);
    assert_eq!(
        writer.await.unwrap().unwrap_err().kind(),
        ErrorKind::TimedOut
    );
    let behind = within(TTL, "the reader behind", behind)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(db.number(READING).await, 2);
    behind.release().await.unwrap();
    reader.release().await.unwrap();
    db.until(ONLY_SESSIONS, 3).await;
}

#[tokio::test]
async fn a_downgrade_keeps_token_and_place_and_lets_readers_in() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let writer = a.rw_lock("l").unwrap().write().await.unwrap();
    let token = writer.token();
    let mut readers = Vec::new();
    for session in [&b, &c, &a] {
        let lock = session.rw_lock("l").unwrap();
        let before = db.number(TICKETS).await;
        readers.push(tokio::spawn(async move { lock.read().await }));
        db.until(TICKETS, before + 1).await;
    }
    let lock = b.rw_lock("l").unwrap();
    let next = tokio::spawn(async move { lock.write().await });
    db.until(TICKETS, 4).await;
    let turned = writer.downgrade().await.unwrap();
    assert_eq!(turned.token(), token);
    let mut guards = Vec::new();
    for reader in readers {
        let reader = within(TTL, "a reader beside it", reader)
            .await
            .unwrap()
            .unwrap();
        assert!(reader.token() > token);
        guards.push(reader);
    }
    assert!(!next.is_finished() && turned.is_valid());
    // The two of one session are one in the lock table.
    assert_eq!(db.number(READING).await, 3);
    for guard in guards {
        guard.release().await.unwrap();
    }
    assert!(!next.is_finished());
    turned.release().await.unwrap();
    let next = within(TTL, "the writer behind", next)
        .await
        .unwrap()
        .unwrap();
    next.release().await.unwrap();
    db.until(ONLY_SESSIONS, 3).await;
}

#[tokio::test]
async fn a_downgrade_that_failed_half_way_is_made_good() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut sql = db.sql().await;
    sql.execute(BREAK_NUDGE).await.unwrap();
    let writer = a.rw_lock("l").unwrap().write().await.unwrap();
    let downgrade = tokio::spawn(writer.downgrade());
    // The lock is shared already, and the session does not know.
    db.until(READING, 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!downgrade.is_finished());
    sql.execute(MEND_NUDGE).await.unwrap();
    let reader = within(TTL, "the downgrade", downgrade)
        .await
        .unwrap()
        .unwrap();
    let beside = b.rw_lock("l").unwrap().try_read().await.unwrap();
    reader.release().await.unwrap();
    beside.release().await.unwrap();
    drop(b.rw_lock("l").unwrap().try_write().await.unwrap());
    db.until(ONLY_SESSIONS, 2).await;
}

#[tokio::test]
async fn a_downgrade_that_failed_half_way_is_released() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let mut sql = db.sql().await;
    let writer = a.rw_lock("l").unwrap().write().await.unwrap();
    let lock = b.rw_lock("l").unwrap();
    let next = tokio::spawn(async move { lock.write().await });
    db.until(TICKETS, 1).await;
    sql.execute(BREAK_NUDGE).await.unwrap();
    let downgrade = tokio::spawn(writer.downgrade());
    db.until(READING, 1).await;
    downgrade.abort();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!next.is_finished());
    sql.execute(MEND_NUDGE).await.unwrap();
    let next = within(TTL, "the writer behind", next)
        .await
        .unwrap()
        .unwrap();
    next.release().await.unwrap();
    db.until(ONLY_SESSIONS, 2).await;
    assert!(a.is_valid() && b.is_valid());
}

#[tokio::test]
async fn a_dead_reader_frees_the_writer_and_nobody_else() {
    let db = Database::new().await;
    let (a, b, c) = (
        db.session(TTL).await,
        db.session(TTL).await,
        db.session(TTL).await,
    );
    let dead = a.rw_lock("l").unwrap().read().await.unwrap();
    let alive = b.rw_lock("l").unwrap().read().await.unwrap();
    let lock = c.rw_lock("l").unwrap();
    let writer = tokio::spawn(async move { lock.write().await });
    db.until(TICKETS, 1).await;
    let terminate = format!("SELECT tenure.terminate({})", a.id());
    db.sql()
        .await
        .execute(AssertSqlSafe(terminate))
        .await
        .unwrap();
    assert_eq!(dead.lost().await, LossReason::Revoked);
    db.until(READING, 1).await;
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(!writer.is_finished() && alive.is_valid());
    alive.release().await.unwrap();
    let writer = within(TTL, "the writer", writer).await.unwrap().unwrap();
    assert!(writer.token() > dead.token());
    assert_eq!(dead.release().await.unwrap_err().kind(), ErrorKind::Lost);
    assert!(writer.is_valid());
    writer.release().await.unwrap();
}

#[tokio::test]
async fn one_that_stands_still_is_succeeded_by_the_other_side() {
    let db = Database::new().await;
    let ttl = Duration::from_secs(2);
    let silent = Silent::start(db.config(), ttl, move |session| async move {
        session.rw_lock("l").unwrap().read().await.unwrap()
    });
    let (held, token, silent) = silent.holds().await;
    let session = db.session(TTL).await;
    let writer = session.rw_lock("l").unwrap().write().await.unwrap();
    let after = held.elapsed();
    assert!(
        after >= ttl && after < ttl + Duration::from_secs(10),
        "{after:?}"
    );
    assert!(writer.token() > token);
    silent.wake(|guard| assert!(!guard.is_valid()));
    assert!(writer.is_valid());
    writer.release().await.unwrap();
}

#[tokio::test]
async fn an_operator_takes_a_side_away() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let kept = a.rw_lock("l").unwrap().read().await.unwrap();
    let taken = a.rw_lock("l").unwrap().read().await.unwrap();
    let lock = b.rw_lock("l").unwrap();
    let writer = tokio::spawn(async move { lock.write().await });
    db.until(TICKETS, 1).await;
    let holding = taken.key().rsplit_once('#').unwrap().1.to_owned();
    let evict = format!("SELECT tenure.evict('{holding}')");
    db.sql().await.execute(AssertSqlSafe(evict)).await.unwrap();
    assert_eq!(taken.lost().await, LossReason::Revoked);
    assert!(kept.is_valid() && !writer.is_finished());
    kept.release().await.unwrap();
    within(TTL, "the writer", writer)
        .await
        .unwrap()
        .unwrap()
        .release()
        .await
        .unwrap();
}

#[tokio::test]
async fn a_thousand_of_both_sides_dropped_at_random_leave_nothing() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let inside: Arc<[AtomicI64; 5]> = Arc::default();
    let mut tasks = Vec::new();
    for number in 0..1000_u64 {
        let session = if number % 2 == 0 { &a } else { &b };
        let lock = session.rw_lock(format!("l{}", number % 5)).unwrap();
        let inside = Arc::clone(&inside);
        tasks.push(tokio::spawn(async move {
            let inside = &inside[(number % 5) as usize];
            let limit = Duration::from_micros(number * 7919 % 300_000);
            let _ = tokio::time::timeout(limit, async {
                match number % 3 {
                    0 => {
                        // An upgrade where the session reads already is refused.
                        let guard = lock.write().await?;
                        assert_eq!(inside.fetch_add(1000, Ordering::SeqCst), 0);
                        inside.fetch_sub(1000, Ordering::SeqCst);
                        guard.downgrade().await?.release().await
                    }
                    1 => {
                        let guard = lock.read().await?;
                        assert!(inside.fetch_add(1, Ordering::SeqCst) < 1000);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        guard.release().await
                    }
                    _ => lock.try_read().await?.release().await,
                }
            })
            .await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    db.until(TICKETS, 0).await;
    // Two sessions' own.
    db.until(ONLY_SESSIONS, 2).await;
    for number in 0..5 {
        drop(
            a.rw_lock(format!("l{number}"))
                .unwrap()
                .try_write()
                .await
                .unwrap(),
        );
    }
}

/// The server does not take an unlock back when its statement fails. A release that is repeated then must not
/// free the share of another reader of the same session.
#[tokio::test]
async fn a_repeated_release_spares_the_other_reader_of_the_session() {
    let db = Database::new().await;
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let lock = a.rw_lock("l").unwrap();
    let (first, second) = (lock.read().await.unwrap(), lock.try_read().await.unwrap());
    let other = b.rw_lock("l").unwrap();
    let writer = tokio::spawn({
        let other = other.clone();
        async move { other.write().await }
    });
    db.until(TICKETS, 1).await;
    let mut sql = db.sql().await;
    sql.execute(BREAK_NUDGE).await.unwrap();
    // In the background it is repeated for as long as it fails.
    drop(first);
    for _ in 0..20 {
        assert_eq!(db.number(READING).await, 1, "the server's share is gone");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    assert!(second.is_valid() && !writer.is_finished());
    // A reader that comes now waits behind the writer.
    assert_eq!(
        lock.try_read().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    // The last release fails half-way: unlocked, and nobody told.
    drop(second);
    db.until(READING, 0).await;
    let late = tokio::spawn({
        let lock = lock.clone();
        async move { lock.read().await }
    });
    // The writer looks by itself, and the reader of the session that is letting go does not come before it.
    let writer = within(TTL, "the writer", writer).await.unwrap().unwrap();
    assert_eq!(db.number(READING).await, 0);
    assert!(writer.is_valid() && !late.is_finished());
    sql.execute(MEND_NUDGE).await.unwrap();
    writer.release().await.unwrap();
    let late = within(TTL, "the reader", late).await.unwrap().unwrap();
    assert!(a.is_valid() && b.is_valid());
    late.release().await.unwrap();
    db.until(ONLY_SESSIONS, 2).await;
}

/// The same by a real failure: another database's commit waits for a standby and keeps the lock before which all
/// wait who notify, so the release runs into `lock_timeout` after it unlocked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_cannot_notify_spares_the_other_reader_of_the_session() {
    let server = tenure_testbed::PostgresServer::start_async().await.unwrap();
    let open = async || {
        let url = server.url() + "?sslmode=disable";
        let config = StoreUrl::parse(&url).and_then(PostgresConfig::from_url);
        let store = tenure_postgres::connect(config.unwrap()).await.unwrap();
        let options = SessionOptions::new().ttl(TTL);
        store.open(options).await.unwrap()
    };
    let (a, b) = (open().await, open().await);
    let lock = a.rw_lock("l").unwrap();
    let (first, second) = (lock.read().await.unwrap(), lock.read().await.unwrap());
    let other = b.rw_lock("l").unwrap();
    let writer = tokio::spawn(async move { other.write().await });
    let until = async |question: &'static str, wanted: &str| {
        for _ in 0..400 {
            if server.sql(question).unwrap().trim() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        panic!("{question}: not {wanted}");
    };
    until(TICKETS, "1").await;
    server.sql("CREATE TABLE t (n integer)").unwrap();
    server.set("synchronous_standby_names", "missing").unwrap();
    until(
        "SELECT current_setting('synchronous_standby_names')",
        "missing",
    )
    .await;
    let mut stuck = PgConnection::connect(&(server.url() + "?sslmode=disable"))
        .await
        .unwrap();
    let stuck = tokio::spawn(async move {
        let commit = "BEGIN; INSERT INTO t VALUES (1); NOTIFY other; COMMIT";
        stuck.execute(sqlx::raw_sql(commit)).await.map(drop)
    });
    until(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'",
        "1",
    )
    .await;
    // Longer than `lock_timeout`, which is a quarter of the TTL.
    let _ = tokio::time::timeout(TTL / 2, first.release()).await;
    assert!(second.is_valid() && !writer.is_finished());
    assert_eq!(server.sql(SHARES).unwrap().trim(), "1");
    server.set("synchronous_standby_names", "").unwrap();
    within(TTL, "the other commit", stuck)
        .await
        .unwrap()
        .unwrap();
    assert!(second.is_valid() && !writer.is_finished());
    second.release().await.unwrap();
    let writer = within(TTL, "the writer", writer).await.unwrap().unwrap();
    writer.release().await.unwrap();
}

const SHARES: &str =
    "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock'";

/// A failed join of one more reader costs neither the session nor the share of the others.
#[tokio::test]
async fn a_failed_join_spares_the_readers_of_the_session() {
    let db = Database::new().await;
    let a = db.session(TTL).await;
    let lock = a.rw_lock("l").unwrap();
    let reader = lock.read().await.unwrap();
    let mut sql = db.sql().await;
    sql.execute("ALTER SEQUENCE tenure.tokens RENAME TO tokens_right")
        .await
        .unwrap();
    lock.try_read().await.unwrap_err();
    sql.execute("ALTER SEQUENCE tenure.tokens_right RENAME TO tokens")
        .await
        .unwrap();
    assert!(reader.is_valid());
    assert_eq!(db.number(READING).await, 1);
    lock.try_read().await.unwrap().release().await.unwrap();
    assert_eq!(db.number(READING).await, 1);
    reader.release().await.unwrap();
    assert!(a.is_valid());
    db.until(ONLY_SESSIONS, 1).await;
}
