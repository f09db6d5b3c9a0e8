//! Who was overtaken: a sweep over the times in which each item certainly waited.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use super::{Life, Lives, Unseen, lives};
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
}

/// The place of an item in the order: its priority, and by when it had been taken in.
type Place = (u16, Duration, u64);

/// Every delivery that passed over an item which certainly waited throughout, and which was of
/// lower number in priority, or of the same and taken in before the other was asked to be.
///
/// A dequeue of unknown fate may have had the item that seems to wait: a delivery with no more
/// such items than there had been such dequeues is not reported. So long after its call a dequeue of
/// unknown fate has nothing any more: `away`.
pub fn overtakings(history: &[QueueOperation], away: Duration) -> Vec<Violation> {
    let lives = lives(history);
    let unseen = Unseen::of(history);
    let mut waits = waits(history, &lives);
    // The next to begin is at the end.
    waits.sort_by_key(|wait| Reverse(wait.from));
    let mut deliveries: Vec<_> = lives
        .iter()
        .flat_map(|(item, life)| {
            life.deliveries
                .iter()
                .map(move |delivery| (*item, delivery))
        })
        .collect();
    deliveries.sort_by_key(|(_, delivery)| delivery.operation.called);

    let mut waiting: BTreeMap<Place, Wait> = BTreeMap::new();
    let (mut found, mut more) = (Vec::new(), 0);
    for (item, delivery) in deliveries {
        let operation = delivery.operation;
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
        let conceded = unseen.between(operation.called, ended, away);
        let mut over = Vec::new();
        let mut passed: Vec<u64> = Vec::new();
        // Those before it are few in a good run: what lies ahead is taken first.
        for (place, wait) in waiting.range(..(priority, asked, 0)) {
            if wait.to < operation.called {
                over.push(*place);
            } else if wait.to > ended && wait.item != item {
                passed.push(wait.item);
                if passed.len() > conceded {
                    break;
                }
            }
        }
        for place in over {
            waiting.remove(&place);
        }
        if passed.len() > conceded {
            if found.len() < TOLD {
                found.push(overtaken(history, item, operation, passed[0], &lives));
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
    found
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
fn waits(history: &[QueueOperation], lives: &Lives<'_>) -> Vec<Wait> {
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
            let to = life
                .deliveries
                .iter()
                .filter(|delivery| Some(delivery.token) > token)
                .map(|delivery| delivery.operation.called)
                .chain(popped)
                .min()
                .unwrap_or(Duration::MAX);
            if from < to {
                waits.push(Wait { item, from, to });
            }
        }
    }
    waits
}
