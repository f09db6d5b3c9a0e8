//! The shortest cycle of the worst class in each strongly connected component.

use std::collections::{HashMap, VecDeque};

use super::graph::{Edge, Graph, RW, TIME, WR, WW};
use super::{Anomaly, Class, Transaction};

/// How many edges all searches together may follow. A history that takes more has many anomalies, of which the shortest
/// one so far is reported.
const STEPS: usize = 4_000_000;

/// Each class, with the edge that makes a cycle one of it, and the other edges that the cycle may have.
const CLASSES: [(Class, u8, u8); 4] = [
    (Class::G0, WW, WW),
    (Class::G1c, WR, WW | WR),
    (Class::GSingle, RW, WW | WR),
    (Class::G2, RW, WW | WR | RW),
];

/// The nodes of a cycle, each with the edge that leaves it.
type Cycle = Vec<(usize, Edge)>;

/// The distance of each node that a search has reached, and the step that led to it.
type Reached = HashMap<usize, (usize, Option<(usize, Edge)>)>;

/// Finds the cycles of dependencies. Real time counts only if there are none: it connects all components.
pub(super) fn find(history: &[Transaction], graph: &Graph) -> Vec<Anomaly> {
    for time in [0, TIME] {
        let components = components(graph, WW | WR | RW | time);
        if components.is_empty() {
            continue;
        }
        let mut search = Search::new(graph, time);
        let worst = components.iter().filter_map(|component| search.worst(component));
        return worst
            .map(|(class, cycle)| describe(history, class, &cycle, time != 0))
            .collect();
    }
    Vec::new()
}

fn describe(history: &[Transaction], class: Class, cycle: &Cycle, real_time: bool) -> Anomaly {
    // A way over instants is one step in time.
    let steps: Vec<_> = cycle.iter().filter(|(node, _)| *node < history.len()).collect();
    let suffix = if real_time { ", with real time" } else { "" };
    let mut what = format!("a cycle of {} transactions{suffix}:", steps.len());
    for (place, (from, edge)) in steps.iter().enumerate() {
        let (to, _) = steps[(place + 1) % steps.len()];
        what.push_str("\n  ");
        what.push_str(&edge.describe(*from, *to));
    }
    let nodes = steps.iter().map(|(node, _)| *node);
    Anomaly {
        real_time,
        ..Anomaly::new(history, class, &what, nodes)
    }
}

struct Search<'a> {
    graph: &'a Graph,
    time: u8,
    /// For each class, the component of each node in the graph of its edges, 0 for none.
    labels: Vec<Vec<usize>>,
    steps: usize,
}

impl<'a> Search<'a> {
    fn new(graph: &'a Graph, time: u8) -> Self {
        let label = |(_, needs, edges): &(Class, u8, u8)| {
            let mut labels = vec![0; graph.edges.len()];
            for (label, component) in (1..).zip(components(graph, needs | edges | time)) {
                component.into_iter().for_each(|node| labels[node] = label);
            }
            labels
        };
        Self {
            graph,
            time,
            labels: CLASSES.iter().map(label).collect(),
            steps: STEPS,
        }
    }

    fn worst(&mut self, component: &[usize]) -> Option<(Class, Cycle)> {
        (0..CLASSES.len()).find_map(|class| {
            let cycle = self.shortest(class, component)?;
            Some((CLASSES[class].0, cycle))
        })
    }

    fn shortest(&mut self, class: usize, component: &[usize]) -> Option<Cycle> {
        let (_, needs, _) = CLASSES[class];
        let (graph, mut best, mut length) = (self.graph, None, usize::MAX);
        for &from in component {
            for &(to, edge) in &graph.edges[from] {
                let label = self.labels[class][from];
                if edge.kind() != needs || label == 0 || self.labels[class][to] != label {
                    continue;
                }
                if let Some((distance, mut cycle)) = self.path(class, to, from, length) {
                    cycle.insert(0, (from, edge));
                    (best, length) = (Some(cycle), distance);
                    if distance == 1 {
                        return best;
                    }
                }
            }
        }
        best
    }

    /// Returns the shortest way of less than `limit` edges. An edge that ends at an instant is free.
    fn path(&mut self, class: usize, from: usize, to: usize, limit: usize) -> Option<(usize, Cycle)> {
        let (_, _, edges) = CLASSES[class];
        let labels = &self.labels[class];
        let mut reached = Reached::from([(from, (0, None))]);
        let mut open = VecDeque::from([(from, 0)]);
        while let Some((node, distance)) = open.pop_front() {
            if node == to {
                return Some((distance, walk_back(&reached, to)));
            }
            if distance > reached[&node].0 {
                continue;
            }
            for &(next, edge) in &self.graph.edges[node] {
                self.steps = self.steps.checked_sub(1)?;
                let cost = usize::from(next < self.graph.transactions);
                let there = distance + cost;
                if edge.kind() & (edges | self.time) == 0
                    || labels[next] != labels[from]
                    || there >= limit
                    || reached.get(&next).is_some_and(|(known, _)| *known <= there)
                {
                    continue;
                }
                reached.insert(next, (there, Some((node, edge))));
                match cost {
                    0 => open.push_front((next, there)),
                    _ => open.push_back((next, there)),
                }
            }
        }
        None
    }
}

fn walk_back(reached: &Reached, to: usize) -> Cycle {
    let mut steps = Vec::new();
    let mut node = to;
    while let Some((before, edge)) = reached[&node].1 {
        steps.push((before, edge));
        node = before;
    }
    steps.reverse();
    steps
}

/// Returns the strongly connected components of more than one node (R. Tarjan, 1972), without recursion: a history is
/// deeper than a stack.
fn components(graph: &Graph, kinds: u8) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let count = graph.edges.len();
    let (mut order, mut low) = (vec![NEW; count], vec![0; count]);
    let (mut open, mut stack) = (vec![false; count], Vec::new());
    let (mut next, mut found) = (0, Vec::new());
    for root in 0..count {
        if order[root] != NEW {
            continue;
        }
        // Each node with the number of its edges that were followed.
        let mut calls = vec![(root, 0)];
        while let Some((node, edge)) = calls.last_mut() {
            let node = *node;
            if order[node] == NEW {
                (order[node], low[node], open[node]) = (next, next, true);
                next += 1;
                stack.push(node);
            }
            if let Some(&(to, reason)) = graph.edges[node].get(*edge) {
                *edge += 1;
                if reason.kind() & kinds == 0 {
                    continue;
                }
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
                let component = stack.split_off(at);
                component.iter().for_each(|member| open[*member] = false);
                if component.len() > 1 {
                    found.push(component);
                }
            }
        }
    }
    found
}
