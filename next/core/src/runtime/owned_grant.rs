//! The grant of a request, as its guard owns it.

use std::sync::Arc;

use super::departures::Ending;
use super::registry::Unclaimed;
use super::session::SessionRef;
use super::signal::Signal;
use crate::backend::{EndOutcome, Grant, Request};
use crate::error::{Effect, Error, ErrorKind, LossReason, Result};

/// One grant, owned by its guard. The drop releases it in the background.
pub(crate) struct OwnedGrant {
    request: Request,
    grant: Grant,
    loss: Signal<LossReason>,
    /// Whether the drop has to release it.
    owned: bool,
    // Dropped last: the release above is under way before the last reference to the session goes.
    session: SessionRef,
}

impl OwnedGrant {
    pub(super) fn new(session: &SessionRef, request: &Request, grant: Grant, loss: Signal<LossReason>) -> Self {
        Self {
            request: request.clone(),
            grant,
            loss,
            owned: true,
            session: Arc::clone(session),
        }
    }

    /// Takes what the session held before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token and in that mode any more, or was reclaimed before.
    pub(crate) fn reclaim(session: &SessionRef, operation: &'static str, unclaimed: &Unclaimed) -> Result<Self> {
        let found = match session.validity() {
            Err(reason) => Err(session.lost_holding(reason)),
            Ok(_) => session.registry.reclaim(unclaimed).ok_or_else(|| {
                let message = "not held under this token in this mode, or reclaimed before: acquire it";
                Error::new(ErrorKind::Lost, message)
            }),
        };
        let reclaimed = found.and_then(|(request, grant, loss)| {
            let holding = Self::new(session, &request, grant, loss);
            match holding.loss() {
                None => Ok(holding),
                // The drop ends what may be left of it.
                Some(reason) => Err(holding.lost_error(reason)),
            }
        });
        reclaimed.map_err(|error| session.explain(error, operation, Some(unclaimed.name.as_str())))
    }

    pub(crate) fn request(&self) -> &Request {
        &self.request
    }

    pub(crate) fn grant(&self) -> &Grant {
        &self.grant
    }

    pub(crate) fn session(&self) -> &SessionRef {
        &self.session
    }

    /// Returns why it was lost, or `None` while it is valid by the clock.
    pub(crate) fn loss(&self) -> Option<LossReason> {
        // The end of the session in this process removes the holding from the store, which may be reported first.
        self.session
            .closed_locally()
            .or_else(|| self.loss.get())
            .or_else(|| self.session.validity().err())
    }

    /// Waits for the loss. Borrows nothing, does not keep the session open, is cancel safe.
    pub(crate) fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        let (loss, core) = (self.loss.wait(), Arc::clone(self.session.core()));
        async move {
            let reason = tokio::select! {
                biased;
                reason = core.lost() => reason,
                reason = loss => reason,
            };
            core.closed_locally().unwrap_or(reason)
        }
    }

    /// Returns the `Lost` error of a call that found it lost for `reason`.
    pub(crate) fn lost_error(&self, reason: LossReason) -> Error {
        self.session.lost_holding(reason)
    }

    /// Ends it. `Ok` means that it was held until then. A dropped call goes on in the background.
    ///
    /// # Errors
    ///
    /// `Lost` if it was not held any more; what the store answered if it refused, after which it is tried again in the
    /// background until the session ends.
    pub(crate) async fn end(mut self, operation: &'static str, ending: Ending) -> Result<()> {
        let (session, request, token) = (Arc::clone(&self.session), self.request.clone(), self.grant.token);
        let ended = match self.loss() {
            // The drop removes the entry that may still be in the store.
            Some(reason) => Err(self.lost_error(reason)),
            None => {
                let (core, owned) = (&session, &mut self.owned);
                let ending = async {
                    // Only now: a call that is dropped before this poll leaves the end to the drop.
                    *owned = false;
                    core.departures.end(core, &request, token, ending).await
                };
                session.run(None, ending).await.map_err(|error| match error.kind() {
                    // The end of the session has overtaken the answer.
                    ErrorKind::Lost => {
                        let reason = error.loss().unwrap_or(LossReason::Revoked);
                        self.lost_error(reason).with_effect(Effect::Unknown)
                    }
                    _ => error,
                })
            }
        };
        let ended = ended.and_then(|left| match left {
            EndOutcome::Ended => Ok(()),
            EndOutcome::NotHeld => Err(self.lost_error(LossReason::Revoked)),
        });
        ended.map_err(|error| session.explain(error, operation, Some(request.name().as_str())))
    }
}

impl Drop for OwnedGrant {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        let (nonce, token) = (self.request.nonce(), self.grant.token);
        let core = &*self.session;
        match (core.closed_locally(), core.ended_in_store().get()) {
            // The end of the session frees it, or keeps it for the process that resumes.
            (Some(_), _) => {}
            (None, Some(_)) => core.registry.confirm_end(nonce, Some(token)),
            (None, None) => core.departures.release(core, &self.request, token),
        }
    }
}
