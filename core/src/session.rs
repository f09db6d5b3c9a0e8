//! Stores, sessions, and the two traits by which a backend provides them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::barrier::{Barrier, BarrierHandle, DoubleBarrierHandle};
use crate::clock::Clock;
use crate::drive::{self, Keeper};
use crate::election::{Election, ElectionHandle};
use crate::guarantees::Guarantees;
use crate::handle::Handle;
use crate::ledger::Ledger;
use crate::locker::{LockHandle, Locker};
use crate::name::{Kind, Name};
use crate::queue::{Queue, QueueHandle};
use crate::rw_lock::{RwLock, RwLockHandle};
use crate::stm::{Stm, StmHandle};
use crate::{Error, ErrorKind, FencingToken, Result};

/// The TTL of a session for which nobody asked for another.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);

/// How a session is to be opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SessionOptions {
    ttl: Option<Duration>,
}

impl SessionOptions {
    /// The store's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// For how long the store keeps what the session holds once it is silent. The store may round
    /// up; [`Session::ttl`] has what was granted. Without it: the URL's `ttl`, else
    /// [`DEFAULT_TTL`].
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The TTL asked for, if any.
    pub fn requested_ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

/// How the store names a session, in the store's own form. Printed and parsed as plain text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// An id from its text.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.0)
    }
}

/// Why a session or a holding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// Its time ran out without a renewal: the process was paused or starved.
    Expired,
    /// The store ended it before its time: an operator, or an administrator's tool.
    Revoked,
    /// It was closed here.
    Closed,
    /// It was detached here, to be resumed by another process.
    Detached,
    /// Its time ran out while the store did not answer.
    Unreachable,
    /// Its time ran out while the store refused to renew it: a right was taken away, a password changed.
    Refused,
    /// The library or the backend failed: a panic ended what keeps the session alive.
    Failed,
}

impl LossReason {
    /// What it means for one who held something.
    pub(crate) const fn explain(self) -> &'static str {
        match self {
            Self::Expired => {
                "the lease ran out before it was renewed, so somebody else may hold this now: stop the work"
            }
            Self::Revoked => {
                "the store ended it before its time (an operator?), so somebody else may hold this now: stop the work"
            }
            Self::Closed => "the session was closed",
            Self::Detached => "the session was detached",
            Self::Unreachable => {
                "the store did not answer, or could not renew the lease, before it ran out, so somebody else may hold this now: stop the work"
            }
            Self::Refused => {
                "the store refused to renew the lease, and it ran out, so somebody else may hold this now: stop the work"
            }
            Self::Failed => {
                "what renews the lease failed (a panic), so somebody else may hold this now: stop the work, and please report it"
            }
        }
    }

    /// What it means for one who held nothing: who waited, or asked.
    pub(crate) const fn explain_waiting(self) -> &'static str {
        match self {
            Self::Expired => {
                "the session's lease ran out before it was renewed: ask again in a new session"
            }
            Self::Revoked => {
                "the store ended the wait, or its session, before its time (an operator?): ask again, in a new session if need be"
            }
            Self::Closed => "the session was closed",
            Self::Detached => "the session was detached",
            Self::Unreachable => {
                "the store did not answer, or could not renew the session's lease, before it ran out: ask again in a new session"
            }
            Self::Refused => {
                "the store refused to renew the session's lease, and it ran out: ask again in a new session once it is permitted"
            }
            Self::Failed => {
                "what renews the session's lease failed (a panic): ask again in a new session, and please report it"
            }
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Closed => "closed",
            Self::Detached => "detached",
            Self::Unreachable => "unreachable",
            Self::Refused => "refused",
            Self::Failed => "failed",
        })
    }
}

/// A store that a backend speaks to: what a backend's author implements first.
///
/// The traits here are small, dyn-compatible, and made of single atomic steps. Deadlines, renewal
/// timing, loss, cancellation and drops are core's business.
///
/// An implementation without `#[async_trait]` fails with E0195 ("lifetime parameters do not match
/// the trait definition").
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// What a session is on this store.
    type Session: Lease;

    /// Grants a lease of at least `ttl` (rule S1).
    ///
    /// # Errors
    ///
    /// `Config` for a TTL above the store's maximum, `Unavailable`, `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Core never drops this future before its end, unless the runtime ends.
    async fn open(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<Self::Session>>;

    /// Takes over a detached session, using up its record (rule S4). Core renews before anything
    /// counts as valid.
    ///
    /// # Errors
    ///
    /// `Conflict` when the record was used up, `Lost` when the lease is gone, `Unsupported`.
    async fn resume(&self, id: &SessionId) -> Result<Opened<Self::Session>> {
        let _ = id;
        Err(Error::unsupported("resuming a session"))
    }

    /// What this deployment guarantees, read off the live server. There is no default: nobody
    /// claims by omission.
    async fn guarantees(&self) -> Result<Guarantees>;

    /// Raises the least token that this namespace grants: every later grant, of every kind, has a token of at
    /// least `floor`, after a restart of the store too. A `floor` at or below the present one changes nothing.
    ///
    /// Idempotent: core may repeat it after a failure.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized`, `Unsupported`.
    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        let _ = floor;
        Err(Error::unsupported("raising the token floor"))
    }

    /// The clock by which deadlines are judged.
    fn clock(&self) -> Clock {
        Clock::boottime()
    }

    /// The TTL when nobody asks for one.
    fn default_ttl(&self) -> Duration {
        DEFAULT_TTL
    }
}

/// A lease as the backend granted it.
#[derive(Debug)]
pub struct Opened<S: ?Sized> {
    /// The backend's session.
    pub lease: Arc<S>,
    /// The store's name for it.
    pub id: SessionId,
    /// The TTL granted.
    pub ttl: Duration,
    /// How many holdings and waits the store carries for one session (rule S5).
    pub capacity: usize,
}

/// A session as a backend implements it: renew, revoke, and the primitives it offers.
#[async_trait]
pub trait Lease: Send + Sync + 'static {
    /// Tells the store, in one complete round, that the session lives. `Ok` promises that the
    /// store heard a message sent *after* this call began.
    ///
    /// # Errors
    ///
    /// `Lost` when the store says that the lease is gone. Everything else is tried again until
    /// the deadline.
    ///
    /// # Cancel safety
    ///
    /// Core drops this future when it takes too long. The next call must not take a late answer
    /// to the dropped one for its own.
    async fn renew(&self) -> Result<()>;

    /// Why the lease is gone, where that has been found out here, without a question to the store: from the
    /// moment a call is answered `Lost` because of it. The renewals find out the rest.
    fn ended(&self) -> Option<LossReason> {
        None
    }

    /// Whether a step of this session may have to itself, while it is on its way, what others and the
    /// renewals need: its connection, for instance. Core drives each in a task then: one that its
    /// caller drives may be neither polled nor dropped for long (`select!` on a reference to it, and a
    /// branch that takes its time), and all others would wait for that.
    fn one_at_a_time(&self) -> bool {
        false
    }

    /// Ends the lease, which frees everything it holds at once. Idempotent.
    async fn revoke(&self) -> Result<()>;

    /// Looks for holdings that are gone although the lease lives, and returns their nonces.
    /// Called after a renewal, so at most every third of a TTL.
    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let _ = held;
        Ok(Vec::new())
    }

    /// Whether [`detach`](Self::detach) can work.
    fn detachable(&self) -> bool {
        false
    }

    /// Leaves the one-use record that [`Backend::resume`] consumes. Nothing is renewed afterwards.
    ///
    /// `held` is what stays held. Whatever else the session has in the store (places in line, and
    /// what was let go of without the store's answer) has to be gone when it is resumed: a process
    /// that ends now can withdraw nothing any more.
    async fn detach(&self, held: &[Held]) -> Result<()> {
        let _ = held;
        Err(Error::unsupported("detaching a session"))
    }

    /// The session's locks, if the store has any.
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        None
    }

    /// The session's elections, if the store has any.
    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        None
    }

    /// The session's read-write locks, if the store has any.
    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        None
    }

    /// The session's queues, if the store has any.
    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        None
    }

    /// The session's barriers, if the store has any.
    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        None
    }

    /// The store's keys and transactions on them, if it has any.
    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        None
    }
}

/// A holding in the words of the store, for [`Lease::audit`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Held {
    /// What kind of thing is held.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// The nonce of the ask that was granted.
    pub nonce: u64,
    /// The grant's token.
    pub token: FencingToken,
    /// The grant's key.
    pub key: Arc<str>,
    /// Whether it is shared with others: held to read.
    pub shared: bool,
}

/// For each primitive, a trait for sessions whose own have a type, for applications that name the
/// concrete backend: what the store lacks is then an error of the compiler.
macro_rules! typed {
    ($(#[$doc:meta] $Has:ident { $Type:ident: $Trait:ident, $typed:ident })*) => {$(
        #[$doc]
        pub trait $Has: Lease + Sized {
            /// The concrete type.
            type $Type: $Trait;

            /// The same, of this session.
            fn $typed(self: Arc<Self>) -> Arc<Self::$Type>;
        }
    )*};
}

typed! {
    /// A backend's session whose locks have a type of their own.
    HasLocker { Locker: Locker, typed_locker }
    /// A backend's session whose elections have a type of their own.
    HasElection { Election: Election, typed_election }
    /// A backend's session whose read-write locks have a type of their own.
    HasRwLock { RwLock: RwLock, typed_rw_lock }
    /// A backend's session whose queues have a type of their own.
    HasQueue { Queue: Queue, typed_queue }
    /// A backend's session whose barriers have a type of their own.
    HasBarrier { Barrier: Barrier, typed_barrier }
    /// A backend's session whose transactional memory has a type of its own.
    HasStm { Stm: Stm, typed_stm }
}

/// The dyn-compatible twin of [`Backend`]; implemented for every backend.
#[async_trait]
pub trait AnyBackend: Send + Sync + 'static {
    #[doc(hidden)]
    async fn open_any(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<dyn Lease>>;
    #[doc(hidden)]
    async fn resume_any(&self, id: &SessionId) -> Result<Opened<dyn Lease>>;
    #[doc(hidden)]
    async fn guarantees_any(&self) -> Result<Guarantees>;
    #[doc(hidden)]
    async fn raise_token_floor_any(&self, floor: FencingToken) -> Result<()>;
    #[doc(hidden)]
    fn clock_any(&self) -> Clock;
    #[doc(hidden)]
    fn default_ttl_any(&self) -> Duration;
}

impl<S: Lease> Opened<S> {
    fn into_dyn(self) -> Opened<dyn Lease> {
        Opened {
            lease: self.lease,
            id: self.id,
            ttl: self.ttl,
            capacity: self.capacity,
        }
    }
}

#[async_trait]
impl<B: Backend> AnyBackend for B {
    async fn open_any(&self, ttl: Duration, options: &SessionOptions) -> Result<Opened<dyn Lease>> {
        self.open(ttl, options).await.map(Opened::into_dyn)
    }

    async fn resume_any(&self, id: &SessionId) -> Result<Opened<dyn Lease>> {
        self.resume(id).await.map(Opened::into_dyn)
    }

    async fn guarantees_any(&self) -> Result<Guarantees> {
        self.guarantees().await
    }

    async fn raise_token_floor_any(&self, floor: FencingToken) -> Result<()> {
        self.raise_token_floor(floor).await
    }

    fn clock_any(&self) -> Clock {
        self.clock()
    }

    fn default_ttl_any(&self) -> Duration {
        self.default_ttl()
    }
}

/// A connection to a store, from which sessions are opened. Cheap to clone.
///
/// `Store` alone is any store, picked at run time; `Store<EtcdBackend>` is a concrete one, whose
/// sessions and locks have concrete types too.
pub struct Store<B: ?Sized = dyn AnyBackend>(Arc<B>, Arc<Ledger>);

impl<B: ?Sized> Clone for Store<B> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0), Arc::clone(&self.1))
    }
}

impl<B: ?Sized> fmt::Debug for Store<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl<B: Backend> Store<B> {
    /// A store over `backend`.
    pub fn new(backend: B) -> Self {
        Self(Arc::new(backend), Arc::default())
    }

    /// The same store with its type erased.
    pub fn into_dyn(self) -> Store {
        Store(self.0, self.1)
    }

    /// The backend: its escape hatch to what only this store can do.
    pub fn backend(&self) -> &B {
        &self.0
    }

    /// Opens a session: a lease, kept alive in the background by a task on the current runtime.
    ///
    /// # Errors
    ///
    /// `Config` for a TTL of zero or above the store's maximum; `Unavailable`; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a lease granted to a caller that has gone is revoked in the background.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn open(&self, options: SessionOptions) -> Result<Session<B::Session>> {
        let backend = Arc::clone(&self.0);
        let ttl = ttl(&options, backend.default_ttl())?;
        let clock = backend.clock();
        let opening = async move { backend.open(ttl, &options).await };
        drive::open(clock, Arc::clone(&self.1), opening, false)
            .await
            .map(Session::from_parts)
            .map_err(|e| e.during("open"))
    }

    /// Takes over the session that [`Session::detach`] left, with everything it holds. Works
    /// once: the record is used up.
    ///
    /// # Errors
    ///
    /// `Conflict` if it was resumed already or never detached; `Lost` if its lease ran out;
    /// `Unsupported` on a store that cannot.
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away while this runs may use up the record: the session is then closed.
    pub async fn resume(&self, id: &SessionId) -> Result<Session<B::Session>> {
        let (backend, id) = (Arc::clone(&self.0), id.clone());
        let clock = backend.clock();
        let resuming = async move { backend.resume(&id).await };
        drive::open(clock, Arc::clone(&self.1), resuming, true)
            .await
            .map(Session::from_parts)
            .map_err(|e| e.during("resume"))
    }

    /// What this deployment guarantees, read off the live server.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn guarantees(&self) -> Result<Guarantees> {
        self.0
            .guarantees()
            .await
            .map_err(|e| e.during("guarantees"))
    }
}

impl Store {
    /// Opens a session: a lease, kept alive in the background by a task on the current runtime.
    ///
    /// # Errors
    ///
    /// `Config` for a TTL of zero or above the store's maximum; `Unavailable`; `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a lease granted to a caller that has gone is revoked in the background.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub async fn open(&self, options: SessionOptions) -> Result<Session> {
        let backend = Arc::clone(&self.0);
        let ttl = ttl(&options, backend.default_ttl_any())?;
        let clock = backend.clock_any();
        let opening = async move { backend.open_any(ttl, &options).await };
        drive::open(clock, Arc::clone(&self.1), opening, false)
            .await
            .map(Session::from_parts)
            .map_err(|e| e.during("open"))
    }

    /// Takes over the session that [`Session::detach`] left, with everything it holds. Works
    /// once: the record is used up.
    ///
    /// # Errors
    ///
    /// `Conflict` if it was resumed already or never detached; `Lost` if its lease ran out;
    /// `Unsupported` on a store that cannot.
    ///
    /// # Cancel safety
    ///
    /// A caller that goes away while this runs may use up the record: the session is then closed.
    pub async fn resume(&self, id: &SessionId) -> Result<Session> {
        let (backend, id) = (Arc::clone(&self.0), id.clone());
        let clock = backend.clock_any();
        let resuming = async move { backend.resume_any(&id).await };
        drive::open(clock, Arc::clone(&self.1), resuming, true)
            .await
            .map(Session::from_parts)
            .map_err(|e| e.during("resume"))
    }

    /// What this deployment guarantees, read off the live server.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn guarantees(&self) -> Result<Guarantees> {
        self.0
            .guarantees_any()
            .await
            .map_err(|e| e.during("guarantees"))
    }
}

impl<B: AnyBackend + ?Sized> Store<B> {
    /// Raises the least token that this namespace grants: every later grant, of every kind, has a token of at
    /// least `floor`. Holdings that are valid now keep their tokens.
    ///
    /// An operator calls this after the store lost its history (a restore from a backup, a new server), with a
    /// number above every token that the old store granted, so that the resources go on refusing stale writers.
    /// The floor never falls, and is as durable as the store's grants are. A `floor` at or below the present one
    /// changes nothing.
    ///
    /// # Errors
    ///
    /// `Config` above half of [`FencingToken::MAX`], which leaves no room for the tokens to come; `Unavailable`:
    /// repeat it; `Unauthorized`; `Unsupported` on a store that cannot.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may or may not have raised the floor; repeating it is safe.
    pub async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        if floor.get() > FencingToken::MAX.get() / 2 {
            let most = FencingToken::MAX.get() / 2;
            let error = Error::new(
                ErrorKind::Config,
                format!(
                    "a token floor of {floor} leaves no room for later tokens: the highest floor is {most}"
                ),
            );
            return Err(error.during("raise_token_floor"));
        }
        self.0
            .raise_token_floor_any(floor)
            .await
            .map_err(|e| e.during("raise_token_floor"))
    }
}

fn ttl(options: &SessionOptions, default: Duration) -> Result<Duration> {
    let ttl = options.ttl.unwrap_or(default);
    if ttl.is_zero() {
        return Err(
            Error::new(ErrorKind::Config, "a TTL must be greater than zero").during("open"),
        );
    }
    Ok(ttl)
}

/// One participant's lease on a store, renewed in the background. All that it holds or waits for
/// ends with it.
///
/// Cheap to clone; the last of the session, its handles and its guards revokes the lease in the
/// background. [`close`](Self::close) revokes it at once and says whether that worked.
pub struct Session<S: ?Sized = dyn Lease> {
    keeper: Arc<Keeper>,
    lease: Arc<S>,
}

impl<S: ?Sized> Clone for Session<S> {
    fn clone(&self) -> Self {
        Self {
            keeper: Arc::clone(&self.keeper),
            lease: Arc::clone(&self.lease),
        }
    }
}

impl<S: ?Sized> fmt::Debug for Session<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("id", self.id())
            .field("ttl", &self.ttl())
            .field("loss", &self.loss())
            .finish_non_exhaustive()
    }
}

impl<S: ?Sized> Session<S> {
    fn from_parts((keeper, lease): (Arc<Keeper>, Arc<S>)) -> Self {
        Self { keeper, lease }
    }

    /// How the store names this session.
    pub fn id(&self) -> &SessionId {
        self.keeper.core().id()
    }

    /// The TTL that the store granted, at least what was asked for.
    pub fn ttl(&self) -> Duration {
        self.keeper.core().ttl()
    }

    /// Whether the lease certainly still holds, by the local clock: right even in the first
    /// instruction after the process was paused (rule S2).
    pub fn is_valid(&self) -> bool {
        self.keeper.core().validity().is_ok()
    }

    /// For how long the lease is certain to hold without a further renewal; zero once it is lost.
    pub fn remaining(&self) -> Duration {
        self.keeper.core().validity().unwrap_or_default()
    }

    /// Why the session ended, if it has.
    pub fn loss(&self) -> Option<LossReason> {
        self.keeper.core().validity().err()
    }

    /// Ends when the session does, no later than its deadline, whatever the network does.
    ///
    /// The future borrows nothing and does not keep the session open.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + use<S> {
        self.keeper.core().lost()
    }

    /// Revokes the lease, which frees everything it holds at once. Guards and waits of every
    /// clone end with `Closed`.
    ///
    /// # Errors
    ///
    /// `Lost` if it had ended before; `Unavailable` if the store did not confirm within the TTL (10 seconds at
    /// most), or the runtime on which the session was opened did not run for about as long: the TTL bounds the
    /// rest.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn close(self) -> Result<()> {
        self.keeper.close().await.map_err(|e| e.during("close"))
    }

    /// Ends the session here without ending it in the store, to be taken over by another process
    /// with [`Store::resume`] before its TTL runs out. Guards here lose their validity, and what
    /// they hold stays held.
    ///
    /// # Errors
    ///
    /// `Unsupported` on a store that cannot, which changes nothing; `Lost`; `Unavailable`: then
    /// whether it can be resumed is unknown.
    ///
    /// # Cancel safety
    ///
    /// Once polled, it goes on in the background.
    pub async fn detach(self) -> Result<SessionId> {
        let id = self.id().clone();
        self.keeper.detach().await.map_err(|e| e.during("detach"))?;
        Ok(id)
    }
}

impl<S: Lease> Session<S> {
    /// The same session with its type erased.
    pub fn into_dyn(self) -> Session {
        Session {
            keeper: self.keeper,
            lease: self.lease,
        }
    }
}

/// The same accessors for a session of a concrete type, where a missing primitive is an error of the
/// compiler, and for an erased one, where it is `Unsupported`.
macro_rules! accessors {
    ($(
        #[doc = $doc:literal]
        $accessor:ident($($argument:ident: $ty:ty)?) -> $Handle:ident<$Has:ident::$Type:ident>
            by $typed:ident or $erased:ident, $Kind:ident, $what:literal;
    )*) => {
        $(impl<S: $Has> Session<S> {
            #[doc = $doc]
            ///
            /// Nothing is sent.
            ///
            /// # Errors
            ///
            /// `InvalidName`.
            pub fn $accessor(
                &self,
                name: impl AsRef<str>,
                $($argument: $ty,)?
            ) -> Result<$Handle<S::$Type>> {
                let operation = stringify!($accessor);
                let name = Name::new(name).map_err(|e| e.during(operation))?;
                let primitive = Arc::clone(&self.lease).$typed();
                let handle = Handle::new(Arc::clone(&self.keeper), primitive, Kind::$Kind, name);
                $Handle::new(handle, $($argument)?).into_result()
            }
        })*

        impl Session {
            $(#[doc = $doc]
            ///
            /// Nothing is sent.
            ///
            /// # Errors
            ///
            /// `InvalidName`; `Unsupported` if the store has none.
            pub fn $accessor(
                &self,
                name: impl AsRef<str>,
                $($argument: $ty,)?
            ) -> Result<$Handle> {
                let operation = stringify!($accessor);
                let name = Name::new(name).map_err(|e| e.during(operation))?;
                let Some(primitive) = Arc::clone(&self.lease).$erased() else {
                    let missing = Error::unsupported($what);
                    return Err(missing.during(operation).on(name.as_str()));
                };
                let handle = Handle::new(Arc::clone(&self.keeper), primitive, Kind::$Kind, name);
                $Handle::new(handle, $($argument)?).into_result()
            })*
        }
    };
}

/// Some handles check what they are made with, others cannot fail.
trait IntoResult<T> {
    fn into_result(self) -> Result<T>;
}

impl<T> IntoResult<T> for Result<T> {
    fn into_result(self) -> Self {
        self
    }
}

macro_rules! infallible {
    ($($Handle:ident: $Trait:ident,)*) => {$(
        impl<P: $Trait + ?Sized> IntoResult<Self> for $Handle<P> {
            fn into_result(self) -> Result<Self> {
                Ok(self)
            }
        }
    )*};
}

infallible! {
    LockHandle: Locker,
    ElectionHandle: Election,
    RwLockHandle: RwLock,
    QueueHandle: Queue,
    BarrierHandle: Barrier,
}

accessors! {
    #[doc = "The lock called `name`."]
    locker() -> LockHandle<HasLocker::Locker> by typed_locker or locker, Lock, "a lock";
    #[doc = "The election called `name`."]
    election() -> ElectionHandle<HasElection::Election> by typed_election or election, Election, "an election";
    #[doc = "The read-write lock called `name`."]
    rw_lock() -> RwLockHandle<HasRwLock::RwLock> by typed_rw_lock or rw_lock, RwLock, "a read-write lock";
    #[doc = "The queue called `name`. What it does beyond the default is said on the handle."]
    queue() -> QueueHandle<HasQueue::Queue> by typed_queue or queue, Queue, "a queue";
    #[doc = "The barrier called `name`."]
    barrier() -> BarrierHandle<HasBarrier::Barrier> by typed_barrier or barrier, Barrier, "a barrier";
    #[doc = "The double barrier called `name`, for `count` participants (not zero: `Config`)."]
    double_barrier(count: u32) -> DoubleBarrierHandle<HasBarrier::Barrier> by typed_barrier or barrier, DoubleBarrier, "a double barrier";
}

impl<S: HasStm> Session<S> {
    /// Transactional memory: the namespace's keys, and transactions on them. Nothing is sent.
    ///
    /// # Errors
    ///
    /// None; a `Result` because the untyped session's is one.
    pub fn stm(&self) -> Result<StmHandle<S::Stm>> {
        let stm = Arc::clone(&self.lease).typed_stm();
        Ok(StmHandle::new(Arc::clone(&self.keeper), stm))
    }
}

impl Session {
    /// Transactional memory: the namespace's keys, and transactions on them. Nothing is sent.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the store has none.
    pub fn stm(&self) -> Result<StmHandle> {
        let stm = Arc::clone(&self.lease).stm();
        let stm = stm.ok_or_else(|| Error::unsupported("transactional memory").during("stm"))?;
        Ok(StmHandle::new(Arc::clone(&self.keeper), stm))
    }
}
