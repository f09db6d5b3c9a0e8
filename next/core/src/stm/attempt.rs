//! One attempt of a transaction.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec::{decode, encode, text};
use super::state::{AttemptState, Ended, Seen};
use super::{Isolation, Reader};
use crate::error::Result;
use crate::name::Name;
use crate::value;

/// One attempt of a transaction, as its closure receives it. Cheap to clone. Calls fail with `Conflict` once the
/// attempt has ended.
///
/// Reads return the attempt's own writes. No other client sees the writes before the commit.
///
/// # Errors
///
/// A read fails with `Conflict` when a key read before has changed: pass the error on, and the transaction runs again.
/// `Lost` when the session has ended. Reads and writes fail with `InvalidName`, writes with `TooLarge`: such a call does
/// nothing, and the attempt can continue.
///
/// # Cancel safety
///
/// Reads are cancel safe.
#[derive(Clone)]
pub struct Tx(Arc<Attempt>);

struct Attempt {
    reader: Reader,
    isolation: Isolation,
    /// Whether further reads have to validate the earlier ones, because the store did not read at an earlier revision.
    validates: Arc<AtomicBool>,
    /// Serializes the reads: each one extends the snapshot of the earlier ones.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<AttemptState>,
}

/// Ends the attempt when it is dropped, so that a clone of its [`Tx`] that outlives the closure is refused.
pub(super) struct EndOnDrop(pub(super) Tx);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Tx")
            .field("reads", &state.done.reads.len())
            .field("writes", &state.done.writes.len())
            .field("over", &state.over)
            .finish_non_exhaustive()
    }
}

impl Tx {
    pub(super) fn new(reader: Reader, isolation: Isolation, validates: Arc<AtomicBool>, state: AttemptState) -> Self {
        Self(Arc::new(Attempt {
            reader,
            isolation,
            validates,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        }))
    }

    fn state(&self) -> MutexGuard<'_, AttemptState> {
        self.0.state.lock()
    }

    pub(super) fn end(&self) -> Ended {
        let mut state = self.state();
        let ended = std::mem::take(&mut *state);
        state.over = true;
        ended.done
    }

    /// Returns the value under `key`, or the value that this attempt wrote there.
    pub async fn get(&self, key: impl AsRef<str>) -> Result<Option<Vec<u8>>> {
        Ok(self.value(key).await?.map(|value| value.to_vec()))
    }

    /// Reads several keys like [`get`](Self::get), in one round trip.
    pub async fn get_many<K: AsRef<str>>(&self, keys: impl IntoIterator<Item = K>) -> Result<Vec<Option<Vec<u8>>>> {
        let names: Vec<Name> = keys.into_iter().map(Name::new).collect::<Result<_>>()?;
        let values = self.values(names).await?;
        Ok(values
            .into_iter()
            .map(|value| value.map(|value| value.to_vec()))
            .collect())
    }

    /// Reads `key` like [`get`](Self::get) and returns the value as text. Fails with `Conflict` when it is not UTF-8.
    pub async fn get_string(&self, key: impl AsRef<str>) -> Result<Option<String>> {
        let value = self.value(&key).await?;
        value.map(|value| text(key.as_ref(), value.to_vec())).transpose()
    }

    /// Reads `key` like [`get`](Self::get) and decodes the value as the JSON of a `T`. Fails with `Conflict` when it is not
    /// that.
    pub async fn get_as<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Result<Option<T>> {
        let value = self.value(&key).await?;
        value.map(|value| decode(key.as_ref(), &value)).transpose()
    }

    /// Returns the store's revision at which `key` was last written; 0 if it is absent. The attempt's own writes do not
    /// count.
    pub async fn rev(&self, key: impl AsRef<str>) -> Result<u64> {
        let seen = self.look(&[Name::new(key)?]).await?;
        Ok(seen.first().map_or(0, |seen| seen.modified))
    }

    /// Writes `value` under `key` if the attempt commits.
    pub fn put(&self, key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Result<()> {
        let (name, value) = (Name::new(key)?, value.into());
        value::check(&value).map_err(|error| error.on(name.as_str()))?;
        self.write(name, Some(value.into()))
    }

    /// Writes the JSON of `value` like [`put`](Self::put). Fails with `Config` when it cannot be written as JSON.
    pub fn put_as<T: Serialize + ?Sized>(&self, key: impl AsRef<str>, value: &T) -> Result<()> {
        let json = encode(key.as_ref(), value)?;
        self.put(key, json)
    }

    /// Deletes `key` if the attempt commits.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<()> {
        self.write(Name::new(key)?, None)
    }

    fn write(&self, name: Name, value: Option<Arc<[u8]>>) -> Result<()> {
        let mut state = self.state();
        state.check()?;
        state.done.writes.insert(name, value);
        Ok(())
    }

    async fn value(&self, key: impl AsRef<str>) -> Result<Option<Arc<[u8]>>> {
        let mut values = self.values(vec![Name::new(key)?]).await?;
        Ok(values.pop().flatten())
    }

    async fn values(&self, names: Vec<Name>) -> Result<Vec<Option<Arc<[u8]>>>> {
        let mut values: Vec<Option<Option<Arc<[u8]>>>> = {
            let state = self.state();
            state.check()?;
            names.iter().map(|name| state.done.writes.get(name).cloned()).collect()
        };
        let is_unwritten = |(_, value): &(&Name, &Option<_>)| value.is_none();
        let unwritten = names.iter().zip(&values).filter(is_unwritten);
        let unwritten: Vec<Name> = unwritten.map(|(name, _)| name.clone()).collect();
        let mut seen = self.look(&unwritten).await?.into_iter();
        for value in values.iter_mut().filter(|value| value.is_none()) {
            *value = seen.next().map(|seen| seen.value);
        }
        Ok(values.into_iter().map(Option::flatten).collect())
    }

    /// Returns the state of `names` in this attempt's snapshot.
    async fn look(&self, names: &[Name]) -> Result<Vec<Seen>> {
        if let Some(seen) = self.state().recall(names)? {
            return Ok(seen);
        }
        let _turn = self.0.turn.lock().await;
        loop {
            let validates = self.0.validates.load(Ordering::Relaxed);
            let (keys, at) = {
                let mut state = self.state();
                if let Some(seen) = state.recall(names)? {
                    return Ok(seen);
                }
                state.wanted(names, self.0.isolation, validates)
            };
            let snapshot = self.0.reader.read(keys.clone(), at).await?;
            let mut state = self.state();
            state.check()?;
            if !validates && at.is_some_and(|at| at != snapshot.revision) {
                // The store has moved on and keeps no snapshots: read the earlier keys again too. No value is sent
                // twice.
                self.0.validates.store(true, Ordering::Relaxed);
                state.expect(keys, snapshot)?;
            } else {
                state.learn(keys, snapshot, self.0.isolation)?;
            }
        }
    }
}
