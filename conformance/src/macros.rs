//! One list, many uses: the macros that make tests of the cases.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::case::{Case, Outcome};
use crate::cases::CASES;
use crate::harness::{Harness, Need};

/// Makes a `#[tokio::test]` of every case, in a module of the given name.
///
/// The expression is evaluated once for each test, inside it, so it may await; it makes that
/// test's own [`Harness`]. A case that cannot run fails its test, unless what it wants is listed: no
/// test passes by being skipped.
///
/// * `without` lists what this store and its harness do not have: the primitives `election`,
///   `rw_lock`, `queue`, `barrier` and `stm`, and the controls by the names of
///   [`Need`](crate::Need)'s variants, written `silence`, `lose_minority`. A control that is listed
///   and offered fails every test.
/// * `not_run` lists single cases. One that is listed and runs fails.
///
/// Each failure says what was missing. Where all cases have run in one process, the last one writes to stderr how many
/// of them held, are not promised and did not run: a test that is `ok` may be any of these.
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
/// conformance!(my_store, MyHarness(my_store::Server::start().await), without: [
///     queue, barrier, stm, // what `my_store` does not offer
///     silence, mute, cut,  // what `MyHarness` has no control for
/// ]);
/// ```
#[macro_export]
macro_rules! conformance {
    (
        $store:ident, $harness:expr
        $(, without: [$($without:ident),* $(,)?])?
        $(, not_run: [$($not_run:ident),* $(,)?])? $(,)?
    ) => {
        mod $store {
            #[allow(unused_imports)]
            use super::*;

            const WITHOUT: &[&str] = &[$($(stringify!($without)),*)?];
            const NOT_RUN: &[&str] = &[$($(stringify!($not_run)),*)?];
            static SUM: $crate::Sum = $crate::Sum::new(stringify!($store));

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
            let one = SUM.one();
            let harness = $harness;
            if $crate::excused(&harness, stringify!($module), stringify!($id), WITHOUT).await {
                return one.not_run();
            }
            one.came_of(&$crate::expect(&harness, stringify!($id), NOT_RUN).await);
        }
    )*};
}

/// The case called `id`.
#[doc(hidden)]
pub fn find(id: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.id == id)
}

/// Whether a case does not run because it wants something that is listed in `without`. Whatever else
/// keeps it from running does not excuse it.
#[doc(hidden)]
pub async fn excused(harness: &dyn Harness, module: &str, id: &str, without: &[&str]) -> bool {
    for word in without {
        let control = Need::ALL.iter().find(|need| need.word() == *word);
        assert!(
            control.is_some() || PRIMITIVES.contains(word),
            "`{word}` in `without` is neither a control nor a primitive"
        );
        assert!(
            control.is_none_or(|control| !harness.offers().contains(control)),
            "`{word}` is listed in `without`, but the harness offers it"
        );
    }
    let Some(case) = find(id) else {
        panic!("there is no case `{id}`");
    };
    let listed = |need: &Need| without.contains(&need.word());
    if let Some(need) = case.needs.iter().find(|need| listed(need)) {
        println!("there is no way to {}", need.describe());
        return true;
    }
    // Of a primitive that is said to be missing no case may say anything but that.
    let primitive = module.strip_prefix("random_").unwrap_or(module);
    if !without.contains(&primitive) {
        return false;
    }
    let outcome = case.run(harness).await;
    assert!(
        matches!(
            outcome,
            Outcome::NotRun { .. } | Outcome::NotPromised { .. }
        ),
        "`{primitive}` is listed in `without`, but {id} ran: {outcome}"
    );
    println!("{outcome}");
    true
}

/// What a store may be without.
const PRIMITIVES: &[&str] = &["election", "rw_lock", "queue", "barrier", "stm"];

/// Runs a case as a test.
#[doc(hidden)]
pub async fn expect(harness: &dyn Harness, id: &str, not_run: &[&str]) -> Outcome {
    let Some(case) = find(id) else {
        panic!("there is no case `{id}`");
    };
    let outcome = case.run(harness).await;
    match (&outcome, not_run.contains(&id)) {
        (Outcome::Violated { counterexample, .. }, _) => {
            panic!("{id} ({}) is violated: {counterexample}", case.title)
        }
        (Outcome::NotRun { why }, false) => panic!("{id} ({}) was not run: {why}", case.title),
        (Outcome::NotRun { .. }, true) => {}
        (_, true) => panic!("{id} is listed as one that does not run, but it did: {outcome}"),
        _ => println!("{outcome}"),
    }
    outcome
}

/// What came of all cases on one store, for the line behind the last one.
#[doc(hidden)]
#[derive(Debug)]
pub struct Sum {
    store: &'static str,
    came: [AtomicUsize; 4],
    ended: AtomicUsize,
}

const CAME: [&str; 4] = ["held", "not promised", "not run", "failed"];

impl Sum {
    pub const fn new(store: &'static str) -> Self {
        Self {
            store,
            came: [const { AtomicUsize::new(0) }; 4],
            ended: AtomicUsize::new(0),
        }
    }

    pub const fn one(&'static self) -> One {
        One { sum: self, came: 3 }
    }

    fn words(&self) -> String {
        let counts = CAME.iter().zip(&self.came);
        let counts: Vec<String> = counts
            .map(|(what, count)| format!("{} {what}", count.load(Ordering::SeqCst)))
            .collect();
        format!(
            "{}: {} cases, {}",
            self.store,
            CASES.len(),
            counts.join(", ")
        )
    }
}

/// One case of a [`Sum`]: failed, if it panics.
#[doc(hidden)]
#[derive(Debug)]
pub struct One {
    sum: &'static Sum,
    came: usize,
}

impl One {
    pub fn came_of(mut self, outcome: &Outcome) {
        self.came = match outcome {
            Outcome::Held { .. } => 0,
            Outcome::NotPromised { .. } => 1,
            Outcome::NotRun { .. } => 2,
            Outcome::Violated { .. } => 3,
        };
    }

    pub fn not_run(mut self) {
        self.came = 2;
    }
}

impl Drop for One {
    fn drop(&mut self) {
        self.sum.came[self.came].fetch_add(1, Ordering::SeqCst);
        if self.sum.ended.fetch_add(1, Ordering::SeqCst) + 1 == CASES.len() {
            // Not by a macro: what these print is shown of failed tests only.
            let _ = writeln!(std::io::stderr(), "\n{}", self.sum.words());
        }
    }
}
