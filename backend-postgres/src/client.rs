//! What the sessions of one store share: the connection that hears, and the one that reads.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Connection, Executor, PgConnection, Postgres};
use tenure_core::backend::Waits;
use tenure_core::{Effect, Result};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, mpsc, oneshot};
use tokio::task::JoinSet;

use crate::config::PostgresConfig;
use crate::endpoint;
use crate::error;
use crate::schema;
use crate::session::PostgresSession;
use crate::step::{Rows, Step, step};

/// How long a failed reconnection waits before the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// When sessions look after their connections once the listening one has broken, besides at once: seconds after the
/// look before. A server, or whoever ends its connections, does not end all at one moment; what ends later than
/// that the renewals find.
const LOOKS: [u64; 5] = [1, 1, 2, 4, 8];

/// How often the listening connection is asked whether it still lives: nothing else goes over it.
const PULSE: Duration = Duration::from_secs(2);

/// How often a store looks whether the database needs a sweep.
const SWEEP: Duration = Duration::from_secs(5);

/// How often a store whose sessions renew less often looks all the same.
const SWEEP_IDLE: Duration = Duration::from_secs(10);

/// By what a server is told from another, and from itself before a restart.
const SERVER: &str = "SELECT pg_catalog.pg_postmaster_start_time()::pg_catalog.text AS started";

/// The limit of a step that has none: its caller ends it.
const UNBOUNDED: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How often somebody who waits has the server look for sessions that are silent.
const SILENT: Duration = Duration::from_millis(500);

/// How the connection that writes is set up. `tcp_user_timeout`, because who does not read the answer keeps
/// others waiting; the rest as for a session's.
const WRITER: &str = "SELECT pg_catalog.set_config('default_transaction_isolation', 'read committed', false), \
    pg_catalog.set_config('statement_timeout', $1, false), pg_catalog.set_config('lock_timeout', $2, false), \
    pg_catalog.set_config('idle_in_transaction_session_timeout', $1, false), pg_catalog.set_config('tcp_user_timeout', $1, false), \
    pg_catalog.set_config('idle_session_timeout', '0', false), \
    pg_catalog.set_config('synchronous_commit', CASE WHEN pg_catalog.current_setting('synchronous_commit') = 'off' \
        THEN 'on' ELSE pg_catalog.current_setting('synchronous_commit') END, false), \
    pg_catalog.set_config('plan_cache_mode', 'force_generic_plan', false), \
    pg_catalog.set_config('enable_seqscan', 'off', false), pg_catalog.set_config('jit', 'off', false)";

/// A store's way to PostgreSQL, shared by its sessions.
pub(crate) struct Client {
    pub(crate) config: PostgresConfig,
    /// On which the asks of this store are told of their turn.
    pub(crate) channel: String,
    pub(crate) waits: Arc<Waits>,
    state: Mutex<State>,
    orders: mpsc::UnboundedSender<Order>,
    /// For what is read without a lease.
    reader: Arc<AsyncMutex<Option<PgConnection>>>,
    /// For what is written without a lease; there from the first time on. Not the one that reads, for it
    /// waits for the disk.
    writer: AsyncMutex<Option<PgConnection>>,
    numbers: AtomicU64,
    /// How many topics are heard.
    watching: AtomicUsize,
    /// Up to which queue the last sweep looked for emptied ones.
    collected: AtomicI64,
}

#[derive(Default)]
struct State {
    /// Who listens on each channel, whatever connection there is.
    channels: HashMap<String, HashMap<u64, Arc<dyn Listener>>>,
    sessions: HashMap<i64, Weak<PostgresSession>>,
    swept: Option<Instant>,
    /// When the connection that writes answered last.
    wrote: Option<Instant>,
    looked: Option<Instant>,
}

/// What is told of the messages on a channel.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A message came. Must not block.
    fn message(&self, payload: &str);

    /// The connection was replaced, so messages may have been missed. Must not block.
    fn missed(&self);
}

/// Hears a channel for as long as it lives.
pub(crate) struct Listening {
    client: Arc<Client>,
    channel: String,
    number: u64,
}

enum Order {
    /// Answered once the channel is heard.
    Listen(String, oneshot::Sender<()>),
    /// Unless somebody hears it again.
    Unlisten(String),
}

impl Client {
    /// Connects, creates the schema if need be, and starts to listen.
    pub(crate) async fn connect(config: PostgresConfig) -> Result<Arc<Self>> {
        config.check_files()?;
        let mut reader = endpoint::connect_unset(&config).await?.connection;
        let mut other = endpoint::connect_unset(&config).await?.connection;
        let limit = config.timeout;
        within(limit, endpoint::refuse_pooler(&mut reader, &mut other)).await?;
        let _ = other.close().await;
        within(limit, endpoint::set_search_path(&mut reader)).await?;
        within(limit, schema::prepare(&mut reader)).await?;
        let (orders, ordered) = mpsc::unbounded_channel();
        let client = Arc::new(Self {
            config,
            channel: format!("tenure_{:016x}", random()),
            waits: Arc::default(),
            state: Mutex::default(),
            orders,
            reader: Arc::default(),
            writer: AsyncMutex::new(None),
            numbers: AtomicU64::new(0),
            watching: AtomicUsize::new(0),
            collected: AtomicI64::new(0),
        });
        client.prepare_reader(&mut reader).await?;
        *client.reader.lock().await = Some(reader);
        let listener = client.listener().await?;
        tokio::spawn(hear(Arc::downgrade(&client), listener, ordered));
        Ok(client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn prepare_reader(&self, reader: &mut PgConnection) -> Result<()> {
        let limit = self.config.timeout;
        let millis = i64::try_from(limit.as_millis()).unwrap_or(i64::MAX);
        let set = step("SELECT pg_catalog.set_config('statement_timeout', $1, false), pg_catalog.set_config('idle_session_timeout', '0', false), pg_catalog.set_config('default_transaction_isolation', 'read committed', false), pg_catalog.set_config('enable_seqscan', 'off', false), pg_catalog.set_config('jit', 'off', false)")
            .with(millis.to_string());
        within(limit, async {
            let set = set.query.execute(reader).await;
            set.map(drop).map_err(error::from_sqlx)
        })
        .await
    }

    /// A step on the connection that reads: no lease hangs on it, answers may be large, and steps may
    /// be repeated. `make` makes it anew if the connection turns out to be dead.
    pub(crate) async fn read<'q>(&self, make: impl Fn() -> Step<'q>) -> Result<Rows> {
        let limit = self.config.timeout;
        let slot = Arc::clone(&self.reader).lock_owned().await;
        let mut reader = Lent::new(slot, limit);
        let mut fresh = false;
        loop {
            if reader.connection.is_none() {
                reader.connection = Some(self.new_reader().await?);
                fresh = true;
            }
            let Some(connection) = &mut reader.connection else {
                return Err(error::no_connection("the reading connection is gone"));
            };
            reader.asking = true;
            let rows = ask(limit, connection, make()).await;
            reader.asking = false;
            match rows {
                Ok(rows) => return Ok(rows),
                Err(Failure::Refused(error)) => return Err(error),
                Err(Failure::Broken(error)) => {
                    reader.connection = None;
                    if fresh {
                        return Err(error);
                    }
                }
            }
        }
    }

    async fn new_reader(&self) -> Result<PgConnection> {
        let mut connection = endpoint::connect(&self.config).await?.connection;
        self.prepare_reader(&mut connection).await?;
        Ok(connection)
    }

    /// A step on the connection that writes: no lease hangs on it. Its effect is unknown when that breaks.
    pub(crate) async fn write(&self, step: Step<'_>) -> Result<Rows> {
        let limit = self.config.timeout;
        // Another may wait for a disk or a standby that stalls.
        let turn = tokio::time::timeout(limit, self.writer.lock()).await;
        let writer = turn.map_err(|_| {
            error::no_connection(format!(
                "PostgreSQL did not store what came before within {limit:?}"
            ))
            .with_effect(Effect::None)
        })?;
        self.write_on(writer, limit, step).await
    }

    /// Makes what the session `id` committed before durable, however long that takes. False: the session has ended.
    pub(crate) async fn flush(&self, id: i64) -> Result<bool> {
        let mut writer = self.writer.lock().await;
        // A connection that was idle for long may be dead without a sign; this finds out in a bounded time.
        let idle = self
            .state()
            .wrote
            .is_none_or(|wrote| wrote.elapsed() > PULSE);
        if let Some(mut connection) = writer.take_if(|_| idle) {
            let alive = tokio::time::timeout(self.config.timeout, connection.ping()).await;
            if matches!(alive, Ok(Ok(()))) {
                *writer = Some(connection);
            }
        }
        let flush = step("SELECT tenure.flush($1) AS flushed").with(id);
        let flushed = self.write_on(writer, UNBOUNDED, flush).await?;
        self.state().wrote = Some(Instant::now());
        flushed.first()?.get("flushed")
    }

    async fn write_on(
        &self,
        mut writer: tokio::sync::MutexGuard<'_, Option<PgConnection>>,
        limit: Duration,
        step: Step<'_>,
    ) -> Result<Rows> {
        let mut connection = match writer.take() {
            Some(connection) => connection,
            None => self
                .new_writer()
                .await
                .map_err(|e| e.with_effect(Effect::None))?,
        };
        match ask(limit, &mut connection, step).await {
            Ok(rows) => {
                *writer = Some(connection);
                Ok(rows)
            }
            Err(Failure::Refused(error)) => {
                *writer = Some(connection);
                Err(error)
            }
            Err(Failure::Broken(error)) => Err(error.with_effect(Effect::Unknown)),
        }
    }

    async fn new_writer(&self) -> Result<PgConnection> {
        let mut connection = endpoint::connect(&self.config).await?.connection;
        let millis = i64::try_from(self.config.timeout.as_millis()).unwrap_or(i64::MAX);
        let set = step(WRITER)
            .with(millis.to_string())
            .with((millis / 2).max(1).to_string());
        within(self.config.timeout, async {
            let set = set.query.execute(&mut connection).await;
            set.map(drop).map_err(error::from_sqlx)
        })
        .await?;
        self.same_server(&mut connection).await?;
        Ok(connection)
    }

    /// The session `id`, if it is one of this store.
    pub(crate) fn session(&self, id: i64) -> Option<Arc<PostgresSession>> {
        self.state().sessions.get(&id).and_then(Weak::upgrade)
    }

    /// Looks after the dead, now and then. Nobody's lease hangs on it.
    pub(crate) async fn sweep(&self) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if state.swept.is_some_and(|swept| now < swept + SWEEP) {
                return;
            }
            state.swept = Some(now);
        }
        if let Err(error) = self.sweep_all().await {
            tracing::debug!(error = %error.chain(), "could not sweep");
        }
    }

    /// Sweeps if none of the store's sessions has for long: one with a TTL of a day renews every eight hours.
    fn sweep_idle(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let state = self.state();
            let recent = state.swept.is_some_and(|swept| now < swept + SWEEP_IDLE);
            if recent || state.sessions.is_empty() {
                return;
            }
        }
        let client = Arc::clone(self);
        tokio::spawn(async move { client.sweep().await });
    }

    /// Refuses a new connection that reaches another server than the one that reads: behind an address with several
    /// servers, a lock would be taken on one of them and its tickets told of on another.
    pub(crate) async fn same_server<'c>(
        &self,
        connection: impl Executor<'c, Database = Postgres>,
    ) -> Result<()> {
        let mine = within(self.config.timeout, async {
            let mine = sqlx::query_scalar::<_, String>(SERVER).fetch_one(connection);
            mine.await.map_err(error::from_sqlx)
        })
        .await?;
        let reader = self.read(|| step(SERVER)).await?;
        if reader.first()?.get::<String>("started")? == mine {
            return Ok(());
        }
        // After a failover it may be the reader's that is the old one.
        *self.reader.lock().await = None;
        Err(error::two_servers())
    }

    /// Sweeps in small steps until there is nothing left to do, unless another does; for half of the time between two
    /// sweeps at most.
    async fn sweep_all(&self) -> Result<()> {
        let over = Instant::now() + SWEEP / 2;
        loop {
            let swept = self.read(|| step("SELECT tenure.sweep() AS swept")).await?;
            match swept.first()?.get::<i32>("swept")? {
                ..0 => return Ok(()),
                0..100 => break,
                _ if Instant::now() >= over => return Ok(()),
                _ => {}
            }
        }
        loop {
            let from = self.collected.load(Ordering::Relaxed);
            let collect = || step("SELECT a_from, more FROM tenure.collect($1)").with(from);
            let collected = self.read(collect).await?;
            let collected = collected.first()?;
            self.collected
                .store(collected.get("a_from")?, Ordering::Relaxed);
            if !collected.get::<bool>("more")? || Instant::now() >= over {
                return Ok(());
            }
        }
    }

    /// Has the server end those whom its own timeouts do not reach, for somebody who waits for them. Not on
    /// the session's connection, whose steps others wait for.
    pub(crate) fn end_silent(self: &Arc<Self>) {
        let now = Instant::now();
        {
            let mut state = self.state();
            if state.looked.is_some_and(|looked| now < looked + SILENT) {
                return;
            }
            state.looked = Some(now);
        }
        let client = Arc::clone(self);
        tokio::spawn(async move {
            if let Err(error) = client.read(|| step("SELECT tenure.end_silent()")).await {
                tracing::debug!(error = %error.chain(), "could not look for silent sessions");
            }
        });
    }

    pub(crate) fn enter(&self, session: &Arc<PostgresSession>) {
        self.state()
            .sessions
            .insert(session.id, Arc::downgrade(session));
    }

    pub(crate) fn leave(&self, session: i64) {
        self.state().sessions.remove(&session);
    }

    /// How many topics are heard.
    pub(crate) fn watching(&self) -> usize {
        self.watching.load(Ordering::Relaxed)
    }

    /// Hears `channel` from the moment this returns.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        channel: String,
        listener: Arc<dyn Listener>,
    ) -> Result<Listening> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.state()
            .channels
            .entry(channel.clone())
            .or_default()
            .insert(number, listener);
        self.watching.fetch_add(1, Ordering::Relaxed);
        let listening = Listening {
            client: Arc::clone(self),
            channel: channel.clone(),
            number,
        };
        // Also if it is not the first: the other's order may be on its way still, or have failed.
        let (done, heard) = oneshot::channel();
        let gone = || error::no_connection("nobody listens for this store: its runtime has ended");
        self.orders
            .send(Order::Listen(channel, done))
            .map_err(|_| gone())?;
        within(self.config.timeout, async {
            heard
                .await
                .map_err(|_| error::no_connection("the listening connection broke"))
        })
        .await?;
        Ok(listening)
    }

    /// A new listening connection, that hears every channel.
    async fn listener(&self) -> Result<PgListener> {
        let connected = endpoint::connect(&self.config).await?;
        // The client listens only on connections from a pool, so it gets one of a single connection.
        let _ = connected.connection.close().await;
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.config.connect_timeout)
            .idle_timeout(None)
            .max_lifetime(None)
            .after_connect(|connection, _| {
                Box::pin(async move {
                    connection.execute(endpoint::SEARCH_PATH).await?;
                    connection
                        .execute("SELECT pg_catalog.set_config('idle_session_timeout', '0', false)")
                        .await
                        .map(drop)
                })
            })
            .connect_lazy_with(connected.options);
        let channels: Vec<String> = {
            let state = self.state();
            let others = state.channels.keys().cloned();
            others.chain([self.channel.clone()]).collect()
        };
        let mut listener = within(self.config.timeout, async {
            let mut listener = PgListener::connect_with(&pool)
                .await
                .map_err(error::from_sqlx)?;
            listener.eager_reconnect(false);
            listener
                .listen_all(channels.iter().map(String::as_str))
                .await
                .map_err(error::from_sqlx)?;
            Ok(listener)
        })
        .await?;
        self.same_server(&mut listener).await?;
        Ok(listener)
    }

    fn heard(&self, channel: &str, payload: &str) {
        if channel == self.channel {
            return match payload.strip_prefix("evict ") {
                Some(holding) => self.evict(holding),
                None => self.waits.message(payload),
            };
        }
        let listeners: Vec<_> = match self.state().channels.get(channel) {
            Some(listeners) => listeners.values().cloned().collect(),
            None => return,
        };
        for listener in listeners {
            listener.message(payload);
        }
    }

    fn missed(&self) {
        self.waits.missed();
        let listeners: Vec<_> = {
            let state = self.state();
            let all = state.channels.values().flat_map(HashMap::values);
            all.cloned().collect()
        };
        for listener in listeners {
            listener.missed();
        }
    }

    /// Nobody reads from a main connection between its steps, so its end shows with the next one. What ended
    /// the listening connection (a crash of the server, as a rule) may have ended those, too, and who holds
    /// something is to learn that now, not with the next renewal.
    fn look_after_sessions(&self) {
        let sessions: Vec<_> = {
            let state = self.state();
            state.sessions.values().filter_map(Weak::upgrade).collect()
        };
        for session in sessions {
            tokio::spawn(async move { session.probe().await });
        }
    }

    /// An operator's order, `<session>:<nonce>` or `<session>:key <key>`.
    fn evict(&self, holding: &str) {
        let Some((session, what)) = holding.split_once(':') else {
            return;
        };
        let Some(session) = session.parse().ok().and_then(|id| self.session(id)) else {
            return;
        };
        if let Some(key) = what.strip_prefix("key ") {
            if let Ok(key) = key.parse() {
                tokio::spawn(async move { session.evict_key(key).await });
            }
        } else if let Ok(nonce) = u64::from_str_radix(what, 16) {
            tokio::spawn(async move { session.evict(nonce).await });
        }
    }
}

/// The reading connection, for one step. Back in its place when that is done; if nobody waits for the answer any
/// more, once the answer has been read: a new connection for each cancelled read would cost the server a process, and
/// the old one its statement's end in any case.
struct Lent {
    slot: Option<OwnedMutexGuard<Option<PgConnection>>>,
    connection: Option<PgConnection>,
    asking: bool,
    limit: Duration,
}

impl Lent {
    fn new(mut slot: OwnedMutexGuard<Option<PgConnection>>, limit: Duration) -> Self {
        Self {
            connection: slot.take(),
            slot: Some(slot),
            asking: false,
            limit,
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let (Some(mut slot), Some(mut connection)) = (self.slot.take(), self.connection.take())
        else {
            return;
        };
        if !self.asking {
            *slot = Some(connection);
            return;
        }
        let limit = self.limit;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // The client reads what is on its way before it asks anything else.
                if let Ok(Ok(())) = tokio::time::timeout(limit, connection.ping()).await {
                    *slot = Some(connection);
                }
            });
        }
    }
}

/// Why a step on the reading connection failed.
enum Failure {
    /// It was answered.
    Refused(tenure_core::Error),
    /// The connection is of no use any more.
    Broken(tenure_core::Error),
}

async fn ask(
    limit: Duration,
    connection: &mut PgConnection,
    step: Step<'_>,
) -> Result<Rows, Failure> {
    let sql = step.sql;
    match tokio::time::timeout(limit, step.query.fetch_all(connection)).await {
        Ok(Ok(rows)) => Ok(Rows { sql, rows }),
        Ok(Err(error)) => Err(match error::ended(&error) {
            // Reads: that they may have happened is nobody's trouble.
            Some(_) => Failure::Broken(error::from_sqlx(error).with_effect(Effect::None)),
            None => Failure::Refused(error::from_sqlx(error)),
        }),
        Err(_) => Err(Failure::Broken(error::no_connection(format!(
            "PostgreSQL did not answer within {limit:?}"
        )))),
    }
}

pub(crate) async fn within<T>(limit: Duration, what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(limit, what).await.unwrap_or_else(|_| {
        Err(error::no_connection(format!(
            "PostgreSQL did not answer within {limit:?}"
        )))
    })
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

async fn keep_looking(client: Weak<Client>) {
    for seconds in LOOKS {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        let Some(client) = client.upgrade() else {
            return;
        };
        client.look_after_sessions();
    }
}

/// Listens until the store is gone, over one connection after the other.
async fn hear(
    client: Weak<Client>,
    mut listener: PgListener,
    mut orders: mpsc::UnboundedReceiver<Order>,
) {
    // Ends with this task.
    let mut looking: JoinSet<()>;
    loop {
        if !hear_on(&client, listener, &mut orders).await {
            return;
        }
        tracing::debug!("the listening connection broke");
        if let Some(client) = client.upgrade() {
            client.look_after_sessions();
        }
        // One that still looks after a break before looks no more.
        looking = JoinSet::new();
        looking.spawn(keep_looking(Weak::clone(&client)));
        listener = loop {
            tokio::time::sleep(PAUSE).await;
            let Some(client) = client.upgrade() else {
                return;
            };
            match client.listener().await {
                Ok(listener) => {
                    // A server that crashed lets nobody in before it has ended them all.
                    client.look_after_sessions();
                    client.missed();
                    break listener;
                }
                Err(error) => tracing::debug!(error = %error.chain(), "cannot listen"),
            }
        };
    }
}

/// Listens on one connection. Whether there is anything to go on for.
async fn hear_on(
    client: &Weak<Client>,
    mut listener: PgListener,
    orders: &mut mpsc::UnboundedReceiver<Order>,
) -> bool {
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            order = orders.recv() => match order {
                None => return false,
                Some(Order::Listen(channel, done)) => {
                    let listening = listener.listen(&channel);
                    let listening = tokio::time::timeout(PULSE, listening).await;
                    let heard = matches!(listening, Ok(Ok(())));
                    if heard {
                        let _ = done.send(());
                    }
                    heard
                }
                Some(Order::Unlisten(channel)) => {
                    let Some(client) = client.upgrade() else { return false };
                    if client.state().channels.contains_key(&channel) {
                        continue;
                    }
                    let unlistening = listener.unlisten(&channel);
                    matches!(tokio::time::timeout(PULSE, unlistening).await, Ok(Ok(())))
                }
            },
            heard = listener.try_recv() => match heard {
                Ok(Some(message)) => {
                    let Some(client) = client.upgrade() else { return false };
                    client.heard(message.channel(), message.payload());
                    true
                }
                Ok(None) | Err(_) => false,
            },
            _ = pulse.tick() => {
                let Some(client) = client.upgrade() else { return false };
                client.sweep_idle();
                drop(client);
                let asking = (&mut listener).execute("SELECT 1");
                matches!(tokio::time::timeout(PULSE, asking).await, Ok(Ok(_)))
            }
        };
        if !done {
            return true;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.client.watching.fetch_sub(1, Ordering::Relaxed);
        let mut state = self.client.state();
        let Some(listeners) = state.channels.get_mut(&self.channel) else {
            return;
        };
        listeners.remove(&self.number);
        if listeners.is_empty() {
            state.channels.remove(&self.channel);
            drop(state);
            let channel = std::mem::take(&mut self.channel);
            let _ = self.client.orders.send(Order::Unlisten(channel));
        }
    }
}
