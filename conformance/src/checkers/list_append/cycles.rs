//! Cycles among transactions, the worst kind first.

use std::collections::{HashMap, VecDeque};

use super::graph::{Graph, RW, TIME, WR, WW, Why};
use super::{Anomaly, Class, Transaction, told};
use crate::checkers::fencing::Violation;

/// How many steps are spent in all on finding cycles with one single read-write edge among knots
/// that are known to have some cycle. A history that takes more comes of a broken store, and is
/// still reported, perhaps as G2.
const STEPS: usize = 10_000_000;

/// The edge that makes a cycle one of its class, and those that the rest of it may have.
const CLASSES: [(Class, u8, u8); 4] = [
    (Class::G0, WW, WW),
    (Class::G1c, WR, WW | WR),
    (Class::GSingle, RW, WW | WR),
    (Class::G2, RW, WW | WR | RW),
];

/// One cycle for every knot (strongly connected component), of the worst class that it has. Real
/// time counts only if there is none without it, for it ties all knots into one.
pub(super) fn find(history: &[Transaction], graph: &Graph) -> Vec<Anomaly> {
    for time in [0, TIME] {
        let knots = knots(graph, WW | WR | RW | time);
        if knots.is_empty() {
            continue;
        }
        let mut search = Search::new(graph, time);
        let worst = knots.iter().filter_map(|knot| search.worst(knot));
        return worst
            .map(|cycle| tell(history, graph, &cycle, time != 0))
            .collect();
    }
    Vec::new()
}

type Cycle = (Class, Vec<(usize, Why)>);

struct Search<'a> {
    graph: &'a Graph,
    time: u8,
    /// For each class, the knot of each node in the graph of its edges, which has to be the same
    /// for both ends of an edge in a cycle.
    labels: Vec<Vec<usize>>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, time: u8) -> Self {
        let labels = CLASSES
            .iter()
            .map(|(_, needs, edges)| {
                let mut labels = vec![0; graph.edges.len()];
                for (label, knot) in (1..).zip(knots(graph, needs | edges | time)) {
                    knot.into_iter().for_each(|node| labels[node] = label);
                }
                labels
            })
            .collect();
        Self {
            graph,
            time,
            labels,
            steps: STEPS,
        }
    }

    fn worst(&mut self, knot: &[usize]) -> Option<Cycle> {
        for (place, &(class, needs, edges)) in CLASSES.iter().enumerate() {
            for &from in knot {
                for &(to, why) in &self.graph.edges[from] {
                    let together = self.labels[place][from] == self.labels[place][to];
                    if why.bit() != needs || !together || self.labels[place][from] == 0 {
                        continue;
                    }
                    if let Some(mut cycle) = self.path(place, (to, from), edges) {
                        cycle.insert(0, (from, why));
                        return Some((class, cycle));
                    }
                }
            }
        }
        None
    }

    /// The shortest way, each node with the reason for the step that leaves it.
    fn path(
        &mut self,
        place: usize,
        (from, to): (usize, usize),
        edges: u8,
    ) -> Option<Vec<(usize, Why)>> {
        let labels = &self.labels[place];
        // All others succeed at the first try.
        let limited = CLASSES[place].0 == Class::GSingle;
        let mut came: HashMap<usize, (usize, Why)> = HashMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            if node == to {
                return Some(walk_back(&came, from, to));
            }
            if limited {
                self.steps = self.steps.checked_sub(1)?;
            }
            for &(next, why) in &self.graph.edges[node] {
                let allowed = why.bit() & (edges | self.time) != 0;
                let fresh = next != from && !came.contains_key(&next);
                if allowed && fresh && labels[next] == labels[from] {
                    came.insert(next, (node, why));
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn walk_back(came: &HashMap<usize, (usize, Why)>, from: usize, to: usize) -> Vec<(usize, Why)> {
    let mut steps = Vec::new();
    let mut at = to;
    while at != from {
        let (before, why) = came[&at];
        steps.push((before, why));
        at = before;
    }
    steps.reverse();
    steps
}

fn tell(history: &[Transaction], graph: &Graph, cycle: &Cycle, real_time: bool) -> Anomaly {
    let (class, steps) = cycle;
    // Moments are no transactions: the way through them is one step in time.
    let steps: Vec<_> = steps
        .iter()
        .filter(|(node, _)| *node < graph.transactions)
        .copied()
        .collect();
    let mut words = format!("a cycle of {} transactions:", steps.len());
    for (place, (from, why)) in steps.iter().enumerate() {
        let (to, _) = steps[(place + 1) % steps.len()];
        words.push_str("\n  ");
        words.push_str(&why.words(*from, to));
    }
    let transactions: Vec<usize> = steps.iter().map(|(node, _)| *node).collect();
    words.push_str("\n  where");
    words.push_str(&told(history, &transactions));
    Anomaly {
        class: *class,
        real_time,
        violation: Violation::new(words, transactions.clone()),
        transactions,
    }
}

/// The strongly connected components of more than one node (R. Tarjan, 1972), without recursion:
/// a history is deeper than a stack.
fn knots(graph: &Graph, edges: u8) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let count = graph.edges.len();
    let (mut order, mut low) = (vec![NEW; count], vec![0; count]);
    let (mut open, mut stack) = (vec![false; count], Vec::new());
    let (mut next, mut found) = (0, Vec::new());
    for root in 0..count {
        if order[root] != NEW {
            continue;
        }
        // A node, and how many of its edges were followed.
        let mut calls = vec![(root, 0)];
        while let Some((node, edge)) = calls.last_mut() {
            let node = *node;
            if *edge == 0 {
                (order[node], low[node], open[node]) = (next, next, true);
                next += 1;
                stack.push(node);
            }
            let follow = graph.edges[node][*edge..]
                .iter()
                .position(|(_, why)| why.bit() & edges != 0);
            if let Some(skipped) = follow {
                let (to, _) = graph.edges[node][*edge + skipped];
                *edge += skipped + 1;
                if order[to] == NEW {
                    calls.push((to, 0));
                } else if open[to] {
                    low[node] = low[node].min(order[to]);
                }
                continue;
            }
            calls.pop();
            if let Some((caller, _)) = calls.last() {
                low[*caller] = low[*caller].min(low[node]);
            }
            if low[node] == order[node] {
                let at = stack.iter().rposition(|other| *other == node).unwrap_or(0);
                let knot = stack.split_off(at);
                for member in &knot {
                    open[*member] = false;
                }
                if knot.len() > 1 {
                    found.push(knot);
                }
            }
        }
    }
    found
}
