//! A session that is opened again after a loss.

use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Stop;
use crate::clock::Moment;
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::options::SessionOptions;
use crate::session::{OwnedSession, Session};
use crate::store::Store;

/// The first pause. Half of each is random: after a restart of the store, many processes open sessions.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// The longest pause, which bounds how many processes open a session at a time: with 1,000 of them, some 270 a second.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Sessions of a store one after another, returned by [`Store::supervise`]: when one is lost, the next call opens
/// another.
///
/// The session is closed when this is dropped.
pub struct SupervisedSession {
    store: Store,
    options: SessionOptions,
    session: Mutex<Option<OwnedSession>>,
    /// Held by the call that opens a session.
    attempts: tokio::sync::Mutex<Attempts>,
    /// Notified by each `close`.
    closes: Notify,
}

/// The pause before the next session is opened.
#[derive(Default)]
struct Attempts {
    /// When a session was opened, or tried to be, for the last time.
    tried: Option<Moment>,
    pause: Duration,
    /// When the next one is opened. A call that is dropped in its pause leaves the rest of it to the next call.
    due: Option<Moment>,
}

impl fmt::Debug for SupervisedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedSession")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Store {
    /// Returns sessions one after another: the first is opened by the first call of
    /// [`session`](SupervisedSession::session).
    pub fn supervise(&self, options: SessionOptions) -> SupervisedSession {
        SupervisedSession {
            store: self.clone(),
            options,
            session: Mutex::default(),
            attempts: tokio::sync::Mutex::default(),
            closes: Notify::new(),
        }
    }
}

impl SupervisedSession {
    /// Returns the session, or opens another one if it was lost or closed. An unreachable store is retried for ever:
    /// after 50 ms at first, and after 5 s at most while sessions end soon.
    ///
    /// The new session acquires nothing that the lost one held.
    ///
    /// # Errors
    ///
    /// Those of [`Store::open`] which no retry can help: `Config`, `Unauthorized`, `Unsupported`, `Foreign`,
    /// `Internal`. `Lost` if [`close`](Self::close) is called meanwhile.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn session(&self) -> Result<Session> {
        tokio::select! {
            biased;
            () = self.closes.notified() => Err(Error::lost_waiting(LossReason::Closed)),
            session = self.valid_session() => session,
        }
    }

    async fn valid_session(&self) -> Result<Session> {
        let mut attempts = self.attempts.lock().await;
        loop {
            let session = self.session.lock().as_ref().map(|own| own.0.clone());
            if let Some(session) = session.filter(Session::is_valid) {
                return Ok(session);
            }
            let lost = self.session.lock().take();
            // Without the lock: a drop closes the session.
            drop(lost);
            self.pause(&mut attempts).await;
            attempts.due = None;
            attempts.tried = Some(self.store.clock().now());
            match self.store.open(self.options.clone()).await {
                Ok(session) => *self.session.lock() = Some(OwnedSession(session)),
                Err(error) if is_worth_another_session(&error) => {
                    tracing::warn!(error = %error.chain(), "a session could not be opened: trying again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the session, if there is one. Calls of [`session`](Self::session) in progress end; a later one opens another.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the session is closed in the background.
    pub async fn close(&self) {
        self.closes.notify_waiters();
        let session = self.session.lock().take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// Returns a session for a runner's work, or `None` once `stop` has come.
    pub(super) async fn next(&self, stop: &mut Stop) -> Result<Option<Session>> {
        if stop.has_come() {
            return Ok(None);
        }
        tokio::select! {
            biased;
            () = stop.comes() => Ok(None),
            session = self.session() => session.map(Some),
        }
    }

    /// Closes the session of a runner's work. Returns `None` if the work has to go on in another session.
    pub(super) async fn end<T>(&self, done: Result<T>) -> Result<Option<T>> {
        // Also where the work keeps a guard: it must not keep the holding.
        self.close().await;
        match done {
            Ok(done) => Ok(Some(done)),
            Err(error) if is_worth_another_session(&error) => {
                tracing::warn!(error = %error.chain(), "going on in another session");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Waits before another session is opened, the longer the sooner the last ones ended.
    async fn pause(&self, attempts: &mut Attempts) {
        let clock = self.store.clock();
        let Some(tried) = attempts.tried else {
            return;
        };
        if let Some(due) = attempts.due {
            return clock.sleep_until(due).await;
        }
        attempts.pause = match clock.now().since(tried) > LONGEST_PAUSE * 2 || attempts.pause.is_zero() {
            true => FIRST_PAUSE,
            false => (attempts.pause * 2).min(LONGEST_PAUSE),
        };
        let half = attempts.pause / 2;
        let thousandths = u32::try_from(clock.random() % 1000).unwrap_or_default();
        let due = clock.now() + half + half * thousandths / 1000;
        attempts.due = Some(due);
        clock.sleep_until(due).await;
    }
}

/// Returns whether work that failed with `error` can go on in another session.
fn is_worth_another_session(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Lost | ErrorKind::Unavailable)
}
