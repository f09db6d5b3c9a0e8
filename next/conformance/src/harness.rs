//! Access to a store for one case: a store, connections to it, and controls over both.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::{Error, ErrorKind, Kind, Result, SessionId, Store};

use crate::case::Case;

macro_rules! needs {
    ($($(#[$doc:meta])* $need:ident $word:literal $describe:literal $own_store:literal;)*) => {
        /// A control that a case needs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Need {
            $($(#[$doc])* $need,)*
        }

        impl Need {
            /// Every control.
            pub const ALL: &'static [Self] = &[$(Self::$need),*];

            /// Returns the control's name, as [`conformance!`](crate::conformance) takes it.
            pub const fn word(self) -> &'static str {
                match self { $(Self::$need => $word,)* }
            }

            /// Returns the control in words that follow "there is no way to".
            pub const fn describe(self) -> &'static str {
                match self { $(Self::$need => $describe,)* }
            }

            /// Returns whether the control affects or observes every client of the store, so that a case which uses it
            /// needs its own store.
            pub const fn wants_own_store(self) -> bool {
                match self { $(Self::$need => $own_store,)* }
            }
        }
    };
}

needs! {
    /// [`Link::silence`].
    Silence "silence" "silence a connection" false;
    /// [`Link::mute`].
    Mute "mute" "lose the store's answers" false;
    /// [`Link::hold`].
    Hold "hold" "delay the store's answers" false;
    /// [`Link::cut`].
    Cut "cut" "cut a connection" false;
    /// [`Link::delay_request`] and [`Link::deliver`].
    DelayRequest "delay_request" "let a request arrive late" false;
    /// [`Link::repeat`].
    Repeat "repeat" "let a request arrive twice" false;
    /// [`Link::requests`].
    Requests "requests" "count the requests of a connection" false;
    /// [`Harness::elsewhere`].
    Elsewhere "elsewhere" "connect to another namespace" false;
    /// [`Harness::capacity`].
    Capacity "capacity" "reach the session's capacity cheaply" false;
    /// [`Operator::revoke`].
    Revoke "revoke" "revoke a session as an operator" false;
    /// [`Operator::revoke_request`].
    RevokeRequest "revoke_request" "revoke a request as an operator" false;
    /// [`Operator::keys`].
    Keys "keys" "list what the namespace holds" false;
    /// [`Operator::waiters`].
    Waiters "waiters" "list the waiting sessions of an object" false;
    /// [`Operator::sessions`].
    Sessions "sessions" "count the store's sessions" true;
    /// [`Operator::restart`].
    Restart "restart" "restart the store" true;
    /// The clients live on when the store ends: it is not in their process.
    Survive "survive" "outlive the store" false;
    /// [`Operator::disturb`].
    Disturb "disturb" "disturb the store" true;
    /// [`Operator::pause`] and [`Operator::resume`].
    Pause "pause" "pause the store" true;
    /// [`Operator::snapshot`] and [`Operator::restore`].
    Restore "restore" "restore the store from a backup" true;
    /// [`Operator::clock_forward`].
    ClockForward "clock_forward" "move the store's clock forward" true;
    /// [`Operator::clock_back`].
    ClockBack "clock_back" "move the store's clock back" true;
    /// [`Operator::fail_over`] and [`Operator::lag`].
    Failover "failover" "make another member take over" true;
    /// [`Operator::lose_minority`].
    LoseMinority "lose_minority" "take a minority of the store's members away" true;
    /// [`Operator::return_members`].
    ReturnMembers "return_members" "give members back that were taken away" true;
}

/// Returns the error of a control that failed, where `why` concerns how the store is run for the test: a process does
/// not start, a member does not take over. A case that ends with it judges nothing.
pub fn out_of_order(why: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Unavailable, "the test bed failed").with_source(OutOfOrder(Box::new(why)))
}

/// Returns the `why` of [`out_of_order`], if that function made the error.
pub fn why_out_of_order(error: &Error) -> Option<&(dyn std::error::Error + 'static)> {
    let failure: &OutOfOrder = std::error::Error::source(error)?.downcast_ref()?;
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

/// Access to a store for one case: a clean namespace on a store, and the controls over it.
///
/// Only [`connect`](Self::connect) is required. A case does not run if the harness lacks a control that it needs; the
/// report says so. [`offers`](Self::offers) must name every control that works.
///
/// An implementation needs `#[async_trait]`; without it, the compiler reports E0195.
#[async_trait]
pub trait Harness: Send + Sync {
    /// Opens a separate connection to the harness's namespace, as another process would.
    ///
    /// # Errors
    ///
    /// Any error that keeps the store from being reached.
    async fn connect(&self) -> Result<Store>;

    /// Returns the controls that work besides [`connect`](Self::connect).
    fn offers(&self) -> &[Need] {
        &[]
    }

    /// Opens a separate connection whose link can be disturbed.
    ///
    /// # Errors
    ///
    /// `Unsupported` if the harness cannot.
    async fn linked(&self) -> Result<Linked> {
        Err(Error::unsupported("a link that can be disturbed"))
    }

    /// Opens a connection to another namespace of the same store. The best choice is a namespace whose name has the
    /// name of the first as a prefix.
    ///
    /// # Errors
    ///
    /// `Unsupported` if there are none.
    async fn elsewhere(&self) -> Result<Store> {
        Err(Error::unsupported("another namespace"))
    }

    /// Returns the controls of an operator of the store.
    fn operator(&self) -> Option<&dyn Operator> {
        None
    }

    /// Returns the shortest TTL that makes sense in tests: the cases wait for it to pass.
    fn ttl(&self) -> Duration {
        Duration::from_secs(2)
    }

    /// Returns how many holdings and waits the store carries for one session, if a case can reach that number.
    fn capacity(&self) -> Option<usize> {
        None
    }

    /// Removes the remains of the case, and may check them first. Called after the case, whatever its outcome.
    ///
    /// # Errors
    ///
    /// `Internal` for remains that contradict each other: the case is violated then, whatever its outcome. Any error that keeps
    /// the store from being reached, which is noted.
    async fn clean_up(&self) -> Result<()> {
        Ok(())
    }
}

/// A connection and the control over its link.
#[non_exhaustive]
pub struct Linked {
    /// The connection.
    pub store: Store,
    /// Its link.
    pub link: Box<dyn Link>,
}

impl Linked {
    /// Describes a connection over `link`.
    pub fn new(store: Store, link: impl Link + 'static) -> Self {
        let link = Box::new(link);
        Self { store, link }
    }
}

impl fmt::Debug for Linked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Linked")
    }
}

/// The network between one connection and the store. A fault lasts until [`heal`](Self::heal) or the next fault.
pub trait Link: Send + Sync {
    /// Drops the packets of both directions, without a reset ([`Need::Silence`]).
    fn silence(&self);

    /// Passes requests and drops their responses, which never arrive ([`Need::Mute`]).
    fn mute(&self) {}

    /// Passes requests and delays their responses until the link is healed ([`Need::Hold`]).
    fn hold(&self) {}

    /// Passes everything again.
    fn heal(&self);

    /// Resets the connection; a new one is accepted ([`Need::Cut`]).
    fn cut(&self) {}

    /// Keeps the next request and resets its connection; later requests pass ([`Need::DelayRequest`]). Renewals are not kept
    /// where the link can tell.
    fn delay_request(&self) {}

    /// Returns whether a request was kept.
    fn has_delayed_request(&self) -> bool {
        false
    }

    /// Lets the request that was kept arrive in the store ([`Need::DelayRequest`]).
    fn deliver(&self) {}

    /// Lets every request arrive twice ([`Need::Repeat`]).
    fn repeat(&self) {}

    /// Returns how many requests, or pieces of them, have been sent so far ([`Need::Requests`]).
    fn requests(&self) -> Option<u64> {
        None
    }
}

macro_rules! controls {
    ($($(#[$doc:meta])* $control:ident($($arg:ident: $of:ty),*) -> $answer:ty, $what:literal;)*) => {
        /// The controls of an operator of the store, without the clients' knowledge. Each returns `Unsupported` unless
        /// it is implemented, and [`out_of_order`] with the reason if it fails.
        #[async_trait]
        pub trait Operator: Send + Sync {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                ///
                /// `Unsupported` if the operator cannot.
                async fn $control(&self $(, $arg: $of)*) -> Result<$answer> {
                    $(let _ = $arg;)*
                    Err(Error::unsupported($what))
                }
            )*
        }
    };
}

controls! {
    /// Revokes `session`: ends its lease in the store.
    revoke(session: &SessionId) -> (), "revoking a session";
    /// Removes one holding, which the store calls `key` (`Holding::key`), and leaves its session.
    revoke_request(key: &str) -> (), "revoking a request";
    /// Lists the keys of the namespace in the store: one or more for every holding, every place in a wait queue and
    /// every item of a queue. Data that stays for ever or for its own time is not listed: tokens, values, records that
    /// a late request must find.
    keys() -> Vec<String>, "listing keys";
    /// Lists the sessions with a request in the wait queue of the lock, read-write lock or election `name`: it has
    /// joined, and was not granted.
    waiters(kind: Kind, name: &str) -> Vec<SessionId>, "listing the waiters";
    /// Returns how many sessions live on the whole store.
    sessions() -> usize, "counting sessions";
    /// Crashes the store and starts it again, with the data that it has kept. Returns once it serves.
    restart() -> (), "restarting the store";
    /// Performs a routine operation of the store's operators that clients must tolerate, such as compaction.
    disturb() -> (), "disturbing the store";
    /// Stops every instruction of the store, which keeps its connections, until [`resume`](Self::resume).
    pause() -> (), "pausing the store";
    /// Continues a paused store.
    resume() -> (), "continuing the store";
    /// Takes a backup, to which [`restore`](Self::restore) returns. Clients notice nothing.
    snapshot() -> (), "backing the store up";
    /// Replaces the store by its last [`snapshot`](Self::snapshot), at the same address. Returns once it serves.
    restore() -> (), "restoring the store";
    /// Moves the store's wall clock forward.
    clock_forward(by: Duration) -> (), "moving the store's clock";
    /// Moves the store's wall clock back.
    clock_back(by: Duration) -> (), "moving the store's clock";
    /// Keeps later writes from the member that would take over, as far as the store acknowledges them without it.
    lag() -> (), "a member that lags";
    /// Kills the serving member; another takes over. Returns once the new one serves.
    fail_over() -> (), "a failover";
    /// Takes as many members away as a minority may have, at least one.
    lose_minority() -> (), "losing members";
    /// Brings the members back that were taken away. Returns once each of them serves.
    return_members() -> (), "members that come back";
}

/// A store under test: the column of a report, which creates the harness for each case.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Returns the title of the column.
    fn name(&self) -> &str;

    /// Creates the harness for `case`, with a store of its own if the case [calls for it](Case::wants_own_store).
    ///
    /// # Errors
    ///
    /// Any error that keeps the store from being started or reached. The case judges nothing then.
    async fn harness(&self, case: &Case) -> Result<Box<dyn Harness>>;

    /// Returns whether `case` is for this store. A set-up that differs from another column only in some event takes
    /// only the cases of that event.
    fn takes(&self, case: &Case) -> bool {
        let _ = case;
        true
    }

    /// Returns how many cases may run at the same time.
    fn parallel(&self) -> usize {
        8
    }
}
