//! tenure over Redis 7.0 or later: one server, servers under Sentinel, or a cluster.
//!
//! Every step is one script, and every namespace lives in one slot. A store has one link: a connection for commands, one for
//! renewals and messages, and one for `WAIT` if the configuration asks for it. They are replaced together, and each link has
//! an epoch by which the scripts refuse what an older link still carries.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod admin;
mod backend;
mod barrier;
mod config;
mod connection;
mod error;
mod guarantees;
#[cfg(feature = "harness")]
mod harness;
mod key_value;
mod keys;
mod script;
mod session;
mod sweep;
mod wait_queue;
mod waiters;
mod work_queue;

pub use admin::{acl_rules, remove_namespace};
pub use backend::{RedisBackend, connect};
pub use config::RedisConfig;
#[cfg(feature = "harness")]
pub use harness::{RedisHarness, RedisSubject, check_keys};
