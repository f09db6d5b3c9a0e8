//! Queues: rules Q2, Q4, Q5 and Q6, on items that are with consumers.

use std::time::Duration;

use tenure_core::guarantees::Line;
use tenure_core::{ConsumeOptions, Delivery, FencingToken, NewItem, QueueHandle, Result};
use tokio::time::Instant;

use super::queue::{ack, has, is_empty, nack, put, queue, take};
use super::{granted, still_waiting, waiter};
use crate::case::cases;
use crate::harness::Harness;
use crate::outcome::{Outcome, Step, Verdict};
use crate::tools::{
    LONG, LOOK, PROMPT, Task, at_every_await_point, count_keys, done, ensure, expiry_bound, held, in_time,
    keys_return_to, open, open_linked, revoke, settle, slack, spawn, within,
};

cases! { CASES:
    q2_returned_item_counts_its_deliveries "Q2" "an item comes back with a raised count, under a greater token"
        (Some(Line::QueueDelivery)) [] delivers_until_acknowledged;
    q2_item_of_crashing_consumers_is_kept "Q2" "an item is delivered again however often its consumers crash"
        (Some(Line::QueueDelivery)) [Revoke] delivers_until_acknowledged;
    q2_delay_is_kept "Q2" "a delayed item is delivered after its delay, never before" (None) [] always;
    q2_delayed_item_goes_to_a_waiting_consumer "Q2"
        "an item whose delay ends goes to a consumer that waits, although another gave up"
        (None) [] always;
    q2_dead_letters_are_moved "Q2"
        "an item that was delivered too often moves to the end of another queue" (None) [] always;
    q2_dead_letters_of_crashed_consumers_are_moved "Q2"
        "an item whose consumers crash again and again moves, and is never dropped"
        (None) [Revoke] always;
    q2_failed_jobs_are_delivered_again "Q2"
        "a consumer's jobs that fail or take too long are delivered again, the others are not"
        (Some(Line::QueueDelivery)) [] delivers_until_acknowledged;
    q5_item_wakes_one_consumer "Q5" "an item wakes one waiting consumer" (None) [] always;
    q6_cancelled_dequeue_loses_nothing "Q6"
        "a dequeue that is dropped at any await point loses no item and counts no delivery"
        (Some(Line::Cancellation)) [] prompt_cancellation;
    q6_unanswered_dequeue_loses_nothing "Q6"
        "an item that a dropped dequeue was given over a link without answers comes back uncounted"
        (Some(Line::Cancellation)) [Mute] prompt_cancellation;
}

async fn consumer(harness: &dyn Harness, queue: &QueueHandle) -> Step<Task<Result<Delivery>>> {
    let queue = queue.clone();
    waiter(harness, async move { queue.dequeue().await }).await
}

async fn q2_returned_item_counts_its_deliveries(harness: &dyn Harness) -> Verdict {
    let handles = [queue(harness, "again").await?, queue(harness, "again").await?];
    put(&handles[0], "work").await?;
    let mut last = FencingToken::new(0);
    for count in 1..=5 {
        let delivery = take(&handles[count as usize % 2], "work", count).await?;
        let token = delivery.token();
        ensure!(
            token > last && delivery.is_valid(),
            "delivery {count} has token {token}, the one before had {last}"
        );
        last = token;
        match count % 2 {
            0 => drop(delivery),
            _ => nack(delivery).await?,
        }
    }
    held!("five deliveries, counted 1 to 5, under rising tokens")
}

/// Takes the item `value` in a session that an operator revokes then, as after a crash. The delivery is dropped late.
async fn crash_with(
    harness: &dyn Harness,
    dead_letter: Option<(u32, &str)>,
    value: &str,
    deliveries: u32,
) -> Step<Delivery> {
    let session = open(harness, LONG).await?;
    let mut jobs = session.queue("jobs");
    if let Some((most, name)) = dead_letter {
        jobs = jobs.dead_letter(most, name);
    }
    let delivery = take(&jobs, value, deliveries).await?;
    revoke(harness, session.id()).await?;
    Ok(delivery)
}

async fn q2_item_of_crashing_consumers_is_kept(harness: &dyn Harness) -> Verdict {
    const CRASHES: u32 = 7;
    let jobs = queue(harness, "jobs").await?;
    put(&jobs, "poison").await?;
    put(&jobs, "good").await?;
    for count in 1..=CRASHES {
        drop(crash_with(harness, None, "poison", count).await?);
    }
    ack(take(&jobs, "poison", CRASHES + 1).await?).await?;
    ack(take(&jobs, "good", 1).await?).await?;
    held!("after {CRASHES} crashes of its consumers the item was delivered again, at its place")
}

async fn q2_delay_is_kept(harness: &dyn Harness) -> Verdict {
    const DELAY: Duration = Duration::from_secs(2);
    let (here, there) = (queue(harness, "later").await?, queue(harness, "later").await?);
    // Counted from before the request: the store cannot be early by its duration.
    let at = Instant::now();
    put(&here, NewItem::new("delayed").delay(DELAY)).await?;
    put(&here, "next").await?;
    ack(take(&there, "next", 1).await?).await?;
    let first = within(DELAY + slack(), "the delivery after the delay", there.dequeue()).await??;
    ensure!(
        at.elapsed() >= DELAY,
        "an item with a delay of {DELAY:?} was delivered after {:?}",
        at.elapsed()
    );
    ensure!(
        first.text() == "delayed" && first.deliveries() == 1,
        "{:?} came instead",
        first.text()
    );
    put(&here, "last").await?;
    let at = Instant::now();
    done("nack_after", first.nack_after(DELAY)).await?;
    let (last, early) = (done("dequeue", there.dequeue()).await?, at.elapsed() < DELAY);
    ensure!(
        !early || last.text() == "last",
        "{:?} was delivered {:?} into its delay",
        last.text(),
        at.elapsed()
    );
    ack(last).await?;
    let again = within(DELAY + slack(), "the delivery after the delay", there.dequeue()).await??;
    ensure!(
        at.elapsed() >= DELAY,
        "an item that was returned for {DELAY:?} came after {:?}",
        at.elapsed()
    );
    ensure!(again.deliveries() == 2, "it came in delivery {}", again.deliveries());
    ack(again).await?;
    is_empty(&here, "after all items").await?;
    held!(
        "enqueued and returned with a delay of {DELAY:?}, delivered {:?} after the return",
        at.elapsed()
    )
}

async fn q2_delayed_item_goes_to_a_waiting_consumer(harness: &dyn Harness) -> Verdict {
    const DELAY: Duration = Duration::from_secs(1);
    let mut took = Vec::new();
    for first_gives_up in [false, true] {
        let name = format!("later {first_gives_up}");
        let jobs = queue(harness, &name).await?;
        put(&jobs, "delayed").await?;
        let delivery = take(&jobs, "delayed", 1).await?;
        let first = consumer(harness, &queue(harness, &name).await?).await?;
        let mut second = consumer(harness, &queue(harness, &name).await?).await?;
        let at = Instant::now();
        done("nack_after", delivery.nack_after(DELAY)).await?;
        let mut first = (!first_gives_up).then_some(first);
        let limit = DELAY + expiry_bound(harness).await? + slack();
        let back = match &mut first {
            // One of the two is given it; the other one goes on waiting.
            Some(first) => tokio::select! {
                biased;
                back = first.end(limit, "the delivery to a waiting consumer") => back,
                back = second.end(limit, "the delivery to a waiting consumer") => back,
            },
            None => second.end(limit, "the delivery to a waiting consumer").await,
        };
        ensure!(
            at.elapsed() >= DELAY,
            "delivered {:?} into a delay of {DELAY:?}",
            at.elapsed()
        );
        took.push(at.elapsed());
        ack(back??).await?;
    }
    held!("delivered after {took:?} of {DELAY:?} to consumers that waited, the second time although another gave up")
}

async fn q2_dead_letters_are_moved(harness: &dyn Harness) -> Verdict {
    const MOST: u32 = 2;
    let session = open(harness, LONG).await?;
    let (letters, jobs) = (
        session.queue("letters"),
        session.queue("jobs").dead_letter(MOST, "letters"),
    );
    put(&letters, NewItem::new("earlier").priority(3)).await?;
    put(&jobs, NewItem::new("poison").priority(3).id("poison/1")).await?;
    put(&jobs, NewItem::new("good").priority(4)).await?;
    for count in 1..=MOST {
        nack(take(&jobs, "poison", count).await?).await?;
    }
    ack(take(&jobs, "good", 1).await?).await?;
    is_empty(&jobs, "after its last item was moved").await?;
    has(&jobs, 0, 0, 0, "after its last item was moved").await?;
    has(&letters, 2, 0, 0, "after an item was moved to it").await?;
    ack(take(&letters, "earlier", 1).await?).await?;
    let moved = done("dequeue", letters.dequeue()).await?;
    ensure!(
        moved.text() == "poison" && moved.priority() == 3 && moved.id() == Some("poison/1"),
        "{:?} came with priority {} and id {:?}",
        moved.text(),
        moved.priority(),
        moved.id()
    );
    ack(moved).await?;
    // An item goes to a consumer that waits for dead letters.
    let mut waiting = consumer(harness, &queue(harness, "letters").await?).await?;
    put(&jobs, "poison too").await?;
    for count in 1..=MOST {
        nack(take(&jobs, "poison too", count).await?).await?;
    }
    is_empty(&jobs, "after its last item was moved").await?;
    ack(granted(&mut waiting, "the delivery of a dead letter to a consumer that waits").await?).await?;
    held!("delivered {MOST} times, then moved behind what was in the other queue, with its priority and its id")
}

async fn q2_dead_letters_of_crashed_consumers_are_moved(harness: &dyn Harness) -> Verdict {
    const MOST: u32 = 4;
    let session = open(harness, LONG).await?;
    let (letters, jobs) = (
        session.queue("letters"),
        session.queue("jobs").dead_letter(MOST, "letters"),
    );
    put(&jobs, "poison").await?;
    for count in 1..=MOST {
        drop(crash_with(harness, Some((MOST, "letters")), "poison", count).await?);
        has(&jobs, 1, 0, 0, "after a crash").await?;
    }
    is_empty(&jobs, "after the last delivery").await?;
    has(&jobs, 0, 0, 0, "after the item was moved").await?;
    let moved = done("try_dequeue", letters.try_dequeue()).await?;
    let found = moved.as_ref().map(|moved| moved.text().into_owned());
    ensure!(
        found.as_deref() == Some("poison"),
        "the item that crashed {MOST} consumers was dropped: found {found:?}"
    );
    held!("the item that crashed {MOST} consumers was moved, not dropped")
}

async fn q2_failed_jobs_are_delivered_again(harness: &dyn Harness) -> Verdict {
    let jobs = queue(harness, "jobs").await?;
    for value in ["good", "fails", "endless"] {
        put(&jobs, value).await?;
    }
    let seen = parking_lot::Mutex::new(Vec::new());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stop = parking_lot::Mutex::new(Some(stop));
    let options = ConsumeOptions::new().concurrency(2).limit(Duration::from_secs(1));
    let options = options.retry(Duration::from_millis(100), Duration::from_secs(1));
    let options = options.until(async move {
        let _ = stopped.await;
    });
    let work = async |job: std::sync::Arc<Delivery>| {
        let (value, count) = (job.text().into_owned(), job.deliveries());
        seen.lock().push((value.clone(), count));
        if seen.lock().len() == 5 {
            stop.lock().take();
        }
        match (value.as_str(), count) {
            ("fails", 1) => Err("on purpose"),
            ("endless", 1) => std::future::pending().await,
            _ => Ok(()),
        }
    };
    done("the consumer's end", jobs.consume(options, work)).await?;
    let mut seen = seen.into_inner();
    seen.sort();
    let due = [("endless", 1), ("endless", 2), ("fails", 1), ("fails", 2), ("good", 1)];
    let due: Vec<_> = due
        .into_iter()
        .map(|(value, count)| (value.to_owned(), count))
        .collect();
    ensure!(seen == due, "the jobs ran as {seen:?} instead of {due:?}");
    has(&jobs, 0, 0, 0, "after all jobs").await?;
    held!("a failed and an endless job were delivered again, the others once, and all were acknowledged")
}

async fn q5_item_wakes_one_consumer(harness: &dyn Harness) -> Verdict {
    const CONSUMERS: usize = 5;
    let producing = queue(harness, "few").await?;
    let mut waiting = Vec::new();
    for _ in 0..CONSUMERS {
        waiting.push(consumer(harness, &queue(harness, "few").await?).await?);
    }
    let mut deliveries = Vec::new();
    for number in 0..CONSUMERS {
        still_waiting("before an item was enqueued", &waiting.iter().collect::<Vec<_>>()).await?;
        put(&producing, number.to_string()).await?;
        let served = async {
            loop {
                if let Some(at) = waiting.iter().position(Task::is_finished) {
                    return waiting.swap_remove(at);
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        let served = tokio::time::timeout(PROMPT, served).await;
        let mut served = served.map_err(|_| Outcome::violated("an item woke no waiting consumer"))?;
        let delivery = granted(&mut served, "the delivery").await?;
        ensure!(
            delivery.text() == number.to_string() && delivery.deliveries() == 1,
            "item {number} was enqueued, and {:?} came in delivery {}",
            delivery.text(),
            delivery.deliveries()
        );
        deliveries.push(delivery);
    }
    has(&producing, 0, CONSUMERS as u64, 0, "with an item for each consumer").await?;
    held!("{CONSUMERS} items, enqueued one by one, woke {CONSUMERS} consumers one by one")
}

async fn q6_cancelled_dequeue_loses_nothing(harness: &dyn Harness) -> Verdict {
    let (here, there) = (queue(harness, "given up").await?, queue(harness, "given up").await?);
    let baseline = count_keys(harness).await?;
    let mut dropped = 0;
    for is_there_first in [true, false] {
        dropped += at_every_await_point(
            async || {
                if is_there_first {
                    put(&there, "item").await?;
                }
                Ok(here.dequeue())
            },
            async |ended| {
                if !is_there_first {
                    put(&there, "item").await?;
                }
                match ended {
                    Some(delivery) => ack(delivery?).await?,
                    // It was given back, uncounted: no consumer saw it.
                    None => ack(take(&there, "item", 1).await?).await?,
                }
                is_empty(&there, "after its item").await?;
                keys_return_to(baseline, harness).await
            },
        )
        .await?;
    }
    held!("{dropped} dequeues were dropped, and each item came to another consumer, uncounted")
}

async fn q6_unanswered_dequeue_loses_nothing(harness: &dyn Harness) -> Verdict {
    let (session, link) = open_linked(harness, LONG).await?;
    let (here, there) = (session.queue("cut off"), queue(harness, "cut off").await?);
    put(&there, "known").await?;
    ack(take(&here, "known", 1).await?).await?;
    let rounds = 4;
    for round in 0..rounds {
        let waits_first = round % 2 == 1;
        if !waits_first {
            put(&there, "item").await?;
            link.mute();
        }
        let taking = here.clone();
        let given_up = spawn(async move { taking.dequeue().await });
        settle().await;
        if waits_first {
            link.mute();
            put(&there, "item").await?;
            settle().await;
        }
        ensure!(
            !given_up.is_finished(),
            "an item was delivered over a link without answers"
        );
        drop(given_up);
        link.heal();
        ack(take(&there, "item", 1).await?).await?;
        is_empty(&there, "after its item").await?;
    }
    in_time!(session.is_valid(), "the session was lost: {:?}", session.loss());
    has(&there, 0, 0, 0, "in the end").await?;
    held!("{rounds} items that dropped dequeues were given came back, uncounted")
}
