//! Locks: the trait, the handle, the guard.

use std::fmt;
use std::ops::Deref;
use std::time::Duration;

use async_trait::async_trait;

use crate::ask::{Ask, Grant};
use crate::handle::{Handle, Landing};
use crate::holding::Holding;
use crate::name::Name;
use crate::settle::Settle;
use crate::{Error, FencingToken, Result};

/// The locks of one session, as a backend implements them.
///
/// # To ensure correctness
///
/// Beside what [`Settle`] asks for:
///
/// - L1: at most one grant for a name at a time, also between two asks of this session.
/// - L2: a grant's token is greater than every token granted before for that name.
/// - L3: `acquire` grants in the order in which the *store* saw the asks arrive.
/// - Everything is idempotent under [`Ask::nonce`]: core calls `acquire` again with the same ask
///   after a retryable failure.
/// - Every call ends within a bound of the backend's own, whatever the network does, except an
///   `acquire` that waits its turn.
///
/// Core drives every future to its end; none is dropped in mid-request while the runtime lives.
#[async_trait]
pub trait Locker: Settle {
    /// Takes the lock if it is free and nobody waits for it; leaves nothing behind if not.
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>>;

    /// Takes the lock, waiting in line for it. Watches [`Ask::withdrawn`] while it waits.
    async fn acquire(&self, ask: &Ask) -> Result<Grant>;
}

/// One lock, of one session: what [`Session::locker`](crate::Session::locker) returns. Cheap to
/// clone.
///
/// At most one guard for a name is valid at a time, between sessions and between the tasks of
/// one session alike: a second `lock` of the same session waits (no silent re-entrancy). Waiters
/// are granted in the order in which they arrived.
///
/// A guard is only as good as its lease: guard the *resource* with the guard's
/// [`token`](Holding::token) where a paused holder could do harm.
pub struct LockHandle<L: ?Sized = dyn Locker>(Handle<L>);

impl<L: ?Sized> Clone for LockHandle<L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<L: Locker + ?Sized> fmt::Debug for LockHandle<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockHandle")
            .field("name", self.name())
            .finish_non_exhaustive()
    }
}

impl<L: Locker + ?Sized> LockHandle<L> {
    pub(crate) fn new(handle: Handle<L>) -> Self {
        Self(handle)
    }

    /// The lock's name.
    pub fn name(&self) -> &Name {
        self.0.name()
    }

    /// Takes the lock, waiting in line for as long as it takes.
    ///
    /// Keep the guard in a variable: `let _ = handle.lock().await?` releases it at once, without
    /// a warning.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge` when the session holds too much;
    /// `Unauthorized`. A store that cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the place in line is given up, and a grant that crosses
    /// with the cancellation is given back. Calling again means going to the end of the line.
    pub async fn lock(&self) -> Result<LockGuard> {
        self.wait("lock", None).await
    }

    /// [`lock`](Self::lock), for no longer than `limit`.
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

    /// Takes the lock if it is free and nobody waits for it. Leaves nothing behind.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when it is not free; `Unavailable` when the store does not answer; those of
    /// [`lock`](Self::lock).
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    pub async fn try_lock(&self) -> Result<LockGuard> {
        let operation = "try_lock";
        let landed = self.0.attempt(operation, |locker, ask| {
            Box::pin(async move { locker.try_acquire(&ask).await })
        });
        match landed.await? {
            Some(landing) => Ok(self.guard(landing)),
            None => Err(self
                .0
                .explain(Error::would_block("holds it or waits for it"), operation)),
        }
    }

    /// Runs `work` under the lock: takes it, passes the token, stops the work at its next await
    /// point if the lock is lost, and releases.
    ///
    /// ```
    /// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
    /// let total = session.locker("orders")?.with(async |token| {
    ///     // charge(token) ...
    ///     token.get()
    /// }).await?;
    /// # let _ = total; Ok(()) }
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`lock`](Self::lock), and `Lost` when the lock was lost before the work had ended: how much of
    /// it happened under the lock is then unknown. What the work returned is never thrown away because the
    /// release was not confirmed: that goes on in the background.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`; the lock is released.
    pub async fn with<T, F: Future<Output = T>>(
        &self,
        work: impl FnOnce(FencingToken) -> F,
    ) -> Result<T> {
        let guard = self.lock().await?;
        let done = guard.while_held(work(guard.token())).await?;
        guard.0.release_after_work("with").await?;
        Ok(done)
    }

    /// Takes up a lock that this session held under `token` before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held under that token any more, or was taken up already;
    /// `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; a dropped call may release the lock.
    pub async fn reclaim(&self, token: FencingToken) -> Result<LockGuard> {
        self.0.reclaim("reclaim", token).await.map(LockGuard)
    }

    async fn wait(&self, operation: &'static str, limit: Option<Duration>) -> Result<LockGuard> {
        let landing = self.0.wait(operation, limit, |locker, ask| {
            Box::pin(async move { locker.acquire(&ask).await })
        });
        landing.await.map(|landing| self.guard(landing))
    }

    fn guard(&self, landing: Landing<Grant>) -> LockGuard {
        LockGuard(self.0.hold(landing))
    }
}

/// The lock, held. Derefs to [`Holding`]: token, validity, loss signal.
///
/// Dropping it releases in the background; [`release`](Self::release) also says whether it was
/// held until then.
#[must_use = "if unused, the lock is released at once"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct LockGuard(Holding);

impl LockGuard {
    /// Gives the lock back. `Ok` says that it was held until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it was not held any more: somebody else may hold it, and is spared.
    /// `Unavailable` if the store did not confirm; it is tried again in the background until it
    /// does or the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for LockGuard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}
