//! The state behind every guard.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use crate::backend::{Fence, Marker, Mode, Request};
use crate::error::{Effect, Error, ErrorKind, LossReason, Result};
use crate::name::Name;
use crate::options::SessionId;
use crate::runtime::departures::Ending;
use crate::runtime::owned_grant::OwnedGrant;
use crate::runtime::step::step;
use crate::token::FencingToken;

/// The state that every guard derefs to, except [`BarrierGuard`](crate::BarrierGuard): token, validity, loss signal.
///
/// A drop releases it in the background: it neither blocks nor panics, on any thread. Only the drop of the last value of a
/// store (store, session, handle or guard) waits until the store's sessions have ended, for 500 ms at most, because the
/// process may end next.
pub struct Holding(OwnedGrant, Mode);

impl Holding {
    /// Wraps what is held alone.
    pub(crate) const fn new(held: OwnedGrant) -> Self {
        Self(held, Mode::Exclusive)
    }

    /// Records that what is held is shared with other holders.
    pub(crate) fn into_shared(self) -> Self {
        Self(self.0, Mode::Shared)
    }

    /// Returns the fence that binds a commit to this.
    pub(crate) fn fence(&self) -> Fence {
        let request = self.0.request();
        let (kind, name) = (request.kind(), request.name().clone());
        Fence::new(request.nonce(), kind, name, self.token(), self.1 == Mode::Exclusive)
    }

    /// Returns the name of the held object.
    pub fn name(&self) -> &Name {
        self.0.request().name()
    }

    /// Returns the fencing token. Pass it to the resource that this holding protects.
    pub fn token(&self) -> FencingToken {
        self.0.grant().token
    }

    /// Returns the store's name of this holding, such as an etcd key, for operators.
    pub fn key(&self) -> &str {
        &self.0.grant().key
    }

    /// Returns the id of the session.
    pub fn session_id(&self) -> &SessionId {
        self.0.session().id()
    }

    /// Returns whether it is certainly still held, by the local clock. The answer is right even in the first instruction
    /// after a pause of the process (rule S2).
    ///
    /// The answer can be outdated a moment later. Protect writes that must not happen after a loss by a
    /// [`FenceGate`](crate::FenceGate).
    pub fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// Returns how long it is certain to be held without a further renewal; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        match self.loss() {
            Some(_) => Duration::ZERO,
            None => self.0.session().validity().unwrap_or_default(),
        }
    }

    /// Returns why it was lost, or `None` while it is valid.
    pub fn loss(&self) -> Option<LossReason> {
        self.0.loss()
    }

    /// Returns the loss as an error, with the last renewal's failure, or `None` while it is valid.
    pub fn loss_error(&self) -> Option<Error> {
        let reason = self.loss()?;
        Some(self.0.lost_error(reason).on(self.name().as_str()))
    }

    /// Waits until the holding is lost, at the latest until the session's deadline, even without a network. The future
    /// borrows nothing and can be moved to another task.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        self.0.lost()
    }

    /// Runs `work` while this is held: drops it at its next await point once the holding is lost.
    ///
    /// # Errors
    ///
    /// `Lost` if the work was stopped, or ended too late to be certain. How much of it happened is then unknown.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`.
    pub async fn while_held<F: Future>(&self, work: F) -> Result<F::Output> {
        let done = tokio::select! {
            biased;
            _ = self.lost() => None,
            done = work => Some(done),
        };
        match (done, self.loss()) {
            (Some(done), None) => Ok(done),
            (_, reason) => {
                let error = self.0.lost_error(reason.unwrap_or(LossReason::Expired));
                Err(self.explain(error.with_effect(Effect::Unknown), "while_held"))
            }
        }
    }

    pub(crate) fn held(&self) -> &OwnedGrant {
        &self.0
    }

    /// Names the operation and the object of a failed call.
    pub(crate) fn explain(&self, error: Error, operation: &'static str) -> Error {
        self.0.session().explain(error, operation, Some(self.name().as_str()))
    }

    /// Runs a step of `part` of the store on this: see [`step`].
    ///
    /// # Errors
    ///
    /// `Lost` before anything is sent, if it is lost.
    pub(crate) async fn step<P: ?Sized + Send + Sync + 'static, T: Send + 'static>(
        &self,
        operation: &'static str,
        part: Option<Arc<P>>,
        run: impl Fn(Arc<P>, Request, Marker) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    ) -> Result<T> {
        let (session, request) = (self.0.session(), self.0.request().clone());
        let part = match (self.loss(), part) {
            (Some(reason), _) => Err(self.0.lost_error(reason)),
            (None, None) => Err(Error::unsupported(request.kind())),
            (None, Some(part)) => Ok(part),
        };
        let part = part.map_err(|error| self.explain(error, operation))?;
        let attempt = move |marker| run(Arc::clone(&part), request.clone(), marker);
        step(session, operation, Some(self.name()), attempt).await
    }

    pub(crate) async fn end(self, operation: &'static str, ending: Ending) -> Result<()> {
        self.0.end(operation, ending).await
    }

    /// Ends it after work that ended while it was valid. An unconfirmed end goes on in the background and is no error of the
    /// work; only the store's answer that it was not held any more is one.
    pub(crate) async fn end_after_work(self, operation: &'static str, ending: Ending) -> Result<()> {
        let session = Arc::clone(self.0.session());
        match self.0.end(operation, ending).await {
            Err(error)
                if error.kind() == ErrorKind::Lost
                    && error.effect() == Effect::None
                    && session.closed_locally().is_none() =>
            {
                Err(error.with_effect(Effect::Unknown))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Holding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holding")
            .field("kind", &self.0.request().kind())
            .field("name", self.name())
            .field("token", &self.token())
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

/// Lets a guard deref to the [`Holding`] in its field.
macro_rules! deref_to_holding {
    ($guard:ident . $field:tt) => {
        impl std::ops::Deref for $guard {
            type Target = Holding;

            fn deref(&self) -> &Holding {
                &self.$field
            }
        }
    };
}
pub(crate) use deref_to_holding;
