//! The end of a session in the store: revocation or detachment.

use std::sync::Arc;
use std::time::Duration;

use super::in_flight::{InFlight, caught};
use super::retry::{RetryScope, retry};
use super::session::SessionCore;
use super::unfinished::Running;
use crate::backend::Nonce;
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
        let quiet = async {
            core.registry.quiet().await;
            core.steps.until_free().await;
        };
        tokio::select! {
            biased;
            () = quiet => {}
            () = core.clock().sleep(LONGEST_END.min(core.ttl() / 4)) => {}
        }
    }
    let kept = (reason == LossReason::Detached).then(|| core.registry.kept());
    let mut ended = end_in_store(&core, kept).await;
    if reason == LossReason::Detached
        && let Err(error) = &ended
        && error.kind() == ErrorKind::Unsupported
        && let Err(error) = end_in_store(&core, None).await
    {
        ended = Err(error);
    }
    if let Err(error) = &ended {
        tracing::debug!(session = %core.id(), error = %error.chain(), "ending the session failed; its TTL ends it");
    }
    drop(running);
    let confirmed = ended.map_err(|error| (error.kind(), error.chain().to_string().into()));
    core.ended_in_store().set(confirmed);
}

/// Detaches the session with the entries `kept`, or revokes its lease, which frees all entries at once: the store may keep a
/// lost lease for a while. Tries again for a bounded time while the store is unavailable.
async fn end_in_store(core: &Arc<SessionCore>, kept: Option<Vec<Nonce>>) -> Result<()> {
    let attempt = || {
        let (backend, kept) = (Arc::clone(core.backend()), kept.clone());
        let ending = async move {
            match kept {
                Some(kept) => backend.detach(&kept).await,
                None => backend.revoke().await,
            }
        };
        InFlight::new(core.executor(), caught(ending))
    };
    tokio::select! {
        biased;
        ended = retry(core, RetryScope::InStore, Error::is_retryable, attempt) => ended,
        () = core.clock().sleep(LONGEST_END.min(core.ttl())) => Err(Error::new(
            ErrorKind::Unavailable,
            "the store did not confirm the end of the session; its TTL ends it",
        )),
    }
}
