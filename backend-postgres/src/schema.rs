//! The schema `tenure`: applied on first use, or handed out as SQL.

use sqlx::{Connection, Executor, PgConnection};
use tenure_core::Result;

use crate::error;
use crate::step::{Rows, step};

/// The version of the layout that this crate speaks.
pub const LAYOUT: i32 = 1;

/// The parts of version 1, in order.
const VERSION_1: &[&str] = &[
    include_str!("../migrations/1/00_base.sql"),
    include_str!("../migrations/1/10_line.sql"),
    include_str!("../migrations/1/20_election.sql"),
    include_str!("../migrations/1/30_rw_lock.sql"),
    include_str!("../migrations/1/40_queue.sql"),
    include_str!("../migrations/1/50_barrier.sql"),
    include_str!("../migrations/1/60_stm.sql"),
    include_str!("../migrations/1/90_sweep.sql"),
];

/// The schema as SQL, for those whose application may not create it: apply it once in the database, as
/// any role that may (`psql -1 -f`), and give the application's role what [`grants`] says.
pub fn migration() -> String {
    VERSION_1.concat()
}

/// What a role needs that owns nothing, as SQL.
///
/// ```
/// assert!(tenure_postgres::grants("app").contains("TO \"app\""));
/// ```
pub fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "GRANT USAGE ON SCHEMA tenure TO {role};\n\
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA tenure TO {role};\n\
         REVOKE INSERT, UPDATE, DELETE ON tenure.layout FROM {role};\n\
         GRANT SELECT, USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA tenure TO {role};\n\
         GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tenure TO {role};\n"
    )
}

/// The version of the schema there, and the oldest client that it serves.
async fn version(connection: &mut PgConnection) -> Result<Option<(i32, i32)>> {
    // Not by asking for the table: a role that lacks a right is to hear of it.
    let there = step(
        "SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid WHERE n.nspname = 'tenure' AND c.relname = 'layout') AS there",
    );
    let there = fetch(connection, there).await?;
    if !there.first()?.get::<bool>("there")? {
        return Ok(None);
    }
    let layout = step("SELECT version, oldest FROM tenure.layout");
    let layout = fetch(connection, layout).await?;
    let layout = layout.first()?;
    Ok(Some((layout.get("version")?, layout.get("oldest")?)))
}

async fn fetch(connection: &mut PgConnection, step: crate::step::Step<'_>) -> Result<Rows> {
    let sql = step.sql;
    let rows = step.query.fetch_all(connection).await;
    rows.map(|rows| Rows { sql, rows })
        .map_err(error::from_sqlx)
}

fn check((version, oldest): (i32, i32)) -> Result<()> {
    if (oldest..=version).contains(&LAYOUT) {
        return Ok(());
    }
    Err(error::config(format!(
        "the schema `tenure` has layout version {version}, which serves clients from version {oldest} on, and this one speaks {LAYOUT}: {}",
        if version < LAYOUT {
            "apply the newer migration"
        } else {
            "use a newer tenure"
        }
    )))
}

/// Whether there is one, in a version that we speak.
pub(crate) async fn is_there(connection: &mut PgConnection) -> Result<bool> {
    match version(connection).await? {
        Some(found) => check(found).map(|()| true),
        None => Ok(false),
    }
}

/// Sees to it that the schema is there, in a version that we speak.
pub(crate) async fn prepare(connection: &mut PgConnection) -> Result<()> {
    if let Some(found) = version(connection).await? {
        return check(found);
    }
    // Not as the database has it by default: whoever waited for another's lock has to see what that one made.
    let begin = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED");
    let mut transaction = begin.await.map_err(error::from_sqlx)?;
    transaction
        .execute("SELECT pg_advisory_xact_lock(hashtextextended('tenure/1/schema', 0))")
        .await
        .map_err(error::from_sqlx)?;
    // Another was faster?
    if let Some(found) = version(&mut transaction).await? {
        return check(found);
    }
    for part in VERSION_1 {
        transaction
            .execute(sqlx::raw_sql(*part))
            .await
            .map_err(|error| error::no_schema(error::from_sqlx(error)))?;
    }
    transaction.commit().await.map_err(error::from_sqlx)?;
    tracing::info!(version = LAYOUT, "created the schema `tenure`");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_rights_are_the_ones() {
        let documented = include_str!("../../docs/postgres.md");
        for right in grants("app").lines() {
            assert!(
                documented.contains(&format!("    {right}\n")),
                "docs must show: {right}"
            );
        }
    }
}
