//! The embedded store: a [`Backend`](tenure_core::backend::Backend) inside one process, with sessions, leases that expire,
//! and every primitive. It is the model that the other stores are compared with.
//!
//! A step is one critical section: it reads the clock, ends the sessions whose leases have expired, and acts. There is no
//! background task and no polling: each waiter sleeps until it is woken, or until the lease of the entry before it ends.
//! Leases follow the clock of the tokio runtime that connected, so they expire under a paused clock too.
//!
//! With `n` entries of any sort, a step costs O(log n), plus O(log n) for each entry that it grants, frees or removes.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod backend;
mod config;
mod guarantees;
#[cfg(feature = "harness")]
mod harness;
mod planted;
mod session;
mod state;

pub use backend::{Footprint, MemoryBackend, connect};
pub use config::{CAPACITY, LONGEST_TTL, MemoryConfig, SHORTEST_TTL};
#[cfg(feature = "harness")]
pub use harness::MemorySubject;
#[cfg(feature = "planted")]
pub use planted::Bug;
