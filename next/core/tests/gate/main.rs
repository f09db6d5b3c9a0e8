//! The tests of core that run on every commit.
#![allow(clippy::unwrap_used)]

mod barriers;
mod cancellation;
mod clocks;
mod elections;
mod errors;
mod executors;
mod fence_gate;
mod guarantees;
mod names;
mod options;
mod reconciliation;
mod requests;
mod runtimes;
mod scripted;
mod sessions;
mod stm;
mod stm_store;
mod supervision;
mod transactions;
mod urls;
