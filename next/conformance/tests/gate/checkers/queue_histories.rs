//! Queues: the account and the order.

use proptest::prelude::*;
use tenure_conformance::checkers::queue::{
    Delivered, QueueAnswer, QueueCall, QueueOperation, check_account, check_order,
};
use tenure_conformance::checkers::{Outcome, Proof, Violation};

use super::simulate::{self, Choices, Fate, World};
use super::{assert_found, assert_round_trip, failed, ok, unknown};
use QueueAnswer::{Done, Items, Popped, Refused};
use QueueCall::{Ack, Check, Dequeue, Enqueue, List, Nack, Pop};

#[derive(Clone, Copy)]
struct Item {
    item: u64,
    priority: u16,
    /// Its place in the order of acceptance.
    accepted: u64,
    deliveries: u32,
    /// The token under which a consumer has it.
    token: Option<u64>,
    visible: bool,
}

#[derive(Default)]
struct Queue {
    items: Vec<Item>,
    accepted: u64,
    tokens: u64,
    /// The tokens that a dequeue of unknown outcome holds, with its place in the history.
    unseen: Vec<(u64, usize)>,
}

impl Queue {
    fn accept(&mut self, item: u64, priority: u16, visible: bool) {
        self.accepted += 1;
        let (accepted, deliveries, token) = (self.accepted, 0, None);
        let place = self
            .items
            .partition_point(|other| (other.priority, other.accepted) < (priority, accepted));
        self.items.insert(
            place,
            Item {
                item,
                priority,
                accepted,
                deliveries,
                token,
                visible,
            },
        );
    }

    fn first(&self) -> Option<usize> {
        self.items.iter().position(|item| item.token.is_none() && item.visible)
    }

    fn take(&mut self) -> Option<Delivered> {
        let first = self.first()?;
        self.tokens += 1;
        let item = &mut self.items[first];
        (item.token, item.deliveries) = (Some(self.tokens), item.deliveries + 1);
        Some(Delivered {
            item: item.item,
            token: self.tokens,
            deliveries: item.deliveries,
        })
    }

    fn held(&self, token: u64) -> Option<usize> {
        self.items.iter().position(|item| item.token == Some(token))
    }

    fn give_back(&mut self, token: u64, visible: bool) {
        if let Some(place) = self.held(token) {
            (self.items[place].token, self.items[place].visible) = (None, visible);
        }
    }
}

const CLIENTS: usize = 6;

/// Returns the history of a correct queue, which ends with a list.
fn history(choices: Choices, depth: u64) -> Vec<QueueOperation> {
    let mut world = World::new(CLIENTS, choices);
    let (mut queue, mut held) = (Queue::default(), vec![Vec::new(); CLIENTS]);
    while turn(&mut world, &mut queue, &mut held, depth).is_some() {}
    let mut now = world.now + 1_000;
    for (_, operation) in std::mem::take(&mut queue.unseen) {
        world.history[operation].returned = Some(now);
    }
    now += 1;
    let items = queue.items.iter().map(|item| item.item).collect();
    world.history.push(ok((now, now + 1), List, Items(items)));
    world.finish()
}

fn turn(
    world: &mut World<QueueCall, QueueAnswer>,
    queue: &mut Queue,
    held: &mut [Vec<Delivered>],
    depth: u64,
) -> Option<()> {
    let client = world.turn()?;
    match world.choices.below(40)? {
        0 => queue.items.iter_mut().for_each(|item| item.visible = true),
        1 => held[client].iter().for_each(|lost| queue.give_back(lost.token, true)),
        2 => {
            for (token, operation) in std::mem::take(&mut queue.unseen) {
                queue.give_back(token, true);
                world.history[operation].returned = Some(world.now);
            }
        }
        _ => {}
    }
    let fate = world.fate()?;
    let arrives = matches!(fate, Fate::Answered | Fate::Lost);
    let outcome = |answer| match fate {
        Fate::Answered => Outcome::Ok(answer),
        Fate::Failed => Outcome::Failed,
        Fate::Lost | Fate::Dropped => Outcome::Unknown,
    };
    if (queue.items.len() as u64) < depth || world.choices.below(4)? == 0 {
        let (item, delayed) = (world.history.len() as u64, world.choices.below(8)? == 0);
        let priority = world.choices.below(3)? as u16;
        if arrives {
            queue.accept(item, priority, !delayed);
        }
        return world
            .record(
                client,
                Enqueue {
                    item,
                    priority,
                    delayed,
                },
                outcome(Done),
            )
            .map(|_| ());
    }
    if held[client].is_empty() {
        if world.choices.below(6)? == 0 {
            let first = queue
                .first()
                .filter(|_| arrives)
                .map(|first| queue.items.remove(first).item);
            return world.record(client, Pop, outcome(Popped(first))).map(|_| ());
        }
        let max = 1 + world.choices.below(3)? as usize;
        let taken: Vec<Delivered> = (0..max).filter(|_| arrives).map_while(|_| queue.take()).collect();
        let answer = outcome(QueueAnswer::Delivered(taken.clone()));
        let operation = world.record(client, Dequeue { max }, answer)?;
        if fate == Fate::Answered {
            held[client] = taken;
        } else {
            queue.unseen.extend(taken.iter().map(|it| (it.token, operation)));
        }
        return Some(());
    }
    let Delivered { item, token, .. } = held[client][0];
    let place = queue.held(token);
    let answer = if place.is_some() { Done } else { Refused };
    let input = match world.choices.below(4)? {
        0 => Check { item, token },
        1 => {
            let delayed = world.choices.below(4)? == 0;
            if arrives {
                queue.give_back(token, !delayed);
            }
            held[client].remove(0);
            Nack { item, token, delayed }
        }
        _ => {
            if let Some(place) = place.filter(|_| arrives) {
                queue.items.remove(place);
            }
            held[client].remove(0);
            Ack { item, token }
        }
    };
    world.record(client, input, outcome(answer)).map(|_| ())
}

proptest! {
    #![proptest_config(simulate::config())]
    #[test]
    fn queue_history_of_a_correct_object_passes(seed: u64, length in 0_usize..2000, depth in 0_u64..30) {
        let history = history(Choices::new(seed, length), depth);
        assert_round_trip(&history);
        prop_assert_eq!(check_account(&history, Proof::Guards).err(), None);
        prop_assert_eq!(check_order(&history).err(), None);
    }
}

#[test]
fn queue_history_of_100000_operations_is_judged() {
    let history = history(Choices::new(7, 900_000), 5_000);
    assert!(history.len() > 100_000, "{}", history.len());
    let account = check_account(&history, Proof::Guards).unwrap();
    assert!(
        account.acknowledged > 10_000 && account.redelivered > 1_000,
        "{account:?}"
    );
    assert!(
        account.remaining.is_some_and(|remaining| remaining > 1_000),
        "{account:?}"
    );
    let order = check_order(&history).unwrap();
    assert!(order.ordered * 2 > order.judged, "{order:?}");
}

fn enqueue(span: (u64, u64), item: u64, priority: u16) -> QueueOperation {
    ok(
        span,
        Enqueue {
            item,
            priority,
            delayed: false,
        },
        Done,
    )
}

fn dequeue(span: (u64, u64), item: u64, token: u64, deliveries: u32) -> QueueOperation {
    ok(
        span,
        Dequeue { max: 1 },
        QueueAnswer::Delivered(vec![Delivered {
            item,
            token,
            deliveries,
        }]),
    )
}

fn list(at: u64, items: &[u64]) -> QueueOperation {
    ok((at, at), List, Items(items.to_vec()))
}

fn account(operations: &[QueueOperation]) -> Result<(), Violation> {
    check_account(operations, Proof::Guards).map(|_| ())
}

#[test]
fn queue_item_from_nowhere_is_found() {
    assert_found(account(&[dequeue((0, 1), 1, 7, 1)]), "never accepted");
    assert_found(
        account(&[dequeue((0, 1), 1, 7, 1), enqueue((2, 3), 1, 0)]),
        "before its enqueue",
    );
    let refused = failed(
        (0, 1),
        Enqueue {
            item: 1,
            priority: 0,
            delayed: false,
        },
    );
    assert_found(account(&[refused, dequeue((2, 3), 1, 7, 1)]), "never accepted");
    let lost = unknown(
        0,
        Enqueue {
            item: 1,
            priority: 0,
            delayed: false,
        },
    );
    assert_eq!(account(&[lost, dequeue((2, 3), 1, 7, 1)]), Ok(()));
    assert_found(account(&[enqueue((0, 1), 1, 0), enqueue((2, 3), 1, 0)]), "not unique");
}

#[test]
fn queue_item_that_is_removed_twice_or_comes_back_is_found() {
    let with = |more: &[QueueOperation]| {
        let ack = ok((4, 5), Ack { item: 1, token: 7 }, Done);
        account(&[&[enqueue((0, 1), 1, 0), dequeue((2, 3), 1, 7, 1), ack], more].concat())
    };
    assert_eq!(with(&[]), Ok(()));
    let pop = ok((6, 7), Pop, Popped(Some(1)));
    assert_found(with(&[ok((6, 7), Ack { item: 1, token: 7 }, Done)]), "removed 2 times");
    assert_found(with(std::slice::from_ref(&pop)), "removed 2 times");
    assert_found(with(&[dequeue((6, 7), 1, 8, 2)]), "although it was acknowledged");
    let popped = [enqueue((0, 1), 1, 0), pop, dequeue((8, 9), 1, 8, 1)];
    assert_found(account(&popped), "after it had been popped");
}

#[test]
fn queue_item_with_two_consumers_is_found() {
    let with = |step: QueueOperation, proof| {
        let twice = [
            enqueue((0, 1), 1, 0),
            dequeue((2, 3), 1, 7, 1),
            dequeue((4, 5), 1, 8, 2),
            step,
        ];
        check_account(&twice, proof)
    };
    let check = |span| ok(span, Check { item: 1, token: 7 }, Done);
    assert_found(with(check((6, 7)), Proof::Guards), "two holders");
    assert!(with(check((6, 7)), Proof::Store).is_ok() && with(check((4, 7)), Proof::Guards).is_ok());
    assert_found(
        with(ok((6, 7), Ack { item: 1, token: 7 }, Done), Proof::Store),
        "although it was acknowledged",
    );
    assert_found(
        with(
            ok(
                (6, 7),
                Nack {
                    item: 1,
                    token: 7,
                    delayed: false,
                },
                Done,
            ),
            Proof::Store,
        ),
        "two holders",
    );
    assert!(with(ok((6, 7), Ack { item: 1, token: 7 }, Refused), Proof::Guards).is_ok());
}

#[test]
fn queue_delivery_with_a_token_that_falls_is_found() {
    let falls = [
        enqueue((0, 1), 1, 0),
        dequeue((2, 3), 1, 8, 2),
        dequeue((4, 5), 1, 7, 1),
    ];
    assert_found(account(&falls), "two holders");
    let twice = [
        enqueue((0, 1), 1, 0),
        dequeue((2, 3), 1, 7, 1),
        dequeue((4, 5), 1, 7, 2),
    ];
    assert_found(account(&twice), "twice under token 7");
}

#[test]
fn queue_delivery_with_a_wrong_count_is_found() {
    let counts = |first, second, more: &[QueueOperation]| {
        let both = [
            enqueue((0, 1), 1, 0),
            dequeue((2, 3), 1, 7, first),
            dequeue((4, 5), 1, 8, second),
        ];
        account(&[&both, more].concat())
    };
    assert_eq!(counts(1, 2, &[]), Ok(()));
    assert_found(counts(1, 1, &[]), "after delivery number 1");
    assert_found(counts(2, 3, &[]), "1 deliveries are missing");
    assert_found(counts(1, 3, &[]), "1 deliveries are missing");
    assert_eq!(
        counts(2, 4, &[unknown(0, Dequeue { max: 1 })]),
        Ok(()),
        "conceded to a lost answer"
    );
}

#[test]
fn queue_item_that_is_lost_or_still_there_is_found() {
    let ends = |items: &[u64], more: &[QueueOperation]| {
        let one = [enqueue((0, 1), 1, 0), list(20, items)];
        account(&[&one, more].concat())
    };
    let taken = dequeue((2, 3), 1, 7, 1);
    let ack = |outcome| QueueOperation {
        outcome,
        ..ok((4, 5), Ack { item: 1, token: 7 }, Done)
    };
    assert_eq!(ends(&[1], &[]), Ok(()));
    assert_found(ends(&[], &[]), "is lost");
    assert_found(ends(&[], &[taken.clone(), ack(Outcome::Ok(Refused))]), "is lost");
    assert_found(ends(&[], &[taken.clone(), ack(Outcome::Failed)]), "is lost");
    assert_eq!(ends(&[], &[taken.clone(), ack(Outcome::Unknown)]), Ok(()));
    assert_eq!(ends(&[], &[unknown(2, Pop)]), Ok(()), "conceded to a lost answer");
    assert_found(ends(&[], &[unknown(2, Pop), enqueue((2, 3), 2, 0)]), "is lost");
    assert_found(ends(&[1], &[taken, ack(Outcome::Ok(Done))]), "still there");
    assert_found(ends(&[1, 1], &[]), "listed twice");
    assert_found(ends(&[1, 2], &[]), "never accepted");
}

#[test]
fn queue_delivery_out_of_order_is_found() {
    let order = |first: QueueOperation, second: QueueOperation, more: &[QueueOperation]| {
        check_order(&[&[first, second, dequeue((10, 11), 2, 7, 1)], more].concat())
    };
    assert_found(
        order(enqueue((0, 1), 1, 0), enqueue((2, 3), 2, 0), &[]),
        "item 1 waited before it",
    );
    assert_found(
        order(enqueue((2, 3), 1, 0), enqueue((0, 1), 2, 5), &[]),
        "item 1 waited before it",
    );
    assert!(
        order(enqueue((0, 3), 1, 0), enqueue((2, 4), 2, 0), &[]).is_ok(),
        "accepted at the same time"
    );
    assert!(order(enqueue((0, 1), 1, 5), enqueue((2, 3), 2, 0), &[]).is_ok());
    let both = || (enqueue((0, 1), 1, 0), enqueue((2, 3), 2, 0));
    let taken_before = dequeue((9, 12), 1, 6, 1);
    assert!(order(both().0, both().1, &[taken_before]).is_ok());
    assert!(
        order(both().0, both().1, &[unknown(5, Dequeue { max: 1 })]).is_ok(),
        "a lost answer may have it"
    );
    let settled = QueueOperation {
        returned: Some(8),
        ..unknown(5, Dequeue { max: 1 })
    };
    assert_found(order(both().0, both().1, &[settled]), "waited before it");
    let delayed = ok(
        (0, 1),
        Enqueue {
            item: 1,
            priority: 0,
            delayed: true,
        },
        Done,
    );
    assert!(order(delayed, both().1, &[]).is_ok());
    let touching = (enqueue((0, 2), 1, 0), enqueue((2, 4), 2, 0));
    assert!(
        order(touching.0, touching.1, &[]).is_ok(),
        "equal instants decide nothing"
    );
    // One of the two that waited may be with the lost answer, the other not.
    let two = [enqueue((0, 1), 3, 0), unknown(5, Dequeue { max: 1 })];
    assert_found(order(both().0, both().1, &two), "waited before it");
    let popped = QueueOperation {
        returned: Some(8),
        ..unknown(5, Pop)
    };
    assert!(
        order(both().0, both().1, &[popped]).is_ok(),
        "a lost pop may have removed it"
    );
    let ended = failed((5, 30), Dequeue { max: 1 });
    assert!(
        order(both().0, both().1, &[ended]).is_ok(),
        "its session may have had it"
    );
    // An item that was returned keeps its place.
    let back = [
        dequeue((4, 5), 1, 6, 1),
        ok(
            (6, 7),
            Nack {
                item: 1,
                token: 6,
                delayed: false,
            },
            Done,
        ),
    ];
    assert_found(order(both().0, both().1, &back), "item 1 waited before it");
}

#[test]
fn queue_that_is_empty_while_an_item_waits_is_found() {
    let empty = ok((5, 6), Dequeue { max: 1 }, QueueAnswer::Delivered(Vec::new()));
    assert_found(
        check_order(&[enqueue((0, 1), 1, 0), empty.clone()]),
        "empty while item 1 waited",
    );
    assert!(check_order(&[enqueue((0, 5), 1, 0), empty.clone()]).is_ok());
    assert!(check_order(&[enqueue((0, 1), 1, 0), unknown(2, Pop), empty]).is_ok());
}
