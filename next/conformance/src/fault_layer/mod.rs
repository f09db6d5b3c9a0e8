//! Faults for a store without a network: a layer around its backend that loses, delays, repeats and counts messages.

mod session;
mod wire;

use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tenure_core::backend::{Backend, BackendSession, EntryState, Nonce, SessionEvent, SessionEvents};
use tenure_core::{Error, ErrorKind, Kind, LossReason, Result, SessionId, Store};

use self::session::{Layered, LayeredBackend};
use self::wire::Wire;
use crate::harness::{Harness, Link, Linked, Need, Operator};

/// A session that was opened, without the layer, and the events by which its client learns of what happens to it.
#[derive(Clone)]
struct OpenedSession {
    id: SessionId,
    backend: Arc<dyn BackendSession>,
    events: SessionEvents,
}

type Sessions = Arc<Mutex<Vec<OpenedSession>>>;

/// Ends one request of a session, as an operator does; returns whether it existed.
pub type RevokeRequest = Arc<dyn Fn(&SessionId, Nonce) -> bool + Send + Sync>;

/// A store that runs in this process.
#[derive(Clone)]
#[non_exhaustive]
pub struct EmbeddedStore {
    backend: Arc<dyn Backend>,
    elsewhere: Option<Arc<dyn Backend>>,
    revoke_request: Option<RevokeRequest>,
    capacity: Option<usize>,
}

impl EmbeddedStore {
    /// Describes a store by its backend.
    pub fn new(backend: impl Backend) -> Self {
        Self {
            backend: Arc::new(backend),
            elsewhere: None,
            revoke_request: None,
            capacity: None,
        }
    }

    /// Adds the backend of another namespace of the same store ([`Need::Elsewhere`]).
    #[must_use]
    pub fn elsewhere(mut self, backend: impl Backend) -> Self {
        self.elsewhere = Some(Arc::new(backend));
        self
    }

    /// Adds the way in which an operator ends one request of a session ([`Need::RevokeRequest`]).
    #[must_use]
    pub fn revoke_request(
        mut self,
        revoke_request: impl Fn(&SessionId, Nonce) -> bool + Send + Sync + 'static,
    ) -> Self {
        self.revoke_request = Some(Arc::new(revoke_request));
        self
    }

    /// Adds how many entries the store carries for a session ([`Need::Capacity`]).
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = Some(capacity);
        self
    }
}

/// The harness of a store that runs in this process: every control that needs no server.
///
/// A restart ends the store and all its clients; the next connection begins with an empty store.
pub struct FaultLayer {
    start: Box<dyn Fn() -> Result<EmbeddedStore> + Send + Sync>,
    offers: Vec<Need>,
    capacity: Option<usize>,
    process: Mutex<Process>,
}

/// The state that ends with the process of the store.
struct Process {
    store: EmbeddedStore,
    sessions: Sessions,
    wires: Vec<Wire>,
}

impl FaultLayer {
    /// Puts a layer around the store that `start` makes. It is called once now, and once for each restart.
    ///
    /// # Errors
    ///
    /// Those of `start`.
    pub fn new(start: impl Fn() -> Result<EmbeddedStore> + Send + Sync + 'static) -> Result<Self> {
        let store = start()?;
        let mut offers = vec![
            Need::Silence,
            Need::Mute,
            Need::Hold,
            Need::Cut,
            Need::DelayRequest,
            Need::Repeat,
            Need::Requests,
            Need::Revoke,
            Need::Keys,
            Need::Waiters,
            Need::Sessions,
            Need::Restart,
            Need::Pause,
        ];
        let optional = [
            (Need::Elsewhere, store.elsewhere.is_some()),
            (Need::RevokeRequest, store.revoke_request.is_some()),
            (Need::Capacity, store.capacity.is_some()),
        ];
        offers.extend(optional.into_iter().filter_map(|(need, has)| has.then_some(need)));
        Ok(Self {
            start: Box::new(start),
            offers,
            capacity: store.capacity,
            process: Mutex::new(Process::new(store)),
        })
    }

    /// Connects to `backend`, the one of the namespace or another.
    fn layered(&self, backend: impl Fn(&EmbeddedStore) -> Option<Arc<dyn Backend>>) -> Option<(Store, Wire)> {
        let mut process = self.process.lock();
        let wire = Wire::new();
        process.wires.push(wire.clone());
        let layered = LayeredBackend {
            layered: Layered {
                inner: backend(&process.store)?,
                wire: wire.clone(),
            },
            sessions: Arc::clone(&process.sessions),
        };
        Some((Store::new(layered), wire))
    }

    fn here(&self) -> Result<(Store, Wire)> {
        let layered = self.layered(|store| Some(Arc::clone(&store.backend)));
        layered.ok_or_else(|| Error::unsupported("a connection"))
    }

    /// Lists what the store has of the sessions that live: the session, the nonce, the state, and a name for it.
    async fn entries(&self) -> Vec<(SessionId, Vec<(Nonce, String, EntryState)>)> {
        let sessions = Arc::clone(&self.process.lock().sessions);
        let sessions = sessions.lock().clone();
        let mut all = Vec::new();
        for OpenedSession { id, backend, .. } in sessions {
            let (mut found, mut cursor) = (Vec::new(), None);
            let lives = loop {
                // A session that has ended has nothing.
                let Ok(page) = backend.entries(cursor.as_deref()).await else {
                    break false;
                };
                found.extend(page.entries.into_iter().map(|entry| {
                    let key = format!("{id}/{:?}/{}/{}", entry.kind, entry.name.as_str(), entry.nonce);
                    (entry.nonce, key, entry.state)
                }));
                cursor = page.next;
                if cursor.is_none() {
                    break true;
                }
            };
            if lives {
                all.push((id, found));
            } else {
                let sessions = Arc::clone(&self.process.lock().sessions);
                sessions.lock().retain(|opened| !Arc::ptr_eq(&opened.backend, &backend));
            }
        }
        all
    }
}

impl Process {
    fn new(store: EmbeddedStore) -> Self {
        Self {
            store,
            sessions: Sessions::default(),
            wires: Vec::new(),
        }
    }
}

#[async_trait]
impl Harness for FaultLayer {
    async fn connect(&self) -> Result<Store> {
        Ok(self.here()?.0)
    }

    fn offers(&self) -> &[Need] {
        &self.offers
    }

    async fn linked(&self) -> Result<Linked> {
        let (store, wire) = self.here()?;
        Ok(Linked::new(store, wire))
    }

    async fn elsewhere(&self) -> Result<Store> {
        let layered = self.layered(|store| store.elsewhere.clone());
        let (store, _) = layered.ok_or_else(|| Error::unsupported("another namespace"))?;
        Ok(store)
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn capacity(&self) -> Option<usize> {
        self.capacity
    }
}

#[async_trait]
impl Operator for FaultLayer {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let found = {
            let process = self.process.lock();
            let sessions = process.sessions.lock();
            sessions.iter().find(|opened| opened.id == *session).cloned()
        };
        let Some(found) = found else {
            return Ok(()); // It has ended.
        };
        found.backend.revoke().await?;
        found.events.report(SessionEvent::Lost(LossReason::Revoked));
        Ok(())
    }

    async fn revoke_request(&self, key: &str) -> Result<()> {
        let revoke_request = self.process.lock().store.revoke_request.clone();
        let revoke_request = revoke_request.ok_or_else(|| Error::unsupported("revoking a request"))?;
        for (session, entries) in self.entries().await {
            for (nonce, _, state) in entries {
                let EntryState::Granted(grants) = state else {
                    continue;
                };
                if grants.iter().any(|grant| &*grant.key == key) && revoke_request(&session, nonce) {
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, "there is no such holding"))
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let all = self.entries().await.into_iter().flat_map(|(_, entries)| entries);
        Ok(all.map(|(_, key, _)| key).collect())
    }

    async fn waiters(&self, kind: Kind, name: &str) -> Result<Vec<SessionId>> {
        let prefix = |id: &SessionId| format!("{id}/{kind:?}/{name}/");
        let all = self.entries().await.into_iter();
        let waits = all.filter(|(id, entries)| {
            let waits =
                |(_, key, state): &(_, String, _)| *state == EntryState::Waiting && key.starts_with(&prefix(id));
            entries.iter().any(waits)
        });
        Ok(waits.map(|(id, _)| id).collect())
    }

    async fn sessions(&self) -> Result<usize> {
        Ok(self.entries().await.len())
    }

    async fn restart(&self) -> Result<()> {
        let next = Process::new((self.start)()?);
        let ended = std::mem::replace(&mut *self.process.lock(), next);
        ended.wires.iter().for_each(Link::silence);
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        self.process.lock().wires.iter().for_each(Link::silence);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.process.lock().wires.iter().for_each(Link::heal);
        Ok(())
    }
}
