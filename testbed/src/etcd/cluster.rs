//! An etcd of three members.

use std::time::{Duration, Instant};

use super::{Binary, EtcdBuilder, EtcdServer, http_get};
use crate::error::{Error, Result};
use crate::ports::Port;
use crate::server::{launch_on_free_ports, on_a_thread};

/// How many members there are: the fewest of which one can be lost.
const MEMBERS: usize = 3;

/// How long a member is asked. One that is paused does not answer.
const ASKING: Duration = Duration::from_secs(1);

/// Options of an [`EtcdCluster`] that is not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct EtcdClusterBuilder {
    member: EtcdBuilder,
    election_timeout: Duration,
}

impl Default for EtcdClusterBuilder {
    fn default() -> Self {
        Self {
            member: EtcdBuilder::default(),
            election_timeout: Duration::from_secs(1),
        }
    }
}

impl EtcdClusterBuilder {
    /// The options of every member, but for its name, and without authentication.
    pub fn member(mut self, member: EtcdBuilder) -> Self {
        self.member = member;
        self
    }

    /// How long members hear nothing of their leader before they elect another; a second by default, as
    /// of etcd itself. Much less, and a busy machine looks like a dead leader. No lease is shorter
    /// than one and a half of it.
    pub fn election_timeout(mut self, timeout: Duration) -> Self {
        self.election_timeout = timeout;
        self
    }

    /// Starts the members and waits until each of them serves. Blocks the thread, normally for a
    /// second or two.
    ///
    /// # Errors
    ///
    /// As [`EtcdBuilder::start`].
    pub fn start(self) -> Result<EtcdCluster> {
        let binary = Binary::find(self.member.newer)?;
        launch_on_free_ports(|| self.launch(&binary))
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the start goes on in the background and its members are ended as
    /// soon as it is done.
    pub async fn start_async(self) -> Result<EtcdCluster> {
        on_a_thread("etcd", move || self.start()).await
    }

    fn launch(&self, binary: &Binary) -> Result<EtcdCluster> {
        let pick = || Ok([Port::pick()?, Port::pick()?, Port::pick()?]);
        let ports = (0..MEMBERS).map(|_| pick()).collect::<Result<Vec<_>>>()?;
        let name = |number: usize| format!("etcd-{}", number + 1);
        let peers = ports.iter().enumerate();
        let peers = peers.map(|(n, [_, peer, _])| format!("{}=http://{}", name(n), peer.address()));
        let peers = peers.collect::<Vec<_>>().join(",");
        let timeout = self.election_timeout.as_millis();
        let mut members = Vec::with_capacity(MEMBERS);
        for (number, ports) in ports.into_iter().enumerate() {
            let mut options = self
                .member
                .clone()
                .name(name(number))
                .arg(format!("--election-timeout={timeout}"))
                .arg(format!("--heartbeat-interval={}", timeout / 10));
            options.cluster = Some(peers.clone());
            options.root_password = None;
            members.push(EtcdServer::spawn(options, binary.clone(), ports)?);
        }
        // Only together do they serve.
        for member in &members {
            member.probe().wait()?;
        }
        Ok(EtcdCluster { members })
    }
}

/// An etcd of three members, one of which may be lost.
#[derive(Debug)]
pub struct EtcdCluster {
    /// The members, each to be killed, restarted, paused and asked as one alone.
    pub members: Vec<EtcdServer>,
}

impl EtcdCluster {
    /// Starts a cluster with the default options.
    ///
    /// # Errors
    ///
    /// As [`EtcdClusterBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`EtcdClusterBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> EtcdClusterBuilder {
        EtcdClusterBuilder::default()
    }

    /// The client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        self.members.iter().map(EtcdServer::endpoint).collect()
    }

    /// The number, in [`members`](Self::members), of the leader that a majority follows; `None` while there
    /// is none. Blocks the thread, for a second or two with a member that is paused.
    pub fn leader(&self) -> Option<usize> {
        self.ask().leader()
    }

    /// Waits until a majority follows another leader than `from`, and returns its number. Blocks the
    /// thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`].
    pub fn wait_for_leader_change(&self, from: usize, timeout: Duration) -> Result<usize> {
        self.ask().wait_for_change(from, timeout)
    }

    /// [`wait_for_leader_change`](Self::wait_for_leader_change) on a blocking thread of the tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// As [`wait_for_leader_change`](Self::wait_for_leader_change).
    ///
    /// # Cancel safety
    ///
    /// Nothing but the waiting is lost when the future is dropped.
    pub async fn wait_for_leader_change_async(
        &self,
        from: usize,
        timeout: Duration,
    ) -> Result<usize> {
        let ask = self.ask();
        on_a_thread("etcd", move || ask.wait_for_change(from, timeout)).await
    }

    fn ask(&self) -> Ask {
        let ports = self.members.iter().map(|member| member.metrics.number());
        Ask {
            metrics: ports.collect(),
        }
    }
}

/// What the members are asked, also from another thread.
struct Ask {
    metrics: Vec<u16>,
}

impl Ask {
    fn leader(&self) -> Option<usize> {
        // One whom nobody follows any more may not know it yet; but it is not healthy.
        let leads =
            |&port: &u16| believes_to_lead(port) && health(port).contains(r#""health":"true""#);
        self.metrics.iter().position(leads)
    }

    /// A line for each member.
    fn describe(&self) -> String {
        let line = |&port| {
            let role = if believes_to_lead(port) {
                "leader"
            } else {
                "no leader"
            };
            format!("\n{role}, {}", health(port))
        };
        self.metrics.iter().map(line).collect()
    }

    fn wait_for_change(&self, from: usize, timeout: Duration) -> Result<usize> {
        let start = Instant::now();
        loop {
            let leader = self.leader();
            match leader {
                Some(leader) if leader != from => return Ok(leader),
                _ if start.elapsed() > timeout => {
                    return Err(Error::TimedOut {
                        what: "another leader of etcd".to_owned(),
                        after: timeout,
                        seen: self.describe(),
                    });
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }
}

fn believes_to_lead(metrics: u16) -> bool {
    http_get(metrics, "/metrics", ASKING)
        .is_ok_and(|answer| answer.contains("\netcd_server_is_leader 1"))
}

/// What a member says of its health, which takes a read through the quorum.
fn health(metrics: u16) -> String {
    http_get(metrics, "/health", ASKING).unwrap_or_else(|error| error.to_string())
}
