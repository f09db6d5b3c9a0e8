//! Locks: the handle and the guard.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Mode, WaitQueue};
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::Holding;
use crate::name::Kind;
use crate::runtime::acquire::WaitLimit;
use crate::runtime::departures::Ending;
use crate::runtime::session::SessionRef;
use crate::token::FencingToken;

/// A handle of a session on a lock, from [`Session::locker`](crate::Session::locker). Cheap to clone.
///
/// At most one guard of a name is valid at a time, between sessions and between the tasks of one session alike: a second
/// `lock` of the same session waits (no silent re-entrancy). Waiters are granted in the order in which they arrived.
///
/// A guard is only as good as its lease: guard the *resource* with the guard's [`token`](Holding::token) where a paused holder
/// could do harm.
#[derive(Clone)]
pub struct LockHandle(Handle);

impl LockHandle {
    pub(crate) fn new(session: &SessionRef, name: impl AsRef<str>) -> Self {
        Self(Handle::new(session, Kind::Lock, name))
    }

    /// Returns the lock's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    fn queue(&self) -> Option<Arc<dyn WaitQueue>> {
        Arc::clone(self.0.session().backend()).locker().map(|locks| locks as _)
    }

    async fn wait(&self, operation: &'static str, limit: Option<Duration>) -> Result<LockGuard> {
        let joining = self
            .0
            .join_and_wait(operation, self.queue(), Mode::Exclusive, None, limit);
        joining.await.map(LockGuard)
    }

    /// Acquires the lock. Waits in its wait queue without a time limit.
    ///
    /// Keep the guard in a variable: `let _ = handle.lock().await?` releases it at once, without a warning.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge` when the session has too many entries; `InvalidName`;
    /// `Unauthorized`; `Unsupported` on a store without locks. An unreachable store is retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the request leaves the wait queue, and a grant that crosses with the cancellation is
    /// released. A later call joins the queue at its end.
    pub async fn lock(&self) -> Result<LockGuard> {
        self.wait("lock", None).await
    }

    /// Calls [`lock`](Self::lock) with a time limit: waits for at most `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    ///
    /// # Errors
    ///
    /// `TimedOut` when the lock was not granted in time, and those of [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    pub async fn lock_timeout(&self, limit: Duration) -> Result<LockGuard> {
        self.wait("lock_timeout", Some(limit)).await
    }

    /// Acquires the lock if it is free and has no waiters. Otherwise it returns `None` and leaves nothing in the store.
    ///
    /// A guard that was dropped before is released in the background, so that the lock may not be free yet:
    /// [`release`](LockGuard::release) waits for the store.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the store does not answer; those of [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<Option<LockGuard>> {
        let joining = self
            .0
            .join("try_lock", self.queue(), Mode::Exclusive, None, WaitLimit::Try);
        Ok(joining.await?.map(LockGuard))
    }

    /// Runs `work` under the lock: acquires it, passes the token, stops the work at its next await point if the lock is lost,
    /// and releases it.
    ///
    /// ```
    /// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
    /// let total = session.locker("orders").with(async |token| {
    ///     // charge(token) ...
    ///     token.get()
    /// }).await?;
    /// # let _ = total; Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`lock`](Self::lock), and `Lost` when the lock was lost before the work had ended: how much of it happened
    /// under the lock is then unknown. An unconfirmed release does not discard the output of the work: the release continues
    /// in the background.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`; the lock is released.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(FencingToken) -> T) -> Result<T> {
        let guard = self.wait("with", None).await?;
        let done = guard.while_held(work(guard.token())).await?;
        guard.0.end_after_work("with", Ending::Release).await?;
        Ok(done)
    }

    /// Reclaims the lock that this session held under `token` before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token any more, or was reclaimed before; `InvalidName`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it never waits.
    pub async fn reclaim(&self, token: FencingToken) -> Result<LockGuard> {
        self.0.reclaim("reclaim", Mode::Exclusive, token).map(LockGuard)
    }
}

impl fmt::Debug for LockHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockHandle")
            .field("name", &self.0.text())
            .finish_non_exhaustive()
    }
}

/// The guard of a lock. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background; [`release`](Self::release) also reports whether it was held until then.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct LockGuard(Holding);

impl LockGuard {
    /// Releases the lock. `Ok` means that it was held until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it was no longer held: another client may hold it, and keeps it. If the store refuses, its error; the release
    /// is then tried again in the background until it is confirmed or the session ends. An unreachable store is retried until
    /// the session ends.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn release(self) -> Result<()> {
        self.0.end("release", Ending::Release).await
    }
}

impl Deref for LockGuard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}
