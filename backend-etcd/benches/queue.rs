//! Queues over etcd: what depth costs, how soon an item reaches a waiting consumer, and how many pass.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench queue            # everything, about a minute
//! cargo bench -p tenure-etcd --bench queue -- 5       # seconds for the throughput
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`). Only the ratios mean something on another machine.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchOptions,
};
use hdrhistogram::Histogram;
use tenure_core::{Delivery, Item, MAX_BATCH, QueueHandle, SessionOptions, Store};
use tenure_etcd::{EtcdBackend, EtcdConfig, EtcdQueue};
use tenure_testbed::EtcdServer;

type Fallible<T = ()> = Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Queue = QueueHandle<EtcdQueue>;

async fn store(etcd: &EtcdServer) -> Fallible<Store<EtcdBackend>> {
    Ok(tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?)
}

async fn queue(store: &Store<EtcdBackend>, name: &str) -> Fallible<Queue> {
    let options = SessionOptions::new().ttl(Duration::from_secs(60));
    Ok(store.open(options).await?.queue(name)?)
}

async fn fill(queue: &Queue, items: usize) -> Fallible {
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
async fn depth(etcd: &EtcdServer, rounds: usize) -> Fallible<f64> {
    let store = store(etcd).await?;
    let queues = [
        (10, queue(&store, "shallow").await?),
        (10_000, queue(&store, "deep").await?),
    ];
    for (depth, queue) in &queues {
        fill(queue, *depth).await?;
        queue.dequeue().await?.ack().await?;
        fill(queue, 1).await?;
    }
    let mut taken = [Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?];
    for _ in 0..rounds {
        for (at, (_, queue)) in queues.iter().enumerate() {
            let start = Instant::now();
            let delivery = queue.dequeue().await?;
            taken[at].record(start.elapsed().as_micros().try_into()?)?;
            delivery.ack().await?;
            fill(queue, 1).await?;
        }
    }
    let at = |which: usize, q| taken[which].value_at_quantile(q);
    let ratio = at(1, 0.5) as f64 / at(0, 0.5) as f64;
    println!(
        "dequeue: at depth 10 p50 {} us p99 {} us, at depth 10,000 p50 {} us p99 {} us | ratio of medians {ratio:.2}",
        at(0, 0.5),
        at(0, 0.99),
        at(1, 0.5),
        at(1, 0.99),
    );
    Ok(ratio)
}

/// From before the enqueue, on one client, until a consumer that waits on another has it.
async fn wake(etcd: &EtcdServer, rounds: usize) -> Fallible {
    let producing = queue(&store(etcd).await?, "woken").await?;
    let consuming = queue(&store(etcd).await?, "woken").await?;
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
        "enqueue to a waiting dequeue: p50 {} us, p99 {} us, max {} us of {rounds}",
        reached.value_at_quantile(0.5),
        reached.value_at_quantile(0.99),
        reached.max(),
    );
    Ok(())
}

/// The same way for a client's bare library: a request that puts an item in, a standing watch on
/// another client, a request that claims it. Nothing that keeps an item until it is acknowledged can
/// do with less, so what the machine and its disk cost is here, too.
async fn raw_wake(etcd: &EtcdServer, rounds: usize) -> Fallible {
    let connect = async || Client::connect([etcd.address().to_string()], None).await;
    let (producing, consuming) = (connect().await?, connect().await?);
    let prefix = Some(WatchOptions::new().with_prefix());
    let mut watch = consuming.watch_client().watch("raw/wake/", prefix).await?;
    let mut reached = Histogram::<u64>::new(3)?;
    for round in 0..rounds + 20 {
        let start = Instant::now();
        let item = format!("raw/wake/{round:025}");
        let puts = [
            TxnOp::put(item.as_str(), "0 x", None),
            TxnOp::put("raw/tail", "0", None),
        ];
        let mut kv = producing.kv_client();
        let putting = kv.txn(Txn::new().and_then(puts));
        let claiming = async {
            while watch
                .message()
                .await?
                .ok_or("the watch ended")?
                .events()
                .is_empty()
            {}
            let there = Compare::version(item.as_str(), CompareOp::Greater, 0);
            let claim = Txn::new().when([there]).and_then([
                TxnOp::put(format!("raw/claims/{round:025}"), "0123456789", None),
                TxnOp::get(item.as_str(), None),
            ]);
            let claimed = consuming.kv_client().txn(claim).await?.succeeded();
            Fallible::Ok((claimed, Instant::now()))
        };
        let (put, claimed) = tokio::join!(putting, claiming);
        let (claimed, at) = claimed?;
        assert!(put?.succeeded() && claimed);
        if round >= 20 {
            reached.record((at - start).as_micros().try_into()?)?;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    println!(
        "the same by two bare requests and a watch: p50 {} us, p99 {} us, max {} us",
        reached.value_at_quantile(0.5),
        reached.value_at_quantile(0.99),
        reached.max(),
    );
    Ok(())
}

/// How often a client's bare library gets a request answered that moves `items`: it puts in as many,
/// claims as many and acknowledges as many, with the operations that this takes.
async fn raw(etcd: &EtcdServer, items: u64, length: Duration) -> Fallible {
    let client = Client::connect([etcd.address().to_string()], None).await?;
    let key = |part: &str, number: u64| format!("tenure/1/raw/queue/x/{part}/{number:025}");
    let request = move |round: u64| {
        let (mut put, mut claims, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        for item in 0..items {
            let at = |behind: u64| (round - behind) * items + item;
            put.push(TxnOp::put(key("items", at(0)), "0 100", None));
            put.push(TxnOp::put(key("writers", item), "0123456789", None));
            claims.push(TxnOp::put(key("claims", at(1)), "0123456789", None));
            claims.push(TxnOp::put(key("counts", at(1)), "1", None));
            claims.push(TxnOp::get(key("items", at(1)), None));
            let done = ["items", "claims", "counts"];
            let done = done.map(|part| TxnOp::delete(key(part, at(2)), None));
            parts.push(TxnOp::txn(Txn::new().and_then(done)));
        }
        put.push(TxnOp::put(key("tail", 0), "0", None));
        parts.extend([put, claims].map(|ops| TxnOp::txn(Txn::new().and_then(ops))));
        Txn::new().and_then(parts)
    };
    let answered = tokio::spawn(async move {
        let (start, mut answered) = (Instant::now(), Histogram::<u64>::new(3)?);
        while start.elapsed() < length {
            let sent = Instant::now();
            let txn = request(answered.len() + 2);
            client.kv_client().txn(txn).await?;
            answered.record(sent.elapsed().as_micros().try_into()?)?;
        }
        Fallible::Ok(answered)
    });
    let answered = answered.await??;
    println!(
        "bare requests, one at a time, that move {items} items: {:.0}/s, p50 {} us, p99 {} us",
        answered.len() as f64 / length.as_secs_f64(),
        answered.value_at_quantile(0.5),
        answered.value_at_quantile(0.99),
    );
    Ok(())
}

/// When a consumer asks for the next item.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Next {
    /// Once the one it has is acknowledged.
    Afterwards,
    /// While it acknowledges the one it has.
    Meanwhile,
}

/// Producers and consumers with a session each, one item at a time, every item acknowledged.
async fn flow(
    etcd: &EtcdServer,
    producers: usize,
    consumers: usize,
    clients: usize,
    next: Next,
    length: Duration,
) -> Fallible {
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(store(etcd).await?);
    }
    let name = format!("flow {clients} {next:?}");
    let (stop, put, got) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let done = Arc::new(tokio::sync::Notify::new());
    let seen = Arc::new(Mutex::new(HashMap::<(usize, u64), u32>::new()));
    let (mut producing, mut consuming) = (Vec::new(), Vec::new());
    for producer in 0..producers {
        let queue = queue(&stores[producer % clients], &name).await?;
        let (stop, put, got) = (Arc::clone(&stop), Arc::clone(&put), Arc::clone(&got));
        producing.push(tokio::spawn(async move {
            let mut number = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // No faster than they are consumed: it is the flow that is measured.
                if put.load(Ordering::Relaxed) > got.load(Ordering::Relaxed) + 1_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    continue;
                }
                queue.enqueue(format!("{producer} {number}")).await?;
                put.fetch_add(1, Ordering::Relaxed);
                number += 1;
            }
            Fallible::Ok(())
        }));
    }
    for consumer in 0..consumers {
        let queue = queue(&stores[consumer % clients], &name).await?;
        let (done, got, seen) = (Arc::clone(&done), Arc::clone(&got), Arc::clone(&seen));
        consuming.push(tokio::spawn(async move {
            let acknowledge = async |delivery: Delivery<EtcdQueue>, item| {
                delivery.ack().await?;
                got.fetch_add(1, Ordering::Relaxed);
                *seen.lock().unwrap().entry(item).or_default() += 1;
                tenure_core::Result::Ok(())
            };
            let mut newest = HashMap::<usize, u64>::new();
            let mut had = None;
            loop {
                let taking = async {
                    if next == Next::Afterwards {
                        return queue.dequeue().await;
                    }
                    let acknowledging = async {
                        match had.take() {
                            Some((delivery, item)) => acknowledge(delivery, item).await,
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
                    () = done.notified() => return Fallible::Ok(()),
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
                    acknowledge(delivery, item).await?;
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(500)).await; // warm
    let (start, before) = (Instant::now(), got.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let passed = got.load(Ordering::Relaxed) - before;
    let per_second = passed as f64 / start.elapsed().as_secs_f64();
    stop.store(true, Ordering::Relaxed);
    for task in producing {
        task.await??;
    }
    while got.load(Ordering::Relaxed) < put.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    done.notify_waiters();
    for task in consuming {
        task.await??;
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len() as u64, put.load(Ordering::Relaxed), "lost");
    assert!(seen.values().all(|times| *times == 1), "acknowledged twice");
    let next = match next {
        Next::Afterwards => "acknowledge, then ask for the next",
        Next::Meanwhile => "acknowledge and ask for the next",
    };
    println!(
        "{producers} producers, {consumers} consumers that {next}, {clients} clients: {per_second:.0} items/s, each acknowledged once, in order"
    );
    Ok(())
}

/// The algorithm of etcd's `client/v3/contrib/recipes/queue.go`: an item is a key with the time for a
/// name; a consumer reads the one that was modified first and deletes it, or waits for one by a watch
/// from the revision of that read. An item is gone before its work is done.
async fn go_flow(
    etcd: &EtcdServer,
    producers: usize,
    consumers: usize,
    length: Duration,
) -> Fallible {
    let client = Client::connect([etcd.address().to_string()], None).await?;
    let (put, got) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let mut tasks = Vec::new();
    for producer in 0..producers {
        let (client, put, got) = (client.clone(), Arc::clone(&put), Arc::clone(&got));
        tasks.push(tokio::spawn(async move {
            for number in 0_u64.. {
                // As for our own: it is the flow that is measured.
                while put.load(Ordering::Relaxed) > got.load(Ordering::Relaxed) + 1_000 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let since = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_nanos();
                let key = format!("go/queue/{since}");
                let value = format!("{producer} {number}");
                let new = Compare::version(key.as_str(), CompareOp::Equal, 0);
                let txn = Txn::new()
                    .when([new])
                    .and_then([TxnOp::put(key.as_str(), value, None)]);
                if client.kv_client().txn(txn).await?.succeeded() {
                    put.fetch_add(1, Ordering::Relaxed);
                }
            }
            Fallible::Ok(())
        }));
    }
    for _ in 0..consumers {
        let (client, got) = (client.clone(), Arc::clone(&got));
        tasks.push(tokio::spawn(async move {
            loop {
                go_dequeue(&client).await?;
                got.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    tokio::time::sleep(length).await;
    for task in &tasks {
        task.abort();
    }
    println!(
        "{producers} producers, {consumers} consumers, Go's algorithm, 1 client: {:.0} items/s, lost if their consumer dies",
        got.load(Ordering::Relaxed) as f64 / length.as_secs_f64(),
    );
    Ok(())
}

async fn go_dequeue(client: &Client) -> Fallible {
    let claim = async |key: &[u8], revision: i64| {
        let same = Compare::mod_revision(key, CompareOp::Equal, revision);
        let txn = Txn::new().when([same]).and_then([TxnOp::delete(key, None)]);
        Fallible::Ok(client.kv_client().txn(txn).await?.succeeded())
    };
    loop {
        let first = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Mod, SortOrder::Ascend)
            .with_limit(1);
        let answer = client.kv_client().get("go/queue/", Some(first)).await?;
        if let Some(item) = answer.kvs().first() {
            if claim(item.key(), item.mod_revision()).await? {
                return Ok(());
            }
            continue;
        }
        let revision = answer.header().ok_or("no header")?.revision();
        let from = WatchOptions::new()
            .with_prefix()
            .with_start_revision(revision);
        let mut watch = client.watch_client().watch("go/queue/", Some(from)).await?;
        let item = loop {
            let message = watch.message().await?.ok_or("the watch ended")?;
            let put = message
                .events()
                .iter()
                .find(|event| event.event_type() == EventType::Put)
                .and_then(|event| event.kv().cloned());
            if let Some(item) = put {
                break item;
            }
        };
        if claim(item.key(), item.mod_revision()).await? {
            return Ok(());
        }
    }
}

#[tokio::main]
async fn main() -> Fallible {
    // `cargo bench` adds `--bench`; `cargo test --benches` runs this for a moment, to see that it works.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match arguments.iter().find_map(|a| a.parse::<f64>().ok()) {
        Some(seconds) => seconds,
        None if arguments.iter().any(|a| a == "--bench") => 5.0,
        None => 0.2,
    };
    let rounds = if seconds < 1.0 { 20 } else { 1_000 };
    let etcd = EtcdServer::builder().fsync(true).start()?;
    println!("etcd {}, {seconds} s", etcd.version());
    depth(&etcd, rounds).await?;
    wake(&etcd, rounds).await?;
    raw_wake(&etcd, rounds).await?;
    let length = Duration::from_secs_f64(seconds);
    for items in [1, 2, 4] {
        raw(&etcd, items, length / 2).await?;
    }
    for next in [Next::Afterwards, Next::Meanwhile] {
        for clients in [1, 4] {
            flow(&etcd, 4, 4, clients, next, length).await?;
        }
    }
    go_flow(&etcd, 4, 4, length).await?;
    Ok(())
}
