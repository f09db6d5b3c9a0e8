//! What went into a queue, what came out, and what was acknowledged.
//!
//! The run must end with a drain: dequeue and acknowledge until the queue says that it is empty,
//! after every session that may still have an item is gone. Then everything is accounted for,
//! item by item, in O(n log n) for n operations.
//!
//! Where a dequeue is of unknown fate, it may have taken an item that nobody saw: so much is
//! conceded to the count of a delivery, and to the order, for as long as a [`Leeway`] says. A pop of unknown fate
//! may have taken an item for good.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::fencing::Violation;
use super::operation::{Fate, places};
use super::queue::{QueueAnswer, QueueCall, QueueOperation};

mod order;

pub use order::overtakings;

/// How long a dequeue of unknown fate may keep an item away from its place, and whether that leaves a trace.
///
/// Whoever gives a dequeue up has what it gets all the same taken back, as if it had never been delivered. Whoever
/// dies with it does not: then the item comes back with its count raised. So an item whose next delivery has the
/// next count was away for those alone that were given up: they have an end, and no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leeway {
    /// So long after its call any of them has had an item.
    pub away: Duration,
    /// So long after it was given up one has had an item, where nothing went wrong meanwhile. No item's
    /// count is looked at if there is none.
    pub given_back: Option<Duration>,
    /// When something went wrong, from its beginning until all is as before.
    pub trouble: Vec<(Duration, Duration)>,
    /// When counts may have been forgotten.
    pub forgotten: Vec<(Duration, Duration)>,
}

impl Leeway {
    /// So long after its call a dequeue of unknown fate has had an item, and it may leave no trace.
    pub const fn within(away: Duration) -> Self {
        Self {
            away,
            given_back: None,
            trouble: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    /// Until when this one may have had an item.
    fn until(&self, dequeue: &QueueOperation) -> Duration {
        let most = dequeue.called.saturating_add(self.away);
        let (Some(ended), Some(given_back)) = (dequeue.ended, self.given_back) else {
            return most;
        };
        let soon = ended.saturating_add(given_back);
        match meets(&self.trouble, dequeue.called, soon) {
            true => most.max(soon),
            false => soon,
        }
    }
}

/// Whether any of these times has a moment in common with that from `from` to `to`.
fn meets(times: &[(Duration, Duration)], from: Duration, to: Duration) -> bool {
    let mut times = times.iter();
    times.any(|(began, ended)| *began <= to && from <= *ended)
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Items that were certainly taken in.
    pub enqueued: usize,
    /// Items that came out at least once.
    pub delivered: usize,
    /// Deliveries beyond each item's first.
    pub redelivered: usize,
    /// Items that were certainly acknowledged.
    pub acknowledged: usize,
    /// Deliveries that would have been found out of order, had another item been handed out in place of theirs: more
    /// items waited than are conceded. No other says anything about order.
    pub ordered: usize,
    /// What must not be. Items are lost, doubled or made up.
    pub violations: Vec<Violation>,
    /// Items that were overtaken: a violation only where the store promises order.
    pub overtakings: Vec<Violation>,
}

/// One handing out of an item.
#[derive(Clone, Copy)]
struct Delivery<'a> {
    token: u64,
    count: u32,
    operation: &'a QueueOperation,
}

/// All that happened to one item.
#[derive(Default)]
struct Life<'a> {
    enqueues: Vec<&'a QueueOperation>,
    /// By token.
    deliveries: Vec<Delivery<'a>>,
    /// Acknowledgements, pops among them, with their tokens.
    ends: Vec<(u64, &'a QueueOperation)>,
    returns: Vec<(u64, &'a QueueOperation)>,
    /// Those that told the item alone.
    pops: Vec<&'a QueueOperation>,
}

impl<'a> Life<'a> {
    /// Those that were certainly accepted.
    fn done(ends: &[(u64, &'a QueueOperation)]) -> impl Iterator<Item = (u64, &'a QueueOperation)> {
        ends.iter().copied().filter(|(_, end)| {
            matches!(
                end.answer(),
                Some(QueueAnswer::Done | QueueAnswer::Delivered { .. })
            )
        })
    }

    /// An acknowledgement whose answer was lost may have ended it.
    fn may_have_ended(&self) -> bool {
        !self.pops.is_empty()
            || self
                .ends
                .iter()
                .any(|(_, end)| end.possible() && end.answer() != Some(&QueueAnswer::Lost))
    }

    /// The lines of this item, in the order of their calls.
    fn lines(&self) -> Vec<&'a QueueOperation> {
        let mut lines: Vec<_> = self.enqueues.clone();
        lines.extend(self.deliveries.iter().map(|delivery| delivery.operation));
        lines.extend(self.ends.iter().chain(&self.returns).map(|(_, end)| *end));
        lines.extend(&self.pops);
        lines.sort_by_key(|operation| operation.called);
        // A pop is a delivery and an end.
        lines.dedup_by(|a, b| std::ptr::eq(*a, *b));
        lines
    }

    /// The same for a counterexample.
    fn told(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            let _ = write!(text, "\n    {line}");
        }
        text
    }
}

impl Life<'_> {
    fn violation(&self, history: &[QueueOperation], item: u64, what: &str) -> Violation {
        let told = self.told();
        Violation::new(
            format!("item {item} {what}{told}"),
            places(history, self.lines()),
        )
    }
}

type Lives<'a> = BTreeMap<u64, Life<'a>>;

/// Judges a run.
pub fn check(history: &[QueueOperation]) -> Account {
    check_within(history, &Leeway::within(Duration::MAX))
}

/// Judges a run in which no more is conceded than that.
pub fn check_within(history: &[QueueOperation], leeway: &Leeway) -> Account {
    account(history, leeway, true)
}

/// The same of a run that was broken off, without a drain: what did not come out may be in the queue.
pub fn check_undrained(history: &[QueueOperation], leeway: &Leeway) -> Account {
    account(history, leeway, false)
}

fn account(history: &[QueueOperation], leeway: &Leeway, drained: bool) -> Account {
    let lives = lives(history);
    let unseen = Unseen::of(history, leeway);
    let (overtakings, ordered) = order::sweep(history, leeway);
    let mut account = Account {
        overtakings,
        ordered,
        ..Account::default()
    };
    let mut missing = Vec::new();
    for (item, life) in &lives {
        let certain = life.enqueues.iter().any(|op| op.answer().is_some());
        let acknowledged = Life::done(&life.ends).count();
        account.enqueued += usize::from(certain);
        account.delivered += usize::from(!life.deliveries.is_empty() || !life.pops.is_empty());
        account.redelivered += life.deliveries.len().saturating_sub(1);
        account.acknowledged += usize::from(acknowledged + life.pops.len() > 0);
        let wrong = [
            out_of_thin_air(life),
            acknowledged_twice(life),
            two_holders(life),
            counts(life, &unseen),
            came_back(life),
        ];
        for what in wrong.into_iter().flatten() {
            let violation = life.violation(history, *item, &what);
            account.violations.push(violation);
        }
        if drained && (certain || !life.deliveries.is_empty()) && !life.may_have_ended() {
            missing.push(item);
        }
    }
    // Each of so many may have been taken by a pop whose answer was lost.
    for item in missing.into_iter().skip(unseen.pops) {
        let life = &lives[item];
        let what = if life.deliveries.is_empty() {
            "was taken in and never delivered"
        } else {
            "was delivered and never acknowledged, nor delivered again"
        };
        let violation = life.violation(history, *item, what);
        account.violations.push(violation);
    }
    account
}

fn lives(history: &[QueueOperation]) -> Lives<'_> {
    let mut lives = Lives::new();
    for operation in history {
        match operation.input {
            QueueCall::Enqueue { item, .. } => {
                lives.entry(item).or_default().enqueues.push(operation);
            }
            QueueCall::Acknowledge { item, token } => {
                let ends = &mut lives.entry(item).or_default().ends;
                ends.push((token, operation));
            }
            QueueCall::Return { item, token } => {
                let returns = &mut lives.entry(item).or_default().returns;
                returns.push((token, operation));
            }
            QueueCall::Dequeue { .. } | QueueCall::Pop => {
                if let Some(&QueueAnswer::Popped { item }) = operation.answer() {
                    lives.entry(item).or_default().pops.push(operation);
                }
                if let Some(&QueueAnswer::Delivered { item, token, count }) = operation.answer() {
                    let life = lives.entry(item).or_default();
                    life.deliveries.push(Delivery {
                        token,
                        count,
                        operation,
                    });
                    if operation.input == QueueCall::Pop {
                        life.ends.push((token, operation));
                    }
                }
            }
            QueueCall::Depart { .. } => {}
        }
    }
    for life in lives.values_mut() {
        life.deliveries.sort_by_key(|delivery| delivery.token);
    }
    lives
}

/// Times that begin and end, to be counted.
#[derive(Default)]
struct Spans {
    /// When each begins, sorted.
    from: Vec<Duration>,
    /// When each ends, sorted.
    to: Vec<Duration>,
}

impl Spans {
    fn of(spans: impl Iterator<Item = (Duration, Duration)>) -> Self {
        let (mut from, mut to): (Vec<_>, Vec<_>) = spans.unzip();
        from.sort_unstable();
        to.sort_unstable();
        Self { from, to }
    }

    /// How many have a moment in common with the time from `from` to `to`.
    fn between(&self, from: Duration, to: Duration) -> usize {
        let begun = self.from.partition_point(|begins| *begins <= to);
        let over = self.to.partition_point(|ends| *ends < from);
        begun.saturating_sub(over)
    }
}

/// What may have been taken without anybody seeing it.
struct Unseen {
    /// When each dequeue of unknown fate may have had something.
    dequeues: Spans,
    /// The same of those that may have left no trace of it.
    traceless: Spans,
    pops: usize,
}

impl Unseen {
    fn of(history: &[QueueOperation], leeway: &Leeway) -> Self {
        let unknown = |operation: &&QueueOperation| operation.fate == Fate::Unknown;
        let dequeues = || {
            let unknown = history.iter().filter(unknown);
            let takes = |operation: &&QueueOperation| {
                matches!(operation.input, QueueCall::Dequeue { .. } | QueueCall::Pop)
            };
            unknown.filter(takes)
        };
        let span = |operation: &QueueOperation| (operation.called, leeway.until(operation));
        let given_up = dequeues().filter(|operation| operation.ended.is_some());
        let pops = history.iter().filter(unknown);
        Self {
            dequeues: Spans::of(dequeues().map(span)),
            traceless: Spans::of(given_up.map(span)),
            pops: pops.filter(|op| op.input == QueueCall::Pop).count(),
        }
    }

    /// How many may have had something at some time from `from` to `to`.
    fn between(&self, from: Duration, to: Option<Duration>) -> usize {
        self.dequeues.between(from, to.unwrap_or(Duration::MAX))
    }
}

fn out_of_thin_air(life: &Life<'_>) -> Option<String> {
    let deliveries = life.deliveries.iter().map(|delivery| delivery.operation);
    let taken: Vec<_> = deliveries.chain(life.pops.iter().copied()).collect();
    taken.first()?;
    let possible = life.enqueues.iter().filter(|enqueue| enqueue.possible());
    let Some(source) = possible.min_by_key(|enqueue| enqueue.called) else {
        return Some("was delivered, though it was never taken in".to_owned());
    };
    let early = taken.iter().any(|taken| taken.precedes(source));
    early.then(|| "was delivered before anybody asked to take it in".to_owned())
}

fn acknowledged_twice(life: &Life<'_>) -> Option<String> {
    let tokens: Vec<u64> = Life::done(&life.ends).map(|(token, _)| token).collect();
    let times = tokens.len() + life.pops.len();
    (times > 1).then(|| {
        format!(
            "was acknowledged {times} times, under tokens {tokens:?} and by {} pops",
            life.pops.len()
        )
    })
}

/// Who ends a delivery must have held it: no newer one may have been handed out before.
fn two_holders(life: &Life<'_>) -> Option<String> {
    let mut ends = Life::done(&life.ends).chain(Life::done(&life.returns));
    let stale = ends.find_map(|(token, end)| {
        let newer = life
            .deliveries
            .iter()
            .find(|newer| newer.token > token && newer.operation.precedes(end))?;
        Some((token, newer.token))
    });
    if let Some((old, new)) = stale {
        return Some(format!(
            "had two holders: token {old} was still accepted after token {new} had been handed out"
        ));
    }
    let mut neighbours = life.deliveries.windows(2);
    neighbours.find_map(|pair| {
        let (older, newer) = (pair[0], pair[1]);
        if older.token == newer.token {
            return Some(format!("was delivered twice under token {}", older.token));
        }
        newer.operation.precedes(older.operation).then(|| {
            format!(
                "was delivered under token {}, after token {} had been handed out",
                older.token, newer.token
            )
        })
    })
}

/// The count of a delivery is that of the one before plus one, but for those nobody saw.
fn counts(life: &Life<'_>, unseen: &Unseen) -> Option<String> {
    let mut before = 0;
    let possible = life.enqueues.iter().filter(|enqueue| enqueue.possible());
    let begun = possible.map(|enqueue| enqueue.called).min();
    let begun = begun.unwrap_or_default();
    let mut last = begun;
    for (seen, delivery) in life.deliveries.iter().enumerate() {
        let count = delivery.count;
        if count <= before {
            return Some(format!(
                "was delivered under token {} with count {count}, after a delivery with count {before}",
                delivery.token
            ));
        }
        let ended = delivery.operation.ended;
        let (earlier, since) = (count as usize - 1, (count - before) as usize - 1);
        // Since it was taken in, and since the delivery before this one.
        let possible = seen + unseen.between(begun, ended);
        let meanwhile = unseen.between(last, ended);
        (before, last) = (count, delivery.operation.called);
        if earlier > possible {
            return Some(format!(
                "was delivered under token {} with count {count}, though it can have been out {possible} times at most",
                delivery.token
            ));
        }
        if since > meanwhile {
            return Some(format!(
                "was delivered under token {} with count {count}, though it can have been out {meanwhile} times at most since the delivery before",
                delivery.token
            ));
        }
    }
    None
}

fn came_back(life: &Life<'_>) -> Option<String> {
    let again = |pop: &&&QueueOperation| {
        let mut later = life.deliveries.iter();
        later.any(|again| pop.precedes(again.operation))
    };
    if life.pops.iter().any(|pop| again(&pop)) {
        return Some("was delivered after it had been popped".to_owned());
    }
    Life::done(&life.ends).find_map(|(token, end)| {
        let again = life
            .deliveries
            .iter()
            .find(|again| end.precedes(again.operation))?;
        Some(format!(
            "was delivered under token {}, after it had been acknowledged under token {token}",
            again.token
        ))
    })
}

#[cfg(test)]
mod tests;
