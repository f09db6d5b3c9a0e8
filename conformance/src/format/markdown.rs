//! Markdown, as GitHub and others read it.

use std::fmt::Write as _;

use super::{
    About, Cell, Part, Report, VERSION, cases, deployment, is_hidden, seconds, utc, verdict,
};
use crate::case::Outcome;

/// The matrix, the totals, what was broken, what is denied with the evidence, and what was left
/// out.
pub fn markdown(report: &Report, about: &About) -> String {
    let mut text = "# Conformance\n\n".to_owned();
    let _ = writeln!(text, "**{}**: {}.\n", verdict(report), report.tally());
    let took = seconds(report.took);
    let _ = writeln!(
        text,
        "* Run at {} in {took}, by tenure {VERSION}.",
        utc(about.at)
    );
    if let Some(command) = &about.command {
        let _ = writeln!(text, "* Again: {}", code(command));
    }
    for column in &report.columns {
        let (store, deployment) = (plain(&column.store), plain(&deployment(column)));
        let _ = writeln!(text, "* {store}: {deployment}.");
    }
    text += "\n## Guarantees\n\n";
    text += &matrix(report);
    text += "\n## Totals\n\n";
    totals(&mut text, report);
    violations(&mut text, report);
    denials(&mut text, report);
    left_out(&mut text, report);
    text
}

/// The matrix alone: a line for each guarantee, a column for each store. A cell has what is claimed,
/// and what became of it.
pub fn matrix(report: &Report) -> String {
    let mut text = String::new();
    let stores: Vec<String> = report
        .columns
        .iter()
        .map(|column| plain(&column.store))
        .collect();
    row(&mut text, "guarantee", &stores);
    rule(&mut text, stores.len());
    for part in Part::all() {
        let cells = report.columns.iter().map(|column| {
            let cell = Cell::of(column, part);
            let value = match part.0 {
                Some(_) => format!("{}: ", plain(&cell.value(column, part))),
                None => String::new(),
            };
            let words = cell.standing.words();
            let words = match cell.standing.violated.is_empty() {
                true => words,
                false => format!("**{words}**"),
            };
            format!("{value}{words}")
        });
        row(&mut text, &titled(part), &cells.collect::<Vec<_>>());
    }
    text
}

fn titled(part: Part) -> String {
    match part.rule() {
        "" => part.title().to_owned(),
        rule => format!("{} ({rule})", part.title()),
    }
}

fn row(text: &mut String, title: &str, cells: &[String]) {
    let _ = writeln!(text, "| {title} | {} |", cells.join(" | "));
}

fn rule(text: &mut String, columns: usize) {
    let _ = writeln!(text, "|---|{}", "---|".repeat(columns));
}

fn totals(text: &mut String, report: &Report) {
    const ENDS: [&str; 6] = [
        "cases",
        "held",
        "violated",
        "not promised",
        "of these shown",
        "not run",
    ];
    row(text, "store", &ENDS.map(str::to_owned));
    rule(text, ENDS.len());
    for column in &report.columns {
        let tally = column.tally();
        let numbers = [
            column.entries.len(),
            tally.held,
            tally.violated,
            tally.not_promised,
            tally.shown,
            tally.not_run,
        ];
        row(
            text,
            &plain(&column.store),
            &numbers.map(|number| number.to_string()),
        );
    }
}

fn violations(text: &mut String, report: &Report) {
    for (index, (store, case, counterexample)) in report.violations().enumerate() {
        if index == 0 {
            text.push_str("\n## Violations\n");
        }
        let _ = write!(
            text,
            "\n### {} on {}\n\nBroken: {} ({}).\n\n{}",
            code(case.id),
            plain(store),
            plain(case.title),
            case.rule,
            block(counterexample)
        );
    }
}

fn denials(text: &mut String, report: &Report) {
    for (index, (store, line, standing)) in report.denials().enumerate() {
        if index == 0 {
            text.push_str("\n## What is denied, and what came of attacking it\n");
        }
        let _ = writeln!(
            text,
            "\n### {} on {}: {}\n",
            line.title(),
            plain(store),
            standing.denial()
        );
        for reason in &standing.reasons {
            let _ = writeln!(text, "{}\n", plain(reason));
        }
        for (case, seen) in &standing.shown {
            let _ = write!(text, "Shown by {}:\n\n{}\n", code(case.id), block(seen));
        }
        for (case, seen) in &standing.survived {
            let _ = write!(text, "Survived {}:\n\n{}\n", code(case.id), block(seen));
        }
        for (what, why, count) in standing.why_not_shown() {
            let _ = writeln!(text, "{what} for {}: {}.\n", cases(count), plain(why));
        }
        // One empty line is enough.
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
}

fn left_out(text: &mut String, report: &Report) {
    for (index, (store, why, count)) in report.not_run().into_iter().enumerate() {
        if index == 0 {
            text.push_str("\n## What was not run\n\n");
        }
        let _ = writeln!(text, "* {}: {}: {}", plain(store), cases(count), plain(why));
        let names = report.columns.iter().filter(|column| column.store == store).flat_map(|column| {
            let missing = |outcome: &Outcome| matches!(outcome, Outcome::NotRun { why: other, .. } if other == why);
            let entries = column.entries.iter().filter(move |entry| missing(&entry.outcome));
            entries.map(|entry| code(entry.case.id))
        });
        let names: Vec<String> = names.collect();
        let _ = writeln!(text, "  ({})", names.join(", "));
    }
}

/// Text as it is, on one line and in a table too: no character of it means anything.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' => out.push(' '),
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            // A bare address or a mention becomes a link, whatever stands before it.
            '@' => out.push_str("&#64;"),
            ':' => out.push_str(if out.ends_with("http") || out.ends_with("https") {
                "&#58;"
            } else {
                ":"
            }),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '|' | '~' | '!' | '$' => {
                out.push('\\');
                out.push(character);
            }
            hidden if is_hidden(hidden) => {
                out.extend(hidden.escape_unicode().flat_map(|c| match c {
                    '\\' | '{' | '}' => vec!['\\', c],
                    _ => vec![c],
                }))
            }
            _ => out.push(character),
        }
    }
    out
}

/// The longest run of backticks.
fn ticks(text: &str) -> usize {
    text.split(|character| character != '`')
        .map(str::len)
        .max()
        .unwrap_or_default()
}

fn code(text: &str) -> String {
    let fence = "`".repeat(ticks(text) + 1);
    let text: String = visible(text).replace(['\n', '\t'], " ");
    match text.starts_with('`') || text.ends_with('`') {
        true => format!("{fence} {text} {fence}"),
        false => format!("{fence}{text}{fence}"),
    }
}

fn block(text: &str) -> String {
    let fence = "`".repeat(ticks(text).max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", visible(text).trim_end())
}

/// With hidden characters by their numbers.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match is_hidden(character) {
            true => out.extend(character.escape_unicode()),
            false => out.push(character),
        }
    }
    out
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn the_whole_report() {
        let text = markdown(&sample::report(), &sample::about());
        for expected in [
            "# Conformance\n\n**BROKEN**: ",
            "* Run at 2023-11-14T22:13:20Z in 61.2 s, by tenure ",
            "* Again: `tenure conform --only 'l?_*'`\n",
            "* memory: embedded 1.0.\n",
            "| guarantee | memory | plain \\| redis |\n|---|---|---|\n",
            "| mutual exclusion (L1) | always: **BROKEN** | always: not tested |\n",
            "| token order survives (L2) | client crash: denied, shown | client crash: denied, no control here |\n",
            "| everything else | held | not tested |\n",
            "### `l1_lock_excludes_others` on memory\n",
            "```text\ntwo at once:\n    client 0\n```\n",
            "### token order survives on memory: denied, shown\n\nnothing is kept\n\nShown by `l2_tokens_survive_a_restart`:\n",
            "no control for 1 case: there is no way to restart the store.\n",
            "* plain \\| redis: 1 case: there is no way to cut a connection\n  (`l3_lock_wakes_after_a_cut`)\n",
        ] {
            assert!(text.contains(expected), "no {expected:?} in {text}");
        }
        assert!(!text.contains("\n\n\n"), "{text}");
    }

    #[test]
    fn the_matrix_alone_is_a_table_and_nothing_else() {
        let text = matrix(&sample::report());
        assert!(
            text.lines()
                .all(|line| line.starts_with("| ") || line.starts_with("|---|")),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2 + tenure_core::Line::ALL.len() + 1);
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(text.lines().all(|line| columns(line) == 4), "{text}");
    }

    #[test]
    fn hostile_text_stays_text() {
        assert_eq!(
            plain("a|b <i>*x*</i>\n#"),
            "a\\|b &lt;i&gt;\\*x\\*&lt;/i&gt; \\#"
        );
        assert_eq!(
            plain("see https://x and @you"),
            "see https&#58;//x and &#64;you"
        );
        assert_eq!(
            plain("\u{1b}[2J\u{202e}"),
            "\\\\u\\{1b\\}\\[2J\\\\u\\{202e\\}"
        );
        assert_eq!(code("a``b"), "```a``b```");
        assert_eq!(code("`"), "`` ` ``");
        assert_eq!(block("```\nx"), "````text\n```\nx\n````\n");
        let text = markdown(&sample::hostile(), &sample::about());
        for line in text.lines().filter(|line| line.starts_with('|')) {
            assert!(!line.contains('<'), "{line}");
        }
        assert!(
            text.lines().any(|line| line == sample::FENCE),
            "in a longer fence: {text}"
        );
        assert!(!text.contains('\u{1b}'));
    }
}
