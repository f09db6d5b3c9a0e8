//! Queues over etcd: what depth costs, how soon an item reaches a waiting consumer, and how many pass.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench queue            # everything, about a minute
//! cargo bench -p tenure-etcd --bench queue -- 5       # seconds for the throughput
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`). Only the ratios mean something on another machine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, SortOrder, SortTarget, Txn, TxnOp,
    WatchOptions,
};
use hdrhistogram::Histogram;
use tenure_bench_kit::queue::{Next, depth, flow, wake};
use tenure_bench_kit::{Fallible, how_much, quantiles};
use tenure_core::Store;
use tenure_etcd::{EtcdBackend, EtcdConfig};
use tenure_testbed::EtcdServer;

async fn store(etcd: &EtcdServer) -> Fallible<Store<EtcdBackend>> {
    Ok(tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?)
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
        "the same by two bare requests and a watch: {}, max {} us",
        quantiles(&reached),
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
        "bare requests, one at a time, that move {items} items: {:.0}/s, {}",
        answered.len() as f64 / length.as_secs_f64(),
        quantiles(&answered),
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
    let seconds = how_much(5.0, 0.2);
    let rounds = if seconds < 1.0 { 20 } else { 1_000 };
    let etcd = EtcdServer::builder().fsync(true).start()?;
    println!("etcd {}, {seconds} s", etcd.version());
    let connect = async || store(&etcd).await;
    depth(&connect().await?, rounds).await?;
    wake(&connect().await?, &connect().await?, rounds).await?;
    raw_wake(&etcd, rounds).await?;
    let length = Duration::from_secs_f64(seconds);
    for items in [1, 2, 4] {
        raw(&etcd, items, length / 2).await?;
    }
    for next in [Next::Afterwards, Next::Meanwhile] {
        for clients in [1, 4] {
            flow(connect, clients, next, length).await?;
        }
    }
    go_flow(&etcd, 4, 4, length).await?;
    Ok(())
}
