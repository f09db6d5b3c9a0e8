//! A Redis Cluster of three primaries.

use super::admin::ADMIN;
use super::options::{Part, RedisOptions};
use super::server::RedisServer;
use crate::error::{Error, Result};
use crate::wait::wait_until;

const SLOTS: usize = 16_384;

const NODES: usize = 3;

/// Three primaries, each with a third of the slots. A node that is silent for four seconds counts as failed.
///
/// Methods fail with [`Error::Redis`] when a node refuses, and with [`Error::NotSeen`] when the nodes do not come to agree.
#[derive(Debug)]
pub struct RedisCluster {
    /// The nodes.
    pub nodes: Vec<RedisServer>,
}

impl RedisCluster {
    /// Starts the nodes with these options, and waits until all say that all slots are served: a few seconds.
    pub fn start(options: RedisOptions) -> Result<Self> {
        // A much shorter timeout, and a node on a busy machine looks failed.
        let options = options.part(Part::Node).line("cluster-node-timeout 4000");
        let start = |_| RedisServer::start(options.clone());
        let cluster = Self {
            nodes: (0..NODES).map(start).collect::<Result<_>>()?,
        };
        // Nodes with equal epochs would first have to settle which of them yields. A node that knows another takes no epoch.
        for (number, node) in cluster.nodes.iter().enumerate() {
            let epoch = (number + 1).to_string();
            node.admin().execute(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch])?;
        }
        for (number, node) in cluster.nodes.iter().enumerate() {
            let (first, last) = (number * SLOTS / NODES, (number + 1) * SLOTS / NODES - 1);
            let (first, last) = (first.to_string(), last.to_string());
            node.admin().execute(&["CLUSTER", "ADDSLOTSRANGE", &first, &last])?;
            for other in &cluster.nodes[number + 1..] {
                let (port, bus) = (other.address().port().to_string(), other.bus.number().to_string());
                node.admin().execute(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])?;
            }
        }
        cluster.wait_ready()?;
        Ok(cluster)
    }

    /// Returns `redis+cluster://127.0.0.1:A,127.0.0.1:B,...`, without user and password.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("{}://{}", self.nodes[0].options.scheme("+cluster"), addresses.join(","))
    }

    /// Returns the slot of a key.
    pub fn slot(&self, key: &str) -> Result<u16> {
        Ok(self.ask_all(&["CLUSTER", "KEYSLOT", key])?[0])
    }

    /// Returns the number, in [`nodes`](Self::nodes), of the primary that serves a slot; `None` while the running nodes disagree.
    pub fn owner(&self, slot: u16) -> Result<Option<usize>> {
        let owner_in = |list: &String| {
            let line = list.lines().find(|line| serves(line, slot))?;
            let address = line.split([' ', '@']).nth(1)?;
            self.nodes.iter().position(|node| node.address().to_string() == address)
        };
        let owners: Vec<_> = self.ask_all(&["CLUSTER", "NODES"])?.iter().map(owner_in).collect();
        Ok(owners[0].filter(|_| owners.iter().all(|owner| *owner == owners[0])))
    }

    /// Waits until every running node says that all slots are served.
    pub fn wait_ready(&self) -> Result<()> {
        wait_until("a cluster whose nodes serve all slots", || {
            let known = format!("cluster_known_nodes:{}\r\n", self.nodes.len());
            let serving = |info: &String| info.contains("cluster_state:ok\r\n") && info.contains(&known);
            // A known node may not be linked in both directions yet.
            let ready = self.ask_all(&["CLUSTER", "INFO"])?.iter().all(serving)
                && self
                    .ask_all::<String>(&["CLUSTER", "NODES"])?
                    .iter()
                    .all(|list| !list.contains("handshake"))
                && [0, 8_192, 16_383]
                    .into_iter()
                    .all(|slot| matches!(self.owner(slot), Ok(Some(_))));
            Ok(ready.then_some(()))
        })
    }

    /// Begins to move a slot to the node `to`: its owner answers `ASK` for keys that it does not have.
    pub fn begin_move(&self, slot: u16, to: usize) -> Result<()> {
        let (from, slot) = (self.source(slot, to)?, slot.to_string());
        self.nodes[to]
            .admin()
            .execute(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.id(from)?])?;
        self.nodes[from]
            .admin()
            .execute(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.id(to)?])
    }

    /// Moves the keys of a slot whose move has begun.
    pub fn move_keys(&self, slot: u16, to: usize) -> Result<()> {
        let port = self.nodes[to].address().port().to_string();
        let (from, slot) = (self.nodes[self.source(slot, to)?].admin(), slot.to_string());
        loop {
            let keys: Vec<Vec<u8>> = from.query(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"])?;
            if keys.is_empty() {
                return Ok(());
            }
            let mut migrate = redis::cmd("MIGRATE");
            migrate
                .arg(&["127.0.0.1", &port, "", "0", "5000", "AUTH2", ADMIN, ADMIN, "KEYS"])
                .arg(keys);
            migrate
                .query::<redis::Value>(&mut from.connection()?)
                .map_err(|source| Error::Redis {
                    command: "MIGRATE".to_owned(),
                    source,
                })?;
        }
    }

    /// Ends the move of a slot: its former owner answers `MOVED`. Waits until all nodes know the new one.
    pub fn finish_move(&self, slot: u16, to: usize) -> Result<()> {
        let (from, id) = (self.source(slot, to)?, self.id(to)?);
        // The new owner first: in the other order, no node would serve the slot for a moment.
        for node in [to, from] {
            self.nodes[node]
                .admin()
                .execute(&["CLUSTER", "SETSLOT", &slot.to_string(), "NODE", &id])?;
        }
        wait_until("nodes that know the new owner of a slot", || {
            Ok((self.owner(slot)? == Some(to)).then_some(()))
        })
    }

    /// Moves a slot with all its keys to the node `to`.
    pub fn move_slot(&self, slot: u16, to: usize) -> Result<()> {
        self.begin_move(slot, to)?;
        self.move_keys(slot, to)?;
        self.finish_move(slot, to)
    }

    fn source(&self, slot: u16, to: usize) -> Result<usize> {
        let owner = self.owner(slot)?;
        owner.filter(|from| *from != to).ok_or_else(|| {
            Error::Usage(format!(
                "slot {slot} cannot be moved to node {to}: its owner is {owner:?}"
            ))
        })
    }

    fn id(&self, node: usize) -> Result<String> {
        self.nodes[node].admin().query(&["CLUSTER", "MYID"])
    }

    /// Returns the answers of the running nodes that answer; at least one.
    fn ask_all<T: redis::FromRedisValue>(&self, words: &[&str]) -> Result<Vec<T>> {
        let (mut answers, mut failure) = (Vec::new(), Error::Usage("no node runs".to_owned()));
        for node in self.nodes.iter().filter(|node| node.is_running()) {
            match node.admin().query(words) {
                Ok(answer) => answers.push(answer),
                Err(error) => failure = error,
            }
        }
        if answers.is_empty() { Err(failure) } else { Ok(answers) }
    }
}

/// Returns whether a line of `CLUSTER NODES` is that of the primary of the slot. A failed primary keeps its slots in the list
/// until another one takes them.
fn serves(line: &str, slot: u16) -> bool {
    line.split(' ').skip(8).any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        // A slot that is on the move is listed as `[slot->-node]`.
        matches!((first.parse::<u16>(), last.parse::<u16>()), (Ok(first), Ok(last)) if (first..=last).contains(&slot))
    })
}
