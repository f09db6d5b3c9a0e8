//! What the tests share: waiting for conditions, dropping futures half-way, and a layer over the
//! embedded store that is slow and fails on command.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "every test file uses its own part of this"
)]

use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use tenure_core::backend::{
    Ask, Backend, Election, Grant, Held, Lease, Locker, Opened, Settle, Sighting, async_trait,
};
use tenure_core::{
    Clock, Error, FencingToken, Guarantees, Leader, Name, Result, Session, SessionId,
    SessionOptions, Store,
};
use tenure_memory::{MemoryBackend, MemoryConfig, connect};

pub const TTL: Duration = Duration::from_secs(10);

pub fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub fn store() -> Store<MemoryBackend> {
    connect(MemoryConfig::new().ttl(TTL)).unwrap()
}

/// Another connection to the same store: another process, as far as the store can tell.
pub fn another(store: &Store<MemoryBackend>) -> Store<MemoryBackend> {
    Store::new(store.backend().reconnect())
}

/// Enough for a test, and without a dependency: xorshift64* (S. Vigna, 2016).
pub struct Dice(u64);

impl Dice {
    pub fn seeded(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32) % sides
    }
}

/// Waits until `condition` holds, for at most a minute of the runtime's time.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(millis(1)).await;
        }
    };
    if tokio::time::timeout(secs(60), waiting).await.is_err() {
        panic!("never came true: {what}");
    }
}

/// Waits until the store keeps no holding and no wait.
pub async fn until_no_ghost(backend: &MemoryBackend) {
    let waiting = async {
        while !backend.keys().is_empty() {
            tokio::time::sleep(millis(1)).await;
        }
    };
    // Well below the TTL: a ghost that only dies with its session is one.
    if tokio::time::timeout(TTL / 4, waiting).await.is_err() {
        panic!("ghosts: {:?}", backend.keys());
    }
}

/// Polls `future` at most `polls` times and then drops it.
pub async fn polled<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Polls `future` on `turns` turns of the scheduler, woken or not, and then drops it: for futures
/// that wait for a task which does the work. Meant for [`step_by_step`].
pub async fn turns<F: Future>(turns: usize, future: F) -> Option<F::Output> {
    polled(turns, async {
        let mut future = pin!(future);
        poll_fn(|context| {
            context.waker().wake_by_ref();
            future.as_mut().poll(context)
        })
        .await
    })
    .await
}

/// Runs `test` under paused time, on a scheduler that polls one task a turn.
pub fn step_by_step(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .event_interval(1)
        .build()
        .unwrap()
        .block_on(test);
}

async fn yields(times: usize) {
    let mut left = times;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// A step that a backend is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Open,
    Resume,
    Renew,
    Revoke,
    Audit,
    Detach,
    TryAcquire,
    Acquire,
    Release,
    Withdraw,
    Reclaim,
    Proclaim,
}

/// When a step fails: before it took effect, or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    Before,
    After,
    /// It panics instead.
    Panic,
}

type Failure = (When, Box<dyn FnOnce() -> Error + Send>);

/// What a layer does to each step: yields before and after it, counts it, and fails it on command.
#[derive(Default)]
pub struct Script {
    yields: usize,
    /// Yields up to so many times more, as these dice fall.
    dice: Option<Mutex<Dice>>,
    capacity: Option<usize>,
    failures: Mutex<HashMap<Op, VecDeque<Failure>>>,
    calls: Mutex<HashMap<Op, usize>>,
    live: AtomicUsize,
}

impl Script {
    pub fn new(yields: usize) -> Self {
        Self {
            yields,
            ..Self::default()
        }
    }

    /// Each step waits before it and after it for a number of turns that depends on `seed`: on a runtime
    /// with one thread and a paused clock, another seed is another interleaving of the same program.
    pub fn shuffled(seed: u64) -> Self {
        Self {
            dice: Some(Mutex::new(Dice::seeded(seed))),
            ..Self::default()
        }
    }

    fn turns(&self) -> usize {
        let dice = self.dice.as_ref();
        self.yields + dice.map_or(0, |dice| dice.lock().unwrap().roll(7) as usize)
    }

    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = Some(capacity);
        self
    }

    /// The next `op` that has no failure yet fails.
    pub fn fail(&self, op: Op, when: When, error: impl FnOnce() -> Error + Send + 'static) {
        let mut failures = self.failures.lock().unwrap();
        failures
            .entry(op)
            .or_default()
            .push_back((when, Box::new(error)));
    }

    pub fn calls(&self, op: Op) -> usize {
        self.calls.lock().unwrap().get(&op).copied().unwrap_or(0)
    }

    /// How many leases core still has in its hands.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }

    async fn around<T>(&self, op: Op, step: impl Future<Output = Result<T>>) -> Result<T> {
        *self.calls.lock().unwrap().entry(op).or_default() += 1;
        let failure = self
            .failures
            .lock()
            .unwrap()
            .get_mut(&op)
            .and_then(VecDeque::pop_front);
        yields(self.turns()).await;
        let answer = match failure {
            Some((When::Before, error)) => Err(error()),
            Some((When::After, error)) => {
                let _ = step.await;
                Err(error())
            }
            Some((When::Panic, error)) => panic!("on command: {}", error()),
            None => step.await,
        };
        yields(self.turns()).await;
        answer
    }
}

/// The embedded store under a [`Script`].
pub struct Layered {
    pub inner: MemoryBackend,
    pub script: Arc<Script>,
}

/// A connection of its own to `store`, under `script`.
pub fn layered(store: &Store<MemoryBackend>, script: Script) -> (Store<Layered>, Arc<Script>) {
    let script = Arc::new(script);
    let backend = Layered {
        inner: store.backend().reconnect(),
        script: Arc::clone(&script),
    };
    (Store::new(backend), script)
}

pub struct LayeredSession<S> {
    inner: Arc<S>,
    script: Arc<Script>,
}

impl<S> Drop for LayeredSession<S> {
    fn drop(&mut self) {
        self.script.live.fetch_sub(1, Ordering::SeqCst);
    }
}

type Wrapped = LayeredSession<tenure_memory::MemorySession>;

impl Layered {
    fn wrap(&self, opened: Opened<tenure_memory::MemorySession>) -> Opened<Wrapped> {
        self.script.live.fetch_add(1, Ordering::SeqCst);
        Opened {
            lease: Arc::new(LayeredSession {
                inner: opened.lease,
                script: Arc::clone(&self.script),
            }),
            id: opened.id,
            ttl: opened.ttl,
            capacity: self.script.capacity.unwrap_or(opened.capacity),
        }
    }
}

#[async_trait]
impl Backend for Layered {
    type Session = Wrapped;

    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<Wrapped>> {
        let opening = async { Ok(self.wrap(self.inner.open(ttl, options).await?)) };
        self.script.around(Op::Open, opening).await
    }

    async fn resume(&self, id: &SessionId) -> Result<Opened<Wrapped>> {
        let resuming = async { Ok(self.wrap(self.inner.resume(id).await?)) };
        self.script.around(Op::Resume, resuming).await
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        self.inner.guarantees().await
    }

    fn clock(&self) -> Clock {
        self.inner.clock()
    }

    fn default_ttl(&self) -> Duration {
        self.inner.default_ttl()
    }
}

#[async_trait]
impl Lease for Wrapped {
    async fn renew(&self) -> Result<()> {
        self.script.around(Op::Renew, self.inner.renew()).await
    }

    async fn revoke(&self) -> Result<()> {
        self.script.around(Op::Revoke, self.inner.revoke()).await
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        self.script.around(Op::Audit, self.inner.audit(held)).await
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        self.script
            .around(Op::Detach, self.inner.detach(held))
            .await
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(Arc::new(LayeredLocker {
            inner: Arc::clone(&self.inner).locker()?,
            script: Arc::clone(&self.script),
        }))
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(Arc::new(LayeredElection {
            inner: Arc::clone(&self.inner).election()?,
            script: Arc::clone(&self.script),
        }))
    }
}

pub struct LayeredElection {
    inner: Arc<dyn Election>,
    script: Arc<Script>,
}

#[async_trait]
impl Election for LayeredElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        let step = self.inner.try_campaign(ask, value);
        self.script.around(Op::TryAcquire, step).await
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let step = self.inner.campaign(ask, value);
        self.script.around(Op::Acquire, step).await
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let step = self.inner.proclaim(ask, grant, number, value);
        self.script.around(Op::Proclaim, step).await
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        self.inner.leader(name).await
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        self.inner.observe(name, after).await
    }
}

#[async_trait]
impl Settle for LayeredElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let step = self.inner.release(ask, grant);
        self.script.around(Op::Release, step).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let step = self.inner.withdraw(ask);
        self.script.around(Op::Withdraw, step).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let step = self.inner.reclaim(ask, token);
        self.script.around(Op::Reclaim, step).await
    }
}

pub struct LayeredLocker {
    inner: Arc<dyn Locker>,
    script: Arc<Script>,
}

#[async_trait]
impl Locker for LayeredLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        let step = self.inner.try_acquire(ask);
        self.script.around(Op::TryAcquire, step).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        let step = self.inner.acquire(ask);
        self.script.around(Op::Acquire, step).await
    }
}

#[async_trait]
impl Settle for LayeredLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let step = self.inner.release(ask, grant);
        self.script.around(Op::Release, step).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let step = self.inner.withdraw(ask);
        self.script.around(Op::Withdraw, step).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let step = self.inner.reclaim(ask, token);
        self.script.around(Op::Reclaim, step).await
    }
}

/// A session with its defaults.
pub async fn open(store: &Store<MemoryBackend>) -> Session {
    store.open(SessionOptions::new()).await.unwrap().into_dyn()
}
