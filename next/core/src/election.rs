//! Elections: the handle, the leadership, the observer.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_core::Stream;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::backend::{Election, Leader, LeaderUpdate, Marker, Mode, WaitQueue};
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::Holding;
use crate::name::{Kind, Name};
use crate::query::{long_poll, query};
use crate::runtime::acquire::WaitLimit;
use crate::runtime::departures::Ending;
use crate::runtime::session::SessionRef;
use crate::runtime::step::step;
use crate::session::Session;
use crate::token::FencingToken;
use crate::value;

/// A handle of a session on an election, from [`Session::election`](crate::Session::election). Cheap to clone.
#[derive(Clone)]
pub struct ElectionHandle(Handle);

impl fmt::Debug for ElectionHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElectionHandle")
            .field("name", &self.0.text())
            .finish_non_exhaustive()
    }
}

impl ElectionHandle {
    pub(crate) fn new(session: &SessionRef, name: impl AsRef<str>) -> Self {
        Self(Handle::new(session, Kind::Election, name))
    }

    /// Returns the election's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Campaigns with `value` until this session leads. Candidates are elected in the order in which they arrived.
    ///
    /// # Errors
    ///
    /// `Lost` when the session ends while waiting: such a candidate is never elected. `TooLarge` for the value or for
    /// too many entries of the session; `InvalidName`; `Unauthorized`. An unreachable store is retried until the
    /// session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the candidacy is withdrawn, and a leadership that crosses with the
    /// cancellation is resigned.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership> {
        self.wait("campaign", value.as_ref(), None).await
    }

    /// Calls [`campaign`](Self::campaign) with a time limit: waits for at most `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    ///
    /// # Errors
    ///
    /// `TimedOut` when not elected in time, and those of [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    ///
    /// As for [`campaign`](Self::campaign).
    pub async fn campaign_timeout(&self, value: impl AsRef<[u8]>, limit: Duration) -> Result<Leadership> {
        self.wait("campaign_timeout", value.as_ref(), Some(limit)).await
    }

    /// Becomes the leader if there is no leader and no candidate. Otherwise it returns `None` and leaves nothing in
    /// the store.
    ///
    /// # Errors
    ///
    /// `Unavailable` when the store does not answer; those of [`campaign`](Self::campaign).
    ///
    /// # Cancel safety
    ///
    /// As for [`campaign`](Self::campaign).
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Option<Leadership>> {
        let operation = "try_campaign";
        let value = self.checked(operation, value.as_ref())?;
        let joining = self
            .0
            .join(operation, self.queue(), Mode::Exclusive, Some(value), WaitLimit::Try);
        Ok(joining.await?.map(Leadership))
    }

    /// Reclaims the leadership that this session held under `token` before it was detached and resumed. The value
    /// stays as it was proclaimed.
    ///
    /// # Errors
    ///
    /// `Lost` if it does not lead under that token any more, or was reclaimed before; `InvalidName`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; it never waits.
    pub async fn reclaim(&self, token: FencingToken) -> Result<Leadership> {
        self.0.reclaim("reclaim", Mode::Exclusive, token).map(Leadership)
    }

    /// Returns the current leader.
    ///
    /// # Errors
    ///
    /// `InvalidName`; `Lost` when the session ends before the store answers; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let name = self.0.name("leader")?;
        let election = election(self.0.session()).ok_or_else(|| self.0.unsupported("leader"))?;
        let object = name.clone();
        let look = move || {
            let (election, name) = (Arc::clone(&election), name.clone());
            async move { election.observe(&name, None).await }.boxed()
        };
        let update = query(self.0.session(), "leader", Some(&object), look).await?;
        Ok(update.leader)
    }

    /// Observes the election: yields the current leader or vacancy first, then later states. It may skip states, but
    /// always reaches the latest one and never goes back. It continues through reconnects, and ends with its session,
    /// which it keeps open as every handle does.
    pub fn observe(&self) -> Observer {
        Observer {
            handle: self.0.clone(),
            last: None,
            next: None,
            over: false,
        }
    }

    fn queue(&self) -> Option<Arc<dyn WaitQueue>> {
        election(self.0.session()).map(|elections| elections as _)
    }

    fn checked(&self, operation: &'static str, value: &[u8]) -> Result<Arc<[u8]>> {
        value::check(value).map_err(|error| error.during(operation).on(self.name()))?;
        Ok(value.into())
    }

    async fn wait(&self, operation: &'static str, value: &[u8], limit: Option<Duration>) -> Result<Leadership> {
        let value = self.checked(operation, value)?;
        let joining = self
            .0
            .join_and_wait(operation, self.queue(), Mode::Exclusive, Some(value), limit);
        joining.await.map(Leadership)
    }
}

impl Session {
    /// Returns a handle on the election `name`. A bad name is an error of its first call.
    pub fn election(&self, name: impl AsRef<str>) -> ElectionHandle {
        ElectionHandle::new(self.state(), name)
    }
}

fn election(session: &SessionRef) -> Option<Arc<dyn Election>> {
    Arc::clone(session.backend()).election()
}

/// The guard of a leadership. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop resigns in the background.
#[must_use = "a leadership that is not bound is resigned at once: write `let _leadership = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
#[derive(Debug)]
pub struct Leadership(Holding);

impl Leadership {
    /// Changes the value that others see, without a new election.
    ///
    /// # Errors
    ///
    /// `Lost` if this does not lead any more: the store has not changed then, unless the session ended before the store
    /// answered (its [effect](crate::Error::effect) is unknown). `TooLarge`.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it may take effect; whether it did is unknown. A later `proclaim` of this leadership replaces its
    /// value in any case.
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        let operation = "proclaim";
        let (held, name, token) = (self.0.held(), self.name(), self.token());
        let (session, request) = (held.session(), held.request().clone());
        let refused = |error| session.explain(error, operation, Some(name.as_str()));
        let value: Arc<[u8]> = value.as_ref().into();
        value::check(&value).map_err(refused)?;
        if let Some(reason) = self.loss() {
            return Err(refused(held.lost_error(reason)));
        }
        let unsupported = || refused(crate::Error::unsupported("elections"));
        let election = election(session).ok_or_else(unsupported)?;
        let proclaim = move |marker: Marker| {
            let (election, request, value) = (Arc::clone(&election), request.clone(), Arc::clone(&value));
            // Nonces rise also over a detachment, after which the leadership may be reclaimed.
            let number = marker.nonce.get();
            async move { election.proclaim(&request, token, number, &value).await }.boxed()
        };
        step(session, operation, Some(name), proclaim).await
    }

    /// Resigns, so that the next candidate leads at once. `Ok` means that this led until now.
    ///
    /// # Errors
    ///
    /// `Lost` if it no longer led: the store has not changed then. If the store refuses, its error; the resignation
    /// is then tried again in the background until it is confirmed or the session ends.
    ///
    /// # Cancel safety
    ///
    /// A dropped call continues in the background.
    pub async fn resign(self) -> Result<()> {
        self.0.end("resign", Ending::Release).await
    }

    pub(crate) async fn resign_after_work(self, operation: &'static str) -> Result<()> {
        self.0.end_after_work(operation, Ending::Release).await
    }
}

impl Deref for Leadership {
    type Target = Holding;

    fn deref(&self) -> &Holding {
        &self.0
    }
}

/// The pause of an observer after it received an old state, which a lagging member may send again at once.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// A [`Stream`] of the changes of an election, from [`ElectionHandle::observe`]. It has its own [`next`](Self::next)
/// too.
///
/// It ends when its session is closed or detached in this process, and after an error. The loss of the session's
/// lease is such an error, `Lost`. An unreachable store is retried until then.
pub struct Observer {
    handle: Handle,
    last: Option<LeaderUpdate>,
    next: Option<BoxFuture<'static, Result<LeaderUpdate>>>,
    over: bool,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Observer {
    /// Returns the next state, or `None` once the session was closed or detached in this process, and after an error.
    ///
    /// # Errors
    ///
    /// `Lost` when the session has ended, and errors that a retry cannot cure, such as `Unauthorized`. An error is
    /// the last item.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a later call returns the state that this one did not, or a newer one.
    pub async fn next(&mut self) -> Option<Result<LeaderUpdate>> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// Returns the next state in the store's order. Ignores older states, from a lagging member or a late message.
    fn look(&self) -> BoxFuture<'static, Result<LeaderUpdate>> {
        let (handle, seen) = (self.handle.clone(), self.last.as_ref().map(|update| update.version));
        async move {
            let operation = "observe";
            let (session, name) = (handle.session(), handle.name(operation)?);
            let election = election(session).ok_or_else(|| handle.unsupported(operation))?;
            loop {
                let update = observe(session, operation, &election, &name, seen).await?;
                if seen.is_none_or(|seen| update.version > seen) {
                    return Ok(update);
                }
                tracing::debug!(%name, ?update, ?seen, "an update from before the last one");
                let pause = session.clock().sleep(STALE_PAUSE);
                session.executor().run_in_place(pause).await;
            }
        }
        .boxed()
    }
}

async fn observe(
    session: &SessionRef,
    operation: &'static str,
    election: &Arc<dyn Election>,
    name: &Name,
    after: Option<u64>,
) -> Result<LeaderUpdate> {
    let look = || {
        let (election, name) = (Arc::clone(election), name.clone());
        async move { election.observe(&name, after).await }.boxed()
    };
    long_poll(session, operation, Some(name), look).await
}

impl Stream for Observer {
    type Item = Result<LeaderUpdate>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            if this.next.is_none() {
                this.next = Some(this.look());
            }
            let Some(next) = &mut this.next else {
                return Poll::Pending;
            };
            let looked = ready!(next.as_mut().poll(context));
            this.next = None;
            match looked {
                Err(error) => {
                    this.over = true;
                    let ended = this.handle.session().closed_locally().is_some();
                    return Poll::Ready((!ended).then_some(Err(error)));
                }
                Ok(update) => {
                    let changed = this.last.as_ref().is_none_or(|last| last.leader != update.leader);
                    this.last = Some(update.clone());
                    if changed {
                        return Poll::Ready(Some(Ok(update)));
                    }
                }
            }
        }
    }
}
