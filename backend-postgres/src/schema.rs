//! The schema `tenure`: applied on first use, or handed out as SQL.

use std::fmt::Write as _;

use sqlx::{Connection, Executor, PgConnection};
use tenure_core::Result;

use crate::error;
use crate::step::{Rows, step};

/// The version of the layout that this crate speaks: that of the newest tables and functions.
pub const LAYOUT: i32 = 2;

/// The version of the oldest client that a schema of version [`LAYOUT`] serves.
const OLDEST: i32 = 1;

/// Tables, and changes of tables, with the version that brings them.
const TABLES: &[(i32, &str)] = &[(1, include_str!("../migrations/tables/1.sql"))];

/// The functions, in order. A newer version replaces those of an older one.
const FUNCTIONS: &[&str] = &[
    include_str!("../migrations/functions/00_base.sql"),
    include_str!("../migrations/functions/10_line.sql"),
    include_str!("../migrations/functions/20_election.sql"),
    include_str!("../migrations/functions/30_rw_lock.sql"),
    include_str!("../migrations/functions/40_queue.sql"),
    include_str!("../migrations/functions/50_barrier.sql"),
    include_str!("../migrations/functions/60_stm.sql"),
    include_str!("../migrations/functions/80_lock_table.sql"),
    include_str!("../migrations/functions/90_sweep.sql"),
];

/// The schema as SQL, for those whose application may not create it: apply it in the database, as
/// any role that may (`psql -1 -f`), and give the application's role what [`grants`] says. The same text
/// creates the schema and upgrades one of an older version.
pub fn migration() -> String {
    // Names are looked up in `pg_catalog` alone, for the applying role is often a superuser. The setting is
    // restored at the end, because the same session may apply other migrations next.
    let mut sql = String::from(
        "SELECT pg_catalog.set_config('tenure.outer_search_path', pg_catalog.current_setting('search_path'), false);\n\
         SET search_path = pg_catalog, pg_temp;\n",
    );
    for (version, tables) in TABLES {
        let missing = match version {
            1 => "to_regclass('tenure.layout') IS NULL".to_owned(),
            newer => format!("(SELECT l.version FROM tenure.layout AS l) < {newer}"),
        };
        let _ = write!(
            sql,
            "DO $tables$ BEGIN\nIF {missing} THEN\n{tables}END IF;\nEND $tables$;\n\n"
        );
    }
    let _ = write!(
        sql,
        "DO $version$ BEGIN\n\
         IF (SELECT l.version FROM tenure.layout AS l) > {LAYOUT} THEN\n\
         RAISE EXCEPTION 'the schema tenure is newer than this migration, which is of version {LAYOUT}';\n\
         END IF;\n\
         UPDATE tenure.layout SET version = {LAYOUT}, oldest = {OLDEST};\n\
         END $version$;\n\n"
    );
    sql.extend(FUNCTIONS.iter().copied());
    sql.push_str(
        "\nSELECT pg_catalog.set_config('search_path', pg_catalog.current_setting('tenure.outer_search_path'), false);\n",
    );
    sql
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
    let there = step("SELECT pg_catalog.to_regclass('tenure.layout') IS NOT NULL AS there");
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

/// Whether our own migration brings the schema to the version that we speak.
fn is_older((version, _): (i32, i32)) -> bool {
    version < LAYOUT
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

/// Whether there is one, in a version that we speak, perhaps since now.
pub(crate) async fn is_there(connection: &mut PgConnection) -> Result<bool> {
    match version(connection).await? {
        Some(_) => prepare(connection).await.map(|()| true),
        None => Ok(false),
    }
}

/// Creates the schema, or upgrades one of an older version. Refuses one that does not serve this client.
pub(crate) async fn prepare(connection: &mut PgConnection) -> Result<()> {
    let found = version(connection).await?;
    if let Some(found) = found.filter(|found| !is_older(*found)) {
        return check(found);
    }
    // Not as the database has it by default: whoever waited for another's lock has to see what that one made.
    let begin = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED");
    let mut transaction = begin.await.map_err(error::from_sqlx)?;
    transaction
        .execute("SELECT pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended('tenure/1/schema', 0::bigint))")
        .await
        .map_err(error::from_sqlx)?;
    // Another client may have applied it meanwhile.
    let found = version(&mut transaction).await?;
    if let Some(found) = found.filter(|found| !is_older(*found)) {
        return check(found);
    }
    transaction
        .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(migration())))
        .await
        .map_err(|error| {
            let error = error::from_sqlx(error);
            match found {
                Some((version, _)) => error::old_schema(version, error),
                None => error::no_schema(error),
            }
        })?;
    transaction.commit().await.map_err(error::from_sqlx)?;
    tracing::info!(version = LAYOUT, "created or upgraded the schema `tenure`");
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
