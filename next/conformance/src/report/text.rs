//! The report as text for a terminal.

use std::fmt;

use super::Report;
use crate::outcome::Outcome;

impl fmt::Display for Report {
    /// Shows the claims as a table, every case that did not hold, the repeated trials, and the summary.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let claims = self.claims();
        let width = |cells: &mut dyn Iterator<Item = usize>| cells.max().unwrap_or(0);
        let first = width(&mut claims.iter().map(|claim| claim.line.title().chars().count()));
        let second = width(&mut claims.iter().map(|claim| claim.value.chars().count()));
        for claim in &claims {
            let (title, value, shown) = (claim.line.title(), &claim.value, &claim.shown);
            writeln!(f, "{title:first$}  {value:second$}  {shown}")?;
        }
        for result in &self.results {
            if !matches!(result.outcome, Outcome::Held { .. }) {
                writeln!(f, "{}: {}", result.case.id, result.outcome)?;
            }
        }
        for (trial, why) in self.flaky() {
            writeln!(f, "FLAKY {trial}: {why}")?;
        }
        let failures = self.failures();
        let verdict = if failures.is_empty() { "passed" } else { "failed" };
        write!(f, "{}; {verdict}", self.summary())
    }
}
