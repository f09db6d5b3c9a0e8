//! Read-write locks: the handle and the guards.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::backend::{Mode, RwLock};
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::{Holding, deref_to_holding};
use crate::name::Kind;
use crate::runtime::departures::Ending;
use crate::session::Session;
use crate::token::FencingToken;

/// A handle of a session on a read-write lock, from [`Session::rw_lock`](crate::Session::rw_lock). Cheap to clone.
///
/// Readers and writers are granted in the order of their arrival, adjacent readers together. This also holds inside a
/// session: its writers wait for its own readers, and its next [`read`](Self::read) waits behind a waiting writer. A
/// task that holds a read guard therefore must not wait for another guard of the same lock: use
/// [`try_read`](Self::try_read), or release first.
///
/// # Errors
///
/// Every call that acquires fails with `Lost` when the session ends before the grant; `TooLarge` when the session has
/// too many entries; `InvalidName`; `Unauthorized`; `Unsupported` on a store without read-write locks. An unreachable
/// store is retried until the session ends.
///
/// # Cancel safety
///
/// Every call that acquires is cancel safe at every await point: the request leaves the wait queue, and a grant that
/// crosses with the cancellation is released.
#[derive(Clone, Debug)]
pub struct RwLockHandle(Handle);

impl RwLockHandle {
    /// Returns the lock's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Acquires the lock for reading. Waits in its wait queue without a time limit.
    pub async fn read(&self) -> Result<ReadGuard> {
        self.0
            .acquire_place("read", Mode::Shared, None, None)
            .await
            .map(ReadGuard::new)
    }

    /// Calls [`read`](Self::read) with a time limit: fails with `TimedOut` after `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    pub async fn read_timeout(&self, limit: Duration) -> Result<ReadGuard> {
        let acquiring = self.0.acquire_place("read_timeout", Mode::Shared, None, Some(limit));
        acquiring.await.map(ReadGuard::new)
    }

    /// Acquires the lock for reading if no writer holds it and it has no waiters. Otherwise it returns `None` and
    /// leaves nothing in the store. Fails with `Unavailable` when the store does not answer.
    pub async fn try_read(&self) -> Result<Option<ReadGuard>> {
        let acquired = self.0.try_acquire_place("try_read", Mode::Shared, None).await?;
        Ok(acquired.map(ReadGuard::new))
    }

    /// Acquires the lock for writing. Waits in its wait queue without a time limit, also for readers of the same
    /// session.
    pub async fn write(&self) -> Result<WriteGuard> {
        self.0
            .acquire_place("write", Mode::Exclusive, None, None)
            .await
            .map(WriteGuard)
    }

    /// Calls [`write`](Self::write) with a time limit, like [`read_timeout`](Self::read_timeout).
    pub async fn write_timeout(&self, limit: Duration) -> Result<WriteGuard> {
        let acquiring = self
            .0
            .acquire_place("write_timeout", Mode::Exclusive, None, Some(limit));
        acquiring.await.map(WriteGuard)
    }

    /// Acquires the lock for writing if it is free and has no waiters. Otherwise it returns `None` and leaves nothing
    /// in the store. Fails with `Unavailable` when the store does not answer.
    pub async fn try_write(&self) -> Result<Option<WriteGuard>> {
        let acquired = self.0.try_acquire_place("try_write", Mode::Exclusive, None).await?;
        Ok(acquired.map(WriteGuard))
    }

    /// Reclaims what this session held for reading under `token` before it was detached and resumed: a read guard, or
    /// a write guard that was downgraded. Never waits.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token any more, or was reclaimed before; `InvalidName`.
    pub async fn reclaim_read(&self, token: FencingToken) -> Result<ReadGuard> {
        self.0.reclaim("reclaim_read", Mode::Shared, token).map(ReadGuard::new)
    }

    /// Reclaims what this session held for writing under `token` before it was detached and resumed. Never waits.
    ///
    /// # Errors
    ///
    /// As for [`reclaim_read`](Self::reclaim_read). `Lost` also for a write guard that was downgraded: reclaim it for
    /// reading.
    pub async fn reclaim_write(&self, token: FencingToken) -> Result<WriteGuard> {
        self.0.reclaim("reclaim_write", Mode::Exclusive, token).map(WriteGuard)
    }
}

impl Session {
    /// Returns a handle on the read-write lock `name`. A bad name is an error of its first call.
    pub fn rw_lock(&self, name: impl AsRef<str>) -> RwLockHandle {
        RwLockHandle(Handle::new(self.state(), Kind::RwLock, name))
    }

    /// Acquires the read-write lock `name` for reading: see [`RwLockHandle::read`].
    pub async fn read_lock(&self, name: impl AsRef<str>) -> Result<ReadGuard> {
        self.rw_lock(name).read().await
    }

    /// Acquires the read-write lock `name` for writing: see [`RwLockHandle::write`].
    pub async fn write_lock(&self, name: impl AsRef<str>) -> Result<WriteGuard> {
        self.rw_lock(name).write().await
    }
}

/// A guard for reading. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct ReadGuard(Holding);

deref_to_holding!(ReadGuard.0);

impl ReadGuard {
    fn new(holding: Holding) -> Self {
        Self(holding.into_shared())
    }

    /// Releases the lock: see [`LockGuard::release`](crate::LockGuard::release).
    pub async fn release(self) -> Result<()> {
        self.0.end("release", Ending::Release).await
    }
}

/// A guard for writing. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct WriteGuard(Holding);

deref_to_holding!(WriteGuard.0);

impl WriteGuard {
    /// Releases the lock: see [`LockGuard::release`](crate::LockGuard::release).
    pub async fn release(self) -> Result<()> {
        self.0.end("release", Ending::Release).await
    }

    /// Turns this into a guard for reading, with the same token and the same place in the order: no writer is granted
    /// in between, and readers that wait directly behind are granted.
    ///
    /// # Errors
    ///
    /// `Lost` if it was no longer held; `Unsupported` on a store whose layout does not allow it. The lock is released
    /// then.
    ///
    /// # Cancel safety
    ///
    /// A dropped call releases the lock.
    pub async fn downgrade(self) -> Result<ReadGuard> {
        let lock = Arc::clone(self.0.held().session().backend()).rw_lock();
        let token = self.0.token();
        let downgrade = move |lock: Arc<dyn RwLock>, request, marker| {
            async move { lock.downgrade(marker, &request, token).await }.boxed()
        };
        self.0.step("downgrade", lock, downgrade).await?;
        Ok(ReadGuard::new(self.0))
    }
}
