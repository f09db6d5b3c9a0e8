//! Redis: one server, a pair, sentinels, a cluster.
//!
//! The program is `redis-server` (7.0 or later) from `PATH`, or the one that `TENURE_REDIS_SERVER` names.

mod admin;
mod clock;
mod cluster;
mod options;
mod pair;
mod sentinel;
mod server;
mod shared;

pub use admin::RedisAdmin;
pub use cluster::RedisCluster;
pub use options::RedisOptions;
pub use pair::RedisPair;
pub use sentinel::RedisSentinels;
pub use server::RedisServer;
pub(crate) use shared::REDIS_VARIABLE;
pub use shared::{SharedRedis, shared_redis};
