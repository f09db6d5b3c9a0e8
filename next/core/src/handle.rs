//! The part that the handles of all primitives share.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::{Grant, Joined, Mode, Request, WaitQueue};
use crate::error::{Error, ErrorKind, Result};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::runtime::acquire::{Acquirable, Acquired, WaitLimit, acquire};
use crate::runtime::holding::OwnedGrant;
use crate::runtime::registry::Unclaimed;
use crate::runtime::session::SessionRef;
use crate::token::FencingToken;

/// A name in a session. A bad name is an error of the first call.
#[derive(Clone)]
pub(crate) struct Handle {
    session: SessionRef,
    kind: Kind,
    name: Result<Name, Arc<str>>,
}

impl Handle {
    pub(crate) fn new(session: &SessionRef, kind: Kind, name: impl AsRef<str>) -> Self {
        Self {
            session: Arc::clone(session),
            kind,
            name: Name::new(&name).map_err(|_| Arc::from(name.as_ref())),
        }
    }

    pub(crate) fn session(&self) -> &SessionRef {
        &self.session
    }

    /// Returns the name as it was given.
    pub(crate) fn text(&self) -> &str {
        match &self.name {
            Ok(name) => name.as_str(),
            Err(text) => text,
        }
    }

    /// Returns the name.
    ///
    /// # Errors
    ///
    /// `InvalidName`.
    pub(crate) fn name(&self, operation: &'static str) -> Result<Name> {
        match &self.name {
            Ok(name) => Ok(name.clone()),
            Err(text) => Name::new(text).map_err(|error| error.during(operation)),
        }
    }

    /// Acquires by the steps of `what`. `None` means that the store does not have the primitive: `Unsupported`.
    pub(crate) async fn acquire<A: Acquirable>(
        &self,
        operation: &'static str,
        what: Option<A>,
        limit: WaitLimit,
    ) -> Result<Option<Acquired<A::Granted>>> {
        let name = self.name(operation)?;
        let what = what.ok_or_else(|| self.unsupported(operation))?;
        acquire(&self.session, Arc::new(what), operation, self.kind, &name, limit).await
    }

    /// Acquires a place at the head of a wait queue.
    pub(crate) async fn join(
        &self,
        operation: &'static str,
        queue: Option<Arc<dyn WaitQueue>>,
        mode: Mode,
        value: Option<Arc<[u8]>>,
        limit: WaitLimit,
    ) -> Result<Option<Holding>> {
        let what = queue.map(|queue| QueuePlace { queue, mode, value });
        let acquired = self.acquire(operation, what, limit).await?;
        Ok(acquired
            .and_then(|acquired| acquired.holdings.into_iter().next())
            .map(Holding::new))
    }

    /// Acquires a place at the head of a wait queue, for at most `limit`.
    pub(crate) async fn join_and_wait(
        &self,
        operation: &'static str,
        queue: Option<Arc<dyn WaitQueue>>,
        mode: Mode,
        value: Option<Arc<[u8]>>,
        limit: Option<Duration>,
    ) -> Result<Holding> {
        let limit = limit.map_or(WaitLimit::Forever, WaitLimit::Within);
        let acquired = self.join(operation, queue, mode, value, limit).await?;
        acquired.ok_or_else(|| busy(operation, self.text()))
    }

    /// Takes what the session held before it was detached and resumed.
    pub(crate) fn reclaim(&self, operation: &'static str, mode: Mode, token: FencingToken) -> Result<Holding> {
        let (kind, name) = (self.kind, self.name(operation)?);
        let unclaimed = Unclaimed {
            kind,
            name,
            mode,
            token,
        };
        OwnedGrant::reclaim(&self.session, operation, &unclaimed).map(Holding::new)
    }

    pub(crate) fn unsupported(&self, operation: &'static str) -> Error {
        Error::unsupported(self.kind.as_str()).during(operation).on(self.text())
    }
}

/// Returns the error for a backend that answers `Busy` to a request that waits.
pub(crate) fn busy(operation: &'static str, name: &str) -> Error {
    let message = "the backend did not queue a request that waits: please report it";
    Error::new(ErrorKind::Internal, message).during(operation).on(name)
}

/// A place in a wait queue.
struct QueuePlace {
    queue: Arc<dyn WaitQueue>,
    mode: Mode,
    value: Option<Arc<[u8]>>,
}

#[async_trait]
impl Acquirable for QueuePlace {
    type Granted = Grant;

    fn grants(granted: &Grant) -> Vec<Grant> {
        vec![granted.clone()]
    }

    async fn join(&self, request: &Request, wait: bool) -> Result<Joined<Grant>> {
        self.queue.join(request, self.mode, self.value.as_deref(), wait).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.queue.wait(request).await
    }
}
