//! Reports as pages of the documentation.

use std::fmt::Write;

use super::{Claim, Report};
use crate::outcome::Outcome;
use crate::roles::Role;
use crate::table::{Cell, TABLE, cases};

/// Returns `text` as the content of a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Returns the matrix: a column for each store, a row for each line of the guarantees, and below it the reasons and
/// what the cases showed.
pub fn to_markdown(reports: &[Report]) -> String {
    let columns: Vec<(&Report, Vec<Claim>)> = reports.iter().map(|report| (report, report.claims())).collect();
    let mut page = String::from("| |");
    let mut rule = String::from("\n|---|");
    for (report, _) in &columns {
        let _ = write!(page, " {} |", cell(&report.store));
        rule.push_str("---|");
    }
    page.push_str(&rule);
    for line in tenure_core::guarantees::Line::ALL {
        let _ = write!(page, "\n| {} |", line.title());
        for (_, claims) in &columns {
            let claim = claims.iter().find(|claim| claim.line == *line);
            let value = claim.map_or_else(String::new, |claim| cell(&claim.value));
            let _ = write!(page, " {value} |");
        }
    }
    for (report, claims) in &columns {
        let deployment = report.guarantees.as_ref().map_or("", |it| it.deployment.as_str());
        let _ = write!(page, "\n\n## {}\n\n{deployment}\n\n", report.store);
        page.push_str("| | claim | why | cases | counterexample |\n|---|---|---|---|---|");
        for claim in claims {
            let counterexample = claim.counterexamples.first().map_or("", String::as_str);
            let cells = [
                claim.line.title(),
                &claim.value,
                &claim.reason,
                &claim.shown,
                counterexample,
            ];
            page.push_str("\n|");
            for text in cells {
                let _ = write!(page, " {} |", cell(text));
            }
        }
        let open = report
            .results
            .iter()
            .filter(|result| !matches!(result.outcome, Outcome::Held { .. }));
        page.push_str("\n\nCases that did not simply hold:\n");
        for result in open {
            let _ = write!(page, "\n- `{}`: {}", result.case.id, result.outcome);
        }
        for (trial, why) in report.flaky() {
            let _ = write!(page, "\n- FLAKY `{trial}`: {why}");
        }
        let _ = write!(page, "\n\n{}\n", report.summary());
    }
    page
}

/// Returns the table of rules and roles and the list of all cases, as a page.
pub fn catalogue() -> String {
    let mut page = String::from(
        "# The catalogue of cases\n\n## Rules and roles\n\n\
         A rule that holds for everything that can be held is written once. \
         A cell is a case, or the number of the reason why there is none.\n\n| | holds |",
    );
    for role in Role::ALL {
        let _ = write!(page, " {} |", role.word());
    }
    page.push_str("\n|---|---|");
    page.push_str(&"---|".repeat(Role::ALL.len()));
    let mut reasons: Vec<&str> = Vec::new();
    for row in TABLE {
        let scene = if row.is_scene { " (scene)" } else { "" };
        let _ = write!(page, "\n| {} | {}{scene} |", row.rule, row.title);
        for cell in &row.cells {
            match cell {
                Cell::Case(_) => page.push_str(" case |"),
                Cell::Reason(reason) => {
                    if !reasons.contains(reason) {
                        reasons.push(reason);
                    }
                    let place = reasons.iter().position(|known| known == reason);
                    let _ = write!(page, " ({}) |", place.unwrap_or_default() + 1);
                }
            }
        }
    }
    page.push_str("\n\nWhere there is no case:\n");
    for (number, reason) in (1..).zip(reasons) {
        let _ = write!(page, "\n{number}. {reason}");
    }
    page.push_str("\n\n## All cases\n\n| case | rule | what must hold | needs |\n|---|---|---|---|");
    for case in cases() {
        let needs: Vec<&str> = case.needs.iter().map(|need| need.word()).collect();
        let (id, rule, title) = (case.id, case.rule, cell(case.title));
        let _ = write!(page, "\n| `{id}` | {rule} | {title} | {} |", needs.join(", "));
    }
    page.push('\n');
    page
}
