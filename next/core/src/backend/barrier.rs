//! Double barriers. The simple barrier is core's, over [`Stm`](super::Stm) with keys that are bound to a session.

use std::num::NonZeroU32;

use async_trait::async_trait;

use super::request::{Departure, EndOutcome, Grant, Joined, Marker, Request};
use crate::error::Result;
use crate::name::Name;
use crate::token::FencingToken;

/// Double barriers (rules B2 to B4).
#[async_trait]
pub trait Barrier: Send + Sync + 'static {
    /// Enters as one of `count` participants, and completes the generation if it is the last of them.
    ///
    /// The barrier is reusable: a generation ends when all of its participants have left or died.
    ///
    /// # Errors
    ///
    /// `Conflict` if participants wait for another `count`, or if a generation is complete and not
    /// all of its participants have left.
    async fn enter(&self, request: &Request, count: NonZeroU32) -> Result<Joined>;

    /// Waits until all have entered, for as long as one step of this store can.
    ///
    /// # Errors
    ///
    /// As [`WaitQueue::wait`](super::WaitQueue::wait).
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    async fn wait(&self, request: &Request) -> Result<Option<Grant>>;

    /// Withdraws participants that wait, and takes out those inside.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`. Core calls it again.
    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>>;

    /// Waits until every participant of the generation `token` of `name` has left or died, for as long as one step of this
    /// store can; returns whether all have left.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    async fn all_left(&self, name: &Name, token: FencingToken) -> Result<bool>;
}
