//! Queues: rules Q1 and Q3, on what a queue has.

use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::{Delivery, ErrorKind, MAX_BATCH, NewItem, QueueHandle};

use super::granted;
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, LOOK, PROMPT, count_keys, done, ensure, held, keys_return_to, open, open_linked, promptly, refused, settle,
    spawn,
};

cases! { CASES:
    q1_enqueue_without_an_answer_adds_one_item "Q1"
        "an enqueue that is repeated after a lost answer adds one item" (None) [Mute] always;
    q1_id_makes_an_enqueue_idempotent "Q1"
        "two items with one id are one, also after the first has left the queue" (None) [] always;
    q1_batch_is_accepted_whole "Q1"
        "a batch is accepted whole and in its order, one that is too large is refused" (None) [] always;
    q1_depth_and_peek_show_the_items "Q1"
        "depth and peek count and show ready, delivered and delayed items" (None) [] always;
    q1_purge_removes_all_items "Q1" "a purge removes all items, those with consumers too" (None) [] always;
    q1_popped_items_are_removed "Q1" "pop acknowledges the item that it returns" (None) [] always;
    q1_queue_in_use_does_not_grow "Q1" "acknowledged items leave nothing behind" (None) [Keys] always;
    q3_items_come_by_priority_then_by_acceptance "Q3"
        "items come by priority, then in the order in which the store accepted them"
        (Some(Line::QueueOrder)) [] queues_in_order;
    q3_urgent_item_comes_first "Q3"
        "a dequeue that begins after an urgent item was accepted by another client delivers that one"
        (Some(Line::QueueOrder)) [] queues_in_order;
    q3_returned_item_keeps_its_place "Q3"
        "an item that comes back is delivered before those that were accepted after it"
        (Some(Line::QueueOrder)) [] queues_in_order;
}

pub(super) async fn queue(harness: &dyn Harness, name: &str) -> Step<QueueHandle> {
    Ok(open(harness, LONG).await?.queue(name))
}

pub(super) async fn put(queue: &QueueHandle, item: impl Into<NewItem>) -> Step<()> {
    done("enqueue", queue.enqueue(item)).await
}

/// Takes the next item, which must be `value` in its delivery number `deliveries`.
pub(super) async fn take(queue: &QueueHandle, value: &str, deliveries: u32) -> Step<Delivery> {
    let next = tokio::time::timeout(PROMPT, queue.dequeue()).await;
    let next =
        next.map_err(|_| Outcome::violated(format!("{value:?} was due, and no item was delivered in {PROMPT:?}")))??;
    let (found, count) = (next.text().into_owned(), next.deliveries());
    ensure!(
        found == value && count == deliveries,
        "{value:?} was due in delivery {deliveries}, and {found:?} came in delivery {count}"
    );
    Ok(next)
}

pub(super) async fn ack(delivery: Delivery) -> Step<()> {
    done("ack", delivery.ack()).await
}

pub(super) async fn nack(delivery: Delivery) -> Step<()> {
    done("nack", delivery.nack()).await
}

pub(super) async fn is_empty(queue: &QueueHandle, when: &str) -> Step<()> {
    let next = done("try_dequeue", queue.try_dequeue()).await?;
    ensure!(
        next.is_none(),
        "{when}, {:?} was delivered",
        next.map(|next| next.text().into_owned())
    );
    Ok(())
}

pub(super) async fn has(queue: &QueueHandle, ready: u64, in_flight: u64, delayed: u64, when: &str) -> Step<()> {
    let depth = done("depth", queue.depth()).await?;
    ensure!(
        (depth.ready, depth.in_flight, depth.delayed) == (ready, in_flight, delayed),
        "{when}, {ready} items are ready, {in_flight} delivered, {delayed} delayed; the store counts {depth:?}"
    );
    let len = done("len", queue.len()).await?;
    ensure!(
        len == ready + in_flight + delayed,
        "{when}, len() is {len}, and depth {depth:?}"
    );
    Ok(())
}

async fn q1_enqueue_without_an_answer_adds_one_item(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, LONG).await?;
    let (producing, seeing) = (session.queue("jobs"), queue(harness, "jobs").await?);
    put(&producing, "first").await?;
    link.mute();
    let mut enqueueing = spawn(async move { producing.enqueue("second").await });
    let arrived = async {
        while seeing.len().await? < 2 {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    done("the arrival of the item", arrived).await?;
    settle().await;
    ensure!(
        !enqueueing.is_finished(),
        "enqueue returned although its answer was lost"
    );
    link.heal();
    granted(&mut enqueueing, "the end of the enqueue").await?;
    has(&seeing, 2, 0, 0, "after two enqueues").await?;
    for value in ["first", "second"] {
        ack(take(&seeing, value, 1).await?).await?;
    }
    held!("repeated until it was answered, and there once")
}

async fn q1_id_makes_an_enqueue_idempotent(harness: &dyn Harness) -> Verdict {
    let (here, there) = (queue(harness, "orders").await?, queue(harness, "orders").await?);
    let order = |value: &str| NewItem::new(value).id("order/42");
    put(&here, order("first")).await?;
    put(&there, order("again")).await?;
    put(&there, "without").await?;
    let first = take(&there, "first", 1).await?;
    ensure!(
        first.id() == Some("order/42"),
        "the id of the item became {:?}",
        first.id()
    );
    put(&here, order("while it is delivered")).await?;
    ack(first).await?;
    put(&here, order("after it was acknowledged")).await?;
    ack(take(&here, "without", 1).await?).await?;
    let batch = [
        order("in a batch"),
        NewItem::new("new").id("order/43"),
        NewItem::new("twice").id("order/43"),
    ];
    done("enqueue_many", here.enqueue_many(batch)).await?;
    nack(take(&here, "new", 1).await?).await?;
    ack(take(&there, "new", 2).await?).await?;
    is_empty(&here, "after one item of each id").await?;
    let other = queue(harness, "orders/other").await?;
    put(&other, order("in another queue")).await?;
    ack(take(&other, "in another queue", 1).await?).await?;
    held!("items with a known id were dropped, alone and in a batch, but not in another queue")
}

async fn q1_batch_is_accepted_whole(harness: &dyn Harness) -> Verdict {
    let (here, there) = (queue(harness, "batches").await?, queue(harness, "batches").await?);
    let items = |count: usize| (0..count).map(|number| NewItem::new(format!("{number:03}")));
    let too_many = promptly("enqueue_many", here.enqueue_many(items(MAX_BATCH + 1))).await?;
    refused("a batch that is too large", too_many, &[ErrorKind::TooLarge])?;
    let too_many = promptly("dequeue_many", here.dequeue_many(MAX_BATCH + 1)).await?;
    refused("a take that is too large", too_many, &[ErrorKind::TooLarge])?;
    let invalid = [NewItem::new("good"), NewItem::new("bad").id("")];
    let invalid = promptly("enqueue_many", here.enqueue_many(invalid)).await?;
    refused("a batch with an invalid id", invalid, &[ErrorKind::InvalidName])?;
    has(&there, 0, 0, 0, "after refused batches").await?;
    done("enqueue_many", here.enqueue_many(items(MAX_BATCH))).await?;
    let session = open(harness, LONG).await?;
    let (mut taken, mut first) = (Vec::new(), Vec::new());
    while taken.len() < MAX_BATCH {
        let most = (MAX_BATCH - taken.len()).min(20);
        let batch = done("dequeue_many", session.queue("batches").dequeue_many(most)).await?;
        ensure!(
            (1..=most).contains(&batch.len()),
            "{} items came instead of 1 to {most}",
            batch.len()
        );
        first.extend(batch.iter().map(|delivery| delivery.text().into_owned()));
        taken.extend(batch);
    }
    ensure!(
        first.is_sorted() && first.len() == MAX_BATCH,
        "a batch of {MAX_BATCH} came as {first:?}"
    );
    // All of them come back with the end of their consumer, in their order.
    done("close", session.close()).await?;
    for value in &first {
        ack(take(&there, value, 2).await?).await?;
    }
    is_empty(&there, "after the batch").await?;
    held!("{MAX_BATCH} items came in order, and again after their consumer's end; larger batches were refused")
}

async fn q1_depth_and_peek_show_the_items(harness: &dyn Harness) -> Verdict {
    let (here, there) = (queue(harness, "seen").await?, queue(harness, "seen").await?);
    ensure!(
        done("peek", there.peek()).await?.is_none(),
        "peek shows an item of an empty queue"
    );
    for number in 0..4_u16 {
        put(&here, NewItem::new(number.to_string()).priority(10 - number)).await?;
    }
    put(&here, NewItem::new("later").delay(LONG)).await?;
    has(&there, 4, 0, 1, "after five enqueues").await?;
    let delivered = take(&here, "3", 1).await?;
    nack(take(&here, "2", 1).await?).await?;
    has(&there, 3, 1, 1, "with one consumer").await?;
    let peeked = done("peek", there.peek()).await?;
    let seen = peeked.as_ref().map(|it| (&*it.value, it.priority, it.deliveries));
    ensure!(
        seen == Some((b"2".as_slice(), 8, 1)),
        "`2` is next, with priority 8 and one delivery; peek shows {seen:?}"
    );
    has(&there, 3, 1, 1, "after a peek").await?;
    done("nack_after", delivered.nack_after(LONG)).await?;
    has(&there, 3, 0, 2, "after a nack with a delay").await?;
    for (value, deliveries) in [("2", 2), ("1", 1), ("0", 1)] {
        ack(take(&there, value, deliveries).await?).await?;
    }
    has(&there, 0, 0, 2, "with delayed items only").await?;
    ensure!(done("peek", there.peek()).await?.is_none(), "peek shows a delayed item");
    is_empty(&here, "with delayed items only").await?;
    held!("ready, delivered and delayed items were counted and shown as they were")
}

async fn q1_purge_removes_all_items(harness: &dyn Harness) -> Verdict {
    let (here, there) = (queue(harness, "purged").await?, queue(harness, "purged").await?);
    for value in ["with a consumer", "a", "b"] {
        put(&here, value).await?;
    }
    put(&here, NewItem::new("later").delay(Duration::from_secs(1))).await?;
    let delivered = take(&here, "with a consumer", 1).await?;
    let purged = done("purge", there.purge()).await?;
    ensure!(purged == 4, "4 items were there, and {purged} were purged");
    has(&here, 0, 0, 0, "after a purge").await?;
    let late = promptly("ack", delivered.ack()).await?;
    refused("an ack after a purge", late, &[ErrorKind::Lost])?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    is_empty(&here, "after a purge").await?;
    put(&here, "after").await?;
    ack(take(&there, "after", 1).await?).await?;
    held!("ready, delivered and delayed items were removed; a later one was delivered")
}

async fn q1_popped_items_are_removed(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let popping = session.queue("popped");
    for value in ["a", "b", "c"] {
        put(&popping, value).await?;
    }
    for value in ["a", "b"] {
        let popped = done("pop", popping.pop()).await?;
        ensure!(
            popped == value.as_bytes(),
            "{value:?} was due, and {:?} was popped",
            String::from_utf8_lossy(&popped)
        );
    }
    let popped = done("try_pop", popping.try_pop()).await?;
    ensure!(
        popped.as_deref() == Some(b"c"),
        "`c` was due, and {popped:?} was popped"
    );
    ensure!(
        done("try_pop", popping.try_pop()).await?.is_none(),
        "an empty queue was popped"
    );
    done("close", session.close()).await?;
    has(&queue(harness, "popped").await?, 0, 0, 0, "after all items were popped").await?;
    held!("three items were popped in order, and none came back")
}

async fn q1_queue_in_use_does_not_grow(harness: &dyn Harness) -> Verdict {
    const ROUNDS: u16 = 12;
    let busy = queue(harness, "busy").await?;
    let round = async |number: u16| -> Step<()> {
        let items = (0..3).map(|at| NewItem::new("x").priority((number + at) % 3));
        done("enqueue_many", busy.enqueue_many(items)).await?;
        nack(done("dequeue", busy.dequeue()).await?).await?;
        for _ in 0..3 {
            ack(done("dequeue", busy.dequeue()).await?).await?;
        }
        Ok(())
    };
    round(0).await?;
    let baseline = count_keys(harness).await?;
    for number in 1..=ROUNDS {
        round(number).await?;
    }
    keys_return_to(baseline, harness).await?;
    held!("{baseline} keys after one round, and after {ROUNDS} more")
}

/// The ends of the range, and the numbers around which an encoding changes its length or its sign.
const PRIORITIES: [u16; 16] = [
    0, 9, 10, 99, 100, 127, 128, 255, 256, 999, 9_999, 10_000, 32_767, 32_768, 65_534, 65_535,
];

async fn q3_items_come_by_priority_then_by_acceptance(harness: &dyn Harness) -> Verdict {
    let mut queues = Vec::new();
    for _ in 0..3 {
        queues.push(queue(harness, "ordered").await?);
    }
    let (mut due, mut number) = (Vec::new(), 0);
    let mut item = |size: usize| {
        let priority = PRIORITIES[number * 7 % PRIORITIES.len()];
        let value = format!("{number:03} {}", "x".repeat(size));
        number += 1;
        due.push((priority, value.clone()));
        NewItem::new(value).priority(priority)
    };
    for round in 0..12 {
        put(&queues[round % 3], item(round * 100)).await?;
    }
    // A batch whose sizes fall and rise: neither is its order.
    let batch: Vec<_> = (0..MAX_BATCH)
        .map(|at| item(at.abs_diff(MAX_BATCH / 2) * 512))
        .collect();
    done("enqueue_many", queues[0].enqueue_many(batch)).await?;
    due.sort_by_key(|(priority, _)| *priority);
    let mut seen = Vec::new();
    while seen.len() < due.len() {
        let at = seen.len();
        let taken = match at % 2 {
            0 => vec![done("dequeue", queues[at % 3].dequeue()).await?],
            _ => done("dequeue_many", queues[at % 3].dequeue_many(5)).await?,
        };
        for delivery in taken {
            seen.push((delivery.priority(), delivery.text().into_owned()));
            ack(delivery).await?;
        }
    }
    let names = |items: &[(u16, String)]| {
        items
            .iter()
            .map(|(at, it)| (*at, it[..3].to_owned()))
            .collect::<Vec<_>>()
    };
    ensure!(
        seen == due,
        "due were {:?}, delivered {:?}, or a value is not whole",
        names(&due),
        names(&seen)
    );
    held!(
        "{} items of {} priorities, one by one and in a batch, came in order and whole",
        due.len(),
        PRIORITIES.len()
    )
}

async fn q3_urgent_item_comes_first(harness: &dyn Harness) -> Verdict {
    const ROUNDS: u16 = 10;
    let (producing, consuming) = (queue(harness, "urgent").await?, queue(harness, "urgent").await?);
    put(&producing, NewItem::new("slow").priority(9)).await?;
    put(&producing, NewItem::new("slower").priority(9)).await?;
    // The consumer knows the queue by now, and its items.
    ack(take(&consuming, "slow", 1).await?).await?;
    for round in 0..ROUNDS {
        let urgent = format!("urgent {round}");
        put(&producing, NewItem::new(&urgent).priority(8 - round % 8)).await?;
        ack(take(&consuming, &urgent, 1).await?).await?;
        let again = format!("again {round}");
        put(&producing, NewItem::new(&again)).await?;
        let tried = done("try_dequeue", consuming.try_dequeue()).await?;
        let found = tried.as_ref().map(|tried| tried.text().into_owned());
        ensure!(
            found.as_ref() == Some(&again),
            "{again:?} was accepted before a try, which found {found:?}"
        );
        if let Some(delivery) = tried {
            ack(delivery).await?;
        }
    }
    ack(take(&consuming, "slower", 1).await?).await?;
    held!("{} urgent items came before the one that waited", 2 * ROUNDS)
}

async fn q3_returned_item_keeps_its_place(harness: &dyn Harness) -> Verdict {
    let (one, two) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let there = queue(harness, "places").await?;
    for value in ["a", "b", "c", "d", "e"] {
        put(&there, value).await?;
    }
    let here = one.queue("places");
    let (a, b) = (take(&here, "a", 1).await?, take(&here, "b", 1).await?);
    let c = take(&two.queue("places"), "c", 1).await?;
    nack(take(&there, "d", 1).await?).await?;
    nack(b).await?;
    ack(take(&there, "b", 2).await?).await?;
    done("close", one.close()).await?;
    ack(take(&there, "a", 2).await?).await?;
    done("close", two.close()).await?;
    for (value, deliveries) in [("c", 2), ("d", 2), ("e", 1)] {
        ack(take(&there, value, deliveries).await?).await?;
    }
    drop((a, c));
    held!("after two nacks and two closed sessions each item came at its place")
}
