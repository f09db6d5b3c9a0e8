//! tenure over Redis: standalone, Sentinel and Cluster.
//!
//! Applications usually reach this crate through the facade: `tenure::connect("redis://...")` with the
//! feature `redis`. What Redis keeps for tenure, and what it can and cannot promise, is in
//! `docs/redis.md`.

mod acks;
mod client;
mod config;
mod endpoint;
mod error;
mod guarantees;
mod layout;
mod line;
mod locker;
mod rights;
mod scripts;
mod session;
mod step;
mod tls;
mod waits;

pub use config::RedisConfig;
pub use locker::RedisLocker;
pub use rights::acl_rules;
pub use session::{MAX_TTL, MIN_TTL, RedisBackend, RedisSession, connect};
