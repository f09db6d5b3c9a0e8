//! Work queues.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::request::{EndOutcome, Joined, Marker, Request};
use crate::error::Result;
use crate::name::Name;
use crate::token::FencingToken;

/// An item to be enqueued.
#[derive(Clone)]
#[non_exhaustive]
pub struct Item {
    /// The payload.
    pub value: Arc<[u8]>,
    /// The lower, the earlier.
    pub priority: u16,
    /// An item with the id of one that was accepted a while ago is dropped.
    pub id: Option<Name>,
    /// How long it is invisible after it was accepted.
    pub delay: Duration,
}

impl Item {
    /// Describes an item of priority 0.
    pub fn new(value: impl Into<Arc<[u8]>>) -> Self {
        Self {
            value: value.into(),
            priority: 0,
            id: None,
            delay: Duration::ZERO,
        }
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Item")
            .field("priority", &self.priority)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// How much a take asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TakeLimit {
    /// The most items, at least 1.
    pub items: usize,
    /// The most bytes of all values together; the first item is taken whatever its size.
    pub bytes: usize,
    /// After how many deliveries an item goes to the dead-letter queue instead, and which queue that is.
    pub dead_letter: Option<(u32, Name)>,
}

impl TakeLimit {
    /// Asks for up to `items` items of a mebibyte together.
    pub const fn new(items: usize) -> Self {
        Self {
            items,
            bytes: 1 << 20,
            dead_letter: None,
        }
    }
}

/// An item that was taken.
#[derive(Clone)]
#[non_exhaustive]
pub struct TakenItem {
    /// The fencing token of this delivery: greater than every earlier token of its queue, and unique in the session.
    pub token: FencingToken,
    /// The payload.
    pub value: Arc<[u8]>,
    /// The priority that it was enqueued with.
    pub priority: u16,
    /// The id that it was enqueued with.
    pub id: Option<Name>,
    /// How often it was delivered, with this time.
    pub deliveries: u32,
    /// How the store calls the claim, for operators.
    pub key: Arc<str>,
}

impl TakenItem {
    /// Describes a first delivery.
    pub fn new(token: FencingToken, key: impl Into<Arc<str>>, value: impl Into<Arc<[u8]>>) -> Self {
        Self {
            token,
            value: value.into(),
            priority: 0,
            id: None,
            deliveries: 1,
            key: key.into(),
        }
    }
}

impl fmt::Debug for TakenItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TakenItem")
            .field("token", &self.token)
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

/// One item of a take.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Claim {
    /// The take.
    pub request: Request,
    /// The token of the delivery.
    pub token: FencingToken,
}

impl Claim {
    /// Describes the item that `request` took under `token`.
    pub const fn new(request: Request, token: FencingToken) -> Self {
        Self { request, token }
    }
}

/// An item that a consumer gives back.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Return {
    /// The item.
    pub claim: Claim,
    /// How long it is invisible.
    pub delay: Duration,
}

impl Return {
    /// Gives `claim` back, to be visible after `delay`.
    pub const fn new(claim: Claim, delay: Duration) -> Self {
        Self { claim, delay }
    }
}

/// An item that was looked at.
#[derive(Clone)]
#[non_exhaustive]
pub struct PeekedItem {
    /// The payload.
    pub value: Arc<[u8]>,
    /// The priority.
    pub priority: u16,
    /// The id that it was enqueued with.
    pub id: Option<Name>,
    /// How often it was delivered.
    pub deliveries: u32,
}

impl PeekedItem {
    /// Describes an item that was never delivered.
    pub fn new(value: impl Into<Arc<[u8]>>, priority: u16) -> Self {
        Self {
            value: value.into(),
            priority,
            id: None,
            deliveries: 0,
        }
    }
}

impl fmt::Debug for PeekedItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeekedItem")
            .field("priority", &self.priority)
            .field("deliveries", &self.deliveries)
            .finish_non_exhaustive()
    }
}

/// How many items a queue has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QueueDepth {
    /// Items that can be taken now.
    pub ready: u64,
    /// Items that are with a consumer.
    pub in_flight: u64,
    /// Items that are not visible yet.
    pub delayed: u64,
}

impl QueueDepth {
    /// Describes a depth.
    pub const fn new(ready: u64, in_flight: u64, delayed: u64) -> Self {
        Self {
            ready,
            in_flight,
            delayed,
        }
    }

    /// Returns the number of all items.
    pub const fn total(self) -> u64 {
        self.ready + self.in_flight + self.delayed
    }
}

/// Queues (rules Q1 to Q6). Order: by priority, then by acceptance; an item that comes back keeps its place.
#[async_trait]
pub trait Queue: Send + Sync + 'static {
    /// Accepts all of `items` in their order, or none.
    ///
    /// # Errors
    ///
    /// `TooLarge` for a value that the store cannot keep.
    async fn enqueue(&self, marker: Marker, name: &Name, items: &[Item]) -> Result<()>;

    /// Takes up to `limit` items, or waits for the first one if `wait`. An item is with one consumer at a time, and comes
    /// back when the session ends (rule Q2).
    ///
    /// Repeated, it answers with the items that the request has.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended.
    async fn take(&self, request: &Request, limit: &TakeLimit, wait: bool) -> Result<Joined<Vec<TakenItem>>>;

    /// Waits until `request` is given items, for as long as one step of this store can; `None` if there were none.
    ///
    /// # Errors
    ///
    /// As [`WaitQueue::wait`](super::WaitQueue::wait).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>>;

    /// Removes items for good. The answers are in the order of `claims`.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`. Core calls it again.
    async fn ack(&self, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>>;

    /// Gives items back to their queues. The answers are in the order of `returns`.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`. Core calls it again.
    async fn nack(&self, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>>;

    /// Withdraws takes. Items that one was given come back without a raised delivery count: no consumer saw them.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`. Core calls it again.
    async fn leave(&self, requests: &[Request]) -> Result<()>;

    /// Counts the items.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    async fn depth(&self, name: &Name) -> Result<QueueDepth>;

    /// Returns the item that would be taken next.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    async fn peek(&self, name: &Name) -> Result<Option<PeekedItem>>;

    /// Removes all items, those with consumers too, and returns how many there were.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    async fn purge(&self, marker: Marker, name: &Name) -> Result<u64>;
}
