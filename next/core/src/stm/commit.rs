//! Commits, and the resolution of those whose answer was lost (rule T4).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use futures_util::FutureExt;

use crate::backend::{Commit, CommitOutcome, Marker, Resolution, Stm};
use crate::compare::OpResult;
use crate::error::{Effect, Error, ErrorKind, Result};
use crate::runtime::retry::Backoff;
use crate::runtime::session::{SessionCore, SessionRef};
use crate::runtime::step::step;

/// A commit that was carried out.
pub(crate) struct Committed {
    /// Whether all comparisons held.
    pub(crate) succeeded: bool,
    pub(crate) revision: u64,
    /// The results of the operations, or `None` if the answer was lost and only the marker shows the outcome.
    pub(crate) results: Option<Vec<OpResult>>,
}

/// The outcome of one marker.
enum Sent {
    Committed(Committed),
    FenceLost,
    /// It had no effect and never will.
    Aborted,
    /// The store cannot tell, and asking again cannot help: a later step has overwritten the slot, for example.
    Unresolved(Error),
}

/// How far a commit has come, for its caller and for the step that sends it.
#[derive(Default)]
struct Progress {
    /// Whether a commit was sent whose outcome is not known.
    in_doubt: AtomicBool,
    /// Whether the caller has stopped waiting.
    dropped: AtomicBool,
}

impl Progress {
    /// Returns whether the outcome is unknown, for a caller that has seen the loss of its session: a commit that is
    /// not in doubt is not sent any more.
    fn is_in_doubt(&self) -> bool {
        fence(Ordering::SeqCst);
        self.in_doubt.load(Ordering::SeqCst)
    }

    /// Marks a commit as in doubt before it is sent.
    ///
    /// # Errors
    ///
    /// An error without effect if it must not be sent any more, because its caller does not wait for the outcome.
    fn begin(&self, session: &SessionCore) -> Result<()> {
        self.in_doubt.store(true, Ordering::SeqCst);
        // With the fence of the caller: either the caller sees the mark, or this sees the loss.
        fence(Ordering::SeqCst);
        let begun = match session.validity() {
            Err(reason) => Err(session.lost_waiting(reason)),
            Ok(_) if self.dropped.load(Ordering::Acquire) => {
                Err(Error::new(ErrorKind::TimedOut, "dropped by the caller"))
            }
            Ok(_) => Ok(()),
        };
        if begun.is_err() {
            self.in_doubt.store(false, Ordering::SeqCst);
        }
        begun
    }
}

/// The caller's reference to the progress.
struct Caller(Arc<Progress>);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Release);
    }
}

/// Sends `commit` until its outcome is known. Its marker is a placeholder: each commit that is sent has its own.
pub(crate) async fn commit(
    session: &SessionRef,
    operation: &'static str,
    stm: &Arc<dyn Stm>,
    commit: Commit,
) -> Result<Committed> {
    let commit = Arc::new(commit);
    let mut backoff = Backoff::new(session.ttl());
    loop {
        let progress = Caller(Arc::default());
        let sent = {
            // Not the session itself: a commit whose caller is gone must not keep it open.
            let sending = (
                Arc::<SessionCore>::clone(session),
                Arc::clone(stm),
                Arc::clone(&commit),
                Arc::clone(&progress.0),
            );
            let attempt = move |marker| {
                let (session, stm, commit, progress) = sending.clone();
                async move { send(&session, &*stm, &commit, marker, &progress).await }.boxed()
            };
            step(session, operation, None, attempt).await
        };
        match sent {
            Ok(Sent::Committed(committed)) => return Ok(committed),
            Ok(Sent::FenceLost) => return Err(fence_lost(&commit).during(operation)),
            // Only now is it safe to send it again, under another marker.
            Ok(Sent::Aborted) => {
                tracing::debug!(session = %session.id(), "a commit was not carried out: it is sent again");
                let pause = session.clock().sleep(backoff.next());
                session.executor().run_in_place(pause).await;
            }
            Ok(Sent::Unresolved(error)) => return Err(unknown(error).during(operation)),
            Err(error) if progress.0.is_in_doubt() => return Err(unknown(error).during(operation)),
            Err(error) => return Err(error.with_effect(Effect::None)),
        }
    }
}

/// Sends the commit under `marker`, or finds out what became of it if it was sent before.
async fn send(
    session: &SessionCore,
    stm: &dyn Stm,
    commit: &Commit,
    marker: Marker,
    progress: &Progress,
) -> Result<Sent> {
    // What the store would say again.
    let mut refusal = None;
    if !progress.in_doubt.load(Ordering::SeqCst) {
        progress.begin(session)?;
        let commit = Commit {
            marker,
            ..commit.clone()
        };
        let error = match stm.commit(&commit).await {
            Ok(CommitOutcome::Done(record)) => {
                return Ok(Sent::Committed(Committed {
                    succeeded: record.succeeded,
                    revision: record.revision,
                    results: Some(record.results),
                }));
            }
            Ok(CommitOutcome::FenceLost) => return Ok(Sent::FenceLost),
            Err(error) => error,
        };
        if error.effect() == Effect::None {
            progress.in_doubt.store(false, Ordering::SeqCst);
            return Err(error);
        }
        tracing::debug!(error = %error.chain(), "the answer to a commit was lost");
        if !error.is_retryable() {
            refusal = Some(error);
        }
    }
    match stm.resolve(marker).await {
        Ok(Resolution::Committed { succeeded, revision }) => Ok(Sent::Committed(Committed {
            succeeded,
            revision,
            results: None,
        })),
        Ok(Resolution::Aborted) => match refusal {
            Some(error) => {
                progress.in_doubt.store(false, Ordering::SeqCst);
                Err(error.with_effect(Effect::None))
            }
            None => Ok(Sent::Aborted),
        },
        // The question is repeated. The effect of the commit is unknown, whatever that of the question was.
        Err(error) if error.is_retryable() || error.kind() == ErrorKind::Unauthorized => {
            Err(error.with_effect(Effect::Unknown))
        }
        Err(error) => Ok(Sent::Unresolved(error)),
    }
}

fn unknown(cause: Error) -> Error {
    let message = "the commit was sent, and whether it took effect could not be determined: read what it was to change before you send it again";
    let error = Error::new(ErrorKind::CommitUnknown, message).with_effect(Effect::Unknown);
    let error = match cause.needs_new_session() || cause.kind() == ErrorKind::Lost {
        true => error.with_session_ended(),
        false => error,
    };
    error.with_source(cause)
}

fn fence_lost(commit: &Commit) -> Error {
    let Some(fence) = &commit.fence else {
        return Error::new(
            ErrorKind::Internal,
            "the store reports a lost fence for a commit without one",
        );
    };
    let message = format!(
        "the guard with token {} is not held in the store any more: nothing was committed",
        fence.token
    );
    Error::new(ErrorKind::Lost, message).on(fence.name.as_str())
}
