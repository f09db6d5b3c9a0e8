//! Distributed coordination: locks, elections, read-write locks, queues, barriers and transactional memory, each held under
//! a lease and stamped with a fencing token.
//!
//! Rule ids such as S1 are those of `CONTRACT.md`, at the root of the repository.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod backend;
mod barrier;
pub mod clock;
pub mod compare;
mod credentials;
mod election;
mod error;
#[cfg_attr(shuttle, path = "interleavings/executor.rs")]
pub mod executor;
mod fence_gate;
pub mod guarantees;
mod handle;
mod holding;
#[cfg(shuttle)]
pub mod interleavings;
mod lock;
pub mod name;
mod options;
mod query;
mod queue;
mod runner;
mod runtime;
mod rw_lock;
mod session;
mod stm;
mod store;
mod sync;
mod token;
pub mod url;
pub mod value;

pub use barrier::{BarrierGuard, BarrierHandle, DoubleBarrierHandle, Participant};
pub use compare::{Compare, Op, OpResult, StmEntry};
pub use credentials::{CredentialSource, Credentials, Secret};
pub use election::{ElectionHandle, Leadership, Observer};
pub use error::{Effect, Error, ErrorKind, LossReason, Result};
pub use fence_gate::{FenceGate, StaleToken};
pub use guarantees::Guarantees;
pub use holding::Holding;
pub use lock::{LockGuard, LockHandle};
pub use name::{Kind, Name, Namespace};
pub use options::{ConnectOptions, MAX_LABEL_BYTES, SessionId, SessionOptions, TlsFiles};
pub use queue::{DEDUPLICATION_WINDOW, Delivery, MAX_BATCH, NewItem, QueueHandle};
pub use runner::{ConsumeOptions, Lead, LeadOptions, SupervisedSession};
pub use rw_lock::{ReadGuard, RwLockHandle, WriteGuard};
pub use session::Session;
pub use stm::{
    DEFAULT_ATTEMPTS, FencedStm, Isolation, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, StmHandle, Tx, Txn, TxnOutcome,
};
pub use store::Store;
pub use token::FencingToken;
