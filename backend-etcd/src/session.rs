//! The backend and its sessions: a lease each, kept alive over a stream of its own.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, GetOptions, LeaseKeepAliveStream, LeaseKeeper, LeaseTimeToLiveOptions,
    PutOptions, Txn, TxnOp,
};
use tenure_core::backend::{
    Backend, Barrier, Election, HasBarrier, HasElection, HasLocker, HasQueue, HasRwLock, HasStm,
    Held, Lease, Locker, Opened, Queue, RwLock, Slots, Stm, async_trait,
};
use tenure_core::{
    Effect, Error, ErrorKind, FencingToken, Guarantees, LossReason, Result, SessionId,
    SessionOptions,
};

use crate::barrier::EtcdBarrier;
use crate::bell::Bells;
use crate::client::{Wire, silent};
use crate::config::EtcdConfig;
use crate::election::EtcdElection;
use crate::error::{from_client, is_connection, lease_gone};
use crate::feed::Feeds;
use crate::floor::{self, Floors, revision};
use crate::guarantees;
use crate::layout::Layout;
use crate::line::Lines;
use crate::locker::EtcdLocker;
use crate::queue::{Books, EtcdQueue, Hubs, Visits};
use crate::rw_lock::EtcdRwLock;
use crate::stm::EtcdStm;
use crate::ticket::{Tickets, ranges};

/// etcd refuses a lease beyond this.
const MAX_TTL: Duration = Duration::from_secs(9_000_000_000);

/// Holdings and waits for one session. With 10,000 keys on a lease, a renewal costs what it
/// always costs, the audit 8 ms and the revocation 146 ms (measured, docs/etcd.md).
const CAPACITY: usize = 10_000;

/// Reads in one transaction; etcd takes 128 operations.
const READS: usize = 100;

/// etcd, connected.
pub struct EtcdBackend {
    shared: Arc<Shared>,
    ttl: Duration,
}

/// What the sessions of one connection share.
pub(crate) struct Shared {
    pub(crate) wire: Arc<Wire>,
    pub(crate) lines: Lines,
    pub(crate) feeds: Feeds,
    pub(crate) bells: Bells,
    pub(crate) queues: Hubs,
    pub(crate) layout: Layout,
    pub(crate) floors: Arc<Floors>,
    pub(crate) interop: bool,
}

impl EtcdBackend {
    pub(crate) async fn connect(config: EtcdConfig) -> Result<Self> {
        let wire = Wire::connect(&config).await;
        let wire = wire.map_err(|error| explain_first_contact(error, &config))?;
        let layout = Layout::new(config.namespace.clone(), config.interop);
        let met = if config.interop {
            meet(&wire, &layout).await
        } else {
            check_layout(&wire, &layout).await
        };
        met.map_err(|error| explain_first_contact(error, &config))?;
        Ok(Self::over(wire, layout, &config))
    }

    fn over(wire: Arc<Wire>, layout: Layout, config: &EtcdConfig) -> Self {
        let lines = Lines::new(Arc::clone(&wire));
        let floors = Arc::new(Floors::new(Arc::clone(&wire), &layout, config.interop));
        let feeds = Feeds::new(Arc::clone(&wire), lines.watcher(), Arc::clone(&floors));
        let queues = Hubs::new(Arc::clone(&wire), lines.watcher());
        let bells = Bells::new(&wire, lines.watcher());
        let shared = Arc::new(Shared {
            wire,
            bells,
            lines,
            feeds,
            queues,
            layout,
            floors,
            interop: config.interop,
        });
        Self {
            shared,
            ttl: config.ttl,
        }
    }

    /// A session that never met its server.
    #[cfg(test)]
    pub(crate) async fn unmet() -> Arc<EtcdSession> {
        Self::unmet_on(7).await
    }

    /// The same, on this lease.
    #[cfg(test)]
    pub(crate) async fn unmet_on(lease: i64) -> Arc<EtcdSession> {
        let config = EtcdConfig::new(["127.0.0.1:1"]);
        let wire = Wire::connect(&config).await.expect("a lazy connection");
        let layout = Layout::new(config.namespace.clone(), false);
        Self::over(wire, layout, &config).session(lease)
    }

    fn session(&self, lease: i64) -> Arc<EtcdSession> {
        let shared = Arc::clone(&self.shared);
        let epoch = shared.wire.history().epoch();
        let tickets = Tickets::new(
            Arc::clone(&shared.wire),
            shared.layout.clone(),
            Arc::clone(&shared.floors),
            lease,
        );
        Arc::new(EtcdSession {
            shared,
            lease,
            epoch,
            tickets,
            slots: Slots::new(),
            books: Books::default(),
            visits: Visits::default(),
            keeper: Mutex::new(None),
            patience: Mutex::new(Duration::from_secs(1)),
        })
    }
}

/// Nothing is written into a foreign layout, but the caller wants to know now whether anybody
/// answers.
async fn meet(wire: &Arc<Wire>, layout: &Layout) -> Result<()> {
    let read = wire.call_repeatable(|client| {
        let (mut kv, key) = (client.kv_client(), layout.version_key());
        async move { kv.get(key, None).await }
    });
    read.await.map(drop)
}

/// Says where nobody answers, and what may be wrong. A server that is talked to in the wrong way hangs
/// up, most often without saying why.
pub(crate) fn explain_first_contact(error: Error, config: &EtcdConfig) -> Error {
    if error.kind() != ErrorKind::Unavailable || !error.is_retryable() {
        return error;
    }
    let hung_up = error.effect() == Effect::Unknown && std::error::Error::source(&error).is_some();
    let endpoints = config.endpoints.join(", ");
    let hint = match (hung_up, config.tls.is_some()) {
        (true, true) => format!(
            "etcd at {endpoints} hung up at the first request: if it demands a client certificate, give it one that it trusts (`cert`, `key`)"
        ),
        (true, false) => format!(
            "etcd at {endpoints} hung up at the first request: if it speaks TLS, write `etcds://`"
        ),
        (false, true) => format!(
            "no etcd answers at {endpoints}: start it or correct the address; if it does not speak TLS, write `etcd://`"
        ),
        (false, false) => {
            format!("no etcd answers at {endpoints}: start it or correct the address")
        }
    };
    Error::new(ErrorKind::Unavailable, hint).with_source(error)
}

impl EtcdBackend {
    /// Deletes what hangs on `lease` and is not among the tokens `held`: places in line, and
    /// holdings let go of, that the process which detached it could not withdraw any more.
    async fn tidy_up(&self, lease: i64, held: HashSet<i64>) -> Result<()> {
        let wire = &self.shared.wire;
        let left = wire.call_repeatable(|client| {
            let mut client = client.lease_client();
            let options = LeaseTimeToLiveOptions::new().with_keys();
            async move { client.time_to_live(lease, Some(options)).await }
        });
        let keys = left.await?.keys().to_vec();
        // The markers stay: they are what a request still on its way has to find, also a commit that was
        // declared aborted by what is in its slot. And the barriers that it holds, which have no guard, and what
        // leaders say of their tokens.
        let layout = &self.shared.layout;
        let stay = [
            layout.markers(),
            layout.commit_markers(),
            layout.barriers(),
            layout.token_floor(),
        ];
        let stays = |key: &Vec<u8>| stay.iter().any(|stay| key.starts_with(stay.as_bytes()));
        let keys: Vec<_> = keys.into_iter().filter(|key| !stays(key)).collect();
        let standing = create_revisions(wire, &keys).await?;
        for (key, created) in keys.into_iter().zip(standing) {
            let Some(created) = created.filter(|created| !held.contains(created)) else {
                continue;
            };
            let deleted = wire.call_repeatable(|client| {
                let mut kv = client.kv_client();
                let same = Compare::create_revision(key.clone(), CompareOp::Equal, created);
                let txn = Txn::new()
                    .when([same])
                    .and_then([TxnOp::delete(key.clone(), None)]);
                async move { kv.txn(txn).await }
            });
            deleted.await?;
        }
        Ok(())
    }
}

/// The create revisions of `keys`, in their order, by linearizable reads of many at a time.
async fn create_revisions(wire: &Arc<Wire>, keys: &[impl AsRef<[u8]>]) -> Result<Vec<Option<i64>>> {
    let mut revisions = Vec::with_capacity(keys.len());
    for keys in keys.chunks(READS) {
        let answer = wire.call_repeatable(|client| {
            let mut kv = client.kv_client();
            let read = |key: &_| {
                let key = AsRef::<[u8]>::as_ref(key);
                TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
            };
            let txn = Txn::new().and_then(keys.iter().map(read).collect::<Vec<_>>());
            async move { kv.txn(txn).await }
        });
        let found = ranges(answer.await?).into_iter();
        revisions.extend(found.map(|(kvs, _)| kvs.first().map(|kv| kv.create_revision)));
    }
    Ok(revisions)
}

/// Claims the namespace for this version of the layout, or finds that another has it (rule H2).
async fn check_layout(wire: &Arc<Wire>, layout: &Layout) -> Result<()> {
    let (key, version) = (layout.version_key(), Layout::version());
    let answer = wire
        .call_repeatable(|client| {
            let mut kv = client.kv_client();
            let txn = Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.as_str(), version.as_str(), None)])
                .or_else([TxnOp::get(key.as_str(), None)]);
            async move { kv.txn(txn).await }
        })
        .await?;
    if answer.succeeded() {
        return Ok(());
    }
    let found = answer
        .op_responses()
        .into_iter()
        .find_map(|response| match response {
            etcd_client::TxnOpResponse::Get(get) => get.kvs().first().map(|kv| kv.value().to_vec()),
            _ => None,
        });
    match found {
        Some(found) if found != version.as_bytes() => Err(Error::new(
            ErrorKind::Config,
            format!(
                "the namespace is written in layout {}, this tenure writes layout {version}: use a tenure that knows it, or another namespace",
                String::from_utf8_lossy(&found)
            ),
        )),
        _ => Ok(()),
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    type Session = EtcdSession;

    async fn open(&self, ttl: Duration, _options: &SessionOptions) -> Result<Opened<EtcdSession>> {
        if ttl > MAX_TTL {
            return Err(Error::new(
                ErrorKind::Config,
                "above etcd's greatest TTL, 9,000,000,000 s",
            ));
        }
        // etcd counts whole seconds: never less than asked.
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
        // Repeatable: a lease that was granted without our knowledge holds nothing and runs out.
        let granted = self.shared.wire.call_repeatable(|client| {
            let mut lease = client.lease_client();
            async move { lease.grant(seconds, None).await }
        });
        let granted = granted.await?;
        floor::check_room(granted.header().map_or(0, |header| header.revision()))?;
        let ttl = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or_default());
        let session = self.session(granted.id());
        session.be_patient_for(ttl);
        Ok(Opened {
            id: session_id(granted.id()),
            lease: session,
            ttl,
            capacity: CAPACITY,
        })
    }

    async fn resume(&self, id: &SessionId) -> Result<Opened<EtcdSession>> {
        let bad = || {
            Error::new(
                ErrorKind::Config,
                format!("`{id}` is no session id of etcd"),
            )
        };
        let lease = i64::from_str_radix(id.as_str(), 16).map_err(|_| bad())?;
        let left = self.shared.wire.call_repeatable(|client| {
            let mut client = client.lease_client();
            async move { client.time_to_live(lease, None).await }
        });
        let left = left.await?;
        if left.ttl() <= 0 {
            return Err(Error::lost(tenure_core::LossReason::Expired));
        }
        let record = self.shared.layout.detached(lease);
        let used = self.shared.wire.call(|client| {
            let mut kv = client.kv_client();
            let txn = Txn::new()
                .when([Compare::create_revision(
                    record.as_str(),
                    CompareOp::Greater,
                    0,
                )])
                .and_then([
                    TxnOp::get(record.as_str(), None),
                    TxnOp::delete(record.as_str(), None),
                ]);
            async move { kv.txn(txn).await }
        });
        let used = used.await?;
        if !used.succeeded() {
            return Err(Error::new(
                ErrorKind::Conflict,
                "this session was not detached, or was resumed already",
            ));
        }
        let held = ranges(used).into_iter().flat_map(|(kvs, _)| kvs).next();
        let held = held.map_or_else(String::new, |kv| {
            String::from_utf8_lossy(&kv.value).into_owned()
        });
        let held = held.split(' ').filter_map(|token| token.parse().ok());
        let held = held.map(|token| revision(FencingToken::new(token)));
        self.tidy_up(lease, held.collect()).await?;
        let ttl = Duration::from_secs(u64::try_from(left.granted_ttl()).unwrap_or_default());
        let session = self.session(lease);
        session.be_patient_for(ttl);
        Ok(Opened {
            id: id.clone(),
            lease: session,
            ttl,
            capacity: CAPACITY,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        guarantees::read(&self.shared).await
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        self.shared.floors.raise(floor).await
    }

    fn default_ttl(&self) -> Duration {
        self.ttl
    }
}

fn session_id(lease: i64) -> SessionId {
    SessionId::new(format!("{lease:x}"))
}

type Keeper = (LeaseKeeper, LeaseKeepAliveStream, u64);

/// One lease. Its id is the session's id, in hex as in the keys.
pub struct EtcdSession {
    pub(crate) shared: Arc<Shared>,
    pub(crate) lease: i64,
    /// In which history of the store it was opened: it ends with that.
    epoch: u64,
    pub(crate) tickets: Tickets,
    /// Where its commits leave their markers.
    pub(crate) slots: Slots,
    /// What this session has of queues.
    pub(crate) books: Books,
    /// The same of those that it shares with Go.
    pub(crate) visits: Visits,
    /// The keepalive stream, while no renewal is using it. A renewal that is dropped takes it
    /// along, so that no later one reads the answer to an earlier question.
    keeper: Mutex<Option<Keeper>>,
    /// For how long a renewal waits for its answer before it tries another connection.
    patience: Mutex<Duration>,
}

impl EtcdSession {
    fn be_patient_for(&self, ttl: Duration) {
        // Core gives up after a third: this must be the first to notice, to leave the connection.
        let patience = (ttl / 4).min(self.shared.wire.timeout());
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    /// Whether the history of the store in which this session was opened is still the present one.
    pub(crate) fn still_known(&self) -> Result<()> {
        match self.ended() {
            Some(reason) => Err(Error::lost(reason)),
            None => Ok(()),
        }
    }

    /// One renewal. Says whether the answer gives reason to compare histories: its stream is new, or it shows an
    /// older revision than was seen.
    async fn keep_alive(&self, kept: Option<Keeper>) -> Result<(Keeper, bool), etcd_client::Error> {
        Ok(match kept {
            Some((mut keeper, mut stream, generation)) => {
                keeper.keep_alive().await?;
                let doubts = match stream.message().await? {
                    Some(answer) if answer.ttl() > 0 => {
                        let history = self.shared.wire.history();
                        answer.header().is_some_and(|header| history.doubts(header))
                    }
                    Some(_) => {
                        return Err(etcd_client::Error::LeaseKeepAliveError(
                            "lease not found".into(),
                        ));
                    }
                    None => {
                        return Err(etcd_client::Error::LeaseKeepAliveError(
                            "the stream has ended".into(),
                        ));
                    }
                };
                ((keeper, stream, generation), doubts)
            }
            None => {
                let link = self.shared.wire.link();
                let (keeper, stream) = link.client.lease_client().keep_alive(self.lease).await?;
                ((keeper, stream, link.generation), true)
            }
        })
    }
}

#[async_trait]
impl Lease for EtcdSession {
    async fn renew(&self) -> Result<()> {
        self.still_known()?;
        let kept = self
            .keeper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let wire = &self.shared.wire;
        let generation = kept
            .as_ref()
            .map_or_else(|| wire.link().generation, |kept| kept.2);
        match tokio::time::timeout(patience, self.keep_alive(kept)).await {
            Ok(Ok((keeper, doubts))) => {
                *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
                if doubts {
                    // A restored store knows the leases of its snapshot, and renews them. Without an answer the
                    // lease was renewed all the same; whatever answers next is compared.
                    let _ = tokio::time::timeout(patience, wire.compare_history()).await;
                }
                self.still_known()
            }
            Ok(Err(error)) => {
                // Refused by TLS, too: the next connection reads the certificates again.
                let broken = is_connection(&error);
                let error = from_client(error);
                if broken || error.is_retryable() {
                    wire.leave(generation).await;
                }
                Err(error)
            }
            Err(_) => {
                wire.suspect(generation).await;
                Err(silent(patience))
            }
        }
    }

    fn ended(&self) -> Option<LossReason> {
        let lost = self.shared.wire.history().epoch() != self.epoch;
        lost.then_some(LossReason::Revoked)
    }

    async fn revoke(&self) -> Result<()> {
        let lease = self.lease;
        let revoked = self.shared.wire.call_repeatable(|client| {
            let mut client = client.lease_client();
            async move { client.revoke(lease).await }
        });
        match revoked.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Lost => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let wire = &self.shared.wire;
        let bytes: usize = held.iter().map(|held| held.key.len()).sum();
        // One request says which keys hang on the lease; but the client refuses an answer of more
        // than 4 MiB, and other keys than these may be in it.
        let suspects: Vec<&Held> = if bytes < 1024 * 1024 {
            let lease = self.lease;
            let answer = wire.call_repeatable(|client| {
                let mut client = client.lease_client();
                let options = LeaseTimeToLiveOptions::new().with_keys();
                async move { client.time_to_live(lease, Some(options)).await }
            });
            let answer = answer.await?;
            let keys: HashSet<&[u8]> = answer.keys().iter().map(Vec::as_slice).collect();
            let hangs = |held: &&Held| !keys.contains(held.key.as_bytes());
            held.iter().filter(hangs).collect()
        } else {
            held.iter().collect()
        };
        // The leader answers from what it has applied, which may be older than the grant: a
        // linearizable read decides.
        let keys: Vec<&str> = suspects.iter().map(|held| &*held.key).collect();
        let found = create_revisions(wire, &keys).await?;
        let gone = suspects
            .into_iter()
            .zip(found)
            .filter(|(held, found)| *found != Some(revision(held.token)));
        Ok(gone.map(|(held, _)| held.nonce).collect())
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        let (record, lease) = (self.shared.layout.detached(self.lease), self.lease);
        let tokens: Vec<String> = held.iter().map(|held| held.token.to_string()).collect();
        let tokens = tokens.join(" ");
        let put = self.shared.wire.call(|client| {
            let (mut kv, record, tokens) = (client.kv_client(), record.clone(), tokens.clone());
            async move {
                kv.put(record, tokens, Some(PutOptions::new().with_lease(lease)))
                    .await
            }
        });
        match put.await {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::Lost => Err(lease_gone()),
            Err(error) => Err(error.with_effect(Effect::Unknown)),
        }
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

impl HasLocker for EtcdSession {
    type Locker = EtcdLocker;

    fn typed_locker(self: Arc<Self>) -> Arc<EtcdLocker> {
        Arc::new(EtcdLocker { session: self })
    }
}

impl HasRwLock for EtcdSession {
    type RwLock = EtcdRwLock;

    fn typed_rw_lock(self: Arc<Self>) -> Arc<EtcdRwLock> {
        Arc::new(EtcdRwLock { session: self })
    }
}

impl HasElection for EtcdSession {
    type Election = EtcdElection;

    fn typed_election(self: Arc<Self>) -> Arc<EtcdElection> {
        Arc::new(EtcdElection::new(self))
    }
}

impl HasBarrier for EtcdSession {
    type Barrier = EtcdBarrier;

    fn typed_barrier(self: Arc<Self>) -> Arc<EtcdBarrier> {
        Arc::new(EtcdBarrier::new(self))
    }
}

impl HasStm for EtcdSession {
    type Stm = EtcdStm;

    fn typed_stm(self: Arc<Self>) -> Arc<EtcdStm> {
        Arc::new(EtcdStm { session: self })
    }
}

impl HasQueue for EtcdSession {
    type Queue = EtcdQueue;

    fn typed_queue(self: Arc<Self>) -> Arc<EtcdQueue> {
        Arc::new(EtcdQueue { session: self })
    }
}
