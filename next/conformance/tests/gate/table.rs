//! The whole table and every case on the embedded store, under a paused clock.

use tenure_conformance::{Cell, Role, Runner, TABLE, cases, trials};
use tenure_memory::{MemoryConfig, MemorySubject};

#[tokio::test(start_paused = true)]
async fn embedded_store_passes_every_case() {
    let runner = match std::env::var("TENURE_CASES") {
        Ok(only) => Runner::paused().only(only),
        Err(_) => Runner::paused(),
    };
    let report = runner.run(&MemorySubject::new(MemoryConfig::new())).await;
    let failures = report.failures();
    assert!(failures.is_empty(), "{}\n{}", failures.join("\n"), report.summary());
}

#[test]
fn table_has_every_square_with_a_case_or_a_reason() {
    let (mut filled, mut reasons) = (0, 0);
    for row in TABLE {
        for (cell, role) in row.cells.iter().zip(Role::ALL) {
            match cell {
                Cell::Case(case) => {
                    assert_eq!(case.id, format!("{}/{}", row.id, role.word()));
                    assert!(case.id.starts_with(&row.rule.to_lowercase()), "{}", case.id);
                    filled += 1;
                }
                Cell::Reason(reason) => {
                    assert!(reason.len() > 20, "{}: {reason:?} is no reason", row.id);
                    reasons += 1;
                }
            }
        }
    }
    assert!(
        TABLE.len() >= 35 && filled >= 250,
        "{} rows, {filled} cases",
        TABLE.len()
    );
    assert!(reasons < 30, "{reasons} cells have no case");
}

#[test]
fn trials_run_every_case_once() {
    let mut in_trials: Vec<&str> = trials()
        .iter()
        .flat_map(|trial| trial.cases.iter().map(|case| case.id).collect::<Vec<_>>())
        .collect();
    let mut all: Vec<&str> = cases().iter().map(|case| case.id).collect();
    in_trials.sort_unstable();
    all.sort_unstable();
    assert_eq!(in_trials, all);
    all.dedup();
    assert_eq!(all.len(), in_trials.len(), "two cases have the same name");
}
