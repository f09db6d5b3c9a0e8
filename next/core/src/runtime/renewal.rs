//! The renewals of a session, in a task of their own: no other step of the session delays them.

use std::sync::Arc;
use std::time::Duration;

use super::end;
use super::in_flight::caught;
use super::session::SessionCore;
use super::unfinished::Running;
use crate::clock::Moment;
use crate::error::{Error, ErrorKind, LossReason, Result};

/// The longest time between two renewals, or two comparisons with the store. A session with a TTL of a day must not notice an
/// operator's act eight hours later.
const LONGEST_PERIOD: Duration = Duration::from_secs(30);

/// Returns the time between two renewals: a third of the TTL, at most [`LONGEST_PERIOD`].
pub(super) fn renewal_period(ttl: Duration) -> Duration {
    (ttl / 3).min(LONGEST_PERIOD)
}

/// Keeps the lease until the session is lost, closed or detached, and then ends it in the store.
pub(super) fn keep(
    core: Arc<SessionCore>,
    renewed_at: Moment,
    running: Option<Running>,
) -> impl Future<Output = ()> + Send {
    // Not an `async fn`: the guard must act even if the task is dropped before its first poll.
    let guard = LoseOnDrop(Arc::clone(&core));
    async move {
        renew_until_the_end(&core, renewed_at).await;
        end::end(core, running).await;
        drop(guard);
    }
}

/// Ends the validity of a session whose renewals end with its runtime.
struct LoseOnDrop(Arc<SessionCore>);

impl Drop for LoseOnDrop {
    fn drop(&mut self) {
        self.0.lose(match std::thread::panicking() {
            true => LossReason::Failed,
            false => LossReason::Closed,
        });
        let unconfirmed = "the session's runtime ended before the store was asked; the TTL ends the session";
        let confirmed = Err((ErrorKind::Unavailable, unconfirmed.into()));
        self.0.ended_in_store().set(confirmed);
    }
}

async fn renew_until_the_end(core: &Arc<SessionCore>, renewed_at: Moment) {
    let period = renewal_period(core.ttl());
    let pause = (core.ttl() / 20).clamp(Duration::from_millis(10), Duration::from_secs(1));
    let mut due = renewed_at + period;
    // `validity` refuses an answer that arrives after the deadline.
    while core.validity().is_ok() {
        let renewing = async {
            tokio::select! {
                () = core.clock().sleep_until(due) => {}
                () = core.renew_now.notified() => {}
            }
            let sent = core.clock().now();
            (sent, renew_once(core, period).await)
        };
        let (sent, answer) = tokio::select! {
            biased;
            // By the clock and not by an answer, so that the network cannot delay it.
            () = core.clock().sleep_until(core.deadline()) => continue,
            _ = core.loss().wait() => return,
            renewed = renewing => renewed,
        };
        due = match answer {
            Ok(()) if core.validity().is_ok() => {
                core.renewed(sent);
                sent + period
            }
            Ok(()) => return,
            Err(error) if error.kind() == ErrorKind::Lost => {
                return core.lose_in_store(error.loss().unwrap_or(LossReason::Revoked));
            }
            Err(error) => {
                tracing::debug!(session = %core.id(), error = %error.chain(), "renewal failed, trying again");
                core.not_renewed(&error);
                core.clock().now() + pause
            }
        };
    }
}

/// Renews once, within `limit`.
pub(super) async fn renew_once(core: &SessionCore, limit: Duration) -> Result<()> {
    tokio::select! {
        biased;
        answer = caught(core.backend().renew()) => answer,
        () = core.clock().sleep(limit) => Err(Error::new(
            ErrorKind::Unavailable,
            "no answer to a renewal before the next one is due",
        )),
    }
}
