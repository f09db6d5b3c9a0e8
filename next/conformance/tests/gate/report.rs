//! The report: claims with what became of them, as text, JSON and Markdown.

use tenure_conformance::report::{catalogue, to_markdown};
use tenure_conformance::{Attack, Case, Outcome, Promise, Runner, Trial};
use tenure_core::guarantees::Line;
use tenure_memory::{MemoryConfig, MemorySubject};

async fn sample() -> tenure_conformance::Report {
    let holds = Attack::Single(|_| Box::pin(async { Ok(Outcome::held("40 grants in order")) }));
    let breaks = Attack::Single(|_| Box::pin(async { Err(Outcome::violated("2 held | at once")) }));
    let denied = |_: &_| Promise::Denied {
        line: Line::Durability,
        reason: "kept in memory".to_owned(),
    };
    let made = |_: &_| Promise::Made;
    let cases = [
        Case::new("l3_in_order", "L3", "in order", holds).promised(Line::HandOff, made),
        Case::new("l1_alone", "L1", "alone", breaks).promised(Line::MutualExclusion, made),
        Case::new("l2_kept", "L2", "kept", breaks).promised(Line::Durability, denied),
    ];
    Runner::new()
        .run_trials(
            &MemorySubject::new(MemoryConfig::new()),
            cases.map(Trial::from).to_vec(),
        )
        .await
}

#[tokio::test]
async fn claims_say_what_became_of_them() {
    let report = sample().await;
    let claims = report.claims();
    assert_eq!(claims.len(), Line::ALL.len());
    let of = |line| claims.iter().find(|claim| claim.line == line).unwrap();
    assert_eq!(of(Line::HandOff).shown, "held: 1");
    assert_eq!(of(Line::MutualExclusion).shown, "violated: 1");
    assert_eq!(of(Line::Durability).shown, "denied, shown: 1");
    assert_eq!(of(Line::Durability).counterexamples, ["2 held | at once"]);
    assert_eq!(of(Line::Observers).shown, "", "no case of this line ran");
    assert!(!of(Line::Observers).value.is_empty() && !of(Line::Observers).reason.is_empty());
}

#[tokio::test]
async fn text_shows_the_claims_and_what_did_not_hold() {
    let text = sample().await.to_string();
    for part in [
        "hand-off order",
        "l1_alone: violated: 2 held | at once",
        "kept in memory; 2 held",
        "failed",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("l3_in_order"), "what held is not listed");
}

#[tokio::test]
async fn json_has_every_case_and_claim() {
    let json = sample().await.to_json();
    assert_eq!(json["passed"], false);
    assert_eq!(json["cases"].as_array().unwrap().len(), 3);
    assert_eq!(json["cases"][1]["outcome"], "violated");
    assert_eq!(json["cases"][2]["reason"], "kept in memory");
    assert_eq!(json["claims"].as_array().unwrap().len(), Line::ALL.len());
}

#[tokio::test]
async fn matrix_has_a_row_for_each_line_and_escapes_cells() {
    let page = to_markdown(&[sample().await]);
    for line in Line::ALL {
        assert!(
            page.contains(&format!("\n| {} | ", line.title())),
            "no row for {line:?}"
        );
    }
    assert!(page.contains("2 held \\| at once"), "{page}");
}

#[test]
fn catalogue_lists_every_case() {
    let page = catalogue();
    for case in tenure_conformance::cases() {
        assert!(page.contains(&format!("| `{}` |", case.id)), "{} is missing", case.id);
    }
}
