//! Many stores, many cases, one table.

use std::collections::HashMap;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use comfy_table::{ContentArrangement, Table, presets};
use tenure_core::{Guarantees, Line};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use crate::case::{Case, NO_CONTROL, NOT_BROUGHT_ABOUT, Outcome, Seen};
use crate::cases::CASES;
use crate::harness::{Harness, Subject};
use crate::patient::{MorePatience, patience};

/// What a [`run`] tells while it runs.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Progress<'a> {
    /// So many cases will run, over all stores.
    Started {
        /// The number of cases times stores.
        total: usize,
    },
    /// A case has begun.
    Begun {
        /// The store's column.
        store: &'a str,
        /// The case.
        case: &'a Case,
    },
    /// A case has ended.
    Ended {
        /// The store's column.
        store: &'a str,
        /// The case.
        case: &'a Case,
        /// What came of it.
        outcome: &'a Outcome,
        /// How long it took.
        took: Duration,
    },
}

/// What came of one case on one store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The case.
    pub case: &'static Case,
    /// What came of it.
    pub outcome: Outcome,
    /// Why an attempt before the last one was not judged. The case was repeated alone, with doubled limits.
    pub flaky: Option<String>,
    /// How long it took.
    pub took: Duration,
}

impl Entry {
    /// The line of the matrix that this is evidence for: the one that denies it, if one does.
    pub const fn line(&self) -> Option<Line> {
        match &self.outcome {
            Outcome::NotPromised { line, .. } => Some(*line),
            _ => self.case.line,
        }
    }
}

/// One store's part of a report.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Column {
    /// The store's name.
    pub store: String,
    /// What it says that it guarantees, or why it did not say.
    pub guarantees: Result<Guarantees, String>,
    /// The cases, in the order of [`CASES`].
    pub entries: Vec<Entry>,
}

/// A report fails if fewer cases ran than so many of a hundred, of those for which the harness of a store has the
/// controls and the store the primitive.
pub const FLOOR_PERCENT: usize = 90;

/// How many cases ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Promised and kept.
    pub held: usize,
    /// Promised and broken.
    pub violated: usize,
    /// Not promised.
    pub not_promised: usize,
    /// Of these, shown by a counterexample.
    pub shown: usize,
    /// Not run.
    pub not_run: usize,
    /// Of these, excused: the harness has no control for the case, or the store not the primitive.
    pub excused: usize,
}

impl Tally {
    fn add(&mut self, outcome: &Outcome) {
        if matches!(
            outcome,
            Outcome::NotPromised {
                seen: Seen::Counterexample(_),
                ..
            }
        ) {
            self.shown += 1;
        }
        *match outcome {
            Outcome::Held { .. } => &mut self.held,
            Outcome::Violated { .. } => &mut self.violated,
            Outcome::NotPromised { .. } => &mut self.not_promised,
            Outcome::NotRun { excused, .. } => {
                self.excused += usize::from(*excused);
                &mut self.not_run
            }
        } += 1;
    }

    /// Whether fewer than [`FLOOR_PERCENT`] of the cases that were expected to run did.
    const fn is_below_floor(&self) -> bool {
        let ran = self.ran();
        ran * 100 < (ran + self.not_run - self.excused) * FLOOR_PERCENT
    }

    /// The cases that ran.
    pub const fn ran(&self) -> usize {
        self.held + self.violated + self.not_promised
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            held,
            violated,
            not_promised,
            shown,
            not_run,
            excused: _,
        } = self;
        write!(
            f,
            "{held} held, {violated} violated, {not_promised} not promised ({shown} shown), {not_run} not run"
        )
    }
}

impl Column {
    /// How the cases ended.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for entry in &self.entries {
            tally.add(&entry.outcome);
        }
        tally
    }

    /// Whether something was shown of this store: a promise that held, a denial with its counterexample, or
    /// else that there was nothing to hold it to.
    pub fn is_proved(&self) -> bool {
        let tally = self.tally();
        let claims_nothing = tally.not_run == 0 && tally.not_promised > 0;
        self.guarantees.is_ok() && (tally.held + tally.shown > 0 || claims_nothing)
    }

    /// How many cases ran, and were expected to, if these are [too few](FLOOR_PERCENT).
    pub fn below_floor(&self) -> Option<(usize, usize)> {
        let tally = self.tally();
        let expected = tally.ran() + tally.not_run - tally.excused;
        tally.is_below_floor().then_some((tally.ran(), expected))
    }

    /// Whether the store could not be set up for a single case: nothing is said of it then.
    pub fn never_stood(&self) -> bool {
        self.entries
            .iter()
            .all(|entry| is_not_set_up(&entry.outcome))
    }

    /// What came of the case `id`, if it was chosen.
    pub fn outcome(&self, id: &str) -> Option<&Outcome> {
        let entry = self.entries.iter().find(|entry| entry.case.id == id)?;
        Some(&entry.outcome)
    }

    /// What became of `line`: how its claim bore the attacks on it, and what was shown of what it
    /// denies.
    pub fn standing(&self, line: Line) -> Standing<'_> {
        Standing::of(
            self.entries
                .iter()
                .filter(|entry| entry.line() == Some(line)),
        )
    }
}

/// What became of one line of the matrix on one store.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Standing<'a> {
    /// The attacks that a claim withstood.
    pub held: Vec<&'static Case>,
    /// Those that broke it.
    pub violated: Vec<&'static Case>,
    /// Those for which a control was missing.
    pub not_run: Vec<&'static Case>,
    /// Why the store denies what it denies, in its own words.
    pub reasons: Vec<&'a str>,
    /// What is denied, and the counterexample that the case produced.
    pub shown: Vec<(&'static Case, &'a str)>,
    /// What is denied, and went well all the same.
    pub survived: Vec<(&'static Case, &'a str)>,
    /// What is denied, where the harness has no control over the event: which control.
    pub no_control: Vec<(&'static Case, &'a str)>,
    /// What is denied, where the event could not be brought about: why.
    pub not_brought_about: Vec<(&'static Case, &'a str)>,
}

impl<'a> Standing<'a> {
    pub(crate) fn of(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut standing = Self::default();
        for Entry { case, outcome, .. } in entries {
            match outcome {
                Outcome::NotPromised { reason, seen, .. } => {
                    if !standing.reasons.contains(&reason.as_str()) {
                        standing.reasons.push(reason);
                    }
                    match seen {
                        Seen::Counterexample(seen) => standing.shown.push((case, seen)),
                        Seen::Survived(seen) => standing.survived.push((case, seen)),
                        Seen::NoControl(why) => standing.no_control.push((case, why)),
                        Seen::NotBroughtAbout(why) => standing.not_brought_about.push((case, why)),
                    }
                }
                Outcome::Held { .. } => standing.held.push(case),
                Outcome::Violated { .. } => standing.violated.push(case),
                Outcome::NotRun { .. } => standing.not_run.push(case),
            }
        }
        standing
    }

    /// Whether the store denies something of this line.
    pub fn is_denied(&self) -> bool {
        let shown = self.shown.len() + self.survived.len();
        shown + self.no_control.len() + self.not_brought_about.len() > 0
    }

    /// In a few words: `held`, `BROKEN`, `denied, shown`, `held; denied, no control here` and so on.
    pub fn words(&self) -> String {
        if !self.violated.is_empty() {
            return "BROKEN".to_owned();
        }
        let held = (!self.held.is_empty()).then(|| "held".to_owned());
        let denied = self.is_denied().then(|| self.denial());
        let words: Vec<String> = held.into_iter().chain(denied).collect();
        match words[..] {
            [] => "not tested".to_owned(),
            _ => words.join("; "),
        }
    }

    pub(crate) fn denial(&self) -> String {
        let not_shown = (self.no_control.len(), self.not_brought_about.len());
        match (self.shown.len(), self.survived.len(), not_shown) {
            (1.., _, _) => "denied, shown".to_owned(),
            (0, _, (_, 1..)) => NOT_BROUGHT_ABOUT.to_owned(),
            (0, _, (1.., 0)) => NO_CONTROL.to_owned(),
            (0, 1, (0, 0)) => "denied but survived 1 attack".to_owned(),
            (0, survived, (0, 0)) => format!("denied but survived {survived} attacks"),
        }
    }

    /// What there is to say about a denial, with the evidence.
    fn details(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        for (case, seen) in &self.shown {
            words.push(format!("{}: {seen}", case.id));
        }
        match self.survived.len() {
            0 => {}
            1 => words.push(format!("1 attack was survived ({})", self.survived[0].0.id)),
            n => words.push(format!("{n} attacks were survived")),
        }
        for (what, why, count) in self.why_not_shown() {
            let cases = if count == 1 { "case" } else { "cases" };
            words.push(format!("{what} for {count} {cases}: {why}"));
        }
        words.join("; ")
    }

    /// The reasons for which denials could not be shown, and for how many cases each is the reason.
    pub(crate) fn why_not_shown(&self) -> Vec<(&'static str, &'a str, usize)> {
        let no_control = self.no_control.iter().map(|(_, why)| ("no control", *why));
        let failed = self.not_brought_about.iter();
        let failed = failed.map(|(_, why)| ("not brought about", *why));
        let mut reasons: Vec<(&str, &str, usize)> = Vec::new();
        for (what, why) in no_control.chain(failed) {
            match reasons
                .iter_mut()
                .find(|seen| (seen.0, seen.1) == (what, why))
            {
                Some((.., count)) => *count += 1,
                None => reasons.push((what, why, 1)),
            }
        }
        reasons
    }
}

/// What came of the suite, a column for every store.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The stores.
    pub columns: Vec<Column>,
    /// How long it all took.
    pub took: Duration,
}

impl Report {
    /// How the cases ended, over all stores.
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for entry in self.columns.iter().flat_map(|column| &column.entries) {
            tally.add(&entry.outcome);
        }
        tally
    }

    /// Whether every claimed guarantee that was attacked held, and something was proved: on every store
    /// that claims anything of what was chosen, by no fewer cases than the [floor](FLOOR_PERCENT).
    pub fn exit_ok(&self) -> bool {
        let sum = self.tally();
        let whole = |column: &Column| column.is_proved() && column.below_floor().is_none();
        sum.violated == 0 && sum.held + sum.shown > 0 && self.columns.iter().all(whole)
    }

    /// The stores on which too few cases ran, in words.
    pub fn below_floor(&self) -> Vec<String> {
        let columns = self.columns.iter();
        let words = |column: &Column| {
            let (ran, expected) = column.below_floor()?;
            Some(format!(
                "{}: only {ran} of {expected} cases ran for which there is a control; {FLOOR_PERCENT} % must",
                column.store
            ))
        };
        columns.filter_map(words).collect()
    }

    /// Whether a case showed that a promise is broken, rather than came to no end itself.
    pub fn shows_a_breach(&self) -> bool {
        let mut entries = self.columns.iter().flat_map(|column| &column.entries);
        entries.any(|entry| matches!(entry.outcome, Outcome::Violated { judged: true, .. }))
    }

    /// What was broken: store, case, counterexample.
    pub fn violations(&self) -> impl Iterator<Item = (&str, &'static Case, &str)> {
        self.columns.iter().flat_map(|column| {
            column
                .entries
                .iter()
                .filter_map(|entry| match &entry.outcome {
                    Outcome::Violated { counterexample, .. } => {
                        Some((column.store.as_str(), entry.case, counterexample.as_str()))
                    }
                    _ => None,
                })
        })
    }

    /// What the stores deny: store, line of the matrix, what became of it.
    pub fn denials(&self) -> impl Iterator<Item = (&str, Line, Standing<'_>)> {
        self.columns.iter().flat_map(|column| {
            let standings = Line::ALL.iter().map(|line| (*line, column.standing(*line)));
            let denied = standings.filter(|(_, standing)| standing.is_denied());
            denied.map(|(line, standing)| (column.store.as_str(), line, standing))
        })
    }

    /// Why cases were not run: store, reason, and for how many cases it is the reason.
    pub(crate) fn not_run(&self) -> Vec<(&str, &str, usize)> {
        let mut reasons: Vec<(&str, &str, usize)> = Vec::new();
        for column in &self.columns {
            for entry in &column.entries {
                let Outcome::NotRun { why, .. } = &entry.outcome else {
                    continue;
                };
                let store = column.store.as_str();
                match reasons.iter_mut().find(|r| (r.0, r.1) == (store, why)) {
                    Some((_, _, count)) => *count += 1,
                    None => reasons.push((store, why, 1)),
                }
            }
        }
        reasons
    }

    /// The summary: a line for each store, and one for all.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for column in &self.columns {
            let count = column.entries.len();
            let cases = if count == 1 { "case" } else { "cases" };
            text += &format!("{}: {count} {cases}, {}\n", column.store, column.tally());
        }
        for words in self.below_floor() {
            text += &format!("TOO FEW CASES RAN on {words}\n");
        }
        text += &format!("in all: {}", self.tally());
        text
    }
}

/// Puts `subjects` to the cases that `filter` lets through, those of one store side by side, and
/// tells `progress` as it goes.
///
/// A case that panics counts as violated. One that ends unjudged, because it missed a limit, because of an error that it
/// did not expect, or because a control failed, is repeated alone, at most twice, with doubled limits.
///
/// # Cancel safety
///
/// Dropped, it stops the cases that run, and does not clean up after them: see [`run_until`].
///
/// # Panics
///
/// Outside a tokio runtime.
pub async fn run(
    subjects: Vec<Arc<dyn Subject>>,
    filter: impl Fn(&Case) -> bool,
    progress: impl FnMut(Progress<'_>),
) -> Report {
    run_until(subjects, filter, progress, std::future::pending()).await
}

/// The same, until `until` is over: then the cases that run are stopped and what they left is removed, and the report
/// has those that have ended.
///
/// # Cancel safety
///
/// As of [`run`].
///
/// # Panics
///
/// As [`run`].
pub async fn run_until(
    subjects: Vec<Arc<dyn Subject>>,
    filter: impl Fn(&Case) -> bool,
    mut progress: impl FnMut(Progress<'_>),
    until: impl Future<Output = ()>,
) -> Report {
    let started = Instant::now();
    let chosen: Vec<(usize, &'static Case)> = CASES
        .iter()
        .enumerate()
        .filter(|(_, case)| filter(case))
        .collect();
    // A set-up that takes none of them would be an empty column.
    let takes = |subject: &Arc<dyn Subject>| chosen.iter().any(|(_, case)| subject.takes(case));
    let subjects: Vec<Arc<dyn Subject>> = subjects.into_iter().filter(takes).collect();
    let total = subjects
        .iter()
        .map(|subject| {
            chosen
                .iter()
                .filter(|(_, case)| subject.takes(case))
                .count()
        })
        .sum();
    progress(Progress::Started { total });

    let (tell, mut told) = mpsc::unbounded_channel();
    let mut tasks = tokio::task::JoinSet::new();
    let mut columns = Vec::with_capacity(subjects.len());
    // So many stores side by side would make the machine itself the fault.
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let shares = u32::try_from(12 * cores).unwrap_or(u32::MAX).max(16);
    let machine = Arc::new(Semaphore::new(shares as usize));
    let stop = CancellationToken::new();
    for (column, subject) in subjects.iter().enumerate() {
        // Two columns of one name could not be told apart.
        let same = subjects[..column]
            .iter()
            .filter(|other| other.name() == subject.name());
        let store = match same.count() {
            0 => subject.name().to_owned(),
            before => format!("{} ({})", subject.name(), before + 1),
        };
        columns.push(Column {
            store,
            guarantees: Err("no case ran".to_owned()),
            entries: Vec::with_capacity(chosen.len()),
        });
        // Cases that wait for time to pass cost nothing while they wait; but too many at once
        // would make the machine itself the fault.
        let places = Arc::new(Semaphore::new(subject.parallel().max(1)));
        for &(order, case) in chosen.iter().filter(|(_, case)| subject.takes(case)) {
            let (subject, places, tell) = (Arc::clone(subject), Arc::clone(&places), tell.clone());
            let (machine, stop) = (Arc::clone(&machine), stop.clone());
            tasks.spawn(async move {
                // Never closed, so there is always a permit.
                let place = places.acquire_owned().await;
                let share = Arc::clone(&machine).acquire_owned().await;
                if stop.is_cancelled() {
                    return;
                }
                let _ = tell.send(Told::Begun { column, case });
                let began = Instant::now();
                let mut came = one(Arc::clone(&subject), case, stop.clone()).await;
                drop((place, share));
                let mut flaky = None;
                for _ in 1..ATTEMPTS {
                    let unjudged = came.as_ref().filter(|(_, outcome)| outcome.is_unjudged());
                    // A store that cannot be set up will not stand the next time.
                    let stood = unjudged.filter(|(_, outcome)| !is_not_set_up(outcome));
                    let Some((_, outcome)) = stood else { break };
                    flaky = Some(outcome.details());
                    let _alone = machine.acquire_many(shares).await;
                    let _doubled = MorePatience::new();
                    came = one(Arc::clone(&subject), case, stop.clone()).await;
                }
                let Some((guarantees, outcome)) = came else {
                    return;
                };
                let entry = Entry {
                    case,
                    outcome,
                    flaky,
                    took: began.elapsed(),
                };
                let _ = tell.send(Told::Ended {
                    column,
                    order,
                    entry: Box::new(entry),
                    guarantees: guarantees.map(Box::new),
                });
            });
        }
    }
    drop(tell);

    let mut until = pin!(until);
    let mut last = pin!(tokio::time::sleep(Duration::MAX));
    let mut order = HashMap::new();
    loop {
        let told = tokio::select! {
            told = told.recv() => told,
            () = &mut until, if !stop.is_cancelled() => {
                stop.cancel();
                last.as_mut().reset(tokio::time::Instant::now() + CLEARING * 2);
                continue;
            }
            // One that blocks its thread.
            () = &mut last, if stop.is_cancelled() => break,
        };
        let Some(told) = told else { break };
        match told {
            Told::Begun { column, case } => progress(Progress::Begun {
                store: subjects[column].name(),
                case,
            }),
            Told::Ended {
                column,
                order: place,
                entry,
                guarantees,
            } => {
                progress(Progress::Ended {
                    store: subjects[column].name(),
                    case: entry.case,
                    outcome: &entry.outcome,
                    took: entry.took,
                });
                order.insert(entry.case.id, place);
                let column = &mut columns[column];
                match guarantees {
                    Some(guarantees) => column.guarantees = Ok(*guarantees),
                    None if column.guarantees.is_err() => {
                        column.guarantees = Err(entry.outcome.details());
                    }
                    None => {}
                }
                column.entries.push(*entry);
            }
        }
    }
    for column in &mut columns {
        column.entries.sort_by_key(|entry| order.get(entry.case.id));
    }
    Report {
        columns,
        took: started.elapsed(),
    }
}

enum Told {
    Begun {
        column: usize,
        case: &'static Case,
    },
    Ended {
        column: usize,
        order: usize,
        entry: Box<Entry>,
        guarantees: Option<Box<Guarantees>>,
    },
}

/// How long one case may take, whatever goes wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long its stage may take: servers are started, and some wait until there is room for theirs.
const STAGING: Duration = Duration::from_secs(300);

/// Why a case did not run that had no stage.
const NOT_SET_UP: &str = "the store could not be set up";

/// How long it may take to remove what a case left that was cut short.
const CLEARING: Duration = Duration::from_secs(10);

/// How long what was asked on behalf of those who are gone may still be on its way.
const LATE: Duration = Duration::from_millis(300);

/// Removes what somebody left who was cut short, and what comes late.
pub(crate) async fn clear(harness: &dyn Harness) {
    let twice = async {
        let _ = harness.clean_up().await;
        tokio::time::sleep(LATE).await;
        harness.clean_up().await
    };
    let _in_time = tokio::time::timeout(CLEARING, twice).await;
}

/// How often a case runs, each time on a fresh stage, if it ends [unjudged](Outcome::is_unjudged). A counterexample is
/// never repeated.
const ATTEMPTS: u32 = 3;

fn is_not_set_up(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NotRun { why, .. } if why.starts_with(NOT_SET_UP))
}

/// Nothing if it was stopped.
async fn one(
    subject: Arc<dyn Subject>,
    case: &'static Case,
    stop: CancellationToken,
) -> Option<(Option<Guarantees>, Outcome)> {
    let running = async move {
        let staged = tokio::select! {
            staged = tokio::time::timeout(STAGING, subject.stage(case)) => staged,
            () = stop.cancelled() => return None,
        };
        let harness = match staged {
            Ok(Ok(harness)) => harness,
            Ok(Err(error)) => {
                let why = format!("{NOT_SET_UP}: {error}", error = error.chain());
                return Some((None, Outcome::not_run(why)));
            }
            Err(_) => {
                let why = format!("{NOT_SET_UP} within {STAGING:?}");
                return Some((None, Outcome::not_run(why)));
            }
        };
        let attack = async {
            let guarantees = crate::cases::guarantees(&*harness).await.ok();
            (guarantees, case.run(&*harness).await)
        };
        let cut_short = tokio::select! {
            done = attack => return Some(done),
            () = tokio::time::sleep(PATIENCE * patience()) => {
                let late = format!("the case did not end within {PATIENCE:?}");
                Some((None, Outcome::cut_short(late)))
            }
            () = stop.cancelled() => None,
        };
        clear(&*harness).await;
        cut_short
    };
    // In a task of its own, so that a panic ends no more than this case. Dropped with the set, it
    // is stopped with it.
    let mut task = tokio::task::JoinSet::new();
    task.spawn(running);
    // The limit inside needs a case that yields.
    let limit = STAGING + PATIENCE * patience() + CLEARING;
    match tokio::time::timeout(limit, task.join_next()).await {
        Ok(Some(Ok(done))) => done,
        Ok(Some(Err(broken))) => {
            let broke = Outcome::violated(format!("the case broke: {broken}"));
            Some((None, broke))
        }
        Ok(None) => Some((None, Outcome::not_run("the case vanished"))),
        Err(_) => {
            let late = format!("the case did not end within {PATIENCE:?}");
            Some((None, Outcome::cut_short(late)))
        }
    }
}

impl fmt::Display for Report {
    /// The matrix, the cases, what was broken, the summary; as plain text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let titles = |first: &str| {
            let stores = self.columns.iter().map(|column| column.store.clone());
            std::iter::once(first.to_owned())
                .chain(stores)
                .collect::<Vec<_>>()
        };
        let table = || {
            let mut table = Table::new();
            table
                .load_style(presets::UTF8_FULL_CONDENSED)
                .set_content_arrangement(ContentArrangement::Dynamic);
            table
        };

        let mut matrix = table();
        matrix.set_header(titles("guarantee"));
        for &line in Line::ALL {
            let mut row = vec![line.title().to_owned()];
            for column in &self.columns {
                row.push(match &column.guarantees {
                    Ok(guarantees) => {
                        let rows = guarantees.rows();
                        let value = rows.into_iter().find(|row| row.line == line);
                        let value = value.map(|row| row.value).unwrap_or_default();
                        format!("{value} ({})", column.standing(line).words())
                    }
                    Err(_) => "?".to_owned(),
                });
            }
            matrix.add_row(row);
        }
        writeln!(f, "{matrix}\n")?;

        let mut cases = table();
        cases.set_header(titles("case"));
        // No column need have all of them.
        let anywhere = |case: &&Case| {
            let mut columns = self.columns.iter();
            columns.any(|column| column.outcome(case.id).is_some())
        };
        for case in CASES.iter().filter(anywhere) {
            let mut row = vec![case.id.to_owned()];
            for column in &self.columns {
                let outcome = column.outcome(case.id);
                row.push(outcome.map(Outcome::word).unwrap_or_default().to_owned());
            }
            cases.add_row(row);
        }
        writeln!(f, "{cases}\n")?;

        for (store, line, standing) in self.denials() {
            let (title, denial) = (line.title(), standing.denial());
            writeln!(f, "{title} on {store}: {denial}")?;
            writeln!(f, "    {}", standing.details())?;
        }
        for (store, why, count) in self.not_run() {
            let cases = if count == 1 { "case" } else { "cases" };
            writeln!(f, "not run on {store}: {count} {cases}: {why}")?;
        }
        for column in &self.columns {
            for Entry { case, flaky, .. } in &column.entries {
                if let Some(why) = flaky {
                    writeln!(f, "FLAKY on {}: {}: {why}", column.store, case.id)?;
                }
            }
        }
        for (store, case, counterexample) in self.violations() {
            writeln!(f, "VIOLATED on {store}: {} ({})", case.id, case.title)?;
            writeln!(f, "    {counterexample}")?;
        }
        f.write_str(&self.summary())
    }
}

#[cfg(all(test, feature = "memory"))]
mod tests {
    #[test]
    fn what_was_not_run_is_counted_as_in_the_sum() {
        let report = crate::format::sample::report();
        let text = report.to_string();
        assert!(
            text.contains("no control for 1 case: there is no way to restart the store"),
            "{text}"
        );
        let sum = report.tally().not_run;
        assert!(text.ends_with(&format!(" {sum} not run")), "{text}");
    }

    #[test]
    fn a_case_that_was_repeated_is_shown_as_flaky() {
        let mut report = crate::format::sample::report();
        report.columns[0].entries[0].flaky = Some("no failover within 20s".to_owned());
        let text = report.to_string();
        let id = report.columns[0].entries[0].case.id;
        let line = format!(
            "FLAKY on {}: {id}: no failover within 20s",
            report.columns[0].store
        );
        assert!(text.contains(&line), "{text}");
    }
}
