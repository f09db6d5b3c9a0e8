//! Real servers, a faulty network and lock-holder processes for the tests of tenure.
//!
//! * [`etcd`]: a real etcd as a child process, alone or as a cluster, which can be killed, restarted and
//!   paused.
//! * [`redis`]: a real Redis, alone, with a replica, under sentinels or as a cluster.
//! * [`postgres`]: a real PostgreSQL, alone or with a streaming standby.
//! * [`proxy`]: a TCP proxy that delays, holds, swallows, cuts and refuses.
//! * [`holder`]: a process that takes locks as a test tells it, to be paused and killed.
//! * [`process`]: a child process that a test talks to line by line, pauses and kills.
//! * `certs` (feature `tls`): throw-away certificates, good and bad.
//!
//! ```no_run
//! use tenure_testbed::{Direction, EtcdServer, Flow, Proxy};
//!
//! # fn main() -> Result<(), tenure_testbed::Error> {
//! let mut etcd = EtcdServer::start()?;
//! let proxy = Proxy::start(etcd.address())?;
//! // ... connect a client to `proxy.address()`, take a lock ...
//! proxy.set(Direction::Down, Flow::Drop); // the server's answers no longer arrive
//! etcd.kill()?;
//! etcd.restart()?; // same data, same port
//! # Ok(())
//! # }
//! ```
//!
//! # What is left behind
//!
//! Nothing. Next to every server and every [`Process`] runs a watchdog that sees this process end,
//! by whatever signal, kills the server and removes its folder; values that are never dropped
//! (a server in a `static`) are covered as well. Set `TENURE_TESTBED_KEEP=1` to keep the folders,
//! with the servers' logs in them.
//!
//! # Blocking
//!
//! Everything here may be called from a synchronous test and from an asynchronous one. Methods
//! that wait for a process block the calling thread; each of those that can take longer than a few
//! milliseconds has an `_async` twin for tests whose runtime has to go on (a session that must stay
//! alive while a server restarts). The proxy runs on a thread of its own, so that a blocked runtime
//! never slows it, and its methods return within microseconds.

#[cfg(not(unix))]
compile_error!("tenure-testbed needs Unix: it works with signals, process groups and `sh`");

#[cfg(feature = "tls")]
pub mod certs;
mod error;
pub mod etcd;
pub mod holder;
mod output;
mod ports;
pub mod postgres;
pub mod process;
mod programs;
pub mod proxy;
mod reaper;
pub mod redis;
mod server;
mod tls;

#[cfg(feature = "tls")]
pub use certs::Certs;
pub use error::{Error, Result};
pub use etcd::{EtcdBuilder, EtcdCluster, EtcdClusterBuilder, EtcdServer};
pub use holder::Holder;
pub use output::{output_with_input, output_within, patience};
pub use postgres::{PostgresBuilder, PostgresReplica, PostgresReplicaBuilder, PostgresServer};
pub use process::Process;
pub use proxy::{Direction, Flow, Proxy, Trigger};
pub use redis::{
    RedisBuilder, RedisCluster, RedisClusterBuilder, RedisReplica, RedisReplicaBuilder,
    RedisSentinels, RedisSentinelsBuilder, RedisServer,
};
pub use rustix::process::Signal;
pub use tls::{Identity, Tls};
