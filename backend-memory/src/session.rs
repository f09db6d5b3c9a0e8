//! The connection to an embedded store, and its sessions.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, Barrier, Election, HasBarrier, HasElection, HasLocker, HasQueue, HasRwLock, HasStm,
    Held, Lease, Locker, Opened, Queue, RwLock, Slots, Stm,
};
use tenure_core::{
    Clock, Error, ErrorKind, FencingToken, Guarantees, LossReason, Namespace, Result, SessionId,
    SessionOptions, Store,
};

use crate::barrier::MemoryBarrier;
use crate::config::{self, MemoryConfig};
use crate::election::MemoryElection;
use crate::faults::Link;
use crate::locker::MemoryLocker;
use crate::queue::MemoryQueue;
use crate::rw_lock::MemoryRwLock;
use crate::stm::MemoryStm;
use crate::store::{CAPACITY, Footprint, Member, Shared};

/// Connects to an embedded store, and makes it if it is not there yet.
///
/// # Errors
///
/// `Config` for a TTL of zero or above [`MAX_TTL`](crate::MAX_TTL), and outside a tokio runtime,
/// on whose time the store lives.
pub fn connect(config: MemoryConfig) -> Result<Store<MemoryBackend>> {
    MemoryBackend::connect(config).map(Store::new)
}

/// The stores that have a name, kept until the process ends: a lease that its owner left behind
/// holds for its TTL, and tokens rise, even when the last connection is gone for a while.
static STORES: LazyLock<Mutex<HashMap<String, Arc<Shared>>>> = LazyLock::new(Mutex::default);

/// One connection to an embedded store.
pub struct MemoryBackend {
    store: Arc<Shared>,
    link: Link,
    namespace: Namespace,
    ttl: Duration,
}

impl MemoryBackend {
    fn connect(config: MemoryConfig) -> Result<Self> {
        config.check()?;
        if tokio::runtime::Handle::try_current().is_err() {
            return Err(Error::new(
                ErrorKind::Config,
                "the embedded store lives on the time of a tokio runtime: connect inside one",
            ));
        }
        let new = || Arc::new(Shared::new(Clock::tokio()));
        let store = match config.shared {
            None => new(),
            Some(name) => {
                let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(stores.entry(name).or_insert_with(new))
            }
        };
        Ok(Self {
            link: Link::new(&store),
            store,
            namespace: config.namespace,
            ttl: config.ttl,
        })
    }

    /// Another connection to the same store, with a [`Link`] of its own: in tests, another
    /// process.
    #[must_use]
    pub fn reconnect(&self) -> Self {
        Self {
            store: Arc::clone(&self.store),
            link: Link::new(&self.store),
            namespace: self.namespace.clone(),
            ttl: self.ttl,
        }
    }

    /// The same connection, seeing another namespace.
    #[must_use]
    pub fn in_namespace(mut self, namespace: Namespace) -> Self {
        self.namespace = namespace;
        self
    }

    /// The way to the store, with its switch for faults.
    pub fn link(&self) -> Link {
        self.link.clone()
    }

    /// What is left in this namespace of the store, by key and sorted: every holding and every
    /// wait, of every session, and every item of a queue. As an operator sees it: not over the [`Link`].
    pub fn keys(&self) -> Vec<String> {
        self.store.step(|state| state.keys(&self.namespace))
    }

    /// An operator removes the holding, wait or item at `key`; says whether there was one. The holder
    /// learns of it at once, or over a link that was silent by its next renewal but one.
    pub fn delete(&self, key: &str) -> bool {
        self.store.step(|state| state.delete(&self.namespace, key))
    }

    /// An operator ends a session and with it all that it holds; says whether it lived. Its owner
    /// learns of it by its next renewal.
    pub fn revoke(&self, id: &SessionId) -> bool {
        number(id).is_some_and(|id| self.store.step(|state| state.end(&self.namespace, id)))
    }

    /// How much the whole store keeps, in every namespace.
    pub fn footprint(&self) -> Footprint {
        self.store.step(|state| state.footprint())
    }

    fn opened(&self, member: Member, ttl: Duration) -> Opened<MemorySession> {
        Opened {
            id: SessionId::new(member.session.to_string()),
            ttl,
            capacity: CAPACITY,
            lease: Arc::new(MemorySession {
                store: Arc::clone(&self.store),
                link: self.link.clone(),
                namespace: self.namespace.clone(),
                member,
                slots: Slots::new(),
            }),
        }
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend")
            .field("namespace", &self.namespace)
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

fn number(id: &SessionId) -> Option<u64> {
    id.as_str().parse().ok()
}

#[async_trait]
impl Backend for MemoryBackend {
    type Session = MemorySession;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<MemorySession>> {
        let ttl = config::granted(ttl)?;
        let (namespace, link) = (self.namespace.clone(), self.link.clone());
        let opening = self.link.round_trip(&self.store, None, move |state| {
            Ok(state.open(namespace, ttl, link))
        });
        Ok(self.opened(opening.await?, ttl))
    }

    async fn resume(&self, id: &SessionId) -> Result<Opened<MemorySession>> {
        let session = number(id).ok_or_else(|| Error::lost(LossReason::Expired))?;
        let (namespace, link) = (self.namespace.clone(), self.link.clone());
        let resuming = self.link.round_trip(&self.store, None, move |state| {
            state.resume(session, &namespace, link)
        });
        let (member, ttl) = resuming.await?;
        Ok(self.opened(member, ttl))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Ok(crate::guarantees::guarantees())
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let namespace = self.namespace.clone();
        let raising = self.link.round_trip(&self.store, None, move |state| {
            state.raise_token_floor(&namespace, floor);
            Ok(())
        });
        raising.await
    }

    fn clock(&self) -> Clock {
        self.store.clock().clone()
    }

    fn default_ttl(&self) -> Duration {
        self.ttl
    }
}

/// A session of the embedded store.
#[derive(Debug)]
pub struct MemorySession {
    pub(crate) store: Arc<Shared>,
    pub(crate) link: Link,
    pub(crate) namespace: Namespace,
    pub(crate) member: Member,
    /// Where its commits leave their markers.
    pub(crate) slots: Slots,
}

#[async_trait]
impl Lease for MemorySession {
    async fn renew(&self) -> Result<()> {
        let member = self.member.clone();
        let renewing = self
            .link
            .round_trip(&self.store, None, move |state| state.renew(&member));
        renewing.await
    }

    async fn revoke(&self) -> Result<()> {
        let member = self.member.clone();
        let revoking = self.link.round_trip(&self.store, None, move |state| {
            state.revoke(&member);
            Ok(())
        });
        revoking.await
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let (member, held) = (self.member.clone(), held.to_vec());
        let auditing = self.link.round_trip(&self.store, None, move |state| {
            state.missing(&member, &held)
        });
        auditing.await
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        let member = self.member.clone();
        let held = held.iter().map(|held| held.nonce).collect();
        let detaching = self
            .link
            .round_trip(&self.store, None, move |state| state.detach(&member, &held));
        detaching.await
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self.typed_locker())
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self.typed_rw_lock())
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self.typed_election())
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(self.typed_barrier())
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(self.typed_stm())
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(self.typed_queue())
    }
}

impl HasLocker for MemorySession {
    type Locker = MemoryLocker;

    fn typed_locker(self: Arc<Self>) -> Arc<MemoryLocker> {
        Arc::new(MemoryLocker::new(self))
    }
}

impl HasRwLock for MemorySession {
    type RwLock = MemoryRwLock;

    fn typed_rw_lock(self: Arc<Self>) -> Arc<MemoryRwLock> {
        Arc::new(MemoryRwLock::new(self))
    }
}

impl HasElection for MemorySession {
    type Election = MemoryElection;

    fn typed_election(self: Arc<Self>) -> Arc<MemoryElection> {
        Arc::new(MemoryElection::new(self))
    }
}

impl HasBarrier for MemorySession {
    type Barrier = MemoryBarrier;

    fn typed_barrier(self: Arc<Self>) -> Arc<MemoryBarrier> {
        Arc::new(MemoryBarrier::new(self))
    }
}

impl HasStm for MemorySession {
    type Stm = MemoryStm;

    fn typed_stm(self: Arc<Self>) -> Arc<MemoryStm> {
        Arc::new(MemoryStm::new(self))
    }
}

impl HasQueue for MemorySession {
    type Queue = MemoryQueue;

    fn typed_queue(self: Arc<Self>) -> Arc<MemoryQueue> {
        Arc::new(MemoryQueue::new(self))
    }
}
