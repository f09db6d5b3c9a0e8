//! The identity of a request, which exists before its first message.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::name::{Kind, Name};
use crate::token::FencingToken;

/// Identifies one request of a session. Nonces rise within a session, over a detachment too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nonce(u64);

impl Nonce {
    /// Wraps a number that a store has kept.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One request of a session that leaves an entry in the store: a place in a wait queue, a take, an entry of a barrier.
/// Every trace of it in the store carries the nonce.
#[derive(Clone, Debug)]
pub struct Request {
    nonce: Nonce,
    kind: Kind,
    name: Name,
    oldest_open: Arc<AtomicU64>,
}

impl Request {
    /// Describes the request `nonce` for `name`. `oldest_open` is the session's own, shared by all its requests.
    pub fn new(nonce: Nonce, kind: Kind, name: Name, oldest_open: Arc<AtomicU64>) -> Self {
        Self {
            nonce,
            kind,
            name,
            oldest_open,
        }
    }

    /// Returns the nonce.
    pub const fn nonce(&self) -> Nonce {
        self.nonce
    }

    /// Returns the kind of the object.
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the name.
    pub const fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the lowest nonce of a request of the session that still has to join, take or enter, or that is being withdrawn.
    ///
    /// Requests that wait or hold may have lower nonces: core has the answer to their join. A message below this nonce that
    /// would join, take or enter is therefore a late copy. A store that keeps the nonces of ended requests, in order to refuse
    /// late copies, may forget those below this one if it refuses every such message that finds no entry. It still carries out
    /// every other step of the requests that have an entry, and withdrawals, because an orphan of a lost history may have a
    /// lower nonce. This bounds its memory by the requests in flight (RIFL, SOSP 2015, section 3).
    pub fn oldest_open(&self) -> Nonce {
        Nonce(self.oldest_open.load(Ordering::Acquire))
    }
}

/// A deduplication slot for step results: the store keeps the result of the last step of each slot. A session reuses few
/// slots: 64 for steps, and 8 for each sort of departures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// How many slots a session has.
    pub const COUNT: u16 = 128;

    /// Wraps a number below [`COUNT`](Self::COUNT).
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// Returns the number, which is below [`COUNT`](Self::COUNT).
    pub const fn get(self) -> u16 {
        self.0
    }
}

/// Identifies a step that leaves no entry. The store keeps the nonce and the result in the slot. Markers and requests draw
/// their nonces from one sequence.
///
/// A step whose nonce the slot holds answers as it did the first time. One whose nonce is below that of the slot arrives
/// late and has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker {
    /// The identity of the step.
    pub nonce: Nonce,
    /// Where its result is kept.
    pub slot: Slot,
}

/// The grant of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Grant {
    /// The fencing token.
    pub token: FencingToken,
    /// How the store calls the holding, for operators.
    pub key: Arc<str>,
}

impl Grant {
    /// Describes a grant.
    pub fn new(token: FencingToken, key: impl Into<Arc<str>>) -> Self {
        Self { token, key: key.into() }
    }
}

/// The end of a request: a withdrawal, or the release of what it was granted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Departure {
    /// The request that ends.
    pub request: Request,
    /// The token that the request was granted, for a release. `None` withdraws the request, and gives back whatever it may
    /// have been granted.
    pub token: Option<FencingToken>,
}

impl Departure {
    /// Withdraws `request`, whatever it was granted.
    pub const fn withdraw(request: Request) -> Self {
        Self { request, token: None }
    }

    /// Releases what `request` was granted under `token`.
    pub const fn release(request: Request, token: FencingToken) -> Self {
        Self {
            request,
            token: Some(token),
        }
    }
}

/// The outcome of a request to acquire: a place in a wait queue, a take, an entry into a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined<G = Grant> {
    /// It was granted at once.
    Granted(G),
    /// It has a place among those that wait.
    Waiting,
    /// It would have to wait, and was not to. Nothing is left behind.
    Busy,
}

/// The outcome of a release, a withdrawal, an acknowledgement or a return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndOutcome {
    /// The request or holding was there, and has ended.
    Ended,
    /// It was not there any more.
    NotHeld,
}
