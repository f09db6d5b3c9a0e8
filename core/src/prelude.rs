//! What applications import. The trait names stay out, so that a glob import beside `tokio::sync`
//! is not ambiguous.

pub use crate::{
    Error, ErrorKind, FenceGate, FencingToken, LockGuard, LockHandle, LossReason, Session,
    SessionOptions, Store,
};
