//! Several servers that vote: one test at a time.

mod failover;
mod slots;
