//! Many leave their lines at once, in one step, and that goes wrong half-way: in the end nothing is left of them.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::Executor;
use support::{BREAK_NUDGE, Database, MEND_NUDGE, ONLY_SESSIONS, TICKETS, server, within};
use tenure_core::backend::StoreUrl;
use tenure_core::{Session, SessionOptions};
use tenure_postgres::{PostgresConfig, PostgresSession};
use tenure_testbed::{Direction, Flow, Proxy, Trigger};
use tokio::task::JoinSet;

const TTL: Duration = Duration::from_secs(3);

/// More than go in one step.
const MANY: i64 = 250;

const SESSIONS: &str = "SELECT count(*) FROM tenure.sessions";

/// Futures that wait for locks that another has, one for each of `MANY`.
async fn all_wait(db: &Database, session: &Session<PostgresSession>) -> JoinSet<()> {
    let mut waits = JoinSet::new();
    for number in 0..MANY {
        let lock = session.locker(format!("l{}", number % 5)).unwrap();
        waits.spawn(async move { drop(lock.lock().await) });
    }
    db.until(TICKETS, MANY).await;
    waits
}

/// Lets 250 go at once while `fault` strikes the session's connection: whoever waits behind them is served, and of
/// them nothing is left.
async fn struck(what: &str, fault: impl FnOnce(&Proxy) -> Trigger) {
    let db = Database::new().await;
    let (holds, next) = (db.session(TTL * 4).await, db.session(TTL * 4).await);
    let proxy = Proxy::start(server().address()).unwrap();
    let url = format!(
        "postgres://postgres@{}/{}?sslmode=disable",
        proxy.address(),
        db.name
    );
    let config = PostgresConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_postgres::connect(config).await.unwrap();
    let leaves = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let mut held = Vec::new();
    for number in 0..5 {
        let lock = holds.locker(format!("l{number}")).unwrap();
        held.push(lock.lock().await.unwrap());
    }
    let waits = all_wait(&db, &leaves).await;
    let mut behind = JoinSet::new();
    for number in 0..5 {
        let lock = next.locker(format!("l{number}")).unwrap();
        behind.spawn(async move { lock.lock().await.unwrap() });
    }
    db.until(TICKETS, MANY + 5).await;

    let struck = fault(&proxy);
    drop(waits);
    within(TTL * 2, what, leaves.lost()).await;
    assert!(struck.has_fired(), "{what}: the fault never struck");
    for guard in held {
        guard.release().await.unwrap();
    }
    while let Some(guard) = within(TTL, what, behind.join_next()).await {
        guard.unwrap().release().await.unwrap();
    }
    proxy.heal();
    drop((leaves, store));
    db.until(TICKETS, 0).await;
    db.until(ONLY_SESSIONS, 2).await;
    let mut sql = db.sql().await;
    let sweep = "DELETE FROM tenure.sweeps; SELECT tenure.sweep()";
    sql.execute(sqlx::raw_sql(sweep)).await.unwrap();
    db.until(SESSIONS, 2).await;
}

#[tokio::test]
async fn the_connection_breaks_before_the_first_of_them_has_left() {
    struck("no request", |proxy| {
        proxy.cut_when(Direction::Up, "tenure.line_withdraw")
    })
    .await;
}

#[tokio::test]
async fn the_connection_breaks_between_their_leaving_and_the_word_to_those_behind() {
    struck("gone, but nobody told", |proxy| {
        proxy.cut_when(Direction::Up, "tenure.line_nudge")
    })
    .await;
}

#[tokio::test]
async fn the_answer_to_their_leaving_is_lost() {
    struck("no answer", |proxy| {
        proxy.when(
            Direction::Up,
            "tenure.line_withdraw",
            Direction::Down,
            Flow::Drop,
        )
    })
    .await;
}

/// The session lives on, so nobody else would ever clear up after it: each that was taken along has to go by
/// itself, until it is gone.
async fn refused(breaks: &'static str, mends: &'static str) {
    let db = Database::new().await;
    let (holds, leaves, next) = (
        db.session(TTL * 10).await,
        db.session(TTL * 10).await,
        db.session(TTL * 10).await,
    );
    let mut held = Vec::new();
    for number in 0..5 {
        let lock = holds.locker(format!("l{number}")).unwrap();
        held.push(lock.lock().await.unwrap());
    }
    let waits = all_wait(&db, &leaves).await;
    let mut sql = db.sql().await;
    sql.execute(sqlx::raw_sql(breaks)).await.unwrap();
    drop(waits);
    // Long enough for some steps to be refused.
    tokio::time::sleep(Duration::from_millis(300)).await;
    sql.execute(sqlx::raw_sql(mends)).await.unwrap();
    db.until(TICKETS, 0).await;
    assert!(leaves.is_valid());
    for guard in held {
        guard.release().await.unwrap();
    }
    for number in 0..5 {
        let lock = next.locker(format!("l{number}")).unwrap();
        drop(within(TTL, "a lock", lock.lock()).await.unwrap());
    }
    db.until(ONLY_SESSIONS, 3).await;
}

#[tokio::test]
async fn their_leaving_is_refused_for_a_while() {
    refused(
        "ALTER FUNCTION tenure.line_withdraw(bigint, bigint[]) RENAME TO line_withdraw_right; \
        CREATE FUNCTION tenure.line_withdraw(me bigint, a_nonces bigint[]) RETURNS void LANGUAGE plpgsql AS $$ \
        BEGIN \
            RAISE EXCEPTION 'not now' USING ERRCODE = '57014'; \
        END $$",
        "DROP FUNCTION tenure.line_withdraw(bigint, bigint[]); \
        ALTER FUNCTION tenure.line_withdraw_right(bigint, bigint[]) RENAME TO line_withdraw",
    )
    .await;
}

#[tokio::test]
async fn the_word_to_those_behind_is_refused_for_a_while() {
    refused(BREAK_NUDGE, MEND_NUDGE).await;
}
