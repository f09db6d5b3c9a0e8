//! Barriers: the trait, the handles, the guard.

use std::fmt;
use std::num::NonZeroU32;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::ask::{Ask, Grant};
use crate::drive::{BoxFuture, Landed, withdrawing};
use crate::handle::{Handle, Landing};
use crate::holding::Holding;
use crate::name::Name;
use crate::settle::Settle;
use crate::{Error, ErrorKind, FencingToken, Result};

/// For how long a barrier stays held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HoldFor {
    /// Until it is released, or the session that held it ends.
    Session,
    /// Until it is released, by whomever.
    Good,
}

/// The barriers of one session, as a backend implements them. [`Ask::kind`] tells the two apart:
/// `Barrier` for one that is held, `DoubleBarrier` for one that is entered.
///
/// [`Settle`] takes participants of double barriers out, without waiting for the others; and
/// `withdraw` also lifts what a `hold` put up whose answer nobody waited for.
///
/// # To ensure correctness
///
/// - B1: `wait` returns only after the barrier was seen free, or after the hold that it met has
///   ended. It never misses an end, however short the time until the next hold.
/// - B2: `enter` grants nobody before `count` live participants have entered; `all_left` returns
///   to nobody before all of that generation have left or died.
/// - B3: one more than `count` is refused with `Conflict`, as is another `count` than the others
///   gave. A generation ends when all of its participants have left; only then the next begins.
/// - B4: the dead and the withdrawn do not count: neither towards `count`, nor among those who have
///   yet to leave.
/// - `hold`, `lift` and `enter` are idempotent under [`Ask::nonce`]. A `hold` whose session has
///   ended must not take effect any more, also one for good.
#[async_trait]
pub trait Barrier: Settle {
    /// Holds the barrier.
    ///
    /// # Errors
    ///
    /// `Conflict` when it is held already.
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()>;

    /// Ends the hold that is met, whoever's it is, and says whether there was one. Repeated after a
    /// lost answer, it spares a hold that is newer.
    async fn lift(&self, ask: &Ask) -> Result<bool>;

    /// Whether it is held now.
    async fn is_held(&self, name: &Name) -> Result<bool>;

    /// Returns once the hold that is met has ended; at once if there is none. Core may drop this
    /// future at any time.
    async fn wait(&self, name: &Name) -> Result<()>;

    /// Enters the double barrier and waits until `count` have. Watches [`Ask::withdrawn`] while it
    /// waits.
    ///
    /// # Errors
    ///
    /// `Conflict` for one too many, and for a `count` other than that of those who are there.
    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant>;

    /// Returns once all who went in with `grant`, which was released, have left or died. Core may
    /// drop this future at any time.
    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()>;
}

/// The barrier was held. Taken back if nobody waits for the answer any more.
#[derive(Debug)]
struct Held;

impl Landed for Held {
    fn token(&self) -> Option<FencingToken> {
        None
    }

    fn give_back(&self, settle: &Arc<dyn Settle>, ask: &Ask) -> BoxFuture<Result<()>> {
        withdrawing(settle, ask)
    }
}

/// One barrier: while somebody holds it, everybody waits. What
/// [`Session::barrier`](crate::Session::barrier) returns. Cheap to clone.
pub struct BarrierHandle<B: ?Sized = dyn Barrier>(Handle<B>);

impl<B: ?Sized> Clone for BarrierHandle<B> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<B: Barrier + ?Sized> fmt::Debug for BarrierHandle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarrierHandle")
            .field("name", self.name())
            .finish_non_exhaustive()
    }
}

impl<B: Barrier + ?Sized> BarrierHandle<B> {
    pub(crate) fn new(handle: Handle<B>) -> Self {
        Self(handle)
    }

    /// The barrier's name.
    pub fn name(&self) -> &Name {
        self.0.name()
    }

    /// Holds the barrier until it is [released](Self::release) or, for
    /// [`HoldFor::Session`], this session ends.
    ///
    /// # Errors
    ///
    /// `Conflict` when it is held already; `Lost` when the session ends before the store answers.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: what nobody heard of is lifted again.
    pub async fn hold(&self, hold_for: HoldFor) -> Result<()> {
        let landed: Landing<Held> = self
            .0
            .wait("hold", None, move |barrier, ask| {
                Box::pin(async move { barrier.hold(&ask, hold_for).await.map(|()| Held) })
            })
            .await?;
        drop(landed);
        Ok(())
    }

    /// Releases the barrier, whoever holds it: everybody who waits goes on. Says whether it was
    /// held.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends before the store answers; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect; on the hold that it met, and on no later one.
    pub async fn release(&self) -> Result<bool> {
        self.0
            .change("release", |barrier, ask| {
                Box::pin(async move { barrier.lift(&ask).await })
            })
            .await
    }

    /// Whether it is held now.
    ///
    /// # Errors
    ///
    /// As for [`release`](Self::release).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn is_held(&self) -> Result<bool> {
        let name = self.name().clone();
        self.0
            .question("is_held", move |barrier| {
                let name = name.clone();
                Box::pin(async move { barrier.is_held(&name).await })
            })
            .await
    }

    /// Waits until the hold that is met has ended; returns at once if the barrier is not held.
    ///
    /// A release lets everybody go who waits, even if another holds the barrier right after it.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait(&self) -> Result<()> {
        let name = self.name().clone();
        self.0
            .question("wait", move |barrier| {
                let name = name.clone();
                Box::pin(async move { barrier.wait(&name).await })
            })
            .await
    }

    /// [`wait`](Self::wait), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn wait_timeout(&self, limit: Duration) -> Result<()> {
        tokio::select! {
            biased;
            done = self.wait() => done,
            () = self.0.keeper().core().sleep(limit) => Err(self.0.explain(
                Error::new(ErrorKind::TimedOut, "not released in the time allowed"),
                "wait_timeout",
            )),
        }
    }
}

/// One double barrier: nobody is let in before all have come, nobody out before all have left.
/// What [`Session::double_barrier`](crate::Session::double_barrier) returns. Cheap to clone.
pub struct DoubleBarrierHandle<B: ?Sized = dyn Barrier> {
    handle: Handle<B>,
    count: NonZeroU32,
}

impl<B: ?Sized> Clone for DoubleBarrierHandle<B> {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            count: self.count,
        }
    }
}

impl<B: Barrier + ?Sized> fmt::Debug for DoubleBarrierHandle<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DoubleBarrierHandle")
            .field("name", self.name())
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<B: Barrier + ?Sized> DoubleBarrierHandle<B> {
    pub(crate) fn new(handle: Handle<B>, count: u32) -> Result<Self> {
        let Some(count) = NonZeroU32::new(count) else {
            let why = "a double barrier needs at least one participant";
            return Err(handle.explain(Error::new(ErrorKind::Config, why), "double_barrier"));
        };
        Ok(Self { handle, count })
    }

    /// The barrier's name.
    pub fn name(&self) -> &Name {
        self.handle.name()
    }

    /// How many it waits for.
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// Enters, and waits until all participants have.
    ///
    /// Participants that died, gave up or were cancelled while they waited do not count.
    ///
    /// # Errors
    ///
    /// `Conflict` for one too many (all have entered already, and not all have left yet), and when
    /// those who are there gave another count. `TooLarge` for more participants than the store's
    /// barriers carry (etcd: 120). `Lost` when the session ends while waiting.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the participant is taken out.
    pub async fn enter(&self) -> Result<Inside<B>> {
        self.wait("enter", None).await
    }

    /// [`enter`](Self::enter), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and those of [`enter`](Self::enter).
    ///
    /// # Cancel safety
    ///
    /// As for [`enter`](Self::enter).
    pub async fn enter_timeout(&self, limit: Duration) -> Result<Inside<B>> {
        self.wait("enter_timeout", Some(limit)).await
    }

    async fn wait(&self, operation: &'static str, limit: Option<Duration>) -> Result<Inside<B>> {
        let count = self.count;
        let landing: Landing<Grant> = self
            .handle
            .wait(operation, limit, move |barrier, ask| {
                Box::pin(async move { barrier.enter(&ask, count).await })
            })
            .await?;
        Ok(Inside {
            holding: self.handle.hold(landing),
            handle: self.handle.clone(),
        })
    }
}

/// A participant inside a double barrier. Derefs to [`Holding`]: token, validity, loss signal.
///
/// Dropping it leaves in the background, without waiting for the others.
#[must_use = "if unused, the participant leaves at once"]
#[clippy::has_significant_drop]
pub struct Inside<B: ?Sized = dyn Barrier> {
    holding: Holding,
    handle: Handle<B>,
}

impl<B: ?Sized> fmt::Debug for Inside<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Inside").field(&self.holding).finish()
    }
}

impl<B: Barrier + ?Sized> Inside<B> {
    /// Leaves, and waits until all have left or died.
    ///
    /// # Errors
    ///
    /// `Lost` if this participant was lost before, or its session ends while it waits. A store that
    /// cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, this participant leaves, and only the waiting for the others is given up.
    pub async fn leave(self) -> Result<()> {
        let Self { holding, handle } = self;
        let (ask, grant) = (holding.ask().clone(), holding.grant().clone());
        let (barrier, left) = (Arc::clone(handle.primitive()), grant.clone());
        let step = move || -> BoxFuture<Result<()>> {
            let (barrier, ask, grant) = (Arc::clone(&barrier), ask.clone(), grant.clone());
            Box::pin(async move { barrier.release(&ask, &grant).await })
        };
        // Dropped from here on, by an error or by the caller, the holding takes itself out.
        holding.step("leave", step).await?;
        holding.ended();
        let name = handle.name().clone();
        handle
            .question("leave", move |barrier| {
                let (name, left) = (name.clone(), left.clone());
                Box::pin(async move { barrier.all_left(&name, &left).await })
            })
            .await
    }
}

impl<B: ?Sized> Deref for Inside<B> {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.holding
    }
}
