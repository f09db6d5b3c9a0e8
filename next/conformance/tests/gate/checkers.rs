//! The checkers: what a correct object did passes, and each planted anomaly is found.

use tenure_conformance::checkers::{Operation, Outcome, Timeline, Violation, jsonl, list_append, lock, queue};

mod list_append_histories;
mod lock_histories;
mod queue_histories;
mod simulate;

/// An operation with an answer, from one instant to another.
fn ok<I, O>(span: (u64, u64), input: I, answer: O) -> Operation<I, O> {
    Operation {
        client: 0,
        invoked: span.0,
        returned: Some(span.1),
        input,
        outcome: Outcome::Ok(answer),
    }
}

/// An operation that certainly had no effect.
fn failed<I, O>(span: (u64, u64), input: I) -> Operation<I, O> {
    Operation {
        client: 0,
        invoked: span.0,
        returned: Some(span.1),
        input,
        outcome: Outcome::Failed,
    }
}

/// An operation without an answer.
fn unknown<I, O>(invoked: u64, input: I) -> Operation<I, O> {
    Operation {
        client: 0,
        invoked,
        returned: None,
        input,
        outcome: Outcome::Unknown,
    }
}

/// Asserts that a verdict is a violation whose text contains `phrase`.
fn assert_found<T>(verdict: Result<T, Violation>, phrase: &str) {
    let found = verdict.err().unwrap_or_else(|| panic!("not found: {phrase}"));
    assert!(found.what.contains(phrase), "expected {phrase:?} in: {found}");
    assert!(!found.operations.is_empty(), "no operations prove: {found}");
}

/// Asserts that a history is the same after it was written and read.
fn assert_round_trip<T: jsonl::Recorded + PartialEq + std::fmt::Debug>(history: &[T]) {
    let mut file = Vec::new();
    jsonl::write(&mut file, history).unwrap();
    assert_eq!(jsonl::kind(file.as_slice()).unwrap(), T::KIND);
    assert_eq!(jsonl::read::<T>(file.as_slice()).unwrap(), history);
}

#[test]
fn journal_operation_without_an_end_is_unknown() {
    let journal: tenure_conformance::checkers::Journal<&str, u64> =
        tenure_conformance::checkers::Journal::new(Timeline::logical());
    let answered = journal.invoke(1, "a");
    let _dropped = journal.invoke(2, "b");
    journal.end(answered, Outcome::Ok(7));
    let timed_out = journal.invoke(1, "c");
    journal.end(timed_out, Outcome::Unknown);
    let open = journal.operations();
    assert_eq!(open[0].answer(), Some(&7));
    assert!(open[1].is_unknown() && open[1].latest() == u64::MAX);
    assert!(
        open[2].is_unknown() && open[2].latest() == u64::MAX,
        "its effect may still come"
    );
    assert!(open[0].precedes(&open[2]) && !open[0].precedes(&open[1]));
    journal.settle(1);
    journal.end(timed_out, Outcome::Unknown);
    let settled = journal.operations();
    assert!(settled[2].is_unknown() && settled[2].latest() > settled[2].invoked);
}

#[test]
fn file_of_another_kind_or_version_or_torn_is_refused() {
    let fails = |file: &str| jsonl::read::<lock::LockOperation>(file.as_bytes()).unwrap_err();
    assert_eq!(fails("").line, 1);
    assert_eq!(fails("no header").line, 1);
    assert!(
        fails("{\"history\":\"queue\",\"version\":1}\n")
            .to_string()
            .contains("`queue`")
    );
    assert!(
        fails("{\"history\":\"lock\",\"version\":9}\n")
            .to_string()
            .contains("version 9")
    );
    assert_eq!(
        fails("{\"history\":\"lock\",\"version\":1}\n{\"client\":1,\"inv").line,
        2
    );
}

#[test]
fn file_of_several_histories_is_read_one_by_one() {
    let (lock, queue) = (include_str!("../data/lock.jsonl"), include_str!("../data/queue.jsonl"));
    let both = format!("{lock}{queue}");
    assert_eq!(jsonl::sections(&both), [lock, queue]);
    assert_eq!(jsonl::sections("torn"), ["torn"]);
    assert!(jsonl::sections("").is_empty());
}

#[test]
fn recorded_counterexample_is_judged_again() {
    let file = include_str!("../data/lock.jsonl");
    let history = jsonl::read(file.as_bytes()).unwrap();
    assert_found(
        lock::check(&history, tenure_conformance::checkers::Proof::Store),
        "two holders",
    );
    let file = include_str!("../data/queue.jsonl");
    let history = jsonl::read(file.as_bytes()).unwrap();
    assert_found(
        queue::check_account(&history, tenure_conformance::checkers::Proof::Store),
        "is lost",
    );
    let file = include_str!("../data/list-append.jsonl");
    let history = jsonl::read(file.as_bytes()).unwrap();
    let strict = list_append::Level::StrictSerializable;
    assert_found(list_append::check(&history, strict), "G2");
}
