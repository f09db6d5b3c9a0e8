//! The first command of README.md.
#![allow(clippy::unwrap_used)] // A test fails by panicking.

#[path = "../gate/support.rs"]
mod support;

use serde_json::Value;

use support::tenure;

#[test]
fn embedded_store_passes_the_whole_suite() {
    let ended = tenure(&["conform", "--json"]);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(ended.code, Some(0), "{}{:#}", ended.stderr, report["failures"]);
    assert_eq!(report["store"], "memory");
    assert_eq!(report["passed"], true);
    let cases = report["cases"].as_array().unwrap();
    let held = cases.iter().filter(|case| case["outcome"] == "held").count();
    assert!(held * 10 > cases.len() * 8, "{held} of {} cases held", cases.len());
}
