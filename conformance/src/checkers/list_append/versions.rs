//! The order of every list's appends, and what is wrong with single reads.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::{Anomaly, Class, Step, Transaction, name, told};
use crate::checkers::fencing::Violation;
use crate::checkers::operation::Fate;

/// A transaction's first look at a list, without what it had appended itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    pub(super) reader: usize,
    /// How many elements.
    pub(super) length: usize,
}

/// What is known of one list.
#[derive(Debug, Default)]
pub(super) struct List {
    /// The longest that was read: values in their order.
    pub(super) order: Vec<u64>,
    pub(super) seen: Vec<Seen>,
    /// Those who certainly appended, though nobody read it: they come after all the rest.
    pub(super) unread: Vec<usize>,
}

/// What is known of all lists.
#[derive(Debug, Default)]
pub(super) struct Versions {
    pub(super) lists: BTreeMap<u64, List>,
    /// Who appended a value to a key, and whether it was its last there.
    pub(super) writers: HashMap<(u64, u64), (usize, bool)>,
    /// Whether a transaction is known to have committed: by its answer, or since it was read.
    pub(super) committed: Vec<bool>,
}

struct Inference<'a> {
    history: &'a [Transaction],
    versions: Versions,
    anomalies: Vec<Anomaly>,
}

pub(super) fn infer(history: &[Transaction]) -> (Versions, Vec<Anomaly>) {
    let mut inference = Inference {
        history,
        versions: Versions::default(),
        anomalies: Vec::new(),
    };
    inference.index_writers();
    inference.look_at_reads();
    inference.judge_elements();
    inference.find_unread();
    inference.lost_updates();
    (inference.versions, inference.anomalies)
}

impl Inference<'_> {
    fn report(&mut self, class: Class, what: &str, transactions: Vec<usize>) {
        let told = told(self.history, &transactions);
        self.anomalies.push(Anomaly {
            class,
            real_time: false,
            violation: Violation(format!("{what}{told}")),
            transactions,
        });
    }

    fn index_writers(&mut self) {
        for (index, transaction) in self.history.iter().enumerate() {
            let done = transaction.answer().is_some();
            self.versions.committed.push(done);
            let mut later = HashSet::new();
            for step in transaction.input.iter().rev() {
                if let Step::Append { key, value } = *step {
                    let last = later.insert(key);
                    let writer = (index, last);
                    if let Some((first, _)) = self.versions.writers.insert((key, value), writer) {
                        let what = format!("value {value} was appended to list {key} twice");
                        self.report(Class::Impossible, &what, vec![first, index]);
                    }
                }
            }
        }
    }

    /// Takes the longest read of each list for its order, and compares the others with it.
    fn look_at_reads(&mut self) {
        let history = self.history;
        // The list as each first look saw it; all are compared when the longest is known.
        let mut looks: BTreeMap<u64, Vec<(usize, Look<'_>)>> = BTreeMap::new();
        for (index, transaction) in history.iter().enumerate() {
            let Some(lists) = transaction.answer() else {
                continue;
            };
            match looks_of(transaction, lists) {
                Ok(found) => {
                    for look in found {
                        looks.entry(look.key).or_default().push((index, look));
                    }
                }
                Err(what) => self.report(Class::Internal, &what, vec![index]),
            }
        }
        for (key, looks) in looks {
            let longest = looks.iter().max_by_key(|(_, look)| look.list.len());
            let Some(&(longest, Look { list: order, .. })) = longest else {
                continue;
            };
            let mut list = List {
                order: order.to_vec(),
                ..List::default()
            };
            for (reader, look) in looks {
                let (seen, length) = (look.list, look.others);
                if order.starts_with(seen) {
                    list.seen.push(Seen { reader, length });
                } else {
                    let place = seen.iter().zip(order).take_while(|(a, b)| a == b).count();
                    let what = format!(
                        "list {key} was read by {} with {} at place {place}, by {} with {}",
                        name(reader),
                        seen[place],
                        name(longest),
                        order[place],
                    );
                    self.report(Class::IncompatibleOrder, &what, vec![reader, longest]);
                }
            }
            self.versions.lists.insert(key, list);
        }
    }

    /// Every element has one writer, who committed, and reads end with what writers wrote last.
    fn judge_elements(&mut self) {
        let lists = std::mem::take(&mut self.versions.lists);
        for (&key, list) in &lists {
            let mut met = HashSet::new();
            for (place, &value) in list.order.iter().enumerate() {
                // Whoever saw this much can be blamed for it.
                let Some(reader) = list.seen.iter().find(|seen| seen.length > place) else {
                    continue;
                };
                let reader = reader.reader;
                if !met.insert(value) {
                    let what = format!("list {key} was read with {value} in it twice");
                    self.report(Class::Impossible, &what, vec![reader]);
                }
                let Some(&(writer, _)) = self.versions.writers.get(&(key, value)) else {
                    let what =
                        format!("list {key} was read with {value}, which nobody appended to it");
                    self.report(Class::Impossible, &what, vec![reader]);
                    continue;
                };
                if self.history[writer].fate == Fate::Failed {
                    let what = format!(
                        "{} read {value} in list {key}, which {} had appended before it aborted",
                        name(reader),
                        name(writer),
                    );
                    self.report(Class::G1a, &what, vec![reader, writer]);
                } else {
                    self.versions.committed[writer] = true;
                }
            }
            for seen in &list.seen {
                let last = seen.length.checked_sub(1).map(|last| list.order[last]);
                let writer = last.and_then(|last| self.versions.writers.get(&(key, last)).copied());
                if let (Some(last), Some((writer, false))) = (last, writer)
                    && writer != seen.reader
                {
                    let what = format!(
                        "{} read list {key} up to {last}, after which {} appended more",
                        name(seen.reader),
                        name(writer),
                    );
                    self.report(Class::G1b, &what, vec![seen.reader, writer]);
                }
            }
        }
        self.versions.lists = lists;
    }

    fn find_unread(&mut self) {
        let mut read: HashSet<(u64, u64)> = HashSet::new();
        for (&key, list) in &self.versions.lists {
            read.extend(list.order.iter().map(|value| (key, *value)));
        }
        for (index, transaction) in self.history.iter().enumerate() {
            if !self.versions.committed[index] {
                continue;
            }
            for step in &transaction.input {
                if let Step::Append { key, value } = *step
                    && !read.contains(&(key, value))
                {
                    let unread = &mut self.versions.lists.entry(key).or_default().unread;
                    if unread.last() != Some(&index) {
                        unread.push(index);
                    }
                }
            }
        }
    }

    fn lost_updates(&mut self) {
        let mut found = Vec::new();
        for (&key, list) in &self.versions.lists {
            let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for seen in &list.seen {
                if appends_after_read(&self.history[seen.reader], key) {
                    by_length.entry(seen.length).or_default().push(seen.reader);
                }
            }
            for (length, readers) in by_length {
                if readers.len() > 1 {
                    let what = format!(
                        "each of {} read list {key} with {length} elements, and then appended to it",
                        readers
                            .iter()
                            .map(|reader| name(*reader))
                            .collect::<Vec<_>>()
                            .join(", ")
                    );
                    found.push((what, readers));
                }
            }
        }
        for (what, readers) in found {
            self.report(Class::LostUpdate, &what, readers);
        }
    }
}

fn appends_after_read(transaction: &Transaction, wanted: u64) -> bool {
    transaction
        .input
        .iter()
        .skip_while(|step| !matches!(step, Step::Read { key } if *key == wanted))
        .any(|step| matches!(step, Step::Append { key, .. } if *key == wanted))
}

/// What a transaction saw of a list.
struct Look<'a> {
    key: u64,
    /// How many elements were there before its own.
    others: usize,
    /// All that it saw, in its last read.
    list: &'a [u64],
}

/// A transaction's looks at each list that it read; or why they contradict its own steps.
fn looks_of<'a>(transaction: &Transaction, lists: &'a [Vec<u64>]) -> Result<Vec<Look<'a>>, String> {
    let mut lists = lists.iter();
    // Few steps, so plain vectors do.
    let mut looks: Vec<Look<'a>> = Vec::new();
    let mut own: Vec<(u64, u64)> = Vec::new();
    for step in &transaction.input {
        let key = match *step {
            Step::Append { key, value } => {
                own.push((key, value));
                continue;
            }
            Step::Read { key } => key,
        };
        let Some(list) = lists.next() else {
            return Err("a transaction has fewer answers than reads".to_owned());
        };
        let mine = own.iter().filter(|(of, _)| *of == key);
        let mine: Vec<u64> = mine.map(|(_, value)| *value).collect();
        let Some(others) = list.strip_suffix(mine.as_slice()) else {
            return Err(format!(
                "list {key} was read as {list:?}, without the reader's own appends {mine:?}"
            ));
        };
        match looks.iter_mut().find(|look| look.key == key) {
            Some(look) if look.list[..look.others] != *others => {
                let before = &look.list[..look.others];
                return Err(format!(
                    "list {key} was read first as {before:?} and then, but for the reader's own appends, as {others:?}"
                ));
            }
            Some(look) => look.list = list,
            None => looks.push(Look {
                key,
                others: others.len(),
                list,
            }),
        }
    }
    Ok(looks)
}
