//! Read-write locks of the embedded store: neighbouring readers at the front of a line hold
//! together, a writer alone (see `store.rs`).

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, RwLock, Settle, Side};
use tenure_core::{FencingToken, Result};

use crate::session::MemorySession;

/// The read-write locks of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryRwLock(Arc<MemorySession>);

impl MemoryRwLock {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self(session)
    }
}

#[async_trait]
impl RwLock for MemoryRwLock {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        self.0.try_line(ask, side, None).await
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        self.0.stand_in_line(ask, side, None).await
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, nonce, token) = (member.clone(), ask.nonce(), grant.token());
        let downgrading =
            link.round_trip(store, None, move |state| state.downgrade(&me, nonce, token));
        downgrading.await
    }

    async fn take_up(&self, ask: &Ask, token: FencingToken, side: Side) -> Result<Option<Grant>> {
        self.0.take_up_in_line(ask, token, side).await
    }
}

#[async_trait]
impl Settle for MemoryRwLock {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.0.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.0.withdraw_from_line(ask).await
    }
}
