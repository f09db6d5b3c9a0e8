//! Gate tests on real Redis servers.
#![allow(clippy::unwrap_used)]

mod config;
mod confirmation;
mod connection;
mod detachment;
mod harness;
mod interop;
mod rights;
mod scripts;
mod scripts_in_use;
mod suite;
