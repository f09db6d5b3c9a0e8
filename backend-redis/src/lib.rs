//! tenure over Redis.
