//! tenure over real Redis servers: its scripts over lost answers and new connections, its memory, its
//! limits; the crowded, the broken, the hostile.
#![allow(clippy::unwrap_used, clippy::expect_used)] // A test that cannot be set up has to fail.

mod barriers;
mod bounds;
mod common;
mod damage;
mod election;
mod faults;
mod ghosts;
mod holders;
mod load;
mod lost_writes;
mod operators;
mod sessions;
mod stm;
mod storm;
