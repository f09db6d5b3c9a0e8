//! Scenarios of whole sessions: callers, drops, batches and ends, over a store that records what happens to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use shuttle::future::{block_on, spawn};

use super::Scenario;
use crate::backend::{
    Backend, BackendSession, Departure, EndOutcome, Grant, Joined, Lease, Locker, Marker, Mode, Nonce, Opened, Page,
    Request, SessionEvent, SessionEvents, WaitQueue,
};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::executor::Executor;
use crate::guarantees::Guarantees;
use crate::options::{SessionId, SessionOptions};
use crate::session::Session;
use crate::store::Store;
use crate::sync::{Mutex, Notify};
use crate::token::FencingToken;

const DROPPED_STEP: &str = "a dropped step is dropped";

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "session: a dropped join ends in one withdrawal or one holding",
        run: dropped_join_leaves_one_trace,
        faults: &[DROPPED_STEP],
    },
    Scenario {
        name: "session: a dropped wait or release leaves nothing behind",
        run: dropped_wait_and_release_leave_nothing,
        faults: &["departures in the background are forgotten"],
    },
    Scenario {
        name: "session: releases that come together are each confirmed once",
        run: releases_are_confirmed_once,
        faults: &["departures in the background are forgotten"],
    },
    Scenario {
        name: "session: a loss reaches a waiter and a holder",
        run: loss_reaches_all,
        faults: &["a value is looked at, then awaited"],
    },
    Scenario {
        name: "session: the last drop of a store waits for the end in the store",
        run: last_drop_waits,
        faults: &["a session ends unnoticed"],
    },
];

/// The record of one session's requests.
#[derive(Default)]
struct Record {
    holder: Option<Nonce>,
    waiting: Vec<Nonce>,
    tokens: u64,
    /// How often each request was withdrawn or released.
    ends: BTreeMap<Nonce, usize>,
    granted: Vec<Nonce>,
    revoked: bool,
    /// How many steps were dropped before their end.
    dropped: usize,
    /// How many entries were left when the session was revoked.
    left: usize,
    events: Option<SessionEvents>,
}

impl Record {
    fn grant(&mut self) {
        if self.holder.is_none() && !self.waiting.is_empty() {
            let nonce = self.waiting.remove(0);
            self.holder = Some(nonce);
            self.granted.push(nonce);
            self.tokens += 1;
        }
    }
}

/// A store with one lock.
#[derive(Clone)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    changed: Arc<Notify>,
    clock: Clock,
    executor: Executor,
}

impl Recorder {
    fn new() -> Self {
        Self {
            record: Arc::default(),
            changed: Arc::new(Notify::new()),
            clock: Clock::manual(),
            executor: Executor::default(),
        }
    }

    /// Notes a step that core drops before its end, although it must not.
    fn step(&self) -> Step<'_> {
        Step {
            recorder: self,
            ended: false,
        }
    }

    fn look(&self, request: &Request) -> Result<Option<Grant>> {
        let record = self.record.lock();
        if record.holder == Some(request.nonce()) {
            return Ok(Some(Grant::new(FencingToken::new(record.tokens), "lock")));
        }
        match record.waiting.contains(&request.nonce()) {
            true => Ok(None),
            false => Err(Error::new(ErrorKind::Conflict, "no place")),
        }
    }
}

struct Step<'a> {
    recorder: &'a Recorder,
    ended: bool,
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.recorder.record.lock().dropped += 1;
        }
    }
}

/// Lets other tasks run between the parts of a step.
async fn travel() {
    let mut first = true;
    std::future::poll_fn(|context| {
        context.waker().wake_by_ref();
        match std::mem::take(&mut first) {
            true => std::task::Poll::Pending,
            false => std::task::Poll::Ready(()),
        }
    })
    .await;
}

#[async_trait]
impl Backend for Recorder {
    async fn open(&self, ttl: Duration, _: &str, events: SessionEvents) -> Result<Opened> {
        self.record.lock().events = Some(events);
        Ok(Opened::new(Arc::new(self.clone()), SessionId::new("1"), ttl))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("guarantees"))
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn executor(&self) -> Result<Executor> {
        Ok(self.executor.clone())
    }
}

#[async_trait]
impl Lease for Recorder {
    async fn renew(&self) -> Result<()> {
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        travel().await;
        let mut record = self.record.lock();
        record.left = record.waiting.len() + usize::from(record.holder.is_some());
        record.revoked = true;
        Ok(())
    }

    async fn entries(&self, _: Option<&[u8]>) -> Result<Page> {
        Ok(Page::last(Vec::new()))
    }
}

impl BackendSession for Recorder {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }
}

#[async_trait]
impl WaitQueue for Recorder {
    async fn join(&self, request: &Request, _: Mode, _: Option<&[u8]>, _: bool) -> Result<Joined> {
        let mut step = self.step();
        travel().await;
        {
            let mut record = self.record.lock();
            record.waiting.push(request.nonce());
            record.grant();
        }
        travel().await;
        step.ended = true;
        Ok(self.look(request)?.map_or(Joined::Waiting, Joined::Granted))
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Not `enable`, which a planted fault turns off: the record is looked at after the first poll.
            let mut found = None;
            let looking = std::future::poll_fn(|context| {
                let woken = changed.as_mut().poll(context);
                found = self.look(request).transpose();
                match found.is_some() || woken.is_ready() {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            });
            looking.await;
            if let Some(found) = found {
                return found.map(Some);
            }
        }
    }

    async fn leave(&self, _: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let mut step = self.step();
        travel().await;
        let outcomes = {
            let mut record = self.record.lock();
            let leaving = departures.iter().map(|departure| {
                let nonce = departure.request.nonce();
                *record.ends.entry(nonce).or_default() += 1;
                let held = record.holder.take_if(|holder| *holder == nonce).is_some();
                let waited = record.waiting.iter().position(|waiter| *waiter == nonce);
                let waited = waited.map(|place| record.waiting.remove(place)).is_some();
                record.grant();
                match held || waited {
                    true => EndOutcome::Ended,
                    false => EndOutcome::NotHeld,
                }
            });
            leaving.collect()
        };
        self.changed.notify_waiters();
        travel().await;
        step.ended = true;
        Ok(outcomes)
    }
}

impl Locker for Recorder {}

fn open(recorder: &Recorder) -> Session {
    let options = SessionOptions::new().ttl(Duration::from_secs(10));
    block_on(Store::new(recorder.clone()).open(options)).expect("a session")
}

/// Closes the session, and checks that each request had left by then, in one message.
fn close(recorder: &Recorder, session: Session) {
    block_on(session.close()).expect("the end of the session");
    drop(session);
    recorder.executor.until_idle();
    let record = recorder.record.lock();
    assert_eq!(record.left, 0, "entries at the end of the session");
    assert_eq!(record.dropped, 0, "steps that were dropped");
    assert!(record.ends.values().all(|ends| *ends == 1), "ends: {:?}", record.ends);
    assert!(record.granted.iter().all(|nonce| record.ends.contains_key(nonce)));
}

fn dropped_join_leaves_one_trace() {
    let recorder = Recorder::new();
    let session = open(&recorder);
    let caller = spawn({
        let session = session.clone();
        async move { session.lock("a").await }
    });
    caller.abort();
    match block_on(caller) {
        Ok(guard) => {
            let guard = guard.expect("a grant");
            let record = recorder.record.lock();
            assert!(
                record.holder.is_some() && record.ends.is_empty(),
                "a guard without a holding"
            );
            drop(record);
            drop(guard);
        }
        // Withdrawn in the background. A session that closes waits for it.
        Err(_) => {}
    }
    close(&recorder, session);
}

fn dropped_wait_and_release_leave_nothing() {
    let recorder = Recorder::new();
    let session = open(&recorder);
    let guard = block_on(session.lock("a")).expect("a grant");
    let waiter = spawn({
        let session = session.clone();
        async move { session.lock("a").await.map(drop) }
    });
    let releasing = spawn(guard.release());
    waiter.abort();
    releasing.abort();
    let _ = (block_on(waiter), block_on(releasing));
    close(&recorder, session);
}

fn releases_are_confirmed_once() {
    let recorder = Recorder::new();
    let session = open(&recorder);
    let tasks = [false, true, false].map(|dropped| {
        let session = session.clone();
        spawn(async move {
            let guard = session.lock("a").await.expect("a grant");
            match dropped {
                true => drop(guard),
                false => guard.release().await.expect("a release"),
            }
        })
    });
    for task in tasks {
        block_on(task).expect("no abort");
    }
    close(&recorder, session);
    assert_eq!(recorder.record.lock().granted.len(), 3);
}

fn loss_reaches_all() {
    let recorder = Recorder::new();
    let session = open(&recorder);
    let guard = block_on(session.lock("a")).expect("a grant");
    let waiter = spawn({
        let session = session.clone();
        async move { session.lock("a").await.map(drop) }
    });
    let holder = spawn(guard.lost());
    let events = recorder.record.lock().events.clone().expect("a session is open");
    events.report(SessionEvent::Lost(LossReason::Revoked));
    let refused = block_on(waiter).expect("no abort").expect_err("granted after the loss");
    assert_eq!(refused.loss(), Some(LossReason::Revoked));
    assert_eq!(block_on(holder).expect("no abort"), LossReason::Revoked);
    drop((guard, session));
    recorder.executor.until_idle();
}

fn last_drop_waits() {
    let recorder = Recorder::new();
    let session = open(&recorder);
    let guard = block_on(session.lock("a")).expect("a grant");
    drop(session);
    // The last reference.
    drop(guard);
    assert!(recorder.record.lock().revoked, "the drop did not wait");
    recorder.executor.until_idle();
}
