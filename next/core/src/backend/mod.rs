//! The traits that a store has to implement.
//!
//! A backend offers small, bounded steps. Everything that must behave the same on every store belongs to core and is
//! written once: deadlines, the loss of sessions, waiting, cancellation, retries, drops, the resolution of commits, and
//! reconciliation.
//!
//! # Rules for every step
//!
//! - It is atomic in the store, and bounded in time: it ends or fails without waiting for another client. Only the steps
//!   called `wait`, `observe`, `changed` and `all_left` wait, each for as long as one step of its store can.
//! - A step that leaves an entry in the store takes a [`Request`]. Repeated under the same [`Nonce`], it finds its entry
//!   and answers for it. After the request was withdrawn it has no effect, however late it arrives.
//! - A step that leaves no entry takes a [`Marker`]. Repeated under the same marker, it answers as it did the first time.
//! - An error says by [`Effect`](crate::Effect) whether the step may have taken effect.
//! - It is polled with the runtime of [`Backend::executor`] entered, whose thread the renewals of all sessions share. Timers,
//!   sockets and `spawn_blocking` of tokio work; a call that blocks belongs in `spawn_blocking`.
//! - Its future may be dropped only if its documentation has a section on cancel safety which allows that. Core never drops
//!   a step without such a section: it polls the future to its end.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::executor::Executor;
use crate::guarantees::Guarantees;
use crate::options::SessionId;
use crate::token::FencingToken;

mod barrier;
mod events;
mod queue;
mod request;
mod session;
mod stm;
mod wait_queue;

pub use barrier::Barrier;
pub use events::{SessionEvent, SessionEvents};
pub use queue::{Claim, Item, PeekedItem, Queue, QueueDepth, Return, TakeLimit, TakenItem};
pub use request::{Departure, EndOutcome, Grant, Joined, Marker, Nonce, Request, Slot};
pub use session::{BackendSession, Entry, EntryState, Lease, Page};
pub use stm::{
    Commit, CommitOutcome, CommitRecord, Fence, Key, KeyRead, Resolution, Snapshot, Stm, StoredValue, Write,
};
pub use wait_queue::{Election, Leader, LeaderUpdate, Locker, Mode, RwLock, WaitQueue};

/// The TTL of a session if neither the application nor the backend chooses another.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// A running store, as one client sees it.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Opens a session with a lease of at least `ttl`, which the store may round up.
    ///
    /// `label` is what the application says of itself, for operators. `events` is the channel on which the backend reports
    /// what happens to the session between two renewals; a store that reports nothing may drop it.
    ///
    /// # Errors
    ///
    /// `Config` for a TTL of zero and for one that the store cannot grant; `Unavailable`, `Unauthorized` or `Internal`.
    ///
    /// # Cancel safety
    ///
    /// Never dropped by core. A lease whose answer was lost ends with its TTL.
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened>;

    /// Opens a session that was detached by [`Lease::detach`], with the entries that were kept (rule S4). The record of the
    /// detachment is consumed.
    ///
    /// # Errors
    ///
    /// `Conflict` if the session was resumed already, `Lost` if it has expired, `Unsupported` if the store cannot do it.
    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        let _ = (id, events);
        Err(Error::unsupported("resuming a session"))
    }

    /// Reads from the live deployment what it guarantees.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    async fn guarantees(&self) -> Result<Guarantees>;

    /// Makes every later fencing token of the namespace at least `floor` (rule O4). A floor below the present tokens changes
    /// nothing.
    ///
    /// # Errors
    ///
    /// `TooLarge` for a floor that leaves too few tokens above it, `Unsupported` if the store cannot do it.
    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let _ = floor;
        Err(Error::unsupported("raising the token floor"))
    }

    /// Returns the clock by which leases are judged.
    fn clock(&self) -> Clock {
        Clock::boot_time()
    }

    /// Returns where the work of this store's sessions runs.
    ///
    /// # Errors
    ///
    /// `Internal` if the library's thread cannot be started.
    fn executor(&self) -> Result<Executor> {
        Executor::library()
    }

    /// Returns the TTL of a session that asks for none.
    fn default_ttl(&self) -> Duration {
        DEFAULT_TTL
    }
}

/// A session as the store has opened it.
#[non_exhaustive]
pub struct Opened {
    /// The session's side of the backend.
    pub session: Arc<dyn BackendSession>,
    /// The session's id, unique in the store for ever.
    pub id: SessionId,
    /// The TTL that was granted.
    pub ttl: Duration,
    /// How many entries the store carries for this session. Core refuses more with `TooLarge`.
    pub capacity: usize,
    /// A nonce above every nonce that the store has seen from this session, and not below any [`Request::oldest_open`] of it.
    pub first_nonce: Nonce,
}

impl Opened {
    /// Describes a new session with room for 100,000 entries.
    pub fn new(session: Arc<dyn BackendSession>, id: SessionId, ttl: Duration) -> Self {
        Self {
            session,
            id,
            ttl,
            capacity: 100_000,
            first_nonce: Nonce::new(1),
        }
    }

    /// Sets how many entries the store carries for this session.
    #[must_use]
    pub fn capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity;
        self
    }

    /// Sets the first nonce of a resumed session.
    #[must_use]
    pub fn first_nonce(mut self, first: Nonce) -> Self {
        self.first_nonce = first;
        self
    }
}
