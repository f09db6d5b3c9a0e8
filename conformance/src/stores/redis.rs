//! Redis under test: a server of our own, one that cases share, or one that runs somewhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Cmd, FromRedisValue, cmd};
use tenure_core::backend::{StoreUrl, namespace_root};
use tenure_core::{Error, ErrorKind, Namespace, Result, SessionId, Store};
use tenure_redis::RedisConfig;
use tenure_testbed::{Proxy, RedisCluster, RedisReplica, RedisSentinels, RedisServer};
use tokio::sync::Mutex;

use super::fresh_namespace;
use crate::case::Case;
use crate::harness::{Harness, Linked, Need, Operator, Subject, out_of_order};

/// A namespace on a Redis, and what can be done to that Redis.
pub struct RedisHarness {
    server: Server,
    namespace: Namespace,
    interop: bool,
    /// Whether the clock of our own server can be moved.
    clock: bool,
}

enum Server {
    /// Ours alone: it may be restarted.
    Own(Box<Mutex<RedisServer>>, String),
    /// Ours alone, with a replica, under sentinels.
    Pair(Box<Pair>),
    /// Ours alone: a cluster whose primaries have replicas.
    Cluster(Box<Mutex<RedisCluster>>, String),
    /// Other cases use it too: its connections can be disturbed, not the server.
    Shared(Arc<RedisServer>),
    /// Somebody's, at this URL: nothing of it is ours to disturb.
    Foreign(String),
}

struct Pair {
    servers: Mutex<RedisReplica>,
    sentinels: RedisSentinels,
}

/// How a Redis is run. What it may forget, and when, depends on that alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RedisSetup {
    /// `appendonly no`: a restart is an empty store.
    NoPersistence,
    /// A replica, which sentinels promote, and for which nothing that is acknowledged waits.
    AsynchronousReplica,
    /// A cluster, where the replica of a primary that dies takes over; nothing that is acknowledged waits
    /// for it.
    Cluster,
    /// A server whose wall clock is stepped.
    SteppedClock,
}

impl RedisSetup {
    /// All set-ups, in the order of the report.
    pub const ALL: &'static [Self] = &[
        Self::NoPersistence,
        Self::AsynchronousReplica,
        Self::Cluster,
        Self::SteppedClock,
    ];

    /// The title of its column.
    pub const fn title(self) -> &'static str {
        match self {
            Self::NoPersistence => "redis, no persistence",
            Self::AsynchronousReplica => "redis + replica, asynchronous",
            Self::Cluster => "redis cluster, a primary lost",
            Self::SteppedClock => "redis, clock that jumps",
        }
    }

    /// In which events it differs from a server alone that keeps everything.
    const fn events(self) -> &'static [Need] {
        match self {
            Self::NoPersistence => &[Need::Restart],
            Self::AsynchronousReplica | Self::Cluster => &[Need::Failover, Need::LoseMinority],
            Self::SteppedClock => &[Need::ClockJump],
        }
    }

    async fn start(self) -> Result<Server> {
        let own = |server: RedisServer| {
            let url = server.url();
            Server::Own(Box::new(Mutex::new(server)), url)
        };
        let started = match self {
            Self::NoPersistence => RedisServer::builder()
                .no_persistence()
                .start_async()
                .await
                .map(own),
            Self::SteppedClock => RedisServer::builder()
                .movable_clock()
                .start_async()
                .await
                .map(own),
            Self::AsynchronousReplica => Pair::start().await,
            Self::Cluster => RedisCluster::builder()
                .with_replicas()
                .start_async()
                .await
                .map(|cluster| {
                    let url = cluster.url();
                    Server::Cluster(Box::new(Mutex::new(cluster)), url)
                }),
        };
        started.map_err(out_of_order)
    }
}

impl Pair {
    async fn start() -> tenure_testbed::Result<Server> {
        let servers = RedisReplica::start_async().await?;
        let sentinels = RedisSentinels::start_async(&servers).await?;
        Ok(Server::Pair(Box::new(Self {
            servers: Mutex::new(servers),
            sentinels,
        })))
    }

    /// Kills the server that was the primary at the start.
    async fn kill_primary(&self) -> tenure_testbed::Result<std::net::SocketAddr> {
        let mut servers = self.servers.lock().await;
        let address = servers.primary.address();
        servers.primary.kill()?;
        Ok(address)
    }

    async fn fail_over(&self) -> tenure_testbed::Result<()> {
        let before = self.kill_primary().await?;
        let patience = Duration::from_secs(18);
        let change = self
            .sentinels
            .wait_for_primary_change_async(before, patience);
        change.await.map(drop)
    }
}

/// How long a replica may take to be promoted.
const PROMOTED: Duration = Duration::from_secs(18);

/// The slot of a namespace, and who serves it.
async fn primary_of(cluster: &RedisCluster, root: &str) -> Result<(u16, usize)> {
    let slot = cluster.slot_of(root).map_err(out_of_order)?;
    // Whoever it is, it is not a node that there is not.
    let owner = cluster.wait_for_owner_change_async(slot, usize::MAX, PROMOTED);
    Ok((slot, owner.await.map_err(out_of_order)?))
}

impl RedisHarness {
    /// Starts what `setup` takes, for this harness alone, as child processes.
    ///
    /// # Errors
    ///
    /// `Unavailable` when Redis (or the C compiler that a movable clock needs) is not installed, or
    /// does not start.
    pub async fn set_up(setup: RedisSetup) -> Result<Self> {
        Ok(Self {
            clock: setup == RedisSetup::SteppedClock,
            ..Self::on(setup.start().await?, fresh_namespace("conformance")?)
        })
    }

    fn on(server: Server, namespace: Namespace) -> Self {
        Self {
            server,
            namespace,
            interop: false,
            clock: false,
        }
    }

    /// Starts a server for this harness alone, as a child process.
    ///
    /// # Errors
    ///
    /// `Unavailable` when Redis is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let server = RedisServer::start_async().await.map_err(out_of_order)?;
        let url = server.url();
        let server = Server::Own(Box::new(Mutex::new(server)), url);
        Ok(Self::on(server, fresh_namespace("conformance")?))
    }

    /// A clean namespace on a server that others use too.
    ///
    /// # Errors
    ///
    /// None in practice.
    pub fn sharing(server: Arc<RedisServer>) -> Result<Self> {
        Ok(Self::on(
            Server::Shared(server),
            fresh_namespace("conformance")?,
        ))
    }

    /// A clean namespace on the server, the sentinels' primary or the cluster at `url`, without any
    /// control over its faults. Its name starts with the URL's own namespace.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        let mut parsed = StoreUrl::parse(&url)?;
        let parent = match parsed.take("namespace") {
            None => "conformance".to_owned(),
            Some(namespace) => format!("{namespace}/conformance"),
        };
        RedisConfig::from_url(StoreUrl::parse(&url)?)?;
        Ok(Self::on(Server::Foreign(url), fresh_namespace(&parent)?))
    }

    /// The same in interop mode. Names are keys then, so the server must be this harness's alone.
    #[must_use]
    pub fn interop(self) -> Self {
        Self {
            interop: true,
            ..self
        }
    }

    fn url(&self) -> String {
        match &self.server {
            Server::Own(_, url) | Server::Cluster(_, url) | Server::Foreign(url) => url.clone(),
            Server::Shared(server) => server.url(),
            Server::Pair(pair) => pair.sentinels.url(),
        }
    }

    async fn connect_to(&self, url: &str, namespace: Namespace) -> Result<Store> {
        let config = RedisConfig::from_url(StoreUrl::parse(url)?)?.namespace(namespace);
        let config = match self.interop {
            true => config.interop(true),
            false => config,
        };
        Ok(tenure_redis::connect(config).await?.into_dyn())
    }

    /// The server as an operator sees it, past every proxy.
    async fn client(&self) -> Result<MultiplexedConnection> {
        let url = self.url();
        if !url.starts_with("redis:") {
            return Err(Error::unsupported(
                "operating anything but one server without TLS",
            ));
        }
        // Our own query keys mean nothing to the client.
        let plain = url.split('?').next().unwrap_or_default();
        let client = Client::open(plain).map_err(redis)?;
        let patient = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(Duration::from_secs(10)))
            .set_response_timeout(Some(Duration::from_secs(10)));
        let connection = client.get_multiplexed_async_connection_with_config(&patient);
        connection.await.map_err(redis)
    }

    async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> Result<T> {
        let mut client = self.client().await?;
        command.query_async(&mut client).await.map_err(redis)
    }

    /// What begins with `root` and matches `pattern` after that.
    async fn scan(&self, root: &str, pattern: &str) -> Result<Vec<String>> {
        let mut client = self.client().await?;
        let pattern = literally(root) + pattern;
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern);
            scan.arg("COUNT").arg(1000);
            let (next, keys): (String, Vec<String>) =
                scan.query_async(&mut client).await.map_err(redis)?;
            found.extend(keys);
            if next == "0" {
                break;
            }
            cursor = next;
        }
        // A scan may come by the same key twice.
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// Where [`elsewhere`](Harness::elsewhere) is.
    fn nested(&self) -> Result<Namespace> {
        Namespace::new(format!("{}/lock", self.namespace))
    }

    fn root(&self) -> String {
        root(&self.namespace)
    }
}

/// What the objects named by the further arguments (`lock/orders`) have, in one moment: a line for every place, hold
/// and item, as `key#member` where it is a member; and what is left of one that is gone, in whatever else is kept
/// of it.
const PLACES: &str = r##"
local root, found = KEYS[1], {}
-- By a command that tenure needs too: an operator needs few rights besides.
local function fields(key, ...)
  return redis.call("HRANDFIELD", key, math.max(redis.call("HLEN", key), 1), ...)
end
local function members(key)
  local all = redis.call("TYPE", key).ok == "hash" and fields(key) or redis.call("ZRANGE", key, 0, -1)
  local set = {}
  for _, member in ipairs(all) do set[member] = true end
  return set
end
-- Lists the members of `root .. path`, less those of `but`, in which they may be without their first letters.
local function list(path, but, letters)
  local set = members(root .. path)
  for member in pairs(set) do
    if not (but and but[member:sub(1 + (letters or 0))]) then found[#found + 1] = root .. path .. "#" .. member end
  end
  return set
end
-- The deliveries of a queue, as `<session>:<nonce>:<place>`.
local function deliveries(path)
  local set, claims = {}, fields(root .. path .. "/claims", "WITHVALUES")
  for at = 1, #claims, 2 do set[claims[at + 1]:match("^(.*):[^:]*$") .. ":" .. claims[at]] = true end
  return set
end
-- Whether what a session's index says of `of` is there.
local function is_there(of, mine, nonce)
  if of:match("^barrier/") then return redis.call("HGET", root .. of, "nonce") == nonce end
  if of:match("^queue/") then return deliveries(of)[mine] or members(root .. of .. "/line")[mine] end
  local places = members(root .. of)
  return places[mine] or places[mine .. ":w"] or places[mine .. ":r"]
end
for _, path in ipairs(ARGV) do
  local kind = path:match("^[^/]+")
  if kind == "barrier" then
    if redis.call("EXISTS", root .. path) == 1 then found[#found + 1] = root .. path end
  elseif kind == "queue" then
    local items = list(path .. "/values")
    for _, part in ipairs({"/deliveries", "/ready", "/delayed", "/names"}) do list(path .. part, items) end
    list(path .. "/claims")
    list(path .. "/in_flight", deliveries(path))
    list(path .. "/wants", list(path .. "/line"))
  elseif kind == "held" then
    local session = path:match("/(.*)$")
    for nonce in pairs(members(root .. path)) do
      local of = redis.call("HGET", root .. path, nonce)
      if not is_there(of, session .. ":" .. nonce, nonce) then found[#found + 1] = root .. path .. "#" .. nonce end
    end
  else
    local places = list(path)
    if kind == "election" then list(path .. "/values", places, 1) end
    if kind == "rw_lock" then list(path .. "/writers", places) end
    if kind == "double_barrier" and not next(places) then list(path .. "/room") end
  end
end
table.sort(found)
return found
"##;

/// Which object a key belongs to, by its path below the root: `queue/jobs` for `queue/jobs/values`.
fn object(path: &str, interop: bool) -> Option<&str> {
    let (kind, rest) = path.split_once('/')?;
    let listed = match interop {
        true => kind == "interop",
        false => matches!(
            kind,
            "lock" | "rw_lock" | "election" | "barrier" | "double_barrier" | "queue" | "held"
        ),
    };
    let name = rest.split('/').next()?;
    listed.then(|| &path[..kind.len() + 1 + name.len()])
}

/// What all keys of a namespace begin with: a hash tag, so that they share one slot of a cluster.
fn root(namespace: &Namespace) -> String {
    format!("{{{}}}/", namespace_root(namespace))
}

/// A glob that matches this text and nothing else.
fn literally(text: &str) -> String {
    let mut glob = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\') {
            glob.push('\\');
        }
        glob.push(character);
    }
    glob
}

fn redis(error: redis::RedisError) -> Error {
    // A script says so in words of its own.
    let refused = error.to_string().contains("can't run this command");
    let (kind, what) = match error.code() {
        Some("NOPERM" | "NOAUTH" | "WRONGPASS") => (
            ErrorKind::Unauthorized,
            "an operator's command, with which the suite looks into the store, is not permitted",
        ),
        _ if refused => (
            ErrorKind::Unauthorized,
            "an operator's command, with which the suite looks into the store, is not permitted",
        ),
        _ => (ErrorKind::Unavailable, "the operator's client failed"),
    };
    Error::new(kind, what).with_source(error)
}

impl std::fmt::Debug for RedisHarness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisHarness")
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Harness for RedisHarness {
    async fn connect(&self) -> Result<Store> {
        self.connect_to(&self.url(), self.namespace.clone()).await
    }

    fn offers(&self) -> &[Need] {
        const OWN: &[Need] = &[
            Need::Requests,
            Need::Silence,
            Need::Cut,
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
            Need::ClockJump,
        ];
        const REPLICATED: &[Need] = &[
            Need::Elsewhere,
            Need::Survivors,
            Need::LoseMinority,
            Need::Failover,
        ];
        match &self.server {
            Server::Own(..) if self.clock => OWN,
            Server::Own(..) => &OWN[..OWN.len() - 1],
            Server::Pair(_) | Server::Cluster(..) => REPLICATED,
            Server::Shared(_) => &OWN[..9],
            Server::Foreign(url) if url.starts_with("redis:") => &OWN[4..8],
            Server::Foreign(_) => &OWN[4..5],
        }
    }

    async fn linked(&self) -> Result<Linked> {
        let address = match &self.server {
            Server::Own(server, _) => server.lock().await.address(),
            Server::Shared(server) => server.address(),
            Server::Pair(_) | Server::Cluster(..) | Server::Foreign(_) => {
                return Err(Error::unsupported("a link to more than one server of ours"));
            }
        };
        let proxy = Proxy::start(address).map_err(out_of_order)?;
        let through = format!("redis://{}", proxy.address());
        let store = self.connect_to(&through, self.namespace.clone()).await?;
        Ok(Linked {
            store,
            link: Box::new(proxy),
        })
    }

    async fn elsewhere(&self) -> Result<Store> {
        self.connect_to(&self.url(), self.nested()?).await
    }

    fn operator(&self) -> Option<&dyn Operator> {
        Some(self)
    }

    fn ttl(&self) -> Duration {
        // What a busy machine can renew in time.
        Duration::from_secs(2)
    }

    async fn clean_up(&self) -> Result<()> {
        // Others end with us.
        if matches!(self.server, Server::Shared(_) | Server::Foreign(_)) {
            for namespace in [self.namespace.clone(), self.nested()?] {
                let config = RedisConfig::from_url(StoreUrl::parse(&self.url())?)?;
                tenure_redis::remove_namespace(config.namespace(namespace)).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Operator for RedisHarness {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let key = format!("{}session/{session}", self.root());
        match self.ask::<u64>(cmd("DEL").arg(key)).await? {
            0 => Err(Error::new(ErrorKind::Conflict, "there is no such session")),
            _ => Ok(()),
        }
    }

    /// A place in a line or in a hash is named `<key>#<member>`, where the side of a place in a line
    /// may be left out; anything else is a key.
    async fn delete(&self, key: &str) -> Result<()> {
        let mut deletions = vec![cmd("DEL").arg(key).to_owned()];
        if let Some((key, member)) = key.rsplit_once('#') {
            let kind: String = self.ask(cmd("TYPE").arg(key)).await?;
            let remove = match kind.as_str() {
                "hash" => "HDEL",
                "set" => "SREM",
                _ => "ZREM",
            };
            let sides = ["", ":w", ":r"].map(|side| format!("{member}{side}"));
            deletions = sides
                .iter()
                .map(|member| cmd(remove).arg(key).arg(member).to_owned())
                .collect();
        }
        for deletion in deletions {
            if self.ask::<u64>(&deletion).await? > 0 {
                return Ok(());
            }
        }
        Err(Error::new(ErrorKind::Conflict, "there is no such key"))
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let root = self.root();
        // Found bit by bit, for the server may be somebody's, and full of other things.
        let keys = self.scan(&root, "*").await?;
        let paths = keys.iter().map(|key| &key[root.len()..]);
        let objects: BTreeSet<_> = paths
            .filter_map(|path| object(path, self.interop))
            .collect();
        let mut eval = cmd("EVAL");
        eval.arg(PLACES).arg(1).arg(&root);
        for object in objects {
            eval.arg(object);
        }
        self.ask(&eval).await
    }

    async fn sessions(&self) -> Result<usize> {
        Ok(self.scan("{tenure/", "*}/session/*").await?.len())
    }

    async fn restart(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server
                .lock()
                .await
                .restart_async()
                .await
                .map_err(out_of_order),
            _ => Err(Error::unsupported("restarting a server that others use")),
        }
    }

    async fn snapshot(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.save_snapshot().map_err(out_of_order),
            _ => Err(Error::unsupported("backing up a server that others use")),
        }
    }

    async fn restore(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server
                .lock()
                .await
                .restore_async()
                .await
                .map_err(out_of_order),
            _ => Err(Error::unsupported("restoring a server that others use")),
        }
    }

    async fn disturb(&self) -> Result<()> {
        let Server::Own(server, _) = &self.server else {
            return Err(Error::unsupported("disturbing a server that others use"));
        };
        let server = server.lock().await;
        // As after a restart, the scripts have to be sent again, over new connections.
        for command in [
            &["SCRIPT", "FLUSH"][..],
            &["CLIENT", "KILL", "TYPE", "normal"],
            &["CLIENT", "KILL", "TYPE", "pubsub"],
        ] {
            server.command(command).map_err(out_of_order)?;
        }
        Ok(())
    }

    async fn pause(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.pause().map_err(out_of_order),
            _ => Err(Error::unsupported("pausing a server that others use")),
        }
    }

    async fn resume(&self) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.resume().map_err(out_of_order),
            _ => Err(Error::unsupported("pausing a server that others use")),
        }
    }

    async fn lose_minority(&self) -> Result<()> {
        match &self.server {
            // Of one server, the smallest part that can be lost is all of it.
            Server::Own(server, _) => server.lock().await.kill().map_err(out_of_order),
            Server::Pair(pair) => {
                let servers = pair.servers.lock().await;
                servers.wait_in_sync_async().await.map_err(out_of_order)?;
                drop(servers);
                pair.kill_primary().await.map(drop).map_err(out_of_order)
            }
            Server::Cluster(cluster, _) => {
                let mut cluster = cluster.lock().await;
                let (_, node) = primary_of(&cluster, &self.root()).await?;
                let sync = cluster.wait_in_sync_async(node);
                sync.await.map_err(out_of_order)?;
                cluster.nodes[node].kill().map_err(out_of_order)
            }
            _ => Err(Error::unsupported("stopping a server that others use")),
        }
    }

    async fn lag(&self) -> Result<()> {
        match &self.server {
            Server::Pair(pair) => {
                let servers = pair.servers.lock().await;
                servers.wait_in_sync_async().await.map_err(out_of_order)?;
                servers.cut_replication();
                Ok(())
            }
            Server::Cluster(cluster, _) => {
                let cluster = cluster.lock().await;
                let (_, node) = primary_of(&cluster, &self.root()).await?;
                let sync = cluster.wait_in_sync_async(node);
                sync.await.map_err(out_of_order)?;
                cluster.cut_replication(node).map_err(out_of_order)
            }
            _ => Err(Error::unsupported("a replica that lags, without a replica")),
        }
    }

    async fn fail_over(&self) -> Result<()> {
        match &self.server {
            Server::Pair(pair) => pair.fail_over().await.map_err(out_of_order),
            Server::Cluster(cluster, _) => {
                let mut cluster = cluster.lock().await;
                let (slot, node) = primary_of(&cluster, &self.root()).await?;
                cluster.nodes[node].kill().map_err(out_of_order)?;
                let change = cluster.wait_for_owner_change_async(slot, node, PROMOTED);
                change.await.map(drop).map_err(out_of_order)
            }
            _ => Err(Error::unsupported("a failover without a replica")),
        }
    }

    async fn clock_forward(&self, by: Duration) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.clock_forward(by).map_err(out_of_order),
            _ => Err(Error::unsupported(
                "moving the clock of a server that others use",
            )),
        }
    }

    async fn clock_back(&self, by: Duration) -> Result<()> {
        match &self.server {
            Server::Own(server, _) => server.lock().await.clock_back(by).map_err(out_of_order),
            _ => Err(Error::unsupported(
                "moving the clock of a server that others use",
            )),
        }
    }
}

/// Redis as a column of the report.
pub struct RedisSubject {
    name: String,
    server: Option<Arc<RedisServer>>,
    url: Option<String>,
    setup: Option<RedisSetup>,
}

impl RedisSubject {
    /// A Redis that is started here for the purpose: one that most cases share, and one more for
    /// every case that its neighbours would feel.
    ///
    /// # Errors
    ///
    /// `Unavailable` when Redis is not installed or does not start.
    pub async fn start() -> Result<Self> {
        let server = RedisServer::start_async().await.map_err(out_of_order)?;
        Ok(Self {
            name: "redis".to_owned(),
            server: Some(Arc::new(server)),
            url: None,
            setup: None,
        })
    }

    /// A Redis that is run in this way, started anew for each case. It takes the cases of the events
    /// in which the set-up differs from [`start`](Self::start): there it is shown why it promises
    /// less.
    ///
    /// # Errors
    ///
    /// `Unavailable` when something of it is not installed or does not start.
    pub async fn set_up(setup: RedisSetup) -> Result<Self> {
        if setup == RedisSetup::SteppedClock {
            // Whether there is a compiler shows now, and not in every case.
            setup.start().await?;
        }
        Ok(Self {
            name: setup.title().to_owned(),
            server: None,
            url: None,
            setup: Some(setup),
        })
    }

    /// The Redis at `url`, whose faults are not ours to provoke.
    ///
    /// # Errors
    ///
    /// `Config` for a URL that makes no sense.
    pub fn at(url: impl Into<String>) -> Result<Self> {
        let url = url.into();
        RedisHarness::at(url.clone())?;
        let parsed = StoreUrl::parse(&url)?;
        Ok(Self {
            // Without the credentials.
            name: format!("{} at {}", parsed.scheme(), parsed.hosts().join(",")),
            server: None,
            url: Some(url),
            setup: None,
        })
    }
}

impl std::fmt::Debug for RedisSubject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisSubject")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl Subject for RedisSubject {
    fn name(&self) -> &str {
        &self.name
    }

    fn takes(&self, case: &Case) -> bool {
        self.setup.is_none_or(|setup| {
            let differs = |need: &Need| setup.events().contains(need);
            case.needs.iter().any(differs)
        })
    }

    fn parallel(&self) -> usize {
        // Five processes each, or six, would make the machine itself the fault.
        match self.setup {
            Some(RedisSetup::AsynchronousReplica) => 4,
            Some(RedisSetup::Cluster) => 3,
            _ => 16,
        }
    }

    async fn stage(&self, case: &Case) -> Result<Box<dyn Harness>> {
        if let Some(setup) = self.setup {
            return Ok(Box::new(RedisHarness::set_up(setup).await?));
        }
        let own_store = case.needs.iter().any(|need| need.wants_own_store());
        Ok(Box::new(match (&self.url, &self.server) {
            (Some(url), _) => RedisHarness::at(url.clone())?,
            (None, Some(server)) if !own_store => RedisHarness::sharing(Arc::clone(server))?,
            _ => RedisHarness::start().await?,
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    /// What an operator sees and takes away, on keys such as the backend makes.
    #[tokio::test]
    async fn an_operators_work() {
        let server = Arc::new(RedisServer::start_async().await.unwrap());
        let harness = RedisHarness::sharing(Arc::clone(&server)).unwrap();
        let other = RedisHarness::sharing(Arc::clone(&server)).unwrap();
        let (root, line) = (harness.root(), format!("{}lock/a*b", harness.root()));
        let command = |args: &[&str]| server.command(args).unwrap();
        for (root, session) in [(harness.root(), "5f"), (other.root(), "60")] {
            command(&["HSET", &format!("{root}session/{session}"), "ttl", "2000"]);
            command(&[
                "ZADD",
                &format!("{root}lock/a*b"),
                "7",
                &format!("{session}:1:w"),
            ]);
            command(&["SET", &format!("{root}last"), "7"]);
        }
        command(&["ZADD", &line, "8", "5f:2:w"]);
        command(&["HSET", &format!("{root}election/e/values"), "v5f:3:w", "me"]);

        let value = format!("{root}election/e/values#v5f:3:w");
        let places = [format!("{line}#5f:1:w"), format!("{line}#5f:2:w")];
        let all = [&value, &places[0], &places[1]];
        assert_eq!(harness.keys().await.unwrap(), all.map(String::as_str));
        assert_eq!(harness.sessions().await.unwrap(), 2, "of the whole store");
        harness.delete(&places[0]).await.unwrap();
        // As a guard names it, without the side.
        harness.delete(&format!("{line}#5f:2")).await.unwrap();
        let again = harness.delete(&places[0]).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Conflict);
        harness.delete(&value).await.unwrap();
        assert!(harness.keys().await.unwrap().is_empty());
        harness.delete(&format!("{root}last")).await.unwrap();

        let session = SessionId::new("5f");
        harness.revoke(&session).await.unwrap();
        assert_eq!(harness.sessions().await.unwrap(), 1);
        assert!(harness.revoke(&session).await.is_err(), "it is gone");

        assert_eq!(
            other.keys().await.unwrap().len(),
            1,
            "not ours, not touched"
        );
        other.clean_up().await.unwrap();
        assert_eq!(command(&["DBSIZE"]), "0");
    }

    #[tokio::test]
    async fn a_disturbance_reaches_scripts_and_connections() {
        let harness = RedisHarness::start().await.unwrap();
        let mut client = harness.client().await.unwrap();
        let mut load = cmd("SCRIPT");
        let hash: String = load
            .arg("LOAD")
            .arg("return 1")
            .query_async(&mut client)
            .await
            .unwrap();
        harness.disturb().await.unwrap();
        let ping = cmd("PING").query_async::<String>(&mut client).await;
        assert!(ping.is_err(), "the connection is gone");
        let known: Vec<bool> = harness
            .ask(cmd("SCRIPT").arg("EXISTS").arg(hash))
            .await
            .unwrap();
        assert_eq!(known, [false]);
        harness.restart().await.unwrap();
        harness.lose_minority().await.unwrap();
        assert!(harness.client().await.is_err(), "it is down");
    }
}
