//! Read-write locks: the handle and the guards.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::backend::{Mode, RwLock, WaitQueue};
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::Holding;
use crate::name::Kind;
use crate::runtime::acquire::WaitLimit;
use crate::runtime::departures::Ending;
use crate::runtime::session::SessionRef;
use crate::runtime::step::step;
use crate::session::Session;
use crate::token::FencingToken;

/// A handle of a session on a read-write lock, from [`Session::rw_lock`](crate::Session::rw_lock). Cheap to clone.
///
/// Readers and writers are granted in the order of their arrival, adjacent readers together. This also holds inside a
/// session: its writers wait for its own readers, and its next [`read`](Self::read) waits behind a waiting writer. A
/// task that holds a read guard therefore must not wait for another guard of the same lock: use
/// [`try_read`](Self::try_read), or release first.
#[derive(Clone)]
pub struct RwLockHandle(Handle);

impl fmt::Debug for RwLockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLockHandle")
            .field("name", &self.0.text())
            .finish_non_exhaustive()
    }
}

impl RwLockHandle {
    pub(crate) fn new(session: &SessionRef, name: impl AsRef<str>) -> Self {
        Self(Handle::new(session, Kind::RwLock, name))
    }

    /// Returns the lock's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Acquires the lock for reading. Waits in its wait queue without a time limit.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge` when the session has too many entries; `InvalidName`;
    /// `Unauthorized`. An unreachable store is retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the request leaves the wait queue, and a grant that crosses with the
    /// cancellation is released.
    pub async fn read(&self) -> Result<ReadGuard> {
        self.wait("read", Mode::Shared, None).await.map(ReadGuard::new)
    }

    /// Calls [`read`](Self::read) with a time limit: waits for at most `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn read_timeout(&self, limit: Duration) -> Result<ReadGuard> {
        let waiting = self.wait("read_timeout", Mode::Shared, Some(limit));
        waiting.await.map(ReadGuard::new)
    }

    /// Acquires the lock for reading if no writer holds it and it has no waiters. Otherwise it returns `None` and
    /// leaves nothing in the store.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the store does not answer; those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn try_read(&self) -> Result<Option<ReadGuard>> {
        let joining = self
            .0
            .join("try_read", self.queue(), Mode::Shared, None, WaitLimit::Try);
        Ok(joining.await?.map(ReadGuard::new))
    }

    /// Acquires the lock for writing. Waits in its wait queue without a time limit, also for readers of the same
    /// session.
    ///
    /// # Errors
    ///
    /// As for [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard> {
        self.wait("write", Mode::Exclusive, None).await.map(WriteGuard)
    }

    /// Calls [`write`](Self::write) with a time limit: waits for at most `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write_timeout(&self, limit: Duration) -> Result<WriteGuard> {
        let waiting = self.wait("write_timeout", Mode::Exclusive, Some(limit));
        waiting.await.map(WriteGuard)
    }

    /// Acquires the lock for writing if it is free and has no waiters. Otherwise it returns `None` and leaves nothing
    /// in the store.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the store does not answer; those of [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn try_write(&self) -> Result<Option<WriteGuard>> {
        let joining = self
            .0
            .join("try_write", self.queue(), Mode::Exclusive, None, WaitLimit::Try);
        Ok(joining.await?.map(WriteGuard))
    }

    /// Reclaims what this session held for reading under `token` before it was detached and resumed: a read guard, or
    /// a write guard that was downgraded.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token any more, or was reclaimed before; `InvalidName`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it never waits.
    pub async fn reclaim_read(&self, token: FencingToken) -> Result<ReadGuard> {
        self.0.reclaim("reclaim_read", Mode::Shared, token).map(ReadGuard::new)
    }

    /// Reclaims what this session held for writing under `token` before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// As for [`reclaim_read`](Self::reclaim_read). `Lost` also for a write guard that was downgraded: reclaim it for
    /// reading.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it never waits.
    pub async fn reclaim_write(&self, token: FencingToken) -> Result<WriteGuard> {
        self.0.reclaim("reclaim_write", Mode::Exclusive, token).map(WriteGuard)
    }

    fn queue(&self) -> Option<Arc<dyn WaitQueue>> {
        rw_lock(self.0.session()).map(|locks| locks as _)
    }

    async fn wait(&self, operation: &'static str, mode: Mode, limit: Option<Duration>) -> Result<Holding> {
        self.0.join_and_wait(operation, self.queue(), mode, None, limit).await
    }
}

impl Session {
    /// Returns a handle on the read-write lock `name`. A bad name is an error of its first call.
    pub fn rw_lock(&self, name: impl AsRef<str>) -> RwLockHandle {
        RwLockHandle::new(self.state(), name)
    }

    /// Acquires the read-write lock `name` for reading: see [`RwLockHandle::read`].
    ///
    /// # Errors
    ///
    /// As for [`RwLockHandle::read`].
    ///
    /// # Cancel safety
    ///
    /// As for [`RwLockHandle::read`].
    pub async fn read_lock(&self, name: impl AsRef<str>) -> Result<ReadGuard> {
        self.rw_lock(name).read().await
    }

    /// Acquires the read-write lock `name` for writing: see [`RwLockHandle::write`].
    ///
    /// # Errors
    ///
    /// As for [`RwLockHandle::write`].
    ///
    /// # Cancel safety
    ///
    /// As for [`RwLockHandle::write`].
    pub async fn write_lock(&self, name: impl AsRef<str>) -> Result<WriteGuard> {
        self.rw_lock(name).write().await
    }
}

fn rw_lock(session: &SessionRef) -> Option<Arc<dyn RwLock>> {
    Arc::clone(session.backend()).rw_lock()
}

/// A guard for reading. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct ReadGuard(Holding);

impl ReadGuard {
    fn new(holding: Holding) -> Self {
        Self(holding.into_shared())
    }

    /// Releases the lock. `Ok` means that it was held until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it was no longer held: another client may hold it, and keeps it. If the store refuses, its error;
    /// the release is then tried again in the background until it is confirmed or the session ends.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn release(self) -> Result<()> {
        self.0.end("release", Ending::Release).await
    }
}

impl Deref for ReadGuard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}

/// A guard for writing. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct WriteGuard(Holding);

impl WriteGuard {
    /// Releases the lock. `Ok` means that it was held until now.
    ///
    /// # Errors
    ///
    /// As for [`ReadGuard::release`].
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
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
        let operation = "downgrade";
        let (held, token) = (self.0.held(), self.0.token());
        let (session, request) = (Arc::clone(held.session()), held.request().clone());
        let lost = |reason| held.lost_error(reason);
        if let Some(reason) = self.0.loss() {
            return Err(session.explain(lost(reason), operation, Some(self.0.name().as_str())));
        }
        if let Some(lock) = rw_lock(&session) {
            let downgrade = move |marker| {
                let (lock, request) = (Arc::clone(&lock), request.clone());
                async move { lock.downgrade(marker, &request, token).await }.boxed()
            };
            step(&session, operation, Some(self.0.name()), downgrade).await?;
        }
        Ok(ReadGuard::new(self.0))
    }
}

impl Deref for WriteGuard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}
