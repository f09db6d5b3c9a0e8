//! tenure over PostgreSQL: advisory locks with leases that the server enforces.
//!
//! Applications usually reach this crate through the facade: `tenure::connect("postgres://...")` with
//! the feature `postgres`. What PostgreSQL keeps for tenure, and what it can and cannot promise, is in
//! `docs/postgres.md`.
//!
//! A session is a connection with `idle_session_timeout`: the server ends it when it is silent for the TTL,
//! and frees what it held. The first store that connects creates the schema `tenure`; where it may not,
//! [`migration`] and [`grants`] say what to run for it.
//!
//! ```no_run
//! # async fn connected() -> tenure_core::Result<()> {
//! use tenure_core::SessionOptions;
//! use tenure_postgres::PostgresConfig;
//!
//! let store = tenure_postgres::connect(PostgresConfig::new("db.internal", 5432)).await?;
//! let session = store.open(SessionOptions::new()).await?;
//! let guard = session.locker("orders")?.lock().await?;
//! # Ok(()) }
//! ```

mod barrier;
mod client;
mod config;
mod election;
mod endpoint;
mod error;
mod guarantees;
mod interop;
mod key;
mod line;
mod locker;
mod main_connection;
mod pgpass;
mod queue;
mod removal;
mod rw_lock;
mod schema;
mod session;
mod step;
mod stm;
mod waits;
mod withdrawals;

pub use barrier::PostgresBarrier;
pub use config::{PostgresConfig, SslMode};
pub use election::PostgresElection;
pub use locker::PostgresLocker;
pub use queue::{MAX_BATCH_BYTES, PostgresQueue};
pub use removal::remove_namespace;
pub use rw_lock::PostgresRwLock;
pub use schema::{LAYOUT, grants, migration};
pub use session::{MAX_TTL, MIN_TTL, PostgresBackend, PostgresSession, connect};
pub use stm::PostgresStm;
