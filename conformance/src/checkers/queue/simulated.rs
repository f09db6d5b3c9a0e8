//! Histories of a queue that does what it should.

use std::collections::HashSet;

use super::super::operation::Fate;
use super::super::simulate::overlapped;
use super::*;
use crate::cases::Random;

/// A queue that does what it should, and is drained at the end.
pub(crate) fn queue(
    random: &mut Random,
    steps: u64,
    spread: u64,
    lost: u64,
) -> Vec<QueueOperation> {
    let mut state = PriorityQueue::initial();
    let mut done = Vec::new();
    let (mut token, mut next) = (0, 0);
    for step in 0.. {
        let drain = step >= steps;
        if drain && state.0.is_empty() {
            break;
        }
        let call = match random.below(8) {
            0..3 if !drain => {
                next += 1;
                let priority = u16::try_from(random.below(3)).unwrap();
                QueueCall::Enqueue {
                    item: next,
                    priority,
                }
            }
            0..5 => QueueCall::Dequeue {
                by: random.below(3),
            },
            5 if random.below(3) == 0 => QueueCall::Depart {
                by: random.below(3),
            },
            kind => match state.0.iter().find_map(|item| match item.holder {
                Holder::Session(_, Some(token)) => Some((item.item, token)),
                _ => None,
            }) {
                Some((item, token)) if kind == 6 && random.below(2) == 0 => {
                    QueueCall::Return { item, token }
                }
                Some((item, token)) => QueueCall::Acknowledge { item, token },
                None => QueueCall::Dequeue { by: 0 },
            },
        };
        token += 1;
        let answer = answer(&state, &call, token);
        state = PriorityQueue::step(&state, &call, Some(&answer)).unwrap();
        done.push((call, answer));
    }
    // Whoever ends a delivery has heard of it: the answer to that dequeue was not lost.
    let ended = done.iter().filter_map(|(call, _)| match call {
        QueueCall::Acknowledge { token, .. } | QueueCall::Return { token, .. } => Some(*token),
        _ => None,
    });
    let ended: HashSet<u64> = ended.collect();
    let told: Vec<_> = done.iter().map(|(_, answer)| answer.clone()).collect();
    let numbered = (0..).zip(done).map(|(step, (call, _))| (call, step));
    overlapped(random, numbered.collect(), spread, 0)
        .into_iter()
        .map(|operation| {
            let step: usize = *operation.answer().unwrap();
            let answer = told[step].clone();
            let known =
                matches!(answer, QueueAnswer::Delivered { token, .. } if ended.contains(&token));
            let fate = if known || random.below(100) >= lost {
                Fate::Done(answer)
            } else {
                Fate::Unknown
            };
            Operation {
                client: operation.client,
                called: operation.called,
                ended: operation.ended,
                input: operation.input,
                fate,
            }
        })
        .collect()
}

fn answer(state: &QueueState, call: &QueueCall, token: u64) -> QueueAnswer {
    let head = state
        .0
        .iter()
        .find(|item| item.holder == Holder::Nobody)
        .map(|head| (head.item, head.count + 1));
    match (call, head) {
        (QueueCall::Dequeue { .. } | QueueCall::Pop, Some((item, count))) => {
            QueueAnswer::Delivered { item, token, count }
        }
        (QueueCall::Dequeue { .. } | QueueCall::Pop, None) => QueueAnswer::Empty,
        _ => QueueAnswer::Done,
    }
}
