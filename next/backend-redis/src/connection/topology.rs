//! The search for the server that serves the namespace. One server, sentinels and clusters differ here and nowhere else.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use redis::{RedisError, Value};
use tenure_core::{Effect, Error, Result};
use tokio::runtime::Handle;

use super::dial::{Purpose, dial, field, text, too_old};
use super::sentinel::ask_sentinels;
use super::socket::{Failure, Socket};
use crate::config::{Address, RedisConfig, Topology, refuse};
use crate::error::{self, unavailable};
use crate::keys;
use crate::script::{self, Answer};

/// The most redirections and dead nodes in one search through a cluster.
const HOPS: usize = 32;

/// The most nodes of a cluster that are remembered.
const KNOWN: usize = 64;

/// The connection for commands to a server that may keep the namespace, and what its first script answered.
pub(super) struct Primary {
    pub(super) socket: Socket,
    /// Greater than every earlier token and epoch of the namespace that this server knows.
    pub(super) epoch: u64,
    /// The id of the server's process, if the user may ask for it.
    pub(super) run_id: Option<String>,
}

/// The search, with what it has learned of a cluster.
#[derive(Default)]
pub(super) struct Search {
    /// Nodes of the cluster, the likely ones first. Those in the URL may no longer exist.
    known: Vec<Address>,
}

impl Search {
    /// Connects to the primary of the namespace.
    ///
    /// # Errors
    ///
    /// `Config` for a server that may not be used, `Unauthorized`, `Unavailable`. The message names the endpoint.
    pub(super) async fn primary(&mut self, config: &Arc<RedisConfig>, root: &str) -> Result<Primary> {
        let address = match &config.topology {
            Topology::Fixed => config
                .hosts
                .first()
                .cloned()
                .ok_or_else(|| refuse("no host is configured"))?,
            Topology::Sentinel { service, credentials } => ask_sentinels(config, service, credentials.as_ref()).await?,
            Topology::Cluster => return self.in_cluster(config, root).await,
        };
        let socket = dial(config, &address, Purpose::Commands, None).await?;
        if socket.facts.is_cluster {
            return Err(refuse(format!(
                "{address} is a node of a cluster: write `redis+cluster://`"
            )));
        }
        match first_step(config, socket, root).await? {
            Step::Served(primary) => Ok(*primary),
            Step::Redirected(_) => Err(unavailable(format!("{address} redirects to another server"))),
        }
    }

    async fn in_cluster(&mut self, config: &Arc<RedisConfig>, root: &str) -> Result<Primary> {
        let mut next: VecDeque<_> = self.known.iter().chain(&config.hosts).cloned().collect();
        let mut failures = Failures::default();
        let mut seen = HashSet::new();
        for _ in 0..HOPS {
            let Some(address) = next.pop_front() else {
                break;
            };
            if !seen.insert(address.clone()) {
                continue;
            }
            match visit(config, &address, root).await {
                Ok(Step::Served(primary)) => {
                    self.learn(config, &primary.socket).await;
                    return Ok(*primary);
                }
                Ok(Step::Redirected(address)) => next.push_front(address),
                Err(error) => failures.add(error),
            }
        }
        Err(failures.worst("no node of the cluster serves the namespace now"))
    }

    /// Remembers the cluster's nodes, if the user may query them.
    async fn learn(&mut self, config: &Arc<RedisConfig>, socket: &Socket) {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        let mut nodes = vec![socket.address.clone()];
        match ask(config, socket, &command).await {
            Ok(Ok(slots)) => add_nodes(&slots, &socket.address, &mut nodes),
            Ok(Err(error)) => tracing::debug!(%error, "the user may not ask for the cluster's nodes"),
            Err(_) => {}
        }
        self.known = nodes;
    }
}

/// Adds the nodes in an answer of `CLUSTER SLOTS`: `[first, last, [host, port, ...], ...]` each.
fn add_nodes(slots: &Value, asked: &Address, nodes: &mut Vec<Address>) {
    let ranges = elements(slots).iter().flat_map(|range| elements(range).iter().skip(2));
    for node in ranges {
        let [host, Value::Int(port), ..] = elements(node) else {
            continue;
        };
        let Ok(port) = u16::try_from(*port) else {
            continue;
        };
        let host = host_of(&text(host), asked);
        let node = Address { host, port };
        if nodes.len() < KNOWN && !nodes.contains(&node) {
            nodes.push(node);
        }
    }
}

pub(super) fn elements(value: &Value) -> &[Value] {
    match value {
        Value::Array(elements) => elements,
        _ => &[],
    }
}

/// Returns a node's host. A node that does not know its own name means the address to which the request was sent.
fn host_of(named: &str, asked: &Address) -> String {
    match named {
        "" | "?" => asked.host.clone(),
        host => host.to_owned(),
    }
}

/// The answer of a server about the namespace.
enum Step {
    Served(Box<Primary>),
    /// Another node of the cluster serves it.
    Redirected(Address),
}

/// Asks one node of a cluster.
async fn visit(config: &Arc<RedisConfig>, address: &Address, root: &str) -> Result<Step> {
    let socket = dial(config, address, Purpose::Commands, None).await?;
    if !socket.facts.is_cluster && !socket.facts.is_sentinel {
        return Err(refuse(format!(
            "{address} is not a node of a cluster: write `redis://` for one server"
        )));
    }
    first_step(config, socket, root).await
}

/// Checks that the server may keep the namespace, and runs the first script of a link. In a cluster the script finds the node
/// too: its only key is one of the namespace, and never exists. A slot that moves refuses it with `ASK` until all of it has
/// moved, which must not be followed: the importing node would not see the keys that have not arrived.
async fn first_step(config: &Arc<RedisConfig>, socket: Socket, root: &str) -> Result<Step> {
    let (address, facts) = (&socket.address, &socket.facts);
    if facts.is_sentinel {
        return Err(refuse(format!(
            "{address} is a sentinel: write `redis+sentinel://`, and the name of the service as the path"
        )));
    }
    if !facts.at_least((7, 0)) {
        return Err(too_old(address, &facts.version));
    }
    if config.wait_aof && !facts.at_least((7, 2)) {
        let version = &facts.version;
        return Err(refuse(format!(
            "`wait_aof` needs Redis 7.2 or later, and {address} is a {version}: upgrade it, or remove the option"
        )));
    }
    if facts.is_replica && !facts.is_cluster {
        return Err(unavailable(format!(
            "{address} is a read-only replica: name the primary"
        )));
    }
    let lease = &*script::LEASE;
    let mut command = redis::cmd("EVAL");
    command.arg(&lease.source).arg(1).arg(root);
    for argument in ["connect", "", "0", "", ""] {
        command.arg(argument);
    }
    command.arg(keys::LAYOUT);
    let answer = match ask(config, &socket, &command).await? {
        Ok(answer) => Answer::read("connect", answer)?,
        Err(error) if error::code(&error) == "MOVED" => {
            let node = error.redirect_node().and_then(|(node, _)| Address::parse(node));
            return match node {
                Some(Address { host, port }) => Ok(Step::Redirected(Address {
                    host: host_of(&host, address),
                    port,
                })),
                None => Err(error::from_redis(error).with_effect(Effect::None).at(address)),
            };
        }
        Err(error) => {
            let error = error::from_script(error, &lease.source);
            return Err(error.with_effect(Effect::None).at(address));
        }
    };
    let epoch = match answer.word()? {
        "ok" => answer.number(1)?,
        "layout" => {
            let (namespace, found) = (config.namespace.as_str(), answer.text(1)?);
            return Err(refuse(format!(
                "{address} has the namespace {namespace:?} in the layout {found}, and this version uses {}: choose another \
                 namespace, or the version that wrote it",
                keys::LAYOUT
            )));
        }
        _ => return Err(answer.unexpected()),
    };
    let run_id = check_info(config, &socket).await?;
    Ok(Step::Served(Box::new(Primary { socket, epoch, run_id })))
}

/// Refuses a server that evicts keys. Returns the id of its process.
async fn check_info(config: &Arc<RedisConfig>, socket: &Socket) -> Result<Option<String>> {
    let address = &socket.address;
    let mut command = redis::cmd("INFO");
    command.arg(&["server", "memory"]);
    let info = match ask(config, socket, &command).await? {
        Ok(info) => text(&info),
        Err(error) if error::code(&error) == "NOPERM" => {
            tracing::warn!("the Redis user may not ask INFO: whether the server evicts keys is unknown");
            return Ok(None);
        }
        Err(error) => return Err(error::from_redis(error).with_effect(Effect::None).at(address)),
    };
    let policy = field(&info, "maxmemory_policy").unwrap_or_default();
    if !config.allow_eviction && !matches!(policy, "" | "noeviction") {
        return Err(refuse(format!(
            "{address} has `maxmemory-policy {policy}`, so it may evict holdings when its memory is full: set it to \
             `noeviction`, or write `?allow_eviction=true`"
        )));
    }
    Ok(field(&info, "run_id").map(str::to_owned))
}

/// Connects to the server of `primary` for another purpose.
///
/// # Errors
///
/// `Unavailable` if the same address leads to another server: a name may have several addresses, or move.
pub(super) async fn another(
    config: &Arc<RedisConfig>,
    primary: &Primary,
    purpose: Purpose,
    home: Option<&Handle>,
) -> Result<Socket> {
    let address = &primary.socket.address;
    let socket = dial(config, address, purpose, home).await?;
    let Some(known) = &primary.run_id else {
        return Ok(socket);
    };
    let mut command = redis::cmd("INFO");
    command.arg("server");
    let found = ask(config, &socket, &command)
        .await?
        .map(|info| text(&info))
        .unwrap_or_default();
    match field(&found, "run_id") {
        Some(found) if found != known => Err(unavailable(format!(
            "{address} led to one server, and a moment later to another: name one that leads to one server alone"
        ))),
        _ => Ok(socket),
    }
}

/// Sends a command of the connection's beginning, within the configured time.
pub(super) async fn ask(
    config: &Arc<RedisConfig>,
    socket: &Socket,
    command: &redis::Cmd,
) -> Result<std::result::Result<Value, RedisError>> {
    let limit = config.connect_timeout;
    let address = &socket.address;
    match tokio::time::timeout(limit, socket.send(command)).await {
        Ok(Ok(answer)) => Ok(Ok(answer)),
        Ok(Err(Failure::Redis(error))) => Ok(Err(error)),
        Ok(Err(failure)) => Err(failure.translate().with_effect(Effect::None).at(address)),
        Err(_) => Err(unavailable(format!("{address} did not answer within {limit:?}"))),
    }
}

/// The error to report when the requests to several servers failed: one that no retry helps says more than that a server is
/// down.
#[derive(Default)]
pub(super) struct Failures(pub(super) Option<Error>);

impl Failures {
    pub(super) fn add(&mut self, error: Error) {
        tracing::debug!(error = %error.chain(), "this server does not serve the namespace");
        let is_known = |known: &Error| !known.is_retryable() || error.is_retryable();
        if !self.0.as_ref().is_some_and(is_known) {
            self.0 = Some(error);
        }
    }

    pub(super) fn worst(self, message: &str) -> Error {
        self.0.unwrap_or_else(|| unavailable(message))
    }
}
