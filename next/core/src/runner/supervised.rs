//! A session that is opened again after a loss.

use std::fmt;
use std::time::Duration;

use crate::clock::Moment;
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::options::SessionOptions;
use crate::session::Session;
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
    state: tokio::sync::Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<OwnSession>,
    /// When a session was opened, or tried to be, for the last time.
    tried: Option<Moment>,
    pause: Duration,
}

impl fmt::Debug for SupervisedSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisedSession")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// A session that ends with its owner, also while its guards are kept elsewhere.
struct OwnSession(Session);

impl OwnSession {
    /// Closes the session; its TTL does if that fails.
    async fn close(self) {
        let session = &self.0;
        if let Err(error) = session.close().await
            && error.kind() != ErrorKind::Lost
        {
            tracing::warn!(session = %session.id(), error = %error.chain(), "the session was not closed; its TTL ends it");
        }
    }
}

impl Drop for OwnSession {
    fn drop(&mut self) {
        self.0.state().lose(LossReason::Closed);
    }
}

impl Store {
    /// Returns sessions one after another: the first is opened by the first call of
    /// [`session`](SupervisedSession::session).
    pub fn supervise(&self, options: SessionOptions) -> SupervisedSession {
        SupervisedSession {
            store: self.clone(),
            options,
            state: tokio::sync::Mutex::default(),
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
    /// `Internal`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn session(&self) -> Result<Session> {
        let mut state = self.state.lock().await;
        loop {
            if let Some(own) = state.session.as_ref().filter(|own| own.0.is_valid()) {
                return Ok(own.0.clone());
            }
            state.session = None;
            self.pause(&mut state).await;
            state.tried = Some(self.store.clock().now());
            match self.store.open(self.options.clone()).await {
                Ok(session) => state.session = Some(OwnSession(session)),
                Err(error) if is_worth_another_session(&error) => {
                    tracing::warn!(error = %error.chain(), "a session could not be opened: trying again");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes the session, if there is one. A later call of [`session`](Self::session) opens another.
    ///
    /// # Cancel safety
    ///
    /// Once polled, the session is closed in the background.
    pub async fn close(&self) {
        let session = self.state.lock().await.session.take();
        if let Some(session) = session {
            session.close().await;
        }
    }

    /// Waits before another session is opened, the longer the sooner the last ones ended.
    async fn pause(&self, state: &mut State) {
        let clock = self.store.clock();
        let Some(tried) = state.tried else {
            return;
        };
        state.pause = match clock.now().since(tried) > LONGEST_PAUSE * 2 || state.pause.is_zero() {
            true => FIRST_PAUSE,
            false => (state.pause * 2).min(LONGEST_PAUSE),
        };
        let half = state.pause / 2;
        let thousandths = u32::try_from(clock.random() % 1000).unwrap_or_default();
        clock.sleep(half + half * thousandths / 1000).await;
    }
}

/// Returns whether work that failed with `error` can go on in another session.
pub(super) fn is_worth_another_session(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Lost | ErrorKind::Unavailable)
}
