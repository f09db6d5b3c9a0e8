//! A primary and its replica, with a network between them that can fail.

use super::admin::RedisAdmin;
use super::options::RedisOptions;
use super::server::RedisServer;
use crate::error::Result;
use crate::proxy::Proxy;
use crate::wait::wait_until;

/// The user of the sentinels on the servers.
pub(super) const SENTINEL: &str = "sentinel";

/// All that a sentinel needs on a replica, except the right to point it at another primary, past the proxy. It may promote it.
const REPLICA_RULES: &str = "on >sentinel &* +slaveof|no +multi +exec +ping +info +role +publish +subscribe +config|rewrite \
                             +client +script|kill";

/// A primary, and a replica that reaches it through a [`Proxy`].
///
/// A paused replica is not enough to keep a write from it: the bytes wait in its socket and are read when it goes on.
/// [`stop_replication`](Self::stop_replication) loses them.
///
/// Methods fail with [`Error::Redis`](crate::Error::Redis) when a server refuses, and with
/// [`Error::NotSeen`](crate::Error::NotSeen) when the replica does not follow.
#[derive(Debug)]
pub struct RedisPair {
    /// The server that is the primary at the start.
    pub primary: RedisServer,
    /// The server that is the replica at the start.
    pub replica: RedisServer,
    network: Proxy,
}

impl RedisPair {
    /// Starts both servers with these options and waits until the replica has all that the primary has: some 200 ms.
    pub fn start(options: RedisOptions) -> Result<Self> {
        let primary = RedisServer::start(options.clone().user(SENTINEL, "on >sentinel &* +@all"))?;
        let network = Proxy::start(primary.address())?;
        let follow = format!("replicaof 127.0.0.1 {}", network.address().port());
        let replica = RedisServer::start(options.user(SENTINEL, REPLICA_RULES).line(follow))?;
        let pair = Self {
            primary,
            replica,
            network,
        };
        pair.wait_in_sync()?;
        Ok(pair)
    }

    /// The proxy between the two, for further faults. Requests are those of the replica.
    pub fn network(&self) -> &Proxy {
        &self.network
    }

    /// From now on no write reaches the replica, and no acknowledgement the primary. Neither notices for a minute.
    pub fn stop_replication(&self) {
        self.network.silence();
    }

    /// Lets the replica connect again and receive the writes that it missed.
    pub fn resume_replication(&self) {
        self.network.heal();
    }

    /// Makes the replica a primary, as an operator does. The other one goes on if it runs.
    pub fn promote(&self) -> Result<()> {
        self.replica.admin().execute(&["REPLICAOF", "NO", "ONE"])
    }

    /// Waits until the replica has all that the primary has written before the call.
    pub fn wait_in_sync(&self) -> Result<()> {
        let (primary, replica) = (self.primary.admin(), self.replica.admin());
        let offset = |admin: &RedisAdmin, field| Ok(admin.info(field)?.and_then(|value| value.parse::<u64>().ok()));
        let written = offset(primary, "master_repl_offset")?;
        wait_until("a replica that has all that its primary has", || {
            let linked = replica.info("master_link_status")?.as_deref() == Some("up");
            Ok((linked && offset(replica, "slave_repl_offset")? >= written).then_some(()))
        })
    }
}
