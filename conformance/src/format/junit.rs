//! JUnit's XML, as Jenkins, GitLab and their like read it.

use std::fmt::Write as _;
use std::time::Duration;

use super::{About, Column, Entry, Mark, Report, VERSION, deployment, utc};
use crate::case::{Outcome, Seen};

/// A suite for each store, a test for each case.
///
/// A violation is a failure, with the counterexample. What was not run, and what is not promised, is
/// skipped, with the reason. A store of which nothing was proved has one more test, which is an
/// error: the report passes exactly if [`Report::exit_ok`] does.
pub fn junit(report: &Report, about: &About) -> String {
    let mut text =
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites name=\"tenure conform\""
            .to_owned();
    let at = utc(about.at);
    let at = at.trim_end_matches('Z');
    let all: Vec<&Entry> = report
        .columns
        .iter()
        .flat_map(|column| &column.entries)
        .collect();
    let unproved = report
        .columns
        .iter()
        .filter(|column| !proved(column))
        .count();
    // Without a column there is nothing that could say so.
    let empty = report.columns.is_empty();
    numbers(
        &mut text,
        &all,
        unproved + usize::from(empty),
        report.took,
        at,
    );
    text += ">\n";
    if empty {
        text += "  <testsuite name=\"no store\" tests=\"1\" failures=\"0\" errors=\"1\" skipped=\"0\">\n";
        error(&mut text, "no store", "no case ran");
        text += "  </testsuite>\n";
    }
    for column in &report.columns {
        suite(&mut text, column, about, at);
    }
    text + "</testsuites>\n"
}

/// As [`Report::exit_ok`] asks of every column, violations aside.
fn proved(column: &Column) -> bool {
    let shown = column.is_proved() || column.guarantees.is_ok() && column.tally().violated > 0;
    shown && column.below_floor().is_none()
}

fn numbers(text: &mut String, entries: &[&Entry], errors: usize, took: Duration, at: &str) {
    let failures = Mark::Violated.count(entries);
    let skipped = entries.len() - failures - Mark::Held.count(entries);
    let _ = write!(
        text,
        " tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" skipped=\"{skipped}\" time=\"{:.3}\" timestamp=\"{at}\"",
        entries.len() + errors,
        took.as_secs_f64(),
    );
}

fn suite(text: &mut String, column: &Column, about: &About, at: &str) {
    let entries: Vec<&Entry> = column.entries.iter().collect();
    let took = entries.iter().map(|entry| entry.took).sum();
    let _ = write!(text, "  <testsuite name=\"{}\"", escaped(&column.store));
    numbers(text, &entries, usize::from(!proved(column)), took, at);
    text.push_str(">\n    <properties>\n");
    property(text, "deployment", &deployment(column));
    property(text, "tenure", VERSION);
    if let Some(command) = &about.command {
        property(text, "command", command);
    }
    text.push_str("    </properties>\n");
    if !proved(column) {
        let why = match (&column.guarantees, column.below_floor()) {
            (Ok(_), Some((ran, expected))) => {
                format!("only {ran} of {expected} cases ran for which there is a control")
            }
            (Ok(_), None) => "not one promise of the store could be put to the test".to_owned(),
            (Err(why), _) => why.clone(),
        };
        error(text, &column.store, &why);
    }
    for entry in entries {
        test(text, &column.store, entry);
    }
    text.push_str("  </testsuite>\n");
}

fn property(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(
        text,
        "      <property name=\"{name}\" value=\"{}\"/>",
        escaped(value)
    );
}

fn error(text: &mut String, store: &str, why: &str) {
    let _ = writeln!(
        text,
        "    <testcase classname=\"{}\" name=\"something is proved\" time=\"0.000\">\n      <error type=\"nothing proved\" message=\"{}\"/>\n    </testcase>",
        escaped(store),
        escaped(why)
    );
}

fn test(text: &mut String, store: &str, entry: &Entry) {
    let _ = write!(
        text,
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{:.3}\">\n      ",
        escaped(store),
        escaped(entry.case.id),
        entry.took.as_secs_f64()
    );
    let _ = match &entry.outcome {
        Outcome::Held { evidence } => {
            write!(text, "<system-out>{}</system-out>", escaped(evidence))
        }
        Outcome::Violated { counterexample, .. } => write!(
            text,
            "<failure type=\"violated\" message=\"{}\">{}: {}\n{}</failure>",
            escaped(first_line(counterexample)),
            escaped(entry.case.rule),
            escaped(entry.case.title),
            escaped(counterexample)
        ),
        Outcome::NotPromised { reason, seen, .. } => {
            let (word, seen) = match seen {
                Seen::Counterexample(seen) => ("; shown: ", seen),
                Seen::Survived(seen) => ("; this attack was survived: ", seen),
                Seen::NoControl(why) => ("; no control here: ", why),
                Seen::NotBroughtAbout(why) => ("; not brought about: ", why),
            };
            write!(
                text,
                "<skipped message=\"not promised: {}{word}{}\"/>",
                escaped(reason),
                escaped(first_line(seen))
            )
            .and_then(|()| match seen.contains('\n') {
                true => write!(text, "\n      <system-out>{}</system-out>", escaped(seen)),
                false => Ok(()),
            })
        }
        Outcome::NotRun { why, .. } => {
            write!(text, "<skipped message=\"not run: {}\"/>", escaped(why))
        }
    };
    text.push_str("\n    </testcase>\n");
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// For an attribute or a text. What XML cannot have is removed.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            // Bare, an attribute would have a space for it, or a parser another line end.
            '\n' | '\t' | '\r' => {
                let _ = write!(out, "&#{};", u32::from(character));
            }
            '\0'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {}
            _ => out.push(character),
        }
    }
    out
}

#[cfg(all(test, feature = "memory"))]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use roxmltree::{Document, Node};

    use super::super::sample;
    use super::*;

    fn named<'a>(node: Node<'a, 'a>, name: &'a str) -> Vec<Node<'a, 'a>> {
        node.descendants()
            .filter(|node| node.has_tag_name(name))
            .collect()
    }

    fn number(node: Node<'_, '_>, name: &str) -> usize {
        node.attribute(name).unwrap().parse().unwrap()
    }

    #[test]
    fn a_suite_for_each_store_and_a_test_for_each_case() {
        let text = junit(&sample::report(), &sample::about());
        let document = Document::parse(&text).unwrap();
        let root = document.root_element();
        assert!(root.has_tag_name("testsuites"));
        assert_eq!(root.attribute("time"), Some("61.200"));
        assert_eq!(root.attribute("timestamp"), Some("2023-11-14T22:13:20"));
        let suites = named(root, "testsuite");
        let names: Vec<_> = suites
            .iter()
            .map(|suite| suite.attribute("name").unwrap())
            .collect();
        assert_eq!(names, ["memory", "plain | redis"]);
        let memory = suites[0];
        let properties = named(memory, "property");
        assert_eq!(properties[0].attribute("value"), Some("embedded 1.0"));
        assert_eq!(
            properties[2].attribute("value"),
            Some("tenure conform --only 'l?_*'")
        );

        for node in suites.iter().copied().chain([root]) {
            assert_eq!(number(node, "tests"), named(node, "testcase").len());
            for (attribute, tag) in [
                ("failures", "failure"),
                ("errors", "error"),
                ("skipped", "skipped"),
            ] {
                assert_eq!(number(node, attribute), named(node, tag).len(), "{tag}");
            }
        }
        let failure = named(memory, "failure")[0];
        assert_eq!(failure.attribute("message"), Some("two at once:"));
        assert!(
            failure
                .text()
                .unwrap()
                .ends_with("two at once:\n    client 0")
        );
        assert_eq!(
            failure.parent().unwrap().attribute("name"),
            Some("l1_lock_excludes_others")
        );
        let skipped = named(memory, "skipped")[0].attribute("message").unwrap();
        assert_eq!(
            skipped,
            "not promised: nothing is kept; shown: token 1 came again"
        );
        // Of the second store nothing was proved.
        assert_eq!(number(suites[1], "errors"), 1);
    }

    #[test]
    fn it_fails_where_nothing_ran() {
        let text = junit(&sample::empty(), &sample::about());
        let document = Document::parse(&text).unwrap();
        assert_eq!(number(document.root_element(), "errors"), 1);
        assert_eq!(named(document.root_element(), "error").len(), 1);
    }

    #[test]
    fn hostile_text_comes_back_without_what_xml_cannot_have() {
        let report = sample::hostile();
        let text = junit(&report, &sample::about());
        let document = Document::parse(&text).unwrap();
        let suite = named(document.root_element(), "testsuite")[0];
        let legal: String = sample::HOSTILE
            .chars()
            .filter(|c| (*c >= ' ' || "\n\t\r".contains(*c)) && *c != '\u{ffff}')
            .collect();
        assert_eq!(suite.attribute("name").unwrap(), legal);
        let failure = named(suite, "failure")[0];
        assert!(failure.text().unwrap().contains(&legal), "{text}");
    }
}
