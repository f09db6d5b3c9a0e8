//! A store, as an application sees it.

use std::fmt;
use std::sync::Arc;

use crate::backend::Backend;
use crate::clock::Clock;
use crate::error::Result;
use crate::guarantees::Guarantees;
use crate::options::{SessionId, SessionOptions};
use crate::runtime::in_flight::{InFlight, caught};
use crate::runtime::open::Opening;
use crate::runtime::unfinished::StoreRef;
use crate::session::{OwnedSession, Session};
use crate::token::FencingToken;

/// A connection to a store. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    backend: Arc<dyn Backend>,
    store_ref: Arc<StoreRef>,
}

impl Store {
    /// Wraps a backend.
    pub fn new(backend: impl Backend) -> Self {
        Self {
            backend: Arc::new(backend),
            store_ref: Arc::new(StoreRef::new()),
        }
    }

    /// Opens a session, whose lease is renewed in the background.
    ///
    /// # Errors
    ///
    /// `Config` if the store cannot grant the TTL; `Unavailable` and `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a session that opens meanwhile is closed in the background.
    pub async fn open(&self, options: SessionOptions) -> Result<Session> {
        let ttl = options.requested_ttl().unwrap_or_else(|| self.backend.default_ttl());
        let label = options.checked_label().map_err(|error| error.during("open"))?;
        self.opening().open(ttl, label.into()).await.map(Session::new)
    }

    /// Continues a session that was detached by [`Session::detach`] (rule S4). Reclaim its holdings by their tokens; close
    /// the session to free the rest.
    ///
    /// # Errors
    ///
    /// `Conflict` if it was resumed already, `Lost` if it has expired, `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a session that resumes meanwhile is closed in the background.
    pub async fn resume(&self, id: &SessionId) -> Result<Session> {
        self.opening().resume(id.clone()).await.map(Session::new)
    }

    pub(crate) fn clock(&self) -> Clock {
        self.backend.clock()
    }

    fn opening(&self) -> Opening {
        Opening {
            backend: Arc::clone(&self.backend),
            store_ref: Arc::clone(&self.store_ref),
        }
    }

    /// Opens a session, passes it to `work`, and closes it on every path. The outcome is that of the work; a close that the
    /// store did not confirm is left to the TTL.
    ///
    /// ```
    /// # async fn example(store: tenure_core::Store) -> tenure_core::Result<()> {
    /// use tenure_core::SessionOptions;
    /// store.with_session(SessionOptions::new(), async |session| {
    ///     let _guard = session.lock("orders").await?;
    ///     Ok(())
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`open`](Self::open), and those of `work`.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`; the session is closed in the background.
    pub async fn with_session<T>(
        &self,
        options: SessionOptions,
        work: impl AsyncFnOnce(Session) -> Result<T>,
    ) -> Result<T> {
        let session = OwnedSession(self.open(options).await?);
        let outcome = work(session.0.clone()).await;
        session.close().await;
        outcome
    }

    /// Reads the guarantees of the live deployment.
    ///
    /// # Errors
    ///
    /// `Unavailable` and `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn guarantees(&self) -> Result<Guarantees> {
        let backend = Arc::clone(&self.backend);
        self.call("guarantees", async move { backend.guarantees().await }).await
    }

    /// Makes every later fencing token of the namespace at least `floor` (rule O4), after a restore from a backup.
    ///
    /// # Errors
    ///
    /// `Unsupported`; `Unavailable` and `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let backend = Arc::clone(&self.backend);
        let raising = async move { backend.raise_token_floor(floor).await };
        self.call("raise_token_floor", raising).await
    }

    async fn call<T: Send + 'static>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let calling = async { InFlight::new(&self.backend.executor()?, caught(work)).await };
        calling.await.map_err(|error| error.during(operation))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}
