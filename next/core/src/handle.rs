//! The part that the handles of all primitives share.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;

use crate::backend::{Grant, Joined, Marker, Mode, Request, WaitQueue};
use crate::error::{Error, ErrorKind, Result};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::query::query;
use crate::runtime::acquire::{Acquirable, Acquired, WaitLimit, acquire};
use crate::runtime::owned_grant::OwnedGrant;
use crate::runtime::registry::Unclaimed;
use crate::runtime::session::SessionRef;
use crate::runtime::step::step;
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

    /// Acquires a place at the head of the wait queue if it is free.
    pub(crate) async fn try_acquire_place(
        &self,
        operation: &'static str,
        mode: Mode,
        value: Option<Arc<[u8]>>,
    ) -> Result<Option<Holding>> {
        self.acquire_place_within(operation, mode, value, WaitLimit::Try).await
    }

    /// Acquires a place at the head of the wait queue, for at most `limit`.
    pub(crate) async fn acquire_place(
        &self,
        operation: &'static str,
        mode: Mode,
        value: Option<Arc<[u8]>>,
        limit: Option<Duration>,
    ) -> Result<Holding> {
        let limit = limit.map_or(WaitLimit::Forever, WaitLimit::Within);
        let acquired = self.acquire_place_within(operation, mode, value, limit).await?;
        acquired.ok_or_else(|| self.busy(operation))
    }

    async fn acquire_place_within(
        &self,
        operation: &'static str,
        mode: Mode,
        value: Option<Arc<[u8]>>,
        limit: WaitLimit,
    ) -> Result<Option<Holding>> {
        let backend = Arc::clone(self.session.backend());
        let queue: Option<Arc<dyn WaitQueue>> = match self.kind {
            Kind::Election => backend.election().map(|queue| queue as _),
            Kind::RwLock => backend.rw_lock().map(|queue| queue as _),
            _ => backend.locker().map(|queue| queue as _),
        };
        let place = queue.map(|queue| QueuePlace { queue, mode, value });
        let acquired = self.acquire(operation, place, limit).await?;
        Ok(acquired.and_then(Acquired::into_holding))
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

    /// Asks `part` of the store about the object: see [`query`].
    pub(crate) async fn query<P: ?Sized, T: Send + 'static>(
        &self,
        operation: &'static str,
        part: Option<Arc<P>>,
        ask: impl Fn(Arc<P>, Name) -> BoxFuture<'static, Result<T>>,
    ) -> Result<T> {
        let name = self.name(operation)?;
        let part = part.ok_or_else(|| self.unsupported(operation))?;
        let attempt = || ask(Arc::clone(&part), name.clone());
        query(&self.session, operation, Some(&name), attempt).await
    }

    /// Runs a step of `part` of the store on the object: see [`step`].
    pub(crate) async fn step<P: ?Sized + Send + Sync + 'static, T: Send + 'static>(
        &self,
        operation: &'static str,
        part: Option<Arc<P>>,
        run: impl Fn(Arc<P>, Name, Marker) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        let name = self.name(operation)?;
        let part = part.ok_or_else(|| self.unsupported(operation))?;
        let object = name.clone();
        let attempt = move |marker| run(Arc::clone(&part), name.clone(), marker);
        step(&self.session, operation, Some(&object), attempt).await
    }

    pub(crate) fn unsupported(&self, operation: &'static str) -> Error {
        Error::unsupported(self.kind).during(operation).on(self.text())
    }

    /// Returns the error for a backend that answers `Busy` to a request that waits.
    pub(crate) fn busy(&self, operation: &'static str) -> Error {
        let message = "the backend did not queue a request that waits: please report it";
        Error::new(ErrorKind::Internal, message)
            .during(operation)
            .on(self.text())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.text())
    }
}

impl<G> Acquired<G> {
    /// Returns the holding of a request that is granted one.
    pub(crate) fn into_holding(mut self) -> Option<Holding> {
        self.holdings.pop().map(Holding::new)
    }
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
