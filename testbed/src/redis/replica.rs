//! A primary and its replica, with a network between them that can fail.

use std::time::Duration;

use super::resp::Control;
use super::{COMMAND, RedisBuilder, RedisServer, on_a_thread, wait_until};
use crate::error::{Error, Result};
use crate::proxy::{Direction, Flow, Proxy};

/// The user that sentinels work as.
pub(super) const SENTINEL: &str = "sentinel";

/// All that a sentinel needs of a replica, but not to point it at another primary: it would bypass
/// the proxy. It may still be promoted.
const REPLICA_RULES: &str = "on >sentinel &* +slaveof|no +multi +exec +ping +info +role +publish \
                             +subscribe +config|rewrite +client +script|kill";

/// Options of a [`RedisReplica`] that is not yet started.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct RedisReplicaBuilder {
    server: RedisBuilder,
}

impl RedisReplicaBuilder {
    /// The options of both servers.
    pub fn server(mut self, server: RedisBuilder) -> Self {
        self.server = server;
        self
    }

    /// Starts both servers and waits until the replica has all that the primary has. Blocks the
    /// thread, normally for some 200 ms.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::start`]; [`Error::TimedOut`] when the replica does not follow.
    pub fn start(self) -> Result<RedisReplica> {
        let primary = self
            .server
            .clone()
            .user(SENTINEL, "on >sentinel &* +@all")
            .start()?;
        let network = Proxy::start(primary.address())?;
        let replica = self
            .server
            .user(SENTINEL, REPLICA_RULES)
            .line(format!("replicaof 127.0.0.1 {}", network.port()))
            .start()?;
        let pair = RedisReplica {
            primary,
            replica,
            network,
        };
        pair.wait_in_sync()?;
        Ok(pair)
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the start goes on in the background and its servers are ended as
    /// soon as it is done.
    pub async fn start_async(self) -> Result<RedisReplica> {
        on_a_thread(move || self.start()).await
    }
}

/// A primary, and a replica that reaches it through a [`Proxy`].
///
/// Pausing the replica is not enough to keep a write from it: what the primary sends waits in the
/// replica's socket and is read as soon as it is continued. [`cut_replication`] swallows it.
///
/// [`cut_replication`]: Self::cut_replication
#[derive(Debug)]
pub struct RedisReplica {
    /// The server that was the primary at the start.
    pub primary: RedisServer,
    /// The server that was the replica at the start.
    pub replica: RedisServer,
    network: Proxy,
}

impl RedisReplica {
    /// Starts a pair with the default options.
    ///
    /// # Errors
    ///
    /// As [`RedisReplicaBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`RedisReplicaBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> RedisReplicaBuilder {
        RedisReplicaBuilder::default()
    }

    /// The proxy between the two, for other faults than those below. Up is from the replica.
    pub fn network(&self) -> &Proxy {
        &self.network
    }

    /// From now on nothing that the primary writes reaches the replica, and nothing that the replica
    /// acknowledges the primary; neither of them notices for a minute.
    pub fn cut_replication(&self) {
        self.network.silence();
    }

    /// What was lost is replicated after all: the replica connects again.
    pub fn heal_replication(&self) {
        self.network.heal();
    }

    /// Delays what the primary writes on its way to the replica.
    pub fn delay_replication(&self, delay: Duration) {
        self.network.set(Direction::Down, Flow::Delay(delay));
    }

    /// Makes the replica a primary by hand, as an operator or a sentinel does. The other one goes on
    /// if it still runs.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] or [`Error::Io`].
    pub fn promote(&self) -> Result<()> {
        self.replica.command(&["REPLICAOF", "NO", "ONE"]).map(drop)
    }

    /// Waits until the replica has all that the primary has written so far. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] after 30 seconds.
    pub fn wait_in_sync(&self) -> Result<()> {
        self.follow().wait()
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
    pub async fn wait_in_sync_async(&self) -> Result<()> {
        let follow = self.follow();
        on_a_thread(move || follow.wait()).await
    }

    fn follow(&self) -> Follow {
        Follow {
            primary: self.primary.control(),
            replica: self.replica.control(),
        }
    }
}

/// A replica that is to catch up with its primary.
pub(super) struct Follow {
    pub(super) primary: Control,
    pub(super) replica: Control,
}

impl Follow {
    pub(super) fn wait(&self) -> Result<()> {
        let written = offset(&self.primary, "master_repl_offset")?;
        wait_until(
            "a replica that has what its primary has",
            Duration::from_secs(30),
            || {
                let linked = self.replica.info("master_link_status")?.as_deref() == Some("up");
                let behind = offset(&self.replica, "slave_repl_offset")? < written;
                Ok((linked && !behind).then_some(()))
            },
        )
    }
}

fn offset(control: &Control, field: &str) -> Result<u64> {
    let info = control.command(&["INFO", "replication"], COMMAND)?;
    info.lines()
        .find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')?
                .trim_end()
                .parse()
                .ok()
        })
        .ok_or_else(|| Error::Config(format!("no `{field}`: {info}")))
}
