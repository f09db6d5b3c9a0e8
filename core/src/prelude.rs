//! What applications import. The trait names stay out, so that a glob import beside `tokio::sync`
//! is not ambiguous.

pub use crate::{
    BarrierHandle, Delivery, DoubleBarrierHandle, ElectionHandle, Error, ErrorKind, FenceGate,
    FencingToken, HoldFor, Inside, Item, Leader, Leadership, LockGuard, LockHandle, LossReason,
    Observer, QueueHandle, ReadGuard, RwLockHandle, Session, SessionOptions, Store, WriteGuard,
};
