//! The embedded store never waits for a network: all the same nobody in a loop may keep a thread, or all places of a
//! session, for itself.

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::*;
use tenure_core::{Effect, ErrorKind, Result, SessionOptions};
use tenure_memory::{CAPACITY, Fault};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_in_a_loop_leave_time_to_timers_and_renewals() {
    let store = store();
    let ttl = Duration::from_secs(5);
    let session = store.open(SessionOptions::new().ttl(ttl)).await.unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let loops: Vec<tokio::task::JoinHandle<Result<()>>> = (0..16)
        .map(|number| {
            let (session, over) = (session.clone(), Arc::clone(&over));
            tokio::spawn(async move {
                let lock = session.locker(format!("l{}", number % 4)).unwrap();
                let queue = session.queue(format!("q{number}")).unwrap();
                while !over.load(Ordering::Relaxed) {
                    lock.lock().await?.release().await?;
                    queue.enqueue("x").await?;
                    queue.dequeue().await?.ack().await?;
                }
                Ok(())
            })
        })
        .collect();
    for _ in 0..10 {
        let at = Instant::now();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let took = at.elapsed();
        assert!(took < ttl, "a timer of 100 ms took {took:?}");
    }
    over.store(true, Ordering::Relaxed);
    for task in loops {
        task.await.unwrap().unwrap();
    }
    assert!(session.is_valid());
}

/// No guard is alive at any time but one: there is always room for the next.
#[tokio::test]
async fn guards_that_are_dropped_in_a_loop_use_up_no_places() {
    let session = open(&store()).await;
    for number in 0..3 * CAPACITY {
        let lock = session.locker(format!("l{number}")).unwrap();
        drop(lock.try_lock().await.unwrap());
    }
}

/// What the work returned stays, whatever becomes of the release.
#[tokio::test(start_paused = true)]
async fn with_returns_what_the_work_returned_although_the_release_was_not_confirmed() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost] {
        let store = store();
        let link = store.backend().link();
        let session = open(&store).await;
        let lock = session.locker("x").unwrap();
        let receipt = lock.with(async |_| {
            link.inject_once(fault);
            "receipt"
        });
        assert_eq!(receipt.await.unwrap(), "receipt");
        // Released in the background.
        lock.lock().await.unwrap().release().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn with_says_lost_if_the_lock_was_lost_during_the_work() {
    let store = store();
    let link = store.backend().link();
    let lock = open(&store).await.locker("x").unwrap();
    let worked = lock.with(async |_| {
        // Behind a silence the news comes with the next audit only: the release finds it first.
        link.silence();
        let key = store.backend().keys().remove(0);
        assert!(store.backend().delete(&key));
        link.heal();
    });
    let error = worked.await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Lost, Effect::Unknown)
    );
}

/// A popped item leaves the queue with its value, whatever becomes of the acknowledgement.
#[tokio::test(start_paused = true)]
async fn pop_returns_the_value_although_the_acknowledgement_was_not_confirmed() {
    for fault in [Fault::AnswersLost, Fault::RequestsLost] {
        let store = store();
        let consumer = another(&store);
        let link = consumer.backend().link();
        let session = open(&consumer).await;
        let here = session.queue("x").unwrap();
        let there = open(&store).await.queue("x").unwrap();
        let popping = tokio::spawn(async move { here.pop().await });
        until("it waits", || store.backend().footprint().waits == 1).await;
        // For the next request, the acknowledgement: the wait is on its way.
        link.inject_once(fault);
        there.enqueue("receipt").await.unwrap();
        assert_eq!(popping.await.unwrap().unwrap(), b"receipt");
        // Acknowledged in the background, for as long as the session lives.
        until("it is gone", || store.backend().footprint().items == 0).await;
        session.close().await.unwrap();
    }
}

/// The store says that the item was not this consumer's any more: another has it.
#[tokio::test(start_paused = true)]
async fn pop_waits_for_another_item_if_an_operator_took_the_first() {
    let store = store();
    let consumer = another(&store);
    let link = consumer.backend().link();
    let here = open(&consumer).await.queue("x").unwrap();
    let there = open(&store).await.queue("x").unwrap();
    let popping = tokio::spawn(async move { here.pop().await });
    until("it waits", || store.backend().footprint().waits == 1).await;
    link.inject_once(Fault::Silent);
    there.enqueue("taken away").await.unwrap();
    until("it is delivered", || {
        store.backend().footprint().holdings == 1
    })
    .await;
    let keys = store.backend().keys();
    assert!(
        keys.iter().any(|key| store.backend().delete(key)),
        "{keys:?}"
    );
    let again = there.dequeue().await.unwrap();
    assert_eq!((again.value(), again.count()), (&b"taken away"[..], 2));
    link.heal();
    again.ack().await.unwrap();
    there.enqueue("next").await.unwrap();
    assert_eq!(popping.await.unwrap().unwrap(), b"next");
}
