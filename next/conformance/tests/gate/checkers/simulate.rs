//! Correct objects, one effect at a time, and the operations around these effects.

use proptest::test_runner::Config;
use tenure_conformance::checkers::{Operation, Outcome};

/// A failure prints its seed, so that no file has to keep it.
pub(super) fn config() -> Config {
    Config {
        failure_persistence: None,
        ..Config::default()
    }
}

/// A number of decisions that a seed determines. A smaller number is the beginning of the same run.
pub(super) struct Choices(Box<dyn ExactSizeIterator<Item = u32>>);

impl Choices {
    pub(super) fn new(seed: u64, count: usize) -> Self {
        let mut seed = seed.max(1);

        let xorshift = move |_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 16) as u32
        };
        Self(Box::new((0..count).map(xorshift)))
    }

    /// Returns a number below `n`, or `None` at the end of the choices.
    pub(super) fn below(&mut self, n: u64) -> Option<u64> {
        Some(u64::from(self.0.next()?) % n)
    }
}

/// A fate that a simulated operation can have.
#[derive(PartialEq, Eq)]
pub(super) enum Fate {
    /// It takes effect, and its client learns the answer.
    Answered,
    /// It takes effect, and the answer is lost.
    Lost,
    /// It never arrives, and the client does not learn this.
    Dropped,
    /// It is refused before it has an effect.
    Failed,
}

/// Clients that take turns: each effect has an instant of its own, and lies between a call and a return.
pub(super) struct World<I, O> {
    pub(super) choices: Choices,
    pub(super) now: u64,
    /// From when on each client may call again.
    free: Vec<u64>,
    pub(super) history: Vec<Operation<I, O>>,
}

impl<I, O> World<I, O> {
    pub(super) fn new(clients: usize, choices: Choices) -> Self {
        Self {
            choices,
            now: 0,
            free: vec![0; clients],
            history: Vec::new(),
        }
    }

    /// Lets time pass until a client, which it returns, can have another effect.
    pub(super) fn turn(&mut self) -> Option<usize> {
        // A turn has both its effect and its record, or neither.
        if self.choices.0.len() < 20 {
            return None;
        }
        let client = self.choices.below(self.free.len() as u64)? as usize;
        self.now = (self.now + 1 + self.choices.below(4)?).max(self.free[client] + 1);
        Some(client)
    }

    pub(super) fn fate(&mut self) -> Option<Fate> {
        Some(match self.choices.below(20)? {
            0 => Fate::Lost,
            1 => Fate::Dropped,
            2 => Fate::Failed,
            _ => Fate::Answered,
        })
    }

    /// Records an operation of `client` with its effect now.
    pub(super) fn record(&mut self, client: usize, input: I, outcome: Outcome<O>) -> Option<usize> {
        let free = self.free[client];
        let invoked = self.now - self.choices.below((self.now - free).min(40))?;
        let returned = self.now + self.choices.below(40)?;
        self.free[client] = returned + 1;
        let open = matches!(outcome, Outcome::Unknown);
        let client = client as u64;
        let returned = (!open).then_some(returned);
        self.history.push(Operation {
            client,
            invoked,
            returned,
            input,
            outcome,
        });
        Some(self.history.len() - 1)
    }

    /// Returns the history in the order of the calls.
    pub(super) fn finish(mut self) -> Vec<Operation<I, O>> {
        self.history.sort_by_key(|operation| operation.invoked);
        self.history
    }
}
