//! The state that the handles, guards and tasks of a session share: deadline, validity, loss.

use std::ops::Deref;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use super::departures::Departures;
use super::registry::RequestRegistry;
use super::retry::RetryScope;
use super::signal::Signal;
use super::slots::Slots;
use super::unfinished::StoreRef;
use crate::backend::{BackendSession, Opened};
use crate::clock::{Clock, Moment};
use crate::error::{Effect, Error, ErrorKind, LossReason, Result};
use crate::executor::Executor;
use crate::options::SessionId;
use crate::sync::{AtomicU64, Mutex, Notify, Ordering};

/// A reference from a session, handle or guard of the application. The last drop closes the session in the background.
pub(crate) type SessionRef = Arc<SessionState>;

/// A session that is open, for as long as a reference to this exists.
pub(crate) struct SessionState {
    // Dropped in this order: the session begins to end before the last value of the store waits for the end.
    close_on_drop: CloseOnDrop,
    #[expect(dead_code, reason = "its drop is its use")]
    store_ref: Arc<StoreRef>,
}

impl Deref for SessionState {
    type Target = Arc<SessionCore>;

    fn deref(&self) -> &Arc<SessionCore> {
        self.core()
    }
}

impl SessionState {
    /// Returns what does not keep the session open, unlike a clone of the [`SessionRef`].
    pub(crate) const fn core(&self) -> &Arc<SessionCore> {
        &self.close_on_drop.0
    }

    pub(super) const fn new(close_on_drop: CloseOnDrop, store_ref: Arc<StoreRef>) -> Self {
        Self {
            close_on_drop,
            store_ref,
        }
    }
}

/// Closes the session in the background when it is dropped.
pub(super) struct CloseOnDrop(Arc<SessionCore>);

impl CloseOnDrop {
    pub(super) fn new(core: &Arc<SessionCore>) -> Self {
        Self(Arc::clone(core))
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        // Reads no clock and writes no log: a drop may run while the locals of its thread are being dropped.
        self.0.loss.set(LossReason::Closed);
    }
}

/// The state of a session. Its tasks and requests refer to it without keeping the session open.
pub(crate) struct SessionCore {
    id: SessionId,
    ttl: Duration,
    clock: Clock,
    executor: Executor,
    backend: Arc<dyn BackendSession>,
    pub(super) registry: RequestRegistry,
    pub(super) steps: Arc<Slots>,
    pub(super) departures: Departures,
    /// Nanoseconds of the [`Moment`] at which validity ends.
    deadline: AtomicU64,
    /// The last renewal's failure, if it failed.
    renewal_error: Mutex<Option<(ErrorKind, String)>>,
    loss: Signal<LossReason>,
    /// Set when the session has ended in the store, or its end was given up.
    ended_in_store: Signal<Confirmed>,
    /// Demands a renewal before the next one is due.
    pub(super) renew_now: Notify,
}

/// Whether the store has confirmed the end of a session, or why not.
pub(super) type Confirmed = Result<(), (ErrorKind, Arc<str>)>;

/// Returns the error of a call that took longer than its limit.
pub(super) fn timed_out(limit: Duration) -> Error {
    let message = format!("no result within {limit:?}: retry, or wait longer");
    Error::new(ErrorKind::TimedOut, message)
}

/// Returns the margin by which validity ends before the store can free a holding (rule S2). It is TTL/20, at least 50 ms, and
/// at most half of a very short TTL.
fn margin(ttl: Duration) -> Duration {
    (ttl / 20).max(Duration::from_millis(50)).min(ttl / 2)
}

impl SessionCore {
    pub(super) fn new(clock: Clock, executor: Executor, opened: Opened) -> Self {
        Self {
            registry: RequestRegistry::new(opened.first_nonce, opened.capacity),
            steps: Slots::of_steps(),
            departures: Departures::new(&opened.session),
            id: opened.id,
            ttl: opened.ttl,
            backend: opened.session,
            clock,
            executor,
            deadline: AtomicU64::new(0),
            renewal_error: Mutex::new(None),
            loss: Signal::new(),
            ended_in_store: Signal::new(),
            renew_now: Notify::new(),
        }
    }

    pub(crate) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn executor(&self) -> &Executor {
        &self.executor
    }

    pub(crate) fn backend(&self) -> &Arc<dyn BackendSession> {
        &self.backend
    }

    pub(super) fn deadline(&self) -> Moment {
        Moment::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    /// Records an acknowledged renewal whose first message was sent at `sent` or later.
    pub(super) fn renewed(&self, sent: Moment) {
        let deadline = sent + self.ttl - margin(self.ttl);
        self.deadline.store(deadline.as_nanos(), Ordering::Release);
        *self.renewal_error.lock() = None;
    }

    /// Records a renewal that failed for a reason other than a lost lease.
    pub(super) fn not_renewed(&self, error: &Error) {
        *self.renewal_error.lock() = Some((error.kind(), error.chain().to_string()));
    }

    /// Returns the remaining validity by the clock, or why the session ended. The first caller that finds the deadline passed
    /// makes the loss final for all callers.
    pub(crate) fn validity(&self) -> Result<Duration, LossReason> {
        if let Some(reason) = self.loss.get() {
            return Err(reason);
        }
        let mut deadline = self.deadline();
        loop {
            // The clock is read last, so that the answer was true at that instant.
            let left = deadline.since(self.clock.now());
            if !left.is_zero() {
                return Ok(left);
            }
            // A concurrent renewal may have moved the deadline.
            let moved = self.deadline();
            if moved == deadline {
                break;
            }
            deadline = moved;
        }
        let reason = match &*self.renewal_error.lock() {
            Some((ErrorKind::Unauthorized, _)) => LossReason::Refused,
            Some((ErrorKind::Internal, _)) => LossReason::Failed,
            Some(_) => LossReason::Unreachable,
            None => LossReason::Expired,
        };
        self.lose(reason);
        Err(self.loss.get().unwrap_or(reason))
    }

    /// Ends the validity of the session, once.
    pub(crate) fn lose(&self, reason: LossReason) {
        self.loss.set(reason);
    }

    /// Ends the validity of a session that has ended in the store. `Closed` and `Detached` mean that this process ended it:
    /// releases are left out then.
    pub(super) fn lose_in_store(&self, reason: LossReason) {
        self.lose(match reason {
            LossReason::Closed | LossReason::Detached => LossReason::Revoked,
            reason => reason,
        });
    }

    pub(crate) fn loss(&self) -> &Signal<LossReason> {
        &self.loss
    }

    pub(crate) fn ended_in_store(&self) -> &Signal<Confirmed> {
        &self.ended_in_store
    }

    /// Waits for the loss. A task of the executor signals it by the deadline; each poll looks at the clock too, for a process
    /// that was stopped. Needs no timer, and does not keep the session open.
    pub(crate) fn lost(self: &Arc<Self>) -> impl Future<Output = LossReason> + Send + use<> {
        let core = Arc::clone(self);
        async move {
            let mut signalled = std::pin::pin!(core.loss.wait());
            std::future::poll_fn(|context| match core.validity() {
                Err(reason) => Poll::Ready(reason),
                Ok(_) => signalled.as_mut().poll(context),
            })
            .await
        }
    }

    /// Returns whether the session was closed or detached in this process: a release is then needless, or wrong. Reads no
    /// clock.
    pub(crate) fn closed_locally(&self) -> Option<LossReason> {
        let here = |reason: &LossReason| matches!(reason, LossReason::Closed | LossReason::Detached);
        self.loss.get().filter(here)
    }

    pub(super) fn stopped(&self, scope: RetryScope) -> Option<Error> {
        match scope {
            RetryScope::Valid => self.validity().err().map(|reason| self.lost_waiting(reason)),
            RetryScope::InStore => self.ended_in_store.get().map(|_| {
                let reason = self.loss.get().unwrap_or(LossReason::Closed);
                self.lost_waiting(reason)
            }),
        }
    }

    pub(super) async fn over(self: &Arc<Self>, scope: RetryScope) {
        match scope {
            RetryScope::Valid => drop(self.lost().await),
            RetryScope::InStore => drop(self.ended_in_store.wait().await),
        }
    }

    /// Returns the `Lost` error of a holder, with the last renewal's failure.
    pub(crate) fn lost_holding(&self, reason: LossReason) -> Error {
        self.with_renewal_error(Error::lost(reason))
    }

    /// Returns the `Lost` error of a waiter or a request, with the last renewal's failure.
    pub(crate) fn lost_waiting(&self, reason: LossReason) -> Error {
        self.with_renewal_error(Error::lost_waiting(reason))
    }

    fn with_renewal_error(&self, error: Error) -> Error {
        match (error.loss(), &*self.renewal_error.lock()) {
            (Some(LossReason::Unreachable | LossReason::Refused | LossReason::Failed), Some((kind, text))) => {
                error.with_source(Error::new(*kind, text.clone()))
            }
            _ => error,
        }
    }

    /// Names the operation of a failed call, and marks the error if its session has ended.
    pub(crate) fn explain(&self, error: Error, operation: &'static str, name: Option<&str>) -> Error {
        let error = match self.validity() {
            Err(_) => error.with_session_ended(),
            Ok(_) => error,
        };
        let error = error.during(operation);
        match name {
            Some(name) => error.on(name),
            None => error,
        }
    }

    /// Runs `work` for a caller: polls it in place with the executor entered, for at most `limit`, and ends it with the
    /// session.
    pub(crate) async fn run<T>(
        self: &Arc<Self>,
        limit: Option<Duration>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let bounded = async {
            let too_late = async {
                match limit {
                    Some(limit) => self.clock.sleep(limit).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                done = work => done,
                reason = self.lost() => Err(self.lost_waiting(reason)),
                () = too_late => Err(timed_out(limit.unwrap_or_default())),
            }
        };
        self.executor.run_in_place(bounded).await
    }

    /// Closes the session and waits until the store has confirmed it.
    pub(crate) async fn close(self: &Arc<Self>) -> Result<()> {
        self.end_as(LossReason::Closed, "close").await
    }

    /// Detaches the session and waits until the store has confirmed it.
    pub(crate) async fn detach(self: &Arc<Self>) -> Result<()> {
        self.end_as(LossReason::Detached, "detach").await
    }

    async fn end_as(self: &Arc<Self>, reason: LossReason, operation: &'static str) -> Result<()> {
        // The renewal task ends the session as the reason says.
        let first = match self.validity() {
            Ok(_) => self.loss.set(reason),
            Err(_) => false,
        };
        let ended = self.loss.get().unwrap_or(reason);
        if ended != reason || (!first && reason == LossReason::Detached) {
            return Err(self.explain(self.lost_waiting(ended), operation, None));
        }
        let confirmed = self.ended_in_store.wait().await;
        confirmed.map_err(|(kind, text)| {
            let error = Error::new(kind, &*text).with_effect(Effect::Unknown);
            self.explain(error, operation, None)
        })
    }
}
