//! Transactional memory: the handle.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;

use crate::backend::{Key, KeyRead, Write};
use crate::compare::{Compare, Relation, StmEntry, Target};
use crate::error::{Error, Result};
use crate::holding::Holding;
use crate::name::Name;
use crate::runtime::session::SessionRef;
use crate::session::Session;

mod attempt;
mod codec;
mod commit;
mod fenced;
mod isolation;
mod reader;
mod run;
mod state;
mod transaction;

pub use attempt::Tx;
use codec::{decode, encode, text};
use fenced::Bound;
pub use fenced::FencedStm;
pub use isolation::Isolation;
pub(crate) use reader::Reader;
use run::Transaction;
pub(crate) use transaction::change;
pub use transaction::{MAX_OPERATIONS, MAX_TRANSACTION_BYTES, Txn, TxnOutcome};

/// The number of attempts of a transaction unless [`StmHandle::attempts`] sets another.
pub const DEFAULT_ATTEMPTS: u32 = 100;

/// The handle of transactional memory, returned by [`Session::stm`](crate::Session::stm). Cheap to clone.
///
/// Keys are names like any other, values are bytes. A transaction is a closure that reads and writes. Its writes are
/// committed in one step if no key that it read has changed in the meantime. Otherwise the closure runs again, so its
/// other effects must be safe to repeat.
///
/// ```
/// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
/// let left = session.stm().run(async |tx| {
///     let balance: u64 = tx.get_as("alice").await?.unwrap_or(0);
///     let half = balance / 2;
///     let other: u64 = tx.get_as("bob").await?.unwrap_or(0);
///     tx.put_as("alice", &(balance - half))?;
///     tx.put_as("bob", &(other + half))?;
///     Ok(balance - half)
/// }).await?;
/// # let _ = left; Ok(()) }
/// ```
///
/// A transaction whose [`run`](Self::run) is called in a spawned task takes `|tx| async move { .. }`. Variables that
/// the closure mutates stay outside the `async` block: `|tx| { tries += 1; async move { .. } }`.
///
/// # Errors
///
/// Every read and write outside a transaction fails with `InvalidName`, `Unauthorized`, and `Lost` when the session has
/// ended; a write also as [`Txn::commit`]. An unreachable store is retried until the session ends.
///
/// Transactions need a live session. When it is lost, transactions that were not sent end with `Lost`. Those sent but
/// not answered end with `CommitUnknown`. Committed writes remain when the session ends.
///
/// # Cancel safety
///
/// Reads are cancel safe. A write or a transaction happens whole or not at all, and a background task completes a commit
/// that was sent.
#[derive(Clone)]
pub struct StmHandle {
    session: SessionRef,
    isolation: Isolation,
    attempts: u32,
    prefetch: Vec<String>,
    bound: Option<Bound>,
    /// Whether the store keeps no snapshots, as far as this handle has seen.
    validates: Arc<AtomicBool>,
}

impl fmt::Debug for StmHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StmHandle")
            .field("isolation", &self.isolation)
            .field("attempts", &self.attempts)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl StmHandle {
    /// Sets the isolation level. Default: [`Isolation::SerializableSnapshot`].
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Sets the maximum number of attempts, at least one, before a transaction fails with `Conflict`. Default:
    /// [`DEFAULT_ATTEMPTS`].
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.attempts = attempts.max(1);
        self
    }

    /// Reads these keys in one round trip with the first key that the closure reads. A later attempt prefetches the
    /// keys of the attempt before it anyway.
    #[must_use]
    pub fn prefetch<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.prefetch = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Returns a handle whose transactions commit only if `guard` is held in the store at the commit (rule T3).
    /// Transactions of a stale holder (paused, or not yet aware that it lost its lease) therefore have no effect.
    ///
    /// The handle borrows the guard, so that the guard cannot be released before the commit.
    pub fn fenced_by<'g>(&self, guard: &'g Holding) -> FencedStm<'g> {
        let handle = Self {
            bound: Some(Bound::new(&self.session, guard)),
            ..self.clone()
        };
        let guard = PhantomData;
        FencedStm { handle, guard }
    }

    /// Runs `work` as a transaction and repeats it until it commits. Returns the result of the attempt that committed.
    ///
    /// `work` passes the errors of its [`Tx`] on with `?`. An error of its own ends the transaction, which then writes
    /// nothing. [`try_run`](Self::try_run) accepts errors of another type.
    ///
    /// # Errors
    ///
    /// - The errors that `work` returns.
    /// - `Conflict` when all [attempts](Self::attempts) met a conflict: nothing was written. Retryable.
    /// - `InvalidName` and `TooLarge`, before anything is sent.
    /// - `Lost` when the session has ended, or the guard of [`fenced_by`](Self::fenced_by) is not held any more:
    ///   nothing was written.
    /// - `CommitUnknown` when the answer to a commit was lost and the session ended before the outcome was determined,
    ///   or the store cannot tell.
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.try_run(work).await
    }

    /// Runs a transaction like [`run`](Self::run), for closures with an error type of their own.
    pub async fn try_run<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        E: From<Error>,
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let span = tracing::debug_span!("tenure", operation = "transaction", session = %self.session.id());
        let explain = |error: Error| E::from(error.during("transaction"));
        let transaction = Transaction {
            handle: self,
            reader: Reader::new(&self.session).map_err(explain)?,
            fence: Bound::fence(self.bound.clone()).map_err(explain)?,
        };
        transaction.run(work, explain).instrument(span).await
    }

    /// Creates an explicit transaction: `when` comparisons hold `then` operations `or_else` others.
    pub fn txn(&self) -> Txn<'static> {
        Txn::new(&self.session, None)
    }

    /// Returns the value under `key`, read outside any transaction.
    pub async fn get(&self, key: impl AsRef<str>) -> Result<Option<Vec<u8>>> {
        let entry = self.entry(key).await?;
        Ok(entry.map(|entry| entry.value.to_vec()))
    }

    /// Reads `key` like [`get`](Self::get) and returns the value as text. Fails with `Conflict` when it is not UTF-8.
    pub async fn get_string(&self, key: impl AsRef<str>) -> Result<Option<String>> {
        let value = self.get(&key).await?;
        value.map(|value| text(key.as_ref(), value)).transpose()
    }

    /// Reads `key` like [`get`](Self::get) and decodes the value as the JSON of a `T`. Fails with `Conflict` when it is not
    /// that.
    pub async fn get_as<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Result<Option<T>> {
        let value = self.get(&key).await?;
        value.map(|value| decode(key.as_ref(), &value)).transpose()
    }

    /// Returns the entry under `key`: its value and revisions.
    pub async fn entry(&self, key: impl AsRef<str>) -> Result<Option<StmEntry>> {
        let reading = async {
            let key = Key::data(Name::new(key)?);
            let reader = Reader::new(&self.session)?;
            let snapshot = reader.read(vec![KeyRead { key, known: None }], None).await?;
            let stored = snapshot.values.into_iter().next().flatten();
            let entry = |stored: crate::backend::StoredValue| {
                Some(StmEntry {
                    value: stored.value?,
                    created: stored.created,
                    modified: stored.modified,
                    version: stored.version,
                })
            };
            Ok(stored.and_then(entry))
        };
        reading.await.map_err(|error: Error| error.during("get"))
    }

    /// Writes `value` under `key`, and overwrites any present value. Returns the revision of the write.
    pub async fn put(&self, key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Result<u64> {
        let put = Write::Put {
            key: key_of(key, "put")?,
            value: value.into().into(),
            leased: false,
        };
        Ok(change(&self.session, "put", None, put).await?.revision)
    }

    /// Writes the JSON of `value` like [`put`](Self::put). Fails with `Config` when it cannot be written as JSON.
    pub async fn put_as<T: Serialize + ?Sized>(&self, key: impl AsRef<str>, value: &T) -> Result<u64> {
        let json = encode(key.as_ref(), value)?;
        self.put(key, json).await
    }

    /// Deletes `key` and returns whether it existed.
    pub async fn delete(&self, key: impl AsRef<str>) -> Result<bool> {
        let key = key_of(key, "delete")?;
        let exists = exists(key.clone());
        let deleted = change(&self.session, "delete", Some(exists), Write::Delete(key)).await?;
        Ok(deleted.succeeded)
    }
}

impl Session {
    /// Returns a handle on the transactional memory of the namespace.
    pub fn stm(&self) -> StmHandle {
        StmHandle {
            session: Arc::clone(self.state()),
            isolation: Isolation::default(),
            attempts: DEFAULT_ATTEMPTS,
            prefetch: Vec::new(),
            bound: None,
            validates: Arc::default(),
        }
    }
}

fn key_of(key: impl AsRef<str>, operation: &'static str) -> Result<Key> {
    let name = Name::new(key).map_err(|error| error.during(operation))?;
    Ok(Key::data(name))
}

/// Returns the comparison that holds if the key exists.
pub(crate) fn exists(key: Key) -> Compare<Key> {
    Compare::new(key, Target::Created(0), Relation::Greater)
}
