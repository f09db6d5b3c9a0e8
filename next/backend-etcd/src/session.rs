//! A session: its lease, and what it has in the store.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use etcd_client::proto::PbKeyValue;
use etcd_client::{LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions, Txn};
use parking_lot::Mutex;
use tenure_core::backend::{
    BackendSession, Barrier, Election, Entry, EntryState, Grant, Lease, Locker, Mode, Nonce, Page, Request, RwLock,
    SessionEvent, SessionEvents, Stm,
};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, LossReason, Result};

use crate::connection::Repeat;
use crate::error::{from_client, is_connection, revoked, unanswered};
use crate::fence::{Fence, Write};
use crate::places::{Place, Places};
use crate::shared::Shared;
use crate::tokens::Floors;
use crate::txn::{Answer, KEYS_AT_ONCE, delete, get, get_revisions};

mod open;

pub(crate) use open::{open, resume};

/// Entries of one session. With 10,000 keys on a lease a renewal costs as ever, and its end 150 ms (3.4.23).
const CAPACITY: usize = 10_000;

type Keeper = (LeaseKeeper, LeaseKeepAliveStream, u64);

/// A session of a store on etcd.
pub(crate) struct EtcdSession {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lease: i64,
    pub(crate) fence: Fence,
    pub(crate) places: Places,
    events: SessionEvents,
    /// The generations of double barriers that its participants have left, by their tokens.
    pub(crate) left: Mutex<BTreeMap<FencingToken, i64>>,
    /// The history to which the session belongs.
    epoch: u64,
    /// The holdings of a resumed session that the process before it has kept.
    kept: HashSet<u64>,
    /// The greatest nonce that this process has seen.
    last_nonce: Mutex<u64>,
    /// The keepalive stream, while no renewal uses it. A renewal that is dropped takes it along, so that no later one reads the
    /// answer to an earlier request.
    keeper: Mutex<Option<Keeper>>,
    /// How long a renewal waits for its answer. Core gives up after a third of the TTL: this notices first, and leaves the
    /// connection.
    patience: Duration,
}

impl Drop for EtcdSession {
    fn drop(&mut self) {
        self.shared.connection.history.unregister(self.lease);
    }
}

/// The first line of an entry's value, and the rest.
pub(crate) struct Header {
    pub(crate) nonce: Nonce,
    /// The part that the kind of the entry adds.
    pub(crate) note: String,
    pub(crate) value: Vec<u8>,
}

impl Header {
    /// Returns the value of an entry in the store.
    pub(crate) fn write(nonce: Nonce, note: &str, value: &[u8]) -> Vec<u8> {
        [format!("{nonce} {note}\n").as_bytes(), value].concat()
    }

    /// Reads the value of an entry; `None` if another program wrote it.
    pub(crate) fn read(value: &[u8]) -> Option<Self> {
        let end = value.iter().position(|byte| *byte == b'\n')?;
        let line = std::str::from_utf8(&value[..end]).ok()?;
        let (nonce, note) = line.split_once(' ')?;
        Some(Self {
            nonce: Nonce::new(nonce.parse().ok()?),
            note: note.to_owned(),
            value: value[end + 1..].to_vec(),
        })
    }

    /// Returns the note of a holding: whether it is a writer's that was downgraded, and its token if the floors do not show it.
    pub(crate) fn note_of(place: &Place, is_downgraded: bool) -> String {
        let token = place.token.filter(|_| place.is_noted);
        let token = token.map_or_else(String::new, |token| format!("t{token}"));
        format!("{}{token}", if is_downgraded { "r" } else { "" })
    }

    pub(crate) fn is_downgraded(&self) -> bool {
        self.note.starts_with('r')
    }

    /// Returns the token that the entry notes.
    pub(crate) fn token(&self) -> Option<FencingToken> {
        self.note.split_once('t')?.1.parse().ok()
    }
}

impl EtcdSession {
    /// Fails if the history of the store in which this session was opened is lost.
    pub(crate) fn check_history(&self) -> Result<()> {
        match self.shared.connection.history.epoch() == self.epoch {
            true => Ok(()),
            false => Err(revoked()),
        }
    }

    /// Reads by a linearizable transaction, in the history of this session.
    pub(crate) async fn read(&self, txn: Txn) -> Result<Answer> {
        let answer = self.shared.connection.txn(Repeat::Yes, txn).await?;
        self.check_history()?;
        Ok(answer)
    }

    /// Writes. See [`Fence::write`].
    pub(crate) async fn write(&self, write: Write) -> Result<Answer> {
        self.check_history()?;
        self.fence.write(write).await.inspect_err(|error| self.note_loss(error))
    }

    /// Settles lost requests. See [`Fence::settle`].
    pub(crate) async fn settle(&self) -> Result<()> {
        self.check_history()?;
        self.fence.settle().await.inspect_err(|error| self.note_loss(error))
    }

    /// Reports the end of the session, whose lease may live on: an operator has removed its key or the namespace.
    fn note_loss(&self, error: &Error) {
        if error.kind() == ErrorKind::Lost {
            let reason = error.loss().unwrap_or(LossReason::Revoked);
            self.events.report(SessionEvent::Lost(reason));
        }
    }

    /// Notes that a nonce was used: a process that resumes the session goes on above it.
    pub(crate) fn note_nonce(&self, nonce: Nonce) {
        let mut last = self.last_nonce.lock();
        *last = nonce.get().max(*last);
    }

    /// Notes the nonce of a request, and that requests below another one are over.
    pub(crate) fn note_request(&self, request: &Request) {
        self.note_nonce(request.nonce());
        self.note_nonce(request.oldest_open());
    }

    /// Returns the last part of a key of this session: `<lease>-<number>`.
    pub(crate) fn member(&self, number: u32) -> String {
        format!("{:x}-{number}", self.lease)
    }

    pub(crate) fn grant(&self, place: &Place, token: FencingToken) -> Grant {
        Grant::new(token, Arc::clone(&place.key))
    }

    /// Sends one keepalive. Returns whether its answer is a reason to compare histories: its stream is new, or it shows an older
    /// revision than was seen.
    async fn keep_alive(&self, keeper: Option<Keeper>) -> Result<(Keeper, bool), etcd_client::Error> {
        let connection = &self.shared.connection;
        let Some((mut keeper, mut stream, number)) = keeper else {
            let link = connection.link();
            let (keeper, stream) = link.client.lease_client().keep_alive(self.lease).await?;
            return Ok(((keeper, stream, link.number), true));
        };
        let failed = |text: &str| etcd_client::Error::LeaseKeepAliveError(text.to_owned());
        keeper.keep_alive().await?;
        let answer = stream.message().await?.ok_or_else(|| failed("the stream has ended"))?;
        if answer.ttl() <= 0 {
            return Err(failed("lease not found"));
        }
        let doubts = answer.header().is_some_and(|header| connection.history.doubts(header));
        Ok(((keeper, stream, number), doubts))
    }

    /// Returns the keys on the lease. The leader answers from what it has applied, which may be older than an acknowledged write.
    async fn keys_on_lease(&self) -> Result<HashSet<Vec<u8>>> {
        let lease = self.lease;
        let answer = self.shared.connection.call(Repeat::Yes, |client| {
            let mut client = client.lease_client();
            let options = LeaseTimeToLiveOptions::new().with_keys();
            async move { client.time_to_live(lease, Some(options)).await }
        });
        let answer = answer.await?;
        // 0 for a lease that has less than a second left.
        match answer.ttl() >= 0 {
            true => Ok(answer.keys().iter().cloned().collect()),
            false => Err(revoked()),
        }
    }

    /// Checks that the places are in the store, and that this process still has the session. Returns those that are.
    async fn present(&self, places: Vec<Place>) -> Result<Vec<Place>> {
        let mut present = Vec::with_capacity(places.len());
        let session = self.shared.keys.session(self.lease);
        let mut places = places.into_iter().peekable();
        let mut is_first = true;
        while std::mem::take(&mut is_first) || places.peek().is_some() {
            let some: Vec<_> = places.by_ref().take(KEYS_AT_ONCE).collect();
            let mut reads = vec![get_revisions(&session)];
            reads.extend(some.iter().map(|place| get_revisions(&place.key)));
            let mut answer = self.read(Txn::new().and_then(reads)).await?;
            answer.key()?.ok_or_else(revoked)?;
            for place in some {
                let found = answer.key()?;
                if found.is_some_and(|found| found.create_revision == place.created) {
                    present.push(place);
                }
            }
        }
        Ok(present)
    }

    /// Reads entries that this process does not know, and notes them as its own. Values that are too long for one answer are read by
    /// halves.
    async fn adopt(&self, keys: &[String]) -> Result<Vec<Entry>> {
        let (mut entries, mut rest, mut size) = (Vec::new(), keys, KEYS_AT_ONCE);
        while !rest.is_empty() {
            let (some, later) = rest.split_at(size.min(rest.len()));
            match self.adopt_some(some).await {
                Ok(adopted) => {
                    entries.extend(adopted);
                    rest = later;
                }
                Err(error) if error.kind() == ErrorKind::TooLarge && some.len() > 1 => size = some.len() / 2,
                Err(error) => return Err(error),
            }
        }
        Ok(entries)
    }

    async fn adopt_some(&self, keys: &[String]) -> Result<Vec<Entry>> {
        let mut reads = vec![get(&self.shared.keys.token_floor())];
        reads.extend(keys.iter().map(|key| get(key)));
        let mut answer = self.read(Txn::new().and_then(reads)).await?;
        let floors = Floors::read(answer.key()?.as_ref());
        let mut entries = Vec::new();
        for _ in keys {
            entries.extend(answer.key()?.and_then(|found| self.adopt_one(&found, &floors)));
        }
        Ok(entries)
    }

    async fn list(&self) -> Result<Page> {
        // Before the keys: a place that is added meanwhile is in both, or only in the store, where it is found by its nonce.
        let known = self.places.all();
        let mut on_lease = self.keys_on_lease().await?;
        let (listed, missing): (Vec<_>, Vec<_>) = known
            .into_iter()
            .partition(|place| on_lease.remove(place.key.as_bytes()));
        let present = self.present(missing).await?;
        let mut entries: Vec<_> = listed.into_iter().chain(present).map(entry).collect();
        // Places that joined while the keys were listed are known by now.
        let recent: HashSet<_> = self.places.all().into_iter().map(|place| place.key).collect();
        let unknown = on_lease.into_iter().filter_map(|key| String::from_utf8(key).ok());
        let unknown: Vec<_> = unknown.filter(|key| !recent.contains(&**key)).collect();
        entries.extend(self.adopt(&unknown).await?);
        Ok(Page::last(entries))
    }

    fn adopt_one(&self, found: &PbKeyValue, floors: &Floors) -> Option<Entry> {
        let key = std::str::from_utf8(&found.key).ok()?;
        let (kind, name) = self.shared.keys.object_of(key)?;
        let header = Header::read(&found.value)?;
        let (_, number) = key.rsplit_once('-')?;
        let shares = key.rsplit('/').nth(1) == Some("read") || header.is_downgraded();
        let mode = if shares && kind == Kind::RwLock {
            Mode::Shared
        } else {
            Mode::Exclusive
        };
        let (nonce, created) = (header.nonce, found.create_revision);
        let is_held = self.kept.contains(&nonce.get()) && kind.has_wait_queue();
        let place = Place {
            token: is_held.then(|| header.token().unwrap_or_else(|| floors.token(created))),
            is_noted: header.token().is_some(),
            created,
            ..Place::new(nonce, (kind, name), mode, number.parse().ok()?, key)
        };
        self.places.adopt(place).map(entry)
    }
}

fn entry(place: Place) -> Entry {
    let state = match place.token {
        Some(token) => EntryState::Granted(vec![Grant::new(token, place.key)]),
        None => EntryState::Waiting,
    };
    Entry::new(place.nonce, place.kind, place.name, state).mode(place.mode)
}

#[async_trait]
impl Lease for EtcdSession {
    async fn renew(&self) -> Result<()> {
        self.check_history()?;
        let connection = &self.shared.connection;
        let keeper = self.keeper.lock().take();
        let number = keeper
            .as_ref()
            .map_or_else(|| connection.link().number, |(_, _, number)| *number);
        match tokio::time::timeout(self.patience, self.keep_alive(keeper)).await {
            Ok(Ok((keeper, doubts))) => {
                *self.keeper.lock() = Some(keeper);
                if doubts {
                    // A restored etcd knows the leases of its snapshot, and renews them. Without an answer the lease was renewed
                    // all the same, and the next answer is compared.
                    let _ = tokio::time::timeout(self.patience, connection.compare_history()).await;
                }
                self.check_history()
            }
            Ok(Err(error)) => {
                let is_broken = is_connection(&error);
                let error = from_client(error);
                // Refused by TLS too: the next connection reads the certificates again.
                if (is_broken && error.kind() != ErrorKind::Lost) || error.is_retryable() {
                    connection.leave(number).await;
                }
                Err(error)
            }
            Err(_) => {
                connection.suspect(number).await;
                Err(unanswered(self.patience))
            }
        }
    }

    async fn revoke(&self) -> Result<()> {
        let lease = self.lease;
        let revoking = self.shared.connection.call(Repeat::Yes, |client| {
            let mut client = client.lease_client();
            async move { client.revoke(lease).await }
        });
        match revoking.await {
            Err(error) if error.kind() != ErrorKind::Lost => Err(error),
            _ => Ok(()),
        }
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        self.check_history()?;
        let kept: HashSet<_> = kept.iter().copied().collect();
        let (kept, ends): (Vec<_>, Vec<_>) = self
            .places
            .all()
            .into_iter()
            .partition(|place| kept.contains(&place.nonce));
        for ends in ends.chunks(KEYS_AT_ONCE) {
            let write = Write {
                then: ends.iter().map(|place| delete(&place.key)).collect(),
                ..Write::default()
            };
            match self.write(write).await {
                // A repeated detachment, whose first one was carried out.
                Err(error) if error.loss() == Some(LossReason::Detached) => break,
                answer => drop(answer?),
            }
        }
        let next = *self.last_nonce.lock() + 1;
        let nonces = kept.iter().map(|place| place.nonce.get());
        self.fence.give_up(|label| open::detached(next, nonces, label)).await
    }

    async fn entries(&self, _cursor: Option<&[u8]>) -> Result<Page> {
        self.check_history()?;
        self.list().await.inspect_err(|error| self.note_loss(error))
    }
}

impl BackendSession for EtcdSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self)
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(self)
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(self)
    }
}
