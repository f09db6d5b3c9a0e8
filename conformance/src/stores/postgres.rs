//! PostgreSQL under test: a server of our own, alone or with a standby, a database on one that cases
//! share, or one that runs somewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{StoreUrl, namespace_root};
use tenure_core::{Error, ErrorKind, Line, Namespace, Result, SessionId, Store};
use tenure_postgres::PostgresConfig;
use tenure_testbed::{Direction, Flow, PostgresBuilder, PostgresReplica, PostgresServer, Proxy};
use tokio::sync::{Mutex, Semaphore, SemaphorePermit};

use super::fresh_namespace;
use crate::case::Case;
use crate::harness::{Harness, Link, Linked, Need, Operator, Subject, out_of_order};

/// A namespace on a PostgreSQL, and what can be done to that PostgreSQL.
pub struct PostgresHarness {
    server: Server,
    namespace: Namespace,
    interop: bool,
    /// Declared last: there is room when the server has ended.
    _room: Option<SemaphorePermit<'static>>,
}

#[derive(Clone)]
enum Server {
    /// Ours alone: it may be restarted.
    Own(Arc<Mutex<PostgresServer>>),
    /// Ours alone, and all that it would take to show what it denies is a crash of the machine.
    Careless(Arc<Mutex<PostgresServer>>),
    /// Ours alone, with a standby.
    Pair(Arc<Pair>),
    /// Other cases use it too, each in a database of its own. Advisory locks, who waits and the sessions
    /// are a database's.
    Shared(Arc<PostgresServer>, Arc<str>),
    /// Somebody's, at this URL: nothing of it is ours to disturb.
    Foreign(Arc<str>),
}

const OWN_DATABASE: &str = "postgres";

/// A server and its standby. Both URLs are known without a look at the servers, which may be starting.
struct Pair {
    servers: Mutex<PostgresReplica>,
    urls: (String, String),
    setup: PostgresSetup,
    promoted: AtomicBool,
}

/// How long what is written takes to a standby that its primary waits for. What is acknowledged sooner than
/// that the standby does not have.
const AWAY: Duration = Duration::from_millis(100);

/// How a PostgreSQL is run. What it may forget, and when, depends on that alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PostgresSetup {
    /// A standby for which nothing that is acknowledged waits; it is promoted after the primary's death.
    AsynchronousStandby,
    /// A standby for which everything waits that is acknowledged; promoted as above.
    SynchronousStandby,
    /// The same, but the primary that is taken for dead goes on, with those that are connected to it.
    TwoPrimaries,
    /// `fsync` is off.
    NoFsync,
}

impl PostgresSetup {
    /// All set-ups, in the order of the report.
    pub const ALL: &'static [Self] = &[
        Self::AsynchronousStandby,
        Self::SynchronousStandby,
        Self::TwoPrimaries,
        Self::NoFsync,
    ];

    /// The title of its column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::AsynchronousStandby => "postgres + standby, asynchronous",
            Self::SynchronousStandby => "postgres + standby, synchronous",
            Self::TwoPrimaries => "postgres + standby, the primary lives on",
            Self::NoFsync => "postgres, fsync off",
        }
    }

    /// Whether the long form has something to judge on it. Where the old primary lives on, clients of either
    /// side never meet the others, and nothing is acknowledged on the old one any more: that is two
    /// stores, each a calm one. Without `fsync`, nobody here can crash the machine.
    pub const fn weathers(self) -> bool {
        matches!(self, Self::AsynchronousStandby | Self::SynchronousStandby)
    }

    /// Whether it differs in this case from a server alone that keeps what it stores.
    fn takes(self, case: &Case) -> bool {
        match self {
            // All that it takes back is about a crash.
            Self::NoFsync => {
                case.needs.contains(&Need::Restart)
                    && matches!(case.line, Some(Line::TokenOrder | Line::Durability))
            }
            _ => case.needs.contains(&Need::Failover),
        }
    }

    async fn start(self) -> tenure_testbed::Result<Server> {
        if self == Self::NoFsync {
            let server = server().setting("fsync", "off").start_async().await?;
            return Ok(Server::Careless(Arc::new(Mutex::new(server))));
        }
        let servers = PostgresReplica::builder()
            .server(PostgresServer::builder().setting("max_connections", 120))
            .synchronous(self != Self::AsynchronousStandby)
            .start_async()
            .await?;
        Ok(Server::Pair(Arc::new(Pair {
            urls: (servers.primary.url(), servers.standby.url()),
            servers: Mutex::new(servers),
            setup: self,
            promoted: AtomicBool::new(false),
        })))
    }
}

impl Pair {
    /// What clients are told to connect to.
    fn url(&self) -> String {
        let (primary, standby) = &self.urls;
        match self.setup {
            // Whoever is told both would find the first.
            PostgresSetup::TwoPrimaries if self.promoted.load(Ordering::SeqCst) => standby.clone(),
            PostgresSetup::TwoPrimaries => primary.clone(),
            _ => {
                let host = |url: &str| {
                    let host = url
                        .split('@')
                        .nth(1)
                        .and_then(|rest| rest.split('/').next());
                    host.unwrap_or_default().to_owned()
                };
                let (primary, standby) = (host(primary), host(standby));
                format!("postgres://postgres@{primary},{standby}/{OWN_DATABASE}")
            }
        }
    }

    fn lag(&self) -> tenure_testbed::Result<()> {
        let servers = self.servers.blocking_lock();
        servers.wait_in_sync()?;
        match self.setup {
            PostgresSetup::AsynchronousStandby => servers.cut_replication(),
            _ => servers.delay_replication(AWAY),
        }
        Ok(())
    }

    fn fail_over(&self) -> tenure_testbed::Result<()> {
        let mut servers = self.servers.blocking_lock();
        // What is on its way to the standby is lost.
        servers.cut_replication();
        if self.setup != PostgresSetup::TwoPrimaries {
            servers.primary.kill()?;
        }
        servers.promote()?;
        self.promoted.store(true, Ordering::SeqCst);
        Ok(())
    }
}

/// Room for many cases at a time: each session takes up to three connections.
fn server() -> PostgresBuilder {
    PostgresServer::builder()
        .setting("max_connections", 400)
        .setting("max_locks_per_transaction", 128)
}

/// How many servers of their own harnesses have at a time. One that starts, or recovers, takes as much of
/// a machine as all that its clients do.
static ROOM: Semaphore = Semaphore::const_new(4);

/// Not while others wait for this thread.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> tenure_testbed::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(out_of_order)?.map_err(out_of_order)
}

/// The same, for what a server answers: its errors may be the product's.
async fn asked(
    ask: impl FnOnce() -> tenure_testbed::Result<String> + Send + 'static,
) -> Result<String> {
    let answer = tokio::task::spawn_blocking(ask).await;
    answer.map_err(out_of_order)?.map_err(|error| {
        Error::new(ErrorKind::Unavailable, "the operator's client failed").with_source(error)
    })
}

impl PostgresHarness {
    fn on(server: Server, namespace: Namespace) -> Self {
        Self {
            server,
            namespace,
            interop: false,
            _room: None,
        }
    }

    /// Starts a server for this harness alone, as a child process. Waits while four others of this process
    /// have one.
    ///
    /// # Errors
    ///
    /// `Unavailable` when PostgreSQL is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let room = ROOM.acquire().await.ok();
        let server = server().start_async().await.map_err(out_of_order)?;
        let server = Server::Own(Arc::new(Mutex::new(server)));
        Ok(Self {
            _room: room,
            ..Self::on(server, fresh_namespace("conformance")?)
        })
    }

    /// Starts what `setup` takes, for this harness alone, as child processes. Waits as
    /// [`start`](Self::start) does.
    ///
    /// # Errors
    ///
    /// `Unavailable` when PostgreSQL is not installed or does not start.
    pub async fn set_up(setup: PostgresSetup) -> Result<Self> {
        let room = ROOM.acquire().await.ok();
        let server = setup.start().await.map_err(out_of_order)?;
        Ok(Self {
            _room: room,
            ..Self::on(server, fresh_namespace("conformance")?)
        })
    }

    /// A server for many harnesses: see [`sharing`](Self::sharing).
    ///
    /// # Errors
    ///
    /// `Unavailable` when PostgreSQL is not installed or does not start.
    pub fn server() -> Result<PostgresServer> {
        server().start().map_err(out_of_order)
    }

    /// A fresh database on a server that others use too.
    ///
    /// # Errors
    ///
    /// `Unavailable` when it cannot be created.
    pub async fn sharing(server: Arc<PostgresServer>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("conformance_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let database: Arc<str> = name.as_str().into();
        let on = Arc::clone(&server);
        on_a_thread(move || on.create_database(&name)).await?;
        let server = Server::Shared(server, database);
        Ok(Self::on(server, fresh_namespace("conformance")?))
    }

    /// A clean namespace in the database at `url`, without any control over its faults. Its name starts
    /// with the URL's own namespace.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        let parent = match StoreUrl::parse(&url)?.take("namespace") {
            None => "conformance".to_owned(),
            Some(namespace) => format!("{namespace}/conformance"),
        };
        PostgresConfig::from_url(StoreUrl::parse(&url)?)?;
        let server = Server::Foreign(url.into());
        Ok(Self::on(server, fresh_namespace(&parent)?))
    }

    /// The same, with locks shared with any SQL client.
    #[must_use]
    pub fn interop(mut self) -> Self {
        self.interop = true;
        self
    }

    async fn url(&self) -> String {
        let url = match &self.server {
            Server::Own(server) | Server::Careless(server) => server.lock().await.url(),
            Server::Pair(pair) => pair.url(),
            Server::Shared(server, database) => server.url_of(database),
            Server::Foreign(url) => return url.to_string(),
        };
        // A server that has just recovered, on a busy machine, takes its time.
        url + "?connect_timeout=10s"
    }

    async fn connect_to(&self, url: &str, namespace: Namespace) -> Result<Store> {
        let config = PostgresConfig::from_url(StoreUrl::parse(url)?)?.namespace(namespace);
        let config = match self.interop {
            true => config.interop(true),
            false => config,
        };
        Ok(tenure_postgres::connect(config).await?.into_dyn())
    }

    /// The database as an operator sees it, past every proxy.
    async fn sql(&self, sql: String) -> Result<String> {
        match self.server.clone() {
            Server::Own(server) | Server::Careless(server) => {
                asked(move || server.blocking_lock().sql_in(OWN_DATABASE, sql)).await
            }
            Server::Shared(server, database) => asked(move || server.sql_in(&database, sql)).await,
            Server::Pair(_) => Err(Error::unsupported("operating more than one PostgreSQL")),
            Server::Foreign(_) => Err(Error::unsupported("operating a foreign PostgreSQL")),
        }
    }

    /// Where [`elsewhere`](Harness::elsewhere) is.
    fn nested(&self) -> Result<Namespace> {
        Namespace::new(format!("{}/lock", self.namespace))
    }

    fn pair(&self) -> Result<Arc<Pair>> {
        match &self.server {
            Server::Pair(pair) => Ok(Arc::clone(pair)),
            _ => Err(Error::unsupported("a failover without a standby")),
        }
    }

    fn own(&self, what: &'static str) -> Result<&Arc<Mutex<PostgresServer>>> {
        match &self.server {
            Server::Own(server) => Ok(server),
            _ => Err(Error::unsupported(what)),
        }
    }
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl std::fmt::Debug for PostgresHarness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresHarness")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Harness for PostgresHarness {
    async fn connect(&self) -> Result<Store> {
        self.connect_to(&self.url().await, self.namespace.clone())
            .await
    }

    fn offers(&self) -> &[Need] {
        // No cut: the connection is the lease, and nothing is left to see after it.
        // No count of requests: the first waiter looks for a dead holder twice a second by design, and the rule has no
        // measure yet that tells such a slow check from polling. docs/postgres.md states it.
        const OWN: &[Need] = &[
            Need::Silence,
            Need::Mute,
            Need::Elsewhere,
            Need::Revoke,
            Need::Delete,
            Need::Keys,
            Need::Hold,
            Need::Restart,
            Need::Survivors,
            Need::Disturb,
            Need::LoseMinority,
            Need::Sessions,
            Need::Pause,
            Need::Restore,
        ];
        const PAIR: &[Need] = &[Need::Elsewhere, Need::Survivors, Need::Failover];
        match &self.server {
            Server::Own(_) | Server::Careless(_) => OWN,
            Server::Pair(_) => PAIR,
            Server::Shared(..) => &OWN[..8],
            Server::Foreign(_) => &OWN[3..4],
        }
    }

    async fn linked(&self) -> Result<Linked> {
        let (address, database) = match &self.server {
            Server::Own(server) | Server::Careless(server) => {
                (server.lock().await.address(), OWN_DATABASE)
            }
            Server::Pair(_) => return Err(Error::unsupported("a link to more than one server")),
            Server::Shared(server, database) => (server.address(), &**database),
            Server::Foreign(_) => return Err(Error::unsupported("a link to a foreign server")),
        };
        let proxy = Proxy::start(address).map_err(out_of_order)?;
        let through = format!("postgres://postgres@{}/{database}", proxy.address());
        let store = self.connect_to(&through, self.namespace.clone()).await?;
        Ok(Linked {
            store,
            link: Box::new(Wire(proxy)),
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.connect_to(&self.url().await, self.nested()?).await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn ttl(&self) -> Duration {
        // What a busy machine can renew in time.
        Duration::from_secs(2)
    }

    async fn clean_up(&self) -> Result<()> {
        match self.server.clone() {
            // They end with us.
            Server::Own(_) | Server::Careless(_) | Server::Pair(_) => Ok(()),
            Server::Foreign(url) => {
                for namespace in [self.namespace.clone(), self.nested()?] {
                    let config = PostgresConfig::from_url(StoreUrl::parse(&url)?)?;
                    tenure_postgres::remove_namespace(config.namespace(namespace)).await?;
                }
                Ok(())
            }
            Server::Shared(server, database) => {
                let drop = format!("DROP DATABASE {database} WITH (FORCE)");
                on_a_thread(move || server.sql(drop)).await.map(|_| ())
            }
        }
    }
}

#[async_trait]
impl Operator for PostgresHarness {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let session = literal(&session.to_string());
        let ended = self.sql(format!("SELECT tenure.terminate({session}::bigint)"));
        match ended.await?.as_str() {
            "t" => Ok(()),
            _ => Err(Error::new(ErrorKind::Conflict, "there is no such session")),
        }
    }

    /// Places in lines and in double barriers are rows; what else is held is not, and its holder is ordered
    /// to let go. Each is `<path>#<session>:<nonce>`. A delivery is a row, too:
    /// `<path>#<queue>:<priority>:<number>`.
    async fn delete(&self, key: &str) -> Result<()> {
        let (path, member) = key
            .rsplit_once('#')
            .ok_or_else(|| Error::new(ErrorKind::Conflict, "there is no such key"))?;
        let member = literal(member);
        let queues = format!("{}/queue/", namespace_root(&self.namespace));
        if path.starts_with(&queues) {
            let evict = format!("SELECT tenure.evict_delivery({member})");
            return self.sql(evict).await.map(|_| ());
        }
        let waits = format!(
            "WITH tickets AS (DELETE FROM tenure.tickets AS t \
             WHERE t.session || ':' || tenure.hex(t.nonce) = {member} RETURNING 1), \
             participants AS (DELETE FROM tenure.participants AS p \
             WHERE p.session || ':' || tenure.hex(p.nonce) = {member} RETURNING 1) \
             SELECT (SELECT count(*) FROM tickets) + (SELECT count(*) FROM participants)"
        );
        if self.sql(waits).await? == "0" {
            self.sql(format!("SELECT tenure.evict({member})")).await?;
        }
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let root = literal(&format!("{}/", namespace_root(&self.namespace)));
        // Names are verbatim in interop mode: they have no root.
        let all = self.interop;
        // A vacancy holds nothing: its row has no session, and the sweep removes it after an hour.
        // Locks know no names, only keys: they are those of this database, whatever their namespace.
        let keys = format!(
            "SELECT t.path || '#' || t.session || ':' || tenure.hex(t.nonce) FROM tenure.tickets AS t \
             WHERE starts_with(t.path, {root}) OR {all} UNION ALL \
             SELECT 'leader/' || e.path || '#' || e.session || ':' || tenure.hex(e.nonce) \
             FROM tenure.elections AS e WHERE starts_with(e.path, {root}) AND e.session IS NOT NULL \
             AND tenure.alive(e.session) \
             UNION ALL \
             SELECT p.path || '#' || p.session || ':' || tenure.hex(p.nonce) FROM tenure.participants AS p \
             WHERE starts_with(p.path, {root}) UNION ALL \
             SELECT b.path FROM tenure.barriers AS b WHERE starts_with(b.path, {root}) UNION ALL \
             SELECT 'held/' || s.id || '/' || ((l.classid::bigint << 32) | l.objid::bigint) \
             FROM pg_locks AS l JOIN tenure.sessions AS s ON s.pid = l.pid \
             WHERE l.locktype = 'advisory' AND l.granted \
             AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
             AND ((l.classid::bigint << 32) | l.objid::bigint) \
             NOT IN (SELECT tenure.session_key(o.id) FROM tenure.sessions AS o) UNION ALL \
             SELECT q.path || '#' || p.part FROM tenure.queues AS q JOIN ( \
                SELECT queue, 'item/' || priority || ':' || number FROM tenure.queue_items UNION ALL \
                SELECT queue, 'dealt/' || priority || ':' || number FROM tenure.queue_dealt UNION ALL \
                SELECT queue, 'id/' || name FROM tenure.queue_names UNION ALL \
                SELECT queue, 'consumer/' || session FROM tenure.queue_consumers UNION ALL \
                SELECT queue, 'wait/' || session || ':' || nonce FROM tenure.queue_waits \
             ) AS p (queue, part) ON p.queue = q.id WHERE starts_with(q.path, {root})"
        );
        let keys = self.sql(keys).await?;
        Ok(keys.lines().map(str::to_owned).collect())
    }

    async fn sessions(&self) -> Result<usize> {
        let alive = "SELECT count(*) FROM tenure.sessions AS s WHERE tenure.alive(s.id)";
        let count = self.sql(alive.to_owned()).await?;
        Ok(count.parse().unwrap_or(0))
    }

    async fn restart(&self) -> Result<()> {
        if let Server::Careless(_) = &self.server {
            // One of the server alone loses nothing: what it wrote, the machine still has.
            return Err(Error::unsupported(
                "a crash of the machine, which alone would show it",
            ));
        }
        let server = self.own("restarting a server that others use")?;
        server
            .lock()
            .await
            .restart_async()
            .await
            .map_err(out_of_order)
    }

    async fn disturb(&self) -> Result<()> {
        self.own("disturbing a server that others use")?;
        // All connections but those that are leases.
        let end = "SELECT count(pg_terminate_backend(a.pid)) FROM pg_stat_activity AS a \
                   WHERE a.backend_type = 'client backend' AND a.pid <> pg_backend_pid() \
                   AND a.pid NOT IN (SELECT s.pid FROM tenure.sessions AS s)";
        self.sql(end.to_owned()).await?;
        self.sql("VACUUM ANALYZE".to_owned()).await.map(|_| ())
    }

    async fn pause(&self) -> Result<()> {
        let server = Arc::clone(self.own("pausing a server that others use")?);
        on_a_thread(move || server.blocking_lock().pause()).await
    }

    async fn resume(&self) -> Result<()> {
        let server = Arc::clone(self.own("pausing a server that others use")?);
        on_a_thread(move || server.blocking_lock().resume()).await
    }

    async fn snapshot(&self) -> Result<()> {
        let server = Arc::clone(self.own("backing up a server that others use")?);
        on_a_thread(move || server.blocking_lock().save_backup()).await
    }

    async fn restore(&self) -> Result<()> {
        let server = Arc::clone(self.own("restoring a server that others use")?);
        on_a_thread(move || server.blocking_lock().restore()).await
    }

    async fn lose_minority(&self) -> Result<()> {
        // Of one server, the smallest part that can be lost is all of it.
        let server = self.own("stopping a server that others use")?;
        server.lock().await.kill().map_err(out_of_order)
    }

    async fn lag(&self) -> Result<()> {
        let pair = self.pair()?;
        on_a_thread(move || pair.lag()).await
    }

    async fn fail_over(&self) -> Result<()> {
        let pair = self.pair()?;
        on_a_thread(move || pair.fail_over()).await
    }
}

/// A wire that loses packets: TCP sends them again, so that after a silence what was lost arrives. Here
/// a connection is the lease, and a lost byte would be the end of it.
struct Wire(Proxy);

impl Link for Wire {
    fn silence(&self) {
        self.0.set_both(Flow::Hold);
    }

    fn mute(&self) {
        self.0.set(Direction::Down, Flow::Hold);
    }

    fn hold(&self) {
        self.mute();
    }

    fn heal(&self) {
        self.0.heal();
    }

    fn requests(&self) -> Option<u64> {
        Some(self.0.pieces(Direction::Up))
    }

    fn cut(&self) {
        self.0.cut();
    }

    fn cut_midway(&self, bytes: u64) {
        let _fired = self.0.cut_after(Direction::Down, bytes);
    }
}

/// PostgreSQL as a column of the report.
pub struct PostgresSubject {
    name: String,
    place: Place,
    at_once: usize,
}

enum Place {
    Ours(Arc<PostgresServer>),
    /// Ours, started anew for each case.
    SetUp(PostgresSetup),
    Theirs(String),
}

impl PostgresSubject {
    /// A PostgreSQL that is started here for the purpose: one that most cases share, each in a database
    /// of its own, and one more for every case that its neighbours would feel.
    ///
    /// # Errors
    ///
    /// `Unavailable` when PostgreSQL is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let server = server().start_async().await.map_err(out_of_order)?;
        Ok(Self {
            name: "postgres".to_owned(),
            place: Place::Ours(Arc::new(server)),
            at_once: 16,
        })
    }

    /// A PostgreSQL that is run in this way, started anew for each case. It takes the cases of the events
    /// in which the set-up differs from [`start`](Self::start): there it is shown what it promises more, and
    /// why it promises less.
    pub fn set_up(setup: PostgresSetup) -> Self {
        Self {
            name: setup.title().to_owned(),
            place: Place::SetUp(setup),
            // Two servers each, and all that they are made of: the machine itself would be the fault.
            at_once: 3,
        }
    }

    /// The PostgreSQL at `url`, whose faults are not ours to provoke.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        PostgresHarness::at(url.clone())?;
        let parsed = StoreUrl::parse(&url)?;
        Ok(Self {
            // Without the credentials.
            name: format!("postgres at {}", parsed.hosts().join(",")),
            place: Place::Theirs(url),
            // A server as it is installed has a hundred connections, and others want some of them.
            at_once: 4,
        })
    }

    /// So many cases at a time. Each takes up to some twenty connections.
    #[must_use]
    pub fn at_once(mut self, cases: usize) -> Self {
        self.at_once = cases;
        self
    }
}

impl std::fmt::Debug for PostgresSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresSubject")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Subject for PostgresSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn takes(&self, case: &Case) -> bool {
        match &self.place {
            Place::SetUp(setup) => setup.takes(case),
            _ => true,
        }
    }

    fn parallel(&self) -> usize {
        self.at_once
    }

    async fn stage(&self, case: &Case) -> Result<Box<dyn Harness>> {
        let own_store = case.needs.iter().any(|need| need.wants_own_store());
        Ok(Box::new(match &self.place {
            Place::Theirs(url) => PostgresHarness::at(url.clone())?,
            Place::SetUp(setup) => PostgresHarness::set_up(*setup).await?,
            Place::Ours(server) if !own_store => {
                PostgresHarness::sharing(Arc::clone(server)).await?
            }
            Place::Ours(_) => PostgresHarness::start().await?,
        }))
    }
}
