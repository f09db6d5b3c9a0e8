//! The example with a mistake: which case finds it, and what the report says.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::sync::Arc;

use tenure_conformance::{Case, Harness, Outcome, Report, Subject, async_trait, run};
use tenure_core::{Result, Store};
use tenure_example_files::{Mistake, connect_mistaken};

struct Files(tempfile::TempDir, Mistake);

#[async_trait]
impl Harness for Files {
    async fn connect(&self) -> Result<Store> {
        Ok(connect_mistaken(self.0.path(), self.1)?.into_dyn())
    }
}

/// A store with a mistake, as a column of a report.
struct Mistaken(Mistake);

#[async_trait]
impl Subject for Mistaken {
    fn name(&self) -> &str {
        "mistaken"
    }

    async fn stage(&self, _: &Case) -> Result<Box<dyn Harness>> {
        Ok(Box::new(Files(tempfile::tempdir().unwrap(), self.0)))
    }
}

async fn report_on(mistake: Mistake, id: &str) -> Report {
    let subjects: Vec<Arc<dyn Subject>> = vec![Arc::new(Mistaken(mistake))];
    run(subjects, |case| case.id == id, |_| {}).await
}

/// The same case passes without the mistake, and with it says which promise was broken, and how.
async fn shows(mistake: Mistake, id: &str, promise: &str, how: &str) {
    let report = report_on(Mistake::None, id).await;
    assert!(report.exit_ok(), "{report}");
    let report = report_on(mistake, id).await;
    assert!(!report.exit_ok(), "{report}");
    let outcome = report.columns[0].outcome(id).unwrap();
    assert!(matches!(outcome, Outcome::Violated { .. }), "{outcome}");
    assert!(outcome.details().contains(how), "{outcome}");
    let text = report.to_string();
    assert!(text.contains(promise) && text.contains(how), "{text}");
    println!("{report}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_counted_in_each_process_are_found() {
    let case = "l2_lock_tokens_rise";
    shows(
        Mistake::CountAtHome,
        case,
        "token order",
        "which is not above",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_by_name_alone_is_found() {
    let case = "l7_a_late_release_spares_the_successor";
    shows(
        Mistake::ReleaseByName,
        case,
        "late release",
        "of the successor was free",
    )
    .await;
}
