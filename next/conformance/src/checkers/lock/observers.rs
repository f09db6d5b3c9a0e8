//! The views of an election's observers.

use std::collections::HashMap;

use super::super::sequence::{Holding, Known, Mode, Violation};
use super::{LockAnswer, LockCall, LockOperation, Shown, done, granted, shown};

/// Judges all states that observers received or read.
pub(super) fn check(history: &[LockOperation], mentions: &Known, holdings: &[Holding]) -> Result<(), Violation> {
    observers_advance(history)?;
    shown_as_proclaimed(history)?;
    current_states(history, mentions, holdings)
}

fn observers_advance(history: &[LockOperation]) -> Result<(), Violation> {
    /// The last leader that an observer saw, whether a vacancy followed, and the operation.
    type Last = (Shown, bool, usize);
    let mut last: HashMap<u64, Last> = HashMap::new();
    for (index, op) in history.iter().enumerate() {
        let (LockCall::Observe { observer, .. }, Some(state)) = (op.input, shown(op)) else {
            continue;
        };
        let Some(now) = state else {
            if let Some((_, left, _)) = last.get_mut(&observer) {
                *left = true;
            }
            continue;
        };
        if let Some(&(seen, left, before)) = last.get(&observer)
            && (now < seen || (left && now.token == seen.token))
        {
            let gone = if left { " and then a vacancy" } else { "" };
            let what = format!(
                "observer {observer} went back to value {} of token {}, after value {} of token {}{gone}",
                now.number, now.token, seen.number, seen.token
            );
            return Err(Violation::new(history, what, [before, index]));
        }
        last.insert(observer, (now, false, index));
    }
    Ok(())
}

fn shown_as_proclaimed(history: &[LockOperation]) -> Result<(), Violation> {
    let mut proclaimed: HashMap<Shown, usize> = HashMap::new();
    let mut campaigns: HashMap<u64, usize> = HashMap::new();
    for (index, op) in history.iter().enumerate() {
        if let LockCall::Proclaim { token, number } = op.input {
            proclaimed.insert(Shown { token, number }, index);
        }
        campaigns.extend(granted(op).map(|token| (token, index)));
    }
    for (index, op) in history.iter().enumerate() {
        let Some(Some(state)) = shown(op) else {
            continue;
        };
        // A campaign whose answer was lost may lead, too.
        let source = match state.number {
            0 => campaigns.get(&state.token),
            _ => proclaimed.get(&state),
        };
        let fault = match source.map(|source| &history[*source]) {
            None if state.number == 0 => continue,
            None => "which was never proclaimed",
            Some(source) if op.precedes(source) => "before it was proclaimed",
            Some(source) if !source.is_possible() => "which had failed",
            Some(source) if source.answer() == Some(&LockAnswer::Refused) => "which was refused",
            Some(_) => continue,
        };
        let what = format!(
            "an observer saw value {} of token {}, {fault}",
            state.number, state.token
        );
        let operations = source.copied().into_iter().chain([index]);
        return Err(Violation::new(history, what, operations));
    }
    Ok(())
}

/// The acknowledged events before an instant.
struct Past<'a> {
    /// The tokens that had been granted.
    granted: &'a Known,
    holdings: &'a [Holding],
    /// The proclamations of each leadership.
    proclaimed: HashMap<u64, Known>,
}

impl Past<'_> {
    fn leadership(&self, token: u64) -> Option<&Holding> {
        let place = self.holdings.binary_search_by_key(&token, |holding| holding.token);
        let found = place.ok().map(|place| &self.holdings[place]);
        found.filter(|holding| holding.mode == Mode::Exclusive)
    }

    /// Returns why a vacancy cannot be the current state, with the operations that show it.
    fn refute_vacancy(&self, op: &LockOperation) -> Option<(String, Vec<usize>)> {
        let (token, grant) = self.granted.before(op.invoked)?;
        let leader = self.leadership(token).filter(|leader| leader.held > op.latest())?;
        let what = format!("a vacancy was read while token {token} led");
        Some((what, leader.operations().chain([grant]).collect()))
    }

    /// Returns why `state` cannot be the current state, with the operations that show it.
    fn refute(&self, op: &LockOperation, state: Shown) -> Option<(String, Vec<usize>)> {
        let Shown { token, number } = state;
        let newer = self.granted.before(op.invoked).filter(|(newer, _)| *newer > token);
        if let Some((newer, grant)) = newer {
            let what = format!("token {token} was read as leader after token {newer} had been granted");
            return Some((what, vec![grant]));
        }
        let said = self.proclaimed.get(&token).and_then(|said| said.before(op.invoked));
        if let Some((newer, proclaim)) = said.filter(|(newer, _)| *newer > number) {
            let what = format!("value {number} of token {token} was read after value {newer} had been proclaimed");
            return Some((what, vec![proclaim]));
        }
        let left = self.leadership(token).filter(|leader| leader.ended < op.invoked)?;
        let what = format!("token {token} was read as leader after it had resigned");
        Some((what, left.operations().collect()))
    }
}

fn current_states(history: &[LockOperation], granted: &Known, holdings: &[Holding]) -> Result<(), Violation> {
    let mut facts: HashMap<u64, Vec<(u64, u64, usize)>> = HashMap::new();
    for (index, op) in history.iter().enumerate().filter(|(_, op)| done(op)) {
        if let LockCall::Proclaim { token, number } = op.input {
            facts.entry(token).or_default().push((op.latest(), number, index));
        }
    }
    let proclaimed = facts
        .into_iter()
        .map(|(token, facts)| (token, Known::new(facts)))
        .collect();
    let past = Past {
        granted,
        holdings,
        proclaimed,
    };
    for (index, op) in history.iter().enumerate() {
        let (LockCall::Observe { current: true, .. }, Some(state)) = (op.input, shown(op)) else {
            continue;
        };
        let refuted = match state {
            Some(state) => past.refute(op, state),
            None => past.refute_vacancy(op),
        };
        if let Some((what, operations)) = refuted {
            return Err(Violation::new(history, what, operations.into_iter().chain([index])));
        }
    }
    Ok(())
}
