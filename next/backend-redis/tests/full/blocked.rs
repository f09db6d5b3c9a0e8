//! Runtimes that are blocked: leases go on, because nothing that keeps one runs there.

use std::thread;
use std::time::Duration;

use tenure_core::SessionOptions;
use tenure_testbed::{shared_redis, unique_name};
use tokio::runtime::{Builder, Runtime};

use super::{connect, soon};

const TTL: Duration = Duration::from_secs(2);

/// How many runtimes are blocked at once.
const RUNS: usize = 40;

/// Takes a lock on a runtime of its own and then blocks all threads of that for three TTLs. Returns whether the lock was held
/// all the time, and can be released.
fn hold_and_block(url: &str, name: &str, threads: usize) {
    let runtime: Runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap();
    let guard = runtime.block_on(async {
        let store = connect(url).await.unwrap();
        let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
        session.lock(name).await.unwrap()
    });
    let blocking: Vec<_> = (0..threads)
        .map(|_| runtime.spawn(async { thread::sleep(3 * TTL) }))
        .collect();
    // A request in the midst of it, as of another part of the application.
    let other = runtime.block_on(async {
        for task in blocking {
            task.await.unwrap();
        }
        guard.loss()
    });
    assert_eq!(other, None, "a blocked runtime lost a holding");
    runtime.block_on(guard.release()).unwrap();
}

fn blocked(threads: usize) {
    let url = format!("{}?namespace={}", shared_redis().unwrap().url(), unique_name("blocked"));
    let holders: Vec<_> = (0..RUNS)
        .map(|run| {
            let url = url.clone();
            thread::spawn(move || hold_and_block(&url, &format!("lock-{run}"), threads))
        })
        .collect();
    for holder in holders {
        holder.join().unwrap();
    }
}

#[test]
fn one_blocked_thread_costs_no_holding() {
    blocked(1);
}

#[test]
fn two_blocked_threads_cost_no_holding() {
    blocked(2);
}

#[test]
fn eight_blocked_threads_cost_no_holding() {
    blocked(8);
}

/// The same from outside: no other client is granted the lock, and the release reaches the next waiter although the runtime that had the
/// connection is gone.
#[tokio::test]
async fn a_runtime_that_ended_releases_and_keeps() {
    let url = format!("{}?namespace={}", shared_redis().unwrap().url(), unique_name("blocked"));
    let gone = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let on = url.clone();
    let task = gone.spawn(async move {
        let store = connect(&on).await.unwrap();
        let session = store.open(SessionOptions::new().ttl(TTL)).await.unwrap();
        (
            session.lock("kept").await.unwrap(),
            session.lock("dropped").await.unwrap(),
        )
    });
    let (kept, dropped) = task.await.unwrap();
    gone.shutdown_background();
    let session = connect(&url).await.unwrap().open(SessionOptions::new()).await.unwrap();
    drop(dropped);
    let next = soon("the lock of a dropped guard", session.lock("dropped"))
        .await
        .unwrap();
    tokio::time::sleep(3 * TTL).await; // real time: a lease that is not renewed ends
    assert_eq!(kept.loss(), None);
    assert!(session.try_lock("kept").await.unwrap().is_none());
    kept.release().await.unwrap();
    next.release().await.unwrap();
}
