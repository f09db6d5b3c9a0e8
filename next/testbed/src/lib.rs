//! Real servers and a faulty network for the tests of tenure.
//!
//! * [`shared_redis`]: the one Redis of a whole test run; most tests need no other.
//! * [`RedisServer`]: a Redis of the test's own, to be killed, paused, restarted, restored and given another time.
//! * [`RedisPair`], [`RedisSentinels`], [`RedisCluster`]: a primary with a replica, alone or under three sentinels; three nodes
//!   with slots that move.
//! * [`shared_etcd`] and [`EtcdServer`]: the same for etcd, with one member.
//! * [`Proxy`]: a TCP proxy that holds, drops, cuts, refuses and counts.
//! * [`Certs`]: certificates, good and bad.
//!
//! ```no_run
//! use tenure_testbed::{Direction, Flow, Proxy, RedisOptions, RedisServer};
//!
//! # fn main() -> Result<(), tenure_testbed::Error> {
//! let redis = RedisServer::start(RedisOptions::default())?;
//! let proxy = Proxy::start(redis.address())?;
//! // ... connect a client to `proxy.address()`, acquire a lock ...
//! proxy.set(Direction::Answers, Flow::Drop); // the server's answers no longer arrive
//! redis.kill()?;
//! redis.restart()?; // same data, same port
//! let holders: u64 = redis.admin().query(&["ZCARD", "holders"])?;
//! # Ok(())
//! # }
//! ```
//!
//! # Nothing is left behind
//!
//! A watchdog beside the test process learns of every server before its first instruction. It kills the servers and removes their
//! folders when the test process ends, by whatever signal. Values that are never dropped, such as a `static`, are covered too.
//! `TENURE_TESTBED_KEEP=1` keeps the folders, with the logs in them.
//!
//! # Blocking
//!
//! All functions block the calling thread: a start for some 50 ms, others for less unless their documentation names a time. They
//! may be called in asynchronous code; a test whose runtime has to go on meanwhile calls them by `spawn_blocking`. All methods
//! take `&self`, so an `Arc` is enough for that. The proxy works on a thread of its own and never waits for the test.

#[cfg(not(target_os = "linux"))]
compile_error!("tenure-testbed needs Linux");

mod certs;
mod error;
mod etcd;
mod folder;
mod port;
mod process;
mod program;
mod proxy;
mod redis;
mod serve;
mod wait;
mod watchdog;

pub use crate::etcd::{EtcdAdmin, EtcdOptions, EtcdServer, SharedEtcd, shared_etcd};
pub use crate::redis::{
    RedisAdmin, RedisCluster, RedisOptions, RedisPair, RedisSentinels, RedisServer, SharedRedis, shared_redis,
};
pub use certs::{Certs, Identity, Tls};
pub use error::{Error, Result};
pub use proxy::{Direction, Fired, Flow, Proxy, Then, Traffic, When};
pub use serve::serve;
pub use wait::{unique_name, wait_until};
