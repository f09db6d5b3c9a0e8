//! What the checkers say of a run.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Counts;
use super::client::{Doubled, Excuse, Shared, Trouble};
use super::gates::{self, GateOperation};
use super::prompt::{self, Step};
use crate::case::Outcome;
use crate::checkers::election::{self, ElectionCall, ElectionOperation};
use crate::checkers::list_append::{self, Level, Transaction};
use crate::checkers::queue::{self, QueueAnswer, QueueCall, QueueOperation};
use crate::checkers::rw_lock::{self, RwEvent};
use crate::checkers::total_queue::{Account, Leeway};
use crate::checkers::{
    Event, Fate, Violation, What, exclusion, fencing, jsonl, linearizable, total_queue,
};
use crate::timeline::Timeline;

/// What happened so shortly before a crash may not have been on disk, or on a standby. It may have happened as
/// late as its answer came: a dequeue waits.
const SPARE: Duration = Duration::from_secs(1);

/// All that the clients of a run saw.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Histories {
    /// Of each lock.
    pub locks: Vec<Vec<Event>>,
    /// Of the election: who led.
    pub seat: Vec<Event>,
    /// Of the election: what was proclaimed and seen.
    pub words: Vec<ElectionOperation>,
    /// Of the read-write lock.
    pub shelf: Vec<RwEvent>,
    /// Of the barriers.
    pub gates: Vec<GateOperation>,
    /// Of the lists.
    pub lists: Vec<Transaction>,
    /// Of the queue.
    pub items: Vec<QueueOperation>,
    /// What came before the events in which the store may have forgotten it. `lists` and `items` are from
    /// after the last.
    pub earlier: Vec<Earlier>,
    /// What else the verdict rests on.
    pub evidence: Evidence,
}

/// What a verdict rests on besides the histories: with both it can be given again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Evidence {
    /// The seed of the run.
    pub seed: u64,
    /// The TTL of all sessions.
    #[serde(with = "jsonl::nanos")]
    pub ttl: Duration,
    /// How much later than its TTL a dead session may be gone.
    #[serde(with = "jsonl::nanos")]
    pub late: Duration,
    /// Whether the store says that its queue has an order.
    pub ordered: bool,
    /// Whether the store says that observers of an election never go back.
    pub converges: bool,
    /// When a client may have believed for longer than it held.
    pub(super) excused: Vec<Excuse>,
    /// When the store was killed and did not keep what was held.
    pub killed: Vec<Span>,
    /// When something went wrong, until all was as before.
    pub(super) troubles: Vec<Trouble>,
    /// Whether requests took no time, so that promptness and the order of arrival are judged.
    #[serde(default)]
    pub one_thread: bool,
    /// Deliveries that counted as valid beside a newer one.
    pub(super) doubled: Vec<Doubled>,
    /// Updates that the registers behind the locks lost, in words.
    pub registers: Vec<String>,
    /// What a client saw at once that must not be, in words.
    pub broken: Option<String>,
    /// What cut the run short: a hang, for instance.
    pub stopped: Option<Stopped>,
    /// Why the run proves nothing although nothing was broken.
    pub insufficient: Option<String>,
}

/// What cut a run short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Stopped {
    /// Whether that breaks a promise by itself.
    pub violated: bool,
    /// What it was.
    pub why: String,
}

/// A time, by the clock of the histories.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Span {
    /// Its beginning.
    #[serde(with = "jsonl::nanos")]
    pub from: Duration,
    /// Its end.
    #[serde(with = "jsonl::nanos")]
    pub to: Duration,
}

impl Span {
    fn all(times: Vec<(Duration, Duration)>) -> Vec<Self> {
        let spans = times.into_iter();
        spans.map(|(from, to)| Self { from, to }).collect()
    }

    fn pairs(spans: &[Self]) -> Vec<(Duration, Duration)> {
        spans.iter().map(|span| (span.from, span.to)).collect()
    }
}

impl Evidence {
    pub(super) fn of(seed: u64, shared: &Shared, ended: &Result<(), Outcome>) -> Self {
        let locks = shared
            .locks
            .iter()
            .map(|lock| lock.judge(shared.plan.fenced));
        let seat = shared.office.seat.judge(shared.plan.fenced);
        let doubled = shared.doubled.lock();
        Self {
            seed,
            ttl: shared.ttl,
            late: shared.late(),
            ordered: shared.said.ordered,
            converges: shared.said.converges,
            excused: shared.excused(),
            killed: Span::all(shared.killed()),
            troubles: shared.troubles(),
            one_thread: shared.plan.one_thread,
            doubled: doubled.unwrap_or_else(PoisonError::into_inner).clone(),
            registers: match ended {
                Ok(()) => locks.chain([seat]).filter_map(Result::err).collect(),
                // One that was cut short may lack an increment that was counted.
                Err(_) => Vec::new(),
            },
            broken: shared.broken(),
            stopped: ended.as_ref().err().map(|outcome| Stopped {
                violated: matches!(outcome, Outcome::Violated { .. }),
                why: outcome.details(),
            }),
            insufficient: None,
        }
    }
}

/// The first lines of a file that holds a run together: its evidence, and which files have its histories.
#[derive(Debug, Serialize, Deserialize)]
struct RunFile {
    evidence: Evidence,
    locks: Vec<String>,
    leaders: String,
    election: String,
    rw_lock: String,
    #[serde(default)]
    barriers: Option<String>,
    epochs: Vec<EpochFile>,
    lists: String,
    queue: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct EpochFile {
    #[serde(with = "jsonl::nanos")]
    until: Duration,
    lists: String,
    queue: String,
}

impl jsonl::Line for RunFile {
    const KIND: &'static str = "run";
}

/// Lists and a queue that the store may have forgotten.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Earlier {
    /// When the event began, by the clock of the histories: what had not ended by then is not judged.
    pub until: Duration,
    /// Of the lists.
    pub lists: Vec<Transaction>,
    /// Of the queue.
    pub items: Vec<QueueOperation>,
}

impl Earlier {
    /// As it stood when the event began.
    fn cut(&self) -> (Vec<Transaction>, Vec<QueueOperation>) {
        let lists = self.lists.iter().cloned();
        let items = self.items.iter().cloned();
        (
            lists.filter_map(|line| line.as_of(self.until)).collect(),
            items.filter_map(|line| line.as_of(self.until)).collect(),
        )
    }
}

impl Histories {
    /// Writes them into `folder`, as files whose names begin with `name`, and returns their paths. The first is that of
    /// the run, from which [`replay`](super::replay) gives the verdict again.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn write(&self, folder: &Path, name: &str) -> io::Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)?;
        let file = |what: &str| format!("{name}-{what}.jsonl");
        let epochs = (1..).zip(&self.earlier).map(|(number, epoch)| EpochFile {
            until: epoch.until,
            lists: file(&format!("epoch-{number}-lists")),
            queue: file(&format!("epoch-{number}-queue")),
        });
        let run = RunFile {
            evidence: self.evidence.clone(),
            locks: (1..=self.locks.len())
                .map(|number| file(&format!("lock-{number}")))
                .collect(),
            leaders: file("leaders"),
            election: file("election"),
            rw_lock: file("rw-lock"),
            barriers: Some(file("barriers")),
            epochs: epochs.collect(),
            lists: file("lists"),
            queue: file("queue"),
        };
        let mut paths = Vec::new();
        for (file, events) in run.locks.iter().zip(&self.locks) {
            paths.push(written(folder.join(file), events)?);
        }
        paths.push(written(folder.join(&run.leaders), &self.seat)?);
        paths.push(written(folder.join(&run.election), &self.words)?);
        paths.push(written(folder.join(&run.rw_lock), &self.shelf)?);
        if let Some(barriers) = &run.barriers {
            paths.push(written(folder.join(barriers), &self.gates)?);
        }
        for (file, epoch) in run.epochs.iter().zip(&self.earlier) {
            paths.push(written(folder.join(&file.lists), &epoch.lists)?);
            paths.push(written(folder.join(&file.queue), &epoch.items)?);
        }
        paths.push(written(folder.join(&run.lists), &self.lists)?);
        paths.push(written(folder.join(&run.queue), &self.items)?);
        // Last, so that a run's file names no file that is not there.
        paths.insert(0, written(folder.join(file("run")), &[run])?);
        Ok(paths)
    }

    /// Reads back what [`write`](Self::write) wrote: the file of the run, and those that it names.
    ///
    /// # Errors
    ///
    /// The file that could not be read, and why.
    pub fn read(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let run = read::<RunFile>(path)?.pop();
        let run = run.ok_or_else(|| invalid(path, "it has no line behind the first"))?;
        let mut histories = Self {
            seat: read(&folder.join(&run.leaders))?,
            words: read(&folder.join(&run.election))?,
            shelf: read(&folder.join(&run.rw_lock))?,
            gates: match &run.barriers {
                Some(file) => read(&folder.join(file))?,
                None => Vec::new(),
            },
            lists: read(&folder.join(&run.lists))?,
            items: read(&folder.join(&run.queue))?,
            evidence: run.evidence,
            ..Self::default()
        };
        for file in &run.locks {
            histories.locks.push(read(&folder.join(file))?);
        }
        for epoch in &run.epochs {
            histories.earlier.push(Earlier {
                until: epoch.until,
                lists: read(&folder.join(&epoch.lists))?,
                items: read(&folder.join(&epoch.queue))?,
            });
        }
        Ok(histories)
    }
}

fn written<L: jsonl::Line>(path: PathBuf, history: &[L]) -> io::Result<PathBuf> {
    jsonl::write(&mut BufWriter::new(File::create(&path)?), history)?;
    Ok(path)
}

fn invalid(path: &Path, why: impl std::fmt::Display) -> io::Error {
    let what = format!("{}: {why}", path.display());
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// The lines of a file of histories.
pub(super) fn read<L: jsonl::Line>(path: &Path) -> io::Result<Vec<L>> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(named)?;
    jsonl::read(io::BufReader::new(file)).map_err(|error| invalid(path, error))
}

/// The verdict of one history that has no run around it: nobody is excused, and nothing need have come to an end.
/// Nothing if its kind is not one of the long form's.
pub(super) fn judge_alone(path: &Path, kind: &str) -> io::Result<Option<Result<(), Outcome>>> {
    let verdict = match kind {
        "lock" => judge_lock("", &read::<Event>(path)?),
        "rw_lock" => judge_shelf(&read::<RwEvent>(path)?, &[]),
        "election" => judge_words(&read::<ElectionOperation>(path)?),
        "list-append" => judge_lists(&read::<Transaction>(path)?),
        "queue" => {
            let items = read::<QueueOperation>(path)?;
            let account = total_queue::check_undrained(&items, &Leeway::within(Duration::MAX));
            judge_account(&items, &account, true)
        }
        _ => return Ok(None),
    };
    Ok(Some(verdict))
}

pub(super) fn count(histories: &Histories, shared: &Shared) -> Counts {
    let locks = || histories.locks.iter().chain([&histories.seat]);
    let count = |wanted: fn(&What) -> bool| {
        let whats = locks().flatten().map(|event| &event.what);
        let shelf = histories.shelf.iter().map(|event| &event.what);
        whats.chain(shelf).filter(|what| wanted(what)).count()
    };
    let met = rw_lock::meetings(&histories.shelf);
    let mut unknown = shared.unknown_commits.load(Ordering::Relaxed);
    unknown += count(|what| matches!(what, What::Unknown));
    let lost = |transaction: &&Transaction| transaction.fate == Fate::Unknown;
    let earlier = histories.earlier.iter().flat_map(|epoch| &epoch.lists);
    unknown += histories.lists.iter().chain(earlier).filter(lost).count();
    let lost = |operation: &&ElectionOperation| operation.fate == Fate::Unknown;
    unknown += histories.words.iter().filter(lost).count();
    let lost = |operation: &&QueueOperation| operation.fate == Fate::Unknown;
    let earlier = histories.earlier.iter().flat_map(|epoch| &epoch.items);
    unknown += histories.items.iter().chain(earlier).filter(lost).count();
    let present = std::iter::once(histories.items.clone());
    let queues = histories.earlier.iter().map(|epoch| epoch.cut().1);
    let (mut deliveries, mut ordered) = (0, 0);
    for items in queues.chain(present) {
        let (_, account) = queue_account(&items, &histories.evidence, false);
        deliveries += account.delivered + account.redelivered;
        ordered += account.ordered;
    }
    Counts {
        deliveries,
        ordered,
        locks: shared.lock_operations.load(Ordering::Relaxed),
        transactions: shared.transactions.load(Ordering::Relaxed),
        queue: shared.queue_operations.load(Ordering::Relaxed),
        elections: shared.election_operations.load(Ordering::Relaxed),
        rw_locks: shared.rw_operations.load(Ordering::Relaxed),
        gates: shared.gate_operations.load(Ordering::Relaxed),
        unknown,
        shared: met.shared,
        refused: count(|what| matches!(what, What::WriteRefused(..))),
        overlaps: locks()
            .map(|events| exclusion::overlaps(events).len())
            .sum::<usize>()
            + met.overlaps,
    }
}

/// What is wrong with a run. Of one that did not `end` as it has to, only what no later look could explain.
pub(super) fn judge(histories: &Histories) -> Result<(), Outcome> {
    let evidence = &histories.evidence;
    let excused = &evidence.excused;
    for events in &histories.locks {
        judge_lock("", &without_belief(events, excused))?;
    }
    judge_promptness(histories)?;
    judge_election(histories)?;
    if let Some(lost) = evidence.registers.first() {
        return Err(Outcome::violated(lost));
    }
    judge_shelf(&histories.shelf, excused)?;
    judge_gates(histories)?;
    if let Some(broken) = &evidence.broken {
        return Err(Outcome::violated(broken));
    }
    for epoch in &histories.earlier {
        let (lists, items) = epoch.cut();
        judge_lists(&lists)?;
        judge_queue(&items, evidence, false)?;
    }
    judge_lists(&histories.lists)?;
    let excuse = |one: &Doubled| excused.iter().any(|e| e.covers(one.client, one.at));
    if let Some(one) = evidence.doubled.iter().find(|one| !excuse(one)) {
        let [old, new] = one.tokens;
        return Err(Outcome::violated(format!(
            "the queue: client {} counted its delivery of item {} under token {old} as valid at {:.3?}, after another had it under token {new}",
            one.client, one.item, one.at
        )));
    }
    // What was not taken in the end of a run that was cut short may be there.
    judge_queue(&histories.items, evidence, evidence.stopped.is_none())
}

fn judge_gates(histories: &Histories) -> Result<(), Outcome> {
    let evidence = &histories.evidence;
    let patience = evidence.ttl * 2 + evidence.late;
    // Where any lease may end early at any time, no hold is certain.
    if evidence
        .excused
        .iter()
        .any(|excuse| excuse.client.is_none() && excuse.to == Duration::MAX)
    {
        return Ok(());
    }
    gates::judge(
        &histories.gates,
        &evidence.troubles,
        patience,
        evidence.one_thread,
    )
    .map_err(|found| Outcome::violated(format!("the barriers: {found}")))
}

/// Checks the order and the delay of grants in runs on one thread.
fn judge_promptness(histories: &Histories) -> Result<(), Outcome> {
    let evidence = &histories.evidence;
    if !evidence.one_thread {
        return Ok(());
    }
    let patience = evidence.ttl * 2 + evidence.late;
    let late = |what: &str, found: Result<(), String>| {
        found.map_err(|found| Outcome::violated(format!("{what}, in its order: {found}")))
    };
    for events in &histories.locks {
        let steps = events.iter().map(Step::of);
        late(
            "the lock",
            prompt::check(steps, &evidence.troubles, patience),
        )?;
    }
    let steps = histories.seat.iter().map(Step::of);
    late(
        "the election",
        prompt::check(steps, &evidence.troubles, patience),
    )?;
    let steps = histories.shelf.iter().map(|event| Step {
        at: event.at,
        client: event.client,
        what: &event.what,
    });
    late(
        "the read-write lock",
        prompt::check(steps, &evidence.troubles, patience),
    )
}

fn judge_lists(lists: &[Transaction]) -> Result<(), Outcome> {
    let findings = list_append::check(lists);
    let Some(anomaly) = findings.first(Level::StrictSerializable) else {
        return Ok(());
    };
    let picture = list_append::timeline(lists, &anomaly.transactions);
    let broken = Outcome::violated(format!("the lists: {anomaly}"));
    Err(broken.with_history(picture))
}

/// The same history as far as nothing was forgotten in it, and what it says.
fn queue_account(
    items: &[QueueOperation],
    evidence: &Evidence,
    drained: bool,
) -> (Vec<QueueOperation>, Account) {
    let killed = Span::pairs(&evidence.killed);
    let items = without_forgotten_items(items, &killed);
    let items = with_forgotten_counts(&items, &killed);
    // So long an answer that was lost may have an item: until its client gives up, its link is healed, and
    // its session has ended.
    let mut leeway = Leeway::within(evidence.ttl * 6 + evidence.late * 2);
    // And where nothing is wrong: whoever cannot say so for longer has lost its session, and the item with it.
    leeway.given_back = Some(evidence.ttl + evidence.late);
    let troubles = evidence.troubles.iter();
    leeway.trouble = troubles.map(|trouble| (trouble.from, trouble.to)).collect();
    let forgotten = killed.iter();
    let forgotten = forgotten.map(|(from, to)| (from.saturating_sub(SPARE), *to));
    leeway.forgotten = forgotten.collect();
    let account = match drained {
        true => total_queue::check_within(&items, &leeway),
        false => total_queue::check_undrained(&items, &leeway),
    };
    (items, account)
}

fn judge_queue(
    items: &[QueueOperation],
    evidence: &Evidence,
    drained: bool,
) -> Result<(), Outcome> {
    let (items, account) = queue_account(items, evidence, drained);
    judge_account(&items, &account, evidence.ordered)
}

fn judge_account(
    items: &[QueueOperation],
    account: &Account,
    ordered: bool,
) -> Result<(), Outcome> {
    let overtaking = account.overtakings.first();
    let overtaking = overtaking.filter(|_| ordered);
    let Some(violation) = account.violations.first().or(overtaking) else {
        return Ok(());
    };
    let picture = queue::timeline(items, &violation.places);
    let broken = Outcome::violated(format!("the queue: {}", violation.what));
    Err(broken.with_history(picture))
}

fn judge_election(histories: &Histories) -> Result<(), Outcome> {
    let evidence = &histories.evidence;
    let seat = without_belief(&histories.seat, &evidence.excused);
    judge_lock("the election, ", &seat)?;
    // Where an event may forget the latest changes, observers show an older state after it.
    let forgets = histories.earlier.iter().map(|epoch| epoch.until);
    let known = forgets
        .min()
        .filter(|_| !evidence.converges)
        .unwrap_or(Duration::MAX);
    let words = histories.words.iter().cloned();
    let mut words: Vec<_> = words.filter_map(|word| word.as_of(known)).collect();
    ask_without_belief(&mut words, &evidence.excused);
    judge_words(&words)
}

fn judge_words(words: &[ElectionOperation]) -> Result<(), Outcome> {
    election::check(words).map_err(|violation| {
        let picture = election::timeline(words, &violation.places);
        Outcome::violated(format!("the election: {}", violation.what)).with_history(picture)
    })
}

fn judge_shelf(events: &[RwEvent], excused: &[Excuse]) -> Result<(), Outcome> {
    let believed = |event: &RwEvent| {
        let what = believed(event.client, event.at, event.what.clone(), excused)?;
        Some(RwEvent {
            what,
            ..event.clone()
        })
    };
    let events: Vec<RwEvent> = events.iter().filter_map(believed).collect();
    let judged = rw_lock::check(&events);
    judged.map(drop).map_err(|violation| {
        let picture = Timeline::of_a_lock(&rw_lock::plain(&events), &violation.places);
        let what = format!("the read-write lock, register and all: {}", violation.what);
        Outcome::violated(what).with_history(picture)
    })
}

/// `of` is what else the lock is, if it is anything else.
fn judge_lock(of: &str, events: &[Event]) -> Result<(), Outcome> {
    let broken = |what: &str, violation: Violation| {
        Outcome::violated(format!("{of}{what}: {}", violation.what))
            .with_history(Timeline::of_a_lock(events, &violation.places))
    };
    fencing::grants_rise(events).map_err(|v| broken("tokens", v))?;
    fencing::accepted_in_order(events).map_err(|v| broken("the register", v))?;
    linearizable::check(events).map_err(|v| broken("the lock's history", v))?;
    Ok(())
}

/// The same deliveries, counted as if none had been forgotten: a store that does not keep in a crash what is
/// held may not have noted the last deliveries before it, and counts the next as the first of them. `killed` are the times of its
/// crashes.
fn with_forgotten_counts(
    history: &[QueueOperation],
    killed: &[(Duration, Duration)],
) -> Vec<QueueOperation> {
    /// What is known of the last delivery of an item.
    struct Last {
        count: u32,
        called: Duration,
        forgotten: u32,
        /// Each that was seen: its count, and by when it had happened.
        deliveries: Vec<(u32, Duration)>,
    }
    let mut history = history.to_vec();
    let mut deliveries: Vec<_> = history
        .iter_mut()
        .filter_map(|operation| match &mut operation.fate {
            Fate::Done(QueueAnswer::Delivered { item, token, count }) => {
                Some((*token, *item, operation.called, operation.ended, count))
            }
            _ => None,
        })
        .collect();
    deliveries.sort_by_key(|(token, ..)| *token);
    let mut lasts: HashMap<u64, Last> = HashMap::new();
    for (_, item, called, ended, count) in deliveries {
        let last = lasts.entry(item).or_insert(Last {
            count: 0,
            called,
            forgotten: 0,
            deliveries: Vec::new(),
        });
        let between = |(from, to): &&(Duration, Duration)| {
            last.called <= *to && ended.is_none_or(|ended| *from <= ended)
        };
        // The last count that was made sure of before the crash, whoever saw it.
        let kept = |(from, _): &(Duration, Duration)| {
            let long_before = |(_, by): &&(u32, Duration)| *by + SPARE < *from;
            let known = last.deliveries.iter().filter(long_before);
            known.map(|(count, _)| *count).max().unwrap_or_default()
        };
        let seen = *count + last.forgotten;
        if seen <= last.count
            && killed
                .iter()
                .filter(between)
                .any(|crash| kept(crash) < seen)
        {
            last.forgotten += last.count + 1 - seen;
        }
        *count += last.forgotten;
        (last.count, last.called) = (*count, called);
        last.deliveries.push((*count, ended.unwrap_or(called)));
    }
    history
}

/// The same history without items whose enqueue nobody was told the success of, and which were seen before a crash
/// only: a store that makes sure of an item when it answers may have handed it out before, and lost
/// it then. Nothing was promised of it.
fn without_forgotten_items(
    history: &[QueueOperation],
    killed: &[(Duration, Duration)],
) -> Vec<QueueOperation> {
    /// Whether it was certainly taken in or ended; by when it had been handed out first, and when it was asked
    /// for that was handed out last.
    #[derive(Default)]
    struct Seen {
        certain: bool,
        first: Option<Duration>,
        last: Option<Duration>,
    }
    let item_of = |operation: &QueueOperation| match (&operation.input, operation.answer()) {
        (
            QueueCall::Enqueue { item, .. }
            | QueueCall::Acknowledge { item, .. }
            | QueueCall::Return { item, .. },
            _,
        )
        | (_, Some(QueueAnswer::Delivered { item, .. } | QueueAnswer::Popped { item })) => {
            Some(*item)
        }
        _ => None,
    };
    let mut items: HashMap<u64, Seen> = HashMap::new();
    for operation in history {
        let Some(item) = item_of(operation) else {
            continue;
        };
        let seen = items.entry(item).or_default();
        match operation.answer() {
            Some(QueueAnswer::Done | QueueAnswer::Popped { .. }) => seen.certain = true,
            Some(QueueAnswer::Delivered { .. }) => {
                // A dequeue waits: it may have got the item as late as it answered.
                let by = operation.ended.unwrap_or(operation.called);
                seen.first = Some(seen.first.map_or(by, |first| first.min(by)));
                seen.last = seen.last.max(Some(operation.called));
            }
            _ => {}
        }
    }
    let forgotten = |item: u64| {
        let seen = &items[&item];
        let (Some(first), Some(last), false) = (seen.first, seen.last, seen.certain) else {
            return false;
        };
        let during = |(from, to): &(Duration, Duration)| first + SPARE >= *from && last <= *to;
        killed.iter().any(during)
    };
    let kept = |operation: &&QueueOperation| !item_of(operation).is_some_and(forgotten);
    history.iter().filter(kept).cloned().collect()
}

/// The same lines without what holders believed in times in which leases were ended before their
/// end. Tokens stay, and what the register and the store took.
fn without_belief(events: &[Event], excused: &[Excuse]) -> Vec<Event> {
    let believed = |event: &Event| {
        let what = believed(event.client, event.at, event.what.clone(), excused)?;
        Some(Event {
            what,
            ..event.clone()
        })
    };
    events.iter().filter_map(believed).collect()
}

/// Whoever may have led for its own belief alone has asked as anybody may.
fn ask_without_belief(words: &mut [ElectionOperation], excused: &[Excuse]) {
    for word in words {
        let ended = word.ended.unwrap_or(Duration::MAX);
        let meets = |excuse: &Excuse| excuse.meets(word.client, word.called, ended);
        if matches!(word.input, ElectionCall::AskLeading { .. }) && excused.iter().any(meets) {
            word.input = ElectionCall::Ask;
        }
    }
}

/// What is left of one line.
fn believed(client: usize, at: Duration, what: What, excused: &[Excuse]) -> Option<What> {
    if !excused.iter().any(|excuse| excuse.covers(client, at)) {
        return Some(what);
    }
    match what {
        What::Looks(_) | What::Valid(_) => None,
        What::WriteRefused(token, true) => Some(What::WriteRefused(token, false)),
        what => Some(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(at: u64, token: u64, count: u32) -> QueueOperation {
        let answer = QueueAnswer::Delivered {
            item: 7,
            token,
            count,
        };
        QueueOperation {
            client: 0,
            called: Duration::from_secs(at),
            ended: Some(Duration::from_secs(at)),
            input: QueueCall::Dequeue { by: 0 },
            fate: Fate::Done(answer),
        }
    }

    /// One that waits from `called` until `ended`.
    fn waiting(called: u64, ended: u64, token: u64, count: u32) -> QueueOperation {
        QueueOperation {
            called: Duration::from_secs(called),
            ..delivery(ended, token, count)
        }
    }

    fn counts(history: &[QueueOperation]) -> Vec<u32> {
        let count = |operation: &QueueOperation| match operation.answer() {
            Some(QueueAnswer::Delivered { count, .. }) => *count,
            _ => 0,
        };
        history.iter().map(count).collect()
    }

    #[test]
    fn a_crash_may_forget_the_last_deliveries_and_nothing_else_may() {
        let history = [
            delivery(1, 1, 1),
            delivery(3, 2, 2),
            delivery(9, 3, 2),
            delivery(11, 4, 3),
            delivery(12, 5, 3),
        ];
        let crash = [(Duration::from_secs(4), Duration::from_secs(8))];
        let judged = with_forgotten_counts(&history, &crash);
        assert_eq!(
            counts(&judged),
            [1, 2, 3, 4, 4],
            "the last is no crash's doing"
        );
        let judged = with_forgotten_counts(&history, &[]);
        assert_eq!(counts(&judged), counts(&history));

        // Two right before the crash, and the one before those.
        let two = |third| {
            [
                delivery(1, 1, 1),
                delivery(3, 2, 2),
                delivery(4, 3, 3),
                delivery(9, 4, third),
            ]
        };
        let judged = with_forgotten_counts(&two(2), &crash);
        assert_eq!(counts(&judged), [1, 2, 3, 4]);
        let judged = with_forgotten_counts(&two(1), &crash);
        assert_eq!(
            counts(&judged),
            [1, 2, 3, 1],
            "the first was noted long before"
        );

        // Asked for long before the crash, and had right before it; after one that nobody saw.
        let waited = [waiting(0, 4, 2, 2), delivery(9, 4, 1)];
        assert_eq!(counts(&with_forgotten_counts(&waited, &crash)), [2, 3]);
        let long_ago = [waiting(0, 1, 1, 1), delivery(9, 4, 1)];
        assert_eq!(
            counts(&with_forgotten_counts(&long_ago, &crash)),
            [1, 1],
            "noted long before"
        );
    }

    fn taken_in(at: u64) -> QueueOperation {
        QueueOperation {
            input: QueueCall::Enqueue {
                item: 7,
                priority: 0,
            },
            fate: Fate::Done(QueueAnswer::Done),
            ..delivery(at, 0, 0)
        }
    }

    fn acknowledged(at: u64, token: u64) -> QueueOperation {
        QueueOperation {
            input: QueueCall::Acknowledge { item: 7, token },
            fate: Fate::Done(QueueAnswer::Done),
            ..delivery(at, 0, 0)
        }
    }

    fn epoch(until: u64, items: Vec<QueueOperation>) -> Earlier {
        Earlier {
            until: Duration::from_secs(until),
            lists: Vec::new(),
            items,
        }
    }

    /// Acknowledged once and delivered again: so it was, if all of it was before the event.
    #[test]
    fn what_ended_before_the_store_may_forget_is_judged_and_the_rest_is_not() {
        let history = vec![
            taken_in(1),
            delivery(2, 1, 1),
            acknowledged(3, 1),
            delivery(6, 2, 2),
        ];
        let violations = |until| {
            let (_, items) = epoch(until, history.clone()).cut();
            total_queue::check_undrained(&items, &Leeway::within(Duration::MAX))
                .violations
                .len()
        };
        assert_eq!(violations(5), 0, "forgotten");
        assert_eq!(violations(7), 1, "not forgotten, and done again");
        let (_, items) = epoch(5, vec![taken_in(1)]).cut();
        assert!(
            total_queue::check_undrained(&items, &Leeway::within(Duration::MAX))
                .violations
                .is_empty()
        );
        let drained = total_queue::check(&items);
        assert_eq!(drained.violations.len(), 1, "nobody had it in the end");
    }

    #[test]
    fn what_was_never_accepted_may_be_gone_after_a_crash_and_nothing_else() {
        let enqueue = |fate| QueueOperation {
            client: 1,
            called: Duration::from_secs(1),
            ended: Some(Duration::from_secs(5)),
            input: QueueCall::Enqueue {
                item: 7,
                priority: 0,
            },
            fate,
        };
        let crash = [(Duration::from_secs(4), Duration::from_secs(8))];
        let lost = |history: &[QueueOperation], crash: &[(Duration, Duration)]| {
            total_queue::check(&without_forgotten_items(history, crash)).violations
        };
        let unsure = [enqueue(Fate::Unknown), delivery(4, 1, 1)];
        assert!(lost(&unsure, &crash).is_empty());
        assert_eq!(lost(&unsure, &[]).len(), 1, "no crash");
        let accepted = [enqueue(Fate::Done(QueueAnswer::Done)), delivery(4, 1, 1)];
        assert_eq!(lost(&accepted, &crash).len(), 1);
        let after = [enqueue(Fate::Unknown), delivery(9, 1, 1)];
        assert_eq!(lost(&after, &crash).len(), 1, "it outlived the crash");
        let before = [enqueue(Fate::Unknown), delivery(2, 1, 1)];
        assert_eq!(lost(&before, &crash).len(), 1, "made sure of long before");
        let waited = [enqueue(Fate::Unknown), waiting(1, 4, 1, 1)];
        assert!(lost(&waited, &crash).is_empty(), "asked for long before");
        let waited = [enqueue(Fate::Unknown), waiting(1, 2, 1, 1)];
        assert_eq!(lost(&waited, &crash).len(), 1, "and had long before");
    }

    #[test]
    fn a_leader_whose_lease_was_ended_early_has_asked_as_anybody_may() {
        let second = Duration::from_secs;
        let asked = ElectionOperation {
            client: 0,
            called: second(3),
            ended: Some(second(5)),
            input: ElectionCall::AskLeading { token: 1 },
            fate: Fate::Done(election::ElectionAnswer::Shows(None)),
        };
        let judged = |client, from, to| {
            let (from, to) = (second(from), second(to));
            let mut words = [asked.clone()];
            ask_without_belief(&mut words, &[Excuse { client, from, to }]);
            election::check(&words)
        };
        assert_eq!(judged(Some(0), 4, 9), Ok(()));
        assert_eq!(judged(None, 0, 3), Ok(()));
        assert!(judged(Some(1), 4, 9).is_err(), "another's");
        assert!(judged(None, 6, 9).is_err(), "later");
    }

    #[test]
    fn belief_is_left_out_where_leases_were_ended_early_and_tokens_are_not() {
        let token = tenure_core::FencingToken::new(1);
        let at = |second, what| Event {
            at: Duration::from_secs(second),
            client: 0,
            what,
        };
        let events = [
            at(1, What::Looks(token)),
            at(1, What::Valid(token)),
            at(5, What::Looks(token)),
            at(5, What::Valid(token)),
            at(5, What::Wrote(token)),
            at(5, What::WriteRefused(token, true)),
            at(5, What::Commits(token)),
            at(5, What::Committed(token)),
            at(9, What::WriteRefused(token, true)),
        ];
        let excuse = |client| Excuse {
            client,
            from: Duration::from_secs(4),
            to: Duration::from_secs(6),
        };
        let others = without_belief(&events, &[excuse(Some(1))]);
        assert_eq!(others, events, "whom nothing was done to");
        let kept = without_belief(&events, &[excuse(Some(0))]);
        assert_eq!(kept, without_belief(&events, &[excuse(None)]));
        let whats: Vec<What> = kept.into_iter().map(|event| event.what).collect();
        assert_eq!(
            whats,
            [
                What::Looks(token),
                What::Valid(token),
                What::Wrote(token),
                What::WriteRefused(token, false),
                What::Commits(token),
                What::Committed(token),
                What::WriteRefused(token, true),
            ]
        );
    }
}
