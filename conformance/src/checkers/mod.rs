//! Judges of recorded histories.
//!
//! * [`History`] records what clients saw, by one monotonic clock.
//! * [`exclusion`] finds intervals in which two clients believed that they held the lock. That is
//!   informational: a paused holder may believe for a moment longer than it may act.
//! * [`fencing`] judges what must hold: the order of tokens, as granted and as a fenced register
//!   accepted them.
//! * [`linearizable`] searches for an order of all operations that a lock with fencing tokens
//!   could have had.

pub mod exclusion;
pub mod fencing;
pub mod history;
pub mod linearizable;

pub use history::{Event, History, What};
