//! Elections: the handle, the leadership, the observer.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use futures_util::stream::{BoxStream, unfold};
use futures_util::{FutureExt, StreamExt};

use crate::backend::{Election, Leader, LeaderUpdate, Marker, Mode};
use crate::error::Result;
use crate::handle::Handle;
use crate::holding::{Holding, deref_to_holding};
use crate::name::Kind;
use crate::query::long_poll;
use crate::runtime::departures::Ending;
use crate::runtime::session::SessionRef;
use crate::session::Session;
use crate::token::FencingToken;
use crate::value;

/// A handle of a session on an election, from [`Session::election`](crate::Session::election). Cheap to clone.
///
/// Candidates are elected in the order in which they arrived.
///
/// # Errors
///
/// Every campaign fails with `Lost` when the session ends before the election: such a candidate is never elected;
/// `TooLarge` for the value or for too many entries of the session; `InvalidName`; `Unauthorized`; `Unsupported` on a
/// store without elections. An unreachable store is retried until the session ends.
///
/// # Cancel safety
///
/// Every campaign is cancel safe at every await point: the candidacy is withdrawn, and a leadership that crosses with
/// the cancellation is resigned.
#[derive(Clone, Debug)]
pub struct ElectionHandle(Handle);

impl ElectionHandle {
    /// Returns the election's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Campaigns with `value` until this session leads.
    pub async fn campaign(&self, value: impl AsRef<[u8]>) -> Result<Leadership> {
        self.wait("campaign", value.as_ref(), None).await
    }

    /// Calls [`campaign`](Self::campaign) with a time limit: fails with `TimedOut` after `limit`, plus at most 500 ms
    /// in which the store confirms the withdrawal.
    pub async fn campaign_timeout(&self, value: impl AsRef<[u8]>, limit: Duration) -> Result<Leadership> {
        self.wait("campaign_timeout", value.as_ref(), Some(limit)).await
    }

    /// Becomes the leader if there is no leader and no candidate. Otherwise it returns `None` and leaves nothing in
    /// the store. Fails with `Unavailable` when the store does not answer.
    pub async fn try_campaign(&self, value: impl AsRef<[u8]>) -> Result<Option<Leadership>> {
        let operation = "try_campaign";
        let value = self.checked(operation, value.as_ref())?;
        let acquired = self
            .0
            .try_acquire_place(operation, Mode::Exclusive, Some(value))
            .await?;
        Ok(acquired.map(Leadership))
    }

    /// Reclaims the leadership that this session held under `token` before it was detached and resumed. The value
    /// stays as it was proclaimed. Never waits.
    ///
    /// # Errors
    ///
    /// `Lost` if it does not lead under that token any more, or was reclaimed before; `InvalidName`.
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
        let look = |election: Arc<dyn Election>, name| async move { election.observe(&name, None).await }.boxed();
        let looking = self.0.query("leader", election(self.0.session()), look);
        Ok(looking.await?.leader)
    }

    /// Observes the election: yields the current leader or vacancy first, then later states. It may skip states, but
    /// always reaches the latest one and never goes back. It continues through reconnects, and ends with its session,
    /// which it keeps open as every handle does.
    pub fn observe(&self) -> Observer {
        let handle = self.0.clone();
        // The last state, or `None` after an error.
        let states = unfold(Some(None::<LeaderUpdate>), move |last| {
            let handle = handle.clone();
            async move {
                match next_change(&handle, last?.as_ref()).await {
                    Ok(update) => Some((Ok(update.clone()), Some(Some(update)))),
                    Err(_) if handle.session().closed_locally().is_some() => None,
                    Err(error) => Some((Err(error), None)),
                }
            }
        });
        Observer(states.fuse().boxed())
    }

    fn checked(&self, operation: &'static str, value: &[u8]) -> Result<Arc<[u8]>> {
        value::check(value).map_err(|error| error.during(operation).on(self.name()))?;
        Ok(value.into())
    }

    async fn wait(&self, operation: &'static str, value: &[u8], limit: Option<Duration>) -> Result<Leadership> {
        let value = self.checked(operation, value)?;
        let acquiring = self.0.acquire_place(operation, Mode::Exclusive, Some(value), limit);
        acquiring.await.map(Leadership)
    }
}

impl Session {
    /// Returns a handle on the election `name`. A bad name is an error of its first call.
    pub fn election(&self, name: impl AsRef<str>) -> ElectionHandle {
        ElectionHandle(Handle::new(self.state(), Kind::Election, name))
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

deref_to_holding!(Leadership.0);

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
        let value: Arc<[u8]> = value.as_ref().into();
        value::check(&value).map_err(|error| self.0.explain(error, "proclaim"))?;
        let token = self.token();
        let proclaim = move |election: Arc<dyn Election>, request, marker: Marker| {
            // Nonces rise also over a detachment, after which the leadership may be reclaimed.
            let (number, value) = (marker.nonce.get(), Arc::clone(&value));
            async move { election.proclaim(&request, token, number, &value).await }.boxed()
        };
        self.0
            .step("proclaim", election(self.0.held().session()), proclaim)
            .await
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

/// The pause of an observer after it received an old state, which a lagging member may send again at once.
const STALE_PAUSE: Duration = Duration::from_millis(20);

/// A [`Stream`] of the changes of an election, from [`ElectionHandle::observe`]. It has its own [`next`](Self::next)
/// too.
///
/// It ends when its session is closed or detached in this process, and after an error. The loss of the session's
/// lease is such an error, `Lost`. An unreachable store is retried until then.
pub struct Observer(BoxStream<'static, Result<LeaderUpdate>>);

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
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
        StreamExt::next(&mut self.0).await
    }
}

impl Stream for Observer {
    type Item = Result<LeaderUpdate>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

/// Returns the next change of the leader. Ignores states older than the last one, from a lagging member or a late message.
async fn next_change(handle: &Handle, last: Option<&LeaderUpdate>) -> Result<LeaderUpdate> {
    let operation = "observe";
    let (session, name) = (handle.session(), handle.name(operation)?);
    let election = election(session).ok_or_else(|| handle.unsupported(operation))?;
    let mut seen = last.map(|last| last.version);
    loop {
        let look = || {
            let (election, name) = (Arc::clone(&election), name.clone());
            async move { election.observe(&name, seen).await }
        };
        let update = long_poll(session, operation, Some(&name), look).await?;
        if seen.is_some_and(|seen| update.version <= seen) {
            tracing::debug!(%name, ?update, ?seen, "an update from before the last one");
            let pause = session.clock().sleep(STALE_PAUSE);
            session.executor().run_in_place(pause).await;
            continue;
        }
        seen = Some(update.version);
        if last.is_none_or(|last| last.leader != update.leader) {
            return Ok(update);
        }
    }
}
