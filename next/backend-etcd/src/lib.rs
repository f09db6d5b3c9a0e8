//! tenure over etcd 3.4 or later: one member or a cluster.
//!
//! Each session has a lease and one key on it, whose revision is the session's fence: every write compares it. A session that has
//! lost the answer to a write moves the fence before it writes again, so that the lost request cannot arrive later. A watch only
//! says that a state may have changed; every decision is a linearizable read.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod admin;
mod backend;
mod barrier;
mod config;
mod connection;
mod error;
mod fence;
mod guarantees;
mod history;
mod key_value;
mod keys;
mod places;
mod session;
mod shared;
mod tokens;
mod txn;
mod wait_queue;

pub use admin::remove_namespace;
pub use backend::{EtcdBackend, connect};
pub use config::EtcdConfig;
