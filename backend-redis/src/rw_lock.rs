//! Read-write locks: a line in which neighbouring readers hold together.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, RwLock, Settle, Side};
use tenure_core::{Error, FencingToken, LossReason, Result};

use crate::layout::path_of;
use crate::scripts;
use crate::session::RedisSession;

/// The read-write locks of a session on Redis.
#[derive(Debug)]
pub struct RedisRwLock {
    session: Arc<RedisSession>,
}

impl RedisRwLock {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }
}

#[async_trait]
impl Settle for RedisRwLock {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let leave = &scripts::LEAVE;
        self.session.leave_line(ask, leave, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_store(ask).await
    }
}

#[async_trait]
impl RwLock for RedisRwLock {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        self.session.try_line(ask, &scripts::JOIN, side, &[]).await
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        let join = &scripts::JOIN;
        self.session.stand_in_line(ask, join, side, &[]).await
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let path = path_of(ask);
        let arguments = [(&path).into(), grant.token().into()];
        let session = &self.session;
        let downgraded = session
            .step(&scripts::DOWNGRADE, ask.nonce(), &arguments)
            .await?;
        match downgraded.status() {
            "ok" => Ok(()),
            "gone" => Err(Error::lost(LossReason::Revoked)),
            _ => Err(downgraded.unexpected()),
        }
    }

    async fn take_up(&self, ask: &Ask, token: FencingToken, side: Side) -> Result<Option<Grant>> {
        self.session.take_up_in_line(ask, token, side).await
    }
}
