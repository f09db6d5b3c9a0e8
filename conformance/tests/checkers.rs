//! The checkers as somebody uses them who has a history of their own.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

use std::collections::BTreeMap;

use tenure_conformance::checkers::bank::{Bank, BankAnswer, BankCall, BankOperation};
use tenure_conformance::checkers::list_append::{self, Keys, Level, Lists, Step};
use tenure_conformance::checkers::queue::{PriorityQueue, QueueAnswer, QueueCall};
use tenure_conformance::checkers::register::{Register, RegisterAnswer, RegisterCall};
use tenure_conformance::checkers::search::{self, BUDGET, Finding};
use tenure_conformance::checkers::write_skew::{self, SkewAnswer, SkewCall};
use tenure_conformance::checkers::{Journal, jsonl, total_queue};

#[test]
fn a_register() {
    let journal = Journal::new();
    let write = journal.call(0, RegisterCall::Write { key: 1, value: 5 });
    journal.done(write, RegisterAnswer::Written { version: Some(9) });
    let _lost = journal.call(1, RegisterCall::Read { key: 1 });
    let found = search::check::<Register>(&journal.operations(), BUDGET);
    assert_eq!(found, Finding::Linearizable(1));
}

#[test]
fn a_queue() {
    let journal = Journal::new();
    let (item, priority, token, count) = (1, 0, 4, 1);
    let put = journal.call(0, QueueCall::Enqueue { item, priority });
    journal.done(put, QueueAnswer::Done);
    let pop = journal.call(1, QueueCall::Pop);
    journal.done(pop, QueueAnswer::Delivered { item, token, count });
    let history = journal.operations();
    let found = search::check::<PriorityQueue>(&history, BUDGET);
    assert_eq!(found, Finding::Linearizable(2));
    let account = total_queue::check(&history);
    assert!(account.violations.is_empty() && account.overtakings.is_empty());
}

#[test]
fn transactions() {
    let (journal, mut keys) = (Journal::<Vec<Step>, Lists>::new(), Keys::new(8, 64));
    let transaction = journal.call(0, vec![keys.read(3), keys.append(3)]);
    journal.done(transaction, vec![vec![]]);
    let findings = list_append::check(&journal.operations());
    assert_eq!(findings.first(Level::StrictSerializable), None);
}

#[test]
fn a_bank_from_a_file() {
    let journal = Journal::new();
    let read = journal.call(0, BankCall::Read);
    let balances = BTreeMap::from([(0, 40), (1, 60)]);
    journal.done(read, BankAnswer::Balances(balances));
    let mut file = Vec::new();
    jsonl::write(&mut file, &journal.operations()).unwrap();
    let history: Vec<BankOperation> = jsonl::read(file.as_slice()).unwrap();
    assert_eq!(Bank::new(2, 50).check(&history), Ok(1));
}

#[test]
fn write_skew() {
    let journal = Journal::new();
    let (group, writes) = (1, None);
    let look = journal.call(0, SkewCall { group, writes });
    let (read, wrote) = (BTreeMap::new(), None);
    journal.done(look, SkewAnswer { read, wrote });
    let judged = write_skew::check(&journal.operations(), |cells| cells.len() < 3);
    assert_eq!(judged, Ok(0));
}
