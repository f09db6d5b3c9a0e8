//! A primary and its streaming standby, with a network between them that can fail.

use std::time::Duration;

use super::{Origin, PostgresBuilder, PostgresServer, SQL, literal, on_a_thread, wait_until, wire};
use crate::error::Result;
use crate::proxy::{Direction, Flow, Proxy};

/// The standby's name, by which its primary knows it.
const STANDBY: &str = "standby";

/// What makes a server follow the one behind the proxy on this port.
pub(super) fn follow(port: u16) -> String {
    let primary = format!(
        "host=127.0.0.1 port={port} user={} application_name={STANDBY}",
        wire::ADMIN
    );
    format!("primary_conninfo = {}", literal(&primary))
}

/// Options of a [`PostgresReplica`] that is not yet started.
#[derive(Debug, Clone, Default)]
#[must_use = "a builder does nothing until it is started"]
pub struct PostgresReplicaBuilder {
    server: PostgresBuilder,
    synchronous: bool,
}

impl PostgresReplicaBuilder {
    /// The options of both servers.
    pub fn server(mut self, server: PostgresBuilder) -> Self {
        self.server = server;
        self
    }

    /// Whether the primary acknowledges nothing that the standby does not have on its disk. Off by
    /// default, as in PostgreSQL.
    pub fn synchronous(mut self, synchronous: bool) -> Self {
        self.synchronous = synchronous;
        self
    }

    /// Starts both servers and waits until the standby has all that the primary has. Blocks the thread,
    /// normally for two seconds.
    ///
    /// # Errors
    ///
    /// As [`PostgresBuilder::start`]; [`Error::TimedOut`](crate::Error::TimedOut) when the standby does
    /// not follow.
    pub fn start(self) -> Result<PostgresReplica> {
        // A standby that was away for a while can go on.
        let server = self.server.setting("wal_keep_size", "128MB");
        let primary = server.clone().start()?;
        let network = Proxy::start(primary.address())?;
        let standby = server.launch_on_a_free_port(&Origin::CopyOf(&primary, network.port()))?;
        let pair = PostgresReplica {
            primary,
            standby,
            network,
        };
        pair.wait_in_sync()?;
        if self.synchronous {
            pair.set_synchronous(true)?;
        }
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
    pub async fn start_async(self) -> Result<PostgresReplica> {
        on_a_thread(move || self.start()).await
    }
}

/// A primary, and a standby that reaches it through a [`Proxy`].
#[derive(Debug)]
pub struct PostgresReplica {
    /// The server that was the primary at the start.
    pub primary: PostgresServer,
    /// The server that was the standby at the start: read-only until it is
    /// [promoted](Self::promote).
    pub standby: PostgresServer,
    network: Proxy,
}

impl PostgresReplica {
    /// Starts a pair with the default options: an asynchronous standby.
    ///
    /// # Errors
    ///
    /// As [`PostgresReplicaBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`PostgresReplicaBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> PostgresReplicaBuilder {
        PostgresReplicaBuilder::default()
    }

    /// The proxy between the two, for other faults than those below. Up is from the standby.
    pub fn network(&self) -> &Proxy {
        &self.network
    }

    /// From now on nothing that the primary writes reaches the standby, and nothing that the standby
    /// acknowledges the primary; neither of them notices for a minute.
    pub fn cut_replication(&self) {
        self.network.silence();
    }

    /// What was lost is replicated after all: the standby connects again.
    pub fn heal_replication(&self) {
        self.network.heal();
        self.network.cut();
    }

    /// Delays what the primary writes on its way to the standby.
    pub fn delay_replication(&self, delay: Duration) {
        self.network.set(Direction::Down, Flow::Delay(delay));
    }

    /// Changes whether the primary waits for the standby. Blocks the thread until it is so.
    ///
    /// # Errors
    ///
    /// As [`PostgresServer::sql`]; [`Error::TimedOut`](crate::Error::TimedOut) when the standby does not
    /// follow.
    pub fn set_synchronous(&self, synchronous: bool) -> Result<()> {
        let (names, wanted) = match synchronous {
            true => (STANDBY, "sync"),
            false => ("", "async"),
        };
        self.primary.set("synchronous_standby_names", names)?;
        wait_until("a standby in its new part", SQL, || {
            let state = self
                .primary
                .sql("SELECT sync_state FROM pg_stat_replication")?;
            Ok((state == wanted).then_some(()))
        })
    }

    /// Makes the standby a primary, as an operator does. The other one goes on if it still runs. Blocks
    /// the thread until the standby can be written to.
    ///
    /// # Errors
    ///
    /// As [`PostgresServer::sql`].
    pub fn promote(&self) -> Result<()> {
        self.standby.sql("SELECT pg_promote()")?;
        wait_until("a standby that can be written to", SQL, || {
            let still = self.standby.sql("SELECT pg_is_in_recovery()")?;
            Ok((still == "f").then_some(()))
        })
    }

    /// Waits until the standby has all that the primary has written so far. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`](crate::Error::TimedOut) after 30 seconds.
    pub fn wait_in_sync(&self) -> Result<()> {
        // Writes something, so that all before it is on the disk: that is where the log ends.
        let mark = "SET synchronous_commit = local; SELECT txid_current()";
        self.primary.sql(mark)?;
        let written = self.primary.sql("SELECT pg_current_wal_flush_lsn()")?;
        let has_it = format!("SELECT pg_last_wal_replay_lsn() >= {}", literal(&written));
        wait_until("a standby that has what its primary has", SQL, || {
            // Asked of the primary, too: the copy that it starts from may have been the newest.
            let follows = self
                .primary
                .sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'")?;
            let has_it = self.standby.sql(&has_it)?;
            Ok((follows != "0" && has_it == "t").then_some(()))
        })
    }
}
