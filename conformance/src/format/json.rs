//! JSON, an object a line.

use serde_json::{Value, json as object};

use tenure_core::{Guarantees, Row};

use super::{About, Column, Entry, Report, VERSION, utc};
use crate::case::Case;
use crate::timeline::Timeline;

/// A line for every case on every store, then one for every guarantee of every store, then one for
/// every store.
///
/// | of a case | |
/// |---|---|
/// | `store`, `case`, `rule`, `title` | what was tried where |
/// | `attacks` | the line of the matrix that it is evidence for, or null |
/// | `outcome`, `details` | what came of it: [`Outcome::word`](crate::Outcome::word), and in full |
/// | `seconds` | how long it took |
/// | `history` | what clients did, where that was recorded and went wrong: `client`, `from`, `to` (seconds, or null), `label`, `kind`, `offends`, `text` |
///
/// | of a guarantee | |
/// |---|---|
/// | `store`, `guarantee`, `rule`, `value`, `reason` | what is claimed where, and why |
/// | `standing` | what became of it: [`Standing::words`](crate::Standing::words) |
/// | `held`, `violated`, `not_run` | how many cases |
/// | `shown`, `survived`, `no_control`, `not_brought_about` | of what is denied: objects with `case`, and `seen` or `why` |
///
/// | of a store | |
/// |---|---|
/// | `store`, `deployment` | its column, its server and version |
/// | `held`, `violated`, `not_promised`, `shown`, `not_run`, `excused` | how many cases; `shown` are among those not promised, `excused` (no control, or no such primitive) among those not run |
/// | `below_floor` | whether [too few](crate::FLOOR_PERCENT) of the cases ran that are not excused |
/// | `at`, `command`, `tenure` | when and by what it was tried |
pub fn json(report: &Report, about: &About) -> String {
    let mut text = String::new();
    let mut add = |line: Value| {
        text.push_str(&line.to_string());
        text.push('\n');
    };
    for column in &report.columns {
        for entry in &column.entries {
            add(of_case(column, entry));
        }
    }
    for column in &report.columns {
        for row in column.guarantees.iter().flat_map(Guarantees::rows) {
            add(of_guarantee(column, &row));
        }
    }
    for column in &report.columns {
        add(of_store(column, about));
    }
    text
}

fn of_case(column: &Column, entry: &Entry) -> Value {
    let mut line = object!({
        "store": column.store,
        "case": entry.case.id,
        "rule": entry.case.rule,
        "title": entry.case.title,
        "attacks": entry.case.line.map(tenure_core::Line::title),
        "outcome": entry.outcome.word(),
        "details": entry.outcome.details(),
        "seconds": entry.took.as_secs_f64(),
    });
    if let Some(timeline) = entry.outcome.history() {
        line["history"] = history(timeline);
    }
    line
}

fn history(timeline: &Timeline) -> Value {
    let bar = |bar: &crate::timeline::Bar| {
        object!({
            "client": timeline.lanes.get(bar.lane),
            "from": bar.from.as_secs_f64(),
            "to": bar.to.map(|to| to.as_secs_f64()),
            "label": bar.label,
            "kind": bar.kind.word(),
            "offends": bar.offends,
            "text": bar.to_string(),
        })
    };
    timeline.bars.iter().map(bar).collect()
}

fn of_guarantee(column: &Column, row: &Row) -> Value {
    let standing = column.standing(row.line);
    let of = |evidence: &[(&'static Case, &str)], word: &str| -> Vec<Value> {
        let objects = evidence.iter();
        objects
            .map(|(case, seen)| object!({ "case": case.id, word: seen }))
            .collect()
    };
    object!({
        "store": column.store,
        "guarantee": row.line.title(),
        "rule": row.line.rule(),
        "value": row.value,
        "reason": row.reason,
        "standing": standing.words(),
        "held": standing.held.len(),
        "violated": standing.violated.len(),
        "not_run": standing.not_run.len(),
        "shown": of(&standing.shown, "seen"),
        "survived": of(&standing.survived, "seen"),
        "no_control": of(&standing.no_control, "why"),
        "not_brought_about": of(&standing.not_brought_about, "why"),
    })
}

fn of_store(column: &Column, about: &About) -> Value {
    let tally = column.tally();
    object!({
        "store": column.store,
        "deployment": column.guarantees.as_ref().ok().map(|claimed| &claimed.deployment),
        "held": tally.held,
        "violated": tally.violated,
        "not_promised": tally.not_promised,
        "shown": tally.shown,
        "not_run": tally.not_run,
        "excused": tally.excused,
        "below_floor": column.below_floor().is_some(),
        "at": utc(about.at),
        "command": about.command,
        "tenure": VERSION,
    })
}

#[cfg(all(test, feature = "memory"))]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn a_line_for_each_case_and_each_store() {
        let text = json(&sample::report(), &sample::about());
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let (cases, others): (Vec<&Value>, Vec<&Value>) =
            lines.iter().partition(|line| line["case"].is_string());
        let (guarantees, stores): (Vec<&Value>, Vec<&Value>) = others
            .iter()
            .partition(|line| line["guarantee"].is_string());
        let lines = 2 * tenure_core::Line::ALL.len();
        assert_eq!((cases.len(), guarantees.len(), stores.len()), (5, lines, 2));
        assert_eq!(cases[0]["outcome"], "violated");
        assert_eq!(cases[0]["attacks"], "mutual exclusion");
        assert_eq!(cases[0]["history"][1]["client"], "client 1");
        assert_eq!(cases[0]["history"][1]["to"], Value::Null);
        assert_eq!(cases[0]["history"][1]["offends"], true);
        assert_eq!(stores[0]["deployment"], "embedded 1.0");
        assert_eq!(stores[0]["shown"], 1);
        assert_eq!(guarantees[1]["standing"], "denied, shown");
        assert_eq!(guarantees[1]["shown"][0]["seen"], "token 1 came again");
        assert_eq!(stores[0]["at"], "2023-11-14T22:13:20Z");
    }
}
