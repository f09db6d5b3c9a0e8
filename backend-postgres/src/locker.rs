//! Locks.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::Result;
use tenure_core::backend::{Ask, Grant, Locker, Settle, Side};

use crate::interop;
use crate::session::PostgresSession;

/// The locks of a session on PostgreSQL: an advisory lock for each name, and a line before it.
#[derive(Debug)]
pub struct PostgresLocker {
    session: Arc<PostgresSession>,
}

impl PostgresLocker {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }

    fn check(&self, ask: &Ask) -> Result<()> {
        match self.session.client.config.interop {
            true => interop::check(ask.name().as_str()),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Settle for PostgresLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_line(ask, Side::Write).await
    }
}

#[async_trait]
impl Locker for PostgresLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.check(ask)?;
        self.session.try_line(ask, Side::Write, None).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        self.check(ask)?;
        self.session.stand_in_line(ask, Side::Write, None).await
    }
}
