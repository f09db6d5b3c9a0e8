//! What every primitive that can be held has in common: how it takes back what an ask got.

use std::sync::Arc;

use async_trait::async_trait;

use crate::ask::{Ask, Grant};
use crate::{Error, FencingToken, Result};

/// How a backend's primitive takes back what an [`Ask`] got, or may still get. The supertrait of
/// everything that can be held: locks, elections, read-write locks, queues, barriers.
///
/// # To ensure correctness
///
/// - `release` and `withdraw` are idempotent under [`Ask::nonce`]: core repeats each until one
///   succeeds.
/// - A request of an ask that reaches the store after its `withdraw` or `release` has succeeded
///   must have no effect (rule L5).
#[async_trait]
pub trait Settle: Send + Sync + 'static {
    /// Gives a grant back, fenced by the grant.
    ///
    /// What "back" means is the primitive's: a lock is freed, a leadership resigned, an item of a
    /// queue returns to its place, a participant leaves its barrier without waiting.
    ///
    /// # Errors
    ///
    /// `Lost` if the grant was not in force any more; nothing has changed then.
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()>;

    /// Removes whatever `ask` left in the store: a place in line, a grant that nobody took, and
    /// a request that is still on its way.
    async fn withdraw(&self, ask: &Ask) -> Result<()>;

    /// Finds again what this session, resumed after a restart, holds under `token`.
    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let _ = (ask, token);
        Err(Error::unsupported("taking up what a resumed session holds"))
    }
}

/// A primitive of any type, as the `dyn Settle` that core keeps beside it.
pub(crate) struct Erased<P: ?Sized>(pub(crate) Arc<P>);

#[async_trait]
impl<P: Settle + ?Sized> Settle for Erased<P> {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.0.release(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.0.withdraw(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        self.0.reclaim(ask, token).await
    }
}
