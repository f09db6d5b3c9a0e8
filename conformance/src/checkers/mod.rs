//! Judges of recorded histories. None knows of any store: they read what clients saw.
//!
//! Of locks:
//!
//! * [`History`] records what clients saw, by one monotonic clock.
//! * [`exclusion`] finds intervals in which two clients believed that they held the lock. That is
//!   informational: a paused holder may believe for a moment longer than it may act.
//! * [`fencing`] judges what must hold: the order of tokens, as granted and as a fenced register
//!   accepted them.
//! * [`linearizable`] finds an order of all operations that a lock with fencing tokens could have
//!   had; [`fenced_lock`] does so by search.
//! * [`rw_lock`] is all this for read-write locks, and for two cells that must change together.
//!
//! Of everything else, recorded by a [`Journal`] as [`Operation`]s:
//!
//! * [`search`] finds an order of the operations on a [`register`] or a [`queue`], or on any other
//!   [`Model`](search::Model), or shows how far it came.
//! * [`total_queue`] counts what went into a queue and what came out: for long runs, in which the
//!   search would get lost.
//! * [`election`] judges what leaders proclaim, and what is shown to others.
//! * [`list_append`] finds cycles among transactions, and names them.
//! * [`bank`] and [`write_skew`] are two smaller looks at transactions, with little overhead.
//!
//! [`jsonl`] writes all of them to files and reads them back.

pub mod bank;
pub mod election;
pub mod exclusion;
pub mod fenced_lock;
pub mod fencing;
pub mod history;
pub mod jsonl;
pub mod linearizable;
pub mod list_append;
pub mod operation;
pub mod queue;
pub mod register;
pub mod rw_lock;
pub mod search;
#[cfg(test)]
mod simulate;
pub mod total_queue;
pub mod write_skew;

pub use fencing::Violation;
pub use history::{Event, History, What};
pub use operation::{Fate, Journal, Operation};
