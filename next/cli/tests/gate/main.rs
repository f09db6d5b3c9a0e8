//! The command as a process: exit codes, stdout, stderr.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod conform;
mod guarantees;
mod redis;
mod support;
mod usage;
