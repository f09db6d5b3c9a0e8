//! A client that calls the backend API directly.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tenure_core::backend::{
    Backend, BackendSession, Claim, Departure, EndOutcome, Entry, Grant, Item, Joined, Marker, Mode, Nonce, Request,
    SessionEvent, SessionEvents, Slot, TakeLimit, TakenItem, WaitQueue,
};
use tenure_core::{ErrorKind, FencingToken, Kind, Name, Result, SessionId};
use tenure_memory::{MemoryBackend, MemoryConfig};
use tokio::sync::mpsc::UnboundedReceiver;

#[cfg(feature = "planted")]
pub type Rule = fn(MemoryBackend) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

pub const TTL: Duration = Duration::from_secs(10);

pub fn store() -> MemoryBackend {
    MemoryBackend::connect(MemoryConfig::new()).unwrap()
}

pub fn name(name: &str) -> Name {
    Name::new(name).unwrap()
}

/// Waits for something that has to happen.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(30);
    tokio::time::timeout(limit, what)
        .await
        .expect("it did not happen within 30 s")
}

/// Lets a second pass, in which something must not happen.
pub async fn not_yet<T: std::fmt::Debug>(what: impl Future<Output = T>) {
    let happened = tokio::time::timeout(Duration::from_secs(1), what).await;
    assert!(happened.is_err(), "it happened too early: {happened:?}");
}

pub async fn pass(seconds: f64) {
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
}

pub fn kind<T: std::fmt::Debug>(result: Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

pub struct Client {
    pub session: Arc<dyn BackendSession>,
    pub id: SessionId,
    pub ttl: Duration,
    pub events: UnboundedReceiver<SessionEvent>,
    next: AtomicU64,
    pub oldest_open: Arc<AtomicU64>,
}

impl Client {
    pub async fn open(store: &MemoryBackend) -> Self {
        Self::open_for(store, TTL).await.unwrap()
    }

    pub async fn open_for(store: &MemoryBackend, ttl: Duration) -> Result<Self> {
        let (send, events) = SessionEvents::channel();
        Ok(Self::new(store.open(ttl, "test", send).await?, events))
    }

    pub async fn resume(store: &MemoryBackend, id: &SessionId) -> Result<Self> {
        let (send, events) = SessionEvents::channel();
        Ok(Self::new(store.resume(id, send).await?, events))
    }

    fn new(opened: tenure_core::backend::Opened, events: UnboundedReceiver<SessionEvent>) -> Self {
        Self {
            session: opened.session,
            id: opened.id,
            ttl: opened.ttl,
            events,
            next: AtomicU64::new(opened.first_nonce.get()),
            oldest_open: Arc::default(),
        }
    }

    pub fn nonce(&self) -> Nonce {
        Nonce::new(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub fn request(&self, kind: Kind, of: &str) -> Request {
        Request::new(self.nonce(), kind, name(of), Arc::clone(&self.oldest_open))
    }

    pub fn marker(&self) -> Marker {
        Marker {
            nonce: self.nonce(),
            slot: Slot::new(0),
        }
    }

    pub fn line(&self, kind: Kind) -> Arc<dyn WaitQueue> {
        let session = Arc::clone(&self.session);
        match kind {
            Kind::Election => session.election().unwrap(),
            Kind::RwLock => session.rw_lock().unwrap(),
            _ => session.locker().unwrap(),
        }
    }

    pub fn queue(&self) -> Arc<dyn tenure_core::backend::Queue> {
        Arc::clone(&self.session).queue().unwrap()
    }

    pub fn barrier(&self) -> Arc<dyn tenure_core::backend::Barrier> {
        Arc::clone(&self.session).barrier().unwrap()
    }

    pub fn stm(&self) -> Arc<dyn tenure_core::backend::Stm> {
        Arc::clone(&self.session).stm().unwrap()
    }

    pub fn election(&self) -> Arc<dyn tenure_core::backend::Election> {
        Arc::clone(&self.session).election().unwrap()
    }

    pub async fn join(&self, request: &Request, mode: Mode, wait: bool) -> Joined {
        self.line(request.kind()).join(request, mode, None, wait).await.unwrap()
    }

    /// Joins, and expects a grant at once.
    pub async fn hold(&self, kind: Kind, name: &str, mode: Mode) -> (Request, Grant) {
        let request = self.request(kind, name);
        match self.join(&request, mode, true).await {
            Joined::Granted(grant) => (request, grant),
            other => panic!("{other:?} instead of a grant of {name}"),
        }
    }

    pub async fn lock(&self, name: &str) -> (Request, Grant) {
        self.hold(Kind::Lock, name, Mode::Exclusive).await
    }

    /// Joins, and expects to wait.
    pub async fn queue_up(&self, kind: Kind, name: &str, mode: Mode) -> Request {
        let request = self.request(kind, name);
        assert_eq!(self.join(&request, mode, true).await, Joined::Waiting);
        request
    }

    pub async fn wait(&self, request: &Request) -> Grant {
        soon(self.line(request.kind()).wait(request)).await.unwrap().unwrap()
    }

    pub async fn waits(&self, request: &Request) {
        not_yet(self.line(request.kind()).wait(request)).await;
    }

    pub async fn release(&self, request: &Request, token: FencingToken) -> EndOutcome {
        let leave = [Departure::release(request.clone(), token)];
        self.line(request.kind()).leave(self.marker(), &leave).await.unwrap()[0]
    }

    pub async fn withdraw(&self, request: &Request) -> EndOutcome {
        let leave = [Departure::withdraw(request.clone())];
        self.line(request.kind()).leave(self.marker(), &leave).await.unwrap()[0]
    }

    pub async fn entries(&self) -> Vec<Entry> {
        let (mut entries, mut cursor) = (Vec::new(), None);
        loop {
            let page = self.session.entries(cursor.as_deref()).await.unwrap();
            entries.extend(page.entries);
            match page.next {
                Some(next) => cursor = Some(next),
                None => return entries,
            }
        }
    }

    pub async fn enqueue(&self, queue: &str, items: &[Item]) {
        self.queue().enqueue(self.marker(), &name(queue), items).await.unwrap();
    }

    pub async fn take(&self, queue: &str, limit: &TakeLimit) -> Option<(Request, Vec<TakenItem>)> {
        let request = self.request(Kind::Queue, queue);
        match self.queue().take(&request, limit, false).await.unwrap() {
            Joined::Granted(items) => Some((request, items)),
            Joined::Busy => None,
            Joined::Waiting => panic!("a take that was not to wait does"),
        }
    }

    /// Takes one item, and expects one.
    pub async fn take_one(&self, queue: &str) -> (Claim, TakenItem) {
        let (request, mut items) = self.take(queue, &TakeLimit::new(1)).await.expect("no item");
        let item = items.remove(0);
        (Claim::new(request, item.token), item)
    }

    pub async fn wait_in_queue(&self, queue: &str, limit: &TakeLimit) -> Request {
        let request = self.request(Kind::Queue, queue);
        let taken = self.queue().take(&request, limit, true).await.unwrap();
        assert!(matches!(taken, Joined::Waiting), "{taken:?}");
        request
    }

    pub async fn given(&self, request: &Request) -> Vec<TakenItem> {
        soon(self.queue().wait(request)).await.unwrap().unwrap()
    }

    pub async fn ack(&self, claim: Claim) -> EndOutcome {
        self.queue().ack(self.marker(), &[claim]).await.unwrap()[0]
    }
}
