//! The account of all items.

use std::collections::{BTreeMap, HashSet};

use super::super::sequence::{Holding, Mode, Proof, Violation, explain};
use super::{Life, QueueAnswer, QueueCall, QueueOperation, Unseen, lives, unknown_pops};

/// The contents of a history without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Items that were accepted for certain.
    pub enqueued: usize,
    /// Items that were delivered or popped.
    pub delivered: usize,
    /// Deliveries of an item after its first.
    pub redelivered: usize,
    /// Items that were acknowledged or popped for certain.
    pub acknowledged: usize,
    /// Items that remained at the last list; `None` if nothing was listed, so that no item was missed.
    pub remaining: Option<usize>,
}

/// Judges what became of each item. The last list of the history decides what is missing: end the run with it, after
/// the sessions of all dequeues of unknown outcome have ended.
///
/// # Errors
///
/// The first violation.
pub fn check_account(history: &[QueueOperation], proof: Proof) -> Result<Account, Violation> {
    let lives = lives(history)?;
    let unseen = Unseen::new(history);
    let mut account = Account::default();
    for (&item, life) in &lives {
        let faults = [
            from_nowhere(history, life),
            removed_twice(history, life),
            after_removal(history, life),
            counts(history, life, &unseen),
        ];
        if let Some(fault) = faults.into_iter().flatten().next() {
            let what = format!("item {item} {fault}");
            return Err(Violation::new(history, what, life.operations()));
        }
        let holdings = holdings(history, life, proof);
        explain(history, &format!("item {item}"), &holdings)?;
        let removed = acknowledged(history, life).count() + life.pops.len();
        account.enqueued += usize::from(is_accepted(history, life));
        account.delivered += usize::from(!(life.deliveries.is_empty() && life.pops.is_empty()));
        account.redelivered += life.deliveries.len().saturating_sub(1);
        account.acknowledged += removed;
    }
    account.remaining = remaining(history, &lives)?;
    Ok(account)
}

fn is_done(history: &[QueueOperation], index: usize) -> bool {
    history[index].answer() == Some(&QueueAnswer::Done)
}

fn is_accepted(history: &[QueueOperation], life: &Life) -> bool {
    life.enqueue.is_some_and(|index| is_done(history, index))
}

/// Returns the tokens under which an item was acknowledged for certain, with the operations.
fn acknowledged<'a>(history: &'a [QueueOperation], life: &'a Life) -> impl Iterator<Item = (u64, usize)> + 'a {
    life.steps
        .iter()
        .copied()
        .filter(|(_, index)| matches!(history[*index].input, QueueCall::Ack { .. }) && is_done(history, *index))
}

/// Returns the deliveries and pops.
fn taken(life: &Life) -> impl Iterator<Item = usize> {
    let deliveries = life.deliveries.iter().map(|delivery| delivery.operation);
    deliveries.chain(life.pops.iter().copied())
}

fn from_nowhere(history: &[QueueOperation], life: &Life) -> Option<String> {
    taken(life).next()?;
    let possible = life.enqueue.filter(|index| history[*index].is_possible());
    let Some(enqueue) = possible else {
        return Some("came from nowhere: it was delivered, but never accepted".to_owned());
    };
    let early = taken(life).any(|index| history[index].precedes(&history[enqueue]));
    early.then(|| "came from nowhere: it was delivered before its enqueue began".to_owned())
}

fn removed_twice(history: &[QueueOperation], life: &Life) -> Option<String> {
    let acks = acknowledged(history, life).count();
    (acks + life.pops.len() > 1).then(|| {
        format!(
            "was removed {} times: by {acks} acknowledgements and {} pops",
            acks + life.pops.len(),
            life.pops.len()
        )
    })
}

/// Finds a delivery, or a valid consumer, after the item had been removed.
fn after_removal(history: &[QueueOperation], life: &Life) -> Option<String> {
    if let Some((ended, _)) = acknowledged(history, life).next()
        && let Some(again) = life.deliveries.last().filter(|last| last.token > ended)
    {
        return Some(format!(
            "was delivered under token {}, although it was acknowledged under token {ended}",
            again.token
        ));
    }
    let steps = life.steps.iter().map(|(_, index)| *index);
    let valid = steps.filter(|index| is_done(history, *index));
    let deliveries = life.deliveries.iter().map(|delivery| delivery.operation);
    let later: Vec<usize> = valid.chain(deliveries).collect();
    let after = |pop: &usize| later.iter().any(|index| history[*pop].precedes(&history[*index]));
    let found = life.pops.iter().any(after);
    found.then(|| "was delivered, or its delivery was valid, after it had been popped".to_owned())
}

/// Compares the counts: each delivery has that of the delivery before it plus one, and one more for each delivery in
/// between that no client saw.
fn counts(history: &[QueueOperation], life: &Life, unseen: &Unseen) -> Option<String> {
    let mut tokens = life.deliveries.windows(2);
    if let Some(pair) = tokens.find(|pair| pair[0].token == pair[1].token) {
        return Some(format!("was delivered twice under token {}", pair[0].token));
    }
    let mut last = 0;
    let mut since = life.enqueue.map_or(0, |index| history[index].invoked);
    for delivery in &life.deliveries {
        let (token, count) = (delivery.token, delivery.deliveries);
        if count <= last {
            return Some(format!(
                "has delivery number {count} under token {token}, after delivery number {last} under a smaller token"
            ));
        }
        let op = &history[delivery.operation];
        let (hidden, most) = ((count - last - 1) as usize, unseen.between(since, op.latest()));
        if hidden > most {
            return Some(format!(
                "has delivery number {count} under token {token}, after delivery number {last}: {hidden} deliveries are missing, of which at most {most} can have been lost answers"
            ));
        }
        (last, since) = (count, op.invoked);
    }
    None
}

/// Returns the deliveries of an item as holdings that exclude one another, sorted by token.
fn holdings(history: &[QueueOperation], life: &Life, proof: Proof) -> Vec<Holding> {
    let mut holdings: Vec<Holding> = Vec::new();
    for delivery in &life.deliveries {
        let op = &history[delivery.operation];
        let mut holding = Holding::new(delivery.token, Mode::Exclusive);
        holding.asked = op.invoked;
        holding.grant(op.latest(), delivery.operation);
        holdings.push(holding);
    }
    for &(token, index) in life.steps.iter().filter(|(_, index)| is_done(history, *index)) {
        let place = holdings.partition_point(|holding| holding.token < token);
        if holdings.get(place).is_none_or(|holding| holding.token != token) {
            // The session was resumed: the delivery is not in this history.
            holdings.insert(place, Holding::new(token, Mode::Exclusive));
        }
        let (holding, op) = (&mut holdings[place], &history[index]);
        holding.grant(op.invoked, index);
        match op.input {
            QueueCall::Check { .. } if proof == Proof::Store => {}
            QueueCall::Check { .. } => holding.prove(op.invoked, index),
            _ => holding.end(op.invoked, op.latest(), index),
        }
    }
    holdings
}

/// Compares the last list with what was accepted and removed, and returns its length.
fn remaining(history: &[QueueOperation], lives: &BTreeMap<u64, Life>) -> Result<Option<usize>, Violation> {
    let lists = history.iter().enumerate();
    let lists = lists.filter_map(|(index, op)| match op.answer() {
        Some(QueueAnswer::Items(items)) => Some((index, op, items)),
        _ => None,
    });
    let Some((index, list, items)) = lists.max_by_key(|(_, op, _)| op.invoked) else {
        return Ok(None);
    };
    let mut listed = HashSet::new();
    for &item in items {
        let life = lives.get(&item);
        let enqueue = life.and_then(|life| life.enqueue).map(|index| &history[index]);
        let source = enqueue.filter(|op| op.is_possible() && !list.precedes(op));
        let removed = life.is_some_and(|life| {
            let acks = acknowledged(history, life).map(|(_, index)| index);
            let mut ends = acks.chain(life.pops.iter().copied());
            ends.any(|end| history[end].precedes(list))
        });
        let fault = match (source, listed.insert(item)) {
            (None, _) => "came from nowhere: it was listed, but never accepted",
            (_, false) => "was listed twice",
            _ if removed => "was still there after it had been removed",
            _ => continue,
        };
        let operations = life.into_iter().flat_map(Life::operations).chain([index]);
        return Err(Violation::new(history, format!("item {item} {fault}"), operations));
    }
    // Each pop of unknown outcome may have removed one item.
    let mut conceded = unknown_pops(history).filter(|begin| *begin < list.latest()).count();
    for (item, life) in lives.iter().filter(|(item, _)| !listed.contains(item)) {
        let accepted = life.enqueue.filter(|index| is_done(history, *index));
        let mut seen = accepted.into_iter().chain(taken(life));
        let may_be_removed = !life.pops.is_empty()
            || life.steps.iter().any(|(_, step)| {
                let op = &history[*step];
                matches!(op.input, QueueCall::Ack { .. })
                    && op.is_possible()
                    && op.answer() != Some(&QueueAnswer::Refused)
            });
        if may_be_removed || !seen.any(|index| history[index].precedes(list)) {
            continue;
        }
        if conceded > 0 {
            conceded -= 1;
            continue;
        }
        let what = format!("item {item} is lost: it was accepted, never acknowledged, and is not there");
        let operations = life.operations().chain([index]);
        return Err(Violation::new(history, what, operations));
    }
    Ok(Some(items.len()))
}
