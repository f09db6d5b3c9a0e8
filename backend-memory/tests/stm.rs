//! Transactional memory of the embedded store: faults of the link, drops, and what stays behind.

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use support::*;
use tenure_core::{
    Compare, Effect, ErrorKind, Holding, Isolation, LossReason, Op, Result, Session,
    SessionOptions, StmHandle,
};
use tenure_memory::{Fault, MemorySession, MemoryStm};

async fn session(
    store: &tenure_core::Store<tenure_memory::MemoryBackend>,
) -> Session<MemorySession> {
    store.open(SessionOptions::new().ttl(TTL)).await.unwrap()
}

async fn increment(stm: &StmHandle<MemoryStm>) -> Result<u64> {
    stm.run(async |tx| {
        let count: u64 = tx.get_as("count").await?.unwrap_or(0);
        tx.put_as("count", &(count + 1))?;
        Ok(count + 1)
    })
    .await
}

#[tokio::test(start_paused = true)]
async fn every_fault_of_a_single_message_is_survived_once() {
    for fault in [Fault::RequestsLost, Fault::AnswersLost, Fault::RequestsLate] {
        // The first two, three, ... messages of a commit, its resolution included.
        for failures in 1..6 {
            let store = store();
            let session = session(&store).await;
            let stm = session.stm().unwrap();
            stm.put("blind", "0").await.unwrap();
            let link = store.backend().link();
            for _ in 0..failures {
                link.inject_once(fault);
            }
            stm.put("blind", "1").await.unwrap();
            link.heal();
            // Blind, and twice: only the slot keeps a late request from landing now.
            stm.put("blind", "2").await.unwrap();
            link.heal();
            let entry = stm.get("blind").await.unwrap().unwrap();
            assert_eq!(entry.value, b"2", "{fault:?} x {failures}");
            assert_eq!(entry.version, 3, "{fault:?} x {failures}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_commit_of_an_ended_session_does_not_land() {
    let store = store();
    let other = another(&store);
    let (session, other) = (session(&store).await, session(&other).await);
    let link = store.backend().link();
    let stm = session.stm().unwrap();
    link.inject(Fault::RequestsLate);
    let error = stm.put("a", "late").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
    assert_eq!(error.effect(), Effect::Unknown);
    tokio::time::sleep(TTL).await;
    link.heal();
    assert_eq!(other.stm().unwrap().get("a").await.unwrap(), None);
    let error = stm.put("a", "later").await.unwrap_err();
    assert_eq!(
        (error.kind(), error.effect()),
        (ErrorKind::Lost, Effect::None)
    );
}

#[tokio::test(start_paused = true)]
async fn a_commit_over_a_silent_link_is_unknown_once_the_session_ends() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    store.backend().link().silence();
    let started = tokio::time::Instant::now();
    let error = stm.put("a", "1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::CommitUnknown, "{error}");
    assert!(started.elapsed() <= TTL + secs(1));
    let error = stm.run(async |tx| tx.get("a").await).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost);
    assert_eq!(error.loss(), Some(LossReason::Unreachable));
}

#[tokio::test]
async fn closing_ends_transactions() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    stm.put("a", "1").await.unwrap();
    session.close().await.unwrap();
    for error in [
        stm.put("a", "2").await.unwrap_err(),
        stm.get("a").await.unwrap_err(),
        stm.run(async |tx| tx.put("a", "2")).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
        assert_eq!(error.loss(), Some(LossReason::Closed));
        assert_eq!(error.effect(), Effect::None);
    }
    assert_eq!(store.backend().footprint().markers, 0);
    assert_eq!(store.backend().footprint().keys, 1);
}

#[tokio::test]
async fn nothing_grows_in_steady_use() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let stm = stm.clone();
        tasks.spawn(async move {
            for _ in 0..50 {
                increment(&stm).await.unwrap();
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    assert_eq!(stm.get("count").await.unwrap().unwrap().version, 500);
    let footprint = store.backend().footprint();
    assert!(footprint.markers <= 10, "{footprint:?}");
    assert_eq!(footprint.keys, 1);
}

#[test]
fn dropped_at_every_poll_with_slow_links_it_is_whole_or_nothing() {
    step_by_step(async {
        let store = store();
        let (session, other) = (session(&store).await, session(&another(&store)).await);
        let (stm, other) = (session.stm().unwrap(), other.stm().unwrap());
        let link = store.backend().link();
        let mut seen = HashSet::new();
        for fault in [None, Some(Fault::AnswersLost), Some(Fault::RequestsLost)] {
            for polls in 0..40 {
                let value = format!("{fault:?} {polls}");
                if let Some(fault) = fault {
                    link.inject_once(fault);
                }
                let writing = stm.run(async |tx| {
                    tx.get("b").await?;
                    tx.put("a", value.as_str())?;
                    tx.put("b", value.as_str())
                });
                let finished = turns(polls, writing).await.is_some();
                link.heal();
                // What goes on in the background comes to an end.
                tokio::time::sleep(secs(1)).await;
                let pair = other.txn().then([Op::get("a"), Op::get("b")]).commit();
                let pair = pair.await.unwrap().results;
                let value_of = |n: usize| match &pair[n] {
                    tenure_core::OpResult::Get(entry) => entry.as_ref().map(|e| e.value.clone()),
                    other => panic!("{other:?}"),
                };
                assert_eq!(value_of(0), value_of(1), "{fault:?}, {polls} polls");
                let happened = value_of(0) == Some(value.into_bytes());
                assert!(happened || !finished, "{fault:?}, {polls} polls");
                seen.insert(happened);
            }
        }
        assert_eq!(seen.len(), 2, "it always or never happened");
        assert!(session.is_valid());
    });
}

#[tokio::test]
async fn a_transaction_may_be_spawned_and_may_own_what_it_needs() {
    let store = store();
    let session = session(&store).await.into_dyn();
    let stm = session.stm().unwrap().prefetch(["a", "b"]);
    let task = tokio::spawn(async move {
        let mut attempts = 0;
        stm.run(|tx| {
            attempts += 1;
            async move {
                let a = tx.get_string("a").await?;
                tx.put("a", "x")?;
                assert_eq!(tx.get_string("a").await?.as_deref(), Some("x"));
                tx.delete("a")?;
                assert_eq!(tx.get("a").await?, None);
                tx.put_as("a", &vec![attempts])?;
                assert_eq!(tx.rev("a").await?, 0);
                let (b, c) = tokio::join!(tx.get("b"), tx.get("c"));
                Ok((a, b?, c?))
            }
        })
        .await
    });
    assert_eq!(task.await.unwrap().unwrap(), (None, None, None));
    let left = session.stm().unwrap();
    let left = left.run(async |tx| tx.get_as::<Vec<u32>>("a").await);
    assert_eq!(left.await.unwrap(), Some(vec![1]));
}

#[tokio::test]
async fn errors_of_the_caller_s_own_type_pass_through() {
    #[derive(Debug)]
    enum Mine {
        Poor(u64),
        Tenure(tenure_core::Error),
    }
    impl From<tenure_core::Error> for Mine {
        fn from(error: tenure_core::Error) -> Self {
            Self::Tenure(error)
        }
    }
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    let poor = stm.try_run(async |tx| {
        let balance = tx.get_as("balance").await?.unwrap_or(0);
        tx.put("touched", "")?;
        if balance < 10 {
            return Err(Mine::Poor(balance));
        }
        Ok(())
    });
    assert!(matches!(poor.await, Err(Mine::Poor(0))));
    let bad = stm.try_run(async |tx| Ok::<_, Mine>(tx.get("").await?));
    match bad.await {
        Err(Mine::Tenure(error)) => assert_eq!(error.kind(), ErrorKind::InvalidName),
        other => panic!("{other:?}"),
    }
    assert_eq!(stm.get("touched").await.unwrap(), None);
}

/// A value that has no JSON, and says how often it was asked for it.
struct Unwritable(AtomicU64);

impl serde::Serialize for Unwritable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        let asked = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        Err(serde::ser::Error::custom(format!("asked {asked} times")))
    }
}

#[tokio::test]
async fn refused_write_is_reported_once_and_can_be_handled() {
    let session = session(&store()).await;
    let stm = session.stm().unwrap();
    let value = Unwritable(AtomicU64::new(0));
    let error = stm.run(async |tx| tx.put_as("x", &value)).await;
    let source = std::error::Error::source(&error.unwrap_err()).map(ToString::to_string);
    assert_eq!(source.as_deref(), Some("asked 1 times"));
    let handled = stm.run(async |tx| match tx.put_as("x", &value) {
        Ok(()) => tx.put("x", "no JSON"),
        Err(_) => tx.put("x", "instead"),
    });
    handled.await.unwrap();
    assert_eq!(value.0.into_inner(), 2);
    let written = stm.get("x").await.unwrap().unwrap();
    assert_eq!(written.value, b"instead");
}

#[tokio::test]
async fn values_that_cannot_be_read_say_so_and_are_not_tried_again() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    stm.put("odd", vec![0xff, 0xfe]).await.unwrap();
    let attempts = AtomicU64::new(0);
    let text = stm.run(async |tx| {
        attempts.fetch_add(1, Ordering::Relaxed);
        tx.get_string("odd").await
    });
    let error = text.await.unwrap_err();
    assert!(error.chain().to_string().contains("UTF-8"), "{error}");
    assert!(!error.is_retryable());
    let json = stm.run(async |tx| tx.get_as::<u64>("odd").await);
    assert!(json.await.unwrap_err().to_string().contains("JSON"));
    assert_eq!(attempts.into_inner(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_transaction_inside_a_transaction_on_the_same_key_does_not_hang() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    let attempts = Arc::new(AtomicU64::new(0));
    let outer = stm.run(async |tx| {
        let count: u64 = tx.get_as("count").await?.unwrap_or(0);
        if attempts.fetch_add(1, Ordering::Relaxed) < 3 {
            increment(&stm).await?;
        }
        tx.put_as("count", &(count + 1))
    });
    tokio::time::timeout(secs(30), outer)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(stm.get("count").await.unwrap().unwrap().value, b"4");
}

#[tokio::test]
async fn read_committed_loses_updates_and_the_checked_levels_do_not() {
    for (isolation, expected) in [
        (Isolation::SerializableSnapshot, "2"),
        (Isolation::Serializable, "2"),
        (Isolation::RepeatableReads, "2"),
        (Isolation::ReadCommitted, "1"),
    ] {
        let store = store();
        let session = session(&store).await;
        let stm = session.stm().unwrap().isolation(isolation);
        let attempts = AtomicU64::new(0);
        stm.run(async |tx| {
            let count: u64 = tx.get_as("count").await?.unwrap_or(0);
            if attempts.fetch_add(1, Ordering::Relaxed) == 0 {
                increment(&stm).await?;
            }
            tx.put_as("count", &(count + 1))
        })
        .await
        .unwrap();
        let count = stm.get("count").await.unwrap().unwrap();
        assert_eq!(count.value, expected.as_bytes(), "{isolation}");
    }
}

#[tokio::test]
async fn a_panic_in_a_transaction_leaves_the_session_usable() {
    let store = store();
    let session = session(&store).await;
    let stm = session.stm().unwrap();
    let panicking = stm.clone();
    let task = tokio::spawn(async move {
        panicking
            .run(async |tx| {
                tx.put("a", "1")?;
                assert!(tx.get("b").await?.is_some(), "on purpose");
                Ok(())
            })
            .await
    });
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(stm.get("a").await.unwrap(), None);
    assert_eq!(increment(&stm).await.unwrap(), 1);
    let absent = stm.txn().when([Compare::create("a").eq(0)]).commit().await;
    assert!(absent.unwrap().succeeded);
}

/// Whatever derefs to a `Holding` can bind a commit: while it is held, and not after (rule T3).
#[tokio::test(start_paused = true)]
async fn every_kind_of_guard_binds_a_commit() {
    let store = store();
    let (holder, writer) = (session(&store).await, session(&store).await);
    let stm = writer.stm().unwrap();
    let queue = holder.queue("x").unwrap();
    queue.enqueue("a").await.unwrap();
    let rw_lock = holder.rw_lock("x").unwrap();
    let lock = holder.locker("x").unwrap().lock().await.unwrap();
    let reader = rw_lock.read().await.unwrap();
    let leader = holder.election("x").unwrap().campaign("me").await.unwrap();
    let inside = holder.double_barrier("x", 1).unwrap();
    let inside = inside.enter().await.unwrap();
    let delivery = queue.dequeue().await.unwrap();
    let guards: [(&str, &Holding); 5] = [
        ("lock", &lock),
        ("reader", &reader),
        ("leader", &leader),
        ("inside", &inside),
        ("delivery", &delivery),
    ];
    for (what, guard) in guards {
        let put = || stm.txn().then([Op::put(what, "")]).fenced_by(guard);
        assert!(put().commit().await.is_ok(), "{what}");
        assert!(store.backend().delete(guard.key()), "{what}");
        let error = put().commit().await.unwrap_err();
        assert_eq!(
            (error.kind(), error.effect()),
            (ErrorKind::Lost, Effect::None),
            "{what}"
        );
    }
    // Delivered once more, it is not the delivery that was lost.
    let again = queue.dequeue().await.unwrap();
    let late = stm.txn().then([Op::put("a", "")]).fenced_by(&delivery);
    assert_eq!(late.commit().await.unwrap_err().kind(), ErrorKind::Lost);
    let next = stm.txn().then([Op::put("a", "")]).fenced_by(&again);
    next.commit().await.unwrap();
}
