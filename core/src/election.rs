//! Elections: the trait, the handle, the leadership, the observer.

use std::borrow::Cow;
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::Stream;

use crate::ask::{Ask, Grant};
use crate::drive::BoxFuture;
use crate::handle::{Handle, Landing};
use crate::holding::Holding;
use crate::name::Name;
use crate::settle::Settle;
use crate::value::{self, Redacted};
use crate::{Error, FencingToken, Result};

/// The elections of one session, as a backend implements them.
///
/// # To ensure correctness
///
/// Beside what [`Settle`] and [`Locker`](crate::backend::Locker) ask for (a campaign is an acquire,
/// with the same rules):
///
/// - E1, E2: the candidate that is granted is the leader, alone, and its token is greater than that
///   of every leader before.
/// - E3: `proclaim` changes nothing unless the grant is in force *in the store* at that moment; a
///   request that arrives after a `proclaim` of the same grant with a greater number succeeded has
///   no effect, whichever of the two was sent first.
/// - E4: `observe` never misses the latest state, also across reconnects and compaction.
/// - A candidate whose session has ended is never elected.
#[async_trait]
pub trait Election: Settle {
    /// Becomes the leader with `value` if there is no leader and no candidate; leaves nothing behind
    /// if not.
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>>;

    /// Becomes the leader with `value`, waiting in line for it. Watches [`Ask::withdrawn`] while it
    /// waits.
    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant>;

    /// Changes the leader's value. `number` rises from one proclamation of a leadership to the
    /// next, and is the same when core repeats one that went unanswered. It begins anew when a
    /// leadership was taken up by `reclaim`, whose ask is another.
    ///
    /// # Errors
    ///
    /// `Lost` if the grant is not in force any more; nothing has changed then.
    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()>;

    /// Who leads now, by a linearizable read.
    async fn leader(&self, name: &Name) -> Result<Option<Leader>>;

    /// The present state if its order is above `after`, or there is no `after`; else waits for one
    /// that is. States in between may be skipped, and the state may be the same as before under a
    /// greater order: core shows its observers changes only. Core may drop this future at any time.
    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting>;
}

/// What an observer saw, and when in the store's own order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Rises with every change of the election: a revision, for instance. Never the same for two
    /// states, and never lower for a later one.
    pub order: u64,
    /// Who leads, if anybody does.
    pub leader: Option<Leader>,
}

/// A leader, as others see it. Its `Debug` shows the length of the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Leader {
    value: Arc<[u8]>,
    token: FencingToken,
}

impl Leader {
    /// A leader with `value`, elected with `token`.
    pub fn new(value: impl Into<Arc<[u8]>>, token: FencingToken) -> Self {
        Self {
            value: value.into(),
            token,
        }
    }

    /// What the leader proclaimed last.
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// What the leader proclaimed last, as text; what is not UTF-8 is replaced.
    pub fn text(&self) -> Cow<'_, str> {
        String::from_utf8_lossy(&self.value)
    }

    /// The token of the leadership: Go's `Rev`. The same for as long as the leadership lasts.
    pub fn token(&self) -> FencingToken {
        self.token
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leader({:?} {})", Redacted(&self.value), self.token)
    }
}

/// One election, of one session: what [`Session::election`](crate::Session::election) returns.
/// Cheap to clone.
pub struct ElectionHandle<E: ?Sized = dyn Election>(Handle<E>);

impl<E: ?Sized> Clone for ElectionHandle<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<E: Election + ?Sized> fmt::Debug for ElectionHandle<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElectionHandle")
            .field("name", self.name())
            .finish_non_exhaustive()
    }
}

impl<E: Election + ?Sized> ElectionHandle<E> {
    pub(crate) fn new(handle: Handle<E>) -> Self {
        Self(handle)
    }

    /// The election's name.
    pub fn name(&self) -> &Name {
        self.0.name()
    }

    /// Stands as a candidate with `value` and waits to be elected: candidates lead in the order in
    /// which they arrived.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting: such a candidate is never elected. `TooLarge`,
    /// `Unauthorized`. A store that cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the candidacy is withdrawn, and a leadership that crosses
    /// with the cancellation is resigned.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership<E>> {
        self.wait("campaign", value.as_ref(), None).await
    }

    /// [`campaign`](Self::campaign), for no longer than `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut` when not elected in time, and those of [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    ///
    /// As for [`campaign`](Self::campaign).
    pub async fn campaign_timeout(
        &self,
        value: impl AsRef<[u8]>,
        limit: Duration,
    ) -> Result<Leadership<E>> {
        self.wait("campaign_timeout", value.as_ref(), Some(limit))
            .await
    }

    /// Becomes the leader if nobody leads or stands. Leaves nothing behind if not.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when somebody leads or stands; `Unavailable`; those of
    /// [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    ///
    /// As for [`campaign`](Self::campaign).
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership<E>> {
        let operation = "try_campaign";
        let value = self.checked(operation, value.as_ref())?;
        let landed = self.0.attempt(operation, move |election, ask| {
            Box::pin(async move { election.try_campaign(&ask, &value).await })
        });
        match landed.await? {
            Some(landing) => Ok(self.leadership(landing)),
            None => Err(self
                .0
                .explain(Error::would_block("leads or stands"), operation)),
        }
    }

    /// Takes up the leadership that this session held under `token` before it was detached and
    /// resumed. The value last proclaimed stands.
    ///
    /// # Errors
    ///
    /// `Lost` if it does not lead under that token any more, or was taken up already;
    /// `Unsupported`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; a dropped call may resign.
    pub async fn resume(&self, token: FencingToken) -> Result<Leadership<E>> {
        let holding = self.0.reclaim("resume", token).await?;
        Ok(self.leading(holding))
    }

    /// Who leads now.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends before the store answers; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let name = self.name().clone();
        self.0
            .question("leader", move |election| {
                let name = name.clone();
                Box::pin(async move { election.leader(&name).await })
            })
            .await
    }

    /// Follows the election: the present leader (or vacancy) first, then every later state that is
    /// seen. Always ends up at the latest, never goes back, goes on through reconnects, and outlives
    /// the lease of its session; ends when the session is closed or detached here. It keeps the
    /// session open, as every handle does.
    pub fn observe(&self) -> Observer<E> {
        Observer {
            handle: self.clone(),
            seen: None,
            last: None,
            next: None,
            over: false,
        }
    }

    fn checked(&self, operation: &'static str, value: &[u8]) -> Result<Arc<[u8]>> {
        value::check(value).map_err(|e| self.0.explain(e, operation))?;
        Ok(Arc::from(value))
    }

    async fn wait(
        &self,
        operation: &'static str,
        value: &[u8],
        limit: Option<Duration>,
    ) -> Result<Leadership<E>> {
        let value = self.checked(operation, value)?;
        let landing = self.0.wait(operation, limit, move |election, ask| {
            let value = Arc::clone(&value);
            Box::pin(async move { election.campaign(&ask, &value).await })
        });
        landing.await.map(|landing| self.leadership(landing))
    }

    fn leadership(&self, landing: Landing<Grant>) -> Leadership<E> {
        self.leading(self.0.hold(landing))
    }

    fn leading(&self, holding: Holding) -> Leadership<E> {
        Leadership {
            holding,
            election: Arc::clone(self.0.primitive()),
            proclaimed: AtomicU64::new(0),
        }
    }
}

/// A leadership, held. Derefs to [`Holding`]: token, validity, loss signal.
///
/// Dropping it resigns in the background.
#[must_use = "if unused, the leadership is resigned at once"]
#[clippy::has_significant_drop]
pub struct Leadership<E: ?Sized = dyn Election> {
    holding: Holding,
    election: Arc<E>,
    /// How many proclamations were begun.
    proclaimed: AtomicU64,
}

impl<E: ?Sized> fmt::Debug for Leadership<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Leadership").field(&self.holding).finish()
    }
}

impl<E: Election + ?Sized> Leadership<E> {
    /// Changes the value that others see, without a new election.
    ///
    /// # Errors
    ///
    /// `Lost` if this is not the leader any more: nothing has changed then, unless the session
    /// ended before the store answered (its [effect](Error::effect) is unknown). `TooLarge`.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect; whether it did is unknown. A later `proclaim` of this
    /// leadership wins over it in any case.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        let value = value.as_ref();
        value::check(value).map_err(|e| e.during("proclaim").on(self.name().as_str()))?;
        let value: Arc<[u8]> = Arc::from(value);
        let number = self.proclaimed.fetch_add(1, Ordering::Relaxed) + 1;
        let (election, ask, grant) = (
            Arc::clone(&self.election),
            self.holding.ask().clone(),
            self.holding.grant().clone(),
        );
        let step = move || -> BoxFuture<Result<()>> {
            let (election, ask, grant, value) = (
                Arc::clone(&election),
                ask.clone(),
                grant.clone(),
                Arc::clone(&value),
            );
            Box::pin(async move { election.proclaim(&ask, &grant, number, &value).await })
        };
        self.holding.step("proclaim", step).await
    }

    /// Resigns: the next candidate leads at once. `Ok` says that this led until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it did not lead any more: nothing has changed then. `Unavailable` if the store
    /// did not confirm; it is tried again in the background until it does or the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn resign(self) -> Result<()> {
        self.holding.release_by("resign").await
    }
}

impl<E: ?Sized> Deref for Leadership<E> {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.holding
    }
}

/// How long an observer waits that was told an old state.
const STALE: Duration = Duration::from_millis(20);

/// The states of an election, as they are seen: `Some` leader, or `None` for a vacancy. What
/// [`ElectionHandle::observe`] returns; a [`Stream`], with a [`next`](Self::next) of its own.
pub struct Observer<E: ?Sized = dyn Election> {
    handle: ElectionHandle<E>,
    seen: Option<u64>,
    last: Option<Option<Leader>>,
    next: Option<BoxFuture<Result<Sighting>>>,
    over: bool,
}

impl<E: ?Sized> fmt::Debug for Observer<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl<E: Election + ?Sized> Observer<E> {
    /// The next state; `None` once the session was closed or detached here, and after an error.
    ///
    /// # Errors
    ///
    /// Only what a retry cannot mend: `Unauthorized`, for instance. It is the last item.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: nothing is skipped that a later call would not see, or see surpassed.
    pub async fn next(&mut self) -> Option<Result<Option<Leader>>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The next sighting in the store's order. Never back, whatever a lagging member or a late
    /// message says.
    fn look(&self) -> BoxFuture<Result<Sighting>> {
        let (handle, seen) = (self.handle.0.clone(), self.seen);
        Box::pin(async move {
            let name = handle.name();
            loop {
                let looking = handle.watching("observe", |election| {
                    let name = name.clone();
                    Box::pin(async move { election.observe(&name, seen).await })
                });
                let sighting = looking.await?;
                if seen.is_none_or(|seen| sighting.order > seen) {
                    return Ok(sighting);
                }
                tracing::debug!(%name, ?sighting, ?seen, "a sighting from before the last one");
                // It may answer the same again at once.
                handle.keeper().core().sleep(STALE).await;
            }
        })
    }
}

impl<E: Election + ?Sized> Stream for Observer<E> {
    type Item = Result<Option<Leader>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            let mut next = this.next.take().unwrap_or_else(|| this.look());
            match next.as_mut().poll(context) {
                Poll::Pending => {
                    this.next = Some(next);
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    this.over = true;
                    let ended = this.handle.0.keeper().core().ended_here();
                    return Poll::Ready((!ended).then_some(Err(error)));
                }
                Poll::Ready(Ok(sighting)) => {
                    this.seen = Some(sighting.order);
                    if this.last.as_ref() != Some(&sighting.leader) {
                        this.last = Some(sighting.leader.clone());
                        return Poll::Ready(Some(Ok(sighting.leader)));
                    }
                }
            }
        }
    }
}
