//! Many runs: every seed on every store.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use tenure_core::{Error, ErrorKind};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use super::report::{Row, Summary};
use super::{Plan, Run, Verdict, run, stage};
use crate::harness::Subject;
use crate::report::clear;

/// Which runs, and how.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sweep {
    /// The seeds, each of them on every store.
    pub seeds: Vec<u64>,
    /// How each run goes.
    pub plan: Plan,
    /// How many runs at a time; of one store never more than [`Subject::parallel`].
    pub at_once: usize,
    /// Where the histories of runs go that did not pass.
    pub histories: PathBuf,
    /// Whether those of all others go there, too.
    pub keep_all: bool,
}

impl Sweep {
    /// These seeds, as `plan` has it; as many at a time as the machine has processors for.
    pub fn new(seeds: impl IntoIterator<Item = u64>, plan: Plan) -> Self {
        // The clients of one run keep two of them busy, with the store.
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            seeds: seeds.into_iter().collect(),
            plan,
            at_once: (processors / 2).max(1),
            histories: PathBuf::from("tenure-histories"),
            keep_all: false,
        }
    }

    /// Keeps the histories of all runs in this folder.
    #[must_use]
    pub fn keep_all(mut self, folder: impl Into<PathBuf>) -> Self {
        self.histories = folder.into();
        self.keep_all = true;
        self
    }
}

/// What a [`sweep`] tells while it runs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// A run has begun.
    Begun {
        /// The store.
        store: &'a str,
        /// The seed.
        seed: u64,
    },
    /// A run has ended.
    Ended {
        /// The store.
        store: &'a str,
        /// The run, without its histories.
        run: &'a Run,
        /// The files with its histories, if they were written.
        files: &'a [PathBuf],
    },
}

/// Runs every seed on every store, and sums up. Once `until` is over it ends, with the runs that
/// have ended; those under way are stopped, what they left is removed, and they count for nothing.
///
/// # Cancel safety
///
/// Dropped, it stops the runs, and does not clean up after them.
pub async fn sweep(
    subjects: &[Arc<dyn Subject>],
    sweep: &Sweep,
    mut tell: impl FnMut(Progress<'_>),
    until: impl Future<Output = ()>,
) -> Summary {
    let mut until = pin!(until);
    let mut rows: Vec<Row> = subjects
        .iter()
        .map(|subject| Row::new(subject.name()))
        .collect();
    let places = || 0..subjects.len();
    // All stores of a seed before the next: whoever breaks it off has something of each.
    let mut waiting: VecDeque<(u64, usize)> = sweep
        .seeds
        .iter()
        .flat_map(|seed| places().map(move |place| (*seed, place)))
        .collect();
    let mut running = FuturesUnordered::new();
    let stop = CancellationToken::new();
    let mut of_each = vec![0; subjects.len()];
    loop {
        while running.len() < sweep.at_once.max(1)
            && let Some(next) = waiting
                .iter()
                .position(|(_, place)| of_each[*place] < subjects[*place].parallel().max(1))
            && let Some((seed, place)) = waiting.remove(next)
        {
            let (store, subject) = (subjects[place].name(), Arc::clone(&subjects[place]));
            tell(Progress::Begun { store, seed });
            of_each[place] += 1;
            let (plan, stop) = (sweep.plan.clone(), stop.clone());
            running.push(async move { (place, one(&*subject, seed, &plan, &stop).await) });
        }
        let ended = tokio::select! {
            biased;
            () = &mut until, if !stop.is_cancelled() => {
                stop.cancel();
                waiting.clear();
                continue;
            }
            ended = running.next() => ended,
        };
        let Some((place, run)) = ended else {
            break;
        };
        of_each[place] -= 1;
        let Some(mut run) = run else { continue };
        let store = subjects[place].name();
        let histories = std::mem::take(&mut run.histories);
        let mut files = Vec::new();
        if sweep.keep_all || !matches!(run.verdict, Verdict::Passed) {
            let name = unused(&sweep.histories, &file_name(store, run.seed));
            match histories.write(&sweep.histories, &name) {
                Ok(written) => files = written,
                Err(error) => unwritten(&mut run, &sweep.histories, &error),
            }
        }
        tell(Progress::Ended {
            store,
            run: &run,
            files: &files,
        });
        rows[place].add(run, files);
    }
    Summary { rows }
}

/// Nothing if it was stopped.
async fn one(
    subject: &dyn Subject,
    seed: u64,
    plan: &Plan,
    stop: &CancellationToken,
) -> Option<Run> {
    let staged = tokio::select! {
        staged = tokio::time::timeout(plan.hang * 2, stage(subject)) => staged,
        () = stop.cancelled() => return None,
    };
    let harness = match staged {
        Ok(Ok(harness)) => harness,
        Ok(Err(error)) => return Some(Run::not_staged(seed, &error)),
        Err(_) => {
            let late = Error::new(ErrorKind::TimedOut, "it is not there in time");
            return Some(Run::not_staged(seed, &late));
        }
    };
    tokio::select! {
        run = run(&*harness, seed, plan) => Some(run),
        () = stop.cancelled() => {
            clear(&*harness).await;
            None
        }
    }
}

/// A name that no earlier run's evidence has.
fn unused(folder: &Path, name: &str) -> String {
    let taken = |name: &str| folder.join(format!("{name}-lists.jsonl")).exists();
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    names.find(|name| !taken(name)).unwrap_or_default()
}

/// A run whose evidence could not be kept has none.
fn unwritten(run: &mut Run, folder: &Path, error: &std::io::Error) {
    let folder = folder.display();
    match &mut run.verdict {
        Verdict::Violated { what, .. } => {
            what.push_str(&format!(
                "\n(its history could not be written to {folder}: {error})"
            ));
        }
        verdict => {
            let why = format!("its history could not be written to {folder}: {error}");
            *verdict = Verdict::Invalid { why };
        }
    }
}

/// A store's name has spaces, commas and addresses in it.
fn file_name(store: &str, seed: u64) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let store: String = store.chars().map(plain).collect();
    format!("{store}-seed-{seed}")
}
