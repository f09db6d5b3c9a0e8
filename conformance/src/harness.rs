//! What the suite needs of a store under test.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::{Error, ErrorKind, Result, SessionId, Store};

use crate::case::Case;

/// A control that a case needs, and that not every harness has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Need {
    /// [`Harness::linked`], with [`Link::silence`] and [`Link::heal`].
    Silence,
    /// [`Link::cut`].
    Cut,
    /// [`Link::mute`].
    Mute,
    /// [`Harness::elsewhere`].
    Elsewhere,
    /// [`Operator::revoke`].
    Revoke,
    /// [`Operator::delete`].
    Delete,
    /// [`Operator::keys`].
    Keys,
    /// [`Operator::restart`].
    Restart,
    /// [`Operator::disturb`].
    Disturb,
    /// [`Operator::lose_minority`].
    LoseMinority,
    /// [`Operator::sessions`].
    Sessions,
    /// [`Harness::capacity`].
    Capacity,
    /// [`Link::hold`].
    Hold,
    /// Clients live on when the store crashes: it is not a part of their process.
    Survivors,
    /// [`Operator::lag`] and [`Operator::fail_over`].
    Failover,
    /// [`Operator::clock_forward`] and [`Operator::clock_back`].
    ClockJump,
    /// [`Operator::pause`] and [`Operator::resume`].
    Pause,
    /// [`Operator::return_members`].
    ReturnMembers,
    /// [`Operator::snapshot`] and [`Operator::restore`].
    Restore,
    /// [`Link::requests`].
    Requests,
}

impl Need {
    /// Every control.
    pub const ALL: &[Self] = &[
        Self::Silence,
        Self::Cut,
        Self::Mute,
        Self::Elsewhere,
        Self::Revoke,
        Self::Delete,
        Self::Keys,
        Self::Restart,
        Self::Disturb,
        Self::LoseMinority,
        Self::Sessions,
        Self::Capacity,
        Self::Hold,
        Self::Survivors,
        Self::Failover,
        Self::ClockJump,
        Self::Pause,
        Self::ReturnMembers,
        Self::Restore,
        Self::Requests,
    ];

    /// The control's name, as [`conformance!`](crate::conformance) takes it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Silence => "silence",
            Self::Cut => "cut",
            Self::Mute => "mute",
            Self::Elsewhere => "elsewhere",
            Self::Revoke => "revoke",
            Self::Delete => "delete",
            Self::Keys => "keys",
            Self::Restart => "restart",
            Self::Disturb => "disturb",
            Self::LoseMinority => "lose_minority",
            Self::Sessions => "sessions",
            Self::Capacity => "capacity",
            Self::Hold => "hold",
            Self::Survivors => "survivors",
            Self::Failover => "failover",
            Self::ClockJump => "clock_jump",
            Self::Pause => "pause",
            Self::ReturnMembers => "return_members",
            Self::Restore => "restore",
            Self::Requests => "requests",
        }
    }

    /// The control, in words that follow "there is no way to".
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Silence => "silence a connection",
            Self::Cut => "cut a connection",
            Self::Mute => "lose the store's answers",
            Self::Elsewhere => "connect to another namespace",
            Self::Revoke => "revoke a session as an operator",
            Self::Delete => "delete a holding as an operator",
            Self::Keys => "list what the namespace holds",
            Self::Restart => "restart the store",
            Self::Disturb => "disturb the store",
            Self::LoseMinority => "take a minority of the store's members away",
            Self::Sessions => "count the store's sessions",
            Self::Capacity => "reach the session's capacity cheaply",
            Self::Hold => "delay the store's answers",
            Self::Survivors => "outlive the store",
            Self::Failover => "make another member take over",
            Self::ClockJump => "move the store's clock",
            Self::Pause => "pause the store",
            Self::ReturnMembers => "give members back that were taken away",
            Self::Restore => "restore the store from a backup",
            Self::Requests => "count the requests of a connection",
        }
    }

    /// Whether the control touches or sees every client of the store, so that the case that uses
    /// it needs a store of its own.
    pub const fn wants_own_store(self) -> bool {
        matches!(
            self,
            Self::Restart
                | Self::Disturb
                | Self::LoseMinority
                | Self::Sessions
                | Self::Failover
                | Self::ClockJump
                | Self::Pause
                | Self::ReturnMembers
                | Self::Restore
        )
    }

    /// Whether it is an event by which the set-ups of one store differ: what a restart, a failover
    /// or a jump of the clock does depends on how the server is run.
    pub const fn is_event(self) -> bool {
        matches!(
            self,
            Self::Restart | Self::LoseMinority | Self::Failover | Self::ClockJump | Self::Restore
        )
    }
}

/// The error of a control that could not do its work, where `why` has to do with how the store is run for the test:
/// a process that does not start, a member that does not take over. A case that ends with it counts as not run, for
/// nothing was shown of the store; with any other error than this and `Unsupported` it counts as violated.
pub fn out_of_order(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "the test bed failed").with_source(OutOfOrder(Box::new(why)))
}

/// The `why` of [`out_of_order`], if that made the error.
pub fn why_out_of_order(error: &Error) -> Option<&(dyn std::error::Error + 'static)> {
    let source = std::error::Error::source(error)?;
    let failure: &OutOfOrder = source.downcast_ref()?;
    Some(&*failure.0)
}

#[derive(Debug)]
struct OutOfOrder(Box<dyn std::error::Error + Send + Sync>);

impl fmt::Display for OutOfOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for OutOfOrder {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// One case's stage: a clean namespace on a store, and the controls over it.
///
/// Only [`connect`](Self::connect) must be written. What a harness does not offer keeps the cases
/// that need it from running, and the report says so: they never count as passed. A method that
/// works has to be named by [`offers`](Self::offers).
///
/// An implementation without `#[async_trait]` fails with E0195.
#[async_trait]
pub trait Harness: Send + Sync {
    /// A connection of its own to the harness's namespace, as another process would have.
    ///
    /// # Errors
    ///
    /// Whatever keeps the store from being reached.
    async fn connect(&self) -> Result<Store>;

    /// Whether the operator has been called on: from then on a client has to bear what comes of it, and no
    /// case helps it.
    #[doc(hidden)]
    fn is_struck(&self) -> bool {
        false
    }

    /// What works beyond [`connect`](Self::connect).
    fn offers(&self) -> &[Need] {
        &[]
    }

    /// A connection of its own whose link can be disturbed.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn linked(&self) -> Result<Linked> {
        Err(Error::unsupported("a link that can be disturbed"))
    }

    /// A connection to another namespace of the same store; best one whose name has the name of
    /// the first for a prefix.
    ///
    /// # Errors
    ///
    /// `Unsupported` where there are none.
    async fn elsewhere(&self) -> Result<Store> {
        Err(Error::unsupported("another namespace"))
    }

    /// What an operator of the store can do.
    fn operator(&self) -> Option<&dyn Operator> {
        None
    }

    /// The shortest TTL that makes sense in tests: the cases wait for it to pass.
    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// How many holdings and waits the store carries for one session, where that is so few that
    /// a case can reach it.
    fn capacity(&self) -> Option<usize> {
        None
    }

    /// Removes what the case left. Called after the case, however it ended.
    ///
    /// # Errors
    ///
    /// Whatever keeps the store from being reached.
    async fn clean_up(&self) -> Result<()> {
        Ok(())
    }
}

/// A connection and the control over its link.
pub struct Linked {
    /// The connection.
    pub store: Store,
    /// Its link.
    pub link: Box<dyn Link>,
}

impl fmt::Debug for Linked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Linked")
    }
}

/// The network between one connection and the store.
pub trait Link: Send + Sync {
    /// From now on nothing passes either way, and nothing is reset: packets are swallowed.
    fn silence(&self);

    /// From now on requests pass and answers do not ([`Need::Mute`]).
    fn mute(&self) {}

    /// From now on requests pass, and their answers are lost for good, also when the link is
    /// healed ([`Need::Mute`]).
    fn lose(&self) {
        self.mute();
    }

    /// From now on requests pass and answers wait; they arrive when the link is healed
    /// ([`Need::Hold`]).
    fn hold(&self) {}

    /// From now on everything passes.
    fn heal(&self);

    /// How many requests, or pieces of them, have been sent so far ([`Need::Requests`]).
    fn requests(&self) -> Option<u64> {
        None
    }

    /// Resets the connection; a new one is accepted ([`Need::Cut`]).
    fn cut(&self) {}

    /// Lets so many bytes of answers pass, then resets the connection in the middle of what it was
    /// about to tell ([`Need::Cut`]).
    fn cut_midway(&self, bytes: u64) {
        let _ = bytes;
        self.cut();
    }
}

/// What an operator of the store can do behind the clients' backs. What keeps a control from doing it is told by
/// [`out_of_order`].
#[async_trait]
pub trait Operator: Send + Sync {
    /// Ends the lease of `session` in the store.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        let _ = session;
        Err(Error::unsupported("revoking a session"))
    }

    /// Removes one holding ([`Holding::key`](tenure_core::Holding::key)) from the store, and
    /// leaves its session.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn delete(&self, key: &str) -> Result<()> {
        let _ = key;
        Err(Error::unsupported("deleting a holding"))
    }

    /// What the namespace has in the store: one key or more for every holding, every place in line and every
    /// item of a queue, whatever the primitive. Cases that look for what was left behind see nothing of what is
    /// not in it; places that leave no key are waited for by time. Not in it is what stays for good, or for a
    /// time of its own: tokens, data, what a late request has to find.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn keys(&self) -> Result<Vec<String>> {
        Err(Error::unsupported("listing keys"))
    }

    /// How many sessions live on the whole store.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn sessions(&self) -> Result<usize> {
        Err(Error::unsupported("counting sessions"))
    }

    /// Crashes the store and starts it again, with what it has kept: all, a part or nothing, as it
    /// is set up. Returns once it serves.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn restart(&self) -> Result<()> {
        Err(Error::unsupported("restarting the store"))
    }

    /// Does what the store's operators do to it in passing and what its clients have to bear:
    /// compaction, for instance.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn disturb(&self) -> Result<()> {
        Err(Error::unsupported("disturbing the store"))
    }

    /// Takes as many members away as a minority may have, at least one.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn lose_minority(&self) -> Result<()> {
        Err(Error::unsupported("losing members"))
    }

    /// The members that [`lose_minority`](Self::lose_minority) or [`fail_over`](Self::fail_over) took away
    /// come back, to follow whoever serves. Returns once each of them serves: then both can happen again.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn return_members(&self) -> Result<()> {
        Err(Error::unsupported("members that come back"))
    }

    /// Takes a backup of the store, as an operator would: [`restore`](Self::restore) returns to it. Clients
    /// notice nothing. A second backup replaces the first.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn snapshot(&self) -> Result<()> {
        Err(Error::unsupported("backing the store up"))
    }

    /// Replaces the store by its last [`snapshot`](Self::snapshot), at the same address: whatever was
    /// acknowledged after the snapshot is gone, and every client connection breaks. Returns once the store
    /// serves.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn restore(&self) -> Result<()> {
        Err(Error::unsupported("restoring the store"))
    }

    /// From now on the member that would take over misses whatever the store may acknowledge
    /// without it; all until now it has. A store that acknowledges nothing without it has nothing
    /// to do here.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn lag(&self) -> Result<()> {
        Err(Error::unsupported("a member that lags"))
    }

    /// The member that serves dies, and another takes over. Returns once that serves.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn fail_over(&self) -> Result<()> {
        Err(Error::unsupported("a failover"))
    }

    /// Stops every instruction of the store, which keeps its connections. Undone by
    /// [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn pause(&self) -> Result<()> {
        Err(Error::unsupported("pausing the store"))
    }

    /// Lets a store that was paused go on.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn resume(&self) -> Result<()> {
        Err(Error::unsupported("pausing the store"))
    }

    /// The store's wall clock jumps forward.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn clock_forward(&self, by: Duration) -> Result<()> {
        let _ = by;
        Err(Error::unsupported("moving the store's clock"))
    }

    /// The store's wall clock jumps back.
    ///
    /// # Errors
    ///
    /// `Unsupported` where it cannot.
    async fn clock_back(&self, by: Duration) -> Result<()> {
        let _ = by;
        Err(Error::unsupported("moving the store's clock"))
    }
}

/// A store under test: makes the stage for each case.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The title of the store's column in the report.
    fn name(&self) -> &str;

    /// The stage for `case`: with a store of its own if one of its needs is
    /// [calls for it](Need::wants_own_store).
    ///
    /// # Errors
    ///
    /// Whatever keeps the store from being started or reached.
    async fn stage(&self, case: &Case) -> Result<Box<dyn Harness>>;

    /// Whether `case` is for this store. A set-up that differs from another column by what happens
    /// in some event takes only the cases of that event: the rest would be the same again.
    fn takes(&self, case: &Case) -> bool {
        let _ = case;
        true
    }

    /// How many cases may run at the same time.
    fn parallel(&self) -> usize {
        16
    }
}
