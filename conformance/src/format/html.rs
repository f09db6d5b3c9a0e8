//! One page that needs nothing else: no server, no network.

use std::fmt::{self, Write as _};

use super::{
    About, Cell, Column, Entry, Mark, Part, Report, VERSION, cases, counts, deployment, is_hidden,
    seconds, svg, utc, verdict,
};
use crate::case::{Case, Outcome, Seen};
use crate::cases::CASES;

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// What the page may do: use the style and the script of these hashes, and nothing else. A test
/// keeps them right.
const POLICY: &str = "default-src 'none'; style-src 'sha256-2/tubRm4pjiEOieLTS8DPLyecrTpSS6ovV+W6rnEI1c='; script-src 'sha256-/9za7UZEmXqCPYuU6GPvNLzmqGblMjYfEXfPG//wswA='; base-uri 'none'; form-action 'none'";

/// The matrix; behind each cell its cases with their evidence, and the history of what went wrong as
/// a timeline. Without scripts it can be read all the same.
pub fn html(report: &Report, about: &About) -> String {
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n<title>Conformance: {}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n",
        verdict(report)
    );
    svg::definitions(&mut out);
    head(&mut out, report, about);
    out.push_str("<main>\n");
    guarantees(&mut out, report);
    violations(&mut out, report);
    denials(&mut out, report);
    left_out(&mut out, report);
    all_cases(&mut out, report);
    out.push_str("</main>\n");
    for (row, part) in Part::all().enumerate() {
        for (index, column) in report.columns.iter().enumerate() {
            detail(&mut out, &Place { row, column: index }, column, part);
        }
    }
    let _ = write!(
        out,
        "<footer>tenure {VERSION}. What a store claims is attacked and must hold; what it denies is attacked too, to show why. This page loads nothing.</footer>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    );
    out
}

/// Text, for an element or an attribute. Hidden characters are shown by their numbers.
pub(super) struct Safe<'a>(pub(super) &'a str);

impl fmt::Display for Safe<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                hidden if is_hidden(hidden) => write!(f, "{}", hidden.escape_unicode())?,
                _ => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// A cell's place in the matrix; its panel is called `c<row>-<column>`.
struct Place {
    row: usize,
    column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{}-{}", self.row, self.column)
    }
}

impl Mark {
    const fn class(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Violated => "violated",
            Self::Shown => "shown",
            Self::Survived => "survived",
            Self::NoControl | Self::NotBroughtAbout => "not-shown",
            Self::NotRun => "not-run",
        }
    }

    const fn sign(self) -> &'static str {
        match self {
            Self::Held => "✓",
            Self::Violated => "✗",
            Self::Shown => "◆",
            Self::Survived => "◇",
            Self::NoControl => "○",
            Self::NotBroughtAbout => "◌",
            Self::NotRun => "–",
        }
    }
}

/// The classes of all that there is among the entries, for the filters.
fn marks<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> String {
    let there: Vec<Mark> = entries
        .into_iter()
        .map(|entry| Mark::of(&entry.outcome))
        .collect();
    let classes = Mark::ALL
        .into_iter()
        .filter(|mark| there.contains(mark))
        .map(Mark::class);
    classes.collect::<Vec<_>>().join(" ")
}

fn head(out: &mut String, report: &Report, about: &About) {
    let verdict = verdict(report);
    let class = match verdict {
        "passed" => " passed",
        "BROKEN" => " broken",
        _ => "",
    };
    let _ = write!(
        out,
        "<header>\n<h1>Conformance <span class=\"verdict{class}\">{verdict}</span></h1>\n<p>{}.</p>\n<dl class=\"facts\">\n<dt>run at</dt><dd><time datetime=\"{at}\">{at}</time>, in {}</dd>\n",
        report.tally(),
        seconds(report.took),
        at = utc(about.at),
    );
    if let Some(command) = &about.command {
        let _ = writeln!(out, "<dt>again</dt><dd><code>{}</code></dd>", Safe(command));
    }
    for column in &report.columns {
        let _ = writeln!(
            out,
            "<dt>{}</dt><dd>{}: {}</dd>",
            Safe(&column.store),
            Safe(&deployment(column)),
            column.tally()
        );
    }
    out.push_str("</dl>\n</header>\n");
}

fn guarantees(out: &mut String, report: &Report) {
    out.push_str("<section id=\"guarantees\">\n<h2>Guarantees</h2>\n<div class=\"filters\" role=\"group\" aria-label=\"Show only what ended so\">");
    let all: Vec<&Entry> = report
        .columns
        .iter()
        .flat_map(|column| &column.entries)
        .collect();
    for mark in Mark::ALL {
        let count = mark.count(&all);
        if count > 0 {
            let (class, sign, word) = (mark.class(), mark.sign(), mark.word());
            let _ = write!(
                out,
                "<button type=\"button\" aria-pressed=\"false\" data-mark=\"{class}\"><span class=\"mark {class}\" aria-hidden=\"true\">{sign}</span>{word} <b>{count}</b></button>"
            );
        }
    }
    out.push_str("</div>\n<p class=\"hint soft\">Choose a cell to see the cases behind it: with the pointer, or with the arrow keys and Enter. Escape closes.</p>\n<div class=\"scroll\"><table class=\"grid\" role=\"grid\" aria-label=\"Guarantees by store\">\n<thead><tr role=\"row\"><th scope=\"col\" role=\"columnheader\">guarantee</th>");
    for column in &report.columns {
        let _ = write!(
            out,
            "<th scope=\"col\" role=\"columnheader\">{}<small>{}</small></th>",
            Safe(&column.store),
            Safe(&deployment(column))
        );
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for (row, part) in Part::all().enumerate() {
        let _ = write!(
            out,
            "<tr role=\"row\"><th scope=\"row\" role=\"rowheader\">{} <small>{}</small></th>",
            part.title(),
            part.rule()
        );
        for (index, column) in report.columns.iter().enumerate() {
            cell(out, &Place { row, column: index }, column, part);
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div>\n</section>\n");
}

/// What colours the cell: as [`Standing::words`](crate::Standing::words) has it, the weightiest.
fn colour(cell: &Cell<'_>) -> Option<Mark> {
    let any = |mark: &Mark| mark.count(&cell.entries) > 0;
    let by_weight = [
        Mark::Violated,
        Mark::Shown,
        Mark::NotBroughtAbout,
        Mark::NoControl,
        Mark::Survived,
        Mark::Held,
    ];
    by_weight.into_iter().find(any)
}

fn cell(out: &mut String, place: &Place, column: &Column, part: Part) {
    let cell = Cell::of(column, part);
    let mark = colour(&cell);
    let _ = write!(
        out,
        "<td role=\"gridcell\" class=\"{}\" data-marks=\"{}\"><a class=\"cell\" href=\"#{place}\"><span class=\"value\">{}</span> <span class=\"words\"><span class=\"mark {}\" aria-hidden=\"true\">{}</span>{}{}</span></a></td>",
        mark.map_or("untested", Mark::class),
        marks(cell.entries.iter().copied()),
        Safe(&cell.value(column, part)),
        mark.map_or("untested", Mark::class),
        mark.map_or("–", Mark::sign),
        cell.standing.words(),
        match cell.entries.len() {
            0 => String::new(),
            count => format!(" <small>{}</small>", cases(count)),
        },
    );
}

fn detail(out: &mut String, place: &Place, column: &Column, part: Part) {
    let cell = Cell::of(column, part);
    let broken = if cell.standing.violated.is_empty() {
        ""
    } else {
        " broken"
    };
    let rule = match part.rule() {
        "" => String::new(),
        rule => format!(" <small>{rule}</small>"),
    };
    let _ = write!(
        out,
        "<section class=\"detail{broken}\" id=\"{place}\" role=\"dialog\" aria-labelledby=\"{place}-title\">\n<a class=\"close\" href=\"#guarantees\" aria-label=\"Close\">×</a>\n<h2 id=\"{place}-title\" tabindex=\"-1\">{}{rule} on {}</h2>\n",
        part.title(),
        Safe(&column.store)
    );
    let _ = writeln!(
        out,
        "<p class=\"claim\"><b>{}</b></p>",
        Safe(&cell.value(column, part))
    );
    if let Some(row) = &cell.claim {
        let _ = writeln!(out, "<p>{}</p>", Safe(&row.reason));
    }
    let _ = writeln!(out, "<p class=\"soft\">{}</p>", counts(&cell.entries));
    // What went wrong stands first.
    let mut entries = cell.entries;
    entries.sort_by_key(|entry| {
        Mark::ALL
            .iter()
            .position(|mark| *mark == Mark::of(&entry.outcome))
    });
    for entry in entries {
        article(out, entry, &column.store, true);
    }
    out.push_str("</section>\n");
}

/// One case, with its evidence; with its picture only in one of the places where it stands.
fn article(out: &mut String, entry: &Entry, store: &str, picture: bool) {
    let Entry {
        case,
        outcome,
        took,
        ..
    } = entry;
    let mark = Mark::of(outcome);
    let (class, sign, word) = (mark.class(), mark.sign(), mark.word());
    let on = match picture {
        true => String::new(),
        false => format!(" <small>on {}</small>", Safe(store)),
    };
    let _ = write!(
        out,
        "<article class=\"{class}\" data-marks=\"{class}\">\n<h3><code>{}</code>{on}</h3>\n<p><span class=\"outcome {class}\"><span aria-hidden=\"true\">{sign}</span> {word}</span> <small>{:.2} s</small></p>\n<p>{}: {}.</p>\n",
        Safe(case.id),
        took.as_secs_f64(),
        Safe(case.rule),
        Safe(case.title),
    );
    match outcome {
        Outcome::Held { evidence } => paragraph(out, evidence),
        Outcome::Violated { counterexample, .. } => block(out, counterexample),
        Outcome::NotPromised { reason, seen, .. } => {
            paragraph(out, &format!("Denied: {reason}"));
            match seen {
                Seen::Counterexample(seen) => block(out, seen),
                Seen::Survived(seen) => paragraph(out, &format!("The attack was survived: {seen}")),
                Seen::NoControl(why) => paragraph(out, &format!("No control here: {why}")),
                Seen::NotBroughtAbout(why) => paragraph(out, &format!("Not brought about: {why}")),
            }
        }
        Outcome::NotRun { why, .. } => paragraph(out, why),
    }
    if let Some(history) = outcome.history().filter(|_| picture) {
        svg::timeline(out, history);
    }
    out.push_str("</article>\n");
}

fn paragraph(out: &mut String, text: &str) {
    match text.contains('\n') {
        true => block(out, text),
        false => {
            let _ = writeln!(out, "<p>{}</p>", Safe(text));
        }
    }
}

fn block(out: &mut String, text: &str) {
    let _ = writeln!(out, "<pre tabindex=\"0\">{}</pre>", Safe(text));
}

/// The place of the cell behind which a case is found.
fn place_of(column: usize, entry: &Entry) -> Place {
    let row = Part::all().position(|part| part.0 == entry.line());
    Place {
        row: row.unwrap_or_default(),
        column,
    }
}

fn violations(out: &mut String, report: &Report) {
    let mut first = true;
    for (index, column) in report.columns.iter().enumerate() {
        for entry in &column.entries {
            if !matches!(entry.outcome, Outcome::Violated { .. }) {
                continue;
            }
            if first {
                out.push_str("<section>\n<h2>Violations</h2>\n");
                first = false;
            }
            article(out, entry, &column.store, false);
            let what = match entry.outcome.history() {
                Some(_) => "See the history",
                None => "See the claim",
            };
            let place = place_of(index, entry);
            let _ = writeln!(
                out,
                "<p><a href=\"#{place}\" data-opens=\"{place}\">{what}</a></p>"
            );
        }
    }
    if !first {
        out.push_str("</section>\n");
    }
}

fn denials(out: &mut String, report: &Report) {
    let mut rows = String::new();
    for (index, column) in report.columns.iter().enumerate() {
        for (row, part) in Part::all().enumerate() {
            let cell = Cell::of(column, part);
            if !cell.standing.is_denied() {
                continue;
            }
            let by_weight = [
                Mark::Shown,
                Mark::NotBroughtAbout,
                Mark::NoControl,
                Mark::Survived,
            ];
            let mark = by_weight
                .into_iter()
                .find(|mark| mark.count(&cell.entries) > 0)
                .unwrap_or(Mark::NoControl);
            let place = Place { row, column: index };
            let _ = writeln!(
                rows,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td><span class=\"mark {}\" aria-hidden=\"true\">{}</span><a href=\"#{place}\" data-opens=\"{place}\">{}</a></td><td>{}</td></tr>",
                part.title(),
                Safe(&column.store),
                mark.class(),
                mark.sign(),
                cell.standing.denial(),
                Safe(&cell.standing.reasons.join("; ")),
            );
        }
    }
    if !rows.is_empty() {
        let _ = write!(
            out,
            "<section>\n<h2>What is denied, and what came of attacking it</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">guarantee</th><th scope=\"col\">store</th><th scope=\"col\">attacked</th><th scope=\"col\">why it is denied</th></tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n</section>\n"
        );
    }
}

fn left_out(out: &mut String, report: &Report) {
    let reasons = report.not_run();
    if reasons.is_empty() {
        return;
    }
    out.push_str("<section>\n<h2>What was not run</h2>\n<ul>\n");
    for (store, why, count) in reasons {
        let _ = writeln!(
            out,
            "<li>{}: {}: {}</li>",
            Safe(store),
            cases(count),
            Safe(why)
        );
    }
    out.push_str("</ul>\n</section>\n");
}

fn all_cases(out: &mut String, report: &Report) {
    let chosen: Vec<&Case> = CASES
        .iter()
        .filter(|case| {
            report
                .columns
                .iter()
                .any(|column| column.outcome(case.id).is_some())
        })
        .collect();
    let _ = write!(
        out,
        "<details class=\"all-cases\"><summary><h2>All cases</h2> <small>{}</small></summary>\n<div class=\"scroll\"><table class=\"cases\">\n<thead><tr><th scope=\"col\">case</th>",
        chosen.len()
    );
    for column in &report.columns {
        let _ = write!(out, "<th scope=\"col\">{}</th>", Safe(&column.store));
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for case in chosen {
        let of_it = |column: &&Column| {
            column
                .entries
                .iter()
                .find(|entry| entry.case.id == case.id)
                .cloned()
        };
        let found: Vec<Option<Entry>> =
            report.columns.iter().map(|column| of_it(&column)).collect();
        let _ = write!(
            out,
            "<tr data-marks=\"{}\"><th scope=\"row\" title=\"{}\"><code>{}</code></th>",
            marks(found.iter().flatten()),
            Safe(case.title),
            Safe(case.id)
        );
        for (index, entry) in found.iter().enumerate() {
            let Some(entry) = entry else {
                out.push_str("<td data-marks=\"\"></td>");
                continue;
            };
            let mark = Mark::of(&entry.outcome);
            let place = place_of(index, entry);
            let _ = write!(
                out,
                "<td data-marks=\"{class}\"><span class=\"mark {class}\" aria-hidden=\"true\">{}</span><a href=\"#{place}\" data-opens=\"{place}\">{}</a></td>",
                mark.sign(),
                mark.word(),
                class = mark.class(),
            );
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</tbody></table></div></details>\n");
}

#[cfg(all(test, feature = "memory"))]
#[allow(clippy::unwrap_used)] // A test fails by panicking.
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_STANDARD;
    use roxmltree::{Document, Node};
    use sha2::{Digest as _, Sha256};

    use super::super::sample;
    use super::*;

    /// The page as a tree: but for the doctype and the tags that have no end, it is XML.
    fn xml(page: &str) -> String {
        let (before, rest) = page.split_once("<style>").unwrap();
        let (_, rest) = rest.split_once("</style>").unwrap();
        let (body, after) = rest.rsplit_once("<script>").unwrap();
        let (_, after) = after.split_once("</script>").unwrap();
        let before = before.replace("<!doctype html>\n", "");
        let before: String = before
            .lines()
            .map(|line| match line.starts_with("<meta") {
                true => line.replace('>', "/>"),
                false => line.to_owned(),
            })
            .collect();
        format!("{before}{body}{after}")
    }

    fn with_class<'a>(document: &'a Document<'a>, class: &str) -> Vec<Node<'a, 'a>> {
        let has = |node: &Node<'_, '_>| {
            let classes = node.attribute("class").unwrap_or_default();
            classes.split(' ').any(|other| other == class)
        };
        document.descendants().filter(has).collect()
    }

    fn words(node: Node<'_, '_>) -> String {
        let texts = node
            .descendants()
            .filter_map(|node| node.is_text().then(|| node.text()).flatten());
        let text: Vec<&str> = texts.flat_map(str::split_whitespace).collect();
        text.join(" ")
    }

    #[test]
    fn the_policy_has_the_hashes_of_style_and_script() {
        let hash =
            |text: &str| format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(text)));
        let expected = format!(
            "default-src 'none'; style-src {}; script-src {}; base-uri 'none'; form-action 'none'",
            hash(STYLE),
            hash(SCRIPT)
        );
        assert_eq!(POLICY, expected, "the style or the script has changed");
        // The end of the element would be read as such even in a string.
        assert!(!STYLE.contains("</") && !SCRIPT.contains("</") && !SCRIPT.contains("<!--"));
    }

    #[test]
    fn every_cell_has_a_panel_with_its_cases() {
        let page = html(&sample::report(), &sample::about());
        let xml = xml(&page);
        let document = Document::parse(&xml).unwrap();
        let cells = with_class(&document, "cell");
        assert_eq!(cells.len(), 2 * Part::all().count());
        let panels = with_class(&document, "detail");
        assert_eq!(panels.len(), cells.len());
        for (cell, panel) in cells.iter().zip(&panels) {
            assert_eq!(
                cell.attribute("href").unwrap(),
                format!("#{}", panel.attribute("id").unwrap())
            );
        }
        assert_eq!(words(cells[0]), "always ✗ BROKEN 1 case");
        assert_eq!(words(cells[2]), "client crash ◆ denied, shown 1 case");
        for expected in [
            "two at once:",
            "L1: a lock keeps the others out, in one session and in several.",
        ] {
            assert!(words(panels[0]).contains(expected), "{}", words(panels[0]));
        }
        // Every case on every store is behind exactly one cell.
        let articles = panels.iter().flat_map(|panel| panel.descendants());
        assert_eq!(
            articles.filter(|node| node.has_tag_name("article")).count(),
            5
        );
        // What refers to something refers to something that is there, and nothing outside.
        let ids: Vec<&str> = document
            .descendants()
            .filter_map(|node| node.attribute("id"))
            .collect();
        for node in document.descendants() {
            for name in ["src", "href", "data-opens", "aria-labelledby"] {
                let Some(target) = node.attribute(name) else {
                    continue;
                };
                let target = target.trim_start_matches('#');
                assert!(ids.contains(&target), "{name}={target}");
            }
            assert_eq!(node.attribute("style"), None, "the policy forbids it");
        }
    }

    #[test]
    fn a_history_is_drawn() {
        let page = html(&sample::report(), &sample::about());
        let xml = xml(&page);
        let document = Document::parse(&xml).unwrap();
        let bars = with_class(&document, "bar");
        let classes: Vec<&str> = bars
            .iter()
            .filter_map(|bar| bar.attribute("class"))
            .collect();
        assert_eq!(classes, ["bar done", "bar unknown open offends"]);
        assert_eq!(bars[1].attribute("tabindex"), Some("0"));
        let told = bars[1].attribute("aria-label").unwrap();
        assert!(
            told.contains("client 1") && told.contains("unknown"),
            "{told}"
        );
        for bar in bars {
            let rect = bar
                .children()
                .find(|node| node.has_tag_name("rect"))
                .unwrap();
            for name in ["x", "y", "width", "height"] {
                let number: f64 = rect.attribute(name).unwrap().parse().unwrap();
                assert!((0.0..10_000.0).contains(&number), "{name}={number}");
            }
        }
    }

    #[test]
    fn hostile_text_stays_text() {
        let page = html(&sample::hostile(), &sample::about());
        let xml = xml(&page);
        let document = Document::parse(&xml).unwrap();
        for tag in ["script", "img", "style"] {
            assert!(
                !document.descendants().any(|node| node.has_tag_name(tag)),
                "{tag}"
            );
        }
        assert!(
            !document
                .descendants()
                .any(|node| node.attribute("onload").is_some())
        );
        assert!(
            document.descendants().any(|node| node.text().is_some_and(
                |text| text.contains("<script>alert(1)</script> \"q' onload='x' &amp; |")
            ))
        );
        for hidden in ['\0', '\u{1b}', '\u{202e}'] {
            assert!(!page.contains(hidden), "{hidden:?}");
        }
    }
}
