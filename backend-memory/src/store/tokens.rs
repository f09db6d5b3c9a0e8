//! Fencing tokens: one counter for the whole store, and for each namespace the distance by which an operator
//! raised it.

use std::collections::HashMap;

use tenure_core::{FencingToken, Namespace};

use super::State;

#[derive(Debug, Default)]
pub(super) struct Tokens {
    last: u64,
    /// What is added to the counter. Only namespaces whose floor was raised have an entry, so that one
    /// application's floor does not move the tokens of another.
    raised_by: HashMap<Namespace, u64>,
}

impl Tokens {
    /// Returns a token greater than every token of `namespace` before.
    pub(super) fn next(&mut self, namespace: &Namespace) -> FencingToken {
        self.last += 1;
        FencingToken::new(self.last + self.raised_by.get(namespace).copied().unwrap_or_default())
    }

    /// Makes `floor` the least token to come; returns whether that changed anything.
    fn raise(&mut self, namespace: &Namespace, floor: FencingToken) -> bool {
        let raised_by = floor.get().saturating_sub(self.last + 1);
        let rises = raised_by > self.raised_by.get(namespace).copied().unwrap_or_default();
        if rises {
            self.raised_by.insert(namespace.clone(), raised_by);
        }
        rises
    }
}

impl State {
    /// Raises the least token that `namespace` grants from now on.
    pub(crate) fn raise_token_floor(&mut self, namespace: &Namespace, floor: FencingToken) {
        if self.tokens.raise(namespace, floor) {
            self.renumber_waiting(namespace);
        }
    }
}
