//! Read-write locks: one line of readers and writers, in the order of their create revisions.
//!
//! A reader waits for the writers before it, a writer for everybody, as in Go's recipe
//! `recipes.RWMutex`. The side is in the value, so that a downgrade is a put that keeps the create
//! revision, hence token and place. With `interop` the keys are the recipe's, `<name>/read/...` and
//! `<name>/write/...`.

use std::sync::Arc;

use tenure_core::backend::{Ask, Grant, RwLock, Settle, Side, async_trait};
use tenure_core::{Error, FencingToken, Result};

use crate::floor::revision;
use crate::session::EtcdSession;

/// The read-write locks of one session.
pub struct EtcdRwLock {
    pub(crate) session: Arc<EtcdSession>,
}

impl EtcdRwLock {
    /// Go's waiters go by the modification revision: whatever is written once more moves behind
    /// them, and they would come in.
    fn rewriting(&self, what: &str) -> Result<()> {
        if self.session.shared.interop {
            return Err(Error::unsupported(format!(
                "{what} in the layout of Go's recipe, whose waiters would not see a key that is written once more,"
            )));
        }
        Ok(())
    }
}

#[async_trait]
impl RwLock for EtcdRwLock {
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        self.session.try_line(ask, side).await
    }

    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant> {
        self.session.stand_in_line(ask, side).await
    }

    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.rewriting("downgrading")?;
        let token = revision(grant.token());
        self.session.tickets.downgrade(ask, token).await
    }

    async fn take_up(&self, ask: &Ask, token: FencingToken, side: Side) -> Result<Option<Grant>> {
        self.rewriting("taking up what a resumed session holds")?;
        self.session.take_up_in_line(ask, token, side).await
    }
}

#[async_trait]
impl Settle for EtcdRwLock {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_line(ask).await
    }
}
