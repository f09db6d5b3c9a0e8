//! The end of a namespace.

use etcd_client::DeleteOptions;
use tenure_core::Result;
use tenure_core::backend::namespace_root;

use crate::client::Wire;
use crate::config::EtcdConfig;
use crate::session::explain_first_contact;

/// Removes all keys of the configured namespace: data, items of queues, and everything that is held or waited for. For
/// a namespace that nobody uses any more, as that of a test: whoever still does loses what it has there, and is told
/// so. Names that are shared with others ([interop](EtcdConfig::interop)) are in no namespace, and stay.
///
/// # Errors
///
/// As of [`connect`](crate::connect); `Unauthorized` for a user who may not write there. Either all is removed or
/// nothing.
///
/// # Cancel safety
///
/// When the future is dropped, all may be removed or nothing.
pub async fn remove_namespace(config: EtcdConfig) -> Result<()> {
    let wire = Wire::connect(&config).await;
    let wire = wire.map_err(|error| explain_first_contact(error, &config))?;
    let prefix = namespace_root(&config.namespace) + "/";
    let removed = wire.call_repeatable(|client| {
        let (mut kv, prefix) = (client.kv_client(), prefix.clone());
        async move {
            let all = DeleteOptions::new().with_prefix();
            kv.delete(prefix, Some(all)).await
        }
    });
    removed.await.map(drop)
}
