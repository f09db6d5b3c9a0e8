//! The embedded tenure store: sessions, locks, elections, barriers and queues inside one process,
//! with leases that expire.
//!
//! For applications of one process, and for tests: it keeps every promise that needs no disk and
//! no network, lives on the time of its tokio runtime (so that a paused clock expires leases
//! too), and can be told to misbehave ([`Link`]).
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> tenure_core::Result<()> {
//! use tenure_core::SessionOptions;
//! use tenure_memory::{MemoryConfig, connect};
//!
//! let store = connect(MemoryConfig::new())?;
//! let session = store.open(SessionOptions::new()).await?;
//! let guard = session.locker("orders")?.lock().await?;
//! guard.release().await?;
//! # Ok(()) }
//! ```
//!
//! # Limits
//!
//! Everything is gone with the process. A TTL is between [`MIN_TTL`] (shorter ones are rounded
//! up) and [`MAX_TTL`], 24 hours (more is refused); a session carries [`CAPACITY`] holdings and waits.
#![forbid(unsafe_code)]

mod barrier;
mod config;
mod election;
mod error;
mod faults;
mod guarantees;
mod line;
mod locker;
mod queue;
mod rw_lock;
mod session;
mod stm;
mod store;

pub use barrier::MemoryBarrier;
pub use config::{MAX_TTL, MIN_TTL, MemoryConfig};
pub use election::MemoryElection;
pub use faults::{Fault, Link};
pub use locker::MemoryLocker;
pub use queue::MemoryQueue;
pub use rw_lock::MemoryRwLock;
pub use session::{MemoryBackend, MemorySession, connect};
pub use stm::MemoryStm;
pub use store::{CAPACITY, Footprint};
