//! Sessions: one participant's lease on a store, kept alive in the background.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{ErrorKind, LossReason, Result};
use crate::options::SessionId;
use crate::runtime::session::SessionRef;

/// One participant's lease on a store, renewed in the background. Everything that it holds or waits for ends with it. Cheap
/// to clone.
///
/// The drop of the last clone, handle and guard closes the session in the background. [`close`](Self::close) also reports
/// whether the store confirmed it.
#[derive(Clone)]
pub struct Session(SessionRef);

impl Session {
    pub(crate) const fn new(state: SessionRef) -> Self {
        Self(state)
    }

    pub(crate) const fn state(&self) -> &SessionRef {
        &self.0
    }

    /// Returns the session's id in the store.
    pub fn id(&self) -> &SessionId {
        self.0.id()
    }

    /// Returns the TTL that the store granted.
    pub fn ttl(&self) -> Duration {
        self.0.ttl()
    }

    /// Returns whether the lease is certainly alive, by the local clock (rule S2).
    pub fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// Returns how long the lease is certain to live without a further renewal; zero once the session has ended.
    pub fn remaining(&self) -> Duration {
        self.0.validity().unwrap_or_default()
    }

    /// Returns why the session ended, or `None` while it is valid.
    pub fn loss(&self) -> Option<LossReason> {
        self.0.validity().err()
    }

    /// Waits until the session ends, at the latest until its deadline, even without a network. The future borrows nothing and
    /// does not keep the session open.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        self.0.lost()
    }

    /// Closes the session, which frees all of its holdings at once: waits for the releases under way, and revokes the lease.
    /// Guards and waits of the session are lost with [`LossReason::Closed`].
    ///
    /// # Errors
    ///
    /// `Lost` if the session had ended before for another reason; `Unavailable` if the store did not confirm, so that the TTL
    /// ends the lease. A session that was closed before is no error.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn close(&self) -> Result<()> {
        self.0.close().await
    }

    /// Detaches the session, so that [`Store::resume`](crate::Store::resume) can continue it in another process within its TTL
    /// (rule S4). Locks, read-write locks and leaderships are kept; deliveries return to their queues, and other waits end.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the store cannot keep a session, which is then closed; `Lost` if it had ended before; `Unavailable` if
    /// the store did not confirm.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn detach(&self) -> Result<SessionId> {
        self.0.detach().await?;
        Ok(self.id().clone())
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", self.id())
            .field("ttl", &self.ttl())
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

/// Identity: two values are equal if they are the same session.
impl PartialEq for Session {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Session {}

/// A session of an owner that closes it on every path, although clones of it live on.
pub(crate) struct OwnedSession(pub(crate) Session);

impl OwnedSession {
    /// Closes the session; its TTL ends it if that fails.
    pub(crate) async fn close(self) {
        let session = &self.0;
        if let Err(error) = session.close().await
            && error.kind() != ErrorKind::Lost
        {
            tracing::warn!(session = %session.id(), error = %error.chain(), "the session was not closed; its TTL ends it");
        }
    }
}

impl Drop for OwnedSession {
    fn drop(&mut self) {
        self.0.state().lose(LossReason::Closed);
    }
}
