//! Two transactions read the same cells, and each writes another one: together they break what
//! each alone had made sure of.
//!
//! The history is of groups of cells, such as the doctors on call of a ward, of whom one has to
//! remain. Two looks at it: every snapshot of a group fulfils the invariant; and no two
//! transactions each read a cell as it was before the other wrote it. The second finds a skew even
//! if the invariant happens to hold. With k transactions on a group it takes O(k^2) for that
//! group: use many groups.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fencing::Violation;
use super::jsonl::Line;
use super::operation::{Operation, places};

/// A transaction on a group: it reads all its cells, and then may write one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkewCall {
    /// Which group.
    pub group: u64,
    /// The cell that it writes if the invariant allows it; `None` only reads.
    pub writes: Option<u64>,
}

/// A cell, as a transaction found or left it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cell {
    /// What is in it.
    pub value: i64,
    /// How often it was written. Keep it next to the value, or take the store's.
    pub version: u64,
}

/// What a transaction that committed had found, and left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SkewAnswer {
    /// The cells of the group that it read.
    pub read: BTreeMap<u64, Cell>,
    /// The cell that it wrote.
    pub wrote: Option<(u64, Cell)>,
}

/// The history of some groups.
pub type SkewOperation = Operation<SkewCall, SkewAnswer>;

impl Line for SkewOperation {
    const KIND: &'static str = "write-skew";
}

/// Judges a history; `invariant` is asked about the cells of a snapshot. Returns the number of
/// transactions that wrote.
///
/// # Errors
///
/// The first snapshot that breaks the invariant, or the first two transactions that skewed.
pub fn check(
    history: &[SkewOperation],
    invariant: impl Fn(&BTreeMap<u64, Cell>) -> bool,
) -> Result<usize, Violation> {
    let mut groups: BTreeMap<u64, Vec<(&SkewOperation, &SkewAnswer)>> = BTreeMap::new();
    for operation in history {
        if let Some(answer) = operation.answer() {
            let group = groups.entry(operation.input.group).or_default();
            group.push((operation, answer));
        }
    }
    let mut writers = 0;
    for (group, transactions) in groups {
        let mut wrote: Vec<(&SkewOperation, &SkewAnswer)> = Vec::new();
        for &(operation, answer) in &transactions {
            if answer.wrote.is_none() {
                continue;
            }
            if let Some((other, _)) = wrote.iter().find(|(_, other)| skewed(answer, other)) {
                let what = format!(
                    "group {group}: each of two transactions read what the other was about to write:\n    {other}\n    {operation}"
                );
                return Err(Violation::new(what, places(history, [*other, operation])));
            }
            wrote.push((operation, answer));
        }
        if let Some((broken, _)) = transactions
            .iter()
            .find(|(_, answer)| !invariant(&answer.read))
        {
            let what = format!("group {group}: a snapshot broke the invariant:\n    {broken}");
            return Err(Violation::new(what, places(history, [*broken])));
        }
        writers += wrote.len();
    }
    Ok(writers)
}

/// Whether each read the other's cell as it was before the other wrote it.
///
/// If both wrote the same cell this is a lost update, which must not be either.
fn skewed(one: &SkewAnswer, other: &SkewAnswer) -> bool {
    missed(one, other) && missed(other, one)
}

fn missed(reader: &SkewAnswer, writer: &SkewAnswer) -> bool {
    writer.wrote.is_some_and(|(cell, written)| {
        let seen = reader.read.get(&cell);
        seen.is_some_and(|seen| seen.version < written.version)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::jsonl::round_trip;
    use super::super::simulate::{done, lost, overlapped};
    use super::*;
    use crate::cases::Random;

    type Values = [(i64, u64); 2];

    fn cells(values: Values) -> BTreeMap<u64, Cell> {
        let cell = |(value, version)| Cell { value, version };
        (0..).zip(values.map(cell)).collect()
    }

    fn leave(read: Values, cell: u64) -> SkewOperation {
        let read = cells(read);
        let version = read[&cell].version + 1;
        let wrote = Some((cell, Cell { value: 0, version }));
        let (group, writes) = (7, Some(cell));
        let call = SkewCall { group, writes };
        done(0, (0, 9), call, SkewAnswer { read, wrote })
    }

    fn look(read: Values) -> SkewOperation {
        let (read, wrote) = (cells(read), None);
        let (group, writes) = (7, None);
        let call = SkewCall { group, writes };
        done(0, (0, 9), call, SkewAnswer { read, wrote })
    }

    fn one_remains(cells: &BTreeMap<u64, Cell>) -> bool {
        cells.values().any(|cell| cell.value > 0)
    }

    #[test]
    fn one_after_the_other_is_fine() {
        let history = [
            leave([(1, 0), (1, 0)], 0),
            look([(0, 1), (1, 0)]),
            // Somebody came back in between.
            leave([(1, 2), (1, 0)], 1),
        ];
        assert_eq!(check(&history, one_remains), Ok(2));
    }

    #[test]
    fn two_that_leave_at_once_are_found_and_shown() {
        let history = [leave([(1, 0), (1, 0)], 0), leave([(1, 0), (1, 0)], 1)];
        let words = check(&history, one_remains).unwrap_err().what;
        assert!(
            words.starts_with("group 7: each of two transactions"),
            "{words}"
        );
        assert_eq!(words.matches("client 0 SkewCall").count(), 2);
        // Even where the invariant does not notice.
        assert!(check(&history, |_| true).is_err());
    }

    #[test]
    fn a_snapshot_that_breaks_the_invariant_is_found() {
        let history = [look([(1, 0), (1, 0)]), look([(0, 1), (0, 1)])];
        let words = check(&history, one_remains).unwrap_err().what;
        assert!(words.contains("a snapshot broke the invariant"), "{words}");
    }

    #[test]
    fn groups_are_apart_and_the_unknown_says_nothing() {
        let mut history = [leave([(1, 0), (1, 0)], 0), leave([(1, 0), (1, 0)], 1)];
        history[1].input.group = 8;
        assert_eq!(check(&history, one_remains), Ok(2));
        let lost = lost(0, 0, history[1].input.clone());
        assert_eq!(check(&[history[0].clone(), lost], one_remains), Ok(1));
    }

    fn simulated(random: &mut Random, stale: Option<u64>) -> Vec<SkewOperation> {
        let fresh = cells([(1, 0), (1, 0)]);
        let mut groups: BTreeMap<u64, BTreeMap<u64, Cell>> = BTreeMap::new();
        let mut steps = Vec::new();
        for step in 0..80 {
            let group = random.below(3);
            let cells = groups.entry(group).or_insert_with(|| fresh.clone());
            let read = cells.clone();
            let cell = random.below(2);
            let other = read[&(1 - cell)].value;
            let wrote = (other > 0 && random.below(3) > 0).then(|| {
                let value = 1 - read[&cell].value;
                let version = read[&cell].version + 1;
                (cell, Cell { value, version })
            });
            cells.extend(wrote);
            let writes = Some(cell);
            steps.push((
                SkewCall { group, writes },
                SkewAnswer {
                    read: read.clone(),
                    wrote,
                },
            ));
            // And one more at once, on the same snapshot, that writes the other cell.
            if let (Some((cell, _)), true) = (wrote, stale == Some(step)) {
                let version = read[&(1 - cell)].version + 1;
                let wrote = Some((1 - cell, Cell { value: 1, version }));
                let writes = Some(1 - cell);
                cells.extend(wrote);
                steps.push((SkewCall { group, writes }, SkewAnswer { read, wrote }));
            }
        }
        overlapped(random, steps, 4, 0)
    }

    proptest! {
        #[test]
        fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
            let history = simulated(&mut Random::seeded(seed), None);
            prop_assert!(check(&history, one_remains).is_ok());
            round_trip(&history);
        }

        #[test]
        fn a_skew_anywhere_fails(seed: u64, at in 0..80_u64) {
            let history = simulated(&mut Random::seeded(seed), Some(at));
            prop_assume!(history.len() > 80);
            prop_assert!(check(&history, one_remains).is_err());
        }
    }
}
