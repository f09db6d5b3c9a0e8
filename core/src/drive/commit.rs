//! Commits on their way: sent, and settled when their answer was lost (rule T4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use super::{Backoff, BoxFuture, Core};
use crate::session::LossReason;
use crate::stm::{Done, Outcome, Resolution, Stm};
use crate::txn::Transaction;
use crate::{Effect, Error, ErrorKind, Result};

/// How a commit is known to have ended.
#[derive(Debug)]
pub(crate) enum Settled {
    /// The store said so.
    Answered(Done),
    /// The answer was lost; the commit's marker says what came of it.
    Found { revision: u64, succeeded: bool },
}

/// How long an answer that is on its way may take once the session has ended: to know is worth a
/// moment.
const LAST_WORD: Duration = Duration::from_secs(1);

/// What the caller and the commit tell each other.
#[derive(Default)]
struct Flag {
    /// The caller has gone: what is not sent yet need not be.
    left: AtomicBool,
    /// A commit was sent and is not settled.
    unsettled: AtomicBool,
}

/// A commit on its way. Dropped before it landed, it goes on in the session's task.
struct Commit<'a> {
    core: &'a Arc<Core>,
    flag: Arc<Flag>,
    future: Option<BoxFuture<Result<Settled>>>,
}

impl Commit<'_> {
    async fn landed(&mut self) -> Result<Settled> {
        std::future::poll_fn(|context| {
            // Taken out while it is polled: one that panics must not be polled again.
            let Some(mut future) = self.future.take() else {
                return Poll::Pending;
            };
            let landed = future.as_mut().poll(context);
            if landed.is_pending() {
                self.future = Some(future);
            }
            landed
        })
        .await
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take() {
            self.flag.left.store(true, Ordering::Relaxed);
            self.core.adopt(async move {
                // Nobody is left to be told.
                let _ = future.await;
            });
        }
    }
}

/// Commits `transaction` and finds out what came of it.
pub(crate) async fn commit<S: Stm + ?Sized>(
    core: &Arc<Core>,
    stm: Arc<S>,
    transaction: Transaction,
) -> Result<Settled> {
    core.validity()
        .map_err(|reason| core.lost_waiting(reason))?;
    let flag = Arc::<Flag>::default();
    let future = settle(Arc::clone(core), stm, transaction, Arc::clone(&flag));
    let mut flight = Commit {
        core,
        flag: Arc::clone(&flag),
        future: Some(core.driven(Box::pin(future))),
    };
    let reason = tokio::select! {
        biased;
        landed = flight.landed() => return landed,
        reason = core.lost() => reason,
    };
    match tokio::time::timeout(LAST_WORD, flight.landed()).await {
        Ok(landed) => landed,
        Err(_) if flag.unsettled.load(Ordering::Relaxed) => Err(unknown(core.lost_waiting(reason))),
        Err(_) => Err(core.lost_waiting(reason)),
    }
}

async fn settle<S: Stm + ?Sized>(
    core: Arc<Core>,
    stm: Arc<S>,
    mut transaction: Transaction,
    flag: Arc<Flag>,
) -> Result<Settled> {
    let mut backoff = Backoff::new(core.ttl);
    loop {
        flag.unsettled.store(true, Ordering::Relaxed);
        let error = match stm.commit(&transaction).await {
            Ok(Outcome::Done(done)) => return Ok(Settled::Answered(done)),
            Ok(Outcome::FenceLost) => return Err(fence_lost(&transaction)),
            Err(error) => error,
        };
        if error.effect() != Effect::None {
            match resolve(&core, &*stm, &transaction).await {
                Ok(Resolution::Committed {
                    revision,
                    succeeded,
                }) => {
                    return Ok(Settled::Found {
                        revision,
                        succeeded,
                    });
                }
                // It did not happen, and never will: only now may it be sent once more.
                Ok(Resolution::Aborted) => {}
                Err(cause) => {
                    tracing::warn!(session = %core.id, error = %error.chain(), cause = %cause.chain(), "the outcome of a commit is unknown");
                    return Err(unknown(cause));
                }
            }
        }
        flag.unsettled.store(false, Ordering::Relaxed);
        let error = error.with_effect(Effect::None);
        if !error.is_retryable() || flag.left.load(Ordering::Relaxed) {
            // Why it ended, the session knows better than the store that finds no lease.
            return Err(match core.validity() {
                Err(reason) if error.kind() == ErrorKind::Lost => core.lost_waiting(reason),
                _ => error,
            });
        }
        core.validity()
            .map_err(|reason| core.lost_waiting(reason))?;
        tracing::debug!(session = %core.id, error = %error.chain(), "a commit did not happen, trying again");
        transaction.anew();
        core.clock.sleep(backoff.next()).await;
    }
}

/// Finds out what came of a commit, for as long as the session lives, and once more.
async fn resolve<S: Stm + ?Sized>(
    core: &Arc<Core>,
    stm: &S,
    transaction: &Transaction,
) -> Result<Resolution> {
    let mut backoff = Backoff::new(core.ttl);
    loop {
        let lives = core.validity().is_ok();
        match stm.resolve(transaction).await {
            Err(error) if error.is_retryable() && lives => {
                tracing::debug!(session = %core.id, error = %error.chain(), "the outcome of a commit is not known yet");
            }
            known => return known,
        }
        core.clock.sleep(backoff.next()).await;
    }
}

fn unknown(cause: Error) -> Error {
    let message = "the commit was sent and whether it took effect could not be found out: read what it was to change before you send it again";
    Error::new(ErrorKind::CommitUnknown, message)
        .with_effect(Effect::Unknown)
        .with_source(cause)
}

fn fence_lost(transaction: &Transaction) -> Error {
    let error = Error::lost(LossReason::Revoked);
    let Some(fence) = &transaction.fence else {
        return error;
    };
    let message = format!(
        "the guard with token {} is not held in the store any more: nothing was committed",
        fence.token()
    );
    Error::new(ErrorKind::Lost, message).on(fence.name().as_str())
}

/// Asks what changes nothing until the store answers or the session ends. An attempt may be
/// dropped in the middle.
pub(crate) async fn persistently<T: Send + 'static>(
    core: &Arc<Core>,
    attempt: impl Fn() -> BoxFuture<Result<T>>,
) -> Result<T> {
    let asking = async {
        let mut backoff = Backoff::new(core.ttl);
        loop {
            match core.driven(attempt()).await {
                Err(error) if error.is_retryable() => {
                    tracing::debug!(session = %core.id, error = %error.chain(), "a read went unanswered, trying again");
                }
                answer => return answer,
            }
            core.clock.sleep(backoff.next()).await;
        }
    };
    core.validity()
        .map_err(|reason| core.lost_waiting(reason))?;
    tokio::select! {
        biased;
        answer = asking => answer,
        reason = core.lost() => Err(core.lost_waiting(reason)),
    }
}
