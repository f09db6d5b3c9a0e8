//! Read-write locks: the trait, the handle, the guards.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::ask::{Ask, Grant};
use crate::drive::BoxFuture;
use crate::handle::{Handle, Landing};
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::settle::Settle;
use crate::{Error, ErrorKind, FencingToken, Result};

/// One of the two sides of a read-write lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Shared with other readers.
    Read,
    /// Alone.
    Write,
}

/// The read-write locks of one session, as a backend implements them.
///
/// # To ensure correctness
///
/// Beside what [`Settle`] and [`Locker`](crate::backend::Locker) ask for:
///
/// - R1: a writer is alone; readers share.
/// - R2: asks are granted in the order in which the store saw them arrive, neighbouring readers
///   together: a waiting writer is not overtaken by later readers.
/// - R3: a writer's token is greater than every token granted before, of either kind.
///
/// A resumed session takes up what it held by [`take_up`](Self::take_up), not by
/// [`Settle::reclaim`]: the side has to be the right one.
#[async_trait]
pub trait RwLock: Settle {
    /// Takes `side` if that is possible now and nobody waits; leaves nothing behind if not.
    async fn try_acquire(&self, ask: &Ask, side: Side) -> Result<Option<Grant>>;

    /// Takes `side`, waiting in line for it. Watches [`Ask::withdrawn`] while it waits.
    async fn acquire(&self, ask: &Ask, side: Side) -> Result<Grant>;

    /// Makes a writer's grant a reader's, with its token and its place in the order: readers that
    /// wait right behind it are granted. Idempotent. One that reaches the store after the grant's
    /// release must have no effect.
    ///
    /// # Errors
    ///
    /// `Lost` if the grant is not in force any more; `Unsupported`.
    async fn downgrade(&self, ask: &Ask, grant: &Grant) -> Result<()>;

    /// Finds again what this session, resumed after a restart, holds of `side` under `token`;
    /// nothing if it holds the other side.
    async fn take_up(&self, ask: &Ask, token: FencingToken, side: Side) -> Result<Option<Grant>> {
        let _ = (ask, token, side);
        Err(Error::unsupported("taking up what a resumed session holds"))
    }
}

/// One read-write lock, of one session: what [`Session::rw_lock`](crate::Session::rw_lock)
/// returns. Cheap to clone.
///
/// Readers and writers are granted in the order of their arrival, neighbouring readers together.
/// That goes for a session that reads already, too: its next [`read`](Self::read) stands behind a
/// writer that waits, and the writer waits for the guard that it has. So take no second read guard
/// while you keep the first, unless by [`try_read`](Self::try_read).
pub struct RwLockHandle<R: ?Sized = dyn RwLock>(Handle<R>);

impl<R: ?Sized> Clone for RwLockHandle<R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<R: RwLock + ?Sized> fmt::Debug for RwLockHandle<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RwLockHandle")
            .field("name", self.name())
            .finish_non_exhaustive()
    }
}

impl<R: RwLock + ?Sized> RwLockHandle<R> {
    pub(crate) fn new(handle: Handle<R>) -> Self {
        Self(handle)
    }

    /// The lock's name.
    pub fn name(&self) -> &Name {
        self.0.name()
    }

    /// Takes the lock to read, waiting in line for as long as it takes.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `TooLarge`; `Unauthorized`. A store that cannot
    /// be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the place in line is given up, and a grant that crosses
    /// with the cancellation is given back.
    pub async fn read(&self) -> Result<ReadGuard> {
        self.wait("read", Side::Read, None).await.map(ReadGuard)
    }

    /// [`read`](Self::read), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn read_timeout(&self, limit: Duration) -> Result<ReadGuard> {
        let waiting = self.wait("read_timeout", Side::Read, Some(limit));
        waiting.await.map(ReadGuard)
    }

    /// Takes the lock to read if no writer holds it and nobody waits. Leaves nothing behind.
    ///
    /// # Errors
    ///
    /// `WouldBlock`; `Unavailable`; those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn try_read(&self) -> Result<ReadGuard> {
        self.attempt("try_read", Side::Read).await.map(ReadGuard)
    }

    /// Takes the lock to write, waiting in line for as long as it takes: also for readers of the same session.
    ///
    /// # Errors
    ///
    /// `Conflict` when the calling task itself took a read guard of this lock, in this session, that is not
    /// released: that would be an upgrade, which can only wait for itself. Release the read guard first. And
    /// those of [`read`](Self::read).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write(&self) -> Result<WriteGuard<R>> {
        let holding = self.wait("write", Side::Write, None).await?;
        Ok(self.writer(holding))
    }

    /// [`write`](Self::write), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn write_timeout(&self, limit: Duration) -> Result<WriteGuard<R>> {
        let holding = self.wait("write_timeout", Side::Write, Some(limit)).await?;
        Ok(self.writer(holding))
    }

    /// Takes the lock to write if nobody holds it or waits for it. Leaves nothing behind.
    ///
    /// # Errors
    ///
    /// `WouldBlock`; `Unavailable`; those of [`write`](Self::write).
    ///
    /// # Cancel safety
    ///
    /// As for [`read`](Self::read).
    pub async fn try_write(&self) -> Result<WriteGuard<R>> {
        let holding = self.attempt("try_write", Side::Write).await?;
        Ok(self.writer(holding))
    }

    /// Takes up what this session held to read under `token` before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held to read under that token any more, or was taken up already;
    /// `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; a dropped call may release the lock.
    pub async fn reclaim_read(&self, token: FencingToken) -> Result<ReadGuard> {
        let holding = self.take_up("reclaim_read", token, Side::Read).await?;
        holding.share();
        Ok(ReadGuard(holding))
    }

    /// Takes up what this session held to write under `token` before it was detached and resumed.
    ///
    /// # Errors
    ///
    /// `Lost` if it is not held to write under that token any more (one that was downgraded is
    /// held to read), or was taken up already; `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// As for [`reclaim_read`](Self::reclaim_read).
    pub async fn reclaim_write(&self, token: FencingToken) -> Result<WriteGuard<R>> {
        let holding = self.take_up("reclaim_write", token, Side::Write).await?;
        Ok(self.writer(holding))
    }

    async fn take_up(
        &self,
        operation: &'static str,
        token: FencingToken,
        side: Side,
    ) -> Result<Holding> {
        let taking_up = self.0.take_up(operation, token, move |lock, ask| {
            Box::pin(async move { lock.take_up(&ask, token, side).await })
        });
        taking_up.await
    }

    /// Refuses to wait for a guard that the calling task took itself.
    fn refuse_upgrade(&self, operation: &'static str, side: Side) -> Result<()> {
        let core = self.0.keeper().core();
        if side == Side::Write && core.shares(Kind::RwLock, self.name()) {
            return Err(self.0.explain(upgrade_refused(), operation));
        }
        Ok(())
    }

    async fn attempt(&self, operation: &'static str, side: Side) -> Result<Holding> {
        self.refuse_upgrade(operation, side)?;
        let landed = self.0.attempt(operation, move |lock, ask| {
            Box::pin(async move { lock.try_acquire(&ask, side).await })
        });
        match landed.await? {
            Some(landing) => Ok(self.hold(landing, side)),
            None => Err(self
                .0
                .explain(Error::would_block("holds it or waits for it"), operation)),
        }
    }

    async fn wait(
        &self,
        operation: &'static str,
        side: Side,
        limit: Option<Duration>,
    ) -> Result<Holding> {
        self.refuse_upgrade(operation, side)?;
        let landing = self.0.wait(operation, limit, move |lock, ask| {
            Box::pin(async move { lock.acquire(&ask, side).await })
        });
        landing.await.map(|landing| self.hold(landing, side))
    }

    fn hold(&self, landing: Landing<Grant>, side: Side) -> Holding {
        let holding = self.0.hold(landing);
        if side == Side::Read {
            holding.share();
        }
        holding
    }

    fn writer(&self, holding: Holding) -> WriteGuard<R> {
        WriteGuard {
            holding,
            lock: Arc::clone(self.0.primitive()),
        }
    }
}

fn upgrade_refused() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "a read lock cannot be upgraded, it would wait for itself: release the read guard first",
    )
}

/// The lock, held to read. Derefs to [`Holding`]: token, validity, loss signal.
///
/// Dropping it releases in the background.
#[must_use = "if unused, the lock is released at once"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct ReadGuard(Holding);

impl ReadGuard {
    /// Gives the lock back. `Ok` says that it was held until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it was not held any more; `Unavailable` if the store did not confirm: it is tried
    /// again in the background until it does or the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn release(self) -> Result<()> {
        self.0.release().await
    }
}

impl Deref for ReadGuard {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}

/// The lock, held to write. Derefs to [`Holding`]: token, validity, loss signal.
///
/// Dropping it releases in the background.
#[must_use = "if unused, the lock is released at once"]
#[clippy::has_significant_drop]
pub struct WriteGuard<R: ?Sized = dyn RwLock> {
    holding: Holding,
    lock: Arc<R>,
}

impl<R: ?Sized> fmt::Debug for WriteGuard<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WriteGuard").field(&self.holding).finish()
    }
}

impl<R: RwLock + ?Sized> WriteGuard<R> {
    /// Gives the lock back. `Ok` says that it was held until now.
    ///
    /// # Errors
    ///
    /// As for [`ReadGuard::release`].
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn release(self) -> Result<()> {
        self.holding.release().await
    }

    /// Goes on as a reader, with the same token and the same place in the order: no writer comes in
    /// between, and readers that wait right behind come in.
    ///
    /// # Errors
    ///
    /// `Lost` if it was not held any more; `Unsupported` on a store whose layout has no way to do
    /// it. The lock is released then.
    ///
    /// # Cancel safety
    ///
    /// A dropped call releases the lock.
    pub async fn downgrade(self) -> Result<ReadGuard> {
        let (lock, ask, grant) = (
            Arc::clone(&self.lock),
            self.holding.ask().clone(),
            self.holding.grant().clone(),
        );
        let step = move || -> BoxFuture<Result<()>> {
            let (lock, ask, grant) = (Arc::clone(&lock), ask.clone(), grant.clone());
            Box::pin(async move { lock.downgrade(&ask, &grant).await })
        };
        self.holding.step("downgrade", step).await?;
        self.holding.share();
        Ok(ReadGuard(self.holding))
    }
}

impl<R: ?Sized> Deref for WriteGuard<R> {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.holding
    }
}
