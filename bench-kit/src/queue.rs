//! Queues: what depth costs, how soon an item reaches a waiting consumer, and how many pass.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tenure_core::backend::{Backend, HasQueue, Queue};
use tenure_core::{Delivery, Item, MAX_BATCH, QueueHandle, SessionOptions, Store};

use crate::{Fallible, quantiles};

type HandleOn<B> = QueueHandle<<<B as Backend>::Session as HasQueue>::Queue>;

/// A queue of a new session.
async fn queue<B>(store: &Store<B>, name: &str) -> Fallible<HandleOn<B>>
where
    B: Backend<Session: HasQueue>,
{
    let options = SessionOptions::new().ttl(Duration::from_secs(60));
    Ok(store.open(options).await?.queue(name)?)
}

async fn fill<Q: Queue>(queue: &QueueHandle<Q>, items: usize) -> Fallible {
    let mut left = items;
    while left > 0 {
        let batch = left.min(MAX_BATCH);
        queue
            .enqueue_many((0..batch).map(|_| Item::new([0; 100])))
            .await?;
        left -= batch;
    }
    Ok(())
}

/// One consumer after the other on queues of different depths, in turn.
///
/// # Errors
///
/// The store's.
pub async fn depth<B>(store: &Store<B>, rounds: usize) -> Fallible
where
    B: Backend<Session: HasQueue>,
{
    let queues = [
        (10, queue(store, "shallow").await?),
        (10_000, queue(store, "deep").await?),
    ];
    for (depth, queue) in &queues {
        fill(queue, *depth).await?;
        queue.dequeue().await?.ack().await?;
        fill(queue, 1).await?;
    }
    let mut taken = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
    for _ in 0..rounds {
        for ((_, queue), taken) in queues.iter().zip(&mut taken) {
            let start = Instant::now();
            let delivery = queue.dequeue().await?;
            taken.record(start.elapsed().as_micros().try_into()?)?;
            delivery.ack().await?;
            fill(queue, 1).await?;
        }
    }
    let [shallow, deep] = taken;
    let ratio = deep.value_at_quantile(0.5) as f64 / shallow.value_at_quantile(0.5) as f64;
    println!(
        "dequeue: at depth 10 {}, at depth 10,000 {} | ratio of medians {ratio:.2}",
        quantiles(&shallow),
        quantiles(&deep),
    );
    Ok(())
}

/// From before the enqueue, on one client, until a consumer that waits on another has it.
///
/// # Errors
///
/// The store's.
pub async fn wake<B>(producing: &Store<B>, consuming: &Store<B>, rounds: usize) -> Fallible
where
    B: Backend<Session: HasQueue>,
{
    let producing = queue(producing, "woken").await?;
    let consuming = queue(consuming, "woken").await?;
    let mut reached = Histogram::<u64>::new(3)?;
    for round in 0..rounds + 20 {
        let handle = consuming.clone();
        let waiting = tokio::spawn(async move { (handle.dequeue().await, Instant::now()) });
        tokio::time::sleep(Duration::from_millis(3)).await;
        let start = Instant::now();
        producing.enqueue("x").await?;
        let (delivery, at) = waiting.await?;
        if round >= 20 {
            reached.record((at - start).as_micros().try_into()?)?;
        }
        delivery?.ack().await?;
    }
    println!(
        "enqueue to a waiting dequeue: {}, max {} us of {rounds}",
        quantiles(&reached),
        reached.max(),
    );
    Ok(())
}

/// When a consumer asks for the next item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Once the one it has is acknowledged.
    Afterwards,
    /// While it acknowledges the one it has.
    Meanwhile,
}

/// What the producers and consumers of one measurement share.
#[derive(Default)]
struct Passage {
    stop: AtomicBool,
    put: AtomicU64,
    got: AtomicU64,
    /// That all is done.
    done: tokio::sync::Notify,
    /// How often each item was acknowledged.
    seen: Mutex<HashMap<(usize, u64), u32>>,
}

impl Passage {
    async fn produce<Q: Queue>(&self, queue: QueueHandle<Q>, producer: usize) -> Fallible {
        let mut number = 0_u64;
        while !self.stop.load(Ordering::Relaxed) {
            // No faster than they are consumed: it is the flow that is measured.
            if self.put.load(Ordering::Relaxed) > self.got.load(Ordering::Relaxed) + 1_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
            queue.enqueue(format!("{producer} {number}")).await?;
            self.put.fetch_add(1, Ordering::Relaxed);
            number += 1;
        }
        Ok(())
    }

    async fn acknowledge<Q: Queue>(
        &self,
        delivery: Delivery<Q>,
        item: (usize, u64),
    ) -> tenure_core::Result<()> {
        delivery.ack().await?;
        self.got.fetch_add(1, Ordering::Relaxed);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        *seen.entry(item).or_default() += 1;
        Ok(())
    }

    async fn consume<Q: Queue>(&self, queue: QueueHandle<Q>, next: Next) -> Fallible {
        let mut newest = HashMap::<usize, u64>::new();
        let mut had = None;
        loop {
            let taking = async {
                if next == Next::Afterwards {
                    return queue.dequeue().await;
                }
                let acknowledging = async {
                    match had.take() {
                        Some((delivery, item)) => self.acknowledge(delivery, item).await,
                        None => Ok(()),
                    }
                };
                let (taken, acknowledged) = tokio::join!(queue.dequeue(), acknowledging);
                acknowledged.and(taken)
            };
            // Not dropped before all is done: what a dropped dequeue had comes back, and then
            // it comes after what others took meanwhile.
            let delivery = tokio::select! {
                delivery = taking => delivery?,
                () = self.done.notified() => return Ok(()),
            };
            let text = String::from_utf8(delivery.value().to_vec())?;
            let (producer, number) = text.split_once(' ').ok_or("no number")?;
            let (producer, number) = (producer.parse()?, number.parse()?);
            // What one producer put in one after the other comes one after the other.
            let before = newest.insert(producer, number);
            assert!(
                before < Some(number),
                "{producer}: {number} after {before:?}"
            );
            had = Some((delivery, (producer, number)));
            if next == Next::Afterwards {
                let (delivery, item) = had.take().ok_or("nothing")?;
                self.acknowledge(delivery, item).await?;
            }
        }
    }
}

/// Four producers and four consumers with a session each, on so many clients in turn, one item at a
/// time, every item acknowledged.
///
/// # Errors
///
/// The store's.
///
/// # Panics
///
/// When an item is lost, comes twice, or before one that its producer put in sooner.
pub async fn flow<B>(
    connect: impl AsyncFn() -> Fallible<Store<B>>,
    clients: usize,
    next: Next,
    length: Duration,
) -> Fallible
where
    B: Backend<Session: HasQueue>,
{
    const EACH: usize = 4;
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(connect().await?);
    }
    let name = format!("flow {clients} {next:?}");
    let passage = Arc::new(Passage::default());
    let (mut producing, mut consuming) = (Vec::new(), Vec::new());
    for (producer, store) in stores.iter().cycle().take(EACH).enumerate() {
        let (passage, queue) = (Arc::clone(&passage), queue(store, &name).await?);
        producing.push(tokio::spawn(async move {
            passage.produce(queue, producer).await
        }));
    }
    for store in stores.iter().cycle().take(EACH) {
        let (passage, queue) = (Arc::clone(&passage), queue(store, &name).await?);
        consuming.push(tokio::spawn(
            async move { passage.consume(queue, next).await },
        ));
    }
    let got = || passage.got.load(Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(500)).await; // warm
    let (start, before) = (Instant::now(), got());
    tokio::time::sleep(length).await;
    let passed = got() - before;
    let per_second = passed as f64 / start.elapsed().as_secs_f64();
    passage.stop.store(true, Ordering::Relaxed);
    for task in producing {
        task.await??;
    }
    let put = passage.put.load(Ordering::Relaxed);
    while got() < put {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    passage.done.notify_waiters();
    for task in consuming {
        task.await??;
    }
    let seen = passage.seen.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(seen.len() as u64, put, "lost");
    assert!(seen.values().all(|times| *times == 1), "acknowledged twice");
    let next = match next {
        Next::Afterwards => "acknowledge, then ask for the next",
        Next::Meanwhile => "acknowledge and ask for the next",
    };
    println!(
        "{EACH} producers, {EACH} consumers that {next}, {clients} clients: {per_second:.0} items/s, each acknowledged once, in order"
    );
    Ok(())
}
