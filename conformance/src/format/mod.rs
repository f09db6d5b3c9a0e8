//! The report in the forms that others read.
//!
//! * [`markdown`](fn@markdown) for a README or a comment on a change; [`matrix`] is its short form.
//! * [`junit`](fn@junit) for the programs that show the tests of a build.
//! * [`html`](fn@html): one page, with the evidence behind every cell.
//! * [`json`](fn@json): a line for every case, for scripts.
//!
//! The plain text for terminals is the [`Report`]'s own `Display`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tenure_core::{Line, Row};

use crate::case::{NO_CONTROL, NOT_BROUGHT_ABOUT, Outcome, Seen};
use crate::report::{Column, Entry, Report, Standing};

mod html;
mod json;
mod junit;
mod markdown;
#[cfg(all(test, feature = "memory"))]
pub(crate) mod sample;
mod svg;

pub use html::html;
pub use json::json;
pub use junit::junit;
pub use markdown::{markdown, matrix};

/// What a report does not know of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct About {
    /// When the suite was run.
    pub at: SystemTime,
    /// The command by which it can be run again, without secrets.
    pub command: Option<String>,
}

impl About {
    /// A run that ended at this time.
    pub const fn new(at: SystemTime) -> Self {
        Self { at, command: None }
    }

    /// A run that ends now.
    pub fn now() -> Self {
        Self::new(SystemTime::now())
    }

    /// By this command. It is shown as it is: leave out what is secret.
    #[must_use]
    pub fn command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }
}

/// The version of the suite.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `2026-11-21T19:07:30Z`.
fn utc(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // A year begins in March here, so that the odd day is its last (H. Hinnant, "chrono-compatible
    // low-level date algorithms").
    let from_march = days + 719_468;
    let (era, day) = (from_march / 146_097, from_march % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// `61.2 s`.
fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

/// `1 case`, `2 cases`.
fn cases(count: usize) -> String {
    match count {
        1 => "1 case".to_owned(),
        _ => format!("{count} cases"),
    }
}

/// The verdict over all, in a few words.
fn verdict(report: &Report) -> &'static str {
    match (report.tally().violated, report.exit_ok()) {
        (1.., _) => "BROKEN",
        (0, true) => "passed",
        (0, false) if report.below_floor().is_empty() => "nothing proved",
        (0, false) => "too few cases ran",
    }
}

/// A line of the matrix: one of the guarantees, or what no store may deny.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Part(Option<Line>);

impl Part {
    fn all() -> impl Iterator<Item = Self> {
        Line::ALL
            .iter()
            .map(|line| Self(Some(*line)))
            .chain([Self(None)])
    }

    fn title(self) -> &'static str {
        self.0.map_or("everything else", Line::title)
    }

    fn rule(self) -> &'static str {
        self.0.map_or("", Line::rule)
    }
}

/// One cell of the matrix.
struct Cell<'a> {
    /// What is claimed, and why; nothing of what no store may deny, or where the store did not say.
    claim: Option<Row>,
    /// The cases behind it: each case is behind one cell.
    entries: Vec<&'a Entry>,
    standing: Standing<'a>,
}

impl<'a> Cell<'a> {
    fn of(column: &'a Column, part: Part) -> Self {
        let rows = column
            .guarantees
            .as_ref()
            .map(tenure_core::Guarantees::rows);
        let rows = rows.unwrap_or_default();
        let claim = rows.into_iter().find(|row| Some(row.line) == part.0);
        let entries: Vec<&Entry> = column
            .entries
            .iter()
            .filter(|entry| entry.line() == part.0)
            .collect();
        Self {
            claim,
            standing: Standing::of(entries.iter().copied()),
            entries,
        }
    }

    /// What is claimed, in a few words.
    fn value(&self, column: &Column, part: Part) -> String {
        match (&self.claim, &column.guarantees, part.0) {
            (Some(row), _, _) => row.value.clone(),
            (None, Err(_), Some(_)) => "?".to_owned(),
            _ => "no store may deny it".to_owned(),
        }
    }
}

/// What came of a case, as far as reports tell it apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Held,
    Violated,
    Shown,
    Survived,
    NoControl,
    NotBroughtAbout,
    NotRun,
}

impl Mark {
    const ALL: [Self; 7] = [
        Self::Violated,
        Self::Held,
        Self::Shown,
        Self::Survived,
        Self::NotBroughtAbout,
        Self::NoControl,
        Self::NotRun,
    ];

    const fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Held { .. } => Self::Held,
            Outcome::Violated { .. } => Self::Violated,
            Outcome::NotPromised { seen, .. } => match seen {
                Seen::Counterexample(_) => Self::Shown,
                Seen::Survived(_) => Self::Survived,
                Seen::NoControl(_) => Self::NoControl,
                Seen::NotBroughtAbout(_) => Self::NotBroughtAbout,
            },
            Outcome::NotRun { .. } => Self::NotRun,
        }
    }

    /// As [`Outcome::word`].
    const fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Violated => "violated",
            Self::Shown => "denied, shown",
            Self::Survived => "denied, survived",
            Self::NoControl => NO_CONTROL,
            Self::NotBroughtAbout => NOT_BROUGHT_ABOUT,
            Self::NotRun => "not run",
        }
    }

    fn count(self, entries: &[&Entry]) -> usize {
        let same = |entry: &&&Entry| Self::of(&entry.outcome) == self;
        entries.iter().filter(same).count()
    }
}

/// `3 held, 1 not run`: how the entries ended, without what there is none of.
fn counts(entries: &[&Entry]) -> String {
    let told = |mark: Mark| match mark.count(entries) {
        0 => None,
        count => Some(format!("{count} {}", mark.word())),
    };
    let told: Vec<String> = Mark::ALL.into_iter().filter_map(told).collect();
    match told[..] {
        [] => "no case".to_owned(),
        _ => told.join("; "),
    }
}

/// A column's server and version, or why it did not say.
fn deployment(column: &Column) -> String {
    match &column.guarantees {
        Ok(guarantees) => guarantees.deployment.clone(),
        Err(why) => format!("unknown: {why}"),
    }
}

/// A control character, or one that turns the direction of the text around it: shown by its number.
fn is_hidden(character: char) -> bool {
    let turns = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    // Forbidden in XML, and a parse error in HTML.
    let none = matches!(character, '\u{fffe}' | '\u{ffff}');
    turns || none || (character.is_control() && !matches!(character, '\n' | '\t'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (68_169_599, "1972-02-28T23:59:59Z"),
            (68_169_600, "1972-02-29T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_107_542_399, "2100-02-28T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(UNIX_EPOCH + Duration::from_secs(seconds)), date);
        }
        assert_eq!(
            utc(UNIX_EPOCH - Duration::from_secs(1)),
            "1970-01-01T00:00:00Z"
        );
    }
}
