//! What the cases are made of.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tenure_core::{
    Effect, Error, ErrorKind, Expiry, Guarantees, LockGuard, LockHandle, Result, Session,
    SessionOptions, Store,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::case::Outcome;
use crate::harness::Harness;
use crate::patient::{patience, unless_away};

/// A TTL so long that nothing that ends within [`PROMPT`] can have been its doing.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// What must happen at once has this long, on a machine that has other things to do.
pub(crate) const PROMPT: Duration = Duration::from_secs(4);

/// How late a task may run on such a machine.
pub(crate) const SLACK: Duration = Duration::from_millis(1500);

/// How often a condition is looked at that nothing announces.
const LOOK: Duration = Duration::from_millis(10);

macro_rules! ensure {
    ($held:expr, $($counterexample:tt)+) => {
        if !$held {
            return Err($crate::case::Outcome::violated(format!($($counterexample)+)));
        }
    };
}
pub(crate) use ensure;

/// Ends the case unjudged unless the condition holds: a limit was missed, or a lease was lost that had to be renewed in
/// time. On a busy machine this shows nothing; a case that never gets further fails.
macro_rules! in_time {
    ($held:expr, $($missed:tt)+) => {
        if !$held {
            return Err($crate::case::Outcome::cut_short(format!($($missed)+)));
        }
    };
}
pub(crate) use in_time;

/// Ends the case with `Held` and the evidence.
macro_rules! held {
    ($($evidence:tt)+) => {
        Ok($crate::case::Outcome::held(format!($($evidence)+)))
    };
}
pub(crate) use held;

pub(crate) async fn guarantees(harness: &dyn Harness) -> Result<Guarantees> {
    let store = harness.connect().await?;
    unless_away(|| store.guarantees()).await
}

/// A session of its own connection, as another process would have.
pub(crate) async fn open(harness: &dyn Harness, ttl: Duration) -> Result<Session> {
    let store = harness.connect().await?;
    // A session may take connections of its own. What may have happened is not tried again.
    match open_on(&store, ttl).await {
        Err(error)
            if error.kind() == ErrorKind::Unavailable
                && error.effect() == Effect::None
                && !harness.is_struck() =>
        {
            unless_away(|| open_on(&store, ttl)).await
        }
        done => done,
    }
}

pub(crate) async fn open_on(store: &Store, ttl: Duration) -> Result<Session> {
    store.open(SessionOptions::new().ttl(ttl)).await
}

/// The harness's operator; its needs are checked before a case runs.
pub(crate) fn operator(
    harness: &dyn Harness,
) -> std::result::Result<&dyn crate::Operator, Outcome> {
    harness
        .operator()
        .ok_or_else(|| Outcome::not_run("the harness offers an operator and has none"))
}

/// How much later than its TTL the store frees what the dead held, as it claims.
pub(crate) async fn expiry_bound(harness: &dyn Harness) -> Result<Duration> {
    Ok(match guarantees(harness).await?.expiry.value {
        Expiry::Within(bound) | Expiry::WithinOrAnew(bound) | Expiry::WithinByClock(bound) => bound,
        // Denied, so nothing is judged by it; the attack has to end all the same.
        _ => Duration::from_secs(5),
    })
}

/// `future`, which must end within `limit`.
pub(crate) async fn within<T>(
    limit: Duration,
    what: &str,
    future: impl Future<Output = T>,
) -> std::result::Result<T, Outcome> {
    let limit = limit * patience();
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| Outcome::cut_short(format!("{what} did not happen within {limit:?}")))
}

/// Time for the test bed to bring an event about. It allows itself a minute.
const CONTROL: Duration = Duration::from_secs(75);

/// Waits for the test bed. Whether it fails or comes late, the store broke no promise by that.
pub(crate) async fn control(
    what: &str,
    doing: impl Future<Output = Result<()>>,
) -> std::result::Result<(), Outcome> {
    match within(CONTROL, what, doing).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) if error.kind() == ErrorKind::Unsupported => Err(error.into()),
        Ok(Err(error)) => Err(Outcome::not_run(format!(
            "{what} could not be brought about: {error}",
            error = error.chain()
        ))),
        Err(late) => Err(Outcome::not_run(late.details())),
    }
}

/// `future`, which must end at once.
pub(crate) async fn promptly<T>(
    what: &str,
    future: impl Future<Output = T>,
) -> std::result::Result<T, Outcome> {
    within(PROMPT, what, future).await
}

/// Whether `try_lock` was refused because the lock is taken; gives a grant back.
pub(crate) async fn is_taken(handle: &LockHandle) -> std::result::Result<bool, Outcome> {
    match promptly("an answer to try_lock", handle.try_lock()).await? {
        Ok(guard) => {
            promptly("a release", guard.release()).await??;
            Ok(false)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error.into()),
    }
}

/// Tries until the lock is free, for no longer than `limit`.
pub(crate) async fn becomes_free(
    limit: Duration,
    what: &str,
    handle: &LockHandle,
) -> std::result::Result<LockGuard, Outcome> {
    let trying = async {
        loop {
            match handle.try_lock().await {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    tokio::time::sleep(LOOK).await;
                }
                done => return done,
            }
        }
    };
    let limit = limit * patience();
    let guard = tokio::time::timeout(limit, trying)
        .await
        .map_err(|_| Outcome::late(format!("{what}: {limit:?} later it was still not free")))?;
    Ok(guard?)
}

/// Gives the lock back at once.
pub(crate) async fn give_back(guard: LockGuard) -> std::result::Result<(), Outcome> {
    Ok(promptly("a release", guard.release()).await??)
}

/// Releases after a fault. The answer may be lost with a connection that broke; the release itself
/// is repeated in the background.
pub(crate) async fn let_go(guard: LockGuard) -> std::result::Result<(), Outcome> {
    match promptly("an answer to release", guard.release()).await? {
        Err(error) if error.kind() != ErrorKind::Unavailable => Err(error.into()),
        _ => Ok(()),
    }
}

/// Fails the case unless `result` is an error of the kind expected.
pub(crate) fn refused<T: std::fmt::Debug>(
    what: &str,
    result: Result<T>,
    kinds: &[ErrorKind],
) -> std::result::Result<Error, Outcome> {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        // What is not offered at all refuses nobody.
        Err(error) if error.kind() == ErrorKind::Unsupported => Err(error.into()),
        Err(error) => Err(Outcome::violated(format!(
            "{what}: refused with {:?} where one of {kinds:?} was due: {error}",
            error.kind(),
            error = error.chain()
        ))),
        Ok(value) => Err(Outcome::violated(format!(
            "{what}: not refused, but answered with {value:?}"
        ))),
    }
}

/// Whether the lock stays taken for a while: long enough for what goes on in the background.
pub(crate) async fn stays_taken(
    handle: &LockHandle,
    whose: &str,
) -> std::result::Result<(), Outcome> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(600) {
        ensure!(
            is_taken(handle).await?,
            "the lock of {whose} was free {:?} later",
            started.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// The margin that rule S2 takes off the deadline.
pub(crate) fn margin(ttl: Duration) -> Duration {
    (ttl / 20).max(Duration::from_millis(50))
}

/// What the namespace holds, where the harness can tell.
pub(crate) async fn keys(harness: &dyn Harness) -> Result<Option<Vec<String>>> {
    match harness.operator() {
        None => Ok(None),
        Some(operator) => match operator.keys().await {
            Ok(keys) => Ok(Some(keys)),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        },
    }
}

/// Waits until the namespace holds no more than `baseline` keys, where the harness can tell.
pub(crate) async fn keys_return_to(
    baseline: usize,
    limit: Duration,
    harness: &dyn Harness,
) -> std::result::Result<(), Outcome> {
    let started = Instant::now();
    loop {
        match keys(harness).await? {
            Some(keys) if keys.len() > baseline => {
                in_time!(
                    started.elapsed() < limit * patience(),
                    "{} keys are left after {limit:?} where {baseline} were before: {:?}",
                    keys.len(),
                    keys.iter().take(5).collect::<Vec<_>>()
                );
            }
            _ => return Ok(()),
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(crate) async fn count_keys(harness: &dyn Harness) -> Result<usize> {
    Ok(keys(harness).await?.map_or(0, |keys| keys.len()))
}

/// Tells when a waiter that has just been started stands in the store's line.
pub(crate) struct Arrivals<'a> {
    pub(crate) harness: &'a dyn Harness,
    pub(crate) seen: usize,
}

impl<'a> Arrivals<'a> {
    /// Call it before the waiter starts.
    pub(crate) async fn watch(harness: &'a dyn Harness) -> Result<Self> {
        Ok(Self {
            harness,
            seen: count_keys(harness).await?,
        })
    }

    /// Waits until the store holds more than before. Where nothing tells, or a place in line leaves no key, time
    /// has to do: enough for a request on a busy machine.
    pub(crate) async fn one_more(&mut self) -> Result<()> {
        let started = Instant::now();
        while started.elapsed() < SLACK {
            let seen = count_keys(self.harness).await?;
            if seen > self.seen {
                self.seen = seen;
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }
}

/// A task that ends with its handle.
pub(crate) struct Task<T>(JoinHandle<T>);

pub(crate) fn spawn<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> Task<T> {
    Task(tokio::spawn(future))
}

impl<T> Task<T> {
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// The task's result, which must come within `limit`.
    pub(crate) async fn end(
        &mut self,
        limit: Duration,
        what: &str,
    ) -> std::result::Result<T, Outcome> {
        within(limit, what, &mut self.0)
            .await?
            .map_err(|broken| Outcome::violated(format!("{what}: the task broke: {broken}")))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A task that waits for the lock and returns its guard.
pub(crate) fn waiter(handle: LockHandle) -> Task<Result<LockGuard>> {
    spawn(async move { handle.lock().await })
}

/// A runtime of its own on a thread of its own: what a process is to a session. It can be paused,
/// as by SIGSTOP, and killed, as by SIGKILL: then its session is neither renewed nor revoked.
pub(crate) struct Process {
    orders: mpsc::UnboundedSender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
    handle: tokio::runtime::Handle,
}

enum Order {
    Run(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// Stand still until the other end is gone.
    Pause(std::sync::mpsc::Receiver<()>, oneshot::Sender<()>),
}

/// The process stands still as long as this lives.
pub(crate) struct Paused(#[allow(dead_code)] std::sync::mpsc::Sender<()>);

impl Process {
    pub(crate) fn start() -> std::result::Result<Self, Outcome> {
        let no_stage = |e: std::io::Error| Outcome::not_run(format!("no thread or runtime: {e}"));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_stage)?;
        let handle = runtime.handle().clone();
        let (orders, mut mail) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("a process".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    while let Some(order) = mail.recv().await {
                        match order {
                            Order::Run(future) => drop(tokio::spawn(future)),
                            Order::Pause(until, paused) => {
                                let _ = paused.send(());
                                let _ = until.recv();
                            }
                        }
                    }
                });
                // Nothing is polled any more: no farewell reaches the store.
                runtime.shutdown_background();
            })
            .map_err(no_stage)?;
        Ok(Self {
            orders,
            thread: Some(thread),
            handle,
        })
    }

    /// Runs `future` in the process.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> std::result::Result<T, Outcome> {
        let (tell, told) = oneshot::channel();
        let future = Box::pin(async move {
            let _ = tell.send(future.await);
        });
        let _ = self.orders.send(Order::Run(future));
        let answer = within(PROMPT, "the process's answer", told).await?;
        answer.map_err(|_| Outcome::violated("the process panicked"))
    }

    /// Drives `future` here, as a part of the process: what it connects to and starts stands still and dies
    /// with it.
    pub(crate) async fn lend<F: Future>(&self, future: F) -> F::Output {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            let _inside = self.handle.enter();
            future.as_mut().poll(context)
        })
        .await
    }

    /// Starts `future` in the process and does not wait for it.
    pub(crate) fn start_in(&self, future: impl Future<Output = ()> + Send + 'static) {
        let _ = self.orders.send(Order::Run(Box::pin(future)));
    }

    /// A session that this process keeps alive, and a lock that it holds.
    pub(crate) async fn holds(
        &self,
        store: Store,
        ttl: Duration,
        name: &'static str,
    ) -> std::result::Result<(Session, LockGuard), Outcome> {
        let taking = async move {
            let session = open_on(&store, ttl).await?;
            let guard = session.locker(name)?.try_lock().await?;
            Ok::<_, Error>((session, guard))
        };
        Ok(self.run(taking).await??)
    }

    /// Stops every instruction of the process. Returns once it stands still.
    pub(crate) async fn pause(&self) -> Paused {
        let (resume, until) = std::sync::mpsc::channel();
        let (tell, told) = oneshot::channel();
        let _ = self.orders.send(Order::Pause(until, tell));
        let _ = told.await;
        Paused(resume)
    }

    /// Ends the process without a farewell. Returns once it is gone.
    pub(crate) async fn kill(self) {
        let Self { orders, thread, .. } = self;
        drop(orders);
        if let Some(thread) = thread {
            // Prompt: the thread only has to notice. On a blocking thread all the same.
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// How a caller came to let go of a future.
pub(crate) enum GaveUp<T> {
    /// It did not: the future ended before.
    Finished(T),
    /// It dropped the future at the await point asked for.
    Dropped,
    /// It dropped the future because nothing moved any more: there is no such await point.
    Quiet,
}

/// Polls `future` up to `polls` times and then drops it: a caller that gives up at that await
/// point. Where the future is not woken for `quiet`, it is dropped too.
pub(crate) async fn give_up_after<F: Future>(
    polls: usize,
    quiet: Duration,
    future: F,
) -> GaveUp<F::Output> {
    struct Impatient<F> {
        future: Pin<Box<F>>,
        left: usize,
    }
    impl<F: Future> Future for Impatient<F> {
        type Output = GaveUp<F::Output>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            if self.left == 0 {
                return Poll::Ready(GaveUp::Dropped);
            }
            self.left -= 1;
            match self.future.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(GaveUp::Finished(done)),
                // The last poll allowed: given up without waiting to be woken.
                Poll::Pending if self.left == 0 => Poll::Ready(GaveUp::Dropped),
                Poll::Pending => Poll::Pending,
            }
        }
    }
    let impatient = Impatient {
        future: Box::pin(future),
        left: polls,
    };
    let given_up = tokio::time::timeout(quiet, impatient).await;
    given_up.unwrap_or(GaveUp::Quiet)
}

/// A generator of numbers that repeats itself for a seed (SplitMix64; G. Steele, D. Lea and
/// C. Flood, OOPSLA 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn seeded(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        let micros = u64::try_from(most.as_micros()).unwrap_or(u64::MAX);
        Duration::from_micros(self.below(micros.saturating_add(1)))
    }
}
