//! Reads outside commits.

use std::sync::Arc;

use futures_util::FutureExt;

use crate::backend::{Key, KeyRead, Snapshot, Stm};
use crate::error::{Error, Result};
use crate::query::{long_poll, query};
use crate::runtime::session::SessionRef;

/// Reads keys, and repeats a read until the store answers or the session ends.
#[derive(Clone)]
pub(crate) struct Reader {
    session: SessionRef,
    pub(super) stm: Arc<dyn Stm>,
}

impl Reader {
    pub(crate) fn new(session: &SessionRef) -> Result<Self> {
        Ok(Self {
            stm: backend(session)?,
            session: Arc::clone(session),
        })
    }

    pub(crate) async fn read(&self, keys: Vec<KeyRead>, at: Option<u64>) -> Result<Snapshot> {
        let keys: Arc<[KeyRead]> = keys.into();
        let stm = Arc::clone(&self.stm);
        let attempt = move || {
            let (stm, keys) = (Arc::clone(&stm), Arc::clone(&keys));
            async move { stm.read(&keys, at).await }.boxed()
        };
        query(&self.session, "read", None, attempt).await
    }

    /// Waits until `key` may have changed after `revision`, for as long as one step of the store can.
    pub(crate) async fn changed(&self, key: Key, revision: u64) -> Result<()> {
        let attempt = || {
            let (stm, key) = (Arc::clone(&self.stm), key.clone());
            async move { stm.changed(&[key], revision).await }.boxed()
        };
        long_poll(&self.session, "wait", None, attempt).await
    }
}

pub(super) fn backend(session: &SessionRef) -> Result<Arc<dyn Stm>> {
    let stm = Arc::clone(session.backend()).stm();
    stm.ok_or_else(|| Error::unsupported("transactional memory"))
}
