//! Histories that are correct by construction, for the checkers' own tests.

use std::time::Duration;

use super::operation::{Fate, Operation};
use crate::cases::Random;

/// Each step takes effect at its own time, in this order; its call and its answer lie around that
/// time, up to `spread` steps away. Of a hundred, about `lost` have their answers lost.
pub(crate) fn overlapped<I, O>(
    random: &mut Random,
    steps: Vec<(I, O)>,
    spread: u64,
    lost: u64,
) -> Vec<Operation<I, O>> {
    let spread = spread * 1000;
    let mut operations: Vec<_> = (1..)
        .zip(steps)
        .map(|(step, (input, output))| {
            let effect: u64 = 1000 * step + spread;
            let unknown = random.below(100) < lost;
            Operation {
                client: 0,
                called: Duration::from_micros(effect - random.below(spread + 1)),
                ended: Some(Duration::from_micros(effect + random.below(spread + 1))),
                input,
                fate: if unknown {
                    Fate::Unknown
                } else {
                    Fate::Done(output)
                },
            }
        })
        .collect();
    operations.sort_by_key(|operation| operation.called);
    hand_out(&mut operations);
    operations
}

/// Gives each operation to the first client that is free.
fn hand_out<I, O>(operations: &mut [Operation<I, O>]) {
    let mut busy: Vec<Duration> = Vec::new();
    for operation in operations {
        let free = busy.iter().position(|until| *until < operation.called);
        let client = free.unwrap_or(busy.len());
        if client == busy.len() {
            busy.push(Duration::ZERO);
        }
        busy[client] = operation.ended.unwrap_or(Duration::MAX);
        operation.client = client;
    }
}

/// An operation that took effect from one millisecond to another.
pub(crate) fn done<I, O>(client: usize, span: (u64, u64), input: I, output: O) -> Operation<I, O> {
    Operation {
        client,
        called: Duration::from_millis(span.0),
        ended: Some(Duration::from_millis(span.1)),
        input,
        fate: Fate::Done(output),
    }
}

/// An operation of which nobody heard again.
pub(crate) fn lost<I, O>(client: usize, called: u64, input: I) -> Operation<I, O> {
    Operation {
        client,
        called: Duration::from_millis(called),
        ended: None,
        input,
        fate: Fate::Unknown,
    }
}

/// An operation that certainly had no effect.
pub(crate) fn failed<I, O>(client: usize, span: (u64, u64), input: I) -> Operation<I, O> {
    Operation {
        client,
        called: Duration::from_millis(span.0),
        ended: Some(Duration::from_millis(span.1)),
        input,
        fate: Fate::Failed,
    }
}
