//! The end of a namespace.

use sqlx::Connection;
use tenure_core::Result;
use tenure_core::backend::namespace_root;

use crate::client::within;
use crate::config::PostgresConfig;
use crate::step::{Step, step};
use crate::{endpoint, error, schema};

/// Replaces the timeout that the role may have set for itself.
const SET: &str = "SELECT pg_catalog.set_config('statement_timeout', $1, true)";

/// Whoever is about to put something into a queue has its row, and comes first; in the order of whoever locks several.
const LOCK: &str = "SELECT FROM tenure.queues WHERE pg_catalog.starts_with(path, $1 || '/') ORDER BY path FOR UPDATE";

/// Only what the namespace's own paths name. Other places in lines, and in double barriers, go with their sessions.
const REMOVE: &str = "WITH queues AS (DELETE FROM tenure.queues WHERE pg_catalog.starts_with(path, $1 || '/') RETURNING id), \
     items AS (DELETE FROM tenure.queue_items WHERE queue IN (SELECT id FROM queues)), \
     dealt AS (DELETE FROM tenure.queue_dealt WHERE queue IN (SELECT id FROM queues)), \
     names AS (DELETE FROM tenure.queue_names WHERE queue IN (SELECT id FROM queues)), \
     consumers AS (DELETE FROM tenure.queue_consumers WHERE queue IN (SELECT id FROM queues)), \
     waits AS (DELETE FROM tenure.queue_waits WHERE queue IN (SELECT id FROM queues)), \
     elections AS (DELETE FROM tenure.elections WHERE pg_catalog.starts_with(path, $1 || '/')), \
     barriers AS (DELETE FROM tenure.barriers WHERE pg_catalog.starts_with(path, $1 || '/')), \
     rooms AS (DELETE FROM tenure.rooms WHERE pg_catalog.starts_with(path, $1 || '/')), \
     data AS (DELETE FROM tenure.data WHERE pg_catalog.starts_with(path, $1 || '/')) \
     DELETE FROM tenure.revisions WHERE root = $1";

/// Removes what is stored in the configured namespace: data, queues with their items, barriers, and what is remembered
/// of elections. For a namespace that nobody uses any more, as that of a test.
///
/// Sessions are not ended, and keep their locks; but who leads, waits for an item or holds a barrier is not known as
/// such any more, and leads on in nobody's eyes. End such sessions first. Tokens rise on.
///
/// # Errors
///
/// As of [`connect`](crate::connect), and `Unauthorized` for a right that is missing. Either all is removed or nothing.
///
/// # Cancel safety
///
/// When the future is dropped, all may be removed or nothing.
pub async fn remove_namespace(config: PostgresConfig) -> Result<()> {
    config.check_files()?;
    let mut connection = endpoint::connect(&config).await?.connection;
    let limit = config.timeout;
    let millis = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
    let root = namespace_root(&config.namespace);
    within(limit, async {
        if !schema::is_there(&mut connection).await? {
            return Ok(());
        }
        let begin = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED");
        let mut all = begin.await.map_err(error::from_sqlx)?;
        let steps: [Step<'_>; 3] = [
            step(SET).with(millis.to_string()),
            step(LOCK).with(&root),
            step(REMOVE).with(&root),
        ];
        for step in steps {
            let done = step.query.execute(&mut *all).await;
            done.map_err(error::from_sqlx)?;
        }
        all.commit().await.map_err(error::from_sqlx)
    })
    .await
}
