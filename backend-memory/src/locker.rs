//! Locks of the embedded store: the first place in a lock's line holds it (see `store.rs`).

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Locker, Settle, Side};
use tenure_core::{FencingToken, Result};

use crate::session::MemorySession;

/// The locks of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryLocker(Arc<MemorySession>);

impl MemoryLocker {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self(session)
    }
}

#[async_trait]
impl Locker for MemoryLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.0.try_line(ask, Side::Write, None).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        self.0.stand_in_line(ask, Side::Write, None).await
    }
}

#[async_trait]
impl Settle for MemoryLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.0.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.0.withdraw_from_line(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        self.0.take_up_in_line(ask, token, Side::Write).await
    }
}
