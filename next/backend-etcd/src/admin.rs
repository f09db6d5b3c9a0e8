//! Work of operators: the end of a namespace.

use std::sync::Arc;

use etcd_client::{DeleteOptions, GetOptions, Txn, TxnOp};
use tenure_core::Result;
use tenure_core::executor::Executor;

use crate::config::EtcdConfig;
use crate::connection::{Connection, Repeat};
use crate::keys::{Keys, end_of};
use crate::txn::delete;

/// How many keys are listed at once. Each list makes the server visit all keys that are left, 0.2 us each.
const LISTED: usize = 10_000;

/// How many keys are deleted at once: other clients wait for so long.
const DELETED: usize = 500;

/// Removes all keys of the configured namespace, those of other layouts excepted. Sessions of the namespace end, and their clients
/// receive `Lost`. A raised token floor is removed too.
///
/// # Errors
///
/// Those of [`connect`](crate::connect); `Unauthorized` for a missing right. Some keys may be removed by then.
///
/// # Cancel safety
///
/// When the future is dropped, some keys may be removed.
pub async fn remove_namespace(config: EtcdConfig) -> Result<()> {
    let executor = config.executor.clone().map_or_else(Executor::library, Ok)?;
    let on = executor.clone();
    let removing = on.spawn(async move {
        let connection = Connection::open(&config, executor).await?;
        let keys = Keys::new(&config.namespace);
        // Without the version no session opens, and without its key no session writes.
        let first = Txn::new().and_then([delete(&keys.layout())]);
        connection.txn(Repeat::Yes, first).await?;
        for prefix in [keys.sessions(), keys.root().to_owned()] {
            remove(&connection, &prefix).await?;
        }
        Ok(())
    });
    removing.await.map_err(crate::error::runtime_ended)?
}

/// Removes the keys that begin with `prefix`.
async fn remove(connection: &Arc<Connection>, prefix: &str) -> Result<()> {
    let mut from = prefix.as_bytes().to_vec();
    loop {
        let options = GetOptions::new().with_keys_only().with_limit(LISTED as i64);
        let list = TxnOp::get(from.as_slice(), Some(options.with_range(end_of(prefix))));
        let mut answer = connection.txn(Repeat::Yes, Txn::new().and_then([list])).await?;
        let found = answer.range()?;
        for some in found.chunks(DELETED) {
            let (Some(first), Some(last)) = (some.first(), some.last()) else {
                continue;
            };
            // Just behind the last one.
            from = [last.key.as_slice(), &[0]].concat();
            let options = DeleteOptions::new().with_range(from.clone());
            let deletion = TxnOp::delete(first.key.as_slice(), Some(options));
            connection.txn(Repeat::Yes, Txn::new().and_then([deletion])).await?;
        }
        if found.len() < LISTED {
            return Ok(());
        }
    }
}
