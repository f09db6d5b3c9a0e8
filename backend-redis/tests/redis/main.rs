//! What only Redis has: its scripts over lost answers and new connections, its memory, its limits.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot be set up has to fail.

mod barriers;
mod common;
mod stm;
