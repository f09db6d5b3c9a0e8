//! The machinery of sessions and waiting in many interleavings of threads, under [shuttle].
//!
//! This is `tenure-core`, compiled from its own sources with the locks, atomics, channels and the
//! clock of [`exploring`] (see `build.rs`), and the scenarios that run it. Nobody depends on it.
//!
//! Shuttle runs all threads and tasks on one thread of the system and decides by a seed, before
//! every step at which they could meet, who goes on. It sees interleavings; it does not see what
//! weaker orderings than the sequentially consistent one would allow.
//!
//! Run for longer: `TENURE_INTERLEAVINGS=50 cargo test -p tenure-interleavings` (times as many). A
//! failure prints its schedule; `TENURE_SCHEDULE=... cargo test -p tenure-interleavings NAME` runs
//! that one again.
//!
//! [shuttle]: https://docs.rs/shuttle

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    unreachable_code,
    unused_variables,
    unused_mut,
    clippy::all,
    rustdoc::all,
    missing_docs,
    reason = "core is checked where it is at home"
)]

pub mod exploring;

include!(concat!(env!("OUT_DIR"), "/core/lib.rs"));

#[cfg(test)]
mod scenarios;
