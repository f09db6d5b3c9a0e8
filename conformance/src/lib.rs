#![forbid(unsafe_code)]
//! The conformance suite of tenure: one list of cases for every store, ours or a stranger's.
//!
//! A case attacks one promise of the contract. It asks the store first what it guarantees: what
//! is claimed is attacked and must hold; what is denied may be shown by a counterexample.
//!
//! * A store comes to the test as a [`Harness`]; the embedded one and etcd have theirs in
//!   [`stores`].
//! * [`conformance!`] makes a test binary with a named test for every case; [`run`] makes a [`Report`] of many stores
//!   side by side.
//! * [`mod@format`] writes it as Markdown, JUnit's XML, a page, or JSON.
//! * [`storm`] is the long form: everything at once, under one fault after another, for many seeds.
//! * [`CASES`] is the list; [`cases`] has the cases as plain functions, [`checkers`] the judges of
//!   recorded histories.

pub mod attacks;
pub mod case;
pub mod cases;
pub mod checkers;
pub mod format;
pub mod harness;
mod macros;
mod patient;
pub mod report;
pub mod roles;
pub mod stores;
pub mod storm;
pub mod table;
mod tested;
pub mod timeline;

pub use async_trait::async_trait;
pub use case::{Case, Outcome, Promise, Seen, Verdict};
pub use cases::CASES;
pub use harness::{Harness, Link, Linked, Need, Operator, Subject, out_of_order, why_out_of_order};
pub use report::{Column, Entry, FLOOR_PERCENT, Progress, Report, Standing, Tally, run, run_until};
pub use tested::{TESTED, is_tested};
pub use timeline::Timeline;

#[doc(hidden)]
pub use macros::{Make, expect, find, tests};
