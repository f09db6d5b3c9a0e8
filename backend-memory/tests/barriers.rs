//! Barriers of the embedded store: on paused time, and over links that misbehave.
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

mod support;

use std::time::Duration;

use support::*;
use tenure_core::{ErrorKind, HoldFor, LossReason, Session, SessionOptions, Store};
use tenure_memory::{Fault, MemoryBackend, MemorySession};
use tokio::time::Instant;

async fn open(store: &Store<MemoryBackend>) -> Session<MemorySession> {
    store.open(SessionOptions::new()).await.unwrap()
}

/// A session whose connection has gone silent: its lease ends after its TTL.
async fn doomed(store: &Store<MemoryBackend>) -> (Session<MemorySession>, tenure_memory::Link) {
    let store = another(store);
    (open(&store).await, store.backend().link())
}

#[tokio::test(start_paused = true)]
async fn a_dead_holder_lets_go_at_its_ttl() {
    let store = store();
    let (dead, link) = doomed(&store).await;
    let gate = dead.barrier("gate").unwrap();
    gate.hold(HoldFor::Session).await.unwrap();
    link.silence();
    let at = Instant::now();
    let living = open(&store).await;
    living.barrier("gate").unwrap().wait().await.unwrap();
    assert!(at.elapsed() <= TTL + millis(5), "{:?}", at.elapsed());
    assert!(at.elapsed() > TTL - secs(4), "{:?}", at.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_dead_participant_keeps_nobody_longer_than_its_ttl() {
    let store = store();
    let (dead, link) = doomed(&store).await;
    let living = open(&store).await;
    let (one, two) = (
        dead.double_barrier("phase", 2).unwrap(),
        living.double_barrier("phase", 2).unwrap(),
    );
    let (first, second) = tokio::join!(one.enter(), two.enter());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_ne!(first.token(), second.token());
    link.silence();
    let at = Instant::now();
    second.leave().await.unwrap();
    assert!(at.elapsed() <= TTL + millis(5), "{:?}", at.elapsed());
    assert!(at.elapsed() > TTL - secs(4), "{:?}", at.elapsed());
    assert!(!first.is_valid());
    let alone = two.enter_timeout(secs(60)).await.unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::TimedOut);
    link.heal();
}

#[tokio::test]
async fn a_hold_takes_effect_once() {
    let store = store();
    let far = another(&store);
    let (near, session) = (open(&store).await, open(&far).await);
    let gate = near.barrier("gate").unwrap();
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        let link = far.backend().link();
        // It holds; the answer to it is lost, and before it is asked again, it is lifted.
        link.inject(Fault::AnswersLost);
        let held = session.barrier("gate").unwrap();
        let holding = tokio::spawn(async move { held.hold(hold_for).await });
        while !gate.is_held().await.unwrap() {
            tokio::task::yield_now().await;
        }
        assert!(gate.release().await.unwrap());
        link.heal();
        holding.await.unwrap().unwrap();
        assert!(!gate.is_held().await.unwrap(), "held a second time");
    }
}

#[tokio::test]
async fn a_release_that_was_not_heard_of_spares_the_next_hold() {
    let store = store();
    let far = another(&store);
    let (near, session) = (open(&store).await, open(&far).await);
    let gate = near.barrier("gate").unwrap();
    gate.hold(HoldFor::Good).await.unwrap();
    let link = far.backend().link();
    // The question which hold stands is answered, the answer to the lifting is not.
    let there = session.barrier("gate").unwrap();
    assert!(there.is_held().await.unwrap());
    link.inject_once(Fault::AnswersHeld);
    let releasing = tokio::spawn(async move { there.release().await });
    tokio::time::sleep(millis(20)).await;
    link.inject_once(Fault::AnswersLost);
    link.heal();
    // Whether the lifting was heard of or not, it is repeated only for the hold that it met.
    assert!(releasing.await.unwrap().unwrap());
    assert!(!gate.is_held().await.unwrap());
    gate.hold(HoldFor::Good).await.unwrap();
    tokio::time::sleep(millis(50)).await;
    assert!(gate.is_held().await.unwrap());
}

#[tokio::test]
async fn a_late_hold_does_not_land_after_its_caller_went_away() {
    let store = store();
    for hold_for in [HoldFor::Session, HoldFor::Good] {
        for closing in [false, true] {
            let far = another(&store);
            let session = open(&far).await;
            let link = far.backend().link();
            let held = session.barrier("gate").unwrap();
            // Its first request is on its way when its caller goes.
            loop {
                link.inject_once(Fault::RequestsLate);
                let gone = tokio::time::timeout(Duration::ZERO, held.hold(hold_for)).await;
                let Ok(held_at_once) = gone else { break };
                // A renewal was sent first, and is late instead.
                held_at_once.unwrap();
                link.heal();
                assert!(held.release().await.unwrap());
            }
            tokio::time::sleep(millis(50)).await;
            if closing {
                drop(held);
                session.close().await.unwrap();
            }
            link.heal();
            let near = open(&store).await;
            let gate = near.barrier("gate").unwrap();
            until("lifted", || store.backend().keys().is_empty()).await;
            assert!(!gate.is_held().await.unwrap());
        }
    }
    assert_eq!(store.backend().footprint().on_their_way, 0);
}

#[tokio::test]
async fn a_leave_whose_answer_was_lost_has_left() {
    let store = store();
    let far = another(&store);
    let (near, session) = (open(&store).await, open(&far).await);
    let (one, two) = (
        session.double_barrier("phase", 2).unwrap(),
        near.double_barrier("phase", 2).unwrap(),
    );
    for _ in 0..3 {
        let (first, second) = tokio::join!(one.enter(), two.enter());
        far.backend().link().inject_once(Fault::AnswersLost);
        let (first, second) = tokio::join!(first.unwrap().leave(), second.unwrap().leave());
        first.unwrap();
        second.unwrap();
    }
    until_no_ghost(store.backend()).await;
}

#[tokio::test]
async fn an_operator_removes_participants_and_holds() {
    let store = store();
    let (one, two) = (open(&store).await, open(&store).await);
    let (one, two) = (
        one.double_barrier("phase", 2).unwrap(),
        two.double_barrier("phase", 2).unwrap(),
    );
    let (first, second) = tokio::join!(one.enter(), two.enter());
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(store.backend().footprint().holdings, 2);
    assert!(store.backend().delete(first.key()));
    assert_eq!(first.lost().await, LossReason::Revoked);
    second.leave().await.unwrap();
    assert_eq!(first.leave().await.unwrap_err().kind(), ErrorKind::Lost);
    let session = open(&store).await;
    let gate = session.barrier("gate").unwrap();
    gate.hold(HoldFor::Good).await.unwrap();
    let [key] = &store.backend().keys()[..] else {
        panic!("one key");
    };
    assert!(store.backend().delete(key));
    assert!(!gate.is_held().await.unwrap());
}

#[tokio::test]
async fn a_session_that_is_resumed_keeps_its_hold_and_no_place_inside() {
    let store = store();
    let (session, other) = (open(&store).await, open(&store).await);
    let id = session.id().clone();
    let gate = session.barrier("gate").unwrap();
    gate.hold(HoldFor::Session).await.unwrap();
    let (one, two) = (
        session.double_barrier("phase", 2).unwrap(),
        other.double_barrier("phase", 2).unwrap(),
    );
    let (first, second) = tokio::join!(one.enter(), two.enter());
    let (first, second) = (first.unwrap(), second.unwrap());
    session.detach().await.unwrap();
    assert!(!first.is_valid());
    second.leave().await.unwrap();
    let resumed = store.resume(&id).await.unwrap();
    assert!(resumed.barrier("gate").unwrap().is_held().await.unwrap());
    resumed.close().await.unwrap();
    until_no_ghost(store.backend()).await;
}
