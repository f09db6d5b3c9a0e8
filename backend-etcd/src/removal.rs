//! The end of a namespace.

use etcd_client::{DeleteOptions, GetOptions};
use tenure_core::Result;
use tenure_core::backend::namespace_root;

use crate::client::Wire;
use crate::config::EtcdConfig;
use crate::session::explain_first_contact;

/// Keys that are listed, and deleted by one request. What others ask etcd for waits no longer than such a request.
const PAGE: i64 = 500;

/// Removes all keys of the configured namespace: data, items of queues, and everything that is held or waited for. For
/// a namespace that nobody uses any more, such as that of a test: active sessions lose what they hold there and receive
/// `Lost`. Names that are shared with others ([interop](EtcdConfig::interop)) are in no namespace, and stay.
///
/// Costs two requests for each 500 keys.
///
/// # Errors
///
/// As of [`connect`](crate::connect); `Unauthorized` for a user who may not write there. A part may be removed then:
/// repeat it.
///
/// # Cancel safety
///
/// When the future is dropped, a part may be removed; repeating it is safe.
pub async fn remove_namespace(config: EtcdConfig) -> Result<()> {
    let wire = Wire::connect(&config).await;
    let wire = wire.map_err(|error| explain_first_contact(error, &config))?;
    let prefix = namespace_root(&config.namespace) + "/";
    loop {
        let listed = wire.call_repeatable(|client| {
            let (mut kv, prefix) = (client.kv_client(), prefix.clone());
            let page = GetOptions::new()
                .with_prefix()
                .with_keys_only()
                .with_limit(PAGE);
            async move { kv.get(prefix, Some(page)).await }
        });
        let listed = listed.await?;
        let Some(last) = listed.kvs().last() else {
            return Ok(());
        };
        // Up to the last key, and with it.
        let mut end = last.key().to_vec();
        end.push(0);
        let removed = wire.call_repeatable(|client| {
            let (mut kv, prefix, end) = (client.kv_client(), prefix.clone(), end.clone());
            let page = DeleteOptions::new().with_range(end);
            async move { kv.delete(prefix, Some(page)).await }
        });
        removed.await?;
    }
}
