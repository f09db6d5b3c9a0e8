//! Requests on their way: driven in place by their caller or in a task (see `Core::driven`), adopted
//! by the session's task when the caller lets go of them.

use std::fmt::Debug;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::{Backoff, BoxFuture, Core};
use crate::ask::{Ask, Grant};
use crate::session::LossReason;
use crate::settle::Settle;
use crate::{Effect, Error, ErrorKind, FencingToken, Result};

/// What an acquire brings, and how it is given back when nobody waits for it any more.
pub(crate) trait Landed: Debug + Send + Sync + 'static {
    /// The token that the ask has from now on, if it can be taken up again (see `Ask::claim`).
    fn token(&self) -> Option<FencingToken>;

    fn give_back(&self, settle: &Arc<dyn Settle>, ask: &Ask) -> BoxFuture<Result<()>>;
}

impl Landed for Grant {
    fn token(&self) -> Option<FencingToken> {
        Some(Self::token(self))
    }

    fn give_back(&self, settle: &Arc<dyn Settle>, ask: &Ask) -> BoxFuture<Result<()>> {
        releasing(settle, ask, self)
    }
}

pub(crate) fn releasing(
    settle: &Arc<dyn Settle>,
    ask: &Ask,
    grant: &Grant,
) -> BoxFuture<Result<()>> {
    let (settle, ask, grant) = (Arc::clone(settle), ask.clone(), grant.clone());
    Box::pin(async move { settle.release(&ask, &grant).await })
}

pub(crate) fn withdrawing(settle: &Arc<dyn Settle>, ask: &Ask) -> BoxFuture<Result<()>> {
    let (settle, ask) = (Arc::clone(settle), ask.clone());
    Box::pin(async move { settle.withdraw(&ask).await })
}

/// An acquire on its way. Dropped before it landed, it goes on in the session's task.
struct Flight<'a, T: Landed> {
    core: &'a Arc<Core>,
    settle: &'a Arc<dyn Settle>,
    ask: &'a Ask,
    future: Option<BoxFuture<Result<Option<T>>>>,
    landed: bool,
}

impl<T: Landed> Flight<'_, T> {
    async fn landed(&mut self) -> Result<Option<T>> {
        std::future::poll_fn(|context| {
            // Taken out while it is polled: one that panics must not be polled again.
            let Some(mut future) = self.future.take() else {
                return Poll::Pending;
            };
            let landed = future.as_mut().poll(context);
            self.landed = landed.is_ready();
            if !self.landed {
                self.future = Some(future);
            }
            landed
        })
        .await
    }
}

impl<T: Landed> Drop for Flight<'_, T> {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        let future = self.future.take().unwrap_or_else(|| {
            Box::pin(std::future::ready(Err(Error::new(
                ErrorKind::Internal,
                "the backend panicked",
            )
            .with_effect(Effect::Unknown))))
        });
        self.ask.withdraw();
        let (core, settle, ask) = (
            Arc::clone(self.core),
            Arc::clone(self.settle),
            self.ask.clone(),
        );
        self.core
            .adopt(async move { undo(core, settle, ask, future.await).await });
    }
}

/// Repeats `attempt` until the store answers. A store that restarts or fails over must not throw
/// its waiters out: the session bounds this, and the ask keeps its place.
pub(crate) async fn answered<T, F>(
    core: Arc<Core>,
    ask: Ask,
    attempt: impl Fn() -> F,
) -> Result<Option<T>>
where
    F: Future<Output = Result<Option<T>>>,
{
    let mut backoff = Backoff::new(core.ttl);
    let mut effect = Effect::None;
    loop {
        let error = match attempt().await {
            Ok(landed) => return Ok(landed),
            Err(error) => error,
        };
        // What one attempt may have left is there still when a later one fails cleanly.
        if error.effect() != Effect::None {
            effect = Effect::Unknown;
        }
        if !error.is_retryable() || ask.is_withdrawn() {
            return Err(match effect {
                Effect::None => error,
                effect => error.with_effect(effect),
            });
        }
        tracing::debug!(name = %ask.name(), error = %error.chain(), "attempt failed, trying again");
        tokio::select! {
            // First: once it is withdrawn, no further attempt may meet what takes it back.
            biased;
            () = ask.withdrawn() => return Err(Error::withdrawn()),
            () = core.clock.sleep(backoff.next()) => {}
        }
    }
}

fn give_back<T: Landed>(core: &Arc<Core>, settle: &Arc<dyn Settle>, ask: &Ask, landed: T) {
    let landed = Ok(Some(landed));
    core.adopt(undo(
        Arc::clone(core),
        Arc::clone(settle),
        ask.clone(),
        landed,
    ));
}

/// Takes back what an attempt that nobody waits for any more got, or may have left.
async fn undo<T: Landed>(
    core: Arc<Core>,
    settle: Arc<dyn Settle>,
    ask: Ask,
    landed: Result<Option<T>>,
) {
    match landed {
        Ok(Some(landed)) => {
            core.persist("giving back a grant", || landed.give_back(&settle, &ask))
                .await;
        }
        Err(error) if error.effect() != Effect::None => {
            core.persist("withdrawing", || withdrawing(&settle, &ask))
                .await;
        }
        Ok(None) | Err(_) => {}
    }
}

/// Drives `future` until it lands, the session is lost, or `limit` has passed.
pub(crate) async fn acquire<T: Landed>(
    core: &Arc<Core>,
    settle: &Arc<dyn Settle>,
    ask: &Ask,
    future: BoxFuture<Result<Option<T>>>,
    limit: Option<Duration>,
) -> Result<Option<T>> {
    let mut flight = Flight {
        core,
        settle,
        ask,
        future: Some(core.driven(future)),
        landed: false,
    };
    let clock = core.clock.clone();
    let landed = tokio::select! {
        biased;
        landed = flight.landed() => landed,
        reason = core.lost() => return Err(core.lost_waiting(reason)),
        () = async { match limit {
            Some(limit) => clock.sleep(limit).await,
            None => std::future::pending().await,
        }} => {
            return Err(Error::new(ErrorKind::TimedOut, "not granted in the time allowed"));
        }
    };
    // The alarm may have been raised while the grant was on its way to us.
    let end = core.validity().err().or_else(|| ask.alarm().reason());
    match (landed, end) {
        // A grant to a session that has ended is none (rule L6), nor is one that is gone already.
        (Ok(Some(grant)), Some(reason)) => {
            give_back(core, settle, ask, grant);
            Err(core.lost_waiting(reason))
        }
        // Taken up by `reclaim` in the meantime: one holding has one guard.
        (Ok(Some(grant)), None) if grant.token().is_some_and(|token| !ask.claim(token)) => {
            give_back(core, settle, ask, grant);
            Err(Error::lost(LossReason::Revoked))
        }
        (Err(error), end) => {
            if error.effect() != Effect::None {
                let copy = Error::new(error.kind(), "").with_effect(error.effect());
                let nothing: Result<Option<T>> = Err(copy);
                let undoing = undo(Arc::clone(core), Arc::clone(settle), ask.clone(), nothing);
                core.adopt(undoing);
            }
            // Why it ended, the session knows better than the store that finds no lease.
            let reason = match end {
                Some(reason) if error.kind() == ErrorKind::Lost => Some(reason),
                _ => error.loss(),
            };
            Err(match reason {
                Some(reason) => core.lost_waiting(reason),
                None => error,
            })
        }
        (Ok(None), _) => Ok(None),
        (Ok(grant), None) => Ok(grant),
    }
}

/// A step that ends a holding (a release, an acknowledgement): idempotent, fenced by its grant.
pub(crate) type Ending = Arc<dyn Fn() -> BoxFuture<Result<()>> + Send + Sync>;

/// An ending on its way. Dropped before it landed, it goes on in the session's task.
struct Finishing<'a> {
    core: &'a Arc<Core>,
    what: &'static str,
    ending: Option<Ending>,
    future: Option<BoxFuture<Result<()>>>,
}

impl Drop for Finishing<'_> {
    fn drop(&mut self) {
        let Some(ending) = self.ending.take() else {
            return;
        };
        let (core, what, first) = (Arc::clone(self.core), self.what, self.future.take());
        self.core.adopt(async move {
            // With the first attempt, if that is still on its way, then with others.
            if let Some(first) = first {
                match first.await {
                    Err(error) if error.kind() != ErrorKind::Lost => {}
                    _ => return,
                }
            }
            core.persist(what, || ending()).await;
        });
    }
}

/// Ends a holding and waits for the answer. What was not confirmed is tried again in the
/// background until it is, or the session ends.
pub(crate) async fn finish(core: &Arc<Core>, what: &'static str, ending: Ending) -> Result<()> {
    let mut flight = Finishing {
        core,
        what,
        future: Some(core.driven(ending())),
        ending: Some(ending),
    };
    let landed = tokio::select! {
        biased;
        landed = std::future::poll_fn(|context| {
            // Taken out while it is polled: one that panics must not be polled again.
            let Some(mut future) = flight.future.take() else {
                return Poll::Pending;
            };
            let landed = future.as_mut().poll(context);
            if landed.is_pending() {
                flight.future = Some(future);
            }
            landed
        }) => landed,
        // It is on its way: the store may have taken it, or may still.
        reason = core.lost() => {
            return Err(core.lost_holding(reason).with_effect(Effect::Unknown));
        }
    };
    match landed {
        Err(error) if error.kind() != ErrorKind::Lost => Err(error.with_effect(Effect::Unknown)),
        landed => {
            flight.ending = None;
            landed
        }
    }
}

/// A change on its way that nothing is held by. Dropped, it is driven to its end, once.
struct Carried<'a, T: Send + 'static> {
    core: &'a Arc<Core>,
    ask: &'a Ask,
    future: Option<BoxFuture<Result<T>>>,
}

impl<T: Send + 'static> Drop for Carried<'_, T> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.ask.withdraw();
            self.core.adopt(async move { drop(future.await) });
        }
    }
}

/// Drives `future` until it lands or the session is lost: whether it has an effect is then unknown.
pub(crate) async fn carry<T: Send + 'static>(
    core: &Arc<Core>,
    ask: &Ask,
    future: BoxFuture<Result<T>>,
) -> Result<T> {
    let mut flight = Carried {
        core,
        ask,
        future: Some(core.driven(future)),
    };
    tokio::select! {
        biased;
        landed = std::future::poll_fn(|context| {
            let Some(mut future) = flight.future.take() else {
                return Poll::Pending;
            };
            let landed = future.as_mut().poll(context);
            if landed.is_pending() {
                flight.future = Some(future);
            }
            landed
        }) => landed,
        reason = core.lost() => Err(core.lost_waiting(reason).with_effect(Effect::Unknown)),
    }
}

/// Repeats a question that changes nothing until the store answers it, or the session ends.
pub(crate) async fn question<T: Send + 'static>(
    core: &Arc<Core>,
    ask: impl Fn() -> BoxFuture<Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        answer = repeated(core, ask) => answer,
        reason = core.lost() => Err(core.lost_waiting(reason)),
    }
}

/// [`question`], for one that goes on when the lease is lost: until the session is ended here.
pub(crate) async fn watching<T: Send + 'static>(
    core: &Arc<Core>,
    ask: impl Fn() -> BoxFuture<Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        // First: what the end of the session does to the store is not news to its owner.
        reason = core.left() => Err(core.lost_waiting(reason)),
        answer = repeated(core, ask) => answer,
    }
}

async fn repeated<T: Send + 'static>(
    core: &Arc<Core>,
    ask: impl Fn() -> BoxFuture<Result<T>>,
) -> Result<T> {
    let mut backoff = Backoff::new(core.ttl);
    loop {
        match core.driven(ask()).await {
            Err(error) if error.is_retryable() => {
                tracing::debug!(error = %error.chain(), "a question failed, trying again");
            }
            answer => return answer,
        }
        core.clock.sleep(backoff.next()).await;
    }
}
