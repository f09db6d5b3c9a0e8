//! The order of deliveries: a sweep over the times in which each item certainly waited.

use super::super::sequence::Violation;
use super::{Life, QueueAnswer, QueueCall, QueueOperation, Unseen, lives, unknown_pops};

/// The contents of a history without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Deliveries, and answers that the queue was empty.
    pub judged: usize,
    /// Those during which more other items waited than are conceded: only these can break the order.
    pub ordered: usize,
}

/// The place of an item: its priority, and the instant by which it was accepted, or from which it can have been.
type Place = (u16, u64);

/// A time in which an item certainly waited, and no client is known to have had it.
struct Wait {
    place: Place,
    item: u64,
    from: u64,
    to: u64,
}

/// One taking of an item, or an answer that there was none.
struct Take {
    operation: usize,
    /// The item and the first place that it can have had; `None` for an empty queue.
    item: Option<(u64, Place)>,
}

/// Judges the order: no item is delivered, and the queue is not empty, while another certainly waits before it: one of
/// a lower priority number, or of the same one and accepted before the enqueue of the other began. An item that was
/// returned keeps its place.
///
/// # Errors
///
/// The first violation.
pub fn check_order(history: &[QueueOperation]) -> Result<Order, Violation> {
    let lives = lives(history)?;
    let unseen = Unseen::new(history);
    let first_pop = unknown_pops(history).min().unwrap_or(u64::MAX);
    let mut waits: Vec<Wait> = Vec::new();
    let mut takes: Vec<Take> = Vec::new();
    for (&item, life) in &lives {
        waits.extend(waits_of(history, item, life, first_pop));
        if let Some((enqueue, priority)) = life.enqueue.and_then(|index| enqueued(history, index)) {
            let place = (priority, enqueue.invoked);
            let taken = life.deliveries.iter().map(|delivery| delivery.operation);
            takes.extend(taken.chain(life.pops.iter().copied()).map(|operation| Take {
                operation,
                item: Some((item, place)),
            }));
        }
    }
    for (operation, op) in history.iter().enumerate() {
        let empty = match op.answer() {
            Some(QueueAnswer::Delivered(items)) => items.is_empty(),
            Some(QueueAnswer::Popped(item)) => item.is_none(),
            _ => false,
        };
        if empty {
            takes.push(Take { operation, item: None });
        }
    }
    waits.sort_unstable_by_key(|wait| wait.place);
    takes.sort_by_key(|take| history[take.operation].invoked);

    let mut tree = MaxTree::new(waits.len());
    let mut by_begin: Vec<usize> = (0..waits.len()).collect();
    by_begin.sort_unstable_by_key(|leaf| waits[*leaf].from);
    let mut begun = by_begin.into_iter().peekable();
    let mut order = Order::default();
    for take in takes {
        let op = &history[take.operation];
        while let Some(leaf) = begun.next_if(|leaf| waits[*leaf].from < op.invoked) {
            tree.raise(leaf, waits[leaf].to);
        }
        let conceded = unseen.between(op.invoked, op.latest());
        order.judged += 1;
        order.ordered += usize::from(tree.nth_above(waits.len(), op.latest(), conceded).is_some());
        let before = match take.item {
            Some((_, place)) => waits.partition_point(|wait| wait.place < place),
            None => waits.len(),
        };
        if let Some(leaf) = tree.nth_above(before, op.latest(), conceded) {
            let passed = waits[leaf].item;
            let what = match take.item {
                Some((item, _)) => {
                    format!("item {item} was delivered while item {passed} waited before it")
                }
                None => format!("the queue was empty while item {passed} waited"),
            };
            let both = take.item.map(|(item, _)| item).into_iter().chain([passed]);
            let operations = both.filter_map(|item| lives.get(&item)).flat_map(Life::operations);
            return Err(Violation::new(history, what, operations.chain([take.operation])));
        }
    }
    Ok(order)
}

/// Returns the enqueue, with the item's priority, if it may have been accepted.
fn enqueued(history: &[QueueOperation], index: usize) -> Option<(&QueueOperation, u16)> {
    match history[index].input {
        QueueCall::Enqueue { priority, .. } if history[index].is_possible() => Some((&history[index], priority)),
        _ => None,
    }
}

/// Returns when an item waited: from its acceptance, or its return, until the next request that received it was called.
fn waits_of<'a>(
    history: &'a [QueueOperation],
    item: u64,
    life: &'a Life,
    first_pop: u64,
) -> impl Iterator<Item = Wait> + 'a {
    let enqueue = life.enqueue.and_then(|index| enqueued(history, index));
    let enqueue = enqueue.filter(|(op, _)| op.answer().is_some());
    let place = enqueue.map(|(op, priority)| (priority, op.latest()));
    let begins = life.enqueue.map(|index| (0, index));
    let begins = begins.into_iter().chain(life.steps.iter().copied());
    begins.filter_map(move |(token, index)| {
        let op = &history[index];
        let visible = match op.input {
            QueueCall::Enqueue { delayed, .. } | QueueCall::Nack { delayed, .. } => !delayed,
            _ => false,
        };
        let from = op.latest();
        let is_enqueue = Some(index) == life.enqueue;
        let later = life.deliveries.iter();
        let later = later.filter(|later| is_enqueue || later.token > token);
        let later = later.map(|later| later.operation).chain(life.pops.iter().copied());
        let to = later.map(|index| history[index].invoked).min().unwrap_or(first_pop);
        let place = place.filter(|_| visible && op.answer() == Some(&QueueAnswer::Done))?;
        (from < to).then_some(Wait { place, item, from, to })
    })
}

/// Numbers at places, 0 at first, of which those above a limit are found in order of their places.
struct MaxTree {
    leaves: usize,
    nodes: Vec<u64>,
}

impl MaxTree {
    fn new(count: usize) -> Self {
        let leaves = count.next_power_of_two();
        Self {
            leaves,
            nodes: vec![0; 2 * leaves],
        }
    }

    fn raise(&mut self, leaf: usize, number: u64) {
        let mut node = leaf + self.leaves;
        while node > 0 {
            self.nodes[node] = self.nodes[node].max(number);
            node /= 2;
        }
    }

    /// Returns the leaf of the number after the first `skip` ones above `limit`, among the first `count` leaves. Takes
    /// O(skip log n).
    fn nth_above(&self, count: usize, limit: u64, mut skip: usize) -> Option<usize> {
        // Nodes to visit, each with its first leaf and the number of its leaves.
        let mut open = vec![(1, 0, self.leaves)];
        while let Some((node, first, width)) = open.pop() {
            if first >= count || self.nodes[node] <= limit {
                continue;
            }
            if width > 1 {
                let half = width / 2;
                open.push((2 * node + 1, first + half, half));
                open.push((2 * node, first, half));
            } else if skip == 0 {
                return Some(first);
            } else {
                skip -= 1;
            }
        }
        None
    }
}
