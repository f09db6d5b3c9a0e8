//! Locks: the trait, the handle, the guard.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tracing::Instrument;

use crate::ask::{Ask, Grant};
use crate::drive::{self, BoxFuture, Keeper, Settle};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::{Effect, Error, ErrorKind, FencingToken, Result};

/// The locks of one session, as a backend implements them.
///
/// # To ensure correctness
///
/// - L1: at most one grant for a name at a time, also between two asks of this session.
/// - L2: a grant's token is greater than every token granted before for that name.
/// - L3: `acquire` grants in the order in which the *store* saw the asks arrive.
/// - Everything is idempotent under [`Ask::nonce`]: core calls `acquire` again with the same ask
///   after a retryable failure, and `release` and `withdraw` until one succeeds.
/// - A request of an ask that reaches the store after its `withdraw` has succeeded must have no
///   effect (rule L5).
/// - Every call ends within a bound of the backend's own, whatever the network does, except an
///   `acquire` that waits its turn.
///
/// Core drives every future to its end; none is dropped in mid-request while the runtime lives.
#[async_trait]
pub trait Locker: Send + Sync + 'static {
    /// Takes the lock if it is free and nobody waits for it; leaves nothing behind if not.
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>>;

    /// Takes the lock, waiting in line for it. Watches [`Ask::withdrawn`] while it waits.
    async fn acquire(&self, ask: &Ask) -> Result<Grant>;

    /// Gives the lock back, fenced by the grant.
    ///
    /// # Errors
    ///
    /// `Lost` if the grant was not in force any more; nothing has changed then.
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()>;

    /// Removes whatever `ask` left in the store: a place in line, a grant that nobody took, and
    /// a request that is still on its way.
    async fn withdraw(&self, ask: &Ask) -> Result<()>;

    /// Finds again what this session, resumed after a restart, holds under `token`.
    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let _ = (ask, token);
        Err(Error::unsupported("taking up a lock of a resumed session"))
    }
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
pub struct LockHandle<L: ?Sized = dyn Locker> {
    keeper: Arc<Keeper>,
    locker: Arc<L>,
    settle: Arc<dyn Settle>,
    name: Name,
}

impl<L: ?Sized> Clone for LockHandle<L> {
    fn clone(&self) -> Self {
        Self {
            keeper: Arc::clone(&self.keeper),
            locker: Arc::clone(&self.locker),
            settle: Arc::clone(&self.settle),
            name: self.name.clone(),
        }
    }
}

impl<L: ?Sized> fmt::Debug for LockHandle<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockHandle")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

struct Returns<L: ?Sized>(Arc<L>);

impl<L: Locker + ?Sized> Settle for Returns<L> {
    fn release(&self, ask: Ask, grant: Grant) -> BoxFuture<Result<()>> {
        let locker = Arc::clone(&self.0);
        Box::pin(async move { locker.release(&ask, &grant).await })
    }

    fn withdraw(&self, ask: Ask) -> BoxFuture<Result<()>> {
        let locker = Arc::clone(&self.0);
        Box::pin(async move { locker.withdraw(&ask).await })
    }
}

impl<L: Locker + ?Sized> LockHandle<L> {
    pub(crate) fn new(keeper: Arc<Keeper>, locker: Arc<L>, name: Name) -> Self {
        let settle = Arc::new(Returns(Arc::clone(&locker)));
        Self {
            keeper,
            locker,
            settle,
            name,
        }
    }

    /// The lock's name.
    pub fn name(&self) -> &Name {
        &self.name
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
        let granted = self.acquire(operation, None, None, |locker, ask| {
            Box::pin(async move { locker.try_acquire(&ask).await })
        });
        granted.await?.ok_or_else(|| {
            self.explain(
                Error::new(
                    ErrorKind::WouldBlock,
                    "somebody else holds it or waits for it",
                ),
                operation,
            )
        })
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
    /// Those of [`lock`](Self::lock), and `Lost` when the lock was lost before the release was
    /// confirmed: how much of the work happened under the lock is then unknown.
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
        guard.release().await.map_err(|e| match e.kind() {
            ErrorKind::Lost => e.with_effect(Effect::Unknown),
            _ => e,
        })?;
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
        let operation = "reclaim";
        let core = Arc::clone(self.keeper.core());
        let granted = self.acquire(operation, None, Some(token), move |locker, ask| {
            // Not left to the caller: a failed attempt is withdrawn, and the lock with it.
            Box::pin(drive::answered(core, ask.clone(), move || {
                let (locker, ask) = (Arc::clone(&locker), ask.clone());
                async move { locker.reclaim(&ask, token).await }
            }))
        });
        granted.await?.ok_or_else(|| {
            self.explain(
                Error::new(
                    ErrorKind::Lost,
                    format!("not held under token {token} any more"),
                ),
                operation,
            )
        })
    }

    async fn wait(&self, operation: &'static str, limit: Option<Duration>) -> Result<LockGuard> {
        let core = Arc::clone(self.keeper.core());
        let granted = self.acquire(operation, limit, None, move |locker, ask| {
            Box::pin(drive::answered(core, ask.clone(), move || {
                let (locker, ask) = (Arc::clone(&locker), ask.clone());
                async move { locker.acquire(&ask).await.map(Some) }
            }))
        });
        granted.await?.ok_or_else(|| {
            self.explain(
                Error::new(ErrorKind::Internal, "no grant and no error"),
                operation,
            )
        })
    }

    async fn acquire(
        &self,
        operation: &'static str,
        limit: Option<Duration>,
        taking_up: Option<FencingToken>,
        start: impl FnOnce(Arc<L>, Ask) -> BoxFuture<Result<Option<Grant>>>,
    ) -> Result<Option<LockGuard>> {
        let core = self.keeper.core();
        let span =
            tracing::debug_span!("tenure", operation, name = %self.name, session = %core.id());
        let attempt = async {
            let ask = core.ask(Kind::Lock, &self.name)?;
            if let Some(token) = taking_up
                && !ask.claim(token)
            {
                // One holding, one guard (rule L1), also while a dropped one is being released.
                return Err(Error::new(
                    ErrorKind::Lost,
                    format!("token {token} was taken up already in this session"),
                ));
            }
            let future = start(Arc::clone(&self.locker), ask.clone());
            let grant = drive::acquire(core, &self.settle, &ask, future, limit).await?;
            Ok(grant.map(|grant| {
                tracing::debug!(token = %grant.token(), key = grant.key(), "granted");
                LockGuard(Holding::new(
                    Arc::clone(&self.keeper),
                    Arc::clone(&self.settle),
                    ask,
                    grant,
                ))
            }))
        };
        attempt
            .instrument(span)
            .await
            .map_err(|error| self.explain(error, operation))
    }

    fn explain(&self, error: Error, operation: &'static str) -> Error {
        error.during(operation).on(self.name.as_str())
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
