//! A backend's session and its parts, behind a link.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, BackendSession, Barrier, Claim, Commit, CommitOutcome, Departure, Election, EndOutcome, Grant, Item,
    Joined, Key, KeyRead, LeaderUpdate, Lease, Locker, Marker, Mode, Nonce, Opened, Page, PeekedItem, Queue,
    QueueDepth, Request, Resolution, Return, RwLock, SessionEvents, Snapshot, Stm, TakeLimit, TakenItem, WaitQueue,
};
use tenure_core::clock::Clock;
use tenure_core::executor::Executor;
use tenure_core::{FencingToken, Guarantees, Name, Result, SessionId};

use super::wire::Wire;
use super::{OpenedSession, Sessions};

/// A part of a backend behind a link.
pub(super) struct Layered<T: ?Sized> {
    pub(super) inner: Arc<T>,
    pub(super) wire: Wire,
}

impl<T: ?Sized> Layered<T> {
    /// Puts another part behind the same link.
    fn around<U: ?Sized>(&self, part: Option<Arc<U>>) -> Option<Layered<U>> {
        let wire = self.wire.clone();
        part.map(|inner| Layered { inner, wire })
    }
}

/// Returns the request as it is sent: a message that arrives late says what was so when it was sent.
fn sent(request: &Request) -> Request {
    let oldest_open = Arc::new(AtomicU64::new(request.oldest_open().get()));
    Request::new(request.nonce(), request.kind(), request.name().clone(), oldest_open)
}

/// Sends a request that owns what it is about: it may outlive its caller.
macro_rules! step {
    ($self:ident, $inner:ident $(, $arg:ident = $owned:expr)* => $call:expr) => {
        step!($self, true, $inner $(, $arg = $owned)* => $call)
    };
    ($self:ident, $delayable:literal, $inner:ident $(, $arg:ident = $owned:expr)* => $call:expr) => {{
        let $inner = Arc::clone(&$self.inner);
        $(let $arg = $owned;)*
        let request = move || {
            let $inner = Arc::clone(&$inner);
            $(let $arg = $arg.clone();)*
            async move { $call.await }
        };
        $self.wire.step($delayable, request).await
    }};
}

/// The backend of one connection.
pub(super) struct LayeredBackend {
    pub(super) layered: Layered<dyn Backend>,
    pub(super) sessions: Sessions,
}

impl LayeredBackend {
    fn opened(&self, opened: Opened, events: SessionEvents) -> Opened {
        let Opened { id, session, .. } = &opened;
        self.sessions.lock().push(OpenedSession {
            id: id.clone(),
            backend: Arc::clone(session),
            events,
        });
        let layered = Layered {
            inner: Arc::clone(session),
            wire: self.layered.wire.clone(),
        };
        Opened::new(Arc::new(layered), id.clone(), opened.ttl)
            .capacity(opened.capacity)
            .first_nonce(opened.first_nonce)
    }
}

#[async_trait]
impl Backend for LayeredBackend {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        let (layered, events) = (&self.layered, self.layered.wire.reports(events));
        let opened = step!(layered, inner, label = label.to_owned(), events = events.clone() => {
            inner.open(ttl, &label, events)
        })?;
        Ok(self.opened(opened, events))
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let (layered, events) = (&self.layered, self.layered.wire.reports(events));
        let resumed = step!(layered, inner, id = id.clone(), events = events.clone() => {
            inner.resume(&id, events)
        })?;
        Ok(self.opened(resumed, events))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        let layered = &self.layered;
        step!(layered, inner => inner.guarantees())
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let layered = &self.layered;
        step!(layered, inner => inner.raise_token_floor(floor))
    }

    fn clock(&self) -> Clock {
        self.layered.inner.clock()
    }

    fn executor(&self) -> Result<Executor> {
        self.layered.inner.executor()
    }

    fn default_ttl(&self) -> Duration {
        self.layered.inner.default_ttl()
    }
}

#[async_trait]
impl Lease for Layered<dyn BackendSession> {
    async fn renew(&self) -> Result<()> {
        step!(self, false, inner => inner.renew())
    }

    async fn revoke(&self) -> Result<()> {
        step!(self, inner => inner.revoke())
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        step!(self, inner, kept = kept.to_vec() => inner.detach(&kept))
    }

    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        step!(self, false, inner, cursor = cursor.map(<[u8]>::to_vec) => {
            inner.entries(cursor.as_deref())
        })
    }
}

macro_rules! parts {
    ($($part:ident $kind:ident;)*) => {
        impl BackendSession for Layered<dyn BackendSession> {$(
            fn $part(self: Arc<Self>) -> Option<Arc<dyn $kind>> {
                let part = Arc::clone(&self.inner).$part();
                Some(Arc::new(self.around(part)?))
            }
        )*}
    };
}

parts! {
    locker Locker;
    rw_lock RwLock;
    election Election;
    queue Queue;
    barrier Barrier;
    stm Stm;
}

#[async_trait]
impl<T: WaitQueue + ?Sized> WaitQueue for Layered<T> {
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        step!(self, inner, request = sent(request), value = value.map(<[u8]>::to_vec) => {
            inner.join(&request, mode, value.as_deref(), wait)
        })
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.wire.wait(|| self.inner.wait(request)).await
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        step!(self, inner, departures = departures.to_vec() => {
            inner.leave(marker, &departures)
        })
    }
}

impl Locker for Layered<dyn Locker> {}

#[async_trait]
impl RwLock for Layered<dyn RwLock> {
    async fn downgrade(&self, marker: Marker, request: &Request, token: FencingToken) -> Result<()> {
        step!(self, inner, request = sent(request) => {
            inner.downgrade(marker, &request, token)
        })
    }
}

#[async_trait]
impl Election for Layered<dyn Election> {
    async fn proclaim(&self, request: &Request, token: FencingToken, number: u64, value: &[u8]) -> Result<()> {
        step!(self, inner, request = sent(request), value = value.to_vec() => {
            inner.proclaim(&request, token, number, &value)
        })
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<LeaderUpdate> {
        self.wire.wait(|| self.inner.observe(name, after)).await
    }
}

#[async_trait]
impl Queue for Layered<dyn Queue> {
    async fn enqueue(&self, marker: Marker, name: &Name, items: &[Item]) -> Result<()> {
        step!(self, inner, name = name.clone(), items = items.to_vec() => {
            inner.enqueue(marker, &name, &items)
        })
    }

    async fn take(&self, request: &Request, limit: &TakeLimit, wait: bool) -> Result<Joined<Vec<TakenItem>>> {
        step!(self, inner, request = sent(request), limit = limit.clone() => {
            inner.take(&request, &limit, wait)
        })
    }

    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>> {
        self.wire.wait(|| self.inner.wait(request)).await
    }

    async fn ack(&self, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>> {
        step!(self, inner, claims = claims.to_vec() => inner.ack(marker, &claims))
    }

    async fn nack(&self, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>> {
        step!(self, inner, returns = returns.to_vec() => inner.nack(marker, &returns))
    }

    async fn leave(&self, requests: &[Request]) -> Result<()> {
        step!(self, inner, requests = requests.to_vec() => inner.leave(&requests))
    }

    async fn depth(&self, name: &Name) -> Result<QueueDepth> {
        step!(self, inner, name = name.clone() => inner.depth(&name))
    }

    async fn peek(&self, name: &Name) -> Result<Option<PeekedItem>> {
        step!(self, inner, name = name.clone() => inner.peek(&name))
    }

    async fn purge(&self, marker: Marker, name: &Name) -> Result<u64> {
        step!(self, inner, name = name.clone() => inner.purge(marker, &name))
    }
}

#[async_trait]
impl Barrier for Layered<dyn Barrier> {
    async fn enter(&self, request: &Request, count: NonZeroU32) -> Result<Joined> {
        step!(self, inner, request = sent(request) => inner.enter(&request, count))
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.wire.wait(|| self.inner.wait(request)).await
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        step!(self, inner, departures = departures.to_vec() => {
            inner.leave(marker, &departures)
        })
    }

    async fn all_left(&self, name: &Name, token: FencingToken) -> Result<bool> {
        self.wire.wait(|| self.inner.all_left(name, token)).await
    }
}

#[async_trait]
impl Stm for Layered<dyn Stm> {
    async fn read(&self, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot> {
        step!(self, inner, keys = keys.to_vec() => inner.read(&keys, at))
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome> {
        step!(self, inner, commit = commit.clone() => inner.commit(&commit))
    }

    async fn resolve(&self, marker: Marker) -> Result<Resolution> {
        step!(self, inner => inner.resolve(marker))
    }

    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()> {
        self.wire.wait(|| self.inner.changed(keys, revision)).await
    }

    fn check(&self, commit: &Commit) -> Result<()> {
        self.inner.check(commit)
    }
}
