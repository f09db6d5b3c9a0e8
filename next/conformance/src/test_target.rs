//! The suite as the tests of one store: [`conformance!`](crate::conformance).

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use async_trait::async_trait;
use libtest_mimic::{Arguments, Failed};
use tenure_core::Result;

use crate::case::{Attack, Case};
use crate::harness::{Harness, Need, Subject};
use crate::outcome::Outcome;
use crate::runner::Runner;
use crate::table::{Trial, trials};

/// Creates the `main` of a test target with `harness = false`: every case and every scene is a test.
///
/// The expression is evaluated once for each test, inside it, so it may await; it creates that test's own
/// [`Harness`](crate::Harness). A case that does not run fails its test, unless its missing requirement is listed: then
/// the test is ignored. No test passes by being skipped.
///
/// `without` lists what this store and its harness lack: the primitives `election`, `rw_lock`, `queue`, `barrier` and
/// `stm`, and the controls by the [words](crate::Need::word) of [`Need`](crate::Need). A listed control that the
/// harness offers fails every test.
///
/// `tests/conformance.rs` contains this and no more; `Cargo.toml` has `harness = false` for it:
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
///         Ok(self.0.connect().await?)
///     }
/// }
///
/// conformance!(my_store, MyHarness(my_store::Server::start().await?), without: [
///     queue, barrier, stm, // what `my_store` does not offer
///     silence, mute, cut,  // what `MyHarness` has no control for
/// ]);
/// ```
#[macro_export]
macro_rules! conformance {
    ($store:ident, $harness:expr $(, without: [$($without:ident),* $(,)?])? $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::run_as_tests(
                stringify!($store),
                &[$($(stringify!($without)),*)?],
                || ::std::boxed::Box::pin(async {
                    let harness: ::std::boxed::Box<dyn $crate::Harness> = ::std::boxed::Box::new($harness);
                    ::std::result::Result::Ok(harness)
                }),
            )
        }
    };
}

/// How many tests run at once, unless the caller says so.
const THREADS: usize = 16;

/// The function that creates the harness of one test.
#[doc(hidden)]
pub type Make = fn() -> Pin<Box<dyn Future<Output = Result<Box<dyn Harness>>> + Send>>;

/// Runs the `main` of [`conformance!`](crate::conformance).
#[doc(hidden)]
pub fn run_as_tests(store: &'static str, without: &'static [&'static str], make: Make) -> ExitCode {
    let subject = CustomStore { store, without, make };
    let tests = trials().into_iter().map(|trial| {
        let ignored = trial.cases.iter().all(|case| subject.lacks(case));
        let name = format!("{store}::{}", trial.id);
        let test = libtest_mimic::Trial::test(name, move || on_a_large_stack(|| subject.test(&trial)));
        test.with_ignored_flag(ignored)
    });
    let mut arguments = Arguments::from_args();
    // libtest reads the variable, libtest-mimic does not. Cases wait most of the time, so more of them than cores run
    // at once.
    let threads = std::env::var("RUST_TEST_THREADS")
        .ok()
        .and_then(|threads| threads.parse().ok());
    arguments.test_threads.get_or_insert(threads.unwrap_or(THREADS));
    libtest_mimic::run(&arguments, tests.collect()).exit_code()
}

/// Runs `test` on a thread with a stack of 16 MiB. In a build without optimisation, a case over a deep client library needs more
/// than the 2 MiB of a usual thread.
fn on_a_large_stack<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let thread = std::thread::Builder::new().stack_size(16 << 20);
    std::thread::scope(|scope| {
        let running = thread.spawn_scoped(scope, test).expect("a thread for a test");
        running.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// A store whose tests these are.
#[derive(Clone, Copy)]
struct CustomStore {
    store: &'static str,
    without: &'static [&'static str],
    make: Make,
}

impl CustomStore {
    /// Returns whether the list of what is missing has a requirement of the case.
    fn lacks(self, case: &Case) -> bool {
        let primitive = match case.attack {
            Attack::Cell(_, role) | Attack::Scene(_, role) => role.primitive(),
            Attack::Single(_) => match case.rule.as_bytes().first() {
                Some(b'E') => "election",
                Some(b'R') => "rw_lock",
                Some(b'Q') => "queue",
                Some(b'B') => "barrier",
                Some(b'T') => "stm",
                _ => "lock",
            },
        };
        let mut required = case.needs.iter().map(|need| need.word()).chain([primitive]);
        required.any(|word| self.without.contains(&word))
    }

    fn test(self, trial: &Trial) -> std::result::Result<(), Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failed::from(error.to_string()))?;
        let report = runtime.block_on(Runner::new().run_trial(&self, trial));
        // The library's work in the background ends with its own bounds.
        runtime.shutdown_timeout(Duration::from_secs(1));
        let mut failures = Vec::new();
        for result in &report.results {
            let failed = match &result.outcome {
                Outcome::Violated { .. } | Outcome::Unjudged { .. } => true,
                Outcome::NotRun { .. } => !self.lacks(&result.case),
                _ => false,
            };
            if failed {
                failures.push(format!("{}: {}", result.case.id, result.outcome));
            }
        }
        for (trial, why) in report.flaky() {
            println!("FLAKY {trial}: {why}");
        }
        match failures.is_empty() {
            true => Ok(()),
            false => Err(failures.join("\n").into()),
        }
    }
}

#[async_trait]
impl Subject for CustomStore {
    fn name(&self) -> &str {
        self.store
    }

    async fn harness(&self, _: &Case) -> Result<Box<dyn Harness>> {
        let harness = (self.make)().await?;
        let both = |need: &&Need| harness.offers().contains(need) && self.without.contains(&need.word());
        if let Some(need) = Need::ALL.iter().find(both) {
            let message = format!("`without` lists `{}`, which the harness offers", need.word());
            return Err(tenure_core::Error::new(tenure_core::ErrorKind::Config, message));
        }
        Ok(harness)
    }
}
