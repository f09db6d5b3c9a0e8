//! The suite as the tests of one store: [`conformance!`].

use std::future::Future;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::case::{Case, Outcome, Seen};
use crate::cases::CASES;
use crate::harness::{Harness, Need};
use crate::patient::patience;
use crate::report::PATIENCE;

/// Makes a test binary of every case: a `main` for a test target with `harness = false`.
///
/// The expression is evaluated once for each test, inside it, so it may await; it makes that
/// test's own [`Harness`]. A case that cannot run fails its test, unless what it needs is listed: then the
/// test is `ignored`, with the reason. No test passes by being skipped.
///
/// * `without` lists what this store and its harness do not have: the primitives `election`,
///   `rw_lock`, `queue`, `barrier` and `stm`, and the controls by the names of
///   [`Need`](crate::Need)'s variants, written `silence`, `lose_minority`. A control that is listed
///   and offered fails every test, and so does a primitive that is listed and works.
/// * `not_run` lists single cases. One that is listed and runs fails.
///
/// An attack on a guarantee that the store denies is `ignored` too if the event could not be brought about.
/// cargo-nextest knows the ignored tests from the list; of a test that finds out only while it runs it shows a pass.
///
/// In `Cargo.toml`:
///
/// ```toml
/// [[test]]
/// name = "conformance"
/// harness = false # `conformance!` writes the `main`
/// ```
///
/// `tests/conformance.rs` is this and no more:
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
        fn main() -> ::std::process::ExitCode {
            $crate::tests(
                stringify!($store),
                &[$($(stringify!($without)),*)?],
                &[$($(stringify!($not_run)),*)?],
                || ::std::boxed::Box::pin(async {
                    ::std::boxed::Box::new($harness) as ::std::boxed::Box<dyn $crate::Harness>
                }),
            )
        }
    };
}

/// The case called `id`.
#[doc(hidden)]
pub fn find(id: &str) -> Option<&'static Case> {
    CASES.iter().find(|case| case.id == id)
}

/// What makes the harness of one test.
#[doc(hidden)]
pub type Make = fn() -> Pin<Box<dyn Future<Output = Box<dyn Harness>>>>;

/// The `main` of [`conformance!`].
#[doc(hidden)]
pub fn tests(
    store: &'static str,
    without: &'static [&'static str],
    not_run: &'static [&'static str],
    make: Make,
) -> ExitCode {
    let lists = Arc::new(Lists { without, not_run });
    let trials = CASES.iter().map(|case| {
        let ours = Arc::clone(&lists);
        let run = move || ours.run(case, make);
        let trial = Trial::ignorable_test(format!("{store}::{}", case.id), run);
        trial.with_ignored_flag(lists.missing(case).is_some())
    });
    let trials = trials.collect();
    let mut arguments = Arguments::from_args();
    // libtest reads the variable, libtest-mimic does not. Cases wait most of the time, for leases to end.
    let threads = std::env::var("RUST_TEST_THREADS").ok();
    let threads = threads
        .and_then(|threads| threads.parse().ok())
        .unwrap_or(8);
    arguments.test_threads.get_or_insert(threads);
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// What a store may be without, and the letter of the rules about it.
const PRIMITIVES: &[(&str, char)] = &[
    ("election", 'E'),
    ("rw_lock", 'R'),
    ("queue", 'Q'),
    ("barrier", 'B'),
    ("stm", 'T'),
];

/// What is said not to run.
struct Lists {
    without: &'static [&'static str],
    not_run: &'static [&'static str],
}

impl Lists {
    /// The primitive or control in `without` that the case needs.
    fn missing(&self, case: &Case) -> Option<String> {
        let mut needs = case.needs.iter();
        if let Some(need) = needs.find(|need| self.without.contains(&need.word())) {
            return Some(format!("there is no way to {}", need.describe()));
        }
        let primitive = self.primitive(case)?;
        Some(format!("`{primitive}` is not offered"))
    }

    /// The primitive in `without` that the case's rule is about.
    fn primitive(&self, case: &Case) -> Option<&'static str> {
        let of_role = crate::table::role(case.id).map(|role| role.primitive());
        if let Some(primitive) = of_role.filter(|primitive| self.without.contains(primitive)) {
            return Some(primitive);
        }
        let mut listed = PRIMITIVES.iter().filter(|it| self.without.contains(&it.0));
        let (primitive, _) = listed.find(|(_, letter)| case.rule.starts_with(*letter))?;
        Some(primitive)
    }

    fn run(&self, case: &'static Case, make: Make) -> Result<Completion, Failed> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let harness = make().await;
            self.agrees_with(&*harness)?;
            let limit = PATIENCE * patience();
            let outcome = tokio::time::timeout(limit, case.run(&*harness)).await;
            let late = format!("the case did not end within {limit:?}");
            self.judge(case, &outcome.unwrap_or_else(|_| Outcome::cut_short(late)))
        })
    }

    fn agrees_with(&self, harness: &dyn Harness) -> Result<(), Failed> {
        for word in self.without {
            let control = Need::ALL.iter().find(|need| need.word() == *word);
            if control.is_some_and(|control| harness.offers().contains(control)) {
                let wrong = format!("`{word}` is listed in `without`, but the harness offers it");
                return Err(wrong.into());
            }
            if control.is_none() && PRIMITIVES.iter().all(|(primitive, _)| primitive != word) {
                let wrong = format!("`{word}` in `without` is neither a control nor a primitive");
                return Err(wrong.into());
            }
        }
        for id in self.not_run {
            if find(id).is_none() {
                return Err(format!("there is no case `{id}`, which `not_run` lists").into());
            }
        }
        Ok(())
    }

    fn judge(&self, case: &Case, outcome: &Outcome) -> Result<Completion, Failed> {
        let listed = self.missing(case).is_some() || self.not_run.contains(&case.id);
        let about = format!("{} ({})", case.id, case.title);
        match outcome {
            Outcome::Violated { judged: false, .. } => {
                Err(format!("NOT JUDGED: {about}: {}", outcome.details()).into())
            }
            Outcome::Violated { counterexample, .. } => {
                Err(format!("{about} is violated: {counterexample}").into())
            }
            Outcome::NotRun { why, .. } if listed => Ok(Completion::ignored_with(why)),
            // A case of another rule that uses a primitive which the store does not have.
            Outcome::NotRun { why, excused: true } if self.names_what_is_missing(why) => {
                Ok(Completion::ignored_with(why))
            }
            Outcome::NotRun { why, .. } => Err(format!("{about} was not run: {why}").into()),
            Outcome::NotPromised {
                seen: Seen::NoControl(why) | Seen::NotBroughtAbout(why),
                ..
            } => Ok(Completion::ignored_with(why)),
            _ if listed => Err(format!(
                "{about} is listed as one that cannot run, but it did: {outcome}"
            )
            .into()),
            Outcome::Held { .. } | Outcome::NotPromised { .. } => Ok(Completion::Completed),
        }
    }

    fn names_what_is_missing(&self, why: &str) -> bool {
        let mut listed = self.without.iter();
        listed.any(|word| {
            why.split(|c: char| c != '_' && !c.is_alphanumeric())
                .any(|it| it == *word)
        })
    }
}

/// Runs a case as a test.
#[doc(hidden)]
pub async fn expect(harness: &dyn Harness, id: &str, not_run: &[&str]) -> Outcome {
    let Some(case) = find(id) else {
        panic!("there is no case `{id}`");
    };
    let limit = PATIENCE * patience();
    let late = |_| Outcome::cut_short(format!("the case did not end within {limit:?}"));
    let outcome = tokio::time::timeout(limit, case.run(harness)).await;
    let outcome = outcome.unwrap_or_else(late);
    match (&outcome, not_run.contains(&id)) {
        (Outcome::NotRun { .. }, true) => {}
        // The script of the tests repeats it alone.
        (outcome, _) if outcome.is_unjudged() => {
            panic!("NOT JUDGED: {id} ({}): {}", case.title, outcome.details())
        }
        (Outcome::Violated { counterexample, .. }, _) => {
            panic!("{id} ({}) is violated: {counterexample}", case.title)
        }
        (Outcome::NotRun { why, .. }, false) => {
            panic!("{id} ({}) was not run: {why}", case.title)
        }
        (_, true) => panic!("{id} is listed as one that does not run, but it did: {outcome}"),
        _ => println!("{outcome}"),
    }
    outcome
}
