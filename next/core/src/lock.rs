//! Locks: the handle and the guard.

use std::time::Duration;

use crate::backend::Mode;
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::{Holding, deref_to_holding};
use crate::name::Kind;
use crate::runtime::departures::Ending;
use crate::session::Session;
use crate::token::FencingToken;

/// A handle of a session on a lock, from [`Session::locker`](crate::Session::locker). Cheap to clone.
///
/// At most one guard of a name is valid at a time, between sessions and between the tasks of one session alike: a second
/// `lock` of the same session waits (no silent re-entrancy). Waiters are granted in the order in which they arrived.
///
/// A guard is only as good as its lease: guard the *resource* with the guard's [`token`](Holding::token) where a paused holder
/// could do harm.
///
/// # Errors
///
/// Every call that acquires fails with `Lost` when the session ends before the grant; `TooLarge` when the session has too many
/// entries; `InvalidName`; `Unauthorized`; `Unsupported` on a store without locks. An unreachable store is retried until the
/// session ends.
///
/// # Cancel safety
///
/// Every call that acquires is cancel safe at every await point: the request leaves the wait queue, and a grant that crosses
/// with the cancellation is released. A later call joins the queue at its end.
#[derive(Clone, Debug)]
pub struct LockHandle(Handle);

impl LockHandle {
    /// Returns the lock's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Acquires the lock. Waits in its wait queue without a time limit.
    ///
    /// Keep the guard in a variable: `let _ = handle.lock().await?` releases it at once, without a warning.
    pub async fn lock(&self) -> Result<LockGuard> {
        self.0
            .acquire_place("lock", Mode::Exclusive, None, None)
            .await
            .map(LockGuard)
    }

    /// Calls [`lock`](Self::lock) with a time limit: fails with `TimedOut` after `limit`, plus at most 500 ms in which the
    /// store confirms the withdrawal. A limit of zero still acquires a free lock.
    pub async fn lock_timeout(&self, limit: Duration) -> Result<LockGuard> {
        let acquiring = self.0.acquire_place("lock_timeout", Mode::Exclusive, None, Some(limit));
        acquiring.await.map(LockGuard)
    }

    /// Acquires the lock if it is free and has no waiters. Otherwise it returns `None` and leaves nothing in the store. Fails
    /// with `Unavailable` when the store does not answer, and with `TooLarge` when a full session has no room within 500 ms.
    ///
    /// A guard that was dropped before is released in the background, so that the lock may not be free yet:
    /// [`release`](LockGuard::release) waits for the store.
    pub async fn try_lock(&self) -> Result<Option<LockGuard>> {
        let acquired = self.0.try_acquire_place("try_lock", Mode::Exclusive, None).await?;
        Ok(acquired.map(LockGuard))
    }

    /// Runs `work` under the lock: acquires it, passes the token, stops the work at its next await point if the lock is lost,
    /// and releases it. As cancel safe as `work`.
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
    /// `Lost` also when the lock was lost before the work had ended: how much of it happened under the lock is then unknown. An
    /// unconfirmed release does not discard the output of the work: the release continues in the background.
    pub async fn with<T>(&self, work: impl AsyncFnOnce(FencingToken) -> T) -> Result<T> {
        let guard = self.0.acquire_place("with", Mode::Exclusive, None, None).await?;
        let done = guard.while_held(work(guard.token())).await?;
        guard.end_after_work("with", Ending::Release).await?;
        Ok(done)
    }

    /// Reclaims the lock that this session held under `token` before it was detached and resumed. Never waits.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token any more, or was reclaimed before; `InvalidName`.
    pub async fn reclaim(&self, token: FencingToken) -> Result<LockGuard> {
        self.0.reclaim("reclaim", Mode::Exclusive, token).map(LockGuard)
    }
}

impl Session {
    /// Returns a handle on the lock `name`. A bad name is an error of its first call.
    pub fn locker(&self, name: impl AsRef<str>) -> LockHandle {
        LockHandle(Handle::new(self.state(), Kind::Lock, name))
    }

    /// Acquires the lock `name`: see [`LockHandle::lock`].
    pub async fn lock(&self, name: impl AsRef<str>) -> Result<LockGuard> {
        self.locker(name).lock().await
    }

    /// Acquires the lock `name` if it is free: see [`LockHandle::try_lock`].
    pub async fn try_lock(&self, name: impl AsRef<str>) -> Result<Option<LockGuard>> {
        self.locker(name).try_lock().await
    }
}

/// The guard of a lock. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop releases the lock in the background; [`release`](Self::release) also reports whether it was held until then.
#[must_use = "a guard that is not bound releases the lock at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct LockGuard(Holding);

deref_to_holding!(LockGuard.0);

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
