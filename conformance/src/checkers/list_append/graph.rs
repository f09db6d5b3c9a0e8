//! What each transaction depends on.

use super::versions::{List, Versions};
use super::{Step, Transaction, name};

/// Why one transaction comes before another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Appended what the other's append followed.
    WriteWrite { key: u64, value: Option<u64> },
    /// Appended what the other read last.
    WriteRead { key: u64, value: u64 },
    /// Read the list as it was before the other's append.
    ReadWrite { key: u64, value: Option<u64> },
    /// Ended before the other began; by way of nodes that stand for moments.
    Time,
}

/// Sets of reasons, as bits.
pub(super) const WW: u8 = 1;
pub(super) const WR: u8 = 2;
pub(super) const RW: u8 = 4;
pub(super) const TIME: u8 = 8;

impl Why {
    pub(super) fn bit(self) -> u8 {
        match self {
            Self::WriteWrite { .. } => WW,
            Self::WriteRead { .. } => WR,
            Self::ReadWrite { .. } => RW,
            Self::Time => TIME,
        }
    }

    /// "T1 did something before T2".
    pub(super) fn words(self, from: usize, to: usize) -> String {
        let (from, to) = (name(from), name(to));
        let what = |value: Option<u64>| {
            value.map_or("a value that nobody read in time".to_owned(), |value| {
                value.to_string()
            })
        };
        match self {
            Self::WriteWrite { key, value } => format!(
                "{from} appended to list {key} right before {to} appended {}",
                what(value)
            ),
            Self::WriteRead { key, value } => {
                format!("{to} read {value} in list {key}, which {from} had appended")
            }
            Self::ReadWrite { key, value } => format!(
                "{from} read list {key} without {}, which {to} appended",
                what(value)
            ),
            Self::Time => format!("{from} had ended before {to} began"),
        }
    }
}

/// Nodes below `transactions` are transactions; those above are moments in time.
#[derive(Debug)]
pub(super) struct Graph {
    pub(super) transactions: usize,
    pub(super) edges: Vec<Vec<(usize, Why)>>,
}

impl Graph {
    fn add(&mut self, from: usize, to: usize, why: Why) {
        if from != to {
            self.edges[from].push((to, why));
        }
    }
}

pub(super) fn build(history: &[Transaction], versions: &Versions) -> Graph {
    let mut graph = Graph {
        transactions: history.len(),
        edges: vec![Vec::new(); history.len()],
    };
    for (&key, list) in &versions.lists {
        add_list(&mut graph, history, versions, key, list);
    }
    add_time(&mut graph, history, versions);
    graph
}

fn add_list(
    graph: &mut Graph,
    history: &[Transaction],
    versions: &Versions,
    key: u64,
    list: &List,
) {
    // An aborted writer is no part of the graph: that it was read is told as G1a.
    let writer = |place: usize| {
        let value = *list.order.get(place)?;
        let writer = versions.writers.get(&(key, value))?.transaction;
        versions.committed[writer].then_some((writer, value))
    };
    for place in 1..list.order.len() {
        if let (Some((before, _)), Some((after, value))) = (writer(place - 1), writer(place)) {
            let value = Some(value);
            graph.add(before, after, Why::WriteWrite { key, value });
        }
    }
    let last = list.order.len().checked_sub(1).and_then(writer);
    for &after in &list.unread {
        if let Some((before, _)) = last {
            let value = appended(&history[after], key);
            graph.add(before, after, Why::WriteWrite { key, value });
        }
    }
    for seen in &list.seen {
        if let Some((before, value)) = seen.length.checked_sub(1).and_then(writer) {
            graph.add(before, seen.reader, Why::WriteRead { key, value });
        }
        match overwriter(
            seen.reader,
            (seen.length..list.order.len()).filter_map(writer),
        ) {
            Some((after, value)) => {
                let value = Some(value);
                graph.add(seen.reader, after, Why::ReadWrite { key, value });
            }
            None => {
                for &after in &list.unread {
                    let value = appended(&history[after], key);
                    graph.add(seen.reader, after, Why::ReadWrite { key, value });
                }
            }
        }
    }
}

/// The first to write after the reader; its own appends don't count.
fn overwriter(
    reader: usize,
    mut writers: impl Iterator<Item = (usize, u64)>,
) -> Option<(usize, u64)> {
    writers.find(|(writer, _)| *writer != reader)
}

fn appended(transaction: &Transaction, wanted: u64) -> Option<u64> {
    transaction.input.iter().find_map(|step| match *step {
        Step::Append { key, value } if key == wanted => Some(value),
        _ => None,
    })
}

/// Real time takes as many edges as there are transactions: each end is a moment, the moments
/// follow one another, and a transaction begins after the last end before it.
fn add_time(graph: &mut Graph, history: &[Transaction], versions: &Versions) {
    let known = (0..history.len()).filter(|index| versions.committed[*index]);
    let mut ends: Vec<_> = known
        .clone()
        .filter_map(|index| Some((history[index].done_by()?, index)))
        .collect();
    ends.sort_unstable();
    let first = graph.edges.len();
    graph.edges.resize(first + ends.len(), Vec::new());
    for (place, (_, transaction)) in ends.iter().enumerate() {
        graph.add(*transaction, first + place, Why::Time);
        if place + 1 < ends.len() {
            graph.add(first + place, first + place + 1, Why::Time);
        }
    }
    for index in known {
        let before = ends.partition_point(|(end, _)| *end < history[index].called);
        if let Some(last) = before.checked_sub(1) {
            graph.add(first + last, index, Why::Time);
        }
    }
}
