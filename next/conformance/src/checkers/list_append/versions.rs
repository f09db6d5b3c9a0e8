//! The order of each list's appends, and the anomalies that single reads show.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::super::journal::Outcome;
use super::{Anomaly, Class, Step, Transaction};

/// The writer of a value.
#[derive(Clone, Copy)]
pub(super) struct Writer {
    pub(super) transaction: usize,
    /// The value that it had appended to the same list before.
    before: Option<u64>,
    /// Whether it appended nothing more to the list.
    last: bool,
}

/// A transaction's view of a list, without its own appends.
#[derive(Clone, Copy)]
pub(super) struct View {
    pub(super) reader: usize,
    pub(super) length: usize,
}

/// The versions of one list that the reads reveal.
#[derive(Default)]
pub(super) struct List {
    /// The longest read.
    pub(super) order: Vec<u64>,
    pub(super) views: Vec<View>,
    /// The transactions whose appends were never read, which come after all others, with one of these values.
    pub(super) unread: Vec<(usize, u64)>,
}

/// The versions of all lists that the reads reveal.
#[derive(Default)]
pub(super) struct Versions {
    pub(super) lists: BTreeMap<u64, List>,
    /// By list and value.
    pub(super) writers: HashMap<(u64, u64), Writer>,
    /// Whether each transaction is known to have committed.
    pub(super) committed: Vec<bool>,
}

pub(super) fn infer(history: &[Transaction]) -> (Versions, Vec<Anomaly>) {
    let mut anomalies = Vec::new();
    let mut versions = Versions {
        committed: history.iter().map(|t| t.answer().is_some()).collect(),
        ..Versions::default()
    };
    index_writers(history, &mut versions, &mut anomalies);
    for (key, reads) in reads(history, &mut anomalies) {
        let list = judge_list(history, &mut versions, &mut anomalies, key, &reads);
        versions.lists.insert(key, list);
    }
    find_unread(history, &mut versions);
    (versions, anomalies)
}

/// Returns the appends of a transaction.
fn appends(transaction: &Transaction) -> impl DoubleEndedIterator<Item = (u64, u64)> + '_ {
    transaction.input.0.iter().filter_map(|step| match *step {
        Step::Append { key, value } => Some((key, value)),
        Step::Read { .. } => None,
    })
}

fn index_writers(history: &[Transaction], versions: &mut Versions, found: &mut Vec<Anomaly>) {
    for (index, transaction) in history.iter().enumerate() {
        let mut last: HashMap<u64, u64> = HashMap::new();
        for (key, value) in appends(transaction) {
            let before = last.insert(key, value);
            if let Some(before) = before
                && let Some(earlier) = versions.writers.get_mut(&(key, before))
            {
                earlier.last = false;
            }
            let writer = Writer {
                transaction: index,
                before,
                last: true,
            };
            if let Some(first) = versions.writers.insert((key, value), writer) {
                let what = format!("the workload appended {value} to list {key} twice");
                let both = [first.transaction, index];
                found.push(Anomaly::new(history, Class::Impossible, &what, both));
            }
        }
    }
}

/// One transaction's reads of one list.
struct Read<'a> {
    view: View,
    /// The last read, with the reader's own appends.
    list: &'a [u64],
    /// Whether the reader then appended to the list.
    updates: bool,
}

/// Returns the reads of each list, without those that contradict the steps of their own transaction.
fn reads<'a>(history: &'a [Transaction], found: &mut Vec<Anomaly>) -> BTreeMap<u64, Vec<Read<'a>>> {
    let mut reads: BTreeMap<u64, Vec<Read<'a>>> = BTreeMap::new();
    for (index, transaction) in history.iter().enumerate() {
        match reads_of(index, transaction) {
            Ok(own) => {
                for (key, read) in own {
                    reads.entry(key).or_default().push(read);
                }
            }
            Err(what) => found.push(Anomaly::new(history, Class::Internal, &what, [index])),
        }
    }
    reads
}

fn reads_of(reader: usize, transaction: &Transaction) -> Result<Vec<(u64, Read<'_>)>, String> {
    let Some(answer) = transaction.answer() else {
        return Ok(Vec::new());
    };
    let mut lists = answer.0.iter();
    // A transaction has few steps: vectors are enough.
    let mut reads: Vec<(u64, Read<'_>)> = Vec::new();
    let mut own: Vec<(u64, u64)> = Vec::new();
    for step in &transaction.input.0 {
        let key = match *step {
            Step::Append { key, value } => {
                own.push((key, value));
                if let Some((_, read)) = reads.iter_mut().find(|(of, _)| *of == key) {
                    read.updates = true;
                }
                continue;
            }
            Step::Read { key } => key,
        };
        let list = lists.next().ok_or("there are fewer answers than reads")?;
        let mine = own.iter().filter(|(of, _)| *of == key);
        let mine: Vec<u64> = mine.map(|(_, value)| *value).collect();
        let others = list
            .strip_suffix(mine.as_slice())
            .ok_or_else(|| format!("list {key} was read without the reader's own appends {mine:?}"))?;
        if let Some((_, own)) = appends(transaction).find(|(of, value)| *of == key && others.contains(value)) {
            return Err(format!(
                "list {key} was read with {own}, which the reader appended later"
            ));
        }
        match reads.iter_mut().find(|(of, _)| *of == key) {
            Some((_, read)) if read.list[..read.view.length] != *others => {
                return Err(format!("list {key} changed between two reads of one transaction"));
            }
            Some((_, read)) => read.list = list,
            None => {
                let view = View {
                    reader,
                    length: others.len(),
                };
                let updates = false;
                reads.push((key, Read { view, list, updates }));
            }
        }
    }
    Ok(reads)
}

/// Takes the longest read of a list as the order of its appends, and judges all reads by it.
fn judge_list(
    history: &[Transaction],
    versions: &mut Versions,
    found: &mut Vec<Anomaly>,
    key: u64,
    reads: &[Read<'_>],
) -> List {
    let mut list = List::default();
    let Some(longest) = reads.iter().max_by_key(|read| read.list.len()) else {
        return list;
    };
    let reader = longest.view.reader;
    list.order = longest.list.to_vec();
    for read in reads {
        if list.order.starts_with(read.list) {
            list.views.push(read.view);
        } else {
            let what = format!(
                "no order of list {key} explains both {:?} and {:?}",
                read.list, list.order
            );
            let both = [read.view.reader, reader];
            found.push(Anomaly::new(history, Class::IncompatibleOrder, &what, both));
        }
    }
    let mut report = |class, what: String, other: usize, reader: usize| {
        found.push(Anomaly::new(history, class, &what, [other, reader]));
    };
    let mut met = HashSet::new();
    for &value in &list.order {
        if !met.insert(value) {
            report(
                Class::Impossible,
                format!("list {key} was read with {value} twice"),
                reader,
                reader,
            );
        }
        let Some(writer) = versions.writers.get(&(key, value)) else {
            let what = format!("list {key} was read with {value}, which was never appended");
            report(Class::Impossible, what, reader, reader);
            continue;
        };
        let author = writer.transaction;
        if let Some(before) = writer.before.filter(|before| !met.contains(before)) {
            let what = format!(
                "list {key} was read with {value}, but without {before} before it, which #{author} appended first"
            );
            report(Class::IncompatibleOrder, what, author, reader);
        }
        if history[author].outcome == Outcome::Failed {
            let what = format!("#{reader} read {value} in list {key}, which #{author} appended before it aborted");
            report(Class::G1a, what, author, reader);
        } else {
            versions.committed[author] = true;
        }
    }
    for view in &list.views {
        let (reader, end) = (view.reader, view.length.checked_sub(1));
        let end = end.map(|end| list.order[end]);
        let writer = end.and_then(|end| versions.writers.get(&(key, end)));
        if let (Some(end), Some(writer)) = (end, writer)
            && !writer.last
            && writer.transaction != reader
        {
            let author = writer.transaction;
            let what = format!("#{reader} read list {key} up to {end}, after which #{author} appended more");
            report(Class::G1b, what, author, reader);
        }
    }
    let mut updaters: HashMap<usize, usize> = HashMap::new();
    for read in reads.iter().filter(|read| read.updates) {
        let View { reader, length } = read.view;
        if let Some(other) = updaters.insert(length, reader) {
            let what =
                format!("#{other} and #{reader} both read list {key} with {length} values, and then appended to it");
            report(Class::LostUpdate, what, other, reader);
        }
    }
    list
}

fn find_unread(history: &[Transaction], versions: &mut Versions) {
    let read: HashSet<(u64, u64)> = versions
        .lists
        .iter()
        .flat_map(|(key, list)| list.order.iter().map(|value| (*key, *value)))
        .collect();
    for (index, transaction) in history.iter().enumerate() {
        if !versions.committed[index] {
            continue;
        }
        for (key, value) in appends(transaction).filter(|append| !read.contains(append)) {
            let unread = &mut versions.lists.entry(key).or_default().unread;
            if unread.last().is_none_or(|(last, _)| *last != index) {
                unread.push((index, value));
            }
        }
    }
}
