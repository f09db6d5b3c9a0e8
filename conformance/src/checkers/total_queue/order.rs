//! Who was overtaken: a sweep over the times in which each item certainly waited.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Leeway, Life, Lives, Unseen, lives, meets};
use crate::checkers::fencing::Violation;
use crate::checkers::operation::{Fate, places};
use crate::checkers::queue::{QueueCall, QueueOperation};

/// More than so many are counted, not told.
const TOLD: usize = 10;

/// A time in which an item certainly waited, and nobody had it.
#[derive(Clone, Copy)]
struct Wait {
    item: u64,
    from: Duration,
    to: Duration,
    /// The next count shows that nobody was handed it meanwhile, unless it was taken back from one who had given it
    /// up.
    counted: bool,
}

/// The place of an item in the order: its priority, and by when it had been taken in.
type Place = (u16, Duration, u64);

/// Every delivery that passed over an item which certainly waited throughout, and which was of
/// lower number in priority, or of the same and taken in before the other was asked to be.
///
/// A dequeue of unknown fate may have had the item that seems to wait: a delivery with no more
/// such items than there had been such dequeues is not reported.
pub fn overtakings(history: &[QueueOperation], leeway: &Leeway) -> Vec<Violation> {
    sweep(history, leeway).0
}

/// Who was overtaken, and how many deliveries can be wrong.
pub(super) fn sweep(history: &[QueueOperation], leeway: &Leeway) -> (Vec<Violation>, usize) {
    let lives = lives(history);
    let unseen = Unseen::of(history, leeway);
    let mut waits = waits(history, &lives, leeway);
    // The next to begin is at the end.
    waits.sort_by_key(|wait| Reverse(wait.from));
    let mut deliveries: Vec<_> = lives
        .iter()
        .flat_map(|(item, life)| {
            life.deliveries
                .iter()
                .map(|delivery| delivery.operation)
                .chain(life.pops.iter().copied())
                .map(move |operation| (*item, operation))
        })
        .collect();
    deliveries.sort_by_key(|(_, operation)| operation.called);

    let mut waiting: BTreeMap<Place, Wait> = BTreeMap::new();
    let (mut found, mut more, mut ordered) = (Vec::new(), 0, 0);
    for (item, operation) in deliveries {
        let Some(ended) = operation.ended else {
            continue;
        };
        while waits
            .last()
            .is_some_and(|wait| wait.from < operation.called)
        {
            if let Some(wait) = waits.pop()
                && let Some(place) = place(wait.item, &lives)
            {
                waiting.insert(place, wait);
            }
        }
        let Some((priority, asked)) = enqueued(item, &lives) else {
            continue;
        };
        let conceded = Conceded {
            all: unseen.dequeues.between(operation.called, ended),
            counted: unseen.traceless.between(operation.called, ended),
        };
        waiting.retain(|_, wait| wait.to >= operation.called);
        let throughout = |wait: &Wait| wait.to > ended && wait.item != item;
        let there = waiting.values().filter(|wait| throughout(wait));
        ordered += usize::from(conceded.exceeded_by(there).is_some());
        // Those before it are few in a good run: what lies ahead is taken first.
        let before = waiting.range(..(priority, asked, 0)).map(|(_, wait)| wait);
        let passed = conceded.exceeded_by(before.filter(|wait| throughout(wait)));
        if let Some(passed) = passed {
            if found.len() < TOLD {
                found.push(overtaken(history, item, operation, passed, &lives));
            } else {
                more += 1;
            }
        }
    }
    if more > 0 {
        found.push(Violation::new(
            format!("and {more} more deliveries like these"),
            [],
        ));
    }
    (found, ordered)
}

/// How many items that seem to wait at a time may be away.
#[derive(Clone, Copy)]
struct Conceded {
    all: usize,
    /// Of those that are [`counted`](Wait::counted).
    counted: usize,
}

impl Conceded {
    /// Whether these are more: then one that waited, first of those of which it is certain.
    fn exceeded_by<'a>(self, waits: impl Iterator<Item = &'a Wait>) -> Option<u64> {
        let (mut first, mut all, mut counted) = (None, 0, 0);
        for wait in waits {
            all += 1;
            counted += usize::from(wait.counted);
            first = first.or(Some(wait.item));
            if counted > self.counted {
                return Some(wait.item);
            }
            if all > self.all {
                return first;
            }
        }
        None
    }
}

fn overtaken(
    history: &[QueueOperation],
    item: u64,
    delivery: &QueueOperation,
    passed: u64,
    lives: &Lives<'_>,
) -> Violation {
    let life = &lives[&passed];
    let what = format!(
        "item {passed} was waiting and before it, but item {item} was delivered:\n    {delivery}\n  while of item {passed}:{}",
        life.told()
    );
    let of_it = life.lines().into_iter().chain([delivery]);
    Violation::new(what, places(history, of_it))
}

/// An item's priority, and when it was asked to be taken in.
fn enqueued(item: u64, lives: &Lives<'_>) -> Option<(u16, Duration)> {
    let enqueues = &lives.get(&item)?.enqueues;
    let enqueue = enqueues.iter().find(|enqueue| enqueue.possible())?;
    match enqueue.input {
        QueueCall::Enqueue { priority, .. } => Some((priority, enqueue.called)),
        _ => None,
    }
}

fn place(item: u64, lives: &Lives<'_>) -> Option<Place> {
    let enqueues = &lives.get(&item)?.enqueues;
    let enqueue = enqueues.iter().find(|enqueue| enqueue.answer().is_some())?;
    match enqueue.input {
        QueueCall::Enqueue { priority, .. } => Some((priority, enqueue.ended?, item)),
        _ => None,
    }
}

/// From when it was taken in, or given back, until somebody asked and got it.
fn waits(history: &[QueueOperation], lives: &Lives<'_>, leeway: &Leeway) -> Vec<Wait> {
    // What a pop of unknown fate took waits no more; which one that was, nobody knows.
    let popped = history
        .iter()
        .filter(|operation| operation.fate == Fate::Unknown && operation.input == QueueCall::Pop)
        .map(|operation| operation.called)
        .min();
    let mut waits = Vec::new();
    for (&item, life) in lives {
        // The token after which the next delivery ended the wait.
        let taken_in = life.enqueues.iter().map(|enqueue| (None, *enqueue));
        let returned = Life::done(&life.returns).map(|(token, back)| (Some(token), back));
        for (token, begin) in taken_in.chain(returned) {
            let Some(from) = begin.done_by() else {
                continue;
            };
            // No consumer popped an item that was delivered later.
            let deliveries = life.deliveries.iter();
            let later = deliveries.filter(|delivery| Some(delivery.token) > token);
            let later = later.map(|delivery| delivery.operation.called);
            let pops = life.pops.iter().map(|pop| pop.called);
            let next = later.chain(pops).min();
            let to = next.or(popped).unwrap_or(Duration::MAX);
            // By tokens, which those that nobody saw have, too.
            let count_of = |wanted: Option<u64>| {
                let known = life
                    .deliveries
                    .iter()
                    .find(|known| Some(known.token) == wanted);
                known.map(|known| known.count)
            };
            let last = token.map_or(Some(0), |token| count_of(Some(token)));
            let mut later = life.deliveries.iter();
            let next = later.find(|next| Some(next.token) > token);
            let raised_once = next.is_some_and(|next| last == next.count.checked_sub(1));
            let counted =
                raised_once && leeway.given_back.is_some() && !meets(&leeway.forgotten, from, to);
            if from < to {
                waits.push(Wait {
                    item,
                    from,
                    to,
                    counted,
                });
            }
        }
    }
    waits
}
