//! A lock held for a random time by several workers, and what its token is for.
//!
//!     cargo run --example lock [URL]
//!
//! Start it several times on one etcd (`--features etcd`, `etcd://127.0.0.1:2379/demo`): the
//! processes take turns, in the order in which they came.

use std::time::Duration;

use tenure::prelude::*;

const WORKERS: u64 = 3;
const ROUNDS: u64 = 3;

#[tokio::main]
async fn main() -> tenure::Result<()> {
    let url = url();
    let store = tenure::connect(&url).await?;
    // Stands for the resource: a database that remembers the greatest token it has seen.
    let ledger = std::sync::Arc::new(FenceGate::new(Vec::new()));

    let mut workers = Vec::new();
    for worker in 1..=WORKERS {
        let session = store
            .open(SessionOptions::new().ttl(Duration::from_secs(5)))
            .await?;
        let ledger = std::sync::Arc::clone(&ledger);
        workers.push(tokio::spawn(async move {
            let lock = session.locker("ledger")?;
            for _ in 0..ROUNDS {
                let guard = lock.lock().await?;
                // `while_held` drops the work at its next await point if the lock is lost.
                guard
                    .while_held(async {
                        println!("worker {worker} holds the lock, token {}", guard.token());
                        tokio::time::sleep(a_while(worker, guard.token())).await;
                    })
                    .await?;
                // A worker that was paused here past its TTL would be refused.
                match ledger.write(guard.token(), |entries| entries.push(worker)) {
                    Ok(()) => println!("worker {worker} wrote to the ledger"),
                    Err(stale) => println!("worker {worker} was too late: {stale}"),
                }
                guard.release().await?;
            }
            session.close().await
        }));
    }
    for worker in workers {
        worker.await.expect("a worker does not panic")?;
    }
    println!("the ledger: {:?}", ledger.read(Vec::clone));
    Ok(())
}

/// Up to 100 ms, different each time.
fn a_while(worker: u64, token: FencingToken) -> Duration {
    Duration::from_millis((worker * 7919 + token.get() % 104_729) % 100)
}

/// The first argument, or `TENURE_URL`, or the embedded store.
fn url() -> String {
    let given = std::env::args()
        .nth(1)
        .or_else(|| std::env::var("TENURE_URL").ok());
    given.unwrap_or_else(|| "memory:".to_owned())
}
