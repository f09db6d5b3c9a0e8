//! What the documents offer as SQL does what they say.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use sqlx::{AssertSqlSafe, Executor, PgConnection, Row};
use support::{Database, TICKETS};

const TTL: Duration = Duration::from_secs(5);

/// The blocks of SQL in a page, in order.
fn blocks(page: &'static str) -> Vec<&'static str> {
    let blocks = page.split("```sql\n").skip(1);
    blocks
        .map(|rest| rest.split("```").next().unwrap())
        .collect()
}

/// The writer of `docs/fencing.md`: how many rows were written.
async fn write(sql: &mut PgConnection, token: i64, value: &str) -> u64 {
    let write = sqlx::query(blocks(include_str!("../../docs/fencing.md"))[1]);
    let write = write.bind("v").bind(value).bind(token);
    write.execute(sql).await.unwrap().rows_affected()
}

async fn value(sql: &mut PgConnection) -> String {
    let row = sql.fetch_one("SELECT value FROM ledger").await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn an_older_token_is_refused_at_the_resource() {
    let db = Database::new().await;
    let page = blocks(include_str!("../../docs/fencing.md"));
    let [table, _, trigger] = page[..] else {
        panic!("{} blocks of SQL in docs/fencing.md", page.len());
    };
    let (mut sql, mut other) = (db.sql().await, db.sql().await);
    sql.execute(table).await.unwrap();
    let now = 1_795_278_906_814_628;
    assert_eq!(write(&mut sql, now, "a").await, 1);
    assert_eq!(write(&mut sql, now, "b").await, 1, "a holder writes on");
    assert_eq!(write(&mut sql, now + 1, "c").await, 1);
    assert_eq!(write(&mut sql, now, "late").await, 0, "an older token");
    assert_eq!(value(&mut sql).await, "c");

    // One that waits for the row while a newer one writes it.
    sql.execute("BEGIN").await.unwrap();
    assert_eq!(write(&mut sql, now + 3, "d").await, 1);
    let late = tokio::spawn(async move { write(&mut other, now + 2, "late").await });
    db.until("SELECT count(*) FROM pg_locks WHERE NOT granted", 1)
        .await;
    sql.execute("COMMIT").await.unwrap();
    assert_eq!(late.await.unwrap(), 0);
    assert_eq!(value(&mut sql).await, "d");

    // The control: who does not compare gets through, but for the trigger.
    let careless = |token: i64| {
        let careless = format!("UPDATE ledger SET value = 'late', token = {token}");
        AssertSqlSafe(careless)
    };
    sql.execute(careless(now + 2)).await.unwrap();
    assert_eq!(value(&mut sql).await, "late");
    sql.execute(sqlx::raw_sql(trigger)).await.unwrap();
    let refused = sql.execute(careless(now + 1)).await.unwrap_err();
    let refused = refused.into_database_error().unwrap();
    assert!(refused.is_check_violation(), "{refused}");
    // The greatest tokens there are.
    let most = (1 << 53) - 1;
    assert_eq!(write(&mut sql, most, "z").await, 1);
    assert_eq!(write(&mut sql, most - 1, "y").await, 0);
}

/// Who holds and who waits, as `docs/postgres.md` lets an operator ask.
#[tokio::test]
async fn an_operator_finds_who_holds_and_who_waits() {
    let db = Database::new().await;
    let page = blocks(include_str!("../../docs/postgres.md"));
    let [holders, waiters] = page[..] else {
        panic!("{} blocks of SQL in docs/postgres.md", page.len());
    };
    let (a, b) = (db.session(TTL).await, db.session(TTL).await);
    let _other = a.locker("others").unwrap().lock().await.unwrap();
    let _held = a.locker("orders").unwrap().lock().await.unwrap();
    let waiting = b.locker("orders").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    db.until(TICKETS, 1).await;
    let mut sql = db.sql().await;
    let of = |question: &'static str| question.replace("shop", "default");
    for (question, session) in [(holders, a.id()), (waiters, b.id())] {
        let found = sql.fetch_all(AssertSqlSafe(of(question))).await.unwrap();
        let found: Vec<i64> = found.iter().map(|row| row.get("session")).collect();
        let session: i64 = session.to_string().parse().unwrap();
        assert_eq!(found, [session], "{question}");
    }
    waiting.abort();
}
