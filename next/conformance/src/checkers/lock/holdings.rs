//! The holdings of an object, as a history shows them.

use std::collections::{BTreeMap, HashMap};

use super::super::sequence::{Holding, Mode, Proof};
use super::{LockAnswer, LockCall, LockOperation, done, mentions, token_of};

/// Returns all holdings of which a history knows the token, sorted by token. A downgraded one is two: the exclusive
/// part and the shared part.
pub(super) fn holdings(history: &[LockOperation], proof: Proof) -> Vec<Holding> {
    let mut holdings: BTreeMap<(u64, Mode), Holding> = BTreeMap::new();
    let mut downgrades: HashMap<u64, u64> = HashMap::new();
    let mut modes: HashMap<u64, Mode> = HashMap::new();
    for op in history {
        let (token, mode) = match (op.input, op.answer()) {
            (LockCall::Acquire { mode }, Some(LockAnswer::Granted(token))) => (*token, mode),
            (_, Some(LockAnswer::Shows(Some(shown)))) => (shown.token, Mode::Exclusive),
            (LockCall::Access { token, mode }, _) => (token, mode),
            (LockCall::Downgrade { token } | LockCall::Proclaim { token, .. }, _) => (token, Mode::Exclusive),
            (call, _) => match token_of(&call) {
                Some(token) => (token, Mode::Shared),
                None => continue,
            },
        };
        let known = modes.entry(token).or_insert(mode);
        *known = (*known).min(mode);
        if matches!(op.input, LockCall::Downgrade { .. })
            && op.is_possible()
            && op.answer() != Some(&LockAnswer::Refused)
        {
            downgrades.insert(token, op.invoked);
        }
    }
    for (token, at, index) in mentions(history) {
        let op = &history[index];
        let whole = modes[&token];
        // A step after the call of a downgrade says nothing about the exclusive part.
        let part = match downgrades.get(&token) {
            Some(downgraded) if op.invoked > *downgraded => Mode::Shared,
            _ => whole,
        };
        if part != whole {
            holdings
                .entry((token, whole))
                .or_insert_with(|| Holding::new(token, whole));
        }
        let holding = holdings
            .entry((token, part))
            .or_insert_with(|| Holding::new(token, part));
        holding.grant(at, index);
        let counts = proof == Proof::Guards || !matches!(op.input, LockCall::Check { .. });
        match op.input {
            LockCall::Acquire { .. } => holding.asked = op.invoked,
            LockCall::Check { .. } | LockCall::Confirm { .. } | LockCall::Proclaim { .. } if done(op) && counts => {
                holding.prove(op.invoked, index);
            }
            LockCall::Release { .. } | LockCall::Downgrade { .. } if done(op) => {
                holding.end(op.invoked, op.latest(), index);
                if matches!(op.input, LockCall::Downgrade { .. }) {
                    let shared = holdings
                        .entry((token, Mode::Shared))
                        .or_insert_with(|| Holding::new(token, Mode::Shared));
                    shared.asked = op.invoked;
                    shared.grant(op.latest(), index);
                }
            }
            _ => {}
        }
    }
    holdings.into_values().collect()
}

/// Counts the holdings that began during another: shared ones, and those that exclude one another.
pub(super) fn meetings(history: &[LockOperation], holdings: &[Holding]) -> (usize, usize) {
    // The kinds of edges, in their order at one instant. A holding of which nothing but the grant is known is only
    // that.
    const END: u8 = 0;
    const GRANT: u8 = 1;
    const BEGIN: u8 = 2;
    let mut edges: Vec<(u64, u8, Mode)> = Vec::new();
    for holding in holdings {
        // A grant that only an observer saw may have ended long before.
        let grant = holding.shown_by[0].map(|index| history[index].input);
        if !matches!(grant, Some(LockCall::Observe { .. })) {
            edges.push((holding.granted, GRANT, holding.mode));
        }
        if holding.granted < holding.held {
            edges.push((holding.granted, BEGIN, holding.mode));
            edges.push((holding.held, END, holding.mode));
        }
    }
    edges.sort_unstable();
    let (mut readers, mut writers, mut shared, mut overlaps) = (0_usize, 0_usize, 0, 0);
    for (_, edge, mode) in edges {
        match (edge, mode) {
            (BEGIN, Mode::Exclusive) => writers += 1,
            (BEGIN, Mode::Shared) => readers += 1,
            (END, Mode::Exclusive) => writers -= 1,
            (END, Mode::Shared) => readers -= 1,
            (_, Mode::Exclusive) => overlaps += usize::from(writers + readers > 0),
            (_, Mode::Shared) => {
                overlaps += usize::from(writers > 0);
                shared += usize::from(readers > 0);
            }
        }
    }
    (shared, overlaps)
}
