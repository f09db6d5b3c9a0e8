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

/// Who appended a value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Writer {
    pub(super) transaction: usize,
    /// What it had appended to the same list right before.
    before: Option<u64>,
    /// Whether it appended nothing more to that list.
    last: bool,
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
    /// By key and value.
    pub(super) writers: HashMap<(u64, u64), Writer>,
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
            violation: Violation::new(format!("{what}{told}"), transactions.clone()),
            transactions,
        });
    }

    fn index_writers(&mut self) {
        for (index, transaction) in self.history.iter().enumerate() {
            let done = transaction.answer().is_some();
            self.versions.committed.push(done);
            for step in &transaction.input {
                if let Step::Append { key, value } = *step {
                    self.index_writer(index, key, value);
                }
            }
        }
    }

    fn index_writer(&mut self, transaction: usize, key: u64, value: u64) {
        let mut own = self.history[transaction]
            .input
            .iter()
            .filter_map(|step| match *step {
                Step::Append { key: of, value } if of == key => Some(value),
                _ => None,
            });
        let mut before = None;
        while let Some(earlier) = own.next().filter(|earlier| *earlier != value) {
            before = Some(earlier);
        }
        let writer = Writer {
            transaction,
            before,
            last: own.next().is_none(),
        };
        if let Some(first) = self.versions.writers.insert((key, value), writer) {
            let what = format!("value {value} was appended to list {key} twice");
            self.report(
                Class::Impossible,
                &what,
                vec![first.transaction, transaction],
            );
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

    fn judge_elements(&mut self) {
        let lists = std::mem::take(&mut self.versions.lists);
        for (&key, list) in &lists {
            self.judge_order(key, list);
            self.judge_ends(key, list);
        }
        self.versions.lists = lists;
    }

    /// Every element is there once, was appended by one who may have committed, and comes after
    /// what its writer had appended before.
    fn judge_order(&mut self, key: u64, list: &List) {
        let mut met = HashSet::new();
        for (place, &value) in list.order.iter().enumerate() {
            let again = !met.insert(value);
            // Whoever saw this much can be blamed for it. What nobody else saw is its reader's own.
            let Some(seen) = list.seen.iter().find(|seen| seen.length > place) else {
                continue;
            };
            let reader = seen.reader;
            if again {
                let what = format!("list {key} was read with {value} in it twice");
                self.report(Class::Impossible, &what, vec![reader]);
            }
            let Some(&writer) = self.versions.writers.get(&(key, value)) else {
                let what = format!("list {key} was read with {value}, which nobody appended");
                self.report(Class::Impossible, &what, vec![reader]);
                continue;
            };
            let author = writer.transaction;
            if let Some(before) = writer.before.filter(|before| !met.contains(before)) {
                let what = format!(
                    "list {key} was read with {value}, but not with {before} before it, which {} had appended first",
                    name(author)
                );
                self.report(Class::IncompatibleOrder, &what, vec![reader, author]);
            }
            if self.history[author].fate == Fate::Failed {
                let what = format!(
                    "{} read {value} in list {key}, which {} had appended before it aborted",
                    name(reader),
                    name(author),
                );
                self.report(Class::G1a, &what, vec![reader, author]);
            } else {
                self.versions.committed[author] = true;
            }
        }
    }

    /// Every read ends with the last of what its writer appended.
    fn judge_ends(&mut self, key: u64, list: &List) {
        for seen in &list.seen {
            let Some(end) = seen.length.checked_sub(1).map(|end| list.order[end]) else {
                continue;
            };
            if let Some(&writer) = self.versions.writers.get(&(key, end))
                && !writer.last
                && writer.transaction != seen.reader
            {
                let what = format!(
                    "{} read list {key} up to {end}, after which {} appended more",
                    name(seen.reader),
                    name(writer.transaction),
                );
                self.report(Class::G1b, &what, vec![seen.reader, writer.transaction]);
            }
        }
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
        let early = |step: &&Step| matches!(step, Step::Append { key: of, value } if *of == key && others.contains(value));
        if let Some(early) = transaction.input.iter().find(early) {
            return Err(format!(
                "list {key} was read as {list:?} before the reader's own {early:?}"
            ));
        }
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
