//! The building blocks of the cases.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tenure_core::guarantees::Expiry;
use tenure_core::{Error, ErrorKind, Guarantees, Result, Session, SessionId, SessionOptions, Store};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::harness::{Harness, Link, Operator};
use crate::outcome::{Outcome, Step};

/// A TTL so long that nothing that ends within [`PROMPT`] was its doing.
pub(crate) const LONG: Duration = Duration::from_secs(120);

/// The limit of everything that has to happen and has no bound of its own. Missing it judges nothing.
pub(crate) const PROMPT: Duration = Duration::from_secs(30);

/// How often a condition is checked that nothing announces.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// How long a case waits for a request whose arrival cannot be observed.
const SETTLE: Duration = Duration::from_millis(300);

/// How much time a case has, which depends on where it runs and on how often it was repeated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// By how much every limit is multiplied.
    pub(crate) scale: u32,
    /// How late a task may run on this machine.
    pub(crate) slack: Duration,
    /// Whether the clock is not a real one, so that waiting costs nothing.
    pub(crate) paused: bool,
}

tokio::task_local! {
    pub(crate) static PACE: Pace;
}

fn pace() -> Pace {
    let gate = Pace {
        scale: 1,
        slack: PROMPT,
        paused: false,
    };
    PACE.try_with(|pace| *pace).unwrap_or(gate)
}

/// Returns how late a task may run: what a bound on time is judged with. In the gate this is [`PROMPT`].
pub(crate) fn slack() -> Duration {
    pace().slack * pace().scale
}

/// Returns whether the clock is not a real one, so that waiting costs nothing.
pub(crate) fn is_paused() -> bool {
    pace().paused
}

/// Ends the case with `Violated` unless the condition holds.
macro_rules! ensure {
    ($held:expr, $($counterexample:tt)+) => {
        if !$held {
            return Err($crate::outcome::Outcome::violated(format!($($counterexample)+)));
        }
    };
}
pub(crate) use ensure;

/// Ends the case with `Unjudged` unless the condition, which is one of time, holds.
macro_rules! in_time {
    ($held:expr, $($why:tt)+) => {
        if !$held {
            return Err($crate::outcome::Outcome::unjudged(format!($($why)+)));
        }
    };
}
pub(crate) use in_time;

/// Ends the case with `Held` and the evidence.
macro_rules! held {
    ($($evidence:tt)+) => {
        Ok($crate::outcome::Outcome::held(format!($($evidence)+)))
    };
}
pub(crate) use held;

/// Awaits `future`, which must end within `limit`; otherwise the case is not judged.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> Step<T> {
    let limit = limit * pace().scale;
    tokio::time::timeout(limit, future)
        .await
        .map_err(|_| Outcome::unjudged(format!("{what} did not happen within {limit:?}")))
}

/// Awaits `future`, which must end and has no bound of its own.
pub(crate) async fn promptly<T>(what: &str, future: impl Future<Output = T>) -> Step<T> {
    within(PROMPT, what, future).await
}

/// Awaits an operation of the store, which must succeed.
pub(crate) async fn done<T>(what: &str, operation: impl Future<Output = Result<T>>) -> Step<T> {
    Ok(promptly(what, operation).await??)
}

/// Returns the result of a step, or `None` if the store does not have the primitive.
pub(crate) fn offered<T>(step: Step<T>) -> Step<Option<T>> {
    match step {
        Err(Outcome::NotRun { excused: true, .. }) => Ok(None),
        step => step.map(Some),
    }
}

/// Waits for a request whose arrival cannot be observed.
pub(crate) async fn settle() {
    tokio::time::sleep(SETTLE * pace().scale).await;
}

/// Reads what the store promises.
pub(crate) async fn guarantees(harness: &dyn Harness) -> Step<Guarantees> {
    let reading = async { harness.connect().await?.guarantees().await };
    done("reading the guarantees", reading).await
}

/// Opens a session over a connection of its own, as another process would.
pub(crate) async fn open(harness: &dyn Harness, ttl: Duration) -> Step<Session> {
    let store = done("a connection", harness.connect()).await?;
    open_on(&store, ttl).await
}

/// Opens a session over a connection.
pub(crate) async fn open_on(store: &Store, ttl: Duration) -> Step<Session> {
    done("open", store.open(SessionOptions::new().ttl(ttl))).await
}

/// Opens a session over a link that can be disturbed.
pub(crate) async fn open_linked(harness: &dyn Harness, ttl: Duration) -> Step<(Session, Box<dyn Link>)> {
    let linked = done("a connection", harness.linked()).await?;
    Ok((open_on(&linked.store, ttl).await?, linked.link))
}

/// Returns the harness's operator. The needs of a case are checked before it runs.
pub(crate) fn operator(harness: &dyn Harness) -> Step<&dyn Operator> {
    harness
        .operator()
        .ok_or_else(|| Outcome::not_run("the harness offers an operator and has none"))
}

/// Revokes a session as an operator.
pub(crate) async fn revoke(harness: &dyn Harness, session: &SessionId) -> Step<()> {
    done("a revocation", operator(harness)?.revoke(session)).await
}

/// Returns how much later than its TTL the store frees the holdings of a dead session, as it claims.
pub(crate) async fn expiry_bound(harness: &dyn Harness) -> Step<Duration> {
    Ok(match guarantees(harness).await?.expiry.value {
        Expiry::Within(bound) | Expiry::WithinSinceRestart(bound) | Expiry::WithinByClock(bound) => bound,
        // Denied, so nothing is judged by it; the attack has to end all the same.
        _ => Duration::from_secs(5),
    })
}

/// Fails the case unless `result` is an error of one of `kinds`.
pub(crate) fn refused<T>(what: &str, result: Result<T>, kinds: &[ErrorKind]) -> Step<Error> {
    match result {
        Err(error) if kinds.contains(&error.kind()) => Ok(error),
        Err(error) if error.kind() == ErrorKind::Unsupported => Err(error.into()),
        Err(error) => Err(Outcome::violated(format!(
            "{what}: failed with {:?} instead of {kinds:?}: {}",
            error.kind(),
            error.chain()
        ))),
        Ok(_) => Err(Outcome::violated(format!("{what}: succeeded, instead of {kinds:?}"))),
    }
}

/// Returns the keys of the namespace, if the harness can list them.
pub(crate) async fn keys(harness: &dyn Harness) -> Step<Option<Vec<String>>> {
    let Some(operator) = harness.operator() else {
        return Ok(None);
    };
    match promptly("the list of keys", operator.keys()).await? {
        Ok(keys) => Ok(Some(keys)),
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns the number of keys of the namespace, 0 if the harness cannot list them.
pub(crate) async fn count_keys(harness: &dyn Harness) -> Step<usize> {
    Ok(keys(harness).await?.map_or(0, |keys| keys.len()))
}

/// Waits until the namespace has no more than `baseline` keys, where the harness can tell.
pub(crate) async fn keys_return_to(baseline: usize, harness: &dyn Harness) -> Step<()> {
    let started = Instant::now();
    while let Some(keys) = keys(harness).await?
        && keys.len() > baseline
    {
        let waited = started.elapsed();
        // A key that is there for as long as this was not removed: no busy machine explains it.
        ensure!(
            waited < PROMPT * pace().scale,
            "{} keys remain after {waited:?}, {baseline} were there before: {:?}",
            keys.len(),
            keys.iter().take(5).collect::<Vec<_>>()
        );
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Observes when a waiter that was just started has arrived in the wait queue of the store.
pub(crate) struct Arrivals<'a> {
    harness: &'a dyn Harness,
    seen: usize,
}

impl<'a> Arrivals<'a> {
    /// Begins to observe. Call it before the waiter starts.
    pub(crate) async fn watch(harness: &'a dyn Harness) -> Step<Self> {
        let seen = count_keys(harness).await?;
        Ok(Self { harness, seen })
    }

    /// Waits until the store has more keys than before. Where keys cannot be listed, or a waiter leaves no key, it
    /// waits as long as a request takes on a busy machine.
    pub(crate) async fn one_more(&mut self) -> Step<()> {
        let started = Instant::now();
        while started.elapsed() < SETTLE * pace().scale * 3 {
            let seen = count_keys(self.harness).await?;
            if seen > self.seen {
                self.seen = seen;
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Takes the present keys as those to count from.
    pub(crate) async fn again(&mut self) -> Step<()> {
        self.seen = count_keys(self.harness).await?;
        Ok(())
    }
}

/// A task that ends with its handle.
pub(crate) struct Task<T>(JoinHandle<T>);

/// Starts a task.
pub(crate) fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    Task(tokio::spawn(future))
}

impl<T> Task<T> {
    /// Returns whether the task has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// Waits for the task's result, which must come within `limit`.
    pub(crate) async fn end(&mut self, limit: Duration, what: &str) -> Step<T> {
        within(limit, what, &mut self.0)
            .await?
            .map_err(|broken| Outcome::violated(format!("{what}: the task panicked: {broken}")))
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How a caller came to drop a future.
pub(crate) enum GaveUp<T> {
    /// It did not: the future had ended before.
    Finished(T),
    /// It dropped the future at the await point asked for.
    Dropped,
    /// It dropped the future because nothing woke it any more: there is no such await point.
    Quiet,
}

/// Polls `future` up to `polls` times and then drops it, as a caller that gives up at that await point. A future that
/// is not woken for `quiet` is dropped too.
pub(crate) async fn give_up_after<F: Future>(polls: usize, quiet: Duration, future: F) -> GaveUp<F::Output> {
    struct Impatient<F> {
        future: Pin<Box<F>>,
        left: usize,
    }
    impl<F: Future> Future for Impatient<F> {
        type Output = GaveUp<F::Output>;

        fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
            self.left = self.left.saturating_sub(1);
            match self.future.as_mut().poll(context) {
                Poll::Ready(done) => Poll::Ready(GaveUp::Finished(done)),
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

/// The most await points that are tried: more than any operation has.
const AWAIT_POINTS: usize = 16;

/// Drops a future that `make` begins after its first poll, the next one after its second, and so on, until one ends
/// before it is dropped or has no further await point. `after` is called after each, with the result of one that ended.
/// Returns how many were dropped.
pub(crate) async fn at_every_await_point<F: Future>(
    mut make: impl AsyncFnMut() -> Step<F>,
    mut after: impl AsyncFnMut(Option<F::Output>) -> Step<()>,
) -> Step<usize> {
    for polls in 1..=AWAIT_POINTS {
        match give_up_after(polls, SETTLE, make().await?).await {
            GaveUp::Dropped => after(None).await?,
            GaveUp::Quiet => {
                after(None).await?;
                return Ok(polls);
            }
            GaveUp::Finished(value) => {
                after(Some(value)).await?;
                return Ok(polls - 1);
            }
        }
    }
    Ok(AWAIT_POINTS)
}
