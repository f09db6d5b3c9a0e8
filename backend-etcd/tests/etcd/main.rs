//! tenure over real etcd servers: the ordinary, the crowded, the broken, the hostile.

// `allow-unwrap-in-tests` does not reach the helpers of tests.
#![allow(clippy::unwrap_used)]

mod barriers;
mod basics;
mod common;
mod election;
mod faults;
mod ghosts;
mod interop;
mod limits;
mod line;
mod operators;
mod queue;
mod queue_interop;
mod rw_lock;
mod security;
mod sessions;
mod stm;
mod storm;
