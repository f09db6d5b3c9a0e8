//! The opening of a session.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::in_flight::{InFlight, caught};
use super::retry::{RetryScope, retry};
use super::session::{CloseOnDrop, SessionCore, SessionRef, SessionState};
use super::unfinished::{Running, StoreRef};
use super::{end, reconcile, renewal};
use crate::backend::{Backend, Opened, SessionEvent, SessionEvents};
use crate::clock::{Clock, Moment};
use crate::error::{Error, LossReason, Result};
use crate::executor::Executor;
use crate::options::SessionId;

/// The parts of a store from which a session is opened.
pub(crate) struct Opening {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) store_ref: Arc<StoreRef>,
}

impl Opening {
    /// Opens a new session.
    pub(crate) async fn open(self, ttl: Duration, label: Arc<str>) -> Result<SessionRef> {
        let backend = Arc::clone(&self.backend);
        let opening = async move |events| backend.open(ttl, &label, events).await;
        self.run("open", false, opening).await
    }

    /// Opens a detached session again.
    pub(crate) async fn resume(self, id: SessionId) -> Result<SessionRef> {
        let backend = Arc::clone(&self.backend);
        let opening = async move |events| backend.resume(&id, events).await;
        self.run("resume", true, opening).await
    }

    async fn run<F>(
        self,
        operation: &'static str,
        resumed: bool,
        opening: impl FnOnce(SessionEvents) -> F,
    ) -> Result<SessionRef>
    where
        F: Future<Output = Result<Opened>> + Send + 'static,
    {
        let executor = self.backend.executor().map_err(|error| error.during(operation))?;
        let clock = self.backend.clock();
        let running = executor.is_library().then(|| self.store_ref.enter());
        let (events, reports) = SessionEvents::channel();
        let opening = opening(events);
        let on = executor.clone();
        let started = async move {
            let asked = clock.now();
            let opened = caught(opening).await?;
            start(clock, on, opened, asked, resumed, reports, running).await
        };
        let open = InFlight::new(&executor, started).await;
        // Not in flight: the last value of the store must be one of the application's.
        let values = self.store_ref;
        open.map(|open| Arc::new(SessionState::new(open, values)))
            .map_err(|error| error.during(operation))
    }
}

/// Starts the tasks of a session. A caller that is dropped meanwhile drops the result, which closes the session.
async fn start(
    clock: Clock,
    executor: Executor,
    opened: Opened,
    asked: Moment,
    resumed: bool,
    reports: UnboundedReceiver<SessionEvent>,
    running: Option<Running>,
) -> Result<CloseOnDrop> {
    let core = Arc::new(SessionCore::new(clock, executor, opened));
    core.renewed(asked);
    let mut renewed_at = asked;
    // A resumed session is not valid before its first renewal. A slow connection may have used up the TTL of a new one.
    if resumed || core.clock().now().since(asked) > core.ttl() / 3 {
        let renewing = || async {
            let sent = core.clock().now();
            let renewed = renewal::renew_once(&core, renewal::renewal_period(core.ttl())).await;
            renewed.map(|()| sent).inspect_err(|error| core.not_renewed(error))
        };
        let taken = async {
            // What a resumed session keeps must not be lost with one message.
            let should_retry = |error: &Error| error.is_retryable() && core.validity().is_ok();
            renewed_at = retry(&core, RetryScope::Valid, should_retry, renewing).await?;
            core.renewed(renewed_at);
            if resumed {
                reconcile::take_entries(&core).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = taken.await {
            // The caller gets no session: its entries are freed now instead of after the TTL.
            core.lose(error.loss().unwrap_or(LossReason::Closed));
            core.executor().spawn(end::end(Arc::clone(&core), running));
            return Err(error);
        }
    }
    tracing::debug!(session = %core.id(), ttl = ?core.ttl(), resumed, "session opened");
    let open = CloseOnDrop::new(&core);
    core.executor()
        .spawn(renewal::keep(Arc::clone(&core), renewed_at, running));
    core.executor().spawn(reconcile::watch(Arc::clone(&core), reports));
    Ok(open)
}
