//! The end of a namespace.

use tenure_core::Result;
use tenure_core::backend::namespace_root;

use crate::config::PostgresConfig;
use crate::step::step;
use crate::{endpoint, error};

/// All at once, and only what the namespace's own paths name. What hangs on a session goes with the session.
const REMOVE: &str = "WITH queues AS (DELETE FROM tenure.queues WHERE starts_with(path, $1 || '/') RETURNING id), \
     items AS (DELETE FROM tenure.queue_items WHERE queue IN (SELECT id FROM queues)), \
     dealt AS (DELETE FROM tenure.queue_dealt WHERE queue IN (SELECT id FROM queues)), \
     names AS (DELETE FROM tenure.queue_names WHERE queue IN (SELECT id FROM queues)), \
     elections AS (DELETE FROM tenure.elections WHERE starts_with(path, $1 || '/')), \
     barriers AS (DELETE FROM tenure.barriers WHERE starts_with(path, $1 || '/')), \
     rooms AS (DELETE FROM tenure.rooms WHERE starts_with(path, $1 || '/')), \
     data AS (DELETE FROM tenure.data WHERE starts_with(path, $1 || '/')) \
     DELETE FROM tenure.revisions WHERE root = $1";

/// Removes what is stored in the configured namespace: data, the items of queues, barriers that are held for good,
/// and what is remembered of elections. For a namespace that nobody uses any more, as that of a test: whoever still
/// does may find what it has gone. Sessions, and the locks that they hold, it leaves alone, and tokens rise on.
///
/// # Errors
///
/// As of [`connect`](crate::connect); `Config` where there is no schema; `Unauthorized` for a right that is missing.
/// Either all is removed or nothing.
///
/// # Cancel safety
///
/// When the future is dropped, all may be removed or nothing.
pub async fn remove_namespace(config: PostgresConfig) -> Result<()> {
    config.check_files()?;
    let mut connection = endpoint::connect(&config).await?.connection;
    let root = namespace_root(&config.namespace);
    let removed = step(REMOVE)
        .with(&root)
        .query
        .execute(&mut connection)
        .await;
    removed.map(drop).map_err(error::from_sqlx)
}
