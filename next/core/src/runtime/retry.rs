//! The one retry loop.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::caught;
use super::session::SessionCore;
use crate::error::{Effect, Error, ErrorKind, Result};

/// The pauses between attempts: 20 ms, doubled each time, at most 500 ms or a tenth of the TTL.
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(ttl: Duration) -> Self {
        let shortest = Duration::from_millis(20);
        Self {
            next: shortest,
            longest: (ttl / 10).clamp(shortest, Duration::from_millis(500)),
        }
    }

    pub(crate) fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause
    }
}

/// How long the attempts go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RetryScope {
    /// Until the session is lost, closed or detached: for callers.
    Valid,
    /// Until the session has ended in the store too: for work in the background.
    InStore,
}

/// Calls `attempt` until it succeeds, fails with an error that `should_retry` refuses, or the session ends.
///
/// An attempt is not interrupted. A panic of an attempt is an error with an unknown effect. The unknown effect of an earlier
/// attempt survives a later error without effect.
pub(crate) async fn retry<T, F>(
    core: &Arc<SessionCore>,
    scope: RetryScope,
    mut should_retry: impl FnMut(&Error) -> bool,
    mut attempt: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(core.ttl());
    let mut unknown = false;
    let effect = |error: Error, unknown: bool| match unknown {
        true => error.with_effect(Effect::Unknown),
        false => error,
    };
    loop {
        if let Some(error) = core.stopped(scope) {
            return Err(effect(error, unknown));
        }
        match caught(attempt()).await {
            Ok(value) => return Ok(value),
            Err(error) => {
                unknown |= error.effect() == Effect::Unknown;
                if error.kind() == ErrorKind::Lost {
                    // The session may have ended in the store.
                    core.renew_now.notify_one();
                }
                if !should_retry(&error) {
                    return Err(effect(error, unknown));
                }
                tracing::debug!(session = %core.id(), error = %error.chain(), "failed, trying again");
            }
        }
        pause(core, scope, backoff.next()).await;
    }
}

/// Waits, but not beyond the end of the session.
pub(crate) async fn pause(core: &Arc<SessionCore>, scope: RetryScope, pause: Duration) {
    tokio::select! {
        biased;
        () = core.over(scope) => {}
        () = core.clock().sleep(pause) => {}
    }
}
