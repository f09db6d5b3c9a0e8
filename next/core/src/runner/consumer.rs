//! Consumers: items of a queue as jobs, acknowledged when they succeed and returned when they fail.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::{Fuse, FusedFuture, FutureExt};
use futures_util::stream::FuturesUnordered;

use super::Stop;
use crate::error::{Effect, Error, ErrorKind, Result};
use crate::options::SessionOptions;
use crate::queue::{Delivery, MAX_BATCH, QueueHandle};
use crate::store::Store;

/// Options of [`QueueHandle::consume`] and [`Store::consume`].
#[derive(Debug, Default)]
pub struct ConsumeOptions {
    settings: Settings,
    stop: Stop,
    session: SessionOptions,
}

/// The options that every job reads: unlike the request to stop, tasks can share them.
#[derive(Clone, Debug)]
struct Settings {
    concurrency: usize,
    limit: Option<Duration>,
    first_delay: Duration,
    longest_delay: Duration,
    dead_letter: Option<(u32, String)>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            concurrency: 1,
            limit: None,
            first_delay: Duration::from_secs(1),
            longest_delay: Duration::from_secs(60),
            dead_letter: None,
        }
    }
}

impl ConsumeOptions {
    /// Returns the defaults: one job at a time without a limit, a delay of 1 s to 60 s after a failure, for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of jobs at a time, at least 1. They run in the caller's task: a job that blocks its
    /// thread delays the others.
    #[must_use]
    pub fn concurrency(mut self, jobs: usize) -> Self {
        self.settings.concurrency = jobs.max(1);
        self
    }

    /// Sets the maximum duration of a job. One that takes longer is dropped at its next await point, and its item is
    /// returned as after a failure.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.settings.limit = Some(limit);
        self
    }

    /// Sets the delay before an item is delivered again: `first` after its first failure, doubled with each delivery,
    /// `longest` at most.
    #[must_use]
    pub fn retry(mut self, first: Duration, longest: Duration) -> Self {
        (self.settings.first_delay, self.settings.longest_delay) = (first, longest);
        self
    }

    /// Moves an item to the end of `queue` after `max_deliveries`: see [`QueueHandle::dead_letter`].
    #[must_use]
    pub fn dead_letter(mut self, max_deliveries: u32, queue: impl Into<String>) -> Self {
        self.settings.dead_letter = Some((max_deliveries, queue.into()));
        self
    }

    /// Sets the TTL of the sessions that [`Store::consume`] opens.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.session = self.session.ttl(ttl);
        self
    }

    /// Stops when `request` ends: no further item is taken, and the jobs under way are finished.
    #[must_use]
    pub fn until(mut self, request: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Stop::at(request);
        self
    }
}

impl Settings {
    /// Returns the delay after the failure of an item's delivery number `deliveries`.
    fn delay(&self, deliveries: u32) -> Duration {
        let doublings = deliveries.saturating_sub(1).min(31);
        self.first_delay.saturating_mul(1 << doublings).min(self.longest_delay)
    }
}

impl QueueHandle {
    /// Runs `work` for each item: acknowledges the item when `work` returns `Ok`, and returns it with a growing delay
    /// when `work` fails or takes too long. Works until [`ConsumeOptions::until`] stops it, or the session ends;
    /// [`Store::consume`] goes on in a new session.
    ///
    /// A job whose delivery is lost is dropped at its next await point: the item belongs to another consumer. A job
    /// that panics passes the panic on; the items of all jobs under way are returned then. A job that keeps its
    /// delivery beyond its end is not acknowledged: the item returns to the queue when the delivery is dropped.
    ///
    /// ```no_run
    /// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
    /// # async fn send(_: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
    /// use tenure_core::ConsumeOptions;
    ///
    /// let options = ConsumeOptions::new().concurrency(8);
    /// session.queue("mail").consume(options, async |job| send(job.value()).await).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends, and the other permanent errors of [`dequeue_many`](Self::dequeue_many). An error
    /// of a job, or of an acknowledgement, ends nothing: the item is delivered again. The error of a job is neither
    /// returned nor logged, because it may contain the item's value: log it in `work`.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the jobs under way and returns their items.
    pub async fn consume<F, E>(&self, mut options: ConsumeOptions, work: impl Fn(Arc<Delivery>) -> F) -> Result<()>
    where
        F: Future<Output = Result<(), E>>,
    {
        let consumed = self.consume_until(&options.settings, &mut options.stop, &work).await;
        consumed.map_err(|error| error.during("consume"))
    }

    async fn consume_until<F, E>(
        &self,
        settings: &Settings,
        stop: &mut Stop,
        work: &impl Fn(Arc<Delivery>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<(), E>>,
    {
        let mut queue = self.clone();
        if let Some((max_deliveries, name)) = &settings.dead_letter {
            queue = queue.dead_letter(*max_deliveries, name);
        }
        let mut jobs = FuturesUnordered::new();
        let mut taking = pin!(Fuse::terminated());
        let mut failed = None;
        loop {
            let room = settings.concurrency.saturating_sub(jobs.len());
            if taking.is_terminated() && room > 0 && failed.is_none() && !stop.has_come() {
                taking.set(queue.dequeue_many(room.min(MAX_BATCH)).fuse());
            }
            if taking.is_terminated() && jobs.is_empty() {
                return failed.map_or(Ok(()), Err);
            }
            tokio::select! {
                biased;
                () = stop.comes(), if !stop.has_come() => taking.set(Fuse::terminated()),
                Some(()) = jobs.next() => {}
                taken = &mut taking, if !taking.is_terminated() => match taken {
                    Ok(deliveries) => {
                        jobs.extend(deliveries.into_iter().map(|one| perform(Arc::new(one), settings, work)));
                    }
                    Err(error) => failed = Some(error),
                },
            }
        }
    }
}

/// Runs one job, and acknowledges or returns its item.
async fn perform<F, E>(delivery: Arc<Delivery>, settings: &Settings, work: &impl Fn(Arc<Delivery>) -> F)
where
    F: Future<Output = Result<(), E>>,
{
    // The closure is called within, so that it does not run after a loss.
    let job = async { work(Arc::clone(&delivery)).await };
    let done = match settings.limit {
        Some(limit) => delivery.run_for(limit, job).await,
        None => delivery.while_held(job).await,
    };
    // An error need not be `Send`, so it must not live across the awaits below.
    let done = done.map(|done| done.is_ok());
    let (queue, deliveries) = (delivery.name().clone(), delivery.deliveries());
    let Some(delivery) = Arc::into_inner(delivery) else {
        tracing::warn!(%queue, deliveries, "the job kept its delivery, which is not acknowledged therefore");
        return;
    };
    let ended = match done {
        Ok(true) => delivery.ack().await,
        Err(error) if error.kind() == ErrorKind::Lost => Err(error),
        // The job's message may show the item, so it is not logged.
        Ok(false) | Err(_) => {
            let delay = settings.delay(deliveries);
            tracing::warn!(%queue, deliveries, ?delay, "a job failed; its item is delivered again");
            delivery.nack_after(delay).await
        }
    };
    if let Err(error) = ended {
        tracing::warn!(%queue, deliveries, error = %error.chain(), "an item may be delivered again");
    }
}

impl Delivery {
    /// Runs `job` while the item belongs to this consumer, for at most `limit`; drops it at its next await point
    /// otherwise.
    ///
    /// # Errors
    ///
    /// `TimedOut` if the job took longer; `Lost` as [`while_held`](crate::Holding::while_held). How much of the job
    /// happened is unknown then.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `job`.
    pub async fn run_for<F: Future>(&self, limit: Duration, job: F) -> Result<F::Output> {
        let timed = self.while_held(tokio::time::timeout(limit, job)).await?;
        timed.map_err(|_| {
            Error::new(ErrorKind::TimedOut, format!("the job took longer than {limit:?}"))
                .with_effect(Effect::Unknown)
                .during("run_for")
                .on(self.name().as_str())
        })
    }
}

impl Store {
    /// Consumes the queue `name` as [`QueueHandle::consume`] does, in a session of its own, and goes on in a new one
    /// after a loss. Returns when [`ConsumeOptions::until`] has stopped it.
    ///
    /// ```no_run
    /// # async fn example(store: tenure_core::Store) -> tenure_core::Result<()> {
    /// # async fn send(_: &[u8]) -> Result<(), std::io::Error> { Ok(()) }
    /// # async fn shutdown() {}
    /// use tenure_core::ConsumeOptions;
    ///
    /// let options = ConsumeOptions::new().concurrency(8).dead_letter(5, "undelivered").until(shutdown());
    /// store.consume("mail", options, async |job| send(job.value()).await).await
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidName`, `Config`, `TooLarge` for more jobs at a time than a session may hold, `Unsupported`,
    /// `Unauthorized`, `Foreign`, `Internal`. An unreachable store and a lost session are retried for ever: after 50
    /// ms at first, and after 5 s at most while sessions end soon.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it drops the jobs under way and returns their items.
    pub async fn consume<F, E>(
        &self,
        name: impl AsRef<str>,
        mut options: ConsumeOptions,
        work: impl Fn(Arc<Delivery>) -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<(), E>>,
    {
        let (name, stop) = (name.as_ref(), &mut options.stop);
        let sessions = self.supervise(options.session);
        let explain = |error: Error| error.during("consume").on(name);
        while let Some(session) = sessions.next(stop).await.map_err(explain)? {
            let queue = session.queue(name);
            let consumed = queue.consume_until(&options.settings, stop, &work).await;
            if sessions.end(consumed).await.map_err(explain)?.is_some() {
                break;
            }
        }
        Ok(())
    }
}
