//! The facade: URLs, the examples, blocking calls.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[cfg(feature = "blocking")]
mod blocking;
mod connect;
mod examples;
#[cfg(feature = "redis")]
mod redis;
