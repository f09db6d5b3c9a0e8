//! The ways to a Redis and what can go wrong on them: TLS, users, sentinels, clusters, silence.

// `allow-unwrap-in-tests` does not reach the helpers of tests.
#![allow(clippy::unwrap_used)]

mod cluster;
mod common;
mod connection;
mod failover;
mod security;
mod store;
