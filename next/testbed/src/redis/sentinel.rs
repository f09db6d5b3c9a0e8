//! Three sentinels that watch a pair.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::options::{Part, RedisOptions};
use super::pair::{RedisPair, SENTINEL};
use super::server::RedisServer;
use crate::error::Result;
use crate::wait::wait_until;

/// The name by which clients ask for the primary.
const SERVICE: &str = "tenure";

/// A pair with three sentinels, which promote the replica when the primary is silent for two seconds.
///
/// A failover to a replica that lags: [`stop_replication`](RedisPair::stop_replication), write, kill the primary,
/// [`wait_for_failover`](Self::wait_for_failover).
///
/// Methods fail with [`Error::NotSeen`](crate::Error::NotSeen) when the sentinels do not come to agree.
#[derive(Debug)]
pub struct RedisSentinels {
    /// The sentinels, which can be killed, paused and asked as any server.
    pub sentinels: Vec<RedisServer>,
    /// The servers that they watch.
    pub pair: RedisPair,
}

impl RedisSentinels {
    /// Starts the pair with these options, then the sentinels (with the TLS of the options), and waits until the sentinels know
    /// each other and the replica: some three seconds.
    pub fn start(options: RedisOptions) -> Result<Self> {
        Self::start_with(options, RedisOptions::default())
    }

    /// As [`start`](Self::start), with users and passwords of the sentinels themselves.
    pub fn start_with(options: RedisOptions, mut sentinel: RedisOptions) -> Result<Self> {
        let pair = RedisPair::start(options)?;
        sentinel.tls.clone_from(&pair.primary.options.tls);
        let sentinel = sentinel
            .part(Part::Sentinel)
            .line(format!(
                "sentinel monitor {SERVICE} 127.0.0.1 {} 2",
                pair.primary.address().port()
            ))
            .line(format!("sentinel auth-user {SERVICE} {SENTINEL}"))
            .line(format!("sentinel auth-pass {SERVICE} {SENTINEL}"))
            // Much less, and a primary on a busy machine looks dead.
            .line(format!("sentinel down-after-milliseconds {SERVICE} 2000"))
            .line(format!("sentinel failover-timeout {SERVICE} 5000"));
        let sentinels = (0..3)
            .map(|_| RedisServer::start(sentinel.clone()))
            .collect::<Result<_>>()?;
        let started = Self { sentinels, pair };
        started.wait_ready()?;
        Ok(started)
    }

    /// Returns `redis+sentinel://127.0.0.1:A,127.0.0.1:B,127.0.0.1:C/tenure`, without user and password.
    pub fn url(&self) -> String {
        let addresses: Vec<String> = self
            .sentinels
            .iter()
            .map(|sentinel| sentinel.address().to_string())
            .collect();
        format!(
            "{}://{}/{SERVICE}",
            self.pair.primary.options.scheme("+sentinel"),
            addresses.join(",")
        )
    }

    /// Returns the primary that a majority of the sentinels names; `None` while there is no majority.
    pub fn primary(&self) -> Option<SocketAddr> {
        let named = |sentinel: &RedisServer| {
            let words = ["SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE];
            let (host, port): (String, String) = sentinel.admin().query(&words).ok()?;
            format!("{host}:{port}").parse().ok()
        };
        let mut votes = HashMap::new();
        for primary in self
            .sentinels
            .iter()
            .filter(|sentinel| sentinel.is_running())
            .filter_map(named)
        {
            *votes.entry(primary).or_insert(0) += 1;
        }
        votes
            .into_iter()
            .find(|(_, votes)| *votes * 2 > self.sentinels.len())
            .map(|(primary, _)| primary)
    }

    /// Waits until a majority of the sentinels names another primary than `from`, and returns it. It serves as a primary then.
    pub fn wait_for_failover(&self, from: SocketAddr) -> Result<SocketAddr> {
        // They name it when its `INFO` says that it is a primary.
        wait_until("another primary", || {
            Ok(self.primary().filter(|primary| *primary != from))
        })
    }

    fn wait_ready(&self) -> Result<()> {
        wait_until("sentinels that know each other and the replica", || {
            for sentinel in &self.sentinels {
                let state: HashMap<String, String> = sentinel.admin().query(&["SENTINEL", "MASTER", SERVICE])?;
                let is = |field, value| state.get(field).is_some_and(|found| found == value);
                if !(is("num-other-sentinels", "2") && is("num-slaves", "1") && is("flags", "master")) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }
}
