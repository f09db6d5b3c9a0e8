//! The runtime of a session: deadline and loss, requests in flight, waiting, cancellation, retries, reconciliation.
//!
//! - `signal`, `in_flight`, `retry`: a value that is set once; a future that outlives its caller; the one retry loop.
//! - `registry`: all requests and holdings of a session. `slots`: the identities of its steps.
//! - `session`: the state that handles, guards and tasks share. `open` starts it; `renewal`, `reconcile` and `end` are its tasks.
//! - `acquire`, `step`, `departures`, `batcher`, `holding`: acquires, writes, releases and their messages, and the holdings in
//!   between. `unfinished`: the wait of the last reference to a store.
//!
//! Core polls each future of a backend in its caller's task, with the executor entered, so that its timers and sockets belong
//! to the executor. A future that the caller drops moves to a task of the executor, which polls it to its end.

pub(crate) mod acquire;
pub(crate) mod batcher;
pub(crate) mod departures;
pub(crate) mod end;
pub(crate) mod in_flight;
pub(crate) mod open;
pub(crate) mod owned_grant;
pub(crate) mod reconcile;
pub(crate) mod registry;
pub(crate) mod renewal;
pub(crate) mod retry;
pub(crate) mod session;
pub(crate) mod signal;
pub(crate) mod slots;
pub(crate) mod step;
pub(crate) mod unfinished;
