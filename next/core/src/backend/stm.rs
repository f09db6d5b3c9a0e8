//! Transactional memory.

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::request::{Marker, Nonce};
use crate::compare::{Compare, OpResult};
use crate::error::Result;
use crate::name::{Kind, Name};
use crate::token::FencingToken;

/// A key: users' keys are of [`Kind::Data`], a barrier's of [`Kind::Barrier`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Which kind of keys it belongs to.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
}

impl Key {
    /// Names a user's key.
    pub const fn data(name: Name) -> Self {
        Self { kind: Kind::Data, name }
    }
}

/// A key to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRead {
    /// The key.
    pub key: Key,
    /// The modification revision that the reader knows, 0 for an absent key. The store sends no value for a key whose
    /// revision is still this one.
    pub known: Option<u64>,
}

/// The value of a key, with its revisions.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoredValue {
    /// The payload, or `None` if the reader has it already.
    pub value: Option<Arc<[u8]>>,
    /// The revision that created the key.
    pub created: u64,
    /// The revision that wrote it last.
    pub modified: u64,
    /// How often it was written since it was created, from 1.
    pub version: u64,
}

impl StoredValue {
    /// Describes a value.
    pub const fn new(value: Option<Arc<[u8]>>, created: u64, modified: u64, version: u64) -> Self {
        Self {
            value,
            created,
            modified,
            version,
        }
    }
}

impl fmt::Debug for StoredValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredValue")
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// The state of some keys at one revision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Snapshot {
    /// The revision of the store.
    pub revision: u64,
    /// The keys, in the order in which they were asked for; `None` for an absent one.
    pub values: Vec<Option<StoredValue>>,
}

impl Snapshot {
    /// Describes a snapshot.
    pub const fn new(revision: u64, values: Vec<Option<StoredValue>>) -> Self {
        Self { revision, values }
    }
}

/// One operation of a commit.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Write {
    /// Reads a key at this point of the commit.
    Get(Key),
    /// Writes a key. One that is `leased` vanishes with the session.
    Put {
        /// The key.
        key: Key,
        /// The payload.
        value: Arc<[u8]>,
        /// Whether the key ends with the session. Leased keys are never of [`Kind::Data`].
        leased: bool,
    },
    /// Removes a key.
    Delete(Key),
}

impl Write {
    /// Returns the key.
    pub const fn key(&self) -> &Key {
        match self {
            Self::Get(key) | Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = match self {
            Self::Get(_) => "Get",
            Self::Put { .. } => "Put",
            Self::Delete(_) => "Delete",
        };
        f.debug_tuple(word).field(self.key()).finish()
    }
}

/// The guard that a commit is bound to: it takes effect only while the guard holds in the store (rule T3).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fence {
    /// The request that was granted the guard, of this session.
    pub nonce: Nonce,
    /// The kind of the guard's object.
    pub kind: Kind,
    /// The guard's name.
    pub name: Name,
    /// The guard's token.
    pub token: FencingToken,
    /// Whether the guard has to hold its object alone; false for a reader's.
    pub exclusive: bool,
}

impl Fence {
    /// Describes a fence.
    pub const fn new(nonce: Nonce, kind: Kind, name: Name, token: FencingToken, exclusive: bool) -> Self {
        Self {
            nonce,
            kind,
            name,
            token,
            exclusive,
        }
    }
}

/// One atomic step: if the fence holds and all comparisons do, `then` is carried out, otherwise `or_else`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Commit {
    /// Its identity. The store keeps the outcome in the slot, so that a lost answer can be resolved (rule T4).
    pub marker: Marker,
    /// The guard that it is bound to.
    pub fence: Option<Fence>,
    /// The comparisons.
    pub compares: Vec<Compare<Key>>,
    /// The operations if all comparisons hold.
    pub then: Vec<Write>,
    /// The operations otherwise.
    pub or_else: Vec<Write>,
}

impl Commit {
    /// Describes a commit that does nothing.
    pub const fn new(marker: Marker) -> Self {
        Self {
            marker,
            fence: None,
            compares: Vec::new(),
            then: Vec::new(),
            or_else: Vec::new(),
        }
    }
}

/// The effects and results of a commit.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CommitRecord {
    /// Whether all comparisons held.
    pub succeeded: bool,
    /// The revision of the commit: that of its writes, or the one at which it read.
    pub revision: u64,
    /// The results of the operations that were carried out, in their order.
    pub results: Vec<OpResult>,
}

impl CommitRecord {
    /// Describes what a commit did.
    pub const fn new(succeeded: bool, revision: u64, results: Vec<OpResult>) -> Self {
        Self {
            succeeded,
            revision,
            results,
        }
    }
}

/// The outcome of a commit.
#[derive(Clone, Debug)]
pub enum CommitOutcome {
    /// It was carried out.
    Done(CommitRecord),
    /// The fence did not hold. Nothing was changed.
    FenceLost,
}

/// The store's record of a commit whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was carried out; what it read is not known any more.
    Committed {
        /// Whether all comparisons held.
        succeeded: bool,
        /// Its revision.
        revision: u64,
    },
    /// It was not carried out and never will be: its place is taken by a mark that says so.
    Aborted,
}

/// Transactional memory (rules T1 to T5): keys with revisions.
///
/// Revisions rise over the whole namespace. A key that a dead session has leased is absent for every read and comparison.
#[async_trait]
pub trait Stm: Send + Sync + 'static {
    /// Reads all keys at one revision: at `at` if the store has snapshots and this one is kept, else at the current one.
    /// The caller has to compare [`Snapshot::revision`].
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    async fn read(&self, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot>;

    /// Carries the commit out. Repeated under its marker it answers as it did the first time, or with an error whose effect
    /// is unknown if the answer is not kept: core resolves it then.
    ///
    /// # Errors
    ///
    /// `Lost` if the session has ended, `Conflict` if the slot holds a greater nonce: the commit arrives too late.
    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome>;

    /// Finds out whether the commit of this marker was carried out, and keeps it from ever being if it was not.
    ///
    /// # Errors
    ///
    /// `Conflict` if the slot holds a greater nonce, so that the store cannot tell any more; `Unavailable`, `Unauthorized` or `Internal`. Core calls it again.
    async fn resolve(&self, marker: Marker) -> Result<Resolution>;

    /// Waits until one of `keys` may have changed after `revision`, for as long as one step of this store can.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()>;

    /// Refuses a commit that is beyond the limits of the store, before anything is sent (rule T5).
    ///
    /// # Errors
    ///
    /// `TooLarge`, with the limit and what the commit would need.
    fn check(&self, commit: &Commit) -> Result<()>;
}
