use serde_json::Value;

use crate::support::tenure;

#[test]
fn pattern_selects_the_cases_of_a_rule() {
    let ended = tenure(&["conform", "--only", "l1_*", "--format", "json"]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stderr, ended.stdout);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let cases = report["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    assert!(cases.iter().all(|case| case["id"].as_str().unwrap().starts_with("l1_")));
}

#[test]
fn report_has_the_form_and_the_place_that_were_asked_for() {
    let table = tenure(&["conform", "--only", "l4_*"]);
    assert_eq!(table.code, Some(0), "{}", table.stderr);
    assert!(
        table.stdout.contains("mutual exclusion") && table.stdout.trim_end().ends_with("passed"),
        "{}",
        table.stdout
    );

    let file = std::env::temp_dir().join(format!("tenure-report-{}.md", std::process::id()));
    let markdown = tenure(&[
        "conform",
        "--only",
        "l4_*",
        "--format",
        "markdown",
        "--out",
        file.to_str().unwrap(),
    ]);
    assert_eq!(
        (markdown.code, markdown.stdout.as_str()),
        (Some(0), ""),
        "{}",
        markdown.stderr
    );
    let page = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(page.starts_with("| | memory |"), "{page}");
}
