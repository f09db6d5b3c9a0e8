#![cfg_attr(docsrs, feature(doc_cfg))]
//! Distributed locks, elections, read-write locks, queues, barriers and transactional memory, each held under a lease and
//! stamped with a fencing token, behind one API for every store.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tenure::Result<()> {
//! use tenure::SessionOptions;
//!
//! let store = tenure::connect("memory:").await?;
//! store.with_session(SessionOptions::new(), async |session| {
//!     let guard = session.lock("orders").await?;
//!     // Charge the order, and pass guard.token() to the resource.
//!     guard.release().await
//! }).await
//! # }
//! ```
//!
//! # Stores
//!
//! | feature | URL |
//! |---|---|
//! | `memory` (default) | `memory:` (private), `memory:shared-name` (shared in this process) |
//! | `redis` | `redis://host:port`, `redis+sentinel://host:port,host:port/service-name`, `redis+cluster://host:port,host:port`; with TLS `rediss...` |
//!
//! Every URL takes `?namespace=`, `?ttl=` and `?client_label=`. [`connect`] chooses the store by the URL's scheme, [`connect_with`] adds options
//! such as credentials, and [`Connector`] adds schemes of other stores.
//!
//! # Without `async`
//!
//! The feature `blocking` adds the module `blocking`, for programs without async code.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

#[cfg(feature = "blocking")]
#[cfg_attr(docsrs, doc(cfg(feature = "blocking")))]
pub mod blocking;

mod connect;

pub use connect::{Connector, connect, connect_with};
// Calls of the primitives return these.
pub use tenure_core::backend::{Leader, LeaderUpdate, PeekedItem, QueueDepth};
pub use tenure_core::*;

#[cfg(feature = "memory")]
#[cfg_attr(docsrs, doc(cfg(feature = "memory")))]
pub use tenure_memory as memory;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub use tenure_redis as redis;

/// The example of README.md is compiled and run with the tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
