//! Locks over etcd, side by side with the raw client calls and with the algorithm of Go's
//! `concurrency.Mutex`, on one server in one run.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench lock             # everything, about a minute
//! cargo bench -p tenure-etcd --bench lock -- 5        # seconds for each measurement
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`). Only the ratios mean something on another machine.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that fails may say so by a panic"
)]

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use etcd_client::{
    Client, Compare, CompareOp, EventType, GetOptions, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, WatchOptions,
};
use hdrhistogram::Histogram;
use tenure_bench_kit::{Fallible, how_much};
use tenure_core::{Session, SessionOptions, Store};
use tenure_etcd::{EtcdBackend, EtcdConfig};
use tenure_testbed::EtcdServer;

/// What the contenders of one loop share.
#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    inside: AtomicU64,
    newest: AtomicI64,
    cycles: AtomicU64,
    released: Mutex<Option<Instant>>,
    hand_offs: Mutex<Option<Histogram<u64>>>,
}

impl Tally {
    /// The critical section: checks exclusion and the order of tokens, and times the hand-off.
    fn enter(&self, token: i64) {
        let now = Instant::now();
        assert_eq!(
            self.inside.fetch_add(1, Ordering::SeqCst),
            0,
            "two holders at once"
        );
        assert!(
            self.newest.swap(token, Ordering::SeqCst) < token,
            "a token fell"
        );
        if let (Some(released), Some(histogram)) = (
            self.released.lock().unwrap().take(),
            self.hand_offs.lock().unwrap().as_mut(),
        ) {
            histogram
                .saturating_record((now - released).as_micros().try_into().unwrap_or(u64::MAX));
        }
        self.cycles.fetch_add(1, Ordering::Relaxed);
    }

    fn leave(&self) {
        self.inside.fetch_sub(1, Ordering::SeqCst);
        *self.released.lock().unwrap() = Some(Instant::now());
    }
}

async fn tenure_loop(
    session: Session<tenure_etcd::EtcdSession>,
    name: String,
    tally: Arc<Tally>,
) -> Fallible {
    let lock = session.locker(name)?;
    while !tally.stop.load(Ordering::Relaxed) {
        let guard = lock.lock().await?;
        tally.enter(guard.token().get().try_into()?);
        tally.leave();
        guard.release().await?;
    }
    session.close().await?;
    Ok(())
}

/// The algorithm of etcd's `client/v3/concurrency/mutex.go` and `key.go`: put and read the owner
/// in one transaction, then watch the predecessor from the revision read until it is deleted.
async fn go_loop(mut client: Client, prefix: String, tally: Arc<Tally>) -> Fallible {
    let lease = client.lease_grant(60, None).await?.id();
    let key = format!("{prefix}/{lease:x}");
    let mut watches = client.watch("unused", None).await?;
    while !tally.stop.load(Ordering::Relaxed) {
        let first = GetOptions::new()
            .with_prefix()
            .with_sort(SortTarget::Create, SortOrder::Ascend)
            .with_limit(1);
        let txn = Txn::new()
            .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key.as_str(), "", Some(PutOptions::new().with_lease(lease))),
                TxnOp::get(format!("{prefix}/"), Some(first)),
            ]);
        let placed = client
            .txn(txn)
            .await?
            .header()
            .ok_or("no header")?
            .revision();
        loop {
            let last = GetOptions::new()
                .with_prefix()
                .with_sort(SortTarget::Create, SortOrder::Descend)
                .with_limit(1)
                .with_max_create_revision(placed - 1);
            let answer = client.get(format!("{prefix}/"), Some(last)).await?;
            let Some(predecessor) = answer.kvs().first().map(|kv| kv.key().to_vec()) else {
                break;
            };
            let revision = answer.header().ok_or("no header")?.revision();
            watches
                .watch(
                    predecessor,
                    Some(WatchOptions::new().with_start_revision(revision)),
                )
                .await?;
            let mut id = None;
            loop {
                let message = watches.message().await?.ok_or("the watch ended")?;
                if message.created() {
                    id = Some(message.watch_id());
                } else if Some(message.watch_id()) == id
                    && message
                        .events()
                        .iter()
                        .any(|event| event.event_type() == EventType::Delete)
                {
                    break;
                }
            }
            if let Some(id) = id {
                watches.cancel(id).await?;
            }
        }
        tally.enter(placed);
        tally.leave();
        client.delete(key.as_str(), None).await?;
    }
    client.lease_revoke(lease).await?;
    Ok(())
}

struct Figures {
    per_second: f64,
    p50: Duration,
    p99: Duration,
}

async fn measure(
    length: Duration,
    tally: Arc<Tally>,
    contenders: Vec<tokio::task::JoinHandle<Fallible>>,
) -> Fallible<Figures> {
    tokio::time::sleep(Duration::from_secs(1)).await; // warm: every watch stands
    *tally.hand_offs.lock().unwrap() = Some(Histogram::new(3)?);
    let (start, before) = (Instant::now(), tally.cycles.load(Ordering::Relaxed));
    tokio::time::sleep(length).await;
    let per_second =
        (tally.cycles.load(Ordering::Relaxed) - before) as f64 / start.elapsed().as_secs_f64();
    let histogram = tally
        .hand_offs
        .lock()
        .unwrap()
        .take()
        .ok_or("no histogram")?;
    tally.stop.store(true, Ordering::Relaxed);
    for contender in contenders {
        contender.await??;
    }
    let at = |q| Duration::from_micros(histogram.value_at_quantile(q));
    Ok(Figures {
        per_second,
        p50: at(0.5),
        p99: at(0.99),
    })
}

async fn store(etcd: &EtcdServer) -> Fallible<Store<EtcdBackend>> {
    Ok(tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?)
}

async fn contended(
    etcd: &EtcdServer,
    contenders: usize,
    clients: usize,
    length: Duration,
) -> Fallible {
    let ttl = SessionOptions::new().ttl(Duration::from_secs(30));
    let tally = Arc::new(Tally::default());
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(store(etcd).await?);
    }
    let mut tasks = Vec::new();
    for i in 0..contenders {
        let session = stores[i % clients].open(ttl.clone()).await?;
        let name = format!("contended {contenders}x{clients}");
        tasks.push(tokio::spawn(tenure_loop(session, name, Arc::clone(&tally))));
    }
    let ours = measure(length, tally, tasks).await?;
    let tally = Arc::new(Tally::default());
    let mut tasks = Vec::new();
    let shared = Client::connect([etcd.endpoint()], None).await?;
    for _ in 0..contenders {
        let client = match clients {
            1 => shared.clone(),
            _ => Client::connect([etcd.endpoint()], None).await?,
        };
        tasks.push(tokio::spawn(go_loop(
            client,
            format!("/go/{contenders}x{clients}"),
            Arc::clone(&tally),
        )));
    }
    let go = measure(length, tally, tasks).await?;
    println!(
        "{contenders:>4} contenders, {clients:>3} clients: {:>6.0} cycles/s, hand-off p50 {:>8.2?} p99 {:>8.2?} | Go's algorithm {:>6.0}/s, p99 {:>8.2?} | ratio {:.1}",
        ours.per_second,
        ours.p50,
        ours.p99,
        go.per_second,
        go.p99,
        ours.per_second / go.per_second,
    );
    Ok(())
}

/// Lock and release of a free lock against one transaction and one deletion, in turn.
async fn uncontended(etcd: &EtcdServer, length: Duration) -> Fallible {
    let session = store(etcd)
        .await?
        .open(SessionOptions::new().ttl(Duration::from_secs(60)))
        .await?;
    let lock = session.locker("uncontended")?;
    let mut client = Client::connect([etcd.endpoint()], None).await?;
    let lease = client.lease_grant(60, None).await?.id();
    let key = format!("/raw/{lease:x}");
    let (mut raw, mut ours) = (Histogram::<u64>::new(3)?, Histogram::<u64>::new(3)?);
    let start = Instant::now();
    while start.elapsed() < length {
        let at = Instant::now();
        let put = TxnOp::put(key.as_str(), "x", Some(PutOptions::new().with_lease(lease)));
        client.txn(Txn::new().and_then([put])).await?;
        client.delete(key.as_str(), None).await?;
        raw.record(at.elapsed().as_micros().try_into()?)?;
        let at = Instant::now();
        lock.lock().await?.release().await?;
        ours.record(at.elapsed().as_micros().try_into()?)?;
    }
    println!(
        "uncontended: lock + release {} us, raw transaction + delete {} us (medians of {}) | ratio {:.3}; means {:.0} and {:.0} us | ratio {:.3}",
        ours.value_at_quantile(0.5),
        raw.value_at_quantile(0.5),
        raw.len(),
        ours.value_at_quantile(0.5) as f64 / raw.value_at_quantile(0.5) as f64,
        ours.mean(),
        raw.mean(),
        ours.mean() / raw.mean(),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let seconds = how_much(5.0, 0.2);
    let length = Duration::from_secs_f64(seconds);
    let etcd = EtcdServer::builder().fsync(true).start()?;
    println!("etcd {}, {seconds} s each", etcd.version());
    uncontended(&etcd, length).await?;
    for (contenders, clients) in [(2, 1), (16, 1), (16, 16), (100, 100)] {
        contended(&etcd, contenders, clients, length).await?;
    }
    Ok(())
}
