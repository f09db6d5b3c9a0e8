//! A run of the suite, as the command `tenure conform` makes one.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::sync::Arc;

use tenure_conformance::stores::MemorySubject;
use tenure_conformance::{Outcome, Progress, Subject, run};
use tenure_core::Line;

#[tokio::test(flavor = "multi_thread")]
async fn a_report_tells_what_was_held_and_what_is_not_promised() {
    let mut told = (0, 0, 0);
    let subjects: Vec<Arc<dyn Subject>> = vec![Arc::new(MemorySubject)];
    let chosen = [
        "l2_tokens_survive_a_restart",
        "l8_bad_names_are_refused",
        "l3_lock_wakes_after_a_cut",
    ];
    let report = run(
        subjects,
        |case| chosen.contains(&case.id),
        |progress| match progress {
            Progress::Started { total } => told.0 = total,
            Progress::Begun { .. } => told.1 += 1,
            Progress::Ended { .. } => told.2 += 1,
            _ => {}
        },
    )
    .await;
    assert_eq!(told, (3, 3, 3));
    let column = &report.columns[0];
    assert!(matches!(
        column.outcome(chosen[0]),
        Some(Outcome::NotPromised { .. })
    ));
    assert!(matches!(
        column.outcome(chosen[1]),
        Some(Outcome::Held { .. })
    ));
    assert!(matches!(
        column.outcome(chosen[2]),
        Some(Outcome::NotRun { .. })
    ));
    assert_eq!(column.standing(Line::TokenOrder).words(), "denied, shown");
    assert!(report.exit_ok());
    let text = report.to_string();
    assert!(
        text.contains("memory: 3 cases, 1 held, 0 violated, 1 not promised (1 shown), 1 not run"),
        "{text}"
    );
}

#[test]
fn the_tested_versions_are_those_of_the_matrix() {
    let matrix = include_str!("../../docs/matrix.md");
    let deployments = matrix.lines().filter_map(|line| line.strip_prefix("* "));
    let deployments = deployments.filter_map(|line| line.split_once(": "));
    let servers = deployments.filter_map(|(_, deployment)| {
        tenure_conformance::is_tested(deployment)?;
        deployment.trim_end_matches('.').split(',').next()
    });
    let mut servers: Vec<&str> = servers.collect();
    servers.dedup();
    assert_eq!(servers, tenure_conformance::TESTED);
}

/// Pages that show what came of a run go stale when cases are renamed.
#[test]
fn matrix_cites_only_cases_that_exist() {
    for page in [
        include_str!("../../docs/matrix.md"),
        include_str!("../../README.md"),
    ] {
        let words = page.split('`').skip(1).step_by(2);
        let rule = |word: &&str| {
            let (rule, rest) = word.split_once('_').unwrap_or_default();
            let letter = rule.starts_with(['s', 'l', 'r', 'e', 'q', 'b', 't', 'h', 'o']);
            let number = rule.len() == 2 && rule.ends_with(|digit: char| digit.is_ascii_digit());
            !rest.is_empty() && (rule == "store" || letter && number)
        };
        for case in words.filter(rule) {
            assert!(
                tenure_conformance::CASES.iter().any(|it| it.id == case),
                "there is no case `{case}`: run scripts/matrix.sh"
            );
        }
    }
}

#[tokio::test]
async fn nothing_chosen_is_not_a_pass() {
    let subjects: Vec<Arc<dyn Subject>> = vec![Arc::new(MemorySubject)];
    assert!(!run(subjects, |_| false, |_| {}).await.exit_ok());
    assert!(!run(Vec::new(), |_| true, |_| {}).await.exit_ok());
}

#[tokio::test]
async fn one_case_is_one_case() {
    let subjects: Vec<Arc<dyn Subject>> = vec![Arc::new(MemorySubject)];
    let report = run(
        subjects,
        |case| case.id == tenure_conformance::CASES[0].id,
        |_| {},
    )
    .await;
    let text = report.summary();
    assert!(text.starts_with("memory: 1 case, 1 held"), "{text}");
}
