//! tenure over etcd: the reference implementation.
//!
//! A lock is a key under the lock's prefix, attached to the session's lease; the lowest create
//! revision holds it and is the fencing token. That is the layout of Go's `concurrency` package
//! and of `etcdctl lock`; with `interop` ([`EtcdConfig::interop`]) names are taken verbatim and
//! locks are shared with both. Elections likewise, with `etcdctl elect`.
//!
//! ```no_run
//! # async fn example() -> tenure_core::Result<()> {
//! use tenure_core::SessionOptions;
//! use tenure_etcd::EtcdConfig;
//!
//! let store = tenure_etcd::connect(EtcdConfig::new(["127.0.0.1:2379"])).await?;
//! let session = store.open(SessionOptions::new()).await?; // Session<EtcdSession>
//! let guard = session.locker("orders")?.lock().await?;
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! The sessions of one [`connect`] share a connection and a watch stream. TLS is rustls with ring.
//! The facts about etcd that this crate rests on are in `docs/etcd.md`.

mod barrier;
mod bell;
mod client;
mod config;
mod election;
mod error;
mod feed;
mod floor;
mod guarantees;
mod history;
mod layout;
mod line;
mod locker;
mod queue;
mod removal;
mod rw_lock;
mod session;
mod sides;
mod standing;
mod stm;
mod ticket;
mod watcher;

pub use barrier::EtcdBarrier;
pub use config::EtcdConfig;
pub use election::EtcdElection;
pub use locker::EtcdLocker;
pub use queue::EtcdQueue;
pub use removal::remove_namespace;
pub use rw_lock::EtcdRwLock;
pub use session::{EtcdBackend, EtcdSession};
pub use stm::EtcdStm;

use tenure_core::{Result, Store};

/// Connects to the etcd that `config` describes.
///
/// # Errors
///
/// `Unavailable` when no endpoint answers, `Unauthorized` for wrong credentials or a certificate
/// that is not trusted, `Config` for unreadable certificate files or a namespace written by
/// another version of the layout.
///
/// # Cancel safety
///
/// Cancel safe.
///
/// # Panics
///
/// Outside a tokio runtime.
pub async fn connect(config: EtcdConfig) -> Result<Store<EtcdBackend>> {
    EtcdBackend::connect(config).await.map(Store::new)
}
