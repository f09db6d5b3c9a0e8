//! The ends of holdings through core, on a store that refuses some of them.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, BackendSession, Claim, Departure, EndOutcome, Grant, Item, Joined, Lease, Locker, Marker, Mode, Nonce,
    Opened, Page, PeekedItem, Queue, QueueDepth, Request, Return, SessionEvents, TakeLimit, TakenItem, WaitQueue,
};
use tenure_core::clock::Clock;
use tenure_core::executor::Executor;
use tenure_core::{
    Effect, Error, ErrorKind, Guarantees, LockGuard, Name, Result, Session, SessionId, SessionOptions, Store,
};
use tenure_memory::MemoryBackend;

use crate::support::{TTL, pass, store};

/// A store that has a part which does not work: see [`fault`]. It loses the answer to the first batch of acknowledgements, and
/// refuses batches of them from then on.
struct Faulty(MemoryBackend, Arc<Releases>);

/// The messages with releases of locks.
#[derive(Default)]
struct Releases {
    /// Whether they fail.
    fail: AtomicBool,
    sent: AtomicUsize,
}

struct FaultySession {
    inner: Arc<dyn BackendSession>,
    releases: Arc<Releases>,
    acknowledged: AtomicBool,
}

impl FaultySession {
    fn locks(&self) -> Arc<dyn Locker> {
        Arc::clone(&self.inner).locker().unwrap()
    }

    fn queues(&self) -> Arc<dyn Queue> {
        Arc::clone(&self.inner).queue().unwrap()
    }
}

fn unavailable() -> Error {
    Error::new(ErrorKind::Unavailable, "this part of the store is down")
}

/// Returns the failure of an enqueue to `name`, or of the release of the lock `name`.
fn fault(name: &Name) -> Option<Error> {
    match name.as_str().split('-').next() {
        Some("stuck") => Some(unavailable()),
        Some("silent") => Some(unavailable().with_effect(Effect::Unknown)),
        Some("refused") => Some(Error::new(ErrorKind::Unauthorized, "the password was changed")),
        _ => None,
    }
}

#[async_trait]
impl Backend for Faulty {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        let mut opened = self.0.open(ttl, label, events).await?;
        opened.session = Arc::new(FaultySession {
            inner: opened.session,
            releases: Arc::clone(&self.1),
            acknowledged: AtomicBool::new(false),
        });
        Ok(opened)
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        self.0.resume(id, events).await
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.0.guarantees().await
    }

    fn clock(&self) -> Clock {
        self.0.clock()
    }

    fn executor(&self) -> Result<Executor> {
        self.0.executor()
    }
}

#[async_trait]
impl Lease for FaultySession {
    async fn renew(&self) -> Result<()> {
        self.inner.renew().await
    }

    async fn revoke(&self) -> Result<()> {
        self.inner.revoke().await
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        self.inner.detach(kept).await
    }

    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        self.inner.entries(cursor).await
    }
}

impl BackendSession for FaultySession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(self)
    }
}

#[async_trait]
impl WaitQueue for FaultySession {
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        self.locks().join(request, mode, value, wait).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.locks().wait(request).await
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.releases.sent.fetch_add(1, Ordering::Relaxed);
        if self.releases.fail.load(Ordering::Relaxed) {
            return Err(unavailable());
        }
        match departures.iter().find_map(|departure| fault(departure.request.name())) {
            Some(error) => Err(error),
            None => self.locks().leave(marker, departures).await,
        }
    }
}

impl Locker for FaultySession {}

#[async_trait]
impl Queue for FaultySession {
    async fn enqueue(&self, marker: Marker, name: &Name, items: &[Item]) -> Result<()> {
        match fault(name) {
            Some(error) => Err(error),
            None => self.queues().enqueue(marker, name, items).await,
        }
    }

    async fn take(&self, request: &Request, limit: &TakeLimit, wait: bool) -> Result<Joined<Vec<TakenItem>>> {
        self.queues().take(request, limit, wait).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>> {
        self.queues().wait(request).await
    }

    async fn ack(&self, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>> {
        // Long enough for others to come together.
        tokio::time::sleep(Duration::from_millis(10)).await;
        if claims.len() == 1 {
            return self.queues().ack(marker, claims).await;
        }
        if self.acknowledged.swap(true, Ordering::Relaxed) {
            return Err(Error::new(ErrorKind::Unauthorized, "the password was changed"));
        }
        self.queues().ack(marker, claims).await?;
        Err(unavailable().with_effect(Effect::Unknown))
    }

    async fn nack(&self, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>> {
        self.queues().nack(marker, returns).await
    }

    async fn leave(&self, requests: &[Request]) -> Result<()> {
        self.queues().leave(requests).await
    }

    async fn depth(&self, name: &Name) -> Result<QueueDepth> {
        self.queues().depth(name).await
    }

    async fn peek(&self, name: &Name) -> Result<Option<PeekedItem>> {
        self.queues().peek(name).await
    }

    async fn purge(&self, marker: Marker, name: &Name) -> Result<u64> {
        self.queues().purge(marker, name).await
    }
}

pub async fn faulty() -> (MemoryBackend, Store, Session) {
    let (backend, store, session, _) = counted().await;
    (backend, store, session)
}

async fn counted() -> (MemoryBackend, Store, Session, Arc<Releases>) {
    let (backend, releases) = (store(), Arc::default());
    let store = Store::new(Faulty(backend.clone(), Arc::clone(&releases)));
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    (backend, store, session, releases)
}

async fn guards(session: &Session, count: usize) -> Vec<LockGuard> {
    let mut guards = Vec::new();
    for number in 0..count {
        guards.push(session.lock(format!("healthy-{number}")).await.unwrap());
    }
    guards
}

#[tokio::test(start_paused = true)]
async fn outage_costs_messages_for_each_pause_and_not_for_each_guard() {
    let mut during = Vec::new();
    for count in [500, 5_000] {
        let (backend, _store, session, releases) = counted().await;
        let guards = guards(&session, count).await;
        releases.fail.store(true, Ordering::Relaxed);
        drop(guards);
        pass(5.0).await;
        during.push(releases.sent.swap(0, Ordering::Relaxed));
        releases.fail.store(false, Ordering::Relaxed);
        pass(1.0).await;
        assert_eq!(backend.footprint().entries, 0);
        // Each of four tasks grows its messages from one departure to 500.
        let after = releases.sent.load(Ordering::Relaxed);
        assert!(after <= count / 500 + 4 * 10, "{after} messages for {count} guards");
    }
    // 5,000 guards are ten batches, of which each may fail on its way, and four tasks probe instead of one.
    assert!(during[1] <= during[0] * 4 + 20, "{during:?}");
    assert!(during[0] <= 2_000, "{during:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_release_costs_the_others_of_its_batch_few_messages() {
    let (backend, _store, session, releases) = counted().await;
    let mut guards = guards(&session, 499).await;
    guards.insert(250, session.lock("refused").await.unwrap());
    drop(guards);
    pass(0.5).await;
    assert_eq!(backend.footprint().entries, 1);
    let sent = releases.sent.load(Ordering::Relaxed);
    assert!(sent <= 60, "{sent} messages");
}

/// Polls a call once in a task that has no budget left, so that tokio's own futures are pending at once, and drops it.
async fn poll_without_budget<T>(call: impl Future<Output = T>) {
    let mut call = Box::pin(call);
    poll_fn(|context| {
        loop {
            let spent = pin!(tokio::task::coop::consume_budget());
            if spent.poll(context).is_pending() {
                break;
            }
        }
        assert!(Pin::as_mut(&mut call).poll(context).is_pending());
        Poll::Ready(())
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn end_that_is_dropped_after_a_poll_without_budget_happens() {
    let backend = store();
    let store = Store::new(backend.clone());
    let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    session.queue("q").enqueue("item").await.unwrap();
    poll_without_budget(session.lock("l").await.unwrap().release()).await;
    poll_without_budget(session.read_lock("r").await.unwrap().release()).await;
    poll_without_budget(session.write_lock("w").await.unwrap().release()).await;
    poll_without_budget(session.election("e").campaign("me").await.unwrap().resign()).await;
    poll_without_budget(session.queue("q").dequeue().await.unwrap().nack()).await;
    pass(1.0).await;
    assert!(session.is_valid());
    assert_eq!(backend.footprint().entries, 0);
}

#[tokio::test(start_paused = true)]
async fn step_whose_caller_is_gone_does_not_keep_the_session_open() {
    let (backend, _store, session) = faulty().await;
    let queue = session.queue("stuck");
    let late = tokio::time::timeout(Duration::from_millis(1), queue.enqueue("item")).await;
    assert!(late.is_err());
    drop((queue, session));
    pass(TTL.as_secs_f64() * 3.0).await;
    assert_eq!(backend.footprint().sessions, 0);
}

#[tokio::test(start_paused = true)]
async fn acknowledgements_that_may_have_happened_are_not_reported_as_lost() {
    let (_backend, _store, session) = faulty().await;
    let queue = session.queue("q");
    queue.enqueue_many(["1", "2", "3"]).await.unwrap();
    let take = async || queue.dequeue().await.unwrap();
    let (one, two, three) = (take().await, take().await, take().await);
    let answers: [Result<()>; 3] = tokio::join!(one.ack(), two.ack(), three.ack()).into();
    assert_eq!(queue.len().await.unwrap(), 0);
    for answer in answers {
        if let Err(error) = answer {
            assert_eq!(error.effect(), Effect::Unknown, "{error:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn guard_that_was_dropped_before_a_detachment_is_not_kept() {
    let (backend, store, session) = faulty().await;
    drop(session.lock("stuck").await.unwrap());
    let kept = session.lock("kept").await.unwrap();
    let id = session.detach().await.unwrap();
    drop((kept, session));
    let resumed = store.resume(&id).await.unwrap();
    pass(1.0).await;
    assert!(resumed.is_valid());
    assert_eq!(backend.footprint().entries, 1);
}

const FAULTS: [&str; 3] = ["stuck", "silent", "refused"];

/// Asserts that the lock `name` is released before the session could have ended.
async fn assert_released(store: &Store, name: &str) {
    let other = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
    let locker = other.locker(name);
    locker.lock_timeout(TTL / 2).await.unwrap().release().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropped_guard_is_released_after_others_whose_release_fails() {
    for fault in FAULTS {
        let (_backend, store, session) = faulty().await;
        for number in 0..100 {
            drop(session.lock(format!("{fault}-{number}")).await.unwrap());
            // Not in one batch.
            pass(0.01).await;
        }
        drop(session.lock("healthy").await.unwrap());
        assert_released(&store, "healthy").await;
        assert!(session.is_valid());
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_guard_is_released_although_the_release_of_others_in_its_batch_fails() {
    for fault in FAULTS {
        let (_backend, store, session) = faulty().await;
        let mut guards = Vec::new();
        for number in 0..50 {
            guards.push(session.lock(format!("{fault}-{number}")).await.unwrap());
        }
        guards.insert(25, session.lock("healthy").await.unwrap());
        drop(guards);
        assert_released(&store, "healthy").await;
    }
}

#[tokio::test(start_paused = true)]
async fn release_is_answered_after_others_that_fail() {
    for fault in FAULTS {
        let (_backend, _store, session) = faulty().await;
        let mut failing = Vec::new();
        for number in 0..100 {
            let guard = session.lock(format!("{fault}-{number}")).await.unwrap();
            failing.push(tokio::spawn(guard.release()));
            pass(0.01).await;
        }
        let healthy = session.lock("healthy").await.unwrap();
        tokio::time::timeout(TTL, healthy.release()).await.unwrap().unwrap();
        for release in failing {
            assert_eq!(release.is_finished(), fault == "refused");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn dropped_guard_is_released_while_every_step_in_flight_fails() {
    for fault in ["stuck", "silent"] {
        let (_backend, store, session) = faulty().await;
        for number in 0..200 {
            let queue = session.queue(format!("{fault}-{number}"));
            tokio::spawn(async move { queue.enqueue("item").await });
        }
        pass(1.0).await;
        drop(session.lock("healthy").await.unwrap());
        assert_released(&store, "healthy").await;
    }
}

#[tokio::test(start_paused = true)]
async fn step_that_had_no_effect_ends_with_its_caller() {
    let (_backend, _store, session) = faulty().await;
    let enqueue = |number: i32| {
        let queue = session.queue(format!("stuck-{number}"));
        tokio::spawn(async move { queue.enqueue("item").await })
    };
    let stuck: Vec<_> = (0..200).map(enqueue).collect();
    pass(1.0).await;
    stuck.iter().for_each(|step| step.abort());
    let queue = session.queue("healthy");
    tokio::time::timeout(TTL, queue.enqueue("item")).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn step_is_carried_out_while_many_releases_fail() {
    for fault in FAULTS {
        let (_backend, _store, session) = faulty().await;
        for number in 0..200 {
            drop(session.lock(format!("{fault}-{number}")).await.unwrap());
            pass(0.01).await;
        }
        let queue = session.queue("healthy");
        tokio::time::timeout(TTL / 2, queue.enqueue("item"))
            .await
            .unwrap()
            .unwrap();
    }
}
