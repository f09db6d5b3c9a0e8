//! The stores of this house, ready to be put to the test.
//!
//! A store whose promises depend on how it is run has set-ups: further columns of the report
//! (`RedisSetup`, for instance), each a [`Subject`](crate::Subject) that
//! [takes](crate::Subject::takes) the cases of the events in which it differs. Another store's go beside
//! its harness in the same way.

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
pub use etcd::{EtcdHarness, EtcdSetup, EtcdSubject};
#[cfg(feature = "memory")]
pub use memory::{MemoryHarness, MemorySubject};
#[cfg(feature = "postgres")]
pub use postgres::{PostgresHarness, PostgresSetup, PostgresSubject};
#[cfg(feature = "redis")]
pub use redis::{RedisHarness, RedisSetup, RedisSubject};
#[cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
use server::fresh_namespace;
