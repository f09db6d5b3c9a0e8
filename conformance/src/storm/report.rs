//! What came of many runs, in a table.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use comfy_table::{ContentArrangement, Table, presets};

use super::{Counts, Kind, Run, Verdict};

/// The runs of one store.
#[derive(Debug)]
#[non_exhaustive]
pub struct Row {
    /// The store's name.
    pub store: String,
    /// Its runs, without their histories, and the files in which these are.
    pub runs: Vec<(Run, Vec<PathBuf>)>,
}

/// Every run of every store.
#[derive(Debug)]
#[non_exhaustive]
pub struct Summary {
    /// One for each store.
    pub rows: Vec<Row>,
}

impl Run {
    /// The run as a JSON object on one line, without its end: of `store`, with its history in
    /// `files`, and repeated by `command`.
    pub fn json(&self, store: &str, files: &[PathBuf], command: &str) -> String {
        let (outcome, details) = match &self.verdict {
            Verdict::Passed => ("passed", ""),
            Verdict::Violated { what, .. } => ("violated", what.as_str()),
            Verdict::Invalid { why } => ("invalid", why.as_str()),
        };
        let faults: BTreeMap<&str, usize> = self
            .faults
            .iter()
            .map(|(kind, count)| (kind.word(), *count))
            .collect();
        let line = serde_json::json!({
            "store": store,
            "seed": self.seed,
            "outcome": outcome,
            "details": details,
            "operations": self.counts.operations(),
            "locks": self.counts.locks,
            "transactions": self.counts.transactions,
            "queue": self.counts.queue,
            "elections": self.counts.elections,
            "rw_locks": self.counts.rw_locks,
            "shared": self.counts.shared,
            "before_faults": self.calm,
            "faults": faults,
            "unknown": self.counts.unknown,
            "refused": self.counts.refused,
            "overlaps": self.counts.overlaps,
            "seconds": self.took.as_secs_f64(),
            "histories": files,
            "command": command,
        });
        line.to_string()
    }
}

impl Row {
    pub(super) fn new(store: &str) -> Self {
        Self {
            store: store.to_owned(),
            runs: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, run: Run, files: Vec<PathBuf>) {
        self.runs.push((run, files));
    }

    fn with(&self, wanted: fn(&Verdict) -> bool) -> usize {
        let runs = self.runs.iter();
        runs.filter(|(run, _)| wanted(&run.verdict)).count()
    }

    /// How many runs passed.
    pub fn passed(&self) -> usize {
        self.with(|verdict| matches!(verdict, Verdict::Passed))
    }

    /// How many runs showed a violation.
    pub fn violated(&self) -> usize {
        self.with(|verdict| matches!(verdict, Verdict::Violated { .. }))
    }

    /// How many runs prove nothing.
    pub fn invalid(&self) -> usize {
        self.with(|verdict| matches!(verdict, Verdict::Invalid { .. }))
    }

    /// What was done in all runs together.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for (run, _) in &self.runs {
            sum.locks += run.counts.locks;
            sum.transactions += run.counts.transactions;
            sum.queue += run.counts.queue;
            sum.elections += run.counts.elections;
            sum.rw_locks += run.counts.rw_locks;
            sum.shared += run.counts.shared;
            sum.unknown += run.counts.unknown;
            sum.refused += run.counts.refused;
            sum.overlaps += run.counts.overlaps;
        }
        sum
    }

    /// The faults of all runs, by kind.
    pub fn faults(&self) -> BTreeMap<Kind, usize> {
        let mut sum = BTreeMap::new();
        for (kind, count) in self.runs.iter().flat_map(|(run, _)| &run.faults) {
            *sum.entry(*kind).or_default() += count;
        }
        sum
    }

    /// The run that took longest.
    pub fn slowest(&self) -> Option<&Run> {
        let runs = self.runs.iter().map(|(run, _)| run);
        runs.max_by_key(|run| run.took)
    }
}

impl Summary {
    /// Whether no run showed a violation, and of each store's runs no more than one in ten proves nothing.
    pub fn passed(&self) -> bool {
        let passed = |row: &Row| {
            row.violated() == 0 && row.passed() > 0 && row.invalid() * 10 <= row.runs.len()
        };
        self.rows.iter().all(passed) && !self.rows.is_empty()
    }

    /// Every run that did not pass.
    pub fn failures(&self) -> impl Iterator<Item = (&str, &Run, &[PathBuf])> {
        self.rows.iter().flat_map(|row| {
            let runs = row.runs.iter();
            runs.filter(|(run, _)| !matches!(run.verdict, Verdict::Passed))
                .map(|(run, files)| (row.store.as_str(), run, files.as_slice()))
        })
    }
}

fn table() -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::UTF8_FULL_CONDENSED)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table
}

/// Two tables: what came of the runs, and which faults there were.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut runs = table();
        runs.set_header([
            "store",
            "seeds",
            "passed",
            "violated",
            "invalid",
            "operations",
            "faults",
            "unknown",
            "refused",
            "shared",
            "overlaps",
            "slowest",
        ]);
        for row in &self.rows {
            let counts = row.counts();
            let slowest = row.slowest().map_or_else(String::new, |run| {
                format!("{:.0} s (seed {})", run.took.as_secs_f64(), run.seed)
            });
            runs.add_row([
                row.store.clone(),
                row.runs.len().to_string(),
                row.passed().to_string(),
                row.violated().to_string(),
                row.invalid().to_string(),
                counts.operations().to_string(),
                row.faults().values().sum::<usize>().to_string(),
                counts.unknown.to_string(),
                counts.refused.to_string(),
                counts.shared.to_string(),
                counts.overlaps.to_string(),
                slowest,
            ]);
        }
        writeln!(f, "{runs}")?;

        let mut faults = table();
        let stores = self.rows.iter().map(|row| row.store.clone());
        faults.set_header(std::iter::once("fault".to_owned()).chain(stores));
        let of: Vec<_> = self.rows.iter().map(Row::faults).collect();
        for kind in Kind::ALL {
            let counts: Vec<usize> = of
                .iter()
                .map(|faults| faults.get(kind).copied().unwrap_or_default())
                .collect();
            if counts.iter().any(|count| *count > 0) {
                let counts = counts.iter().map(|count| match count {
                    0 => "-".to_owned(),
                    count => count.to_string(),
                });
                faults.add_row(std::iter::once(kind.word().to_owned()).chain(counts));
            }
        }
        write!(f, "{faults}")
    }
}
