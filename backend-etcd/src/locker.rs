//! Locks, as in Go's `concurrency.Mutex`: the lowest create revision under the prefix holds, and
//! is the token.

use std::sync::Arc;

use tenure_core::backend::{Ask, Grant, Locker, Settle, Side, async_trait};
use tenure_core::{FencingToken, Result};

use crate::session::EtcdSession;

/// The locks of one session.
pub struct EtcdLocker {
    pub(crate) session: Arc<EtcdSession>,
}

#[async_trait]
impl Locker for EtcdLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.session.try_line(ask, Side::Write).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        self.session.stand_in_line(ask, Side::Write).await
    }
}

#[async_trait]
impl Settle for EtcdLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_line(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let taking_up = self.session.take_up_in_line(ask, token, Side::Write);
        taking_up.await
    }
}
