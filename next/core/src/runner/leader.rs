//! Work under a leadership, which campaigns again after a loss.

use std::fmt;
use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;

use super::Stop;
use super::supervised::is_worth_another_session;
use crate::election::Leadership;
use crate::error::{Error, ErrorKind, Result};
use crate::options::SessionOptions;
use crate::session::Session;
use crate::store::Store;

/// Options of [`Store::lead_with`].
#[derive(Default)]
pub struct LeadOptions {
    session: SessionOptions,
    until: Option<BoxFuture<'static, ()>>,
}

impl LeadOptions {
    /// Returns the defaults: the store's TTL, for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the TTL of the sessions, which bounds the time between the death of a leader and the next election.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.session = self.session.ttl(ttl);
        self
    }

    /// Stops when `request` ends: a candidate withdraws, and a leader finishes its work and resigns.
    #[must_use]
    pub fn until(mut self, request: impl Future<Output = ()> + Send + 'static) -> Self {
        self.until = Some(Box::pin(request));
        self
    }
}

impl fmt::Debug for LeadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeadOptions")
            .field("session", &self.session)
            .field("until", &self.until.is_some())
            .finish()
    }
}

/// A leadership within [`Store::lead`]. Derefs to [`Leadership`]: token, validity, `proclaim`.
#[derive(Debug)]
pub struct Lead {
    leadership: Leadership,
    stopping: tokio::sync::watch::Receiver<bool>,
}

impl Lead {
    /// Waits until the work has to finish: see [`LeadOptions::until`].
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn stopping(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that the runner has ended, and this work with it.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

impl Deref for Lead {
    type Target = Leadership;

    fn deref(&self) -> &Leadership {
        &self.leadership
    }
}

impl Store {
    /// Leads the election `name` with `value`: campaigns, runs `work` as the leader, resigns when it returns, and
    /// returns its output. After a loss, `work` is dropped at its next await point, and the call campaigns again in a
    /// new session; so `work` may run many times, and never while this process knows that it does not lead.
    ///
    /// The work receives a [`Lead`], whose token protects writes from a leader that was paused.
    ///
    /// ```no_run
    /// # async fn example(store: tenure_core::Store) -> tenure_core::Result<()> {
    /// # async fn run_due_jobs(_: tenure_core::FencingToken) {}
    /// use std::time::Duration;
    ///
    /// store.lead("scheduler", "node-1", async |lead| loop {
    ///     run_due_jobs(lead.token()).await;
    ///     tokio::time::sleep(Duration::from_secs(1)).await;
    /// }).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidName`, `TooLarge`, `Config`, `Unsupported`, `Unauthorized`, `Foreign`, `Internal`; and `Lost` if the
    /// leadership had ended when it was resigned, so that the end of `work` may not have been under it. An
    /// unreachable store and a lost session are retried for ever: after 50 ms at first, and after 5 s at most while
    /// sessions end soon.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`; the leadership is resigned, and the session is closed in the background.
    pub async fn lead<F: Future>(
        &self,
        name: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        work: impl Fn(Arc<Lead>) -> F,
    ) -> Result<F::Output> {
        let led = self.lead_with(name, value, LeadOptions::new(), work).await?;
        // Without a request to stop, only work that has returned ends the call.
        led.ok_or_else(|| Error::new(ErrorKind::Internal, "stopped without a request").during("lead"))
    }

    /// Calls [`lead`](Self::lead) with options. Returns `None` if [`LeadOptions::until`] stopped it before `work` had
    /// returned under a leadership.
    ///
    /// [`Lead::stopping`] signals the request to the work of a leader; the call waits for this work to return, or for
    /// the loss of the leadership.
    ///
    /// # Errors
    ///
    /// As for [`lead`](Self::lead).
    ///
    /// # Cancel safety
    ///
    /// As for [`lead`](Self::lead).
    pub async fn lead_with<F: Future>(
        &self,
        name: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        options: LeadOptions,
        work: impl Fn(Arc<Lead>) -> F,
    ) -> Result<Option<F::Output>> {
        let name = name.as_ref();
        let mut stop = Stop::new(options.until);
        let sessions = self.supervise(options.session);
        loop {
            let session = tokio::select! {
                biased;
                () = stop.comes() => return Ok(None),
                session = sessions.session() => session.map_err(|error| error.during("lead").on(name))?,
            };
            let led = lead_in(&session, name, value.as_ref(), &mut stop, &work).await;
            // Also where the work keeps its `Lead`: it must not keep the leadership.
            sessions.close().await;
            match led {
                Err(Failed::Before(error)) if is_worth_another_session(&error) => {
                    tracing::warn!(name, error = %error.chain(), "campaigning again in another session");
                    if stop.has_come() {
                        return Ok(None);
                    }
                }
                Err(Failed::Before(error) | Failed::AtTheEnd(error)) => return Err(error),
                Ok(led) => return Ok(led),
            }
        }
    }
}

/// The failure of one session's leadership.
enum Failed {
    /// The work had not returned: another session may lead.
    Before(Error),
    /// The work had returned, perhaps after the end of the leadership.
    AtTheEnd(Error),
}

/// Leads once, in `session`.
async fn lead_in<F: Future>(
    session: &Session,
    name: &str,
    value: &[u8],
    stop: &mut Stop,
    work: &impl Fn(Arc<Lead>) -> F,
) -> Result<Option<F::Output>, Failed> {
    let election = session.election(name);
    let leadership = tokio::select! {
        biased;
        () = stop.comes() => return Ok(None),
        elected = election.campaign(value) => elected.map_err(Failed::Before)?,
    };
    let (stopping, signal) = tokio::sync::watch::channel(false);
    let lead = Arc::new(Lead {
        leadership,
        stopping: signal,
    });
    let done = {
        // The closure is called within, so that it does not run after a loss.
        let mut working = pin!(lead.while_held(async { work(Arc::clone(&lead)).await }));
        tokio::select! {
            done = &mut working => done,
            () = stop.comes() => {
                stopping.send_replace(true);
                working.await
            }
        }
    };
    let done = done.map_err(Failed::Before)?;
    // If the work has kept it, the end of the session resigns.
    if let Some(lead) = Arc::into_inner(lead) {
        let resigned = lead.leadership.resign_after_work("lead").await;
        resigned.map_err(Failed::AtTheEnd)?;
    }
    Ok(Some(done))
}
