//! What the handles of all primitives share: one attempt, from the ask to the holding.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use crate::ask::{Ask, Grant};
use crate::drive::{self, BoxFuture, Keeper, Landed};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::settle::{Erased, Settle};
use crate::{Error, ErrorKind, FencingToken, Result};

/// One named object of one session. Every public handle is a newtype around it.
pub(crate) struct Handle<P: ?Sized> {
    keeper: Arc<Keeper>,
    primitive: Arc<P>,
    settle: Arc<dyn Settle>,
    kind: Kind,
    name: Name,
}

impl<P: ?Sized> Clone for Handle<P> {
    fn clone(&self) -> Self {
        Self {
            keeper: Arc::clone(&self.keeper),
            primitive: Arc::clone(&self.primitive),
            settle: Arc::clone(&self.settle),
            kind: self.kind,
            name: self.name.clone(),
        }
    }
}

/// What one attempt brought: the ask under which it was made, and what it got.
pub(crate) type Landing<T> = (Ask, T);

impl<P: Settle + ?Sized> Handle<P> {
    pub(crate) fn new(keeper: Arc<Keeper>, primitive: Arc<P>, kind: Kind, name: Name) -> Self {
        Self {
            keeper,
            settle: Arc::new(Erased(Arc::clone(&primitive))),
            primitive,
            kind,
            name,
        }
    }

    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    pub(crate) fn primitive(&self) -> &Arc<P> {
        &self.primitive
    }

    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// One step that does not wait: `None` if there is nothing to be had now.
    pub(crate) async fn attempt<T: Landed>(
        &self,
        operation: &'static str,
        step: impl FnOnce(Arc<P>, Ask) -> BoxFuture<Result<Option<T>>>,
    ) -> Result<Option<Landing<T>>> {
        self.fly(operation, None, None, step).await
    }

    /// A step that waits its turn, repeated for as long as the store only fails to answer.
    pub(crate) async fn wait<T: Landed>(
        &self,
        operation: &'static str,
        limit: Option<Duration>,
        step: impl Fn(Arc<P>, Ask) -> BoxFuture<Result<T>> + Send + 'static,
    ) -> Result<Landing<T>> {
        let core = Arc::clone(self.keeper.core());
        let landed = self.fly(operation, limit, None, move |primitive, ask| {
            Box::pin(drive::answered(core, ask.clone(), move || {
                let landing = step(Arc::clone(&primitive), ask.clone());
                async move { landing.await.map(Some) }
            }))
        });
        landed.await?.ok_or_else(|| {
            self.explain(
                Error::new(ErrorKind::Internal, "no grant and no error"),
                operation,
            )
        })
    }

    /// Takes up what this session held under `token` before it was detached and resumed.
    pub(crate) async fn reclaim(
        &self,
        operation: &'static str,
        token: FencingToken,
    ) -> Result<Holding> {
        let step = move |primitive: Arc<P>, ask: Ask| -> BoxFuture<Result<Option<Grant>>> {
            Box::pin(async move { primitive.reclaim(&ask, token).await })
        };
        self.take_up(operation, token, step).await
    }

    /// [`reclaim`](Self::reclaim), by a step of the primitive's own.
    pub(crate) async fn take_up(
        &self,
        operation: &'static str,
        token: FencingToken,
        step: impl Fn(Arc<P>, Ask) -> BoxFuture<Result<Option<Grant>>> + Send + 'static,
    ) -> Result<Holding> {
        let core = Arc::clone(self.keeper.core());
        let landed = self.fly(operation, None, Some(token), move |primitive, ask| {
            // Not left to the caller: a failed attempt is withdrawn, and the holding with it.
            Box::pin(drive::answered(core, ask.clone(), move || {
                step(Arc::clone(&primitive), ask.clone())
            }))
        });
        match landed.await? {
            Some(landing) => Ok(self.hold(landing)),
            None => Err(self.explain(
                Error::new(
                    ErrorKind::Lost,
                    format!("not held under token {token} any more"),
                ),
                operation,
            )),
        }
    }

    /// A change that nothing is held by (an enqueue, for instance), repeated under one ask until
    /// the store answers. Dropped, it is brought to its end in the background.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl Fn(Arc<P>, Ask) -> BoxFuture<Result<T>> + Send + 'static,
    ) -> Result<T> {
        let core = self.keeper.core();
        let changing = async {
            let ask = core.ask(self.kind, &self.name).await?;
            let (primitive, again) = (Arc::clone(&self.primitive), ask.clone());
            let future = drive::answered(Arc::clone(core), ask.clone(), move || {
                let landing = step(Arc::clone(&primitive), again.clone());
                async move { landing.await.map(Some) }
            });
            drive::carry(core, &ask, Box::pin(future)).await
        };
        let changed = changing.instrument(self.span(operation)).await;
        changed
            .and_then(|changed| {
                changed.ok_or_else(|| Error::new(ErrorKind::Internal, "no answer and no error"))
            })
            .map_err(|error| self.explain(error, operation))
    }

    /// A question that changes nothing: dropped, it is simply gone. Repeated until the store
    /// answers or the session ends.
    pub(crate) async fn question<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl Fn(Arc<P>) -> BoxFuture<Result<T>>,
    ) -> Result<T> {
        let core = self.keeper.core();
        drive::question(core, || step(Arc::clone(&self.primitive)))
            .instrument(self.span(operation))
            .await
            .map_err(|error| self.explain(error, operation))
    }

    /// A question that may wait for long, and does not end with the lease: only when the session is
    /// closed or detached here.
    pub(crate) async fn watching<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl Fn(Arc<P>) -> BoxFuture<Result<T>>,
    ) -> Result<T> {
        drive::watching(self.keeper.core(), || step(Arc::clone(&self.primitive)))
            .instrument(self.span(operation))
            .await
            .map_err(|error| self.explain(error, operation))
    }

    pub(crate) fn hold(&self, (ask, grant): Landing<Grant>) -> Holding {
        Holding::new(
            Arc::clone(&self.keeper),
            Arc::clone(&self.settle),
            ask,
            grant,
        )
    }

    pub(crate) fn explain(&self, error: Error, operation: &'static str) -> Error {
        self.keeper.core().learn(&error);
        error.during(operation).on(self.name.as_str())
    }

    fn span(&self, operation: &'static str) -> tracing::Span {
        let session = self.keeper.core().id();
        tracing::debug_span!("tenure", operation, kind = self.kind.as_str(), name = %self.name, %session)
    }

    async fn fly<T: Landed>(
        &self,
        operation: &'static str,
        limit: Option<Duration>,
        taking_up: Option<FencingToken>,
        start: impl FnOnce(Arc<P>, Ask) -> BoxFuture<Result<Option<T>>>,
    ) -> Result<Option<Landing<T>>> {
        let core = self.keeper.core();
        let attempt = async {
            let ask = core.ask(self.kind, &self.name).await?;
            if let Some(token) = taking_up
                && !ask.claim(token)
            {
                // One holding, one guard (rule L1), also while a dropped one is being released.
                return Err(Error::new(
                    ErrorKind::Lost,
                    format!("token {token} was taken up already in this session"),
                ));
            }
            let future = start(Arc::clone(&self.primitive), ask.clone());
            let landed = drive::acquire(core, &self.settle, &ask, future, limit).await?;
            Ok(landed.map(|landed| {
                tracing::debug!(?landed, "granted");
                (ask, landed)
            }))
        };
        attempt
            .instrument(self.span(operation))
            .await
            .map_err(|error| self.explain(error, operation))
    }
}
