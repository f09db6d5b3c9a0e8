//! The comparison of the store's entries with the registry.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;

use super::in_flight::{InFlight, caught};
use super::renewal::renewal_period;
use super::retry::{RetryScope, retry};
use super::session::SessionCore;
use crate::backend::{Entry, SessionEvent};
use crate::error::{Error, Result};

/// How often a page is asked for, before the comparison is left to the next period.
const MOST_ATTEMPTS: u32 = 10;

/// Handles the backend's reports, and compares on demand and once in each period. Ends with the session.
pub(super) async fn watch(core: Arc<SessionCore>, reports: UnboundedReceiver<SessionEvent>) {
    let demand = Notify::new();
    tokio::select! {
        biased;
        _ = core.loss().wait() => {}
        () = handle_reports(&core, reports, &demand) => {}
        () = compare_repeatedly(&core, &demand) => {}
    }
}

async fn handle_reports(core: &Arc<SessionCore>, mut reports: UnboundedReceiver<SessionEvent>, demand: &Notify) {
    while let Some(report) = reports.recv().await {
        match report {
            SessionEvent::Lost(reason) => core.lose_in_store(reason),
            SessionEvent::RequestLost(nonce, reason) => core.registry.lose(nonce, reason),
            SessionEvent::Reconcile => {
                demand.notify_one();
                // The server of a new connection may have lost the last renewals.
                core.renew_now.notify_one();
            }
        }
    }
    std::future::pending().await
}

async fn compare_repeatedly(core: &Arc<SessionCore>, demand: &Notify) {
    loop {
        tokio::select! {
            biased;
            () = demand.notified() => {}
            () = core.clock().sleep(renewal_period(core.ttl())) => {}
        }
        core.registry.begin_comparison();
        let listed = list(core).await;
        if let Err(error) = &listed {
            tracing::debug!(session = %core.id(), error = %error.chain(), "comparing with the store failed");
        }
        for orphan in core.registry.end_comparison(listed.ok()) {
            core.departures.withdraw(core, &orphan);
        }
    }
}

async fn list(core: &Arc<SessionCore>) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut cursor: Option<Vec<u8>> = None;
    loop {
        let mut attempts = 0;
        let should_retry = |error: &Error| {
            attempts += 1;
            attempts < MOST_ATTEMPTS && error.is_retryable()
        };
        let page = retry(core, RetryScope::Valid, should_retry, || {
            let (backend, cursor) = (Arc::clone(core.backend()), cursor.clone());
            InFlight::new(core.executor(), async move {
                caught(backend.entries(cursor.as_deref())).await
            })
        });
        let page = page.await?;
        entries.extend(page.entries);
        match page.next {
            Some(next) => cursor = Some(next),
            None => return Ok(entries),
        }
    }
}

/// Takes the entries of a resumed session into the registry.
pub(super) async fn take_entries(core: &Arc<SessionCore>) -> Result<()> {
    let listed = list(core).await?;
    for orphan in core.registry.resume(listed) {
        core.departures.withdraw(core, &orphan);
    }
    Ok(())
}
