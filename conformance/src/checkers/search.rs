//! Is there an order of all operations that a sequential object could have had?
//!
//! The search of J. Wing and C. Gong (1993) with the memory of G. Lowe ("Testing for
//! linearizability", 2017), key by key: a history is linearizable if its part for each key is (M.
//! Herlihy and J. Wing, 1990).
//!
//! An operation of unknown fate may take effect at any time after its call, or never. One that
//! only looks takes effect as early as it may: that rules nothing out, and saves most of the
//! search for reads. Time and memory are exponential in the number of operations
//! under way at once, and linear in the length of a history in the good case; a budget ends a
//! search that would not.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{self, Debug};
use std::hash::Hash;
use std::time::Duration;

use super::fencing::Violation;
use super::operation::{Fate, Operation, places};

/// A sequential object.
pub trait Model {
    /// Operations with different keys touch different objects.
    type Key: Ord + Debug;
    /// What can be asked.
    type Input: Debug;
    /// What can be answered.
    type Output: Debug;
    /// Two equal states must behave alike: the search visits a state once.
    type State: Clone + Eq + Hash + Debug;

    /// The object that an operation touches.
    fn key(input: &Self::Input) -> Self::Key;

    /// The state before the first operation.
    fn initial() -> Self::State;

    /// The state after the operation, if it can have this answer in this state. Without an answer
    /// (the fate is unknown) it is the state after it took effect.
    fn step(
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// Whether an operation with this answer leaves *every* state as it is in which it can have
    /// the answer. Saying `false` is always right, and slower.
    fn only_looks(input: &Self::Input, output: &Self::Output) -> bool;
}

/// The operations of a model.
pub type OperationOf<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

/// What came of a search.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// There is an order; it has so many operations.
    Linearizable(usize),
    /// There is none.
    Violated(Violation),
    /// The budget was used up before either was found.
    Unknown(String),
}

/// A budget that a search of an ordinary run never uses up: some seconds, some hundred megabytes.
pub const BUDGET: usize = 1_000_000;

/// Searches, visiting at most `budget` states in all.
pub fn check<M: Model>(history: &[OperationOf<M>], budget: usize) -> Finding {
    let mut parts: BTreeMap<M::Key, Vec<&OperationOf<M>>> = BTreeMap::new();
    for operation in history.iter().filter(|operation| operation.possible()) {
        parts
            .entry(M::key(&operation.input))
            .or_default()
            .push(operation);
    }
    let (mut left, mut ordered, mut unknown) = (budget, 0, None);
    for (key, operations) in parts {
        let mut search = Search::<M>::new(operations);
        match search.run(&mut left) {
            Some(true) => ordered += search.known.len(),
            Some(false) => {
                let stuck = search.deepest.next.iter().map(|index| search.known[*index]);
                return Finding::Violated(Violation::new(
                    format!("key {key:?}: {}", search.deepest),
                    places(history, stuck),
                ));
            }
            // Another key may still show a violation.
            None => {
                unknown.get_or_insert_with(|| {
                    format!(
                        "key {key:?}, {} operations: no verdict within {budget} states; {} of them found an order",
                        search.known.len() + search.open.len(),
                        search.deepest.placed
                    )
                });
            }
        }
    }
    unknown.map_or(Finding::Linearizable(ordered), Finding::Unknown)
}

/// Which operations have taken effect. Most of the known ones lie below `low`, so that what is
/// left to remember is as small as the overlap of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Placed {
    low: usize,
    /// Known ones from `low` on, sorted.
    ahead: Vec<usize>,
    /// Open ones, sorted.
    open: Vec<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Known(usize),
    Open(usize),
}

impl Placed {
    fn with(&self, next: Next) -> Self {
        let mut placed = self.clone();
        match next {
            Next::Open(index) => insert(&mut placed.open, index),
            Next::Known(index) => {
                insert(&mut placed.ahead, index);
                let run = placed
                    .ahead
                    .iter()
                    .enumerate()
                    .take_while(|(offset, index)| **index == self.low + offset)
                    .count();
                placed.ahead.drain(..run);
                placed.low += run;
            }
        }
        placed
    }

    fn known(&self) -> usize {
        self.low + self.ahead.len()
    }
}

fn insert(sorted: &mut Vec<usize>, index: usize) {
    if let Err(at) = sorted.binary_search(&index) {
        sorted.insert(at, index);
    }
}

/// How far the search came, for the counterexample.
#[derive(Default)]
struct Deepest {
    placed: usize,
    of: usize,
    last: Vec<String>,
    state: String,
    stuck: Vec<String>,
    /// The same by their place among the known ones.
    next: Vec<usize>,
}

impl fmt::Display for Deepest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (placed, of) = (self.placed, self.of);
        writeln!(
            f,
            "no order of all {of} operations; {placed} fit, and no more"
        )?;
        if placed > self.last.len() {
            writeln!(f, "    ...")?;
        }
        for line in &self.last {
            writeln!(f, "    {line}")?;
        }
        write!(f, "  now it is {}; none of these can be next:", self.state)?;
        self.stuck
            .iter()
            .try_for_each(|line| write!(f, "\n    {line}"))
    }
}

/// A point of the search: what has taken effect, and what is still to be tried from there.
struct Frame<S> {
    placed: Placed,
    state: S,
    /// By what this point was reached.
    by: Option<Next>,
    untried: Vec<(Next, S)>,
}

struct Search<'a, M: Model> {
    /// In the order of their calls.
    known: Vec<&'a OperationOf<M>>,
    open: Vec<&'a OperationOf<M>>,
    deepest: Deepest,
}

impl<'a, M: Model> Search<'a, M> {
    fn new(mut operations: Vec<&'a OperationOf<M>>) -> Self {
        operations.sort_by_key(|operation| operation.called);
        let (known, open): (Vec<_>, Vec<_>) = operations
            .into_iter()
            .partition(|operation| matches!(operation.fate, Fate::Done(_)));
        let of = known.len();
        Self {
            known,
            open,
            deepest: Deepest {
                of,
                ..Deepest::default()
            },
        }
    }

    /// `None` if the budget was used up.
    fn run(&mut self, left: &mut usize) -> Option<bool> {
        let mut seen: HashSet<(Placed, M::State)> = HashSet::new();
        let mut path = vec![self.frame(Placed::default(), M::initial(), None)];
        self.note(&path);
        while let Some(frame) = path.last_mut() {
            if frame.placed.known() == self.known.len() {
                return Some(true);
            }
            let Some((next, state)) = frame.untried.pop() else {
                path.pop();
                continue;
            };
            let placed = frame.placed.with(next);
            if !seen.insert((placed.clone(), state.clone())) {
                continue;
            }
            *left = left.checked_sub(1)?;
            path.push(self.frame(placed, state, Some(next)));
            self.note(&path);
        }
        Some(false)
    }

    /// The operations that may be next: they were called before every other that has not taken
    /// effect came back.
    fn candidates(&self, placed: &Placed) -> (Vec<usize>, Duration) {
        let mut candidates = Vec::new();
        let mut first_end = Duration::MAX;
        for index in placed.low..self.known.len() {
            if self.known[index].called > first_end {
                break;
            }
            if placed.ahead.binary_search(&index).is_err() {
                first_end = first_end.min(self.known[index].ended.unwrap_or(Duration::MAX));
                candidates.push(index);
            }
        }
        (candidates, first_end)
    }

    fn frame(&self, placed: Placed, state: M::State, by: Option<Next>) -> Frame<M::State> {
        let (mut candidates, first_end) = self.candidates(&placed);
        // The last is tried first: the known ones before the open ones, the first to end first.
        candidates.sort_by_key(|index| std::cmp::Reverse(self.known[*index].ended));
        let looks = |operation: &OperationOf<M>| {
            let answer = operation.answer();
            answer.is_some_and(|answer| M::only_looks(&operation.input, answer))
        };
        let mut untried = Vec::new();
        for (index, operation) in self.open.iter().enumerate().rev() {
            let may = operation.called <= first_end && placed.open.binary_search(&index).is_err();
            if let Some(after) = may
                .then(|| M::step(&state, &operation.input, None))
                .flatten()
                .filter(|after| *after != state)
            {
                untried.push((Next::Open(index), after));
            }
        }
        for index in candidates {
            let operation = self.known[index];
            match M::step(&state, &operation.input, operation.answer()) {
                // Nothing is lost by letting it go first.
                Some(after) if after == state && looks(operation) => {
                    untried = vec![(Next::Known(index), after)];
                    break;
                }
                Some(after) => untried.push((Next::Known(index), after)),
                None => {}
            }
        }
        Frame {
            placed,
            state,
            by,
            untried,
        }
    }

    /// Remembers the longest order that led nowhere.
    fn note(&mut self, path: &[Frame<M::State>]) {
        let Some(end) = path.last() else { return };
        let placed = end.placed.known();
        let further = placed > self.deepest.placed || self.deepest.stuck.is_empty();
        if !end.untried.is_empty() || placed == self.known.len() || !further {
            return;
        }
        let from = path.len().saturating_sub(10);
        self.deepest.placed = placed;
        self.deepest.state = format!("{:?}", end.state);
        self.deepest.last = path[from..]
            .iter()
            .filter_map(|frame| frame.by)
            .map(|by| match by {
                Next::Known(index) => self.known[index].to_string(),
                Next::Open(index) => self.open[index].to_string(),
            })
            .collect();
        let (candidates, _) = self.candidates(&end.placed);
        self.deepest.stuck = candidates
            .iter()
            .map(|index| self.known[*index].to_string())
            .collect();
        self.deepest.next = candidates;
    }
}

#[cfg(test)]
mod tests;
