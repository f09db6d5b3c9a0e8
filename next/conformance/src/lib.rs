//! Holds a store to the rules of tenure: one suite of cases for every store, and a report with counterexamples.
//!
//! A [`Harness`] gives access to a store and says how it can be disturbed; a [`Subject`] makes one for each case; a
//! [`Runner`] runs the cases and returns a [`Report`]. [`conformance!`] makes tests of them. [`FaultLayer`] disturbs a
//! store that runs in this process.
//!
//! A *row* of the [`TABLE`] is a rule of the contract. A *role* is a way to hold an object: as a reader, as a leader. A
//! *cell* is a row for a role: a case, or the reason why there is none. A *case* is one attack on one promise; those
//! outside the table concern what one primitive alone has. A *scene* is a row whose roles are judged in one session, with
//! one wait for all of them. A *control* is a disturbance or an observation that a case needs: a [`Need`].
//!
//! Rule ids such as S1 are those of `CONTRACT.md`, at the root of the repository.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod case;
mod cases;
pub mod checkers;
mod fault_layer;
mod harness;
mod outcome;
mod promise;
pub mod report;
mod roles;
mod runner;
pub mod stress;
mod table;
mod test_target;
mod tools;

pub use async_trait::async_trait;

pub use self::case::{Attack, Case, Promise, Promises};
pub use self::fault_layer::{EmbeddedStore, FaultLayer, RevokeRequest};
pub use self::harness::{Harness, Link, Linked, Need, Operator, Subject, out_of_order, why_out_of_order};
pub use self::outcome::{Outcome, Seen, Step, Verdict};
pub use self::report::Report;
pub use self::roles::Role;
pub use self::runner::Runner;
pub use self::table::{Cell, Row, TABLE, Trial, cases, trials};
#[doc(hidden)]
pub use self::test_target::{Make, run_as_tests};
