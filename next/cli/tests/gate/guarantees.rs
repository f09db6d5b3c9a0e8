use serde_json::Value;

use crate::support::tenure;

#[test]
fn guarantees_are_printed_with_their_reasons() {
    let ended = tenure(&["guarantees"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    let exclusion = ended.stdout.lines().find(|line| line.starts_with("L1 ")).unwrap();
    assert!(exclusion.contains("mutual exclusion"), "{exclusion}");
    assert!(
        ended
            .stdout
            .lines()
            .skip(1)
            .all(|line| line.split("  ").filter(|cell| !cell.is_empty()).count() >= 3)
    );
}

#[test]
fn guarantees_are_printed_as_one_json_object_a_line() {
    let ended = tenure(&["--json", "guarantees", "--url", "memory:shop"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let rows: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(rows.len() > 15);
    for row in &rows {
        for key in ["deployment", "id", "rule", "guarantee", "value", "reason"] {
            assert!(row[key].is_string(), "{key}: {row}");
        }
    }
}
