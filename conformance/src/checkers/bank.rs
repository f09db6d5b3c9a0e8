//! Money moves between accounts, and none is made or lost.
//!
//! The simplest look at transactions: it tells at once that something is wrong, though not what;
//! [`list_append`](super::list_append) finds more.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fencing::Violation;
use super::jsonl::Line;
use super::operation::Operation;
use crate::timeline::Timeline;

/// What can be asked of a bank, each in one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BankCall {
    /// All balances.
    Read,
    /// To move money; refused by the closure itself if the account would be overdrawn.
    Transfer {
        /// The account that loses it.
        from: u64,
        /// The account that gains it.
        to: u64,
        /// How much.
        amount: i64,
    },
}

/// What a bank answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BankAnswer {
    /// To a read: each account's balance.
    Balances(BTreeMap<u64, i64>),
    /// The transfer committed, and had found these two balances.
    Moved {
        /// Of the account that lost.
        from: i64,
        /// Of the account that gained.
        to: i64,
    },
    /// There was not enough.
    Refused,
}

/// The history of a bank.
pub type BankOperation = Operation<BankCall, BankAnswer>;

impl Line for BankOperation {
    const KIND: &'static str = "bank";
}

/// The picture of a history in which the operations at `places` went wrong.
pub fn timeline(history: &[BankOperation], places: &[usize]) -> Timeline {
    Timeline::of_operations(history, places, |call, answer| match (call, answer) {
        (BankCall::Read, Some(BankAnswer::Balances(balances))) => {
            format!("read: {} in all", balances.values().sum::<i64>())
        }
        (BankCall::Read, _) => "read".to_owned(),
        (BankCall::Transfer { from, to, amount }, answer) => {
            let refused = match answer {
                Some(BankAnswer::Refused) => " refused",
                _ => "",
            };
            format!("{from}→{to}: {amount}{refused}")
        }
    })
}

/// What a bank promises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bank {
    /// The accounts and their first balances.
    pub opening: BTreeMap<u64, i64>,
    /// Whether an account may be overdrawn.
    pub overdraft: bool,
}

impl Bank {
    /// So many accounts, with so much in each, that must not be overdrawn.
    pub fn new(accounts: u64, each: i64) -> Self {
        Self {
            opening: (0..accounts).map(|account| (account, each)).collect(),
            overdraft: false,
        }
    }

    fn total(&self) -> i64 {
        self.opening.values().sum()
    }

    /// Every read has all accounts and the same sum, and no account is overdrawn. A transfer also
    /// shows if money was made of nothing, or if it overdrew what it had found. Returns the number
    /// of reads.
    ///
    /// # Errors
    ///
    /// The first operation that breaks this, with those around it.
    pub fn check(&self, history: &[BankOperation]) -> Result<usize, Violation> {
        let mut reads = 0;
        for (place, operation) in history.iter().enumerate() {
            let wrong = match (&operation.input, operation.answer()) {
                (BankCall::Read, Some(BankAnswer::Balances(balances))) => {
                    reads += 1;
                    self.wrong_balances(balances)
                }
                (BankCall::Transfer { amount, .. }, Some(&BankAnswer::Moved { from, .. })) => {
                    let after = from - amount;
                    (after < 0 && !self.overdraft)
                        .then(|| format!("a transfer left an account with {after}"))
                }
                _ => None,
            };
            if let Some(what) = wrong {
                let around = around(history, operation);
                let what = format!("{what}:\n    {operation}{around}");
                return Err(Violation::new(what, [place]));
            }
        }
        Ok(reads)
    }

    fn wrong_balances(&self, balances: &BTreeMap<u64, i64>) -> Option<String> {
        if !balances.keys().eq(self.opening.keys()) {
            return Some("a read found other accounts than there are".to_owned());
        }
        let (sum, total) = (balances.values().sum::<i64>(), self.total());
        if sum != total {
            return Some(format!("a read found {sum} in all accounts, not {total}"));
        }
        let overdrawn = balances.iter().find(|(_, balance)| **balance < 0);
        overdrawn
            .filter(|_| !self.overdraft)
            .map(|(account, balance)| format!("account {account} is at {balance}"))
    }
}

/// The transfers that were under way during an operation: one of them was seen by halves.
fn around(history: &[BankOperation], wrong: &BankOperation) -> String {
    history
        .iter()
        .filter(|other| matches!(other.input, BankCall::Transfer { .. }))
        .filter(|other| other.possible() && !other.precedes(wrong) && !wrong.precedes(other))
        .take(12)
        .map(|other| format!("\n  during {other}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::jsonl::round_trip;
    use super::super::operation::Fate;
    use super::super::simulate::{done, overlapped};
    use super::*;
    use crate::cases::Random;

    fn read(balances: [i64; 3]) -> BankOperation {
        let balances = (0..).zip(balances).collect();
        done(0, (0, 9), BankCall::Read, BankAnswer::Balances(balances))
    }

    fn transfer(amount: i64, found: i64) -> BankOperation {
        let (from, to) = (found, 0);
        let answer = BankAnswer::Moved { from, to };
        let (from, to) = (0, 1);
        done(1, (5, 8), BankCall::Transfer { from, to, amount }, answer)
    }

    fn wrong(history: &[BankOperation]) -> String {
        Bank::new(3, 10).check(history).unwrap_err().what
    }

    #[test]
    fn money_that_moves_is_fine() {
        let history = [read([10, 10, 10]), transfer(4, 10), read([6, 14, 10])];
        assert_eq!(Bank::new(3, 10).check(&history), Ok(2));
    }

    #[test]
    fn half_a_transfer_is_found_and_shown() {
        let words = wrong(&[transfer(4, 10), read([6, 10, 10])]);
        assert!(words.starts_with("a read found 26 in all accounts, not 30"));
        assert!(words.contains("during client 1 Transfer"), "{words}");
    }

    #[test]
    fn an_overdraft_is_found_where_it_is_forbidden() {
        assert!(wrong(&[read([-1, 21, 10])]).contains("account 0 is at -1"));
        assert!(wrong(&[transfer(11, 10)]).contains("left an account with -1"));
        let mut bank = Bank::new(3, 10);
        bank.overdraft = true;
        let history = [read([-1, 21, 10]), transfer(11, 10)];
        assert_eq!(bank.check(&history), Ok(1));
    }

    #[test]
    fn a_missing_account_is_found() {
        let balances = BTreeMap::from([(0, 15), (1, 15)]);
        let history = [done(
            0,
            (0, 1),
            BankCall::Read,
            BankAnswer::Balances(balances),
        )];
        assert!(wrong(&history).contains("other accounts"));
    }

    fn simulated(random: &mut Random) -> Vec<BankOperation> {
        let mut balances: BTreeMap<u64, i64> = Bank::new(3, 10).opening;
        let steps = (0..80)
            .map(|_| {
                if random.below(2) == 0 {
                    return (BankCall::Read, BankAnswer::Balances(balances.clone()));
                }
                let from = random.below(3);
                let to = (from + 1) % 3;
                let amount = i64::try_from(random.below(8)).unwrap() + 1;
                let (had, has) = (balances[&from], balances[&to]);
                let answer = if had < amount {
                    BankAnswer::Refused
                } else {
                    balances.insert(from, had - amount);
                    balances.insert(to, has + amount);
                    let (from, to) = (had, has);
                    BankAnswer::Moved { from, to }
                };
                (BankCall::Transfer { from, to, amount }, answer)
            })
            .collect();
        overlapped(random, steps, 4, 5)
    }

    proptest! {
        #[test]
        fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
            let history = simulated(&mut Random::seeded(seed));
            prop_assert!(Bank::new(3, 10).check(&history).is_ok());
            round_trip(&history);
        }

        #[test]
        fn one_balance_that_is_off_fails(seed: u64) {
            let mut random = Random::seeded(seed);
            let mut history = simulated(&mut random);
            let balances = history.iter_mut().find_map(|operation| match &mut operation.fate {
                Fate::Done(BankAnswer::Balances(balances)) => Some(balances),
                _ => None,
            });
            prop_assume!(balances.is_some());
            *balances.unwrap().entry(random.below(3)).or_default() += 1;
            prop_assert!(Bank::new(3, 10).check(&history).is_err());
        }
    }
}
