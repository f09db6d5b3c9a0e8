//! The connection to an embedded store.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tenure_core::backend::{Backend, Nonce, Opened, SessionEvents};
use tenure_core::clock::Clock;
use tenure_core::executor::Executor;
use tenure_core::{Error, FencingToken, Guarantees, LossReason, Namespace, Result, SessionId, Store};

use crate::config::MemoryConfig;
use crate::session::MemorySession;
pub use crate::state::Footprint;
use crate::state::{Member, Space, StoreState};

/// The named stores. They live until the process ends, so that tokens rise even while no connection exists.
static STORES: LazyLock<Mutex<BTreeMap<String, Arc<StoreState>>>> = LazyLock::new(Mutex::default);

/// Connects to an embedded store.
///
/// # Errors
///
/// Those of [`MemoryBackend::connect`].
pub fn connect(config: MemoryConfig) -> Result<Store> {
    MemoryBackend::connect(config).map(Store::new)
}

/// A connection to an embedded store.
#[derive(Clone)]
pub struct MemoryBackend {
    shared: Arc<StoreState>,
    space: Arc<Space>,
    /// The clock of the client's runtime. That of the store may belong to a runtime that has ended.
    clock: Clock,
    ttl: Duration,
    label: String,
}

impl MemoryBackend {
    /// Connects to the store that `config` selects, and creates it if it does not exist.
    ///
    /// # Errors
    ///
    /// `Config` for a default TTL that the store does not grant, and outside a tokio runtime: the store uses its clock.
    pub fn connect(config: MemoryConfig) -> Result<Self> {
        config.check()?;
        Executor::current()?;
        let new = || Arc::new(StoreState::new(Clock::tokio(), config.limits, config.planted));
        let shared = match &config.shared {
            None => new(),
            Some(name) => Arc::clone(STORES.lock().entry(name.clone()).or_insert_with(new)),
        };
        Ok(Self {
            space: shared.space(config.namespace),
            shared,
            clock: Clock::tokio(),
            ttl: config.ttl,
            label: config.label,
        })
    }

    /// Returns a connection to another namespace of the same store.
    #[must_use]
    pub fn in_namespace(&self, namespace: Namespace) -> Self {
        Self {
            space: self.shared.space(namespace),
            ..self.clone()
        }
    }

    /// Lists the sessions of the namespace with their labels.
    pub fn sessions(&self) -> Vec<(SessionId, String)> {
        let id = |(number, label): (u64, _)| (SessionId::new(number.to_string()), label);
        self.space.step(|state| state.labels()).into_iter().map(id).collect()
    }

    /// Ends a session with its entries, as an operator does, and notifies its client. Returns whether it was alive.
    pub fn revoke(&self, id: &SessionId) -> bool {
        number(id).is_ok_and(|session| self.space.step(|state| state.end_session(session, LossReason::Revoked)))
    }

    /// Ends one request of a session, as an operator does, and notifies its client. Returns whether it existed.
    pub fn take_away(&self, id: &SessionId, request: Nonce) -> bool {
        number(id).is_ok_and(|session| self.space.step(|state| state.take_away(session, request)))
    }

    /// Counts what the store keeps for the namespace, in O(entries): a store in steady use does not grow (rule H1).
    pub fn footprint(&self) -> Footprint {
        self.space.step(|state| state.footprint())
    }

    fn opened(&self, (member, ttl, first): (Member, Duration, Nonce)) -> Opened {
        let id = SessionId::new(member.session.to_string());
        let session = Arc::new(MemorySession::new(Arc::clone(&self.space), member));
        Opened::new(session, id, ttl)
            .capacity(self.space.limits.capacity)
            .first_nonce(first)
    }
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryBackend")
            .field("namespace", &self.space.namespace)
            .finish_non_exhaustive()
    }
}

fn number(id: &SessionId) -> Result<u64> {
    id.as_str().parse().map_err(|_| Error::lost(LossReason::Expired))
}

#[async_trait]
impl Backend for MemoryBackend {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        let ttl = self.space.limits.granted(ttl)?;
        let session = self.shared.next_session();
        let label = match label {
            "" => &self.label,
            own => own,
        };
        let member = self.space.step(|state| state.open(session, ttl, label, events));
        Ok(self.opened((member, ttl, Nonce::new(1))))
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let session = number(id)?;
        let resumed = self.space.step(|state| state.resume(session, events))?;
        Ok(self.opened(resumed))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Ok(crate::guarantees::guarantees())
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        self.space.step(|state| state.raise_token_floor(floor))
    }

    fn clock(&self) -> Clock {
        self.clock.clone()
    }

    fn executor(&self) -> Result<Executor> {
        Executor::current()
    }

    fn default_ttl(&self) -> Duration {
        self.ttl
    }
}
