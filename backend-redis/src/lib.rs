//! tenure over Redis: standalone, Sentinel and Cluster.
//!
//! Applications usually reach this crate through the facade: `tenure::connect("redis://...")` with the
//! feature `redis`. What Redis keeps for tenure, and what it can and cannot promise, is in
//! `docs/redis.md`.

mod acks;
mod barrier;
mod client;
mod config;
mod election;
mod endpoint;
mod error;
mod guarantees;
mod index;
mod layout;
mod line;
mod locker;
mod queue;
mod removal;
mod rights;
mod rw_lock;
mod scripts;
mod session;
mod step;
mod stm;
mod tls;
mod waits;

pub use barrier::RedisBarrier;
pub use config::RedisConfig;
pub use election::RedisElection;
pub use locker::RedisLocker;
pub use queue::{MAX_BATCH_BYTES, RedisQueue};
pub use removal::remove_namespace;
pub use rights::acl_rules;
pub use rw_lock::RedisRwLock;
pub use session::{MAX_TTL, MIN_TTL, RedisBackend, RedisSession, connect};
pub use stm::RedisStm;
