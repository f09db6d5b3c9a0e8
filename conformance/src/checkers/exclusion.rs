//! When did two clients believe that they held the lock?

use std::collections::HashMap;
use std::time::Duration;

use tenure_core::FencingToken;

use super::history::{Event, What};

/// A time in which a client believed that it held the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Belief {
    /// Who.
    pub client: usize,
    /// Under which token.
    pub token: FencingToken,
    /// From the moment it learned of the grant...
    pub from: Duration,
    /// ...until it began to release or learned of the loss; open if it never did.
    pub to: Option<Duration>,
}

/// The intervals of belief in a history.
pub fn beliefs(events: &[Event]) -> Vec<Belief> {
    let mut open: HashMap<(usize, FencingToken), usize> = HashMap::new();
    let mut beliefs: Vec<Belief> = Vec::new();
    for event in events {
        match event.what {
            What::Granted(token) => {
                open.insert((event.client, token), beliefs.len());
                beliefs.push(Belief {
                    client: event.client,
                    token,
                    from: event.at,
                    to: None,
                });
            }
            What::Releasing(token) | What::Ended(token) | What::Released(token) => {
                if let Some(index) = open.remove(&(event.client, token)) {
                    beliefs[index].to = Some(event.at);
                }
            }
            _ => {}
        }
    }
    beliefs
}

/// Every pair of beliefs that overlap, the earlier one first.
pub fn overlaps(events: &[Event]) -> Vec<(Belief, Belief)> {
    let mut beliefs = beliefs(events);
    beliefs.sort_by_key(|belief| belief.from);
    let mut found = Vec::new();
    for (index, first) in beliefs.iter().enumerate() {
        for second in &beliefs[index + 1..] {
            if first.to.is_none_or(|to| second.from < to) {
                found.push((*first, *second));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::history::told;
    use super::*;

    const ONE: FencingToken = FencingToken::new(1);
    const TWO: FencingToken = FencingToken::new(2);

    #[test]
    fn one_after_the_other_is_fine() {
        let history = told(&[
            (0, What::Granted(ONE)),
            (0, What::Releasing(ONE)),
            (1, What::Granted(TWO)),
            (0, What::Released(ONE)),
        ]);
        assert_eq!(beliefs(&history).len(), 2);
        assert!(overlaps(&history).is_empty());
    }

    #[test]
    fn a_second_grant_within_a_belief_is_found() {
        let history = told(&[
            (0, What::Granted(ONE)),
            (1, What::Granted(TWO)),
            (0, What::Ended(ONE)),
        ]);
        let found = overlaps(&history);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].0.client, found[0].1.client), (0, 1));
    }

    #[test]
    fn one_who_never_ends_overlaps_all_that_follow() {
        let history = told(&[
            (0, What::Granted(ONE)),
            (1, What::Granted(TWO)),
            (1, What::Releasing(TWO)),
        ]);
        assert_eq!(overlaps(&history).len(), 1);
    }
}
