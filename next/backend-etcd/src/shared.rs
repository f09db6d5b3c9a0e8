//! The parts of a store that its sessions share.

use std::sync::Arc;

use etcd_client::Txn;
use tenure_core::executor::Executor;
use tenure_core::{Error, Result};

use crate::config::{EtcdConfig, refuse};
use crate::connection::{Connection, Repeat, Watches};
use crate::keys::{Keys, LAYOUT};
use crate::txn::{get, is_absent, put};

/// The parts of a store that its sessions share.
pub(crate) struct Shared {
    pub(crate) connection: Arc<Connection>,
    pub(crate) watches: Watches,
    pub(crate) keys: Keys,
}

impl Shared {
    pub(crate) async fn connect(config: &EtcdConfig, executor: Executor) -> Result<Self> {
        let connection = Connection::open(config, executor).await?;
        let keys = Keys::new(&config.namespace);
        claim(&connection, &keys).await?;
        Ok(Self {
            watches: Watches::new(Arc::clone(&connection)),
            connection,
            keys,
        })
    }
}

/// Claims the namespace for this layout, or finds that another one has it (rule H2).
async fn claim(connection: &Arc<Connection>, keys: &Keys) -> Result<()> {
    let layout = keys.layout();
    let txn = Txn::new()
        .when([is_absent(&layout), is_absent(keys.layout_1())])
        .and_then([put(&layout, LAYOUT, 0)])
        .or_else([get(&layout), get(keys.layout_1())]);
    let mut answer = connection.txn(Repeat::Yes, txn).await?;
    if answer.succeeded {
        return Ok(());
    }
    let (found, layout_1) = (answer.key()?, answer.key()?);
    match found.or(layout_1) {
        Some(found) if found.value != LAYOUT.as_bytes() => Err(other_layout(&found.value)),
        _ => Ok(()),
    }
}

/// Returns the error of a namespace that is written in another layout.
pub(crate) fn other_layout(found: &[u8]) -> Error {
    let found = String::from_utf8_lossy(found);
    refuse(format!(
        "the namespace is written in layout {found}, and this version of tenure writes layout {LAYOUT}: use a version that knows \
         it, or another namespace"
    ))
}
