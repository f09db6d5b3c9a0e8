//! Requests on their way: polled in place by their caller, adopted by the session's task when the
//! caller lets go of them.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::{Backoff, BoxFuture, Core};
use crate::ask::{Ask, Grant};
use crate::session::LossReason;
use crate::{Effect, Error, ErrorKind, Result};

/// How a backend's primitive takes back what an ask got, or may still get.
pub(crate) trait Settle: Send + Sync + 'static {
    /// Gives a grant back. Idempotent, fenced.
    fn release(&self, ask: Ask, grant: Grant) -> BoxFuture<Result<()>>;

    /// Removes whatever the ask left, now or when its request arrives late.
    fn withdraw(&self, ask: Ask) -> BoxFuture<Result<()>>;
}

/// An acquire on its way. Dropped before it landed, it goes on in the session's task.
struct Flight<'a> {
    core: &'a Arc<Core>,
    settle: &'a Arc<dyn Settle>,
    ask: &'a Ask,
    future: Option<BoxFuture<Result<Option<Grant>>>>,
    landed: bool,
}

impl Flight<'_> {
    async fn landed(&mut self) -> Result<Option<Grant>> {
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

impl Drop for Flight<'_> {
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
pub(crate) async fn answered<F>(
    core: Arc<Core>,
    ask: Ask,
    attempt: impl Fn() -> F,
) -> Result<Option<Grant>>
where
    F: Future<Output = Result<Option<Grant>>>,
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
        tracing::debug!(name = %ask.name(), %error, "attempt failed, trying again");
        tokio::select! {
            () = core.clock.sleep(backoff.next()) => {}
            () = ask.withdrawn() => return Err(Error::withdrawn()),
        }
    }
}

fn give_back(core: &Arc<Core>, settle: &Arc<dyn Settle>, ask: &Ask, grant: Grant) {
    let landed = Ok(Some(grant));
    core.adopt(undo(
        Arc::clone(core),
        Arc::clone(settle),
        ask.clone(),
        landed,
    ));
}

/// Takes back what an attempt that nobody waits for any more got, or may have left.
async fn undo(core: Arc<Core>, settle: Arc<dyn Settle>, ask: Ask, landed: Result<Option<Grant>>) {
    match landed {
        Ok(Some(grant)) => {
            core.persist("giving back a grant", || {
                settle.release(ask.clone(), grant.clone())
            })
            .await;
        }
        Err(error) if error.effect() != Effect::None => {
            core.persist("withdrawing", || settle.withdraw(ask.clone()))
                .await;
        }
        Ok(None) | Err(_) => {}
    }
}

/// Polls `future` in place until it lands, the session is lost, or `limit` has passed.
pub(crate) async fn acquire(
    core: &Arc<Core>,
    settle: &Arc<dyn Settle>,
    ask: &Ask,
    future: BoxFuture<Result<Option<Grant>>>,
    limit: Option<Duration>,
) -> Result<Option<Grant>> {
    let mut flight = Flight {
        core,
        settle,
        ask,
        future: Some(future),
        landed: false,
    };
    let clock = core.clock.clone();
    let landed = tokio::select! {
        biased;
        landed = flight.landed() => landed,
        reason = core.lost() => return Err(Error::lost(reason)),
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
            Err(Error::lost(reason))
        }
        // Taken up by `reclaim` in the meantime: one holding has one guard.
        (Ok(Some(grant)), None) if !ask.claim(grant.token()) => {
            give_back(core, settle, ask, grant);
            Err(Error::lost(LossReason::Revoked))
        }
        (Err(error), end) => {
            if error.effect() != Effect::None {
                let copy = Error::new(error.kind(), "").with_effect(error.effect());
                let undoing = undo(Arc::clone(core), Arc::clone(settle), ask.clone(), Err(copy));
                core.adopt(undoing);
            }
            // Why it ended, the session knows better than the store that finds no lease.
            match end {
                Some(reason) if error.kind() == ErrorKind::Lost => Err(Error::lost(reason)),
                _ => Err(error),
            }
        }
        (Ok(None), _) => Ok(None),
        (Ok(grant), None) => Ok(grant),
    }
}

/// Goes on with a release: with the first attempt, if that is still on its way, then with others.
type Again = Box<dyn FnOnce(Option<BoxFuture<Result<()>>>) -> BoxFuture<()> + Send>;

/// A release on its way. Dropped before it landed, it goes on in the session's task.
struct Release<'a> {
    core: &'a Arc<Core>,
    again: Option<Again>,
    future: Option<BoxFuture<Result<()>>>,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        if let Some(again) = self.again.take() {
            self.core.adopt(again(self.future.take()));
        }
    }
}

/// Releases `grant` and waits for the answer. What was not confirmed is tried again in the
/// background until it is, or the session ends.
pub(crate) async fn release(
    core: &Arc<Core>,
    settle: &Arc<dyn Settle>,
    ask: Ask,
    grant: Grant,
) -> Result<()> {
    let again = {
        let (core, settle, ask, grant) = (
            Arc::clone(core),
            Arc::clone(settle),
            ask.clone(),
            grant.clone(),
        );
        move |first: Option<BoxFuture<Result<()>>>| -> BoxFuture<()> {
            Box::pin(async move {
                if let Some(first) = first {
                    match first.await {
                        Err(error) if error.kind() != ErrorKind::Lost => {}
                        _ => return,
                    }
                }
                core.persist("releasing", || settle.release(ask.clone(), grant.clone()))
                    .await;
            })
        }
    };
    let mut flight = Release {
        core,
        again: Some(Box::new(again)),
        future: Some(settle.release(ask, grant)),
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
        reason = core.lost() => return Err(Error::lost(reason)),
    };
    match landed {
        Err(error) if error.kind() != ErrorKind::Lost => Err(error.with_effect(Effect::Unknown)),
        landed => {
            flight.again = None;
            landed
        }
    }
}
