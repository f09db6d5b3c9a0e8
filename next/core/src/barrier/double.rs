//! Double barriers, which are entered and left.

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::{Barrier, Grant, Joined, Request};
use crate::error::{Error, ErrorKind, Result};
use crate::handle::Handle;
use crate::holding::{Holding, deref_to_holding};
use crate::name::Kind;
use crate::query::long_poll;
use crate::runtime::acquire::{Acquirable, Acquired, WaitLimit};
use crate::runtime::departures::Ending;
use crate::session::Session;

/// Enters a double barrier of the store.
struct Enter {
    barrier: Arc<dyn Barrier>,
    count: NonZeroU32,
}

#[async_trait]
impl Acquirable for Enter {
    type Granted = Grant;

    fn grants(grant: &Grant) -> Vec<Grant> {
        vec![grant.clone()]
    }

    async fn join(&self, request: &Request, _wait: bool) -> Result<Joined<Grant>> {
        self.barrier.enter(request, self.count).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        self.barrier.wait(request).await
    }
}

/// A handle of a session on a double barrier: `enter` returns once all participants have entered, and `leave` once
/// all have left. From [`Session::double_barrier`](crate::Session::double_barrier). Cheap to clone.
///
/// # Errors
///
/// Every entry fails with `Conflict` if all participants have entered and not all have left, and if the present
/// participants gave another count; `TooLarge` for more participants than a barrier of the store can have; `Config` for
/// a count of zero; `InvalidName`; `Lost` when the session ends while waiting.
///
/// # Cancel safety
///
/// Every entry is cancel safe at every await point: the participant is removed.
#[derive(Clone, Debug)]
pub struct DoubleBarrierHandle {
    handle: Handle,
    count: u32,
}

impl Session {
    /// Returns a handle on the double barrier `name` for `count` participants. A bad name or count is an error of its
    /// first call.
    pub fn double_barrier(&self, name: impl AsRef<str>, count: u32) -> DoubleBarrierHandle {
        let handle = Handle::new(self.state(), Kind::DoubleBarrier, name);
        DoubleBarrierHandle { handle, count }
    }
}

impl DoubleBarrierHandle {
    /// Returns the barrier's name, as it was given.
    pub fn name(&self) -> &str {
        self.handle.text()
    }

    /// Returns the number of participants.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Enters, and waits until all participants have.
    ///
    /// Participants that died, timed out or were cancelled while they waited do not count.
    pub async fn enter(&self) -> Result<Participant> {
        self.wait("enter", WaitLimit::Forever).await
    }

    /// Calls [`enter`](Self::enter) with a time limit: fails with `TimedOut` after `limit`, plus at most 500 ms in which
    /// the store confirms the withdrawal.
    pub async fn enter_timeout(&self, limit: Duration) -> Result<Participant> {
        self.wait("enter_timeout", WaitLimit::Within(limit)).await
    }

    async fn wait(&self, operation: &'static str, limit: WaitLimit) -> Result<Participant> {
        let Some(count) = NonZeroU32::new(self.count) else {
            let error = Error::new(ErrorKind::Config, "a double barrier needs at least one participant");
            return Err(error.during(operation).on(self.name()));
        };
        let barrier = Arc::clone(self.handle.session().backend()).barrier();
        let barrier = barrier.ok_or_else(|| self.handle.unsupported(operation))?;
        let enter = Enter {
            barrier: Arc::clone(&barrier),
            count,
        };
        let entered = self.handle.acquire(operation, Some(enter), limit).await?;
        let holding = entered.and_then(Acquired::into_holding);
        let holding = holding.ok_or_else(|| self.handle.busy(operation))?;
        Ok(Participant { holding, barrier })
    }
}

/// A participant inside a double barrier. Derefs to [`Holding`]: token, validity, loss signal.
///
/// A drop leaves in the background, without waiting for the others.
#[must_use = "if unused, the participant leaves at once"]
#[clippy::has_significant_drop]
pub struct Participant {
    holding: Holding,
    barrier: Arc<dyn Barrier>,
}

deref_to_holding!(Participant.holding);

impl fmt::Debug for Participant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Participant").field(&self.holding).finish()
    }
}

impl Participant {
    /// Leaves, and waits until all have left or died.
    ///
    /// # Errors
    ///
    /// `Lost` if this participant was lost before, or its session ends while it waits. An unreachable store is
    /// retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Once polled, this participant leaves; a dropped call only stops waiting for the others.
    pub async fn leave(self) -> Result<()> {
        let Self { holding, barrier } = self;
        let session = Arc::clone(holding.held().session());
        let (name, token) = (holding.name().clone(), holding.token());
        holding.end("leave", Ending::Release).await?;
        loop {
            let all_left = || {
                let (barrier, name) = (Arc::clone(&barrier), name.clone());
                async move { barrier.all_left(&name, token).await }
            };
            if long_poll(&session, "leave", Some(&name), all_left).await? {
                return Ok(());
            }
        }
    }
}
