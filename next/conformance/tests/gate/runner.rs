//! The repetitions, bounds and counts of the runner.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tenure_conformance::report::Report;
use tenure_conformance::{Attack, Case, Harness, Need, Outcome, Promise, Runner, Subject, Trial, Verdict, async_trait};
use tenure_core::guarantees::Line;
use tenure_core::{Error, ErrorKind, Store};
use tenure_memory::{MemoryConfig, MemorySubject};

/// Declares a case with a count of its attempts: `$verdict` sees the number of the attempt, from 1.
macro_rules! case {
    ($count:ident $id:literal |$attempt:ident| $verdict:expr) => {{
        static $count: AtomicU32 = AtomicU32::new(0);
        let attack = Attack::Single(|_| {
            Box::pin(async {
                let $attempt = $count.fetch_add(1, Ordering::SeqCst) + 1;
                let _ = $attempt;
                $verdict
            })
        });
        (Case::new($id, "S1", "is judged", attack), &$count)
    }};
}

async fn run(runner: &Runner, cases: impl IntoIterator<Item = Case>) -> Report {
    let trials = cases.into_iter().map(Trial::from).collect();
    runner
        .run_trials(&MemorySubject::new(MemoryConfig::new()), trials)
        .await
}

fn held() -> Verdict {
    Ok(Outcome::held("seen"))
}

fn words(report: &Report) -> Vec<&'static str> {
    report.results.iter().map(|result| result.outcome.word()).collect()
}

#[tokio::test]
async fn counterexample_is_never_repeated() {
    let (case, count) = case!(COUNT "s1_two_hold" |_attempt| Err(Outcome::violated("two hold")));
    let report = run(&Runner::new(), [case]).await;
    assert_eq!(words(&report), ["violated"]);
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert!(report.flaky().is_empty() && !report.passed());
}

#[tokio::test]
async fn case_that_is_judged_when_repeated_passes_and_is_listed() {
    let (case, count) = case!(COUNT "s1_late" |attempt| match attempt {
        1 => Err(Outcome::unjudged("it did not happen in time")),
        _ => held(),
    });
    let report = run(&Runner::new(), [case]).await;
    assert_eq!(words(&report), ["held"]);
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert_eq!(report.flaky(), [("s1_late", "it did not happen in time")]);
    assert!(report.passed());
    assert!(report.to_string().contains("FLAKY s1_late"), "{report}");
}

#[tokio::test]
async fn counterexample_of_a_repetition_counts() {
    let (case, count) = case!(COUNT "s1_late" |attempt| match attempt {
        1 => Err(Error::new(ErrorKind::Unavailable, "no answer").into()),
        _ => Err(Outcome::violated("two hold")),
    });
    let report = run(&Runner::new(), [case]).await;
    assert_eq!(words(&report), ["violated"]);
    assert_eq!(count.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn case_that_is_never_judged_fails_after_two_repetitions() {
    let (case, count) = case!(COUNT "s1_never" |_attempt| Err(Outcome::unjudged("never")));
    let report = run(&Runner::new(), [case]).await;
    assert_eq!(words(&report), ["not judged"]);
    assert_eq!(count.load(Ordering::SeqCst), 3);
    assert!(!report.passed());
}

#[tokio::test]
async fn more_than_three_flaky_cases_fail() {
    fn late(attempt: u32) -> Verdict {
        match attempt {
            1 => Err(Outcome::unjudged("late")),
            _ => held(),
        }
    }
    let cases = [
        case!(A "s1_a" |attempt| late(attempt)).0,
        case!(B "s1_b" |attempt| late(attempt)).0,
        case!(C "s1_c" |attempt| late(attempt)).0,
        case!(D "s1_d" |attempt| late(attempt)).0,
    ];
    let report = run(&Runner::new(), cases).await;
    assert_eq!(report.flaky().len(), 4);
    assert_eq!(report.failures().len(), 1, "{:?}", report.failures());
}

#[tokio::test]
async fn panic_of_a_case_is_a_violation() {
    let (case, _) = case!(COUNT "s1_panics" |attempt| match attempt {
        0 => held(),
        _ => panic!("a broken invariant"),
    });
    let (other, _) = case!(OTHER "s1_holds" |_attempt| held());
    let report = run(&Runner::new(), [case, other]).await;
    assert_eq!(words(&report), ["violated", "held"]);
    assert!(report.results[0].outcome.seen().contains("a broken invariant"));
}

#[tokio::test(start_paused = true)]
async fn case_that_hangs_ends_at_the_limit_which_is_doubled_for_repetitions() {
    let (case, count) = case!(COUNT "s1_hangs" |attempt| {
        if attempt < 3 {
            std::future::pending::<()>().await;
        }
        // Longer than the limit, shorter than the doubled one.
        tokio::time::sleep(Duration::from_secs(15)).await;
        held()
    });
    let report = run(&Runner::new().limit(Duration::from_secs(10)), [case]).await;
    assert_eq!(words(&report), ["held"]);
    assert_eq!(count.load(Ordering::SeqCst), 3);
    assert_eq!(report.results[0].repeated.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn missed_limit_under_a_paused_clock_is_a_violation() {
    let (case, count) = case!(COUNT "s1_late" |_attempt| Err(Outcome::unjudged("late")));
    let report = run(&Runner::paused(), [case]).await;
    assert_eq!(words(&report), ["violated"]);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn cases_run_side_by_side_up_to_the_bound_and_repetitions_alone() {
    static NOW: AtomicU32 = AtomicU32::new(0);
    static MOST: AtomicU32 = AtomicU32::new(0);
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let attack = Attack::Single(|_| {
        Box::pin(async {
            let beside = NOW.fetch_add(1, Ordering::SeqCst) + 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
            NOW.fetch_sub(1, Ordering::SeqCst);
            // The first 40 are first attempts.
            if RUNS.fetch_add(1, Ordering::SeqCst) < 40 {
                MOST.fetch_max(beside, Ordering::SeqCst);
                return Err(Outcome::unjudged("late"));
            }
            match beside {
                1 => held(),
                more => Err(Outcome::violated(format!("{more} repetitions at once"))),
            }
        })
    });
    let cases = (0..40).map(|_| Case::new("s1_beside", "S1", "is judged", attack));
    let report = run(&Runner::new(), cases).await;
    assert_eq!(MOST.load(Ordering::SeqCst), 32, "the bound of the subject");
    assert_eq!(report.count("held"), 40, "{:?}", report.failures());
}

#[tokio::test]
async fn denied_guarantee_is_attacked_and_shown() {
    let denied = |_: &_| Promise::Denied {
        line: Line::HandOff,
        reason: "no queue".to_owned(),
    };
    let (shown, _) = case!(SHOWN "l3_shown" |_attempt| Err(Outcome::violated("3 before 2")));
    let (survived, _) = case!(SURVIVED "l3_survived" |_attempt| held());
    let (lacks, count) = case!(LACKS "l3_lacks" |_attempt| held());
    let report = run(
        &Runner::new(),
        [
            shown.promised(Line::HandOff, denied),
            survived.promised(Line::HandOff, denied),
            lacks.promised(Line::HandOff, denied).needs(&[Need::Failover]),
        ],
    )
    .await;
    assert_eq!(
        words(&report),
        ["denied, shown", "denied, survived", "denied, no control"]
    );
    assert_eq!(count.load(Ordering::SeqCst), 0, "attacked without its control");
    assert!(report.passed(), "{:?}", report.failures());
}

#[tokio::test]
async fn case_without_its_control_is_not_run_and_excused() {
    let (lacks, count) = case!(COUNT "s1_lacks" |_attempt| held());
    let (holds, _) = case!(OTHER "s1_holds" |_attempt| held());
    let report = run(&Runner::new(), [lacks.needs(&[Need::ClockBack]), holds]).await;
    assert_eq!(words(&report), ["not run", "held"]);
    assert_eq!(count.load(Ordering::SeqCst), 0);
    assert!(report.passed());
}

#[tokio::test]
async fn less_than_nine_tenths_of_the_cases_fail_the_report() {
    let (runs, _) = case!(RUNS "s1_runs" |_attempt| held());
    let (fails, _) = case!(FAILS "s1_fails" |_attempt| Err(Outcome::not_run("no room")));
    let nine = run(&Runner::new(), std::iter::repeat_n(runs, 9).chain([fails])).await;
    assert!(nine.passed(), "{:?}", nine.failures());
    let eight = run(&Runner::new(), std::iter::repeat_n(runs, 8).chain([fails])).await;
    assert!(!eight.passed());
    let none = run(&Runner::new(), []).await;
    assert!(!none.passed(), "a report without cases passed");
}

/// A store of its own for each case, which cannot be cleaned up.
struct Leaves(ErrorKind);

#[async_trait]
impl Harness for Leaves {
    async fn connect(&self) -> tenure_core::Result<Store> {
        tenure_memory::connect(MemoryConfig::new())
    }

    async fn clean_up(&self) -> tenure_core::Result<()> {
        Err(Error::new(self.0, "two keys"))
    }
}

#[async_trait]
impl Subject for Leaves {
    fn name(&self) -> &str {
        "leaves"
    }

    async fn harness(&self, _: &Case) -> tenure_core::Result<Box<dyn Harness>> {
        Ok(Box::new(Leaves(self.0)))
    }
}

#[tokio::test]
async fn remains_that_contradict_each_other_violate_the_case_and_others_are_noted() {
    let (case, count) = case!(COUNT "s1_leaves" |_attempt| held());
    for (kind, word) in [(ErrorKind::Internal, "violated"), (ErrorKind::Unavailable, "held")] {
        let report = Runner::new().run_trial(&Leaves(kind), &Trial::from(case)).await;
        assert_eq!(words(&report), [word]);
        assert!(
            report.results[0].outcome.seen().contains("two keys"),
            "{}",
            report.results[0].outcome
        );
    }
    assert_eq!(count.load(Ordering::SeqCst), 2, "repeated");
}
