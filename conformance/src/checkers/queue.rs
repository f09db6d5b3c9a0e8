//! A queue with priorities and acknowledgements: its vocabulary, and a [`Model`] to search with.
//!
//! The search is for short histories: keep the queue below some hundred items and the clients few.
//! For long ones there is [`total_queue`](super::total_queue), which reads the same history.

use serde::{Deserialize, Serialize};

use super::jsonl::Line;
use super::operation::Operation;
use super::search::Model;

/// What can be asked of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueCall {
    /// To take an item in.
    Enqueue {
        /// The item; no two in a history are the same.
        item: u64,
        /// The lower the sooner.
        priority: u16,
    },
    /// To hand out an item, which stays until it is acknowledged.
    Dequeue {
        /// The session that gets it.
        by: u64,
    },
    /// To hand out an item, and acknowledge it in the same step.
    Pop,
    /// To forget an item: the work is done.
    Acknowledge {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// To take an item back, at its old place.
    Return {
        /// The item.
        item: u64,
        /// The token of the delivery.
        token: u64,
    },
    /// To take back whatever a session has: it was closed, or it may have expired from the time of
    /// this call on (then its fate is unknown).
    Depart {
        /// The session.
        by: u64,
    },
}

/// What a queue answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueAnswer {
    /// It was done: to everything but a dequeue and a pop.
    Done,
    /// To a dequeue and a pop.
    Delivered {
        /// The item.
        item: u64,
        /// The token of this delivery.
        token: u64,
        /// How often the item was delivered, this time included.
        count: u32,
    },
    /// To a dequeue and a pop, if there is nothing to hand out.
    Empty,
    /// To an acknowledgement and a return, if the delivery is no longer in force.
    Lost,
}

/// The history of a queue.
pub type QueueOperation = Operation<QueueCall, QueueAnswer>;

impl Line for QueueOperation {
    const KIND: &'static str = "queue";
}

/// One queue: by priority, then in the order of arrival.
#[derive(Clone, Copy, Debug)]
pub struct PriorityQueue;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    /// Under the token, unless the answer to the dequeue was lost.
    Session(u64, Option<u64>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Item {
    item: u64,
    priority: u16,
    holder: Holder,
    count: u32,
}

/// What a queue holds, in the order in which it is handed out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueueState(Vec<Item>);

impl QueueState {
    fn enqueued(&self, item: u64, priority: u16) -> Self {
        let mut items = self.0.clone();
        let place = items.partition_point(|before| before.priority <= priority);
        let (holder, count) = (Holder::Nobody, 0);
        items.insert(
            place,
            Item {
                item,
                priority,
                holder,
                count,
            },
        );
        Self(items)
    }

    /// Hands out the first item, to a session or (`None`) for good.
    fn handed_out(&self, by: Option<u64>, answer: Option<&QueueAnswer>) -> Option<Self> {
        let head = self.0.iter().position(|item| item.holder == Holder::Nobody);
        let (Some(head), told) = (head, answer) else {
            // A dequeue that found nothing has no effect, answered or not.
            let fits = matches!(answer, None | Some(QueueAnswer::Empty));
            return fits.then(|| self.clone());
        };
        let first = self.0[head];
        let told = match told {
            None => None,
            Some(&QueueAnswer::Delivered { item, token, count })
                if (item, count) == (first.item, first.count + 1) =>
            {
                Some(token)
            }
            Some(_) => return None,
        };
        let mut items = self.0.clone();
        match by {
            None => {
                items.remove(head);
            }
            Some(by) => {
                items[head].holder = Holder::Session(by, told);
                items[head].count += 1;
            }
        }
        Some(Self(items))
    }

    /// The place of an item that is out under this token.
    fn held(&self, item: u64, token: u64) -> Option<usize> {
        self.0.iter().position(|held| {
            held.item == item
                && matches!(held.holder, Holder::Session(_, Some(under)) if under == token)
        })
    }

    /// Ends a delivery: takes the item away, or takes it back.
    fn ended(
        &self,
        (item, token): (u64, u64),
        answer: Option<&QueueAnswer>,
        gone: bool,
    ) -> Option<Self> {
        let held = self.held(item, token);
        match (held, answer) {
            (None, None | Some(QueueAnswer::Lost)) => Some(self.clone()),
            (Some(place), None | Some(QueueAnswer::Done)) => {
                let mut items = self.0.clone();
                if gone {
                    items.remove(place);
                } else {
                    items[place].holder = Holder::Nobody;
                }
                Some(Self(items))
            }
            _ => None,
        }
    }

    fn departed(&self, session: u64) -> Self {
        let mut items = self.0.clone();
        for item in &mut items {
            if matches!(item.holder, Holder::Session(by, _) if by == session) {
                item.holder = Holder::Nobody;
            }
        }
        Self(items)
    }
}

impl Model for PriorityQueue {
    type Key = ();
    type Input = QueueCall;
    type Output = QueueAnswer;
    type State = QueueState;

    fn key(_: &QueueCall) {}

    fn initial() -> QueueState {
        QueueState(Vec::new())
    }

    fn step(
        state: &QueueState,
        input: &QueueCall,
        output: Option<&QueueAnswer>,
    ) -> Option<QueueState> {
        let done = matches!(output, None | Some(QueueAnswer::Done));
        match *input {
            QueueCall::Enqueue { item, priority } => done.then(|| state.enqueued(item, priority)),
            QueueCall::Dequeue { by } => state.handed_out(Some(by), output),
            QueueCall::Pop => state.handed_out(None, output),
            QueueCall::Acknowledge { item, token } => state.ended((item, token), output, true),
            QueueCall::Return { item, token } => state.ended((item, token), output, false),
            QueueCall::Depart { by } => done.then(|| state.departed(by)),
        }
    }

    fn only_looks(_: &QueueCall, output: &QueueAnswer) -> bool {
        matches!(output, QueueAnswer::Empty | QueueAnswer::Lost)
    }
}

#[cfg(test)]
pub(crate) mod simulated {
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
                let known = matches!(answer, QueueAnswer::Delivered { token, .. } if ended.contains(&token));
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
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::jsonl::round_trip;
    use super::super::search::{BUDGET, Finding, check};
    use super::super::simulate::{done, lost};
    use super::QueueAnswer::{Delivered, Done, Empty, Lost};
    use super::QueueCall::{Acknowledge, Depart, Dequeue, Enqueue, Pop};
    use super::*;
    use crate::cases::Random;

    fn put(span: (u64, u64), item: u64, priority: u16) -> QueueOperation {
        done(0, span, Enqueue { item, priority }, Done)
    }

    fn take(span: (u64, u64), item: u64, token: u64, count: u32) -> QueueOperation {
        done(1, span, Dequeue { by: 1 }, Delivered { item, token, count })
    }

    fn judge(history: &[QueueOperation]) -> Finding {
        check::<PriorityQueue>(history, BUDGET)
    }

    fn wrong(history: &[QueueOperation]) -> bool {
        matches!(judge(history), Finding::Violated(_))
    }

    #[test]
    fn the_urgent_goes_first_and_equals_as_they_came() {
        let puts = [put((0, 1), 1, 5), put((2, 3), 2, 0), put((4, 5), 3, 5)];
        let with = |items: [u64; 3]| {
            let mut history = puts.to_vec();
            for (at, item) in (10..).step_by(2).zip(items) {
                history.push(take((at, at + 1), item, at, 1));
            }
            history
        };
        assert_eq!(judge(&with([2, 1, 3])), Finding::Linearizable(6));
        assert!(wrong(&with([1, 2, 3])));
        assert!(wrong(&with([2, 3, 1])));
    }

    #[test]
    fn enqueues_that_overlap_may_come_in_either_order() {
        let history = [
            put((0, 9), 1, 0),
            put((0, 9), 2, 0),
            take((10, 11), 2, 1, 1),
        ];
        assert_eq!(judge(&history), Finding::Linearizable(3));
    }

    #[test]
    fn an_item_comes_back_when_its_session_departs() {
        let first = [put((0, 1), 1, 0), take((2, 3), 1, 1, 1)];
        let mut twice = first.to_vec();
        twice.push(take((6, 7), 1, 2, 2));
        assert!(wrong(&twice), "it is still out");
        twice.push(lost(1, 4, Depart { by: 1 }));
        assert_eq!(judge(&twice), Finding::Linearizable(4 - 1));
        let acknowledge = |token| Acknowledge { item: 1, token };
        twice.push(done(1, (8, 9), acknowledge(1), Lost));
        assert_eq!(judge(&twice), Finding::Linearizable(4));
        twice.push(done(1, (10, 11), acknowledge(2), Done));
        assert_eq!(judge(&twice), Finding::Linearizable(5));
        twice[4].fate = super::super::Fate::Done(Done);
        assert!(wrong(&twice), "a stale acknowledgement was taken");
    }

    #[test]
    fn empty_while_something_waits_is_found() {
        let empty = |span| done(1, span, Pop, Empty);
        assert_eq!(
            judge(&[empty((0, 5)), put((2, 3), 1, 0)]),
            Finding::Linearizable(2)
        );
        assert!(wrong(&[put((0, 1), 1, 0), empty((2, 3))]));
    }

    #[test]
    fn a_lost_pop_may_have_taken_the_item() {
        let empty = done(1, (6, 7), Pop, Empty);
        let history = [put((0, 1), 1, 0), lost(2, 2, Pop), empty];
        assert_eq!(judge(&history), Finding::Linearizable(2));
    }

    #[test]
    fn a_departure_that_could_do_nothing_yet_may_wait() {
        // Alone, the departure would do nothing before the dequeue, and must still come after it.
        let depart = done(2, (2, 9), Depart { by: 1 }, Done);
        let history = [
            put((0, 1), 1, 0),
            depart,
            take((3, 8), 1, 1, 1),
            take((10, 11), 1, 2, 2),
        ];
        assert_eq!(judge(&history), Finding::Linearizable(4));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn correct_histories_pass_and_come_back_from_a_file(seed: u64) {
            let history = simulated::queue(&mut Random::seeded(seed), 40, 2, 4);
            let finding = judge(&history);
            prop_assert!(matches!(finding, Finding::Linearizable(_)), "{:?}", finding);
            round_trip(&history);
        }

        #[test]
        fn a_second_delivery_of_an_item_fails(seed: u64) {
            let mut random = Random::seeded(seed);
            let mut history = simulated::queue(&mut random, 40, 1, 0);
            let last = history.last().unwrap().ended.unwrap().as_millis();
            let late = u64::try_from(last).unwrap() + 10;
            let item = history.iter().find_map(|op| match op.answer() {
                Some(Delivered { item, .. }) => Some(*item),
                _ => None,
            });
            prop_assume!(item.is_some());
            history.push(take((late, late + 1), item.unwrap(), 1_000, 2));
            prop_assert!(wrong(&history));
        }
    }
}
