//! Barriers that are held and released.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;

use crate::backend::{Key, KeyRead, Snapshot, Write};
use crate::compare::{Compare, Relation, Target};
use crate::error::{Error, ErrorKind, LossReason, Result};
use crate::handle::Handle;
use crate::name::{Kind, Name};
use crate::options::SessionId;
use crate::runtime::in_flight::InFlight;
use crate::runtime::session::SessionRef;
use crate::session::Session;
use crate::stm::{Reader, change, exists};
use crate::token::FencingToken;

mod double;

pub use double::{DoubleBarrierHandle, Participant};

/// A handle of a session on a barrier, from [`Session::barrier`](crate::Session::barrier): clients wait at it while
/// it is held or closed. Cheap to clone.
///
/// # Errors
///
/// Every call fails with `InvalidName`, `Unauthorized`, `Unsupported` on a store without transactions, and `Lost` when
/// the session ends before the store answers. [`hold`](Self::hold), [`close`](Self::close) and [`open`](Self::open) also
/// fail as [`Txn::commit`](crate::Txn::commit). An unreachable store is retried until the session ends.
///
/// # Cancel safety
///
/// [`close`](Self::close) and [`open`](Self::open) may take effect once polled. The others are cancel safe.
#[derive(Clone, Debug)]
pub struct BarrierHandle(Handle);

impl BarrierHandle {
    /// Returns the barrier's name, as it was given.
    pub fn name(&self) -> &str {
        self.0.text()
    }

    /// Holds the barrier until the guard is released or this session ends. Fails with `Conflict` when it is held or
    /// closed already. After `CommitUnknown` it may be held until this session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: a hold whose answer the caller did not receive is released.
    pub async fn hold(&self) -> Result<BarrierGuard> {
        let (handle, name) = (self.clone(), self.0.name("hold")?);
        // A guard that the caller does not receive is dropped, which releases it.
        let holding = async move {
            let revision = handle.place("hold", &name, true).await?;
            Ok(BarrierGuard {
                session: Arc::clone(handle.0.session()),
                name,
                revision,
                released: false,
            })
        };
        InFlight::new(self.0.session().executor(), holding).await
    }

    /// Closes the barrier until a client [opens](Self::open) it. It stays closed after the end of this session. Fails with
    /// `Conflict` when it is held or closed already.
    pub async fn close(&self) -> Result<()> {
        let name = self.0.name("close")?;
        self.place("close", &name, false).await.map(drop)
    }

    /// Opens the barrier: ends the hold of any client, or its closure, so that all waiters continue. Returns whether
    /// it was held or closed.
    pub async fn open(&self) -> Result<bool> {
        let name = self.0.name("open")?;
        let key = key(&name);
        let exists = exists(key.clone());
        let opened = change(self.0.session(), "open", Some(exists), Write::Delete(key)).await;
        opened
            .map(|outcome| outcome.succeeded)
            .map_err(|error| error.on(name.as_str()))
    }

    /// Returns whether it is held or closed now.
    pub async fn is_held(&self) -> Result<bool> {
        let name = self.0.name("is_held")?;
        let look = self.look(&name).await;
        let (_, held) = look.map_err(|error| error.with_context("is_held", name.as_str()))?;
        Ok(held.is_some())
    }

    /// Waits until the present hold or closure has ended. Returns at once if there is none.
    ///
    /// A release wakes all waiters, even if another client holds the barrier directly after it.
    pub async fn wait(&self) -> Result<()> {
        let name = self.0.name("wait")?;
        let waited = self.until_released(&name).await;
        waited.map_err(|error| error.with_context("wait", name.as_str()))
    }

    /// Calls [`wait`](Self::wait) with a time limit: fails with `TimedOut` after `limit`.
    pub async fn wait_timeout(&self, limit: Duration) -> Result<()> {
        let name = self.0.name("wait_timeout")?;
        let waited = self.0.session().run(Some(limit), self.until_released(&name)).await;
        waited.map_err(|error| error.with_context("wait_timeout", name.as_str()))
    }

    /// Puts the barrier's key if it is absent. Returns the revision that created it.
    async fn place(&self, operation: &'static str, name: &Name, leased: bool) -> Result<u64> {
        let key = key(name);
        let is_absent = Compare::new(key.clone(), Target::Created(0), Relation::Equal);
        let put = Write::Put {
            key,
            value: self.0.session().id().as_str().as_bytes().into(),
            leased,
        };
        let message = "the barrier is held or closed already: wait for its release, or open it";
        let refused = Error::new(ErrorKind::Conflict, message);
        change_if(self.0.session(), operation, name, (is_absent, put), refused).await
    }

    /// Returns the store's revision, and the one that created the present hold.
    async fn look(&self, name: &Name) -> Result<(u64, Option<u64>)> {
        let read = KeyRead {
            key: key(name),
            known: None,
        };
        let Snapshot { revision, values } = Reader::new(self.0.session())?.read(vec![read], None).await?;
        let held = values.into_iter().next().flatten();
        Ok((revision, held.map(|held| held.created)))
    }

    async fn until_released(&self, name: &Name) -> Result<()> {
        let (mut revision, Some(met)) = self.look(name).await? else {
            return Ok(());
        };
        let reader = Reader::new(self.0.session())?;
        loop {
            reader.changed(key(name), revision).await?;
            let (now, held) = self.look(name).await?;
            // Another hold proves that the one it met has ended.
            if held != Some(met) {
                return Ok(());
            }
            revision = now;
        }
    }
}

impl Session {
    /// Returns a handle on the barrier `name`. A bad name is an error of its first call.
    pub fn barrier(&self, name: impl AsRef<str>) -> BarrierHandle {
        BarrierHandle(Handle::new(self.state(), Kind::Barrier, name))
    }
}

fn key(name: &Name) -> Key {
    Key {
        kind: Kind::Barrier,
        name: name.clone(),
    }
}

/// The guard of a barrier that is held. A drop releases it in the background.
///
/// It is the one guard that is no [`Holding`](crate::Holding). A hold is a key that ends with its session, not a grant: any
/// client may [open](BarrierHandle::open) the barrier, and no signal of that reaches this guard. [`is_valid`](Self::is_valid)
/// and [`lost`](Self::lost) therefore speak of the session only, no transaction can be bound to it, and
/// [`release`](Self::release) reports whether the barrier was held until then. Work that must be alone takes a
/// [lock](crate::Session::lock).
#[must_use = "a guard that is not bound releases the barrier at once: write `let _guard = ...`, not `let _ = ...`"]
#[clippy::has_significant_drop]
pub struct BarrierGuard {
    session: SessionRef,
    name: Name,
    revision: u64,
    released: bool,
}

impl fmt::Debug for BarrierGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BarrierGuard")
            .field("name", &self.name)
            .field("token", &self.token())
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

impl BarrierGuard {
    /// Returns the barrier's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the token of this hold, which is greater than that of every earlier hold of the barrier.
    pub fn token(&self) -> FencingToken {
        FencingToken::new(self.revision)
    }

    /// Returns the id of the session.
    pub fn session_id(&self) -> &SessionId {
        self.session.id()
    }

    /// Returns whether the session is certainly alive, by the local clock. A hold ends with its session.
    pub fn is_valid(&self) -> bool {
        self.loss().is_none()
    }

    /// Returns why the session ended, or `None` while it is alive.
    pub fn loss(&self) -> Option<LossReason> {
        self.session.validity().err()
    }

    /// Waits until the session ends, at the latest until its deadline. The future borrows nothing.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<> {
        self.session.lost()
    }

    /// Releases the barrier, so that all waiters continue. `Ok` means that it was held until now.
    ///
    /// # Errors
    ///
    /// `Lost` if this hold had ended: another client may hold the barrier, and keeps it. `CommitUnknown` if the
    /// outcome could not be determined: the hold ends with the session at the latest.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it continues in the background.
    pub async fn release(mut self) -> Result<()> {
        self.released = true;
        let releasing = release(Arc::clone(&self.session), self.name.clone(), self.revision);
        InFlight::new(self.session.executor(), releasing).await
    }
}

impl Drop for BarrierGuard {
    fn drop(&mut self) {
        if self.released || self.session.closed_locally().is_some() {
            return;
        }
        let releasing = release(Arc::clone(&self.session), self.name.clone(), self.revision);
        self.session.executor().spawn(releasing.map(drop));
    }
}

/// Deletes the key of the hold that `revision` created.
async fn release(session: SessionRef, name: Name, revision: u64) -> Result<()> {
    let key = key(&name);
    let is_held = Compare::new(key.clone(), Target::Created(revision), Relation::Equal);
    let message = "this hold had ended: a client opened the barrier, or the store ended the hold early";
    let ended = Error::new(ErrorKind::Lost, message);
    let release = (is_held, Write::Delete(key));
    change_if(&session, "release", &name, release, ended).await.map(drop)
}

/// Changes the barrier's key, and returns the revision. Fails with `refused` if the comparison does not hold.
async fn change_if(
    session: &SessionRef,
    operation: &'static str,
    name: &Name,
    (compare, write): (Compare<Key>, Write),
    refused: Error,
) -> Result<u64> {
    let done = change(session, operation, Some(compare), write).await;
    let done = done.and_then(|done| match done.succeeded {
        true => Ok(done.revision),
        false => Err(refused.during(operation)),
    });
    done.map_err(|error| error.on(name.as_str()))
}
