//! The stores of this house, ready to be put to the test.

#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "postgres")]
mod postgres;
#[cfg(feature = "redis")]
mod redis;
#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
mod server;

#[cfg(feature = "etcd")]
pub use etcd::{EtcdHarness, EtcdSubject};
#[cfg(feature = "memory")]
pub use memory::{MemoryHarness, MemorySubject};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresHarness, PostgresSubject};
#[cfg(feature = "redis")]
pub use redis::{RedisHarness, RedisSubject};
#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
use server::{fresh_namespace, testbed};
