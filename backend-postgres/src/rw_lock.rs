//! Read-write locks: a line in which readers share the advisory lock.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, RwLock, Settle, Side};
use tenure_core::{Error, LossReason, Result};

use crate::main_connection::MainGuard;
use crate::session::PostgresSession;
use crate::step::step;

/// The read-write locks of a session on PostgreSQL: an advisory lock for each name, shared or not.
#[derive(Debug)]
pub struct PostgresRwLock {
    session: Arc<PostgresSession>,
}

impl PostgresRwLock {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }
}

impl PostgresSession {
    /// Makes the writer that `nonce` is a reader in its place. Again is once.
    pub(crate) async fn turn(&self, main: &mut MainGuard<'_>, nonce: u64) -> Result<()> {
        let Some((key, holder)) = main.own().of(nonce) else {
            return Ok(());
        };
        if holder.shared && !holder.turning {
            return Ok(());
        }
        let again = std::mem::replace(&mut holder.turning, true);
        let turn = step("SELECT tenure.rw_lock_downgrade($1, $2, $3) AS ours")
            .with(&self.client.channel)
            .with(key)
            .with(again);
        let turned = main.call(turn).await?;
        let ours: Option<Vec<i64>> = turned.first()?.get("ours")?;
        if ours.is_none() {
            main.own().leave(nonce);
            return Err(Error::lost(LossReason::Revoked));
        }
        if let Some((_, holder)) = main.own().of(nonce) {
            holder.shared = true;
            holder.turning = false;
        }
        self.tell_ours(ours);
        Ok(())
    }
}

#[async_trait]
impl Settle for PostgresRwLock {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        // The side does not matter to a withdrawal.
        self.session.withdraw_from_line(ask, Side::Write).await
    }
}

#[async_trait]
impl RwLock for PostgresRwLock {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        self.session.try_line(ask, side, None).await
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        self.session.stand_in_line(ask, side, None).await
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let mut main = self.session.main().await;
        if main.own().held(ask.nonce(), grant.token()).is_none() {
            return Err(Error::lost(LossReason::Revoked));
        }
        self.session.turn(&mut main, ask.nonce()).await
    }
}
