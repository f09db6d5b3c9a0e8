//! Three sentinels that watch a primary and its replica.

use std::net::SocketAddr;
use std::time::Duration;

use super::replica::SENTINEL;
use super::resp::Control;
use super::{COMMAND, RedisBuilder, RedisReplica, RedisServer, on_a_thread, wait_until};
use crate::error::Result;

/// Options of [`RedisSentinels`] that are not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct RedisSentinelsBuilder {
    service: String,
    down_after: Duration,
    failover_timeout: Duration,
    sentinel: RedisBuilder,
}

impl Default for RedisSentinelsBuilder {
    fn default() -> Self {
        Self {
            service: "tenure".to_owned(),
            down_after: Duration::from_secs(2),
            failover_timeout: Duration::from_secs(5),
            sentinel: RedisBuilder::default(),
        }
    }
}

impl RedisSentinelsBuilder {
    /// The name under which clients ask for the primary; `tenure` by default.
    pub fn service(mut self, service: impl Into<String>) -> Self {
        self.service = service.into();
        self
    }

    /// How long a server is silent before a sentinel takes it for dead; two seconds by default. Much
    /// less, and a busy machine looks like a dead server.
    pub fn down_after(mut self, down_after: Duration) -> Self {
        self.down_after = down_after;
        self
    }

    /// How long a failover may take before it is tried again; five seconds by default.
    pub fn failover_timeout(mut self, timeout: Duration) -> Self {
        self.failover_timeout = timeout;
        self
    }

    /// Users and passwords of the sentinels themselves.
    pub fn sentinel(mut self, sentinel: RedisBuilder) -> Self {
        self.sentinel = sentinel;
        self
    }

    /// Starts three sentinels over the pair (with its TLS, if it has some) and waits until they know
    /// of each other and of the replica. Blocks the thread, normally for some three seconds.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::start`]; [`Error::TimedOut`](crate::Error::TimedOut) when they do not
    /// find each other.
    pub fn start(self, pair: &RedisReplica) -> Result<RedisSentinels> {
        self.watching(pair).start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the start goes on in the background and its sentinels are ended
    /// as soon as it is done.
    pub async fn start_async(self, pair: &RedisReplica) -> Result<RedisSentinels> {
        let start = self.watching(pair);
        on_a_thread(move || start.start()).await
    }

    fn watching(self, pair: &RedisReplica) -> Start {
        let (service, port) = (&self.service, pair.primary.port());
        let mut options = self.sentinel;
        options.sentinel = true;
        options.tls.clone_from(&pair.primary.options.tls);
        let (down, failover) = (
            self.down_after.as_millis(),
            self.failover_timeout.as_millis(),
        );
        let options = options
            .line(format!("sentinel monitor {service} 127.0.0.1 {port} 2"))
            .line(format!("sentinel auth-user {service} {SENTINEL}"))
            .line(format!("sentinel auth-pass {service} {SENTINEL}"))
            .line(format!("sentinel down-after-milliseconds {service} {down}"))
            .line(format!("sentinel failover-timeout {service} {failover}"));
        Start {
            options,
            service: self.service,
        }
    }
}

/// All that the start needs to know, without the pair.
struct Start {
    options: RedisBuilder,
    service: String,
}

impl Start {
    fn start(self) -> Result<RedisSentinels> {
        let sentinels = (0..3).map(|_| self.options.clone().start());
        let sentinels = RedisSentinels {
            sentinels: sentinels.collect::<Result<_>>()?,
            service: self.service,
        };
        sentinels.ask().wait_ready()?;
        Ok(sentinels)
    }
}

/// Three sentinels that watch a [`RedisReplica`]: when its primary dies they promote the replica.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The sentinels, each to be killed, paused and asked as any other server.
    pub sentinels: Vec<RedisServer>,
    service: String,
}

impl RedisSentinels {
    /// Starts sentinels with the default options over the pair.
    ///
    /// # Errors
    ///
    /// As [`RedisSentinelsBuilder::start`].
    pub fn start(pair: &RedisReplica) -> Result<Self> {
        Self::builder().start(pair)
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`RedisSentinelsBuilder::start`].
    pub async fn start_async(pair: &RedisReplica) -> Result<Self> {
        Self::builder().start_async(pair).await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> RedisSentinelsBuilder {
        RedisSentinelsBuilder::default()
    }

    /// The name under which clients ask for the primary.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// `redis+sentinel://127.0.0.1:A,127.0.0.1:B,127.0.0.1:C/SERVICE`, without user and password.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self
            .sentinels
            .iter()
            .map(|s| s.address().to_string())
            .collect();
        let scheme = self.sentinels[0].options.scheme("+sentinel");
        format!("{scheme}://{}/{}", addresses.join(","), self.service)
    }

    /// Where most of the sentinels say that the primary is; `None` while they disagree.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`](crate::Error::Reply) when none of them answers.
    pub fn primary(&self) -> Result<Option<SocketAddr>> {
        self.ask().primary()
    }

    /// Waits until most sentinels name another primary than `from`, and returns it. It serves as a
    /// primary then. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`](crate::Error::TimedOut).
    pub fn wait_for_primary_change(
        &self,
        from: SocketAddr,
        timeout: Duration,
    ) -> Result<SocketAddr> {
        self.ask().wait_for_change(from, timeout)
    }

    /// [`wait_for_primary_change`](Self::wait_for_primary_change) on a blocking thread of the tokio
    /// runtime.
    ///
    /// # Errors
    ///
    /// As [`wait_for_primary_change`](Self::wait_for_primary_change).
    ///
    /// # Cancel safety
    ///
    /// Nothing but the waiting is lost when the future is dropped.
    pub async fn wait_for_primary_change_async(
        &self,
        from: SocketAddr,
        timeout: Duration,
    ) -> Result<SocketAddr> {
        let ask = self.ask();
        on_a_thread(move || ask.wait_for_change(from, timeout)).await
    }

    fn ask(&self) -> Ask {
        Ask {
            sentinels: self.sentinels.iter().map(RedisServer::control).collect(),
            service: self.service.clone(),
        }
    }
}

/// What the sentinels are asked, also from another thread.
struct Ask {
    sentinels: Vec<Control>,
    service: String,
}

impl Ask {
    fn wait_ready(&self) -> Result<()> {
        let what = "sentinels that know each other and the replica";
        wait_until(what, Duration::from_secs(30), || {
            for sentinel in &self.sentinels {
                let state = sentinel.command(&["SENTINEL", "MASTER", &self.service], COMMAND)?;
                let field = |name: &str| {
                    let mut lines = state.lines().skip_while(|&line| line != name);
                    lines.nth(1).map(str::to_owned)
                };
                let others = self.sentinels.len() - 1;
                let known = field("num-other-sentinels") == Some(others.to_string())
                    && field("num-slaves").as_deref() == Some("1")
                    && field("flags").as_deref() == Some("master");
                if !known {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    fn primary(&self) -> Result<Option<SocketAddr>> {
        let args = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", &self.service];
        let mut named = Vec::new();
        let mut failed = None;
        for sentinel in &self.sentinels {
            match sentinel.command(&args, COMMAND) {
                Ok(answer) => named.extend(answer.replace('\n', ":").parse::<SocketAddr>()),
                Err(error) => failed = Some(error),
            }
        }
        let most = self.sentinels.len() / 2 + 1;
        let primary = named
            .iter()
            .find(|&one| named.iter().filter(|&other| other == one).count() >= most);
        match (primary, failed) {
            (Some(&primary), _) => Ok(Some(primary)),
            (None, Some(error)) if named.is_empty() => Err(error),
            _ => Ok(None),
        }
    }

    /// Sentinels name the new primary only once it is one: they switch when its `INFO` says so.
    fn wait_for_change(&self, from: SocketAddr, timeout: Duration) -> Result<SocketAddr> {
        wait_until("a failover", timeout, || {
            Ok(self.primary()?.filter(|&primary| primary != from))
        })
    }
}
