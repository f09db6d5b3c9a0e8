//! The one way for a step that leaves no entry: acknowledgements, enqueues, downgrades, proclamations, commits.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::in_flight::InFlight;
use super::renewal::renewal_period;
use super::retry::{RetryScope, retry};
use super::session::{SessionCore, SessionRef};
use crate::backend::Marker;
use crate::error::{Effect, Error, ErrorKind, Result};
use crate::name::Name;
use crate::sync::{AtomicBool, Ordering};

/// Runs `attempt` to its end although the caller drops the future, and repeats it under the same marker while its effect is
/// unknown, or the caller waits for a store that is unavailable, and the session lives. Waits for a slot first.
///
/// Without a caller, it is repeated for a third of the TTL at most: its slot is for those that wait. A copy that arrives later
/// is refused by the slot.
///
/// # Errors
///
/// `Lost` once the session is lost, and the first error that a repetition cannot cure.
pub(crate) async fn step<T: Send + 'static>(
    session: &SessionRef,
    operation: &'static str,
    name: Option<&Name>,
    attempt: impl Fn(Marker) -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
) -> Result<T> {
    let sent = Arc::new(AtomicBool::new(false));
    let stepping = async {
        session.validity().map_err(|reason| session.lost_waiting(reason))?;
        let marker = session.steps.marker(&session.registry).await;
        // Not the session itself: a step whose caller is gone must not keep it open.
        let (core, sent) = (Arc::<SessionCore>::clone(session), Arc::clone(&sent));
        let running = async move {
            let mut last = None;
            let should_retry = |error: &Error| {
                let unknown = error.effect() == Effect::Unknown && error.kind() != ErrorKind::Internal;
                if Arc::strong_count(&sent) > 1 {
                    return unknown || error.is_retryable();
                }
                let now = core.clock().now();
                unknown && now < *last.get_or_insert_with(|| now + renewal_period(core.ttl()))
            };
            let attempt = || {
                sent.store(true, Ordering::Release);
                attempt(marker.marker())
            };
            retry(&core, RetryScope::InStore, should_retry, attempt).await
        };
        InFlight::new(session.executor(), running).await
    };
    session.run(None, stepping).await.map_err(|error| {
        // The end of the session may have overtaken the answer.
        let overtaken = error.kind() == ErrorKind::Lost && session.loss().get().is_some();
        let error = match overtaken && sent.load(Ordering::Acquire) {
            true => error.with_effect(Effect::Unknown),
            false => error,
        };
        session.explain(error, operation, name.map(Name::as_str))
    })
}
