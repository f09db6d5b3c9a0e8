//! Holds a store to the rules of tenure: one suite of cases for every store, and a report with counterexamples.
//!
//! A [`Harness`] gives access to a store and says how it can be disturbed; a [`Subject`] makes one for each case; a
//! [`Runner`] runs the cases and returns a [`Report`]. [`conformance!`] makes tests of them. [`FaultLayer`] disturbs a
//! store that runs in this process.
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
mod tools;
mod trials;

pub use async_trait::async_trait;

pub use self::case::{Attack, Case, Promise, Promises};
pub use self::fault_layer::{EmbeddedStore, FaultLayer, TakeAway};
pub use self::harness::{Harness, Link, Linked, Need, Operator, Subject, out_of_order, why_out_of_order};
pub use self::outcome::{Outcome, Seen, Step, Verdict};
pub use self::report::Report;
pub use self::roles::Role;
pub use self::runner::Runner;
pub use self::table::{Row, Square, TABLE, Trial, cases, trials};
#[doc(hidden)]
pub use self::trials::{Make, run_as_tests};
