//! The heart of tenure: sessions, leases, guards and fencing tokens, and the traits that a store
//! implements to offer them.
//!
//! Applications use the facade crate `tenure`, which re-exports all this. What a backend's author
//! needs is in [`backend`].
//!
//! # The contract
//!
//! Rules are named as in the documentation and in the conformance suite, which has at least one
//! case for each.
//!
//! | rule | promise |
//! |---|---|
//! | S1 | A session's lease has at least the TTL asked for; closing or dropping it frees what it holds |
//! | S2 | Validity is judged by a local deadline, counted from the instant before the last acknowledged renewal was *sent*, less a margin (the larger of TTL/20 and 50 ms), by a clock that counts on through a suspension; the loss is signalled by then |
//! | S3 | The store frees a dead session's holdings no earlier than the TTL after its last renewal, and no later than a bound that it states |
//! | S4 | A lost session says why; a detached one can be resumed once |
//! | S5 | Renewing costs few round trips, and a session that would hold too much is refused |
//! | L1 | At most one valid guard for a name, inside a session too |
//! | L2 | Tokens rise with every grant, for ever |
//! | L3 | Waiters are granted in the order of their arrival; a release wakes one |
//! | L4 | `try_lock` answers at once and leaves nothing; `lock_timeout` bounds the wait |
//! | L5 | A dropped acquire leaves no ghost |
//! | L6 | A waiter whose session ends gets an error, and is never granted |
//! | L7 | A release after a loss says so and spares the new holder; dropping a guard releases |
//! | L8 | Different names, namespaces and kinds never meet |
//! | E1 | An election has at most one leader at a time |
//! | E2 | The token rises with each new leadership |
//! | E3 | Proclaiming and resigning by one who does not lead any more fail and change nothing |
//! | E4 | An observer ends up at the last proclaimed value, and never goes back |
//! | E5 | L3 to L7 hold for candidates as for those who wait for a lock |
//! | R1 | A writer is alone; readers share |
//! | R2 | Arrival order: a waiting writer is not overtaken by later readers, nor a waiting reader starved by writers |
//! | R3 | A writer's token is greater than every token granted before, of either kind; a downgrade keeps token and place |
//! | Q1 | An item that was accepted is delivered until it is acknowledged |
//! | Q2 | An item is with one valid consumer at a time; it comes back, with its count raised, when that one gives it back or its session ends |
//! | Q3 | By priority, then in the order in which the store accepted the items; one that comes back keeps its place |
//! | Q4 | A late acknowledgement fails with `Lost` |
//! | Q5 | An item wakes one waiting consumer |
//! | Q6 | A cancelled `dequeue` loses no item |
//! | B1 | Waiting at a barrier ends only with a release, or at once if nobody holds it |
//! | B2 | Nobody enters a double barrier before all have come, nor leaves before all have left or died |
//! | B3 | One too many is refused |
//! | B4 | A barrier is reusable; the dead do not hold up the others beyond their TTL; another count is an error |
//! | T1 | Committed transactions are serializable under the first two levels, and every attempt reads one consistent snapshot |
//! | T2 | A transaction whose code fails leaves no trace |
//! | T3 | A transaction bound to a guard commits only if that is held in the store at the commit |
//! | T4 | A commit whose answer was lost is resolved, or reported as `CommitUnknown`; never repeated blindly |
//! | T5 | Limits are errors before anything is sent |
//! | H1 | Whatever dead sessions leave in the store is collected within a stated time; a store in steady use does not grow |
//! | H2 | The layout in the store has a version; a client refuses one that it does not know |
//! | H3 | A runtime that shuts down, a panic while holding, or a guard dropped outside a runtime causes no panic, and no blocking beyond a stated bound |
//! | H4 | Names and values may be anything within the limits; nothing in them is interpreted |
//! | O1 | Each act of an operator has a stated outcome |
//! | O2 | The cost of a step is stated; no step costs more than O(log n) in the store unless its name says so |
//! | O3 | One application cannot harm another on the same server |
//! | O4 | After a loss of history in the store clients fail closed: no holding of the lost history stays valid beyond the next renewal; [`Store::raise_token_floor`] keeps tokens rising |
//!
//! What one deployment promises of this, and why, is in its [`Guarantees`].

mod ask;
mod barrier;
mod clock;
mod drive;
mod election;
mod error;
mod fence_gate;
mod guarantees;
mod handle;
mod holding;
mod ledger;
mod locker;
mod name;
pub mod prelude;
mod queue;
mod rw_lock;
mod session;
mod settle;
mod signal;
mod slots;
mod stm;
mod token;
mod txn;
mod url;
mod value;
mod waits;

pub use barrier::{BarrierHandle, DoubleBarrierHandle, HoldFor, Inside};
pub use clock::{Clock, Moment};
pub use election::{ElectionHandle, Leader, Leadership, Observer};
pub use error::{Effect, Error, ErrorKind, Result};
pub use fence_gate::{FenceGate, StaleToken};
pub use guarantees::{
    Barriers, Cancellation, Claim, Durability, EarlyRelease, Exclusion, Expiry, FencedCommit,
    Guarantees, HandOff, Line, LossSignal, MinorityLoss, NameIsolation, Observers, QueueDelivery,
    QueueOrder, Release, Resume, Row, RwOrder, TokenOrder, Transactions, UnknownCommit,
};
pub use holding::Holding;
pub use locker::{LockGuard, LockHandle};
pub use name::{MAX_NAME_BYTES, Name, Namespace};
pub use queue::{Delivery, Depth, ID_MEMORY, Item, MAX_BATCH, Peeked, QueueHandle};
pub use rw_lock::{ReadGuard, RwLockHandle, WriteGuard};
pub use session::{DEFAULT_TTL, LossReason, Session, SessionId, SessionOptions, Store};
pub use stm::{DEFAULT_ATTEMPTS, FencedStm, Isolation, StmHandle, Tx};
pub use token::FencingToken;
pub use txn::{
    Compare, CompareNumber, CompareValue, Entry, MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Op,
    OpResult, Relation, Target, Txn, TxnOutcome,
};
pub use value::MAX_VALUE_BYTES;

/// What a backend's author needs: the traits, and what core passes to them.
///
/// A backend is three small types. [`Backend`](backend::Backend) opens sessions and says what the
/// deployment guarantees; [`Lease`](backend::Lease) renews and revokes one;
/// [`Locker`](backend::Locker) makes single atomic steps on locks. Deadlines, renewal timing, the
/// loss signal, timeouts, retries, cancellation and drops are core's, the same for every store.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use tenure_core::backend::{Ask, Backend, Grant, Lease, Locker, Opened, Settle, async_trait};
/// use tenure_core::*;
///
/// struct Mine; // a connection
/// struct MySession; // what one lease is on this store
///
/// #[async_trait]
/// impl Backend for Mine {
///     type Session = MySession;
///
///     async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<MySession>> {
///         // grant a lease of at least `ttl`
///         let id = SessionId::new("42");
///         Ok(Opened { lease: Arc::new(MySession), id, ttl, capacity: 1_000 })
///     }
///
///     async fn guarantees(&self) -> Result<Guarantees> {
///         // Each with its reason, read off the live server. This one promises little.
///         Ok(Guarantees {
///             deployment: "mine 1.0".to_owned(),
///             mutual_exclusion: Claim::new(Exclusion::Cooperative, "..."),
///             token_order: Claim::new(TokenOrder::None, "..."),
///             hand_off: Claim::new(HandOff::Unordered, "..."),
///             expiry: Claim::new(Expiry::Unbounded, "..."),
///             early_release: Claim::new(EarlyRelease::OnEvents, "..."),
///             loss_signal: Claim::new(LossSignal::ByDeadline, "..."),
///             cancellation: Claim::new(Cancellation::UntilSessionEnds, "..."),
///             fenced_release: Claim::new(Release::Unfenced, "..."),
///             name_isolation: Claim::new(NameIsolation::Verbatim, "..."),
///             resume: Claim::new(Resume::Unsupported, "..."),
///             observers: Claim::new(Observers::MayMiss, "..."),
///             barriers: Claim::new(Barriers::HeldUp, "..."),
///             isolation: Claim::new(Transactions::Unsupported, "..."),
///             fenced_commit: Claim::new(FencedCommit::Unsupported, "..."),
///             unknown_commit: Claim::new(UnknownCommit::Unsupported, "..."),
///             queue_delivery: Claim::new(QueueDelivery::AtMostOnce, "..."),
///             queue_order: Claim::new(QueueOrder::Unordered, "..."),
///             durability: Claim::new(Durability::Volatile, "..."),
///             minority_loss: Claim::new(MinorityLoss::SingleMember, "..."),
///             rw_order: Claim::new(RwOrder::Unsupported, "..."),
///         })
///     }
/// }
///
/// #[async_trait]
/// impl Lease for MySession {
///     async fn renew(&self) -> Result<()> { Ok(()) }
///     async fn revoke(&self) -> Result<()> { Ok(()) }
///     fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> { Some(self) }
/// }
///
/// #[async_trait]
/// impl Locker for MySession {
///     async fn try_acquire(&self, _ask: &Ask) -> Result<Option<Grant>> { Ok(None) }
///     async fn acquire(&self, ask: &Ask) -> Result<Grant> {
///         // stand in line under ask.nonce(), and leave it when nobody waits any more
///         ask.withdrawn().await;
///         Err(tenure_core::Error::withdrawn())
///     }
/// }
///
/// #[async_trait]
/// impl Settle for MySession {
///     async fn release(&self, _ask: &Ask, _grant: &Grant) -> Result<()> { Ok(()) }
///     async fn withdraw(&self, _ask: &Ask) -> Result<()> { Ok(()) }
/// }
///
/// let store: Store = Store::new(Mine).into_dyn();
/// # let _ = store;
/// ```
///
/// - A forgotten `#[async_trait]` on an `impl` shows as E0195, "lifetime parameters do not match
///   the trait definition".
/// - Every step is idempotent under [`Ask::nonce`](backend::Ask::nonce): core repeats what went
///   unanswered.
/// - Say with [`Error::with_effect`] whether a failed step may have happened: `Unknown` makes core
///   call `withdraw` until it succeeds.
/// - Bound every request by a timeout of your own, and no client's default: none of the usual
///   clients notices a server that merely stopped.
/// - Prove it with the cases of `tenure-conformance`: one macro call in your tests.
pub mod backend {
    pub use crate::ask::{Alarm, Ask, Grant};
    pub use crate::barrier::Barrier;
    pub use crate::election::{Election, Sighting};
    pub use crate::locker::Locker;
    pub use crate::name::{Kind, LAYOUT_VERSION, escape, namespace_root, path};
    pub use crate::queue::{DeadLetters, Queue, Taken, Want};
    pub use crate::rw_lock::{RwLock, Side};
    pub use crate::session::{
        AnyBackend, Backend, HasBarrier, HasElection, HasLocker, HasQueue, HasRwLock, HasStm, Held,
        Lease, Opened,
    };
    pub use crate::settle::Settle;
    pub use crate::slots::{Slot, Slots};
    pub use crate::stm::{Done, Outcome, Read, Resolution, Stm};
    pub use crate::txn::{Fence, Transaction};
    pub use crate::url::{Secret, StoreUrl, TlsFiles};
    pub use crate::value::Redacted;
    pub use crate::waits::{Bell, News, Topic, Waiting, Waits};
    /// The attribute that the traits here need on their implementations.
    pub use async_trait::async_trait;
}
