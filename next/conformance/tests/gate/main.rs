//! The tests of this crate that gate every change.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod checkers;
mod events;
mod memory;
mod planted;
mod report;
mod runner;
mod stress;
mod table;
