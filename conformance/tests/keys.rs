//! What a stage says that its store holds: cases that look for what was left behind see nothing of what it leaves
//! out.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

mod support;

use std::time::Duration;

use rstest::rstest;
use support::stage;
use tenure_conformance::Harness;
use tenure_core::{Error, HoldFor, Session, SessionOptions};

async fn open(harness: &dyn Harness) -> Session {
    let options = SessionOptions::new().ttl(Duration::from_secs(60));
    harness
        .connect()
        .await
        .unwrap()
        .open(options)
        .await
        .unwrap()
}

async fn keys(harness: &dyn Harness) -> usize {
    harness.operator().unwrap().keys().await.unwrap().len()
}

/// Until the number of keys is as wanted.
async fn shows(harness: &dyn Harness, what: &str, wanted: impl Fn(usize) -> bool) -> usize {
    let looking = async {
        loop {
            let now = keys(harness).await;
            if wanted(now) {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let looked = tokio::time::timeout(Duration::from_secs(10), looking).await;
    match looked {
        Ok(now) => now,
        Err(_) => panic!("{what}: {:?}", harness.operator().unwrap().keys().await),
    }
}

/// What the first does is seen, what the second waits for is seen beside it, and both are gone once both have
/// let go.
async fn seen<A, B>(
    harness: &dyn Harness,
    what: &str,
    take: impl Future<Output = Result<A, Error>>,
    wait: impl Future<Output = Result<B, Error>> + Send + 'static,
    done: impl AsyncFnOnce(A),
) where
    B: Send + 'static,
{
    let before = keys(harness).await;
    let taken = take.await.unwrap();
    let one = shows(harness, &format!("{what}, taken"), |now| now > before).await;
    let waiting = tokio::spawn(wait);
    shows(harness, &format!("{what}, waited for"), |now| now > one).await;
    waiting.abort();
    shows(harness, &format!("{what}, no longer waited for"), |now| {
        now <= one
    })
    .await;
    done(taken).await;
    shows(harness, &format!("{what}, let go"), |now| now <= before).await;
}

#[rstest]
#[case::memory("memory")]
#[cfg_attr(feature = "etcd", case::etcd("etcd"))]
#[cfg_attr(feature = "redis", case::redis("redis"))]
#[cfg_attr(feature = "postgres", case::postgres("postgres"))]
#[tokio::test]
async fn whatever_is_taken_or_waited_for_is_listed(#[case] store: &str) {
    let harness = &*stage(store).await;
    let (one, other) = (open(harness).await, open(harness).await);

    let (lock, then) = (one.locker("l").unwrap(), other.locker("l").unwrap());
    let wait = async move { then.lock().await };
    seen(harness, "a lock", lock.lock(), wait, async |guard| {
        guard.release().await.unwrap()
    })
    .await;

    let (lock, then) = (one.rw_lock("r").unwrap(), other.rw_lock("r").unwrap());
    let wait = async move { then.write().await };
    seen(harness, "a reader", lock.read(), wait, async |guard| {
        guard.release().await.unwrap()
    })
    .await;
    let then = other.rw_lock("r").unwrap();
    let wait = async move { then.read().await };
    seen(harness, "a writer", lock.write(), wait, async |guard| {
        guard.release().await.unwrap()
    })
    .await;

    let (election, then) = (one.election("e").unwrap(), other.election("e").unwrap());
    let wait = async move { then.campaign("two").await };
    let resign = async |lead: tenure_core::Leadership| lead.resign().await.unwrap();
    seen(
        harness,
        "an election",
        election.campaign("one"),
        wait,
        resign,
    )
    .await;

    let (queue, then) = (one.queue("q").unwrap(), other.queue("q").unwrap());
    queue.enqueue("first").await.unwrap();
    queue.dequeue().await.unwrap().ack().await.unwrap();
    let put = async {
        queue.enqueue("x").await?;
        queue.dequeue().await
    };
    // Who waits at a queue may be known to its own client alone; an item is not.
    let wait = async move { then.enqueue("y").await };
    let before = keys(harness).await;
    let taken = put.await.unwrap();
    let one_item = shows(harness, "an item, delivered", |now| now > before).await;
    wait.await.unwrap();
    shows(harness, "a second item", |now| now > one_item).await;
    taken.ack().await.unwrap();
    queue.dequeue().await.unwrap().ack().await.unwrap();
    shows(harness, "a queue, empty", |now| now <= before).await;

    let barrier = one.barrier("b").unwrap();
    let before = keys(harness).await;
    barrier.hold(HoldFor::Session).await.unwrap();
    shows(harness, "a barrier, held", |now| now > before).await;
    barrier.release().await.unwrap();
    shows(harness, "a barrier, released", |now| now <= before).await;

    let (gate, then) = (
        one.double_barrier("d", 2).unwrap(),
        other.double_barrier("d", 2).unwrap(),
    );
    let waiting = tokio::spawn(async move { gate.enter().await });
    shows(harness, "a participant that waits", |now| now > before).await;
    let inside = (then.enter().await.unwrap(), waiting.await.unwrap().unwrap());
    let (a, b) = tokio::join!(inside.0.leave(), inside.1.leave());
    a.unwrap();
    b.unwrap();
    shows(harness, "a double barrier, left", |now| now <= before).await;
}
