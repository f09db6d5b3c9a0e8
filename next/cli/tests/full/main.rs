//! The suite as a whole: the first command of README.md, and Redis.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "../gate/support.rs"]
mod support;

use serde_json::Value;
use tenure_testbed::shared_redis;

use support::tenure;

/// Runs the whole suite. Returns the report, and the number of cases with each of `words`.
fn conform<const N: usize>(args: &[&str], words: [&str; N]) -> (Value, [usize; N]) {
    let ended = tenure(&[&["conform", "--json"], args].concat());
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, Some(0), "{}{:#}", ended.stderr, report["failures"]);
    assert_eq!(report["passed"], true);
    let cases = report["cases"].as_array().unwrap();
    let counts = words.map(|word| cases.iter().filter(|case| case["outcome"] == word).count());
    (report, counts)
}

#[test]
fn embedded_store_passes_the_whole_suite() {
    let (report, [held]) = conform(&[], ["held"]);
    assert_eq!(report["store"], "memory");
    let cases = report["cases"].as_array().unwrap();
    assert!(held * 10 > cases.len() * 8, "{held} of {} cases held", cases.len());
}

#[test]
fn redis_that_runs_already_passes_the_suite_but_for_what_would_disturb_others() {
    let shared = shared_redis().unwrap();
    let (report, [held, not_run]) = conform(&["--url", shared.url()], ["held", "not run"]);
    assert!(
        report["store"].as_str().unwrap().starts_with("redis://"),
        "{}",
        report["store"]
    );
    let cases = report["cases"].as_array().unwrap();
    assert!(
        held * 10 > cases.len() * 8,
        "{held} of {} cases held, {not_run} did not run",
        cases.len()
    );
    let left = shared.admin().keys("*conform-*").unwrap();
    assert!(left.is_empty(), "{left:?}");
}
