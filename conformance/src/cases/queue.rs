//! Queues: rules Q1 to Q6.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tenure_core::{Delivery, ErrorKind, Item, MAX_BATCH, QueueHandle, Result};

use super::cancel::QUIET;
pub use super::limits::{
    q1_a_deep_queue_is_whole, q1_items_of_every_size_come_back, q2_a_whole_batch_comes_back,
    q3_every_priority_counts,
};
use super::mass_death::{Wanted, survivor_is_served};
use super::tools::*;
use crate::case::{Outcome, Verdict};
use crate::harness::{Harness, Linked};

/// Time for a store to come back, and for clients to notice.
const RECOVERY: Duration = Duration::from_secs(12);

type Checked<T> = std::result::Result<T, Outcome>;

async fn put(queue: &QueueHandle, item: impl Into<Item>) -> Checked<()> {
    Ok(promptly("enqueue", queue.enqueue(item)).await??)
}

async fn get(queue: &QueueHandle) -> Checked<Delivery> {
    Ok(promptly("dequeue", queue.dequeue()).await??)
}

async fn ack(delivery: Delivery) -> Checked<()> {
    Ok(promptly("ack", delivery.ack()).await??)
}

/// Takes the next item, which must be `value` in its delivery number `count`.
async fn expect(queue: &QueueHandle, value: &str, count: u32) -> Checked<Delivery> {
    let delivery = get(queue).await?;
    let got = text(&delivery);
    ensure!(
        got == value && delivery.count() == count,
        "`{value}` was due, in delivery {count}; `{got}` came in delivery {}",
        delivery.count()
    );
    Ok(delivery)
}

async fn expect_empty(queue: &QueueHandle) -> Checked<()> {
    let got = promptly("try_dequeue", queue.try_dequeue()).await??;
    if let Some(delivery) = got {
        return Err(Outcome::violated(format!(
            "`{}` was delivered where nothing was due",
            text(&delivery)
        )));
    }
    Ok(())
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8_lossy(delivery.value()).into_owned()
}

/// A task that waits for an item.
fn consumer(queue: QueueHandle) -> Task<Result<Delivery>> {
    spawn(async move { queue.dequeue().await })
}

/// Q1: what is let go of comes back; what is acknowledged does not.
pub async fn q1_an_item_is_delivered_until_it_is_acknowledged(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("jobs")?, other.queue("jobs")?);
    put(&here, "work").await?;
    drop(expect(&here, "work", 1).await?);
    let again = expect(&there, "work", 2).await?;
    ack(again).await?;
    expect_empty(&here).await?;
    expect_empty(&there).await?;
    let left = promptly("len", here.len()).await??;
    ensure!(left == 0, "{left} items are left after the acknowledgement");
    held!("delivered to one that let go of it, then to another that acknowledged it; then gone")
}

/// Q1: an answer that is lost makes no second item.
pub async fn q1_an_enqueue_without_an_answer_yields_one_item(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let (mute, other) = (open_on(&store, LONG).await?, open(harness, LONG).await?);
    let (producing, seeing) = (mute.queue("jobs")?, other.queue("jobs")?);
    // Once undisturbed, so that what follows is the enqueue and nothing else.
    put(&producing, "first").await?;
    link.mute();
    let mut enqueueing = spawn(async move { producing.enqueue("second").await });
    let arrived = async {
        while seeing.len().await? < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok::<_, tenure_core::Error>(())
    };
    promptly("the item's arrival", arrived).await??;
    ensure!(
        !enqueueing.is_finished(),
        "enqueue returned although its answer could not pass"
    );
    link.heal();
    enqueueing
        .end(RECOVERY, "the end of the enqueue after the silence")
        .await??;
    let len = promptly("len", seeing.len()).await??;
    ensure!(len == 2, "two items were put in, and there are {len}");
    for value in ["first", "second"] {
        ack(expect(&seeing, value, 1).await?).await?;
    }
    expect_empty(&seeing).await?;
    held!("repeated until it was answered, and there once")
}

/// Q1: an id says that two items are one.
pub async fn q1_an_id_makes_an_enqueue_idempotent(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("orders")?, other.queue("orders")?);
    let order = |value: &str| Item::new(value).id("order/42");
    put(&here, order("first")?).await?;
    put(&there, order("again")?).await?;
    put(&there, "without").await?;
    let first = expect(&there, "first", 1).await?;
    put(&here, order("while it is delivered")?).await?;
    ack(first).await?;
    put(&here, order("after it left")?).await?;
    put(&here, Item::new("another").id("order/43")?).await?;
    ack(expect(&here, "without", 1).await?).await?;
    ack(expect(&here, "another", 1).await?).await?;
    expect_empty(&here).await?;
    held!("four items with one id were one, delivered once")
}

/// Q1: batches.
pub async fn q1_a_batch_is_all_or_nothing(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("batches")?, other.queue("batches")?);
    let items = |count: usize| (0..count).map(|number| Item::new(format!("{number:02}")));
    let refused_one = promptly("enqueue_many", here.enqueue_many(items(MAX_BATCH + 1))).await?;
    refused("a batch too large", refused_one, &[ErrorKind::TooLarge])?;
    let too_many = promptly("dequeue_many", here.dequeue_many(MAX_BATCH + 1)).await?;
    refused(
        "taking too many",
        too_many.map(drop),
        &[ErrorKind::TooLarge],
    )?;
    expect_empty(&there).await?;
    promptly("enqueue_many", here.enqueue_many(items(MAX_BATCH))).await??;
    let mut seen = Vec::new();
    while seen.len() < MAX_BATCH {
        let most = (MAX_BATCH - seen.len()).min(20);
        let batch = promptly("dequeue_many", there.dequeue_many(most)).await??;
        ensure!(
            !batch.is_empty() && batch.len() <= most,
            "{} items came where 1 to {most} were asked for",
            batch.len()
        );
        for delivery in batch {
            seen.push(text(&delivery));
            ack(delivery).await?;
        }
    }
    ensure!(
        seen.len() == MAX_BATCH && seen.is_sorted(),
        "put in as 00 to {}, they came as {seen:?}",
        MAX_BATCH - 1
    );
    expect_empty(&there).await?;
    held!("{MAX_BATCH} items in one batch, in order; one more was refused, and left nothing")
}

/// Q1: depth, peek, purge.
pub async fn q1_depth_peek_and_purge_tell_the_truth(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("seen")?, other.queue("seen")?);
    let nothing = promptly("peek", there.peek()).await??;
    ensure!(nothing.is_none(), "an empty queue shows {nothing:?}");
    for number in 0..5_u16 {
        put(&here, Item::new(format!("{number}")).priority(10 - number)).await?;
    }
    let delivered = expect(&here, "4", 1).await?;
    drop(expect(&here, "3", 1).await?);
    let counted = async {
        loop {
            let depth = there.depth().await?;
            if depth.in_flight == 1 {
                return Ok::<_, tenure_core::Error>(depth);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let depth = promptly("the return of what was let go of", counted).await??;
    ensure!(
        (depth.ready, depth.in_flight, depth.delayed, depth.total()) == (4, 1, 0, 5),
        "4 are ready and 1 is delivered; the store counts {depth:?}"
    );
    let peeked = promptly("peek", there.peek()).await??;
    let seen = peeked
        .as_ref()
        .map(|it| (&*it.value, it.priority, it.deliveries));
    ensure!(
        seen == Some((b"3".as_slice(), 7, 1)),
        "`3` is next, of priority 7, delivered once before; peek shows {peeked:?}"
    );
    let purged = promptly("purge", there.purge()).await??;
    ensure!(purged == 4, "4 items were ready, and {purged} were purged");
    ack(delivered).await?;
    let left = promptly("len", there.len()).await??;
    ensure!(left == 0, "{left} items are left");
    expect_empty(&here).await?;
    held!("4 ready and 1 delivered were counted; the 4 were purged, the 1 acknowledged")
}

/// Q1: pop.
pub async fn q1_popped_items_are_gone(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let queue = session.queue("popped")?;
    put(&queue, "a").await?;
    put(&queue, "b").await?;
    for value in ["a", "b"] {
        let popped = promptly("pop", queue.pop()).await??;
        ensure!(
            popped == value.as_bytes(),
            "`{value}` was due, {} bytes of another came",
            popped.len()
        );
    }
    promptly("close", session.close()).await??;
    let other = open(harness, LONG).await?;
    let left = promptly("len", other.queue("popped")?.len()).await??;
    ensure!(
        left == 0,
        "{left} popped items came back when the session ended"
    );
    held!("two items popped in order, and gone when they were returned")
}

/// Q1: housekeeping.
pub async fn q1_a_queue_in_use_does_not_grow(harness: &dyn Harness) -> Verdict {
    const ROUNDS: u16 = 20;
    let session = open(harness, LONG).await?;
    let queue = session.queue("busy")?;
    let round = async |number: u16| -> Checked<()> {
        let items = (0..3).map(|at| Item::new("x").priority((number + at) % 3));
        promptly("enqueue_many", queue.enqueue_many(items)).await??;
        let nacked = get(&queue).await?;
        promptly("nack", nacked.nack()).await??;
        for _ in 0..3 {
            ack(get(&queue).await?).await?;
        }
        Ok(())
    };
    round(0).await?;
    let baseline = count_keys(harness).await?;
    for number in 1..=ROUNDS {
        round(number).await?;
    }
    keys_return_to(baseline, PROMPT, harness).await?;
    held!("{baseline} keys after one round, and after {ROUNDS} more")
}

/// Takes what is in the queue, in this order, and nothing else.
async fn takes_all(queue: &QueueHandle, values: &[&str]) -> Checked<()> {
    for value in values {
        let next = within(RECOVERY, "dequeue", queue.dequeue()).await??;
        let got = text(&next);
        ensure!(
            got == *value,
            "`{value}` was due after the crash, `{got}` came"
        );
        within(RECOVERY, "ack", next.ack()).await??;
    }
    Ok(())
}

/// Q1: durability of what waits.
pub async fn q1_items_outlive_a_crash(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let queue = session.queue("kept")?;
    for value in ["done", "a", "b"] {
        put(&queue, value).await?;
    }
    let done = expect(&queue, "done", 1).await?;
    promptly("ack", done.ack()).await??;
    control("the restart", operator(harness)?.restart()).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let there = other.queue("kept")?;
    let left = within(RECOVERY, "len", there.len()).await??;
    ensure!(
        left == 2,
        "of two accepted items {left} were there after the crash"
    );
    takes_all(&there, &["a", "b"]).await?;
    held!(
        "what was accepted outlived a crash of the store, what was acknowledged did not come back"
    )
}

/// Q2: durability of what is with a consumer.
pub async fn q2_a_delivery_outlives_a_crash(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let queue = session.queue("kept")?;
    for value in ["delivered", "a", "b"] {
        put(&queue, value).await?;
    }
    let delivered = expect(&queue, "delivered", 1).await?;
    control("the restart", operator(harness)?.restart()).await?;
    let other = within(RECOVERY, "open", open(harness, LONG)).await??;
    let there = other.queue("kept")?;
    takes_all(&there, &["a", "b"]).await?;
    within(
        RECOVERY,
        "ack of what was delivered before",
        delivered.ack(),
    )
    .await??;
    let left = within(RECOVERY, "len", there.len()).await??;
    ensure!(left == 0, "{left} items are left");
    held!("the delivery outlived a crash of the store")
}

/// Q2: exclusive, and nothing twice without a reason.
pub async fn q2_one_consumer_at_a_time(harness: &dyn Harness) -> Verdict {
    const CONNECTIONS: usize = 3;
    const CONSUMERS: usize = 2;
    const ITEMS: usize = 60;
    let with = Arc::new(Mutex::new(HashMap::<String, usize>::new()));
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let mut tasks = Vec::new();
    for _ in 0..CONNECTIONS {
        let session = open(harness, LONG).await?;
        for _ in 0..CONSUMERS {
            let queue = session.queue("shared")?;
            let (with, acknowledged) = (Arc::clone(&with), Arc::clone(&acknowledged));
            tasks.push(spawn(async move {
                while acknowledged.load(Ordering::SeqCst) < ITEMS {
                    let next = match queue.dequeue_timeout(Duration::from_millis(200)).await {
                        Err(error) if error.kind() == ErrorKind::TimedOut => continue,
                        next => next?,
                    };
                    let value = text(&next);
                    let deliveries = {
                        let mut with = with.lock().unwrap_or_else(PoisonError::into_inner);
                        let deliveries = with.entry(value.clone()).or_default();
                        *deliveries += 1;
                        *deliveries
                    };
                    ensure!(
                        deliveries == 1 && next.count() == 1,
                        "`{value}` was delivered {deliveries} times, the last as delivery {}, though nobody let go of it",
                        next.count()
                    );
                    next.ack().await?;
                    acknowledged.fetch_add(1, Ordering::SeqCst);
                }
                Ok::<_, Outcome>(())
            }));
        }
    }
    let producer = open(harness, LONG).await?;
    let queue = producer.queue("shared")?;
    for number in 0..ITEMS {
        put(&queue, format!("{number}")).await?;
    }
    for task in &mut tasks {
        task.end(Duration::from_secs(30), "the consumers' work")
            .await??;
    }
    let left = promptly("len", queue.len()).await??;
    ensure!(left == 0, "{left} items are left");
    held!(
        "{ITEMS} items, each delivered once to one of {} consumers",
        CONNECTIONS * CONSUMERS
    )
}

/// Q2: nack.
pub async fn q2_what_comes_back_counts_its_deliveries(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let handles = [one.queue("again")?, other.queue("again")?];
    put(&handles[0], "work").await?;
    let mut last = None;
    for count in 1..=4 {
        let delivery = expect(&handles[count as usize % 2], "work", count).await?;
        let token = delivery.token();
        ensure!(
            last < Some(token),
            "delivery {count} has token {token}, the one before had {last:?}"
        );
        ensure!(delivery.is_valid(), "delivery {count} is not valid");
        last = Some(token);
        promptly("nack", delivery.nack()).await??;
    }
    held!("delivered 4 times, counted 1 to 4, under rising tokens")
}

/// Q2: a delay.
pub async fn q2_a_delay_is_kept(harness: &dyn Harness) -> Verdict {
    const DELAY: Duration = Duration::from_secs(1);
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("later")?, other.queue("later")?);
    put(&here, "delayed").await?;
    put(&here, "next").await?;
    let delivery = expect(&here, "delayed", 1).await?;
    // Counted from before the request, so that the store cannot be early by its duration.
    let at = Instant::now();
    promptly("nack_after", delivery.nack_after(DELAY)).await??;
    let next = get(&there).await?;
    if at.elapsed() < DELAY {
        ensure!(
            text(&next) == "next",
            "`{}` was delivered {:?} into a delay of {DELAY:?}",
            text(&next),
            at.elapsed()
        );
    }
    ack(next).await?;
    // Stores count whole seconds, and look at times.
    let bound = DELAY + expiry_bound(harness).await? + SLACK + Duration::from_secs(2);
    let back = within(bound, "delivery after the delay", there.dequeue()).await??;
    let took = at.elapsed();
    ensure!(
        took >= DELAY && back.count() == 2,
        "delivered {took:?} into a delay of {DELAY:?}, in delivery {}",
        back.count()
    );
    ack(back).await?;
    expect_empty(&here).await?;
    held!("given back with a delay of {DELAY:?}, and delivered after {took:?}")
}

/// Q2: dead letters.
pub async fn q2_dead_letters_go_elsewhere(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let graves = session.queue("graves")?;
    let after = NonZeroU32::MIN.saturating_add(1);
    let queue = session
        .queue("tried")?
        .dead_letters(after.get(), "graves")?;
    put(&graves, Item::new("earlier").priority(3)).await?;
    put(&queue, Item::new("poison").priority(3)).await?;
    put(&queue, Item::new("good").priority(4)).await?;
    for count in 1..=after.get() {
        let delivery = expect(&queue, "poison", count).await?;
        promptly("nack", delivery.nack()).await??;
    }
    ack(expect(&queue, "good", 1).await?).await?;
    expect_empty(&queue).await?;
    ack(expect(&graves, "earlier", 1).await?).await?;
    let buried = expect(&graves, "poison", 1).await?;
    ensure!(
        buried.priority() == 3,
        "buried with priority {}, it had 3",
        buried.priority()
    );
    ack(buried).await?;
    held!("delivered {after} times, then buried behind what was in the other queue")
}

/// Q3: priority, then acceptance.
pub async fn q3_by_priority_then_as_accepted(harness: &dyn Harness) -> Verdict {
    const ITEMS: u16 = 24;
    let mut queues = Vec::new();
    for _ in 0..3 {
        queues.push(open(harness, LONG).await?.queue("ordered")?);
    }
    let mut due = Vec::new();
    for number in 0..ITEMS {
        let priority = [500, 7, 65_535, 0][usize::from(number) % 4];
        let item = Item::new(format!("{number:02}")).priority(priority);
        // One after the other, over all connections in turn.
        put(&queues[usize::from(number) % queues.len()], item).await?;
        due.push((priority, format!("{number:02}")));
    }
    due.sort();
    let mut seen = Vec::new();
    for number in 0..usize::from(ITEMS) {
        let delivery = get(&queues[number % 2]).await?;
        seen.push((delivery.priority(), text(&delivery)));
        ack(delivery).await?;
    }
    ensure!(seen == due, "due were {due:?}, delivered {seen:?}");
    held!("{ITEMS} items of 4 priorities over 3 connections came in order")
}

/// Q3: across clients, without a moment's grace.
pub async fn q3_urgent_items_from_elsewhere_come_first(harness: &dyn Harness) -> Verdict {
    const ROUNDS: u16 = 25;
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (producing, consuming) = (one.queue("urgent")?, other.queue("urgent")?);
    put(&producing, Item::new("slow").priority(9)).await?;
    put(&producing, Item::new("slower").priority(9)).await?;
    // The consumer knows the queue by now, and what is in it.
    ack(expect(&consuming, "slow", 1).await?).await?;
    for round in 0..ROUNDS {
        let urgent = format!("urgent {round}");
        put(&producing, Item::new(&urgent).priority(8 - round % 8)).await?;
        ack(expect(&consuming, &urgent, 1).await?).await?;
        let again = format!("again {round}");
        put(&producing, Item::new(&again)).await?;
        let tried = promptly("try_dequeue", consuming.try_dequeue()).await??;
        let got = tried.as_ref().map(text);
        ensure!(
            got.as_ref() == Some(&again),
            "`{again}` was accepted before try_dequeue, which found {got:?}"
        );
        if let Some(delivery) = tried {
            ack(delivery).await?;
        }
    }
    ack(expect(&consuming, "slower", 1).await?).await?;
    held!(
        "{} urgent items came before the one that had waited",
        2 * ROUNDS
    )
}

/// Q3: places are kept.
pub async fn q3_what_comes_back_keeps_its_place(harness: &dyn Harness) -> Verdict {
    let (one, two, other) = (
        open(harness, LONG).await?,
        open(harness, LONG).await?,
        open(harness, LONG).await?,
    );
    let there = other.queue("places")?;
    for value in ["a", "b", "c", "d", "e"] {
        put(&there, value).await?;
    }
    let here = one.queue("places")?;
    let (a, b) = (expect(&here, "a", 1).await?, expect(&here, "b", 1).await?);
    let c = expect(&two.queue("places")?, "c", 1).await?;
    // The third client knows all three as delivered when they come back behind its back.
    let d = expect(&there, "d", 1).await?;
    promptly("nack", d.nack()).await??;
    promptly("nack", b.nack()).await??;
    ack(expect(&there, "b", 2).await?).await?;
    promptly("close", one.close()).await??;
    ack(expect(&there, "a", 2).await?).await?;
    promptly("close", two.close()).await??;
    ack(expect(&there, "c", 2).await?).await?;
    ack(expect(&there, "d", 2).await?).await?;
    ack(expect(&there, "e", 1).await?).await?;
    drop((a, c));
    held!("after two nacks and two closed sessions each item came at its place")
}

/// Q5: one item, one consumer.
pub async fn q5_an_item_wakes_one_consumer(harness: &dyn Harness) -> Verdict {
    const WAITERS: usize = 5;
    let sessions = [open(harness, LONG).await?, open(harness, LONG).await?];
    let producer = open(harness, LONG).await?;
    let queue = producer.queue("few")?;
    let mut waiting = Vec::new();
    for number in 0..WAITERS {
        waiting.push(consumer(sessions[number % 2].queue("few")?));
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut deliveries = Vec::new();
    for number in 0..WAITERS {
        put(&queue, format!("{number}")).await?;
        let served = async {
            loop {
                if let Some(at) = waiting.iter().position(Task::is_finished) {
                    return waiting.swap_remove(at);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let mut served = promptly("delivery to one of those who wait", served).await?;
        let delivery = served.end(PROMPT, "the delivery").await??;
        let (got, count) = (text(&delivery), delivery.count());
        ensure!(
            got == format!("{number}") && count == 1,
            "`{number}` was put in, `{got}` was delivered, in delivery {count}"
        );
        deliveries.push(delivery);
        tokio::time::sleep(Duration::from_millis(30)).await;
        let more = waiting.iter().filter(|task| task.is_finished()).count();
        ensure!(
            more == 0,
            "one item was put in, and {more} more consumers ended"
        );
    }
    for delivery in deliveries {
        ack(delivery).await?;
    }
    held!("{WAITERS} items, put in one by one, woke {WAITERS} consumers one by one")
}

/// Q6: the connection is silent when the caller goes.
pub async fn q6_a_dequeue_cut_off_loses_nothing(harness: &dyn Harness) -> Verdict {
    let Linked { store, link } = harness.linked().await?;
    let (cut_off, other) = (open_on(&store, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (cut_off.queue("cut off")?, other.queue("cut off")?);
    put(&there, "a").await?;
    put(&there, "b").await?;
    ack(expect(&here, "a", 1).await?).await?;
    for round in 0..4 {
        // Either the request is stopped, or it passes and its answer is.
        match round % 2 {
            0 => link.silence(),
            _ => link.mute(),
        }
        let given_up = give_up_after(round / 2 + 1, QUIET, here.dequeue()).await;
        ensure!(
            !matches!(given_up, GaveUp::Finished(Ok(_))),
            "an item was delivered over a silent connection"
        );
        drop(given_up);
        link.heal();
        // Time for what was on its way; too little of it makes the round easier, not wrong.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let delivery = within(RECOVERY, "the return of the item", there.dequeue()).await??;
        ensure!(
            text(&delivery) == "b" && delivery.count() == 1,
            "round {round}: `b` was due, `{}` came in delivery {}",
            text(&delivery),
            delivery.count()
        );
        ack(delivery).await?;
        put(&there, "b").await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let depth = promptly("depth", there.depth()).await??;
    ensure!(
        (depth.ready, depth.in_flight) == (1, 0),
        "one item is there and nobody has it; the store counts {depth:?}"
    );
    held!("dropped during a silence, each dequeue left the item to others, uncounted")
}

/// Q2: a consumer and many waiting consumers die at the same moment.
pub async fn q2_a_mass_death_delays_no_longer_than_stated(harness: &dyn Harness) -> Verdict {
    survivor_is_served(harness, Wanted::Item).await
}

/// Q4: a late acknowledgement.
pub async fn q4_a_late_ack_is_refused(harness: &dyn Harness) -> Verdict {
    let (one, other) = (open(harness, LONG).await?, open(harness, LONG).await?);
    let (here, there) = (one.queue("late")?, other.queue("late")?);
    put(&here, "work").await?;
    let late = expect(&here, "work", 1).await?;
    operator(harness)?.delete(late.key()).await?;
    let taken = expect(&there, "work", 2).await?;
    let refused_one = promptly("ack", late.ack()).await?;
    refused("a late ack", refused_one, &[ErrorKind::Lost])?;
    // A late nack as well: of a delivery that is no more.
    promptly("nack", taken.nack()).await??;
    let late = expect(&here, "work", 3).await?;
    operator(harness)?.delete(late.key()).await?;
    let taken = expect(&there, "work", 4).await?;
    let refused_one = promptly("nack", late.nack()).await?;
    refused("a late nack", refused_one, &[ErrorKind::Lost])?;
    expect_empty(&here).await?;
    ack(taken).await?;
    let left = promptly("len", here.len()).await??;
    ensure!(left == 0, "{left} items are left");
    held!("a late ack and a late nack were told Lost; the item stayed with the other consumer")
}
