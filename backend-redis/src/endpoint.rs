//! The one Redis that serves a namespace: found, connected to, and looked at.
//!
//! Standalone servers, sentinels and clusters differ here and nowhere else. What is found is a
//! connection that was checked: the server is a primary, new enough, and keeps what it is given.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use redis::aio::MultiplexedConnection;
use redis::io::tcp::socket2::{SockRef, TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Cmd, ErrorKind as Redis, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value,
};
use tenure_core::{Effect, Error, Result};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::config::{Address, Login, RedisConfig, Topology, refuse};
use crate::error;
use crate::tls;

/// How many redirections and dead nodes a search through a cluster takes.
const HOPS: usize = 32;

/// How many nodes of a cluster are kept in mind.
const KNOWN: usize = 64;

/// How long a peer may be silent on the level of TCP: one that has vanished from the network answers
/// nothing at all, and what was sent to it is not acknowledged.
const VANISHED: Duration = Duration::from_secs(15);

/// A connection to a server, and what the server says of itself.
pub(crate) struct Wire {
    pub(crate) redis: MultiplexedConnection,
    pub(crate) address: Address,
    pub(crate) facts: Facts,
    driver: AbortHandle,
}

impl Wire {
    /// Ends the connection now: what waits for answers gets an error.
    pub(crate) fn cut(&self) {
        self.driver.abort();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.cut();
    }
}

/// What `HELLO` answers, which everybody may ask.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) version: String,
    cluster: bool,
    sentinel: bool,
    replica: bool,
}

impl Facts {
    fn read(answer: &Value) -> Self {
        let mut facts = Self::default();
        for (key, value) in answer.as_map_iter().into_iter().flatten() {
            match (&*text(key), &*text(value)) {
                ("version", version) => version.clone_into(&mut facts.version),
                ("mode", mode) => {
                    facts.cluster = mode == "cluster";
                    facts.sentinel = mode == "sentinel";
                }
                ("role", role) => facts.replica = role != "master",
                _ => {}
            }
        }
        facts
    }

    /// Whether the version is at least this one. What cannot be read is taken for old.
    pub(crate) fn at_least(&self, version: (u32, u32)) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().ok());
        let (major, minor) = (parts.next().flatten(), parts.next().flatten());
        major.zip(minor).is_some_and(|found| found >= version)
    }
}

pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Int(number) => number.to_string(),
        Value::VerbatimString { text, .. } => text.clone(),
        _ => String::new(),
    }
}

/// Where servers were last seen.
#[derive(Default)]
pub(crate) struct Directory {
    /// Nodes of the cluster, those first that are likely to be right. The URL's may be long gone.
    known: Mutex<Vec<Address>>,
}

impl Directory {
    /// A checked connection to the primary of the namespace. `pushes` makes the settings of one
    /// connection: that is what pushes are sent to.
    pub(crate) async fn primary<T: Send>(
        &self,
        config: &RedisConfig,
        root: &str,
        pushes: impl Fn() -> (AsyncConnectionConfig, T) + Sync,
    ) -> Result<(Wire, T)> {
        let reach = async |address: &Address| {
            let (settings, extra) = pushes();
            let stage = Stage::default();
            bounded(config, address, &stage, async {
                let wire = dial(
                    config,
                    address,
                    &config.login,
                    store_login(config),
                    settings,
                    &stage,
                );
                let wire = wire.await?;
                Ok((wire, extra))
            })
            .await
        };
        match &config.topology {
            Topology::Fixed => {
                let address = config.hosts.first().ok_or_else(|| refuse("no host"))?;
                let (wire, extra) = reach(address).await?;
                if wire.facts.cluster {
                    return Err(refuse(format!(
                        "{address} is a node of a cluster: write `redis+cluster://`"
                    )));
                }
                checked(config, wire).await.map(|wire| (wire, extra))
            }
            Topology::Sentinel { service, login } => {
                let address = ask_sentinels(config, service, login).await?;
                let (wire, extra) = reach(&address).await?;
                checked(config, wire).await.map(|wire| (wire, extra))
            }
            Topology::Cluster => {
                let mut failed = Failures::default();
                let mut next = self.nodes(config);
                let mut seen = HashSet::new();
                for _ in 0..HOPS {
                    let Some(address) = next.pop_front() else {
                        break;
                    };
                    if !seen.insert(address.to_string()) {
                        continue;
                    }
                    let found = match reach(&address).await {
                        Ok((wire, _)) if !wire.facts.cluster => Err(no_node(&wire)),
                        Ok((wire, extra)) => serves(config, &wire, root)
                            .await
                            .map(|serves| (serves, wire, extra)),
                        Err(error) => Err(error),
                    };
                    match found {
                        Ok((Serves::Itself, wire, extra)) => {
                            let wire = checked(config, wire).await?;
                            self.learn(config, &wire).await;
                            return Ok((wire, extra));
                        }
                        Ok((Serves::Another(address), ..)) => next.push_front(address),
                        Err(error) => failed.add(error),
                    }
                }
                Err(failed.worst("no node of the cluster serves the namespace now"))
            }
        }
    }

    /// Another connection to the same server.
    pub(crate) async fn another(
        config: &RedisConfig,
        address: &Address,
        settings: AsyncConnectionConfig,
    ) -> Result<Wire> {
        let stage = Stage::default();
        let wire = dial(
            config,
            address,
            &config.login,
            store_login(config),
            settings,
            &stage,
        );
        bounded(config, address, &stage, wire).await
    }

    fn nodes(&self, config: &RedisConfig) -> VecDeque<Address> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().chain(&config.hosts).cloned().collect()
    }

    /// Keeps the cluster's nodes in mind, if the user may ask for them.
    async fn learn(&self, config: &RedisConfig, wire: &Wire) {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let mut nodes = vec![wire.address.clone()];
        match ask(config, wire, &command).await {
            Ok(Ok(slots)) => nodes_of(&slots, &wire.address, &mut nodes),
            Ok(Err(error)) => {
                tracing::debug!(%error, "the user may not ask for the cluster's nodes");
            }
            Err(_) => {}
        }
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
    }
}

/// The nodes in an answer of `CLUSTER SLOTS`: `[first, last, [host, port, ...], ...]` each.
fn nodes_of(slots: &Value, asked: &Address, nodes: &mut Vec<Address>) {
    for range in elements(slots) {
        for node in elements(range).iter().skip(2) {
            let [host, Value::Int(port), ..] = elements(node) else {
                continue;
            };
            let Ok(port) = u16::try_from(*port) else {
                continue;
            };
            let node = Address {
                host: host_of(&text(host), asked),
                port,
            };
            if nodes.len() < KNOWN && !nodes.contains(&node) {
                nodes.push(node);
            }
        }
    }
}

fn elements(value: &Value) -> &[Value] {
    match value {
        Value::Array(elements) => elements,
        _ => &[],
    }
}

/// A node that does not know its own name means the one by which it was asked.
fn host_of(named: &str, asked: &Address) -> String {
    match named {
        "" | "?" => asked.host.clone(),
        host => host.to_owned(),
    }
}

/// The error to report when several servers were asked in vain.
#[derive(Default)]
struct Failures(Option<Error>);

impl Failures {
    fn add(&mut self, error: Error) {
        tracing::debug!(error = %error.chain(), "a server is not the one");
        // One that no repetition helps says more than that a server is down.
        match &self.0 {
            Some(known) if !known.is_retryable() || error.is_retryable() => {}
            _ => self.0 = Some(error),
        }
    }

    fn worst(self, message: &str) -> Error {
        self.0.unwrap_or_else(|| error::no_connection(message))
    }
}

/// How far the way to a server was gone, for whoever was not let through in time.
#[derive(Default)]
struct Stage {
    /// The server was reached, and has not taken part in TLS yet.
    securing: AtomicBool,
}

async fn bounded<T>(
    config: &RedisConfig,
    address: &Address,
    stage: &Stage,
    doing: impl Future<Output = Result<T>>,
) -> Result<T> {
    let limit = config.connect_timeout;
    tokio::time::timeout(limit, doing)
        .await
        .unwrap_or_else(|_| {
            // A Redis without TLS waits for more of what it takes for a command.
            let hint = match stage.securing.load(Ordering::Relaxed) {
                true => "; if it does not speak TLS, write `redis` instead of `rediss`",
                false => "",
            };
            Err(error::no_connection(format!(
                "no connection to {address} within {limit:?}{hint}"
            )))
        })
}

pub(crate) fn settings() -> AsyncConnectionConfig {
    // Both are ours.
    AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
}

fn store_login(config: &RedisConfig) -> RedisConnectionInfo {
    RedisConnectionInfo::default()
        .set_protocol(ProtocolVersion::RESP3)
        .set_lib_name("tenure", env!("CARGO_PKG_VERSION"))
        .set_db(config.database)
}

/// Connects, says who we are, and asks the server who it is.
async fn dial(
    config: &RedisConfig,
    address: &Address,
    login: &Login,
    mut info: RedisConnectionInfo,
    settings: AsyncConnectionConfig,
    stage: &Stage,
) -> Result<Wire> {
    if let Some(user) = &login.user {
        info = info.set_username(user);
    }
    if let Some(password) = &login.password {
        info = info.set_password(password.expose());
    }
    let stream = TcpStream::connect((&*address.host, address.port))
        .await
        .and_then(|stream| tune(&stream).map(|()| stream))
        .map_err(|error| {
            error::no_connection(format!("no connection to {address}")).with_source(error)
        })?;
    let connected = match &config.tls {
        None => MultiplexedConnection::new_with_config(&info, stream, settings)
            .await
            .map(|(redis, driver)| (redis, tokio::spawn(driver).abort_handle())),
        Some(files) => {
            stage.securing.store(true, Ordering::Relaxed);
            let stream = tls::secure(files, address, stream).await?;
            stage.securing.store(false, Ordering::Relaxed);
            MultiplexedConnection::new_with_config(&info, stream, settings)
                .await
                .map(|(redis, driver)| (redis, tokio::spawn(driver).abort_handle()))
        }
    };
    let (redis, driver) = connected.map_err(|error| not_welcome(config, address, error))?;
    let mut wire = Wire {
        redis,
        address: address.clone(),
        facts: Facts::default(),
        driver,
    };
    let hello = wire
        .redis
        .send_packed_command(&redis::cmd("HELLO"))
        .await
        .and_then(Value::extract_error);
    // A sentinel speaks the older protocol here, and is asked for nothing else.
    if info.protocol() == ProtocolVersion::RESP3 {
        wire.facts = Facts::read(&hello.map_err(|e| not_welcome(config, address, e))?);
    }
    Ok(wire)
}

fn tune(stream: &TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(VANISHED * 2 / 3)
            .with_interval(VANISHED / 6),
    )?;
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    socket.set_tcp_user_timeout(Some(VANISHED))?;
    Ok(())
}

/// Why a server that we reached does not talk to us.
fn not_welcome(config: &RedisConfig, address: &Address, error: RedisError) -> Error {
    let shown = error.to_string();
    if shown.contains("DB index") || shown.contains("invalid DB") {
        return refuse(format!(
            "{address} has no database {}: its `databases` says how many there are",
            config.database
        ))
        .with_source(error::Said::from(error));
    }
    if error.kind() == Redis::RESP3NotSupported || shown.contains("unknown command") {
        return too_old(address, "below 6").with_source(error::Said::from(error));
    }
    if !error.is_io_error() {
        return error::from_redis(error)
            .with_effect(Effect::None)
            .at(address);
    }
    match &config.tls {
        // With TLS 1.3 the server looks at our certificate when we think that we are through.
        Some(files) if shown.contains("alert") || files.identity.is_none() => {
            tls::client_refused(address)
                .retryable(!shown.contains("alert"))
                .with_source(error::Said::from(error))
        }
        Some(_) => {
            error::no_connection(format!("{address} hung up")).with_source(error::Said::from(error))
        }
        None => error::no_connection(format!(
            "{address} hung up; if it speaks TLS, write `rediss`"
        ))
        .with_source(error::Said::from(error)),
    }
}

/// What a cluster's URL led to is none.
fn no_node(wire: &Wire) -> Error {
    match wire.facts.sentinel {
        true => a_sentinel(&wire.address),
        false => refuse(format!(
            "{} is no node of a cluster: write `redis://` for one server",
            wire.address
        )),
    }
}

fn a_sentinel(address: &Address) -> Error {
    refuse(format!(
        "{address} is a sentinel, not a server that keeps data: write `redis+sentinel://` and the name of the service as the path"
    ))
}

fn too_old(address: &Address, version: &str) -> Error {
    refuse(format!(
        "{address} is a Redis {version}; tenure needs 6.2 or later, and RESP3"
    ))
}

async fn ask(
    config: &RedisConfig,
    wire: &Wire,
    command: &Cmd,
) -> Result<std::result::Result<Value, RedisError>> {
    let mut redis = wire.redis.clone();
    bounded(config, &wire.address, &Stage::default(), async {
        Ok(redis
            .send_packed_command(command)
            .await
            .and_then(Value::extract_error))
    })
    .await
}

/// The connection, if its server is fit to keep locks.
async fn checked(config: &RedisConfig, wire: Wire) -> Result<Wire> {
    let (address, facts) = (&wire.address, &wire.facts);
    if facts.sentinel {
        return Err(a_sentinel(address));
    }
    if !facts.at_least((6, 2)) {
        return Err(too_old(address, &facts.version));
    }
    if facts.replica {
        return Err(error::no_connection(format!(
            "{address} is a replica, which can be read only"
        )));
    }
    if config.wait_aof && !facts.at_least((7, 2)) {
        return Err(refuse(format!(
            "`wait_aof` needs Redis 7.2 or later, and {address} is a {}",
            facts.version
        )));
    }
    let mut command = redis::cmd("INFO");
    command.arg("memory");
    match ask(config, &wire, &command).await? {
        Ok(info) => {
            let info = text(&info);
            let policy = crate::guarantees::field(&info, "maxmemory_policy").unwrap_or_default();
            if !config.allow_eviction && !matches!(policy, "" | "noeviction") {
                return Err(refuse(format!(
                    "{address} has `maxmemory-policy {policy}`, so it may throw away what is held when its memory is full: set it to `noeviction`, or say `?allow_eviction=true`"
                )));
            }
        }
        Err(error) if error::code(&error) == "NOPERM" => {
            tracing::warn!(
                "the Redis user may not ask INFO: whether keys may be evicted is unknown"
            );
        }
        Err(error) => return Err(error::from_redis(error).with_effect(Effect::None)),
    }
    Ok(wire)
}

/// What a node of a cluster says about the namespace's slot.
enum Serves {
    Itself,
    Another(Address),
}

/// Asks the node for a key of the namespace, which needs no right that locks do not need, and no
/// knowledge of slots.
async fn serves(config: &RedisConfig, wire: &Wire, root: &str) -> Result<Serves> {
    let mut command = redis::cmd("GET");
    command.arg(format!("{root}last"));
    let error = match ask(config, wire, &command).await? {
        Ok(_) => return Ok(Serves::Itself),
        Err(error) => error,
    };
    match error::code(&error) {
        // The slot is on its way to another, but this one serves it still.
        "ASK" | "TRYAGAIN" => Ok(Serves::Itself),
        "MOVED" => error
            .redirect_node()
            .and_then(|(node, _)| Address::parse(node))
            .map(|node| Address {
                host: host_of(&node.host, &wire.address),
                port: node.port,
            })
            .map(Serves::Another)
            .ok_or_else(|| error::from_redis(error).with_effect(Effect::None)),
        _ => Err(error::from_redis(error).with_effect(Effect::None)),
    }
}

/// Where more than half of the sentinels say that the primary is. Those that are cut off from the others may not know
/// of a failover, and name a primary that goes on beside the new one.
async fn ask_sentinels(config: &RedisConfig, service: &str, login: &Login) -> Result<Address> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(service);
    let mut answers: FuturesUnordered<_> = config
        .hosts
        .iter()
        .map(|sentinel| async {
            let stage = Stage::default();
            let answer = ask_sentinel(config, sentinel, login, &command, &stage);
            bounded(config, sentinel, &stage, answer).await
        })
        .collect();
    let mut votes: Vec<(usize, Address)> = Vec::new();
    let mut failed = Failures::default();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(address)) => {
                let count = match votes.iter_mut().find(|(_, known)| *known == address) {
                    Some((count, _)) => {
                        *count += 1;
                        *count
                    }
                    None => {
                        votes.push((1, address.clone()));
                        1
                    }
                };
                if count > config.hosts.len() / 2 {
                    return Ok(address);
                }
            }
            Ok(None) => failed.add(refuse(format!(
                "the sentinels know no servers called `{service}`"
            ))),
            Err(error) => failed.add(error),
        }
    }
    if votes.is_empty() {
        return Err(failed.worst("no sentinel answers"));
    }
    let votes: Vec<_> = votes
        .iter()
        .map(|(count, address)| format!("{address} ({count})"))
        .collect();
    let error = error::no_connection(format!(
        "no primary is named by more than half of the {} sentinels in the URL, only {}",
        config.hosts.len(),
        votes.join(", ")
    ));
    Err(match failed.0 {
        Some(failure) => error.with_source(failure),
        None => error,
    })
}

async fn ask_sentinel(
    config: &RedisConfig,
    sentinel: &Address,
    login: &Login,
    command: &Cmd,
    stage: &Stage,
) -> Result<Option<Address>> {
    let info = RedisConnectionInfo::default();
    let wire = dial(config, sentinel, login, info, settings(), stage).await?;
    let answer = ask(config, &wire, command).await?;
    let answer = answer.map_err(|error| match error.to_string().contains("nknown command") {
        true => refuse(format!(
            "{sentinel} is no sentinel: write `redis://` for one server"
        ))
        .with_source(error::Said::from(error)),
        false => error::from_redis(error)
            .with_effect(Effect::None)
            .at(sentinel),
    })?;
    let [host, port] = elements(&answer) else {
        return Ok(None);
    };
    Ok(text(port).parse().ok().map(|port| Address {
        host: text(host),
        port,
    }))
}

#[cfg(test)]
mod tests {
    use tenure_core::ErrorKind;

    use super::*;

    #[test]
    fn versions() {
        for (version, new_enough) in [
            ("6.2.0", true),
            ("7.0.15", true),
            ("10.1", true),
            ("6.0.16", false),
            ("5", false),
            ("", false),
            ("unstable", false),
        ] {
            let facts = Facts {
                version: version.into(),
                ..Facts::default()
            };
            assert_eq!(facts.at_least((6, 2)), new_enough, "{version}");
        }
    }

    #[test]
    fn what_no_repetition_helps_is_reported_first() {
        let mut failed = Failures::default();
        failed.add(error::no_connection("down"));
        failed.add(refuse("wrong"));
        failed.add(error::no_connection("down, too"));
        assert_eq!(failed.worst("").kind(), ErrorKind::Config);
    }
}
