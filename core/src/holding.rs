//! What a successful acquire returns: a holding that knows whether it is still valid.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::ask::{Ask, Grant};
use crate::drive::{self, BoxFuture, Core, Ending, Keeper};
use crate::name::Name;
use crate::session::{Held, LossReason, SessionId};
use crate::settle::Settle;
use crate::txn::Fence;
use crate::{Effect, Error, ErrorKind, FencingToken, Result};

/// What every guard derefs to.
///
/// Dropped, it is released in the background; dropped outside its runtime, its session's TTL
/// releases it. Nothing blocks, nothing panics.
pub struct Holding {
    ask: Ask,
    grant: Grant,
    settle: Arc<dyn Settle>,
    released: bool,
    // Declared last: the drop above must reach the session's task before the last keeper goes.
    keeper: Arc<Keeper>,
}

impl Holding {
    pub(crate) fn new(
        keeper: Arc<Keeper>,
        settle: Arc<dyn Settle>,
        ask: Ask,
        grant: Grant,
    ) -> Self {
        let held = Held::new(&ask, &grant);
        keeper.core().enter(held, ask.alarm());
        Self {
            ask,
            grant,
            settle,
            released: false,
            keeper,
        }
    }

    /// The name of what is held.
    pub fn name(&self) -> &Name {
        self.ask.name()
    }

    /// The fencing token: pass it to the resource that this holding protects.
    pub fn token(&self) -> FencingToken {
        self.grant.token()
    }

    /// How the store names this holding, for operators: an etcd key, for instance.
    pub fn key(&self) -> &str {
        self.grant.key()
    }

    /// The session that holds it.
    pub fn session_id(&self) -> &SessionId {
        self.keeper.core().id()
    }

    /// Whether it is certainly still held, by the local clock: right even in the first
    /// instruction after the process was paused (rule S2).
    ///
    /// True now says nothing about a moment later. What must not happen after a loss belongs
    /// behind a [`FenceGate`](crate::FenceGate).
    pub fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// Why it was lost, if it was.
    pub fn loss(&self) -> Option<LossReason> {
        let core = self.keeper.core();
        // What was ended here is gone from the store, too, and the alarm may tell so first.
        core.ended()
            .or_else(|| self.ask.alarm().reason())
            .or_else(|| core.validity().err())
    }

    /// Why it was lost, if it was, as an error: with what the store said of it.
    pub fn loss_error(&self) -> Option<Error> {
        let reason = self.loss()?;
        let error = self.core().lost_holding(reason);
        Some(error.on(self.name().as_str()))
    }

    /// For how long it is certain to be held without a further renewal; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        match self.ask.alarm().reason() {
            Some(_) => Duration::ZERO,
            None => self.keeper.core().validity().unwrap_or_default(),
        }
    }

    /// Ends when the holding is lost, no later than the session's deadline, whatever the network
    /// does. The future borrows nothing: it can be moved to another task.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        let (alarm, core) = (self.ask.alarm(), Arc::clone(self.keeper.core()));
        async move {
            let reason = tokio::select! {
                biased;
                reason = alarm.raised() => reason,
                reason = core.lost() => reason,
            };
            core.ended().unwrap_or(reason)
        }
    }

    /// Runs `work` for as long as this is held: drops it at its next await point once the holding
    /// is lost.
    ///
    /// # Errors
    ///
    /// `Lost`: the work was stopped, or ended too late to be sure. How much of it happened is
    /// unknown.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`.
    pub async fn while_held<F: Future>(&self, work: F) -> Result<F::Output> {
        let lost = |reason| {
            Err(self
                .core()
                .lost_holding(reason)
                .during("while_held")
                .on(self.name().as_str())
                .with_effect(Effect::Unknown))
        };
        let done = tokio::select! {
            biased;
            reason = self.lost() => return lost(reason),
            done = work => done,
        };
        match self.loss() {
            None => Ok(done),
            Some(reason) => lost(reason),
        }
    }

    pub(crate) fn core(&self) -> &Arc<Core> {
        self.keeper.core()
    }

    /// What binds a transaction to this.
    pub(crate) fn fence(&self) -> Fence {
        Fence::new(&self.ask, &self.grant, self.session_id())
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    pub(crate) fn ask(&self) -> &Ask {
        &self.ask
    }

    pub(crate) async fn release(self) -> Result<()> {
        self.release_by("release").await
    }

    /// Releases under another name: a resignation, for instance.
    pub(crate) async fn release_by(self, operation: &'static str) -> Result<()> {
        let (settle, ask, grant) = self.parts();
        let ending = move || drive::releasing(&settle, &ask, &grant);
        self.finish(operation, Arc::new(ending)).await
    }

    /// Releases after work that ended while this was valid. Whatever keeps the release from being confirmed says
    /// nothing about the work: it goes on in the background. Only the store's word that this was not held any more
    /// does.
    pub(crate) async fn release_after_work(self, operation: &'static str) -> Result<()> {
        let core = Arc::clone(self.keeper.core());
        match self.release_by(operation).await {
            Err(error)
                if error.kind() == ErrorKind::Lost
                    && error.effect() == Effect::None
                    && !core.ended_here() =>
            {
                Err(error.with_effect(Effect::Unknown))
            }
            _ => Ok(()),
        }
    }

    /// Ends the holding by `ending`: a release, or what the primitive has beside it.
    pub(crate) async fn finish(mut self, operation: &'static str, ending: Ending) -> Result<()> {
        let core = Arc::clone(self.keeper.core());
        self.released = true;
        core.leave(self.ask.nonce());
        // From here on the place is only being let go of, also if this future is dropped.
        self.ask.let_go();
        let result = match self.loss() {
            None => drive::finish(&core, operation, ending).await,
            Some(reason) => {
                self.let_go();
                Err(core.lost_holding(reason))
            }
        };
        result.map_err(|e| {
            core.learn(&e);
            e.during(operation).on(self.name().as_str())
        })
    }

    /// A step on what is held that does not end it, repeated until the store answers. Dropped, it
    /// is brought to its end in the background.
    pub(crate) async fn step<T: Send + 'static>(
        &self,
        operation: &'static str,
        step: impl Fn() -> BoxFuture<Result<T>> + Send + 'static,
    ) -> Result<T> {
        let core = self.keeper.core();
        let stepping = async {
            if let Some(reason) = self.loss() {
                return Err(core.lost_holding(reason));
            }
            // An ask of its own: that of the holding is not withdrawn by a caller who lets go here.
            let ask = self.ask.again();
            let answered = drive::answered(Arc::clone(core), ask.clone(), move || {
                let landing = step();
                async move { landing.await.map(Some) }
            });
            drive::carry(core, &ask, Box::pin(answered)).await
        };
        let landed = stepping.await.and_then(|landed| {
            landed.ok_or_else(|| Error::new(ErrorKind::Internal, "no answer and no error"))
        });
        landed.map_err(|e| {
            core.learn(&e);
            e.during(operation).on(self.name().as_str())
        })
    }

    /// Notes that what is held is shared with others.
    pub(crate) fn share(&self) {
        self.keeper.core().share(self.ask.nonce());
    }

    /// Notes that the store was told of the end already.
    pub(crate) fn ended(mut self) {
        self.released = true;
        self.keeper.core().leave(self.ask.nonce());
    }

    fn parts(&self) -> (Arc<dyn Settle>, Ask, Grant) {
        (
            Arc::clone(&self.settle),
            self.ask.clone(),
            self.grant.clone(),
        )
    }

    /// Releases in the background, unless the end of the session does it anyway.
    fn let_go(&self) {
        let core = self.keeper.core();
        if core.ended_here() {
            return;
        }
        let (settle, ask, grant) = self.parts();
        core.adopt(
            Arc::clone(core).persist("releasing", move || drive::releasing(&settle, &ask, &grant)),
        );
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        if !self.released {
            self.keeper.core().leave(self.ask.nonce());
            self.let_go();
            self.ask.let_go();
        }
    }
}

impl Held {
    fn new(ask: &Ask, grant: &Grant) -> Self {
        Self {
            kind: ask.kind(),
            name: ask.name().clone(),
            nonce: ask.nonce(),
            token: grant.token(),
            key: Arc::from(grant.key()),
            shared: false,
        }
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding")
            .field("kind", &self.ask.kind())
            .field("name", self.name())
            .field("token", &self.token())
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}
