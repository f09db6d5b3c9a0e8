//! The one way in which anything is acquired: locks, leaderships, takes, entries of a barrier.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::in_flight::{InFlight, caught};
use super::owned_grant::OwnedGrant;
use super::retry::{Backoff, RetryScope, retry};
use super::session::{SessionCore, SessionRef, timed_out};
use super::signal::Signal;
use crate::backend::{Grant, Joined, Nonce, Request};
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::name::{Kind, Name};
use crate::sync::{AtomicBool, AtomicU64, Ordering};

/// The steps of a backend by which a request is granted. Its withdrawal is that of the kind: see
/// [`Departures`](super::departures::Departures).
#[async_trait]
pub(crate) trait Acquirable: Send + Sync + 'static {
    type Granted: Send + 'static;

    /// Returns the grants, at least one: each becomes a holding.
    fn grants(granted: &Self::Granted) -> Vec<Grant>;

    async fn join(&self, request: &Request, wait: bool) -> Result<Joined<Self::Granted>>;

    /// Waits as long as one step of the store can. Droppable.
    async fn wait(&self, request: &Request) -> Result<Option<Self::Granted>>;
}

/// How long a caller waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitLimit {
    /// Does not wait, and does not retry. In a session that is full, it waits for a moment for an entry that is being released.
    Try,
    Within(Duration),
    Forever,
}

/// The outcome of an acquire: a holding for each grant.
pub(crate) struct Acquired<G> {
    pub(crate) holdings: Vec<OwnedGrant>,
    pub(crate) granted: G,
}

/// How long a caller that has given up waits for the store to confirm its withdrawal, and a caller that does not wait for the
/// withdrawal or release of another request, if its session is full.
const WITHDRAWAL: Duration = Duration::from_millis(500);

/// Acquires `name`. `None` only for [`WaitLimit::Try`].
///
/// A caller that drops the future at any point leaves nothing behind: the request is withdrawn, once its step in flight has
/// ended, and until the store has confirmed it.
pub(crate) async fn acquire<A: Acquirable>(
    session: &SessionRef,
    steps: Arc<A>,
    operation: &'static str,
    kind: Kind,
    name: &Name,
    limit: WaitLimit,
) -> Result<Option<Acquired<A::Granted>>> {
    // No answer comes within no time.
    let zero_limit = limit == WaitLimit::Within(Duration::ZERO);
    let limit = if zero_limit { WaitLimit::Try } else { limit };
    let at_most = match limit {
        WaitLimit::Within(limit) => Some(limit),
        WaitLimit::Try | WaitLimit::Forever => None,
    };
    let last = AtomicU64::new(0);
    let acquiring = async {
        match join_until_granted(session, &steps, kind, name, limit, &last).await {
            Ok(None) if zero_limit => Err(timed_out(Duration::ZERO)),
            acquired => acquired,
        }
    };
    let acquired = session.run(at_most, acquiring).await;
    if matches!(&acquired, Err(error) if error.kind() == ErrorKind::TimedOut) {
        // A caller that has given up must not count for those that come later, such as the others of a double barrier.
        let nonce = Nonce::new(last.load(Ordering::Acquire));
        let gone = async {
            session.registry.ended(nonce).await;
            Ok(())
        };
        // The withdrawal goes on in the background.
        let _ = session.run(Some(WITHDRAWAL), gone).await;
    }
    acquired.map_err(|error| session.explain(error, operation, Some(name.as_str())))
}

/// Joins, and joins again as a new request whenever the place was lost.
async fn join_until_granted<A: Acquirable>(
    session: &SessionRef,
    steps: &Arc<A>,
    kind: Kind,
    name: &Name,
    limit: WaitLimit,
    last: &AtomicU64,
) -> Result<Option<Acquired<A::Granted>>> {
    let mut backoff = Backoff::new(session.ttl());
    loop {
        let opening = session.registry.register(kind, name);
        let (request, loss) = match limit {
            WaitLimit::Try => tokio::select! {
                biased;
                opened = opening => opened?,
                () = session.clock().sleep(WITHDRAWAL) => return Err(session.registry.full()),
            },
            WaitLimit::Within(_) | WaitLimit::Forever => opening.await?,
        };
        last.store(request.nonce().get(), Ordering::Release);
        let pending = Caller(Arc::new(Pending {
            core: Arc::clone(session.core()),
            request,
            loss,
            sent: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            decided: AtomicBool::new(false),
        }));
        let granted = match join(&pending, steps, limit).await? {
            Joined::Granted(granted) => granted,
            // A request that must not wait does not, even if the backend queued it.
            Joined::Waiting if limit == WaitLimit::Try => return Ok(None),
            Joined::Waiting => {
                session.registry.begin_waiting(pending.0.request.nonce());
                match wait(&pending, steps).await? {
                    Some(granted) => granted,
                    None => {
                        drop(pending);
                        session.clock().sleep(backoff.next()).await;
                        continue;
                    }
                }
            }
            Joined::Busy => {
                // A repeated join may have overtaken the first one, which can still arrive.
                if !pending.0.failed.load(Ordering::Acquire) {
                    pending.0.forget();
                }
                return Ok(None);
            }
        };
        return pending.0.hold::<A>(session, granted).map(Some);
    }
}

async fn join<A: Acquirable>(caller: &Caller, steps: &Arc<A>, limit: WaitLimit) -> Result<Joined<A::Granted>> {
    let core = &caller.0.core;
    let wait = limit != WaitLimit::Try;
    let attempt = || {
        let (pending, steps) = (Arc::clone(&caller.0), Arc::clone(steps));
        pending.sent.store(true, Ordering::Release);
        InFlight::new(core.executor(), async move {
            let joined = caught(steps.join(&pending.request, wait)).await;
            if joined.is_err() {
                pending.failed.store(true, Ordering::Release);
            }
            // With the last reference to `pending`, an undecided request is withdrawn. It lives longer than the step.
            joined.map(|begun| (begun, pending))
        })
    };
    let should_retry = |error: &Error| wait && error.is_retryable();
    let (begun, _pending) = retry(core, RetryScope::Valid, should_retry, attempt).await?;
    Ok(begun)
}

/// Waits for the grant. `None` if the place was lost.
async fn wait<A: Acquirable>(caller: &Caller, steps: &Arc<A>) -> Result<Option<A::Granted>> {
    let Pending {
        core, request, loss, ..
    } = &*caller.0;
    loop {
        let granted = retry(core, RetryScope::Valid, Error::is_retryable, || steps.wait(request));
        let answer = tokio::select! {
            biased;
            answer = granted => answer,
            reason = loss.wait() => Err(core.lost_waiting(reason)),
        };
        match answer {
            Ok(Some(granted)) => return Ok(Some(granted)),
            Ok(None) => {}
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// A request that is not decided yet. With its last reference, the request is withdrawn.
struct Pending {
    core: Arc<SessionCore>,
    request: Request,
    loss: Signal<LossReason>,
    /// Whether a `join` was sent.
    sent: AtomicBool,
    /// Whether a `join` failed.
    failed: AtomicBool,
    /// Whether the request became a holding, or left nothing behind.
    decided: AtomicBool,
}

impl Pending {
    fn forget(&self) {
        self.decided.store(true, Ordering::Release);
        self.core.registry.confirm_end(self.request.nonce(), None);
    }

    fn hold<A: Acquirable>(&self, session: &SessionRef, granted: A::Granted) -> Result<Acquired<A::Granted>> {
        self.core.validity().map_err(|reason| self.core.lost_waiting(reason))?;
        let grants = A::grants(&granted);
        if grants.is_empty() {
            return Err(Error::new(
                ErrorKind::Internal,
                "the backend granted nothing: please report it",
            ));
        }
        let losses = self.core.registry.hold(self.request.nonce(), &grants);
        self.decided.store(true, Ordering::Release);
        let holding = |(grant, loss)| OwnedGrant::new(session, &self.request, grant, loss);
        Ok(Acquired {
            holdings: grants.into_iter().zip(losses).map(holding).collect(),
            granted,
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.decided.load(Ordering::Acquire) {
            return;
        }
        match self.sent.load(Ordering::Acquire) {
            true => self.core.departures.withdraw(&self.core, &self.request),
            false => self.core.registry.confirm_end(self.request.nonce(), None),
        }
    }
}

/// The caller's reference to its request.
struct Caller(Arc<Pending>);

impl Drop for Caller {
    fn drop(&mut self) {
        // Its room is being freed, although a step may still be in flight.
        if !self.0.decided.load(Ordering::Acquire) {
            self.0.core.registry.begin_end(self.0.request.nonce(), None);
        }
    }
}
