//! Work under a leadership, which campaigns again after a loss.

use std::ops::Deref;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use super::Stop;
use crate::election::Leadership;
use crate::error::{Error, ErrorKind, Result};
use crate::options::SessionOptions;
use crate::session::Session;
use crate::store::Store;

/// Options of [`Store::lead_with`].
#[derive(Debug, Default)]
pub struct LeadOptions {
    session: SessionOptions,
    stop: Stop,
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
        self.stop = Stop::at(request);
        self
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
    pub async fn lead_with<F: Future>(
        &self,
        name: impl AsRef<str>,
        value: impl AsRef<[u8]>,
        options: LeadOptions,
        work: impl Fn(Arc<Lead>) -> F,
    ) -> Result<Option<F::Output>> {
        let name = name.as_ref();
        let mut stop = options.stop;
        let sessions = self.supervise(options.session);
        let explain = |error: Error| error.during("lead").on(name);
        while let Some(session) = sessions.next(&mut stop).await.map_err(explain)? {
            let led = lead_in(&session, name, value.as_ref(), &mut stop, &work).await;
            if let Some(led) = sessions.end(led).await? {
                return led.transpose();
            }
        }
        Ok(None)
    }
}

/// Leads once, in `session`. Returns the output of the work or the failure of the resignation after it, or `None` if `stop`
/// came first. After an error the work had not returned: another session may lead.
async fn lead_in<F: Future>(
    session: &Session,
    name: &str,
    value: &[u8],
    stop: &mut Stop,
    work: &impl Fn(Arc<Lead>) -> F,
) -> Result<Option<Result<F::Output>>> {
    let election = session.election(name);
    let leadership = tokio::select! {
        biased;
        () = stop.comes() => return Ok(None),
        elected = election.campaign(value) => elected?,
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
    let done = done?;
    // If the work has kept it, the end of the session resigns.
    let resigned = match Arc::into_inner(lead) {
        Some(lead) => lead.leadership.resign_after_work("lead").await,
        None => Ok(()),
    };
    Ok(Some(resigned.map(|()| done)))
}
