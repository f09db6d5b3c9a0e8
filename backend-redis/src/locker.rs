//! Locks.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Locker, Settle, Side};
use tenure_core::{FencingToken, Result};

use crate::scripts;
use crate::session::RedisSession;

/// The locks of a session on Redis: a line for each name.
#[derive(Debug)]
pub struct RedisLocker {
    session: Arc<RedisSession>,
}

impl RedisLocker {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }
}

#[async_trait]
impl Settle for RedisLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let leave = &scripts::UNLOCK;
        self.session.leave_line(ask, leave, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_store(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        self.session.take_up_in_line(ask, token, Side::Write).await
    }
}

#[async_trait]
impl Locker for RedisLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        let join = &scripts::LOCK;
        self.session.try_line(ask, join, Side::Write, &[]).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        let join = &scripts::LOCK;
        self.session
            .stand_in_line(ask, join, Side::Write, &[])
            .await
    }
}
