//! Read-write locks over etcd: readers and a few writers, a session each, in a loop.
//!
//! ```text
//! cargo bench -p tenure-etcd --bench rw_lock          # everything
//! cargo bench -p tenure-etcd --bench rw_lock -- 5     # seconds for each measurement
//! ```
//!
//! Needs etcd on the PATH (or `TENURE_ETCD`).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tenure_bench_kit::{Fallible, how_much};
use tenure_core::{Session, SessionOptions};
use tenure_etcd::{EtcdConfig, EtcdSession};
use tenure_testbed::EtcdServer;

/// What a writer counts where a reader counts one.
const WRITER: i64 = 1_000_000;

#[derive(Default)]
struct Tally {
    stop: AtomicBool,
    inside: AtomicI64,
    newest: AtomicU64,
    together: AtomicI64,
    reads: AtomicU64,
    writes: AtomicU64,
}

impl Tally {
    fn read(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        assert!(inside < WRITER, "a reader beside a writer");
        self.together.fetch_max(inside, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
    }

    fn write(&self, token: u64) {
        let before = self.inside.fetch_add(WRITER, Ordering::SeqCst);
        assert_eq!(before, 0, "a writer beside others");
        let newest = self.newest.swap(token, Ordering::SeqCst);
        assert!(newest < token, "a writer's token fell");
        self.writes.fetch_add(1, Ordering::Relaxed);
    }
}

async fn contend(session: Session<EtcdSession>, writes: bool, tally: Arc<Tally>) -> Fallible {
    let lock = session.rw_lock("contended")?;
    while !tally.stop.load(Ordering::Relaxed) {
        if writes {
            let guard = lock.write().await?;
            tally.write(guard.token().get());
            tally.inside.fetch_sub(WRITER, Ordering::SeqCst);
            guard.release().await?;
        } else {
            let guard = lock.read().await?;
            tally.read();
            tokio::task::yield_now().await; // so that others can be seen beside it
            tally.inside.fetch_sub(1, Ordering::SeqCst);
            guard.release().await?;
        }
    }
    session.close().await?;
    Ok(())
}

async fn measure(readers: usize, writers: usize, clients: usize, length: Duration) -> Fallible {
    let etcd = EtcdServer::builder().fsync(true).start()?;
    let mut stores = Vec::new();
    for _ in 0..clients {
        stores.push(tenure_etcd::connect(EtcdConfig::new([etcd.address().to_string()])).await?);
    }
    let tally = Arc::new(Tally::default());
    let mut tasks = Vec::new();
    for number in 0..readers + writers {
        let ttl = SessionOptions::new().ttl(Duration::from_secs(30));
        let session = stores[number % clients].open(ttl).await?;
        let contending = contend(session, number < writers, Arc::clone(&tally));
        tasks.push(tokio::spawn(contending));
    }
    tokio::time::sleep(Duration::from_secs(1)).await; // warm: every watch stands
    let counts = || {
        let (reads, writes) = (&tally.reads, &tally.writes);
        (
            reads.load(Ordering::Relaxed),
            writes.load(Ordering::Relaxed),
        )
    };
    let (start, before) = (Instant::now(), counts());
    tokio::time::sleep(length).await;
    let (seconds, after) = (start.elapsed().as_secs_f64(), counts());
    tally.stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await??;
    }
    let (reads, writes) = (
        (after.0 - before.0) as f64 / seconds,
        (after.1 - before.1) as f64 / seconds,
    );
    println!(
        "{readers:>3} readers, {writers} writers, {clients:>2} clients: {:>6.0} cycles/s ({reads:.0} reads, {writes:.0} writes), up to {} readers together",
        reads + writes,
        tally.together.load(Ordering::Relaxed),
    );
    Ok(())
}

#[tokio::main]
async fn main() -> Fallible {
    let seconds = how_much(5.0, 0.2);
    let length = Duration::from_secs_f64(seconds);
    for (readers, writers, clients) in [(14, 2, 1), (14, 2, 16), (16, 0, 1), (0, 16, 1)] {
        measure(readers, writers, clients, length).await?;
    }
    Ok(())
}
