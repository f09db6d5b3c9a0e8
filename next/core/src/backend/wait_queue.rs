//! Wait queues: locks, read-write locks and elections.

use std::sync::Arc;

use async_trait::async_trait;

use super::request::{Departure, EndOutcome, Grant, Joined, Marker, Request};
use crate::error::Result;
use crate::name::Name;
use crate::token::FencingToken;

/// How much of an object a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Mode {
    /// The request has the object alone.
    Exclusive,
    /// The request shares the object with other shared requests.
    Shared,
}

/// The wait queue of each name of one kind, native to the store.
///
/// Requests are granted in the order in which they joined (rules L3, R2). A request is never granted after its session has
/// ended (L6), and each grant's token is greater than every earlier token of the name (L2).
#[async_trait]
pub trait WaitQueue: Send + Sync + 'static {
    /// Grants `request` at once if the object is free for `mode` and no earlier request waits; otherwise leaves a place in
    /// the wait queue if `wait`. One round trip if the object is free.
    ///
    /// `value` is a candidate's; it becomes visible to observers with the grant.
    ///
    /// Repeated, it answers for the place or the grant that the request has.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, `Conflict` if the request was withdrawn before it arrived, `TooLarge` if the store
    /// refuses another entry; `Unavailable`, `Unauthorized` or `Internal`.
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined>;

    /// Waits until `request` is granted, for as long as one step of this store can; `None` if it was not granted by then.
    /// Core calls it again.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, `Conflict` if the request has no place any more: core joins again.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point. The place stays, and a grant is found by the next call or by `leave`.
    async fn wait(&self, request: &Request) -> Result<Option<Grant>>;

    /// Ends requests: withdraws those that wait, releases what was granted, and hands what becomes free to the next. The
    /// answers are in the order of `departures`, of which core sends at most 500 at once.
    ///
    /// A release is fenced by its token and never touches the holding of another (rule L7). After it returned, nothing of
    /// these requests has an effect, however late it arrives (L5): a withdrawal of a request without a place is remembered
    /// too, because its `join` may still arrive. It answers `NotHeld`, as does a release under another token.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, `Conflict` if a later step has used the marker's slot; `Unavailable`, `Unauthorized` or
    /// `Internal`. Nothing may be concluded from the last three about any of them; core calls it again.
    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>>;
}

/// Locks (rules L1 to L8): a wait queue whose requests are all [`Mode::Exclusive`] and bring no value.
pub trait Locker: WaitQueue {}

/// Read-write locks (rules R1 to R3).
#[async_trait]
pub trait RwLock: WaitQueue {
    /// Turns an exclusive holding into a shared one in one step. It keeps its token and its place in the order, and waiting
    /// readers behind it are granted up to the next writer.
    ///
    /// # Errors
    ///
    /// `Lost` if the request holds nothing under `token`.
    async fn downgrade(&self, marker: Marker, request: &Request, token: FencingToken) -> Result<()>;
}

/// The holder of an election, as observers see it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The token of the leadership.
    pub token: FencingToken,
    /// The value that the leader proclaimed last.
    pub value: Arc<[u8]>,
}

impl Leader {
    /// Describes a leader.
    pub fn new(token: FencingToken, value: impl Into<Arc<[u8]>>) -> Self {
        Self {
            token,
            value: value.into(),
        }
    }
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A payload never reaches a log.
        f.debug_struct("Leader")
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

/// A state of an election.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LeaderUpdate {
    /// Orders the states of one election: a later state has a greater version.
    pub version: u64,
    /// The leader, or `None` for a vacancy.
    pub leader: Option<Leader>,
}

impl LeaderUpdate {
    /// Describes a state.
    pub const fn new(version: u64, leader: Option<Leader>) -> Self {
        Self { version, leader }
    }
}

/// Elections (rules E1 to E5).
#[async_trait]
pub trait Election: WaitQueue {
    /// Replaces the leader's value.
    ///
    /// `number` rises with each proclamation of one leadership, over a detachment too. A proclamation whose number is not above
    /// the last one's arrives late and changes nothing.
    ///
    /// # Errors
    ///
    /// `Lost` if the request does not lead under `token`.
    async fn proclaim(&self, request: &Request, token: FencingToken, number: u64, value: &[u8]) -> Result<()>;

    /// Returns the current state of the election `name` at once if `after` is `None` or the state is newer; otherwise waits
    /// for a newer one for as long as one step of this store can, and returns the current one.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<LeaderUpdate>;
}
