//! What stands behind every session: its state, shared by handles, guards and the session's task
//! (here); the way of a request that its caller may let go of (`flight.rs`); and the task itself,
//! which renews, watches the deadline, and drives to its end what was let go of (`task.rs`).
//!
//! A backend's future is never dropped in mid-request. A caller polls its own acquire in place
//! (fast: no hop through a task); when the caller's future is dropped, times out or loses its
//! session, the *whole* backend future moves to the session's task, which brings it to its end
//! and gives back whatever it still got. So a cancelled wait leaves no ghost (rule L5).

mod commit;
mod flight;
mod task;

pub(crate) use commit::{Settled, commit, persistently};
pub(crate) use flight::{
    Ending, Landed, acquire, answered, carry, finish, question, releasing, watching, withdrawing,
};

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tracing::Instrument as _;

use crate::ask::{Alarm, Ask, Book};
use crate::clock::{Clock, Moment};
use crate::ledger::Ledger;
use crate::name::{Kind, Name};
use crate::session::{Held, Lease, LossReason, Opened, SessionId};
use crate::signal::Signal;
use crate::{Effect, Error, ErrorKind, Result};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send + 'static>>;

/// Validity ends this much before the store could free anything: TTL/20, at least 50 ms (rule
/// S2); never more than half of a very short TTL.
fn margin(ttl: Duration) -> Duration {
    (ttl / 20).max(Duration::from_millis(50)).min(ttl / 2)
}

/// How long the task waits for what is left to do once nobody needs the session any more.
const GRACE: Duration = Duration::from_secs(10);

/// How much longer than its own bounds the task may take to answer a request: it runs on the runtime on which the
/// session was opened, which may be busy.
const ANSWER: Duration = Duration::from_secs(1);

enum Message {
    /// Something that a caller let go of, to be driven to its end.
    Adopt(BoxFuture<()>),
    Close(oneshot::Sender<Result<()>>),
    Detach(oneshot::Sender<Result<()>>),
    /// The last session, handle and guard is gone.
    Abandon,
}

/// What a session's task, handles and guards share.
pub(crate) struct Core {
    id: SessionId,
    ttl: Duration,
    capacity: usize,
    clock: Clock,
    lease: Arc<dyn Lease>,
    /// Nanoseconds of the [`Moment`] at which validity ends.
    deadline: AtomicU64,
    /// Why the last renewal failed, if it did, kind and text: tells `Unreachable` and `Refused` from
    /// `Expired`.
    trouble: Mutex<Option<(ErrorKind, String)>>,
    loss: Signal<LossReason>,
    book: Arc<Book>,
    held: Mutex<HashMap<u64, Entered>>,
    mailbox: mpsc::UnboundedSender<Message>,
    /// On which the session was opened.
    runtime: Handle,
    /// What the sessions of one `Store` share. Also tells one `Store` from another.
    ledger: Arc<Ledger>,
}

/// What a guard of the session holds.
struct Entered {
    held: Held,
    alarm: Alarm,
    /// For what is shared: the task that took it.
    taker: Option<Taker>,
}

/// A task, or a thread outside of any task.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taker {
    Task(tokio::task::Id),
    Thread(std::thread::ThreadId),
}

impl Taker {
    fn current() -> Self {
        tokio::task::try_id().map_or_else(|| Self::Thread(std::thread::current().id()), Self::Task)
    }
}

/// Every session, handle and guard has one in an `Arc`: the last to go abandons the session.
pub(crate) struct Keeper(Arc<Core>);

impl Drop for Keeper {
    fn drop(&mut self) {
        // Without the task (its runtime has ended) there is nobody to tell: the TTL bounds the rest.
        let _ = self.0.mailbox.send(Message::Abandon);
    }
}

impl Keeper {
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0
    }

    pub(crate) async fn close(&self) -> Result<()> {
        let core = &self.0;
        if let Err(reason) = core.validity()
            && !core.ended_here()
        {
            return Err(core.lost_waiting(reason));
        }
        let closed = self.ask_task(Message::Close).await;
        if let Some(closed) = closed {
            return closed;
        }
        // The task finds the request, and that the session has ended, once its runtime goes on.
        core.lose(LossReason::Closed);
        Err(no_answer_of_the_task())
    }

    pub(crate) async fn detach(&self) -> Result<()> {
        if !self.0.lease.detachable() {
            return Err(Error::unsupported("detaching a session"));
        }
        let detached = self.ask_task(Message::Detach).await;
        detached.unwrap_or_else(|| Err(no_answer_of_the_task()))
    }

    /// `None` if the session's task did not answer in time, because its runtime is blocked or nobody drives it.
    async fn ask_task(
        &self,
        message: fn(oneshot::Sender<Result<()>>) -> Message,
    ) -> Option<Result<()>> {
        let core = &self.0;
        let (reply, answer) = oneshot::channel();
        let gone = || {
            let reason = core.validity().err().unwrap_or(LossReason::Closed);
            core.lost_waiting(reason)
        };
        if core.mailbox.send(message(reply)).is_err() {
            return Some(Err(gone()));
        }
        // The task itself gives up first: see `settle_orphans`, and the bounds of revoking and detaching.
        let bound = GRACE.min(core.ttl) + GRACE.min(core.ttl / 4) + ANSWER;
        let too_late = core.sleep_until(core.clock.now() + bound);
        tokio::select! {
            biased;
            answered = answer => Some(answered.unwrap_or_else(|_| Err(gone()))),
            () = too_late => None,
        }
    }
}

/// Runs `opening` where a caller that goes away cannot interrupt it, and starts the session's task.
pub(crate) async fn open<S, F>(
    clock: Clock,
    ledger: Arc<Ledger>,
    opening: F,
    resumed: bool,
) -> Result<(Arc<Keeper>, Arc<S>)>
where
    S: ?Sized + Send + Sync + 'static,
    F: Future<Output = Result<Opened<S>>> + Send + 'static,
    Arc<S>: IntoLease,
{
    // In a task of its own: if the caller is dropped, so is the task's result, and with it the
    // keeper, which revokes the lease.
    let opened = tokio::spawn(async move {
        let asked = clock.now();
        let Opened {
            lease,
            id,
            ttl,
            capacity,
        } = opening.await?;
        let (mailbox, mail) = mpsc::unbounded_channel();
        let core = Arc::new(Core {
            id,
            ttl,
            capacity,
            deadline: AtomicU64::new(0),
            trouble: Mutex::default(),
            loss: Signal::new(),
            book: Arc::default(),
            held: Mutex::default(),
            mailbox,
            runtime: Handle::current(),
            lease: lease.clone().into_lease(),
            clock,
            ledger,
        });
        core.renewed(asked);
        let keeper = Arc::new(Keeper(Arc::clone(&core)));
        // Nothing is valid before the first renewal of a resumed session; and a slow connection
        // may have eaten up the time of a new one.
        let mut renewed_at = asked;
        if resumed || core.clock.now().since(asked) > ttl / 3 {
            renewed_at = core.clock.now();
            let renewal = tokio::time::timeout(ttl, core.lease.renew()).await;
            let renewal = renewal.unwrap_or_else(|_| {
                Err(Error::new(
                    ErrorKind::Unavailable,
                    "the store did not answer the first renewal",
                ))
            });
            if let Err(error) = renewal {
                // Nobody will get this session: what it holds is not to wait for its TTL.
                tokio::spawn(async move { core.revoke().await });
                return Err(error);
            }
            core.renewed(renewed_at);
        }
        tracing::debug!(session = %core.id, ?ttl, resumed, "session open");
        tokio::spawn(task::run(core, mail, renewed_at));
        Ok((keeper, lease))
    });
    opened.await.unwrap_or_else(|broken| {
        Err(Error::new(
            ErrorKind::Internal,
            "the task that opens the session ended early",
        )
        .with_source(broken))
    })
}

/// `Arc<S>` or `Arc<dyn Lease>`, as an `Arc<dyn Lease>`.
pub(crate) trait IntoLease {
    fn into_lease(self) -> Arc<dyn Lease>;
}

impl<S: Lease> IntoLease for Arc<S> {
    fn into_lease(self) -> Arc<dyn Lease> {
        self
    }
}

impl IntoLease for Arc<dyn Lease> {
    fn into_lease(self) -> Arc<dyn Lease> {
        self
    }
}

impl Core {
    pub(crate) fn id(&self) -> &SessionId {
        &self.id
    }

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    fn deadline(&self) -> Moment {
        Moment::from_nanos(self.deadline.load(Ordering::Acquire))
    }

    /// A renewal whose first message left no earlier than `sent` was completely acknowledged.
    fn renewed(&self, sent: Moment) {
        let deadline = sent + self.ttl - margin(self.ttl);
        self.deadline.store(deadline.as_nanos(), Ordering::Release);
        *self.trouble() = None;
    }

    fn trouble(&self) -> MutexGuard<'_, Option<(ErrorKind, String)>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A renewal failed, and not because the lease is gone.
    fn not_renewed(&self, error: &Error) {
        *self.trouble() = Some((error.kind(), error.explanation().to_string()));
    }

    /// Why it was not renewed in time.
    fn overdue(&self) -> LossReason {
        match &*self.trouble() {
            Some((ErrorKind::Unauthorized, _)) => LossReason::Refused,
            Some((ErrorKind::Internal, _)) => LossReason::Failed,
            Some(_) => LossReason::Unreachable,
            None => LossReason::Expired,
        }
    }

    /// The loss of what was held, with what the store said of it.
    pub(crate) fn lost_holding(&self, reason: LossReason) -> Error {
        self.because(Error::lost(reason))
    }

    /// The end of what was waited or asked for.
    pub(crate) fn lost_waiting(&self, reason: LossReason) -> Error {
        self.because(Error::lost_waiting(reason))
    }

    fn because(&self, error: Error) -> Error {
        match (error.loss(), &*self.trouble()) {
            (
                Some(LossReason::Unreachable | LossReason::Refused | LossReason::Failed),
                Some((kind, text)),
            ) => error.with_source(Error::new(*kind, text.clone())),
            _ => error,
        }
    }

    /// The time left, or why the session ended. Judged by the clock, now.
    pub(crate) fn validity(&self) -> Result<Duration, LossReason> {
        if let Some(reason) = self.loss.get() {
            return Err(reason);
        }
        if let Some(reason) = self.lease.ended() {
            self.lose(reason);
            return Err(self.loss.get().unwrap_or(reason));
        }
        let mut deadline = self.deadline();
        loop {
            // The clock last: what is said to be valid was so when the clock was read.
            let left = deadline.since(self.clock.now());
            if !left.is_zero() {
                return Ok(left);
            }
            // A renewal that came in between has moved the deadline: then nothing is lost.
            let moved = self.deadline();
            if moved == deadline {
                break;
            }
            deadline = moved;
        }
        // Past the deadline for one is past it for all: a renewal that comes back now is too late.
        self.lose(self.overdue());
        Err(self.loss.get().unwrap_or(LossReason::Expired))
    }

    /// Before a call is answered by `error`: if the whole session is gone, that is known from then on.
    pub(crate) fn learn(&self, error: &Error) {
        if error.kind() == ErrorKind::Lost {
            // It tells whoever waits for the end.
            let _ = self.validity();
        }
    }

    /// Whether what is held may be held on although its holder is gone: until the deadline, in a
    /// detached session too.
    fn lives_in_the_store(&self) -> bool {
        match self.validity() {
            Ok(_) => true,
            Err(LossReason::Detached) => self.clock.now() < self.deadline(),
            Err(_) => false,
        }
    }

    /// Whether the end of the session does, or leaves on purpose, what a release would do.
    /// Without a look at the clock: drops ask this, and they may come when a thread's own
    /// storage, and with it tokio's, is gone already.
    pub(crate) fn ended_here(&self) -> bool {
        self.ended().is_some()
    }

    /// How the session was ended here, if it was.
    pub(crate) fn ended(&self) -> Option<LossReason> {
        self.loss
            .get()
            .filter(|reason| matches!(reason, LossReason::Closed | LossReason::Detached))
    }

    fn lose(&self, reason: LossReason) {
        if self.loss.set(reason) {
            match reason {
                LossReason::Closed | LossReason::Detached => {
                    tracing::debug!(session = %self.id, %reason, "session ended")
                }
                _ => tracing::warn!(session = %self.id, %reason, "session lost"),
            }
        }
    }

    /// Ends when the session does, by the deadline also if the session's task does not run: whoever waits keeps
    /// the time for itself. Does not keep the session open. Costs a timer for each waiter.
    pub(crate) fn lost(self: &Arc<Self>) -> impl Future<Output = LossReason> + Send + use<> {
        let core = Arc::clone(self);
        async move {
            let mut signalled = std::pin::pin!(core.loss.wait());
            loop {
                let mut due = std::pin::pin!(core.sleep_until(core.deadline()));
                let ended = std::future::poll_fn(|context| {
                    if let Err(reason) = core.validity() {
                        return Poll::Ready(Some(reason));
                    }
                    if let Poll::Ready(reason) = signalled.as_mut().poll(context) {
                        return Poll::Ready(Some(reason));
                    }
                    // A renewal may have moved the deadline in the meantime.
                    due.as_mut().poll(context).map(|()| None)
                });
                if let Some(reason) = ended.await {
                    return reason;
                }
            }
        }
    }

    /// Ends when `deadline` has come by the session's clock, on the timer of the runtime that polls it; outside of
    /// any runtime on that of the session's own.
    fn sleep_until(&self, deadline: Moment) -> impl Future<Output = ()> + Send + use<> {
        self.clock.sleep_until_on(deadline, self.runtime.clone())
    }

    /// Ends when the session is closed or detached here; not when its lease is lost.
    pub(crate) async fn left(&self) -> LossReason {
        match self.loss.wait().await {
            reason @ (LossReason::Closed | LossReason::Detached) => reason,
            _ => std::future::pending().await,
        }
    }

    /// A new ask. Where all places are taken, and some only by what is being let go of, waits for one of these.
    pub(crate) async fn ask(self: &Arc<Self>, kind: Kind, name: &Name) -> Result<Ask> {
        self.validity()
            .map_err(|reason| self.lost_waiting(reason))?;
        if let Some(ask) = Ask::new(kind, name, &self.book, self.capacity)? {
            return Ok(ask);
        }
        let place = async {
            loop {
                let freed = self.book.freed();
                if let Some(ask) = Ask::new(kind, name, &self.book, self.capacity)? {
                    return Ok(ask);
                }
                freed.await;
            }
        };
        tokio::select! {
            biased;
            ask = place => ask,
            reason = self.lost() => Err(self.lost_waiting(reason)),
        }
    }

    /// Ends the lease, within bounds: tried again while the store may only be away for a moment.
    async fn revoke(&self) -> Result<()> {
        let mut backoff = Backoff::new(self.ttl);
        let revoking = async {
            loop {
                let revoked = caught(self.lease.revoke()).await;
                match revoked.unwrap_or_else(Err) {
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(session = %self.id, error = %error.chain(), "revoking failed, trying again");
                    }
                    answer => return answer,
                }
                self.clock.sleep(backoff.next()).await;
            }
        };
        let answer = tokio::time::timeout(GRACE.min(self.ttl), revoking).await;
        answer.unwrap_or_else(|_| Err(unconfirmed()))
    }

    fn held(&self) -> MutexGuard<'_, HashMap<u64, Entered>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn enter(&self, held: Held, alarm: Alarm) {
        let entered = Entered {
            held,
            alarm,
            taker: None,
        };
        self.held().insert(entered.held.nonce, entered);
    }

    pub(crate) fn leave(&self, nonce: u64) {
        self.held().remove(&nonce);
    }

    pub(crate) fn share(&self, nonce: u64) {
        if let Some(entered) = self.held().get_mut(&nonce) {
            entered.held.shared = true;
            entered.taker = Some(Taker::current());
        }
    }

    /// Whether the calling task took a guard that shares `name` with others. O(what the session holds).
    pub(crate) fn shares(&self, kind: Kind, name: &Name) -> bool {
        let me = Some(Taker::current());
        self.held().values().any(|entered| {
            let held = &entered.held;
            entered.taker == me && held.shared && held.kind == kind && held.name == *name
        })
    }

    pub(crate) fn sleep(&self, period: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.clock.sleep(period)
    }

    /// `future`, driven as the session's lease wants its steps driven: by whoever polls what is
    /// returned, or in a task that ends with it (see [`Lease::one_at_a_time`]).
    pub(crate) fn driven<T: Send + 'static>(
        &self,
        future: BoxFuture<Result<T>>,
    ) -> BoxFuture<Result<T>> {
        if !self.lease.one_at_a_time() {
            return future;
        }
        let (mut tell, told) = oneshot::channel();
        let driving = async move {
            tokio::select! {
                biased;
                () = tell.closed() => {}
                done = future => {
                    let _ = tell.send(done);
                }
            }
        };
        drop(self.runtime.spawn(driving.in_current_span()));
        Box::pin(async move {
            told.await.unwrap_or_else(|_| {
                let error = Error::new(
                    ErrorKind::Internal,
                    "the backend panicked, or the runtime of the session has ended",
                );
                Err(error.with_effect(Effect::Unknown))
            })
        })
    }

    /// Gives `future` to the session's task, to be driven to its end. A panic ends `future` alone: what it was to
    /// give back stays until the session ends.
    pub(crate) fn adopt(&self, future: impl Future<Output = ()> + Send + 'static) {
        let session = self.id.clone();
        let isolated = async move {
            if caught(future).await.is_err() {
                tracing::error!(%session, "the backend panicked in what a caller had let go of");
            }
        };
        // Without the task the runtime has ended: the TTL bounds the rest.
        let _ = self.mailbox.send(Message::Adopt(Box::pin(isolated)));
    }

    /// Calls `step` until it succeeds, is told `Lost`, or the session has ended. Any other failure,
    /// however final it looks, would leave something held by nobody for as long as the session
    /// lives.
    pub(crate) async fn persist(
        self: Arc<Self>,
        what: &'static str,
        step: impl Fn() -> BoxFuture<Result<()>>,
    ) {
        let mut backoff = Backoff::new(self.ttl);
        loop {
            match step().await {
                Ok(()) => return,
                Err(error) if error.kind() != ErrorKind::Lost && self.lives_in_the_store() => {
                    tracing::debug!(session = %self.id, error = %error.chain(), "{what} failed, trying again");
                }
                Err(error) => {
                    tracing::debug!(session = %self.id, error = %error.chain(), "{what} given up; the end of the session does it");
                    return;
                }
            }
            self.clock.sleep(backoff.next()).await;
        }
    }
}

/// Growing pauses between attempts: from 20 ms, doubled, to 500 ms or a tenth of the TTL.
struct Backoff {
    next: Duration,
    most: Duration,
}

impl Backoff {
    fn new(ttl: Duration) -> Self {
        Self {
            next: Duration::from_millis(20),
            most: (ttl / 10).clamp(Duration::from_millis(20), Duration::from_millis(500)),
        }
    }

    fn next(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.most);
        pause
    }
}

/// What `future` comes to, or that the backend panicked in it.
async fn caught<T>(future: impl Future<Output = T>) -> Result<T> {
    let caught = AssertUnwindSafe(future).catch_unwind().await;
    caught.map_err(|_| {
        Error::new(
            ErrorKind::Internal,
            "the backend panicked: please report it",
        )
        .with_effect(Effect::Unknown)
    })
}

fn no_answer_of_the_task() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the session's task did not answer: the runtime on which the session was opened is blocked or not driven; the TTL ends the session in the store",
    )
    .with_effect(Effect::Unknown)
}

fn unconfirmed() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "the store did not confirm the end of the session; its TTL ends it",
    )
    .with_effect(Effect::Unknown)
}
