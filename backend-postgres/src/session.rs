//! The connection to a PostgreSQL, and its sessions.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, Barrier, Bell, Election, HasBarrier, HasElection, HasLocker, HasQueue, HasRwLock,
    HasStm, Held, Kind, Lease, Locker, Opened, Queue, RwLock, Slots, Stm, Waiting,
};
use tenure_core::{
    Effect, Error, ErrorKind, FencingToken, Guarantees, LossReason, Result, SessionId,
    SessionOptions, Store,
};
use tokio::sync::Mutex as AsyncMutex;

use crate::barrier::PostgresBarrier;
use crate::client::Client;
use crate::config::PostgresConfig;
use crate::election::PostgresElection;
use crate::endpoint;
use crate::error;
use crate::key::signed;
use crate::locker::PostgresLocker;
use crate::main_connection::{Main, MainGuard};
use crate::queue::{Books, PostgresQueue};
use crate::rw_lock::PostgresRwLock;
use crate::step::{Rows, Step, step};
use crate::stm::PostgresStm;
use crate::waits::Topic;
use crate::withdrawals::Withdrawals;

/// The shortest TTL: below, a slow answer alone would end a session.
pub const MIN_TTL: Duration = Duration::from_millis(500);

/// The longest TTL.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many holdings and waits one session carries. Locks are counted apart, by what the server's lock
/// table has room for.
const CAPACITY: usize = 100_000;

/// At most so many keys go into one step.
const CHUNK: usize = 100;

/// Connects to a PostgreSQL.
///
/// # Errors
///
/// `Unavailable` when it does not answer or cannot be written to, `Unauthorized` for wrong credentials
/// and missing rights, `Config` for a PostgreSQL before version 14 and a schema of another version.
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn connect(config: PostgresConfig) -> Result<Store<PostgresBackend>> {
    let client = Client::connect(config).await?;
    Ok(Store::new(PostgresBackend { client }))
}

/// A PostgreSQL that was connected to.
pub struct PostgresBackend {
    pub(crate) client: Arc<Client>,
}

impl fmt::Debug for PostgresBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("config", &self.client.config)
            .finish_non_exhaustive()
    }
}

fn granted(ttl: Duration) -> Result<Duration> {
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Error::new(
            ErrorKind::Config,
            format!("a TTL on PostgreSQL is above zero and at most {MAX_TTL:?}, not {ttl:?}"),
        ));
    }
    // Whole milliseconds, rounded up.
    let millis = ttl.max(MIN_TTL).as_nanos().div_ceil(1_000_000);
    Ok(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

#[async_trait]
impl Backend for PostgresBackend {
    type Session = PostgresSession;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<PostgresSession>> {
        let ttl = granted(ttl)?;
        let opening = PostgresSession::open(&self.client, ttl);
        let limit = self.client.config.connect_timeout + self.client.config.timeout;
        let session = tokio::time::timeout(limit, opening)
            .await
            .unwrap_or_else(|_| {
                Err(error::no_connection(format!(
                    "no session on PostgreSQL within {limit:?}"
                )))
            })
            // What was never open is not lost.
            .map_err(|error| match error.kind() {
                ErrorKind::Lost => {
                    error::no_connection("the connection to PostgreSQL ended, or did not answer, while a session was opened over it")
                        .with_effect(Effect::None)
                        .with_source(error)
                }
                _ => error,
            })?;
        Ok(Opened {
            id: SessionId::new(session.id.to_string()),
            ttl,
            capacity: CAPACITY,
            lease: session,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        // In a task: the connection that reads is everybody's, and the caller may not poll on.
        let client = Arc::clone(&self.client);
        let reading = tokio::spawn(async move { crate::guarantees::read(&client).await });
        reading.await.unwrap_or_else(|broken| {
            let ended = Error::new(ErrorKind::Internal, "the task that reads them ended early");
            Err(ended.with_source(broken))
        })
    }

    /// The sequence is the schema's: every namespace of the database has the floor.
    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let floor = i64::try_from(floor.get()).unwrap_or(i64::MAX);
        // In a task: the connection that writes is everybody's, and the caller may not poll on.
        let client = Arc::clone(&self.client);
        let raising = tokio::spawn(async move {
            let raise = step("SELECT tenure.raise_tokens($1)").with(floor);
            client.write(raise).await.map(drop)
        });
        raising.await.unwrap_or_else(|broken| {
            let ended = Error::new(ErrorKind::Internal, "the task that raises it ended early");
            Err(ended.with_effect(Effect::Unknown).with_source(broken))
        })
    }

    fn default_ttl(&self) -> Duration {
        self.client.config.ttl
    }
}

/// A session on PostgreSQL: a connection that the server ends when it is silent for the TTL.
pub struct PostgresSession {
    pub(crate) client: Arc<Client>,
    pub(crate) id: i64,
    pub(crate) ttl: Duration,
    pub(crate) queues: Books,
    pub(crate) withdrawals: Withdrawals,
    pid: i32,
    /// Where its commits leave their markers.
    pub(crate) slots: Slots,
    main: AsyncMutex<Main>,
    gone: Arc<OnceLock<LossReason>>,
    /// Steps wait here for their turn, and renewals do not: however many steps there are, a renewal waits
    /// for one of them.
    turn: AsyncMutex<()>,
    /// Of whoever looks whether the main connection is there.
    probing: AsyncMutex<()>,
    /// How many flushes were asked for, and up to which of them the last one served.
    flushes: AtomicU64,
    flushed: AsyncMutex<u64>,
}

impl fmt::Debug for PostgresSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for PostgresSession {
    fn drop(&mut self) {
        self.client.leave(self.id);
    }
}

/// What makes a connection a lease. `synchronous_commit` because what is acknowledged is to be on disk. Every step looks
/// up a few rows by an index, in its order: to plan it anew each time costs more than the step, and to sort
/// all that there is to find the first costs what there is. What is discouraged so counts as so dear that
/// `jit` would compile a step of microseconds, for a third of a second.
const SETTINGS: &str = "SELECT \
    pg_catalog.set_config('default_transaction_isolation', 'read committed', false), \
    pg_catalog.set_config('idle_session_timeout', $2, false), \
    pg_catalog.set_config('idle_in_transaction_session_timeout', $1, false), \
    pg_catalog.set_config('tcp_user_timeout', $1, false), \
    pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' \
        THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, false), \
    pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false), \
    pg_catalog.set_config('enable_seqscan', 'off', false), \
    pg_catalog.set_config('jit', 'off', false), \
    pg_catalog.set_config('enable_bitmapscan', 'off', false), \
    pg_catalog.set_config('enable_sort', 'off', false), \
    pg_catalog.current_setting('max_locks_per_transaction')::bigint \
        * (pg_catalog.current_setting('max_connections')::bigint + pg_catalog.current_setting('max_prepared_transactions')::bigint) \
        AS locks, \
    pg_catalog.current_setting('max_locks_per_transaction')::bigint AS each";

/// And the last of it: `statement_timeout` and `lock_timeout`, because the idle timer does not run
/// meanwhile. They count from the next step on: the first session after a crash has more to do.
const OPEN: &str = "SELECT o.id, o.pid, \
    pg_catalog.set_config('statement_timeout', $3, false), \
    pg_catalog.set_config('lock_timeout', $3, false) \
    FROM tenure.open($1, $2) AS o";

/// From here on it is one.
const LEASE: &str = "SELECT pg_catalog.set_config('idle_session_timeout', $1, false)";

const RENEW: &str = "SELECT tenure.renew() AS pid";

impl PostgresSession {
    async fn open(client: &Arc<Client>, ttl: Duration) -> Result<Arc<Self>> {
        let mut connection = endpoint::connect(&client.config).await?.connection;
        client.same_server(&mut connection).await?;
        let main = Main::new(connection, client.config.timeout);
        let gone = main.gone();
        let (main, id, pid) = {
            let main = AsyncMutex::new(main);
            let mut guard = MainGuard::new(main.lock().await, None);
            let millis = i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX);
            // The other connections of the store may have to be made first, which takes its time. Nothing is
            // held meanwhile; and what the lease has lost by then, a renewal makes good.
            let opening = ttl.max(client.config.connect_timeout + client.config.timeout);
            let settings = step(SETTINGS)
                .with(millis.to_string())
                .with(opening.as_millis().to_string());
            let settings = guard.call(settings).await?;
            let number = |column| {
                let number = settings.first()?.get::<i64>(column)?;
                Ok::<_, Error>(usize::try_from(number).unwrap_or(usize::MAX))
            };
            let (locks, each) = (number("locks")?, number("each")?);
            let open = step(OPEN)
                .with(&client.channel)
                .with(millis)
                .with((millis / 4).max(500).to_string());
            let opened = guard.call(open).await?;
            let opened = opened.first()?;
            let (id, pid) = (opened.get::<i64>("id")?, opened.get::<i32>("pid")?);
            refuse_pooler(client, &mut guard, pid).await?;
            guard.call(step(LEASE).with(millis.to_string())).await?;
            guard.begin(ttl, locks, each);
            drop(guard);
            (main, id, pid)
        };
        let session = Arc::new(Self {
            client: Arc::clone(client),
            id,
            ttl,
            queues: Books::default(),
            withdrawals: Withdrawals::default(),
            pid,
            slots: Slots::new(),
            main,
            gone,
            turn: AsyncMutex::default(),
            probing: AsyncMutex::default(),
            flushes: AtomicU64::new(0),
            flushed: AsyncMutex::default(),
        });
        client.enter(&session);
        Ok(session)
    }

    /// The main connection to oneself.
    pub(crate) async fn main(&self) -> MainGuard<'_> {
        let turn = self.turn.lock().await;
        MainGuard::new(self.main.lock().await, Some(turn))
    }

    /// One step on the main connection. `Lost` when that is gone.
    pub(crate) async fn call(&self, step: Step<'_>) -> Result<Rows> {
        self.main().await.call(step).await
    }

    /// Waits until all that this session committed before is durable, as the server is set up: see
    /// [`Client::flush`]. One flush serves all that were asked for before it began. However long the disk or a standby
    /// stalls, it waits for as long as the session lives.
    pub(crate) async fn flush(&self) -> Result<()> {
        let mine = self.flushes.fetch_add(1, Ordering::SeqCst) + 1;
        let lost = |reason| Error::lost(reason).with_effect(Effect::Unknown);
        let mut flushed = self.flushed.lock().await;
        if *flushed >= mine {
            return Ok(());
        }
        let serves = self.flushes.load(Ordering::SeqCst);
        let mut flushing = std::pin::pin!(self.client.flush(self.id));
        loop {
            if let Some(reason) = self.gone.get() {
                return Err(lost(*reason));
            }
            tokio::select! {
                done = &mut flushing => match done {
                    Ok(true) => break,
                    Ok(false) => return Err(lost(LossReason::Revoked)),
                    Err(error) => return Err(error.with_effect(Effect::Unknown)),
                },
                () = tokio::time::sleep(self.ttl / 4) => {}
            }
        }
        *flushed = serves;
        Ok(())
    }

    /// One step on the connection that reads, for large answers and what needs no lease: see
    /// [`Client::read`].
    pub(crate) async fn read<'q>(&self, make: impl Fn() -> Step<'q>) -> Result<Rows> {
        self.client.read(make).await
    }

    /// From now on the ask `nonce` hears of its turn.
    pub(crate) fn waiting(&self, nonce: u64) -> Waiting {
        self.client.waits.enter(nonce)
    }

    /// From the moment this returns, hears of changes of the object at `path`.
    pub(crate) async fn topic(&self, path: &str) -> Result<Topic> {
        let bell = Arc::<Bell>::default();
        let channel = format!("tenure_t_{}", crate::key::key_of(path));
        let listening = self
            .client
            .listen(channel, Arc::clone(&bell) as Arc<_>)
            .await?;
        Ok(Topic::new(bell, listening))
    }

    /// Whether the main connection is still there. If not, that ends the session. One look at a time: the
    /// connection may be busy.
    pub(crate) async fn probe(&self) {
        let Ok(_only) = self.probing.try_lock() else {
            return;
        };
        let mut main = MainGuard::new(self.main.lock().await, None);
        if let Err(error) = main.call(step(RENEW)).await {
            tracing::debug!(error = %error.chain(), session = self.id, "the main connection is gone");
        }
    }

    /// How often a waiter that is the next looks by itself: that is how one finds a dead holder, and one
    /// that never tells. Less often where many wait, for they share one connection.
    pub(crate) fn patience(&self) -> Duration {
        self.fraction(self.client.waits.len() / 250)
    }

    /// How often one that watches an election looks by itself: nobody tells of a dead leader.
    pub(crate) fn watchfulness(&self) -> Duration {
        self.fraction(self.client.watching() / 100)
    }

    fn fraction(&self, crowd: usize) -> Duration {
        let base = (self.ttl / 8).clamp(Duration::from_millis(100), Duration::from_millis(500));
        base * u32::try_from(crowd.clamp(1, 20)).unwrap_or(20)
    }
}

/// Whether two connections of ours are one on the server's side: a pooler gives the server connection
/// that was free last to whoever asks next.
async fn refuse_pooler(client: &Client, main: &mut MainGuard<'_>, pid: i32) -> Result<()> {
    const WHO: &str = "SELECT pg_catalog.pg_backend_pid() AS pid";
    for _ in 0..2 {
        let reader = client.read(|| step(WHO)).await?;
        let mine = main.call(step(WHO)).await?;
        if reader.first()?.get::<i32>("pid")? == pid || mine.first()?.get::<i32>("pid")? != pid {
            return Err(error::pooled());
        }
    }
    Ok(())
}

#[async_trait]
impl Lease for PostgresSession {
    async fn renew(&self) -> Result<()> {
        let mut main = MainGuard::new(self.main.lock().await, None);
        let renewed = main.call(step(RENEW)).await?;
        if renewed.first()?.get::<i32>("pid")? != self.pid {
            main.end(LossReason::Revoked);
            return Err(error::pooled());
        }
        drop(main);
        let client = Arc::clone(&self.client);
        // The renewal is not to wait for it.
        tokio::spawn(async move { client.sweep().await });
        Ok(())
    }

    fn ended(&self) -> Option<LossReason> {
        self.gone.get().copied()
    }

    fn one_at_a_time(&self) -> bool {
        true
    }

    async fn revoke(&self) -> Result<()> {
        let mut main = self.main().await;
        if main.is_over() {
            return Ok(());
        }
        let mut keys = main.own().keys();
        let close = step("SELECT tenure.close($1) AS waited").with(self.id);
        let closed = main.call(close).await;
        match closed {
            Ok(closed) => keys.extend(
                closed
                    .first()?
                    .get::<Option<Vec<i64>>>("waited")?
                    .unwrap_or_default(),
            ),
            // The connection goes, and everything with it. The rows that are left are a dead session's: not
            // to free the locks because one of those is in somebody's hands would be worse.
            Err(error) => {
                tracing::debug!(session = self.id, error = %error.chain(), "could not clear up; others will");
                main.close().await;
                return Ok(());
            }
        }
        // In steps of their own: see `line_withdraw`.
        for keys in keys.chunks(CHUNK) {
            if self.nudge(&mut main, keys).await.is_err() {
                // Those who wait look by themselves, a little later.
                break;
            }
        }
        main.close().await;
        Ok(())
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let places = held.iter().filter(|held| held.kind == Kind::DoubleBarrier);
        let places: Vec<i64> = places.map(|held| signed(held.nonce)).collect();
        let mut gone = PostgresQueue::missing(self, held).await?;
        let mut main = self.main().await;
        for places in places.chunks(CHUNK) {
            let look = step(
                "SELECT n.nonce FROM pg_catalog.unnest($2::bigint[]) AS n(nonce) WHERE NOT EXISTS \
                 (SELECT FROM tenure.participants AS p WHERE p.session = $1 AND p.nonce = n.nonce)",
            )
            .with(self.id)
            .with(places);
            for place in main.call(look).await?.iter() {
                gone.push(place.get::<i64>("nonce")?.cast_unsigned());
            }
        }
        let own = main.own();
        let locks = held.iter().filter(|held| match held.kind {
            Kind::Lock | Kind::Election | Kind::RwLock => !own.has(held.nonce),
            _ => false,
        });
        gone.extend(locks.map(|held| held.nonce));
        Ok(gone)
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(HasLocker::typed_locker(self))
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(HasElection::typed_election(self))
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(HasRwLock::typed_rw_lock(self))
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(HasBarrier::typed_barrier(self))
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(HasStm::typed_stm(self))
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(HasQueue::typed_queue(self))
    }
}

impl HasLocker for PostgresSession {
    type Locker = PostgresLocker;

    fn typed_locker(self: Arc<Self>) -> Arc<PostgresLocker> {
        Arc::new(PostgresLocker::new(self))
    }
}

impl HasElection for PostgresSession {
    type Election = PostgresElection;

    fn typed_election(self: Arc<Self>) -> Arc<PostgresElection> {
        Arc::new(PostgresElection::new(self))
    }
}

impl HasRwLock for PostgresSession {
    type RwLock = PostgresRwLock;

    fn typed_rw_lock(self: Arc<Self>) -> Arc<PostgresRwLock> {
        Arc::new(PostgresRwLock::new(self))
    }
}

impl HasBarrier for PostgresSession {
    type Barrier = PostgresBarrier;

    fn typed_barrier(self: Arc<Self>) -> Arc<PostgresBarrier> {
        Arc::new(PostgresBarrier::new(self))
    }
}

impl HasStm for PostgresSession {
    type Stm = PostgresStm;

    fn typed_stm(self: Arc<Self>) -> Arc<PostgresStm> {
        Arc::new(PostgresStm::new(self))
    }
}

impl HasQueue for PostgresSession {
    type Queue = PostgresQueue;

    fn typed_queue(self: Arc<Self>) -> Arc<PostgresQueue> {
        Arc::new(PostgresQueue::new(self))
    }
}
