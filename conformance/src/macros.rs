//! One list, many uses: the macros that make tests of the cases.

use crate::case::{Case, Outcome};
use crate::cases::CASES;
use crate::harness::Harness;

/// Makes a `#[tokio::test]` of every case, in a module of the given name.
///
/// The expression is evaluated once for each test, inside it, so it may await; it makes that
/// test's own [`Harness`]. A case that cannot run for want of a control fails its test, unless it
/// is listed after `not_run`: no test passes by being skipped. So the list names every case that
/// needs a control which the harness lacks, and no other: a case that is listed and runs fails too.
/// Each failure says which control was missing.
///
/// The tests name tokio, so the crate of a new store needs it itself, besides this one:
///
/// ```toml
/// [dev-dependencies]
/// tokio = { version = "1", features = ["macros", "rt"] }
/// ```
///
/// There `tests/conformance.rs` is this and no more:
///
/// ```ignore
/// use tenure_conformance::{Harness, async_trait, conformance};
/// use tenure_core::{Result, Store};
///
/// struct MyHarness(my_store::Server);
///
/// #[async_trait]
/// impl Harness for MyHarness {
///     async fn connect(&self) -> Result<Store> {
///         Ok(self.0.connect().await?.into_dyn())
///     }
/// }
///
/// conformance!(my_store, MyHarness(my_store::Server::start().await), not_run: [
///     s2_loss_is_signalled_against_a_silent_store,
///     // ... and every other case for which `MyHarness` has no control
/// ]);
/// ```
#[macro_export]
macro_rules! conformance {
    ($store:ident, $harness:expr $(, not_run: [$($not_run:ident),* $(,)?])? $(,)?) => {
        mod $store {
            #[allow(unused_imports)]
            use super::*;

            const NOT_RUN: &[&str] = &[$($(stringify!($not_run)),*)?];

            $crate::for_each_case! { [$crate::__conformance_test] {$harness} }
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_test {
    ({$harness:expr} $($module:ident::$id:ident $rest:tt)*) => {$(
        #[::tokio::test]
        async fn $id() {
            $crate::expect(&$harness, stringify!($id), NOT_RUN).await;
        }
    )*};
}

/// The case called `id`.
#[doc(hidden)]
pub fn find(id: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.id == id)
}

/// Runs a case as a test.
#[doc(hidden)]
pub async fn expect(harness: &dyn Harness, id: &str, not_run: &[&str]) {
    let Some(case) = find(id) else {
        panic!("there is no case `{id}`");
    };
    let outcome = case.run(harness).await;
    match (&outcome, not_run.contains(&id)) {
        (Outcome::Violated { counterexample }, _) => {
            panic!("{id} ({}) is violated: {counterexample}", case.title)
        }
        (Outcome::NotRun { why }, false) => panic!("{id} ({}) was not run: {why}", case.title),
        (Outcome::NotRun { .. }, true) => {}
        (_, true) => panic!("{id} is listed as one that does not run, but it did: {outcome}"),
        _ => println!("{outcome}"),
    }
}
