//! Wait queues: exclusion, order, fencing, readers and writers.

use std::time::Duration;

use tenure_core::backend::{EndOutcome, Joined, Mode};
use tenure_core::{ErrorKind, FencingToken, Kind, LossReason};
use tenure_memory::MemoryBackend;

use crate::support::{Client, TTL, kind, pass, soon};

rules! {
    lock_has_one_holder_also_within_a_session: [TwoHolders];
    tokens_of_a_name_rise: [TokenRepeated];
    waiters_are_granted_in_the_order_of_arrival: [LeaveReorders];
    refused_try_leaves_nothing: [TryLeavesEntry];
    lost_holding_cannot_be_released: [ReleaseUnfenced];
    waiter_whose_session_ended_is_never_granted: [DeadWaiterGranted];
    waiter_fails_at_the_end_of_its_session: [];
    waiters_that_die_with_the_holder_are_skipped: [DeadWaiterGranted];
    readers_share_and_a_writer_is_alone: [ReaderBesideWriter, ReaderOvertakes];
    writer_waits_for_the_readers_of_its_own_session: [WriterBesideReaders];
    readers_behind_a_writer_are_granted_together: [];
    dead_reader_of_many_lets_the_writer_in: [];
    downgrade_keeps_the_token_and_lets_readers_in: [DowngradeRaisesToken, DowngradeReleases, DowngradeGrantsNoReader];
}

const ALONE: Mode = Mode::Exclusive;

async fn lock_has_one_holder_also_within_a_session(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (first, grant) = a.lock("x").await;
    let second = a.queue_up(Kind::Lock, "x", ALONE).await;
    let third = b.queue_up(Kind::Lock, "x", ALONE).await;
    a.waits(&second).await;
    a.release(&first, grant.token).await;
    a.wait(&second).await;
    b.waits(&third).await;
}

async fn tokens_of_a_name_rise(store: MemoryBackend) {
    let mut last = FencingToken::new(0);
    for _ in 0..3 {
        let a = Client::open(&store).await;
        for _ in 0..3 {
            let (request, grant) = a.lock("x").await;
            assert!(grant.token > last);
            last = grant.token;
            a.release(&request, grant.token).await;
        }
        a.session.revoke().await.unwrap();
    }
}

async fn waiters_are_granted_in_the_order_of_arrival(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (holder, grant) = a.lock("x").await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let client = Client::open(&store).await;
        let request = client.queue_up(Kind::Lock, "x", ALONE).await;
        clients.push((client, request));
    }
    let (leaves, request) = clients.remove(2);
    leaves.withdraw(&request).await;
    a.release(&holder, grant.token).await;
    for (client, request) in &clients {
        let grant = client.wait(request).await;
        assert_eq!(client.release(request, grant.token).await, EndOutcome::Ended);
    }
}

async fn refused_try_leaves_nothing(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (holder, grant) = a.lock("x").await;
    assert_eq!(b.join(&b.request(Kind::Lock, "x"), ALONE, false).await, Joined::Busy);
    assert!(b.entries().await.is_empty());
    a.release(&holder, grant.token).await;
    // A free object behind a waiter is not free.
    let (holder, grant) = a.hold(Kind::RwLock, "x", Mode::Shared).await;
    let writer = a.queue_up(Kind::RwLock, "x", ALONE).await;
    assert_eq!(
        b.join(&b.request(Kind::RwLock, "x"), Mode::Shared, false).await,
        Joined::Busy
    );
    a.withdraw(&writer).await;
    let reads = b.join(&b.request(Kind::RwLock, "x"), Mode::Shared, false).await;
    assert!(matches!(reads, Joined::Granted(_)));
    a.release(&holder, grant.token).await;
}

async fn lost_holding_cannot_be_released(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    let (request, grant) = a.lock("x").await;
    assert_eq!(
        a.release(&request, FencingToken::new(grant.token.get() + 1)).await,
        EndOutcome::NotHeld
    );
    assert_eq!(a.entries().await.len(), 1);
    assert!(store.take_away(&a.id, request.nonce()));
    b.lock("x").await;
    assert_eq!(a.release(&request, grant.token).await, EndOutcome::NotHeld);
    assert_eq!(c.join(&c.request(Kind::Lock, "x"), ALONE, false).await, Joined::Busy);
}

async fn waiter_whose_session_ended_is_never_granted(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    let (holder, grant) = a.lock("x").await;
    b.queue_up(Kind::Lock, "x", ALONE).await;
    let third = c.queue_up(Kind::Lock, "x", ALONE).await;
    b.session.revoke().await.unwrap();
    a.release(&holder, grant.token).await;
    let granted = tokio::time::timeout(Duration::from_millis(1), c.wait(&third)).await;
    assert!(granted.is_ok());
}

async fn waiter_fails_at_the_end_of_its_session(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    a.lock("x").await;
    let (second, third) = (
        b.queue_up(Kind::Lock, "x", ALONE).await,
        c.queue_up(Kind::Lock, "x", ALONE).await,
    );
    let line = b.line(Kind::Lock);
    let told = tokio::spawn(async move { line.wait(&second).await });
    tokio::task::yield_now().await;
    b.session.revoke().await.unwrap();
    let told = tokio::time::timeout(Duration::from_millis(1), told)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(told.unwrap_err().loss(), Some(LossReason::Closed));
    // The lease ends while nothing else happens.
    let told = soon(c.line(Kind::Lock).wait(&third)).await;
    assert_eq!(told.unwrap_err().loss(), Some(LossReason::Expired));
}

async fn waiters_that_die_with_the_holder_are_skipped(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (_, grant) = a.lock("x").await;
    for _ in 0..3 {
        b.queue_up(Kind::Lock, "x", ALONE).await;
    }
    pass(5.0).await;
    let c = Client::open(&store).await;
    let waits = c.queue_up(Kind::Lock, "x", ALONE).await;
    let granted = c.wait(&waits).await;
    // No expired waiter was granted on the way.
    assert_eq!(granted.token.get(), grant.token.get() + 1);
}

async fn readers_share_and_a_writer_is_alone(store: MemoryBackend) {
    let (a, b, c) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    let (first, one) = a.hold(Kind::RwLock, "x", Mode::Shared).await;
    let (second, two) = b.hold(Kind::RwLock, "x", Mode::Shared).await;
    let writer = c.queue_up(Kind::RwLock, "x", ALONE).await;
    let late = a.queue_up(Kind::RwLock, "x", Mode::Shared).await;
    a.waits(&late).await;
    a.release(&first, one.token).await;
    c.waits(&writer).await;
    b.release(&second, two.token).await;
    let three = c.wait(&writer).await;
    assert!(three.token > two.token && two.token > one.token);
    a.waits(&late).await;
    c.release(&writer, three.token).await;
    a.wait(&late).await;
}

async fn writer_waits_for_the_readers_of_its_own_session(store: MemoryBackend) {
    let a = Client::open(&store).await;
    let (one, grant) = a.hold(Kind::RwLock, "x", Mode::Shared).await;
    let (two, _) = a.hold(Kind::RwLock, "x", Mode::Shared).await;
    let writer = a.queue_up(Kind::RwLock, "x", ALONE).await;
    a.release(&one, grant.token).await;
    a.waits(&writer).await;
    a.withdraw(&two).await;
    a.wait(&writer).await;
}

async fn readers_behind_a_writer_are_granted_together(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let (first, grant) = a.hold(Kind::RwLock, "x", ALONE).await;
    let mut readers = Vec::new();
    for _ in 0..5 {
        readers.push(b.queue_up(Kind::RwLock, "x", Mode::Shared).await);
    }
    let writer = a.queue_up(Kind::RwLock, "x", ALONE).await;
    let behind = b.queue_up(Kind::RwLock, "x", Mode::Shared).await;
    a.release(&first, grant.token).await;
    for reader in &readers {
        b.wait(reader).await;
    }
    b.waits(&behind).await;
    a.waits(&writer).await;
    // A writer that leaves lets the readers behind it in.
    a.withdraw(&writer).await;
    b.wait(&behind).await;
}

async fn dead_reader_of_many_lets_the_writer_in(store: MemoryBackend) {
    let (dead, alive, writes) = (
        Client::open(&store).await,
        Client::open(&store).await,
        Client::open(&store).await,
    );
    dead.hold(Kind::RwLock, "x", Mode::Shared).await;
    let (reader, grant) = alive.hold(Kind::RwLock, "x", Mode::Shared).await;
    let writer = writes.queue_up(Kind::RwLock, "x", ALONE).await;
    let start = tokio::time::Instant::now();
    let live = async {
        loop {
            pass(3.0).await;
            writes.session.renew().await.unwrap();
            alive.session.renew().await.unwrap();
            if start.elapsed() > TTL * 2 {
                alive.release(&reader, grant.token).await;
            }
        }
    };
    tokio::select! {
        _ = writes.wait(&writer) => assert!(start.elapsed() > TTL * 2),
        () = live => {}
    }
}

async fn downgrade_keeps_the_token_and_lets_readers_in(store: MemoryBackend) {
    let (a, b) = (Client::open(&store).await, Client::open(&store).await);
    let rw = std::sync::Arc::clone(&a.session).rw_lock().unwrap();
    let (writer, grant) = a.hold(Kind::RwLock, "x", ALONE).await;
    let reader = b.queue_up(Kind::RwLock, "x", Mode::Shared).await;
    let next = b.queue_up(Kind::RwLock, "x", ALONE).await;
    let last = b.queue_up(Kind::RwLock, "x", Mode::Shared).await;
    let wrong = FencingToken::new(grant.token.get() + 7);
    assert_eq!(kind(rw.downgrade(a.marker(), &writer, wrong).await), ErrorKind::Lost);
    let marker = a.marker();
    for _ in 0..2 {
        rw.downgrade(marker, &writer, grant.token).await.unwrap();
    }
    let read = b.wait(&reader).await;
    b.waits(&next).await;
    b.waits(&last).await;
    b.release(&reader, read.token).await;
    b.waits(&next).await;
    assert_eq!(a.join(&writer, ALONE, true).await, Joined::Granted(grant.clone()));
    assert_eq!(a.release(&writer, grant.token).await, EndOutcome::Ended);
    b.wait(&next).await;
    assert_eq!(
        kind(rw.downgrade(a.marker(), &writer, grant.token).await),
        ErrorKind::Lost
    );
}
