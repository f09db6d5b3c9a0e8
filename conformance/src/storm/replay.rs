//! The verdict of a recorded run or history again, and its lists in the form that Elle reads.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use serde::Deserialize;

use super::judge::{self, Histories};
use super::{Verdict, verdict};
use crate::case::Outcome;
use crate::checkers::Fate;
use crate::checkers::list_append::{Step, Transaction};

#[derive(Deserialize)]
struct Header {
    history: String,
}

/// What the file holds, by its first line.
fn kind(path: &Path) -> io::Result<String> {
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut first = String::new();
    let mut file = BufReader::new(File::open(path).map_err(named)?);
    file.read_line(&mut first).map_err(named)?;
    let header: Header = serde_json::from_str(&first).map_err(|error| {
        let what = format!("{}: not a history: {error}", path.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })?;
    Ok(header.history)
}

/// Gives the verdict of a file again: of a run (`...-run.jsonl`) with all that its verdict used, or of a single history
/// alone, where no client is excused.
///
/// # Errors
///
/// The file that could not be read, and why; a kind of history that is not judged alone.
pub fn replay(path: &Path) -> io::Result<Verdict> {
    let kind = kind(path)?;
    if kind == "run" {
        let histories = Histories::read(path)?;
        if let Err(broken) = judge::judge(&histories) {
            return Ok(verdict(broken));
        }
        let evidence = histories.evidence;
        return Ok(match (evidence.stopped, evidence.insufficient) {
            (Some(stopped), _) if stopped.violated => verdict(Outcome::violated(stopped.why)),
            (Some(stopped), _) => Verdict::Invalid { why: stopped.why },
            (None, Some(why)) => Verdict::Invalid { why },
            (None, None) => Verdict::Passed,
        });
    }
    match judge::judge_alone(path, &kind)? {
        Some(Ok(())) => Ok(Verdict::Passed),
        Some(Err(broken)) => Ok(verdict(broken)),
        None => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "{}: a history of kind `{kind}` is not judged alone",
                path.display()
            ),
        )),
    }
}

/// The transactions of a `list-append` history, or of a run's last epoch, as the EDN that Elle reads: a map for each
/// invocation and completion, in the order of time.
///
/// # Errors
///
/// The file that could not be read, and why.
pub fn elle(path: &Path) -> io::Result<String> {
    let lists = match kind(path)?.as_str() {
        "run" => Histories::read(path)?.lists,
        _ => judge::read::<Transaction>(path)?,
    };
    Ok(edn(&lists))
}

fn edn(lists: &[Transaction]) -> String {
    let clients = lists.iter().map(|it| it.client + 1).max().unwrap_or(1);
    let end = lists.iter().map(|it| it.ended.unwrap_or(it.called)).max();
    let mut order: Vec<&Transaction> = lists.iter().collect();
    order.sort_by_key(|it| it.called);
    // A process whose operation has no answer goes on under another number.
    let mut processes: Vec<usize> = (0..clients).collect();
    let mut events = Vec::new();
    for transaction in order {
        let process = processes[transaction.client];
        let (word, answer) = match &transaction.fate {
            Fate::Done(lists) => ("ok", Some(lists)),
            Fate::Failed => ("fail", None),
            Fate::Unknown => {
                processes[transaction.client] += clients;
                ("info", None)
            }
        };
        let ended = match transaction.fate {
            Fate::Unknown => end.unwrap_or_default(),
            _ => transaction.ended.unwrap_or(transaction.called),
        };
        let asked = value(&transaction.input, None);
        let told = value(&transaction.input, answer);
        events.push((transaction.called, "invoke", process, asked));
        events.push((ended, word, process, told));
    }
    // Stable: the events of a process keep their order where two are at the same instant.
    events.sort_by_key(|(at, ..)| *at);
    let mut text = String::new();
    for (index, (at, word, process, value)) in events.iter().enumerate() {
        let _ = writeln!(
            text,
            "{{:index {index}, :type :{word}, :process {process}, :time {}, :f :txn, :value {value}}}",
            at.as_nanos()
        );
    }
    text
}

/// `[[:r 3 [1 2]] [:append 3 4]]`.
fn value(steps: &[Step], answer: Option<&Vec<Vec<u64>>>) -> String {
    let mut reads = answer.into_iter().flatten();
    let words = steps.iter().map(|step| match step {
        Step::Append { key, value } => format!("[:append {key} {value}]"),
        Step::Read { key } => match reads.next() {
            Some(list) => {
                let list: Vec<String> = list.iter().map(u64::to_string).collect();
                format!("[:r {key} [{}]]", list.join(" "))
            }
            None => format!("[:r {key} nil]"),
        },
    });
    format!("[{}]", words.collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn transactions_become_invocations_and_completions() {
        let transaction = |client, from, to: Option<u64>, fate| Transaction {
            client,
            called: Duration::from_nanos(from),
            ended: to.map(Duration::from_nanos),
            input: vec![Step::Read { key: 1 }, Step::Append { key: 1, value: 7 }],
            fate,
        };
        let text = edn(&[
            transaction(0, 1, Some(5), Fate::Done(vec![vec![3, 4]])),
            transaction(1, 2, None, Fate::Unknown),
            transaction(1, 6, Some(6), Fate::Failed),
        ]);
        let asked = ":f :txn, :value [[:r 1 nil] [:append 1 7]]}";
        assert_eq!(
            text.lines().collect::<Vec<_>>(),
            [
                &format!("{{:index 0, :type :invoke, :process 0, :time 1, {asked}"),
                &format!("{{:index 1, :type :invoke, :process 1, :time 2, {asked}"),
                "{:index 2, :type :ok, :process 0, :time 5, :f :txn, :value [[:r 1 [3 4]] [:append 1 7]]}",
                &format!("{{:index 3, :type :info, :process 1, :time 6, {asked}"),
                &format!("{{:index 4, :type :invoke, :process 3, :time 6, {asked}"),
                &format!("{{:index 5, :type :fail, :process 3, :time 6, {asked}"),
            ]
        );
    }
}
