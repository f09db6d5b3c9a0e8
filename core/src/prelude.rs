//! What applications import. The trait names stay out, so that a glob import beside `tokio::sync`
//! is not ambiguous.

pub use crate::{
    BarrierHandle, Compare, Delivery, DoubleBarrierHandle, ElectionHandle, Error, ErrorKind,
    FenceGate, FencingToken, HoldFor, Inside, Isolation, Item, Leader, Leadership, LockGuard,
    LockHandle, LossReason, Observer, Op, QueueHandle, ReadGuard, RwLockHandle, Session,
    SessionOptions, StmHandle, Store, Tx, WriteGuard,
};
