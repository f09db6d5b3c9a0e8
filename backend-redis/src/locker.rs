//! Locks.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Locker, Settle, Side};
use tenure_core::{FencingToken, Result};

use crate::config::Topology;
use crate::layout::check_verbatim;
use crate::scripts::{self, Script};
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

    /// The scripts that take and give back. In interop mode there is more to do than the short ways do.
    fn steps(&self) -> (&'static Script, &'static Script) {
        match self.session.client.config.interop {
            true => (&scripts::JOIN, &scripts::LEAVE),
            false => (&scripts::LOCK, &scripts::UNLOCK),
        }
    }

    /// In interop mode not every name will do.
    fn check(&self, ask: &Ask) -> Result<()> {
        let (session, config) = (&self.session, &self.session.client.config);
        let cluster = matches!(config.topology, Topology::Cluster);
        match config.interop {
            true => check_verbatim(ask.name(), &session.root, cluster),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Settle for RedisLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let (_, leave) = self.steps();
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
        self.check(ask)?;
        let (join, _) = self.steps();
        self.session.try_line(ask, join, Side::Write, &[]).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        self.check(ask)?;
        let (join, _) = self.steps();
        self.session
            .stand_in_line(ask, join, Side::Write, &[])
            .await
    }
}
