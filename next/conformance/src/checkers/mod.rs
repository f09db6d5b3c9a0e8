//! Checkers: judges of recorded histories. None of them knows a store; each reads only what clients observed.
//!
//! A [`Journal`] records operations with the instants of their call and of their return. A checker returns a summary,
//! or the [`Violation`] with the operations that prove it:
//!
//! * [`lock`] judges locks, read-write locks and elections, with their observers;
//! * [`queue`] judges what a queue accepted, delivered and removed, and the order of the deliveries;
//! * [`list_append`] judges the isolation of transactions.
//!
//! No checker searches: tokens and lists reveal the order, so that a history of n operations takes O(n log n).
//!
//! [`jsonl`] writes histories as JSON lines and reads them back, so that each run can be judged again.

pub mod journal;
pub mod jsonl;
pub mod list_append;
pub mod lock;
pub mod queue;
mod sequence;

pub use journal::{Journal, Operation, Outcome, Ticket, Timeline};
pub use sequence::{Mode, Proof, Violation};
