//! A Redis Cluster of three primaries, with or without replicas.

use std::net::SocketAddr;
use std::time::Duration;

use super::replica::Follow;
use super::resp::{ADMIN, Control};
use super::{COMMAND, RedisBuilder, RedisServer, on_a_thread, wait_until};
use crate::error::{Error, Result};

/// How many slots a cluster has.
const SLOTS: usize = 16_384;

/// How many of the nodes are primaries at the start.
const PRIMARIES: usize = 3;

/// Options of a [`RedisCluster`] that is not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct RedisClusterBuilder {
    node: RedisBuilder,
    replicas: bool,
    node_timeout: Duration,
}

impl Default for RedisClusterBuilder {
    fn default() -> Self {
        Self {
            node: RedisBuilder::default(),
            replicas: false,
            node_timeout: Duration::from_secs(4),
        }
    }
}

impl RedisClusterBuilder {
    /// The options of every node.
    pub fn node(mut self, node: RedisBuilder) -> Self {
        self.node = node;
        self
    }

    /// Give each primary a replica, which takes over when it dies.
    pub fn with_replicas(mut self) -> Self {
        self.replicas = true;
        self
    }

    /// How long a node is silent before the others take it for dead; four seconds by default. Much
    /// less, and a busy machine looks like a dead node.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.node_timeout = timeout;
        self
    }

    /// Starts the nodes, introduces them to each other, and waits until each says that all slots are
    /// served. Blocks the thread, normally for a few seconds.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::start`]; [`Error::Reply`] when a node refuses what it is told;
    /// [`Error::TimedOut`] when the nodes do not come to agree.
    pub fn start(self) -> Result<RedisCluster> {
        let mut options = self.node.line(format!(
            "cluster-node-timeout {}",
            self.node_timeout.as_millis()
        ));
        options.cluster = true;
        let nodes = PRIMARIES * if self.replicas { 2 } else { 1 };
        let nodes = (0..nodes).map(|_| options.clone().start());
        let cluster = RedisCluster {
            nodes: nodes.collect::<Result<_>>()?,
        };
        cluster.introduce()?;
        cluster.ask().wait_ready()?;
        if self.replicas {
            cluster.attach_replicas()?;
            cluster.ask().wait_ready()?;
        }
        Ok(cluster)
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the start goes on in the background and its nodes are ended as
    /// soon as it is done.
    pub async fn start_async(self) -> Result<RedisCluster> {
        on_a_thread(move || self.start()).await
    }
}

/// Three primaries, each with a third of the slots, and perhaps a replica of each.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes: 0, 1 and 2 are the primaries at the start, 3, 4 and 5 their replicas in order.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts a cluster without replicas.
    ///
    /// # Errors
    ///
    /// As [`RedisClusterBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`RedisClusterBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> RedisClusterBuilder {
        RedisClusterBuilder::default()
    }

    /// `redis+cluster://127.0.0.1:A,127.0.0.1:B,...`, without user and password.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|n| n.address().to_string()).collect();
        let scheme = self.nodes[0].options.scheme("+cluster");
        format!("{scheme}://{}", addresses.join(","))
    }

    /// The slot of a key.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when no node runs.
    pub fn slot_of(&self, key: &str) -> Result<u16> {
        self.ask().slot_of(key)
    }

    /// The number, in [`nodes`](Self::nodes), of the primary that serves a slot, as most of the
    /// running primaries see it; `None` while they disagree.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when no node runs.
    pub fn owner_of(&self, slot: u16) -> Result<Option<usize>> {
        self.ask().owner_of(slot)
    }

    /// Waits until another node than `from` serves the slot, and returns its number. Blocks the
    /// thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`].
    pub fn wait_for_owner_change(
        &self,
        slot: u16,
        from: usize,
        timeout: Duration,
    ) -> Result<usize> {
        self.ask().wait_for_owner_change(slot, from, timeout)
    }

    /// [`wait_for_owner_change`](Self::wait_for_owner_change) on a blocking thread of the tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// As [`wait_for_owner_change`](Self::wait_for_owner_change).
    ///
    /// # Cancel safety
    ///
    /// Nothing but the waiting is lost when the future is dropped.
    pub async fn wait_for_owner_change_async(
        &self,
        slot: u16,
        from: usize,
        timeout: Duration,
    ) -> Result<usize> {
        let ask = self.ask();
        on_a_thread(move || ask.wait_for_owner_change(slot, from, timeout)).await
    }

    /// Waits until every running node says that all slots are served. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] after 60 seconds.
    pub fn wait_ready(&self) -> Result<()> {
        self.ask().wait_ready()
    }

    /// [`wait_ready`](Self::wait_ready) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`wait_ready`](Self::wait_ready).
    ///
    /// # Cancel safety
    ///
    /// Nothing but the waiting is lost when the future is dropped.
    pub async fn wait_ready_async(&self) -> Result<()> {
        let ask = self.ask();
        on_a_thread(move || ask.wait_ready()).await
    }

    /// Waits until the replica of the primary `node` has all that this has written so far. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] after 30 seconds; [`Error::Config`] when the node had no replica at the start.
    pub fn wait_in_sync(&self, node: usize) -> Result<()> {
        self.follow(node)?.wait()
    }

    /// [`wait_in_sync`](Self::wait_in_sync) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`wait_in_sync`](Self::wait_in_sync).
    ///
    /// # Cancel safety
    ///
    /// Nothing but the waiting is lost when the future is dropped.
    pub async fn wait_in_sync_async(&self, node: usize) -> Result<()> {
        let follow = self.follow(node)?;
        on_a_thread(move || follow.wait()).await
    }

    /// From now on nothing that the primary `node` writes reaches its replica, which may still take over:
    /// it forgets the password by which it would follow.
    ///
    /// # Errors
    ///
    /// As [`wait_in_sync`](Self::wait_in_sync), and [`Error::Reply`].
    pub fn cut_replication(&self, node: usize) -> Result<()> {
        let Follow { primary, replica } = self.follow(node)?;
        let forget = ["CONFIG", "SET", "masterauth", "forgotten"];
        replica.command(&forget, COMMAND)?;
        let what = "a primary without its replica";
        wait_until(what, Duration::from_secs(30), || {
            primary.command(&["CLIENT", "KILL", "TYPE", "replica"], COMMAND)?;
            let left = primary.info("connected_slaves")?;
            Ok((left.as_deref() == Some("0")).then_some(()))
        })
    }

    fn follow(&self, node: usize) -> Result<Follow> {
        match (self.nodes.get(node), self.nodes.get(PRIMARIES + node)) {
            (Some(primary), Some(replica)) => Ok(Follow {
                primary: primary.control(),
                replica: replica.control(),
            }),
            _ => Err(Error::Config(format!("node {node} has no replica"))),
        }
    }

    /// Begins to move a slot: from now on its owner answers `ASK` for keys that it does not hold.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`], also when `to` serves the slot already.
    pub fn begin_move(&self, slot: u16, to: usize) -> Result<()> {
        let (slot, from) = (slot.to_string(), self.source(slot, to)?);
        let (from_id, to_id) = (self.id(from)?, self.id(to)?);
        self.nodes[to].command(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from_id])?;
        self.nodes[from].command(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to_id])?;
        Ok(())
    }

    /// Moves the keys of a slot whose move has begun: its owner answers `ASK` for all of them then.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`].
    pub fn move_keys(&self, slot: u16, to: usize) -> Result<()> {
        let (port, name, from) = (
            self.nodes[to].port(),
            slot.to_string(),
            self.source(slot, to)?,
        );
        let port = port.to_string();
        loop {
            let keys = self.nodes[from].command(&["CLUSTER", "GETKEYSINSLOT", &name, "100"])?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut args = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "AUTH2"];
            args.extend([ADMIN, ADMIN, "KEYS"]);
            args.extend(keys.lines());
            self.nodes[from].command(&args)?;
        }
    }

    /// Ends the move of a slot: its former owner answers `MOVED` from now on.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`], also when keys were left behind.
    pub fn finish_move(&self, slot: u16, to: usize) -> Result<()> {
        let (name, from, id) = (slot.to_string(), self.source(slot, to)?, self.id(to)?);
        // The new owner first: were it the other way round, nobody would own it for a moment.
        for node in [to, from] {
            self.nodes[node].command(&["CLUSTER", "SETSLOT", &name, "NODE", &id])?;
        }
        let what = "nodes that know a slot's new owner";
        wait_until(what, Duration::from_secs(30), || {
            Ok((self.owner_of(slot)? == Some(to)).then_some(()))
        })
    }

    /// Moves a slot with all its keys to another primary. Blocks the thread for some milliseconds,
    /// more if there are many keys.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`], also when `to` serves the slot already.
    pub fn move_slot(&self, slot: u16, to: usize) -> Result<()> {
        self.begin_move(slot, to)?;
        self.move_keys(slot, to)?;
        self.finish_move(slot, to)
    }

    fn source(&self, slot: u16, to: usize) -> Result<usize> {
        match self.owner_of(slot)? {
            Some(from) if from != to => Ok(from),
            owner => Err(Error::Config(format!(
                "slot {slot} cannot be moved to node {to}: its owner is {owner:?}"
            ))),
        }
    }

    fn id(&self, node: usize) -> Result<String> {
        self.nodes[node].command(&["CLUSTER", "MYID"])
    }

    /// Gives the slots to the primaries, and every node the addresses of all others.
    fn introduce(&self) -> Result<()> {
        for (number, node) in self.nodes.iter().enumerate() {
            // Else they all begin with the same epoch, and take their time to quarrel about it.
            let epoch = (number + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
        }
        // Only then: a node that knows another takes no epoch.
        for (number, node) in self.nodes.iter().enumerate() {
            if number < PRIMARIES {
                let first = (number * SLOTS / PRIMARIES).to_string();
                let last = ((number + 1) * SLOTS / PRIMARIES - 1).to_string();
                node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
            }
            for other in &self.nodes[number + 1..] {
                let (port, bus) = (other.port().to_string(), other.bus.number().to_string());
                node.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
            }
        }
        Ok(())
    }

    fn attach_replicas(&self) -> Result<()> {
        for (primary, replica) in self.nodes.iter().zip(&self.nodes[PRIMARIES..]) {
            let id = primary.command(&["CLUSTER", "MYID"])?;
            replica.command(&["CLUSTER", "REPLICATE", &id])?;
        }
        for node in 0..PRIMARIES {
            self.wait_in_sync(node)?;
        }
        // A replica that the other primaries take for a primary gets no votes.
        let what = "nodes that know all replicas";
        wait_until(what, Duration::from_secs(30), || {
            for node in &self.nodes {
                let nodes = node.command(&["CLUSTER", "NODES"])?;
                let replicas = nodes.lines().filter(|line| line.contains("slave"));
                if replicas.count() != self.nodes.len() - PRIMARIES {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    fn ask(&self) -> Ask {
        let nodes = self.nodes.iter();
        Ask {
            nodes: nodes.map(|node| (node.address(), node.control())).collect(),
        }
    }
}

/// What the nodes are asked, also from another thread.
struct Ask {
    nodes: Vec<(SocketAddr, Control)>,
}

impl Ask {
    /// The answers of the nodes that answer; those that are dead or paused do not.
    fn command(&self, args: &[&str]) -> Result<Vec<String>> {
        let answers = self
            .nodes
            .iter()
            .map(|(_, node)| node.command(args, COMMAND));
        let (answers, errors): (Vec<_>, Vec<_>) = answers.partition(Result::is_ok);
        match errors.into_iter().find_map(Result::err) {
            Some(error) if answers.is_empty() => Err(error),
            _ => Ok(answers.into_iter().flatten().collect()),
        }
    }

    fn slot_of(&self, key: &str) -> Result<u16> {
        let answers = self.command(&["CLUSTER", "KEYSLOT", key])?;
        answers
            .first()
            .and_then(|slot| slot.parse().ok())
            .ok_or_else(|| Error::Config(format!("no slot for `{key}`")))
    }

    fn owner_of(&self, slot: u16) -> Result<Option<usize>> {
        let mut owners = Vec::new();
        for nodes in self.command(&["CLUSTER", "NODES"])? {
            let owner = nodes.lines().find(|line| serves(line, slot));
            let address = owner.and_then(|line| line.split([' ', '@']).nth(1));
            owners.push(address.and_then(|address| {
                self.nodes
                    .iter()
                    .position(|(known, _)| known.to_string() == address)
            }));
        }
        let owner = owners.first().copied().flatten();
        Ok(owner.filter(|_| owners.iter().all(|&other| other == owner)))
    }

    fn wait_for_owner_change(&self, slot: u16, from: usize, timeout: Duration) -> Result<usize> {
        wait_until("a slot's new owner", timeout, || {
            Ok(self.owner_of(slot)?.filter(|&owner| owner != from))
        })
    }

    fn wait_ready(&self) -> Result<()> {
        let what = "a cluster whose nodes serve all slots";
        wait_until(what, Duration::from_secs(60), || {
            let infos = self.command(&["CLUSTER", "INFO"])?;
            let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
            let ready = infos
                .iter()
                .all(|info| info.contains("cluster_state:ok\r\n") && info.contains(&known));
            if !ready {
                return Ok(None);
            }
            // Introduced is one thing, to be linked in both directions another.
            let nodes = self.command(&["CLUSTER", "NODES"])?;
            let linked = nodes.iter().all(|nodes| !nodes.contains("handshake"));
            let agreed = [0, SLOTS / 2, SLOTS - 1].iter().all(|&slot| {
                let slot = u16::try_from(slot).unwrap_or(u16::MAX);
                matches!(self.owner_of(slot), Ok(Some(_)))
            });
            Ok((linked && agreed).then_some(()))
        })
    }
}

/// Whether a line of `CLUSTER NODES` is that of the primary which serves the slot. A primary that
/// died keeps its slots in the list until another takes them.
fn serves(line: &str, slot: u16) -> bool {
    line.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => (first..=last).contains(&slot),
            // A move in progress: `[slot->-node]`.
            _ => false,
        }
    })
}
