//! Repetitions, withdrawals and late arrivals.

use std::sync::atomic::Ordering;

use tenure_core::backend::{Departure, EndOutcome, EntryState, Item, Joined, Marker, Mode, Nonce, Slot, TakeLimit};
use tenure_core::{ErrorKind, Kind};
use tenure_memory::MemoryBackend;

use crate::support::{Client, kind, name};

rules! {
    withdrawn_request_that_arrives_late_is_refused: [LateJoinActs];
    ended_request_that_arrives_late_is_refused: [LateJoinActs];
    request_below_the_oldest_open_one_is_refused: [LateJoinActs];
    repeated_join_answers_for_its_place: [RepeatedJoinJoinsAgain];
    repeated_take_and_enter_answer_for_their_entries: [RepeatedJoinJoinsAgain];
    repeated_step_answers_as_at_first: [RepeatedStepActsAgain];
    step_below_its_slot_has_no_effect: [LateStepActs];
    withdrawn_waiter_is_never_granted: [WithdrawalIgnored];
    request_without_a_place_gets_a_conflict: [];
}

async fn withdrawn_request_that_arrives_late_is_refused(store: MemoryBackend) {
    let a = Client::open(&store).await;
    for of in [Kind::Lock, Kind::RwLock, Kind::Election] {
        let request = a.request(of, "x");
        assert_eq!(a.withdraw(&request).await, EndOutcome::NotHeld);
        let late = a.line(of).join(&request, Mode::Exclusive, None, true).await;
        assert_eq!(kind(late), ErrorKind::Conflict);
    }
    let take = a.request(Kind::Queue, "x");
    a.queue().leave(std::slice::from_ref(&take)).await.unwrap();
    assert_eq!(
        kind(a.queue().take(&take, &TakeLimit::new(1), true).await),
        ErrorKind::Conflict
    );
    let enter = a.request(Kind::DoubleBarrier, "x");
    a.barrier()
        .leave(a.marker(), &[Departure::withdraw(enter.clone())])
        .await
        .unwrap();
    assert_eq!(
        kind(a.barrier().enter(&enter, 2.try_into().unwrap()).await),
        ErrorKind::Conflict
    );
    assert!(a.entries().await.is_empty());
}

async fn ended_request_that_arrives_late_is_refused(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (request, grant) = a.lock("x").await;
    a.release(&request, grant.token).await;
    let late = a.line(Kind::Lock).join(&request, Mode::Exclusive, None, true).await;
    assert_eq!(kind(late), ErrorKind::Conflict);
    a.enqueue("q", &[Item::new(*b"1"), Item::new(*b"2")]).await;
    let (claim, _) = a.take_one("q").await;
    a.ack(claim.clone()).await;
    let late = a.queue().take(&claim.request, &TakeLimit::new(1), true).await;
    assert_eq!(kind(late), ErrorKind::Conflict);
    assert!(a.entries().await.is_empty());
}

async fn request_below_the_oldest_open_one_is_refused(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (held, _) = a.lock("held").await;
    let late = a.request(Kind::Lock, "x");
    a.oldest_open.store(late.nonce().get() + 1, Ordering::Release);
    a.lock("y").await;
    let refused = a.line(Kind::Lock).join(&late, Mode::Exclusive, None, true).await;
    assert_eq!(kind(refused), ErrorKind::Conflict);
    // One that has its entry is not late.
    assert!(matches!(a.join(&held, Mode::Exclusive, true).await, Joined::Granted(_)));
}

async fn repeated_join_answers_for_its_place(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (first, grant) = a.lock("x").await;
    assert_eq!(
        a.join(&first, Mode::Exclusive, true).await,
        Joined::Granted(grant.clone())
    );
    assert_eq!(
        a.join(&first, Mode::Exclusive, false).await,
        Joined::Granted(grant.clone())
    );
    let second = b.queue_up(Kind::Lock, "x", Mode::Exclusive).await;
    assert_eq!(b.join(&second, Mode::Exclusive, true).await, Joined::Waiting);
    assert_eq!(a.release(&first, grant.token).await, EndOutcome::Ended);
    let granted = b.wait(&second).await;
    assert_eq!(
        b.join(&second, Mode::Exclusive, true).await,
        Joined::Granted(granted.clone())
    );
    assert_eq!(b.release(&second, granted.token).await, EndOutcome::Ended);
    a.lock("x").await;
}

async fn repeated_take_and_enter_answer_for_their_entries(store: MemoryBackend) {
    let a = Client::open(&store).await;
    a.enqueue("q", &[Item::new(*b"1"), Item::new(*b"2")]).await;
    let (claim, item) = a.take_one("q").await;
    let again = a.queue().take(&claim.request, &TakeLimit::new(1), true).await.unwrap();
    let Joined::Granted(items) = again else {
        panic!("{again:?}")
    };
    assert_eq!((items.len(), items[0].token, items[0].deliveries), (1, item.token, 1));
    assert_eq!(a.queue().depth(&name("q")).await.unwrap().in_flight, 1);

    let enter = a.request(Kind::DoubleBarrier, "d");
    for _ in 0..3 {
        let entered = a.barrier().enter(&enter, 2.try_into().unwrap()).await.unwrap();
        assert_eq!(entered, tenure_core::backend::Joined::Waiting);
    }
    let states: Vec<_> = a.entries().await.into_iter().map(|entry| entry.state).collect();
    assert!(
        matches!(&states[..], [EntryState::Granted(_), EntryState::Waiting]),
        "{states:?}"
    );
}

async fn repeated_step_answers_as_at_first(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let enqueue = a.marker();
    for _ in 0..2 {
        a.queue()
            .enqueue(enqueue, &name("q"), &[Item::new(*b"1")])
            .await
            .unwrap();
    }
    assert_eq!(a.queue().depth(&name("q")).await.unwrap().ready, 1);
    let (claim, _) = a.take_one("q").await;
    let (ack, purge, leave) = (a.marker(), a.marker(), a.marker());
    for _ in 0..2 {
        assert_eq!(
            a.queue().ack(ack, std::slice::from_ref(&claim)).await.unwrap(),
            [EndOutcome::Ended]
        );
    }
    a.enqueue("other", &[Item::new(*b"1"), Item::new(*b"2")]).await;
    assert_eq!(kind(a.queue().purge(purge, &name("other")).await), ErrorKind::Conflict);
    let purge = a.marker();
    for _ in 0..2 {
        assert_eq!(a.queue().purge(purge, &name("other")).await.unwrap(), 2);
    }
    let (request, grant) = a.lock("x").await;
    let departures = [Departure::release(request, grant.token)];
    assert_eq!(
        kind(a.line(Kind::Lock).leave(leave, &departures).await),
        ErrorKind::Conflict
    );
    let leave = a.marker();
    for _ in 0..2 {
        assert_eq!(
            a.line(Kind::Lock).leave(leave, &departures).await.unwrap(),
            [EndOutcome::Ended]
        );
    }
}

async fn step_below_its_slot_has_no_effect(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let early = a.marker();
    let elsewhere = Marker {
        nonce: a.nonce(),
        slot: Slot::new(1),
    };
    a.enqueue("q", &[Item::new(*b"1")]).await;
    let late = a.queue().enqueue(early, &name("q"), &[Item::new(*b"late")]).await;
    assert_eq!(kind(late), ErrorKind::Conflict);
    assert_eq!(kind(a.queue().purge(early, &name("q")).await), ErrorKind::Conflict);
    // Each slot is for itself.
    a.queue()
        .enqueue(elsewhere, &name("q"), &[Item::new(*b"2")])
        .await
        .unwrap();
    assert_eq!(a.queue().depth(&name("q")).await.unwrap().ready, 2);
}

async fn withdrawn_waiter_is_never_granted(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    let (first, grant) = a.lock("x").await;
    let second = b.queue_up(Kind::Lock, "x", Mode::Exclusive).await;
    let third = c.queue_up(Kind::Lock, "x", Mode::Exclusive).await;
    assert_eq!(b.withdraw(&second).await, EndOutcome::Ended);
    assert_eq!(b.withdraw(&second).await, EndOutcome::NotHeld);
    a.release(&first, grant.token).await;
    let granted = c.wait(&third).await;
    // A withdrawal gives back what was granted meanwhile.
    assert_eq!(c.withdraw(&third).await, EndOutcome::Ended);
    assert_eq!(c.release(&third, granted.token).await, EndOutcome::NotHeld);
    a.lock("x").await;
}

async fn request_without_a_place_gets_a_conflict(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let wait = a.line(Kind::Lock).wait(&a.request(Kind::Lock, "x")).await;
    assert_eq!(kind(wait), ErrorKind::Conflict);
    assert_eq!(
        kind(a.queue().wait(&a.request(Kind::Queue, "x")).await),
        ErrorKind::Conflict
    );
    assert_eq!(
        kind(a.barrier().wait(&a.request(Kind::DoubleBarrier, "x")).await),
        ErrorKind::Conflict
    );
    let old = Client::resume(&store, &a.id).await;
    assert_eq!(kind(old.map(|client| client.id)), ErrorKind::Conflict);
    assert!(a.nonce() > Nonce::new(3));
}
