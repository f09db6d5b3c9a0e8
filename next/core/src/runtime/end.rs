//! The end of a session in the store: revocation or detachment.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::{InFlight, caught};
use super::retry::Backoff;
use super::session::SessionCore;
use super::unfinished::Running;
use crate::error::{Error, ErrorKind, LossReason, Result};

/// The longest time that the end of a session takes, if its TTL is not shorter.
const LONGEST_END: Duration = Duration::from_secs(10);

/// Ends in the store a session whose validity has ended. `running` is given back before the callers of `close` go on.
pub(super) async fn end(core: Arc<SessionCore>, running: Option<Running>) {
    let reason = core.loss().get().unwrap_or(LossReason::Closed);
    let here = core.closed_locally().is_some();
    match here {
        true => tracing::debug!(session = %core.id(), %reason, "session ended"),
        false => tracing::warn!(session = %core.id(), %reason, "session lost"),
    }
    if here {
        // Releases and steps are in flight. The lease is not renewed meanwhile.
        tokio::select! {
            () = core.registry.quiet() => {}
            () = core.clock().sleep(LONGEST_END.min(core.ttl() / 4)) => {}
        }
    }
    let ended = match reason {
        LossReason::Detached => detach(&core).await,
        // The store may keep a lost lease for a while. Its revocation frees the entries at once.
        _ => revoke(&core).await,
    };
    if let Err(error) = ended {
        tracing::debug!(session = %core.id(), error = %error.chain(), "ending the session failed; its TTL ends it");
        *core.end_error.lock() = Some(error);
    }
    drop(running);
    core.ended_in_store().set(());
}

async fn detach(core: &Arc<SessionCore>) -> Result<()> {
    let kept = core.registry.kept();
    let backend = Arc::clone(core.backend());
    let detaching = async move { caught(backend.detach(&kept)).await };
    let detached = within(core, InFlight::new(core.executor(), detaching)).await;
    if let Err(error) = &detached
        && error.kind() == ErrorKind::Unsupported
    {
        revoke(core).await?;
    }
    detached
}

/// Revokes the lease. Tries again for a bounded time while the store is unavailable.
async fn revoke(core: &Arc<SessionCore>) -> Result<()> {
    let mut backoff = Backoff::new(core.ttl());
    within(core, async {
        loop {
            let backend = Arc::clone(core.backend());
            let revoking = async move { caught(backend.revoke()).await };
            match InFlight::new(core.executor(), revoking).await {
                Err(error) if error.is_retryable() => core.clock().sleep(backoff.next()).await,
                answer => return answer,
            }
        }
    })
    .await
}

async fn within(core: &SessionCore, work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::select! {
        biased;
        answer = work => answer,
        () = core.clock().sleep(LONGEST_END.min(core.ttl())) => Err(Error::new(
            ErrorKind::Unavailable,
            "the store did not confirm the end of the session; its TTL ends it",
        )),
    }
}
