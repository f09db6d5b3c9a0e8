//! The dependencies among transactions.

use super::Transaction;
use super::versions::{List, Versions};

/// The reason why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Edge {
    /// It appended what the other's append of `value` follows.
    WriteWrite { key: u64, value: u64 },
    /// It appended `value`, which the other read last.
    WriteRead { key: u64, value: u64 },
    /// It read the list without `value`, which the other appended.
    ReadWrite { key: u64, value: u64 },
    /// It ended before the other began; by way of nodes that are instants.
    Time,
}

/// Sets of kinds of edges.
pub(super) const WW: u8 = 1;
pub(super) const WR: u8 = 2;
pub(super) const RW: u8 = 4;
pub(super) const TIME: u8 = 8;

impl Edge {
    pub(super) const fn kind(self) -> u8 {
        match self {
            Self::WriteWrite { .. } => WW,
            Self::WriteRead { .. } => WR,
            Self::ReadWrite { .. } => RW,
            Self::Time => TIME,
        }
    }

    /// Describes the edge from one transaction to another.
    pub(super) fn describe(self, from: usize, to: usize) -> String {
        match self {
            Self::WriteWrite { key, value } => {
                format!("ww: #{from} appended to list {key} before #{to} appended {value}")
            }
            Self::WriteRead { key, value } => {
                format!("wr: #{from} appended {value} to list {key}, which #{to} read")
            }
            Self::ReadWrite { key, value } => {
                format!("rw: #{from} read list {key} without {value}, which #{to} appended")
            }
            Self::Time => format!("time: #{from} ended before #{to} began"),
        }
    }
}

/// The nodes below `transactions` are transactions, the others instants.
pub(super) struct Graph {
    pub(super) transactions: usize,
    pub(super) edges: Vec<Vec<(usize, Edge)>>,
}

impl Graph {
    pub(super) fn new(history: &[Transaction], versions: &Versions) -> Self {
        let mut graph = Self {
            transactions: history.len(),
            edges: vec![Vec::new(); history.len()],
        };
        for (&key, list) in &versions.lists {
            graph.add_list(versions, key, list);
        }
        graph.add_time(history, versions);
        graph
    }

    fn add(&mut self, from: usize, to: usize, edge: Edge) {
        if from != to {
            self.edges[from].push((to, edge));
        }
    }

    fn add_list(&mut self, versions: &Versions, key: u64, list: &List) {
        // An aborted writer is not part of the graph: a read of its append is reported as G1a.
        let writer = |place: usize| {
            let value = *list.order.get(place)?;
            let writer = versions.writers.get(&(key, value))?.transaction;
            versions.committed[writer].then_some((writer, value))
        };
        for place in 1..list.order.len() {
            if let (Some((before, _)), Some((after, value))) = (writer(place - 1), writer(place)) {
                self.add(before, after, Edge::WriteWrite { key, value });
            }
        }
        if let Some((before, _)) = list.order.len().checked_sub(1).and_then(writer) {
            for &(after, value) in &list.unread {
                self.add(before, after, Edge::WriteWrite { key, value });
            }
        }
        for view in &list.views {
            let reader = view.reader;
            if let Some((before, value)) = view.length.checked_sub(1).and_then(writer) {
                self.add(before, reader, Edge::WriteRead { key, value });
            }
            let mut later = (view.length..list.order.len()).filter_map(writer);
            match later.find(|(writer, _)| *writer != reader) {
                Some((after, value)) => self.add(reader, after, Edge::ReadWrite { key, value }),
                None => {
                    for &(after, value) in &list.unread {
                        self.add(reader, after, Edge::ReadWrite { key, value });
                    }
                }
            }
        }
    }

    /// Adds real time with as many edges as there are transactions: each end is an instant, the instants follow one
    /// another, and a transaction begins after the last end before it.
    fn add_time(&mut self, history: &[Transaction], versions: &Versions) {
        let committed = (0..history.len()).filter(|index| versions.committed[*index]);
        let ends = committed
            .clone()
            .filter_map(|index| Some((history[index].returned?, index)));
        let mut ends: Vec<(u64, usize)> = ends.collect();
        ends.sort_unstable();
        let first = self.edges.len();
        self.edges.resize(first + ends.len(), Vec::new());
        for (place, (_, transaction)) in ends.iter().enumerate() {
            self.add(*transaction, first + place, Edge::Time);
            if place + 1 < ends.len() {
                self.add(first + place, first + place + 1, Edge::Time);
            }
        }
        for index in committed {
            let before = ends.partition_point(|(end, _)| *end < history[index].invoked);
            if let Some(last) = before.checked_sub(1) {
                self.add(first + last, index, Edge::Time);
            }
        }
    }
}
