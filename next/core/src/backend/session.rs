//! The lease of a session.

use std::sync::Arc;

use async_trait::async_trait;

use super::request::{Grant, Nonce};
use super::{Barrier, Election, Locker, Mode, Queue, RwLock, Stm};
use crate::error::{Error, Result};
use crate::name::{Kind, Name};

/// The lease of a session on the store.
#[async_trait]
pub trait Lease: Send + Sync + 'static {
    /// Renews the lease. `Ok` means that the store acknowledged messages that were sent after the call began, for everything
    /// that the session has. Core counts the TTL from the instant before the call.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended in the store.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point; core bounds it by min(TTL/3, 30 s) and calls it again.
    async fn renew(&self) -> Result<()>;

    /// Ends the session and frees all that it has, at once.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`. A session that has ended already is no error.
    async fn revoke(&self) -> Result<()>;

    /// Gives the lease up without freeing the entries `kept`: they stay until [`Backend::resume`](super::Backend::resume)
    /// or the end of the TTL. Every other entry is freed. Requests that were sent before have no effect afterwards. Repeated,
    /// because an answer was lost, it succeeds.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the store cannot do it.
    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        let _ = kept;
        Err(Error::unsupported("detaching a session"))
    }

    /// Lists everything that the store has of this session, page by page; `None` asks for the first page.
    ///
    /// Core compares it with its registry, at each new connection and every min(TTL/3, 30 s): an entry that core does not
    /// know is an orphan of a lost history and is withdrawn, and a holding that the store does not list is lost.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended; `Unavailable`, `Unauthorized` or `Internal`.
    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page>;
}

/// A page of the entries of a session.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Page {
    /// The entries, in any order.
    pub entries: Vec<Entry>,
    /// Where the next page begins, or `None` after the last one.
    pub next: Option<Vec<u8>>,
}

impl Page {
    /// Describes the last page.
    pub const fn last(entries: Vec<Entry>) -> Self {
        Self { entries, next: None }
    }

    /// Describes a page, with where the next one begins.
    pub const fn with_next(entries: Vec<Entry>, next: Vec<u8>) -> Self {
        Self {
            entries,
            next: Some(next),
        }
    }
}

/// An entry that one request has in the store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The request.
    pub nonce: Nonce,
    /// The kind of the object.
    pub kind: Kind,
    /// The name.
    pub name: Name,
    /// Whether it waits or holds.
    pub state: EntryState,
    /// Whether it shares its object, as a reader does. A reader that was resumed cannot be reclaimed as a writer.
    pub mode: Mode,
}

impl Entry {
    /// Describes an entry.
    pub const fn new(nonce: Nonce, kind: Kind, name: Name, state: EntryState) -> Self {
        Self {
            nonce,
            kind,
            name,
            state,
            mode: Mode::Exclusive,
        }
    }

    /// Sets the mode; it is [`Mode::Exclusive`] otherwise.
    #[must_use]
    pub const fn mode(mut self, mode: Mode) -> Self {
        self.mode = mode;
        self
    }
}

/// How far a request has come in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EntryState {
    /// It waits.
    Waiting,
    /// It holds what it was granted. A take has one grant for each of its items.
    Granted(Vec<Grant>),
}

/// A session's side of a backend. A primitive that the store does not have is `None`: core answers `Unsupported`.
pub trait BackendSession: Lease {
    /// Returns the locks.
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        None
    }

    /// Returns the read-write locks.
    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        None
    }

    /// Returns the elections.
    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        None
    }

    /// Returns the queues.
    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        None
    }

    /// Returns the double barriers.
    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        None
    }

    /// Returns the transactional memory.
    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        None
    }
}
