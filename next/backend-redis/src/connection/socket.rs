//! One connection to a server: requests, their order, and the watch over a silent server.

use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, Value};
use tenure_core::executor::is_library_thread;
use tenure_core::{Effect, Error};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};

use super::dial::Facts;
use super::home;
use crate::config::Address;
use crate::error;

/// The parts in which a silence is counted.
const SLICES: u32 = 8;

/// The reason why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The server or the network closed it.
    Disconnected,
    /// The server did not answer for this long.
    Silent(Duration),
    /// The server says that it does not serve the namespace any more.
    Moved,
    /// A message took the place of an answer, so that no later answer is certain to be that of its request.
    Mixed,
    /// The application's runtime does not run the connection.
    Blocked,
    /// The link is replaced.
    Replaced,
}

/// Whether a connection has ended, and why. Its pushes know it before the connection exists.
#[derive(Default)]
pub(super) struct Health {
    ended: OnceLock<Ended>,
    changed: Notify,
    /// How often bytes have arrived.
    pub(super) reads: Arc<AtomicU64>,
}

impl Health {
    /// Marks the connection as ended. The first reason counts.
    pub(super) fn end(&self, reason: Ended) {
        if self.ended.set(reason).is_ok() {
            self.changed.notify_waiters();
        }
    }

    pub(super) fn ended(&self) -> Option<Ended> {
        self.ended.get().copied()
    }

    /// Waits for the end.
    pub(super) async fn wait(&self) -> Ended {
        loop {
            let mut changed = pin!(self.changed.notified());
            // From here on, no end is missed.
            changed.as_mut().enable();
            match self.ended() {
                Some(reason) => return reason,
                None => changed.await,
            }
        }
    }
}

/// A failed request.
#[derive(Debug)]
pub(super) enum Failure {
    /// It was not sent and never will be.
    NotSent,
    /// It has no answer, or not certainly its own.
    Unanswered(Error),
    /// The server refused it, or the connection broke.
    Redis(RedisError),
}

impl Failure {
    /// Translates the failure of a command.
    pub(super) fn translate(self) -> Error {
        self.translate_with(error::from_redis)
    }

    pub(super) fn translate_with(self, from_redis: impl FnOnce(RedisError) -> Error) -> Error {
        match self {
            Self::NotSent => error::replaced(),
            Self::Unanswered(error) => error,
            Self::Redis(error) => from_redis(error),
        }
    }
}

/// A connection to a server.
pub(super) struct Socket {
    redis: MultiplexedConnection,
    pub(super) address: Address,
    pub(super) facts: Facts,
    pub(super) health: Arc<Health>,
    /// Bounds the requests in flight, in the order of arrival. Not the client library's: its permits tell nothing of whether a
    /// request was sent.
    permits: Semaphore,
    in_flight: usize,
    /// How many requests of the library's own work are in flight or wait.
    cleanups: AtomicUsize,
    driver: AbortHandle,
    /// The application's runtime, if the connection lives there.
    home: Option<Handle>,
}

impl Socket {
    pub(super) fn new(
        redis: MultiplexedConnection,
        address: Address,
        health: Arc<Health>,
        driver: AbortHandle,
        in_flight: usize,
        home: Option<Handle>,
    ) -> Self {
        Self {
            redis,
            address,
            facts: Facts::default(),
            health,
            permits: Semaphore::new(in_flight),
            in_flight,
            cleanups: AtomicUsize::new(0),
            driver,
            home,
        }
    }

    /// Returns whether a request is in flight.
    pub(super) fn is_busy(&self) -> bool {
        self.permits.available_permits() < self.in_flight
    }

    /// Returns whether the library's own work waits for an answer.
    pub(super) fn has_cleanups(&self) -> bool {
        self.cleanups.load(Ordering::Relaxed) > 0
    }

    pub(super) const fn home(&self) -> Option<&Handle> {
        self.home.as_ref()
    }

    /// Returns whether the connection has ended. That of a runtime that has ended too ends with it.
    pub(super) fn has_ended(&self) -> bool {
        if self.driver.is_finished() {
            self.health.end(Ended::Disconnected);
        }
        self.health.ended().is_some()
    }

    /// Sends a command and waits for its answer, after those that wait already. No timer: [`watch`](Self::watch) ends the
    /// connection of a silent server.
    pub(super) async fn send(&self, command: &Cmd) -> Result<Value, Failure> {
        let _cleanup = is_library_thread().then(|| Counted::new(&self.cleanups));
        // The permits are closed when the connection ends.
        let _permit = self.permits.acquire().await.map_err(|_| Failure::NotSent)?;
        if self.has_ended() {
            return Err(Failure::NotSent);
        }
        self.exchange(command).await
    }

    async fn exchange(&self, command: &Cmd) -> Result<Value, Failure> {
        let mut redis = self.redis.clone();
        let answer = redis.send_packed_command(command);
        let answer = match &self.home {
            None => answer.await,
            // A runtime that is blocked cannot end the request.
            Some(_) => tokio::select! {
                biased;
                answer = answer => answer,
                _ = self.health.wait() => Err(RedisError::from(io::Error::from(io::ErrorKind::ConnectionAborted))),
            },
        };
        let answer = answer.and_then(Value::extract_error);
        match (self.health.ended(), &answer) {
            (Some(Ended::Mixed), _) => {
                let mixed = error::unavailable("Redis moved the namespace's slot while it answered: retry");
                return Err(Failure::Unanswered(mixed.with_effect(Effect::Unknown)));
            }
            (Some(Ended::Silent(silence)), Err(lost)) if lost.is_io_error() => {
                return Err(Failure::Unanswered(error::unanswered(silence)));
            }
            _ => {}
        }
        answer.map_err(|error| {
            if error::means_moved(&error) {
                self.health.end(Ended::Moved);
            } else if error.is_io_error() || error.is_unrecoverable_error() {
                self.health.end(Ended::Disconnected);
            }
            Failure::Redis(error)
        })
    }

    /// Sends a `PING` every half of `timeout`, and ends the connection of a server that sends nothing for `timeout` while the
    /// answer is due. The server answers in order, so the answer is one for every request before it, even if the application
    /// does not poll them.
    ///
    /// Time in which this process could not have read the answer does not count: the wait has [`SLICES`], and one that was late,
    /// or at whose end the connection's runtime was blocked, proves no silence.
    pub(super) async fn watch(&self, timeout: Duration) {
        let ping = redis::cmd("PING");
        let slice = timeout / SLICES;
        while self.health.ended().is_none() {
            sleep(timeout / 2).await;
            let mut answer = pin!(self.exchange(&ping));
            // A long answer of an earlier request may be on its way.
            let (mut reads, mut silent) = (self.health.reads.load(Ordering::Relaxed), 0);
            while silent < SLICES {
                let began = Instant::now();
                if tokio::time::timeout(slice, &mut answer).await.is_ok() {
                    break;
                }
                let was_able = self.is_read().await && began.elapsed() < slice * 2;
                let now = self.health.reads.load(Ordering::Relaxed);
                silent = match now == reads {
                    true => silent + u32::from(was_able),
                    false => 0,
                };
                reads = now;
            }
            if silent == SLICES {
                self.health.end(Ended::Silent(timeout));
            }
        }
        pending().await
    }

    /// Returns whether the runtime of the connection works.
    async fn is_read(&self) -> bool {
        match &self.home {
            Some(home) => home::works(home).await,
            None => true,
        }
    }

    /// Closes the connection. Requests in flight fail, and requests that wait are never sent.
    pub(super) fn close(&self, reason: Ended) {
        self.health.end(reason);
        self.permits.close();
        self.driver.abort();
    }
}

/// A part of a count, for as long as it exists.
struct Counted<'c>(&'c AtomicUsize);

impl<'c> Counted<'c> {
    fn new(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.close(Ended::Replaced);
    }
}
