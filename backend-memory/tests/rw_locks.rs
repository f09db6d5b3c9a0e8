//! Read-write locks under paused time: who waits for whom, and for how long (rules R1 to R3).

#![allow(clippy::unwrap_used, reason = "a test ends with it")]

mod support;

use std::time::Duration;

use support::*;
use tenure_core::{ErrorKind, ReadGuard, Result, Session, SessionOptions, Store, WriteGuard};
use tenure_memory::{Fault, MemoryBackend};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A session of another process, which stays silent from when it is told to.
async fn mortal(store: &Store<MemoryBackend>, ttl: Duration) -> (Session, tenure_memory::Link) {
    let store = another(store);
    let link = store.backend().link();
    let session = store.into_dyn().open(SessionOptions::new().ttl(ttl)).await;
    (session.unwrap(), link)
}

fn reading(session: &Session) -> JoinHandle<Result<ReadGuard>> {
    let lock = session.rw_lock("x").unwrap();
    tokio::spawn(async move { lock.read().await })
}

fn writing(session: &Session) -> JoinHandle<Result<WriteGuard>> {
    let lock = session.rw_lock("x").unwrap();
    tokio::spawn(async move { lock.write().await })
}

async fn until_waits(store: &Store<MemoryBackend>, count: usize) {
    until("they wait", || store.backend().footprint().waits == count).await;
}

/// Whichever of two readers has the longer lease: when one releases and the other dies, the writer
/// comes in when that one's lease ends.
#[tokio::test(start_paused = true)]
async fn a_writer_waits_for_the_lease_of_the_last_reader_and_no_longer() {
    for (first, second) in [(5, 60), (60, 5)] {
        let store = store();
        let (one, one_link) = mortal(&store, secs(first)).await;
        let (two, two_link) = mortal(&store, secs(second)).await;
        let guards = [
            one.rw_lock("x").unwrap().read().await.unwrap(),
            two.rw_lock("x").unwrap().read().await.unwrap(),
        ];
        let writer = open(&store).await;
        let writing = writing(&writer);
        until_waits(&store, 1).await;
        // The one with the lease of 5 s falls silent, the other lets go.
        let (dying, living) = if first == 5 { (0, 1) } else { (1, 0) };
        [&one_link, &two_link][dying].inject(Fault::Silent);
        let start = Instant::now();
        let mut guards = guards.map(Some);
        guards[living].take().unwrap().release().await.unwrap();
        let guard = writing.await.unwrap().unwrap();
        assert!(
            start.elapsed() <= secs(5) + millis(10),
            "{:?} with leases of {first} and {second} s",
            start.elapsed()
        );
        drop(guards);
        guard.release().await.unwrap();
    }
}

/// A dead reader that waits is in no other reader's way.
#[tokio::test(start_paused = true)]
async fn a_reader_waits_for_the_writer_and_not_for_its_neighbours() {
    let store = store();
    let (holder, holder_link) = mortal(&store, secs(5)).await;
    let (neighbour, neighbour_link) = mortal(&store, secs(60)).await;
    let _guard = holder.rw_lock("x").unwrap().write().await.unwrap();
    let _dead = reading(&neighbour);
    until_waits(&store, 1).await;
    let session = open(&store).await;
    let reading = reading(&session);
    until_waits(&store, 2).await;
    neighbour_link.inject(Fault::Silent);
    holder_link.inject(Fault::Silent);
    let start = Instant::now();
    reading.await.unwrap().unwrap().release().await.unwrap();
    assert!(
        start.elapsed() <= secs(5) + millis(10),
        "{:?}",
        start.elapsed()
    );
}

/// An operator removes the writer between two readers.
#[tokio::test(start_paused = true)]
async fn readers_join_when_the_writer_between_them_goes() {
    let store = store();
    let (a, b, c) = (open(&store).await, open(&store).await, open(&store).await);
    let first = a.rw_lock("x").unwrap().read().await.unwrap();
    let before = store.backend().keys();
    let waiting = writing(&b);
    until_waits(&store, 1).await;
    let key = store.backend().keys();
    let key = key.iter().find(|key| !before.contains(key)).unwrap();
    let second = reading(&c);
    until_waits(&store, 2).await;
    let start = Instant::now();
    assert!(store.backend().delete(key));
    let second = second.await.unwrap().unwrap();
    assert!(first.is_valid() && start.elapsed() < millis(10));
    // The writer asks anew, and stands behind both.
    until_waits(&store, 1).await;
    drop((first, second));
    waiting.await.unwrap().unwrap().release().await.unwrap();
    until_no_ghost(store.backend()).await;
}

/// A session that ends with a writer and a reader waiting grants neither on the way.
#[tokio::test(start_paused = true)]
async fn a_session_that_ends_takes_its_waits_along() {
    let store = store();
    let (a, b) = (open(&store).await, open(&store).await);
    let held = a.rw_lock("x").unwrap().read().await.unwrap();
    let (writes, reads) = (writing(&b), reading(&b));
    until_waits(&store, 2).await;
    b.close().await.unwrap();
    let refused = [
        writes.await.unwrap().map(drop).unwrap_err(),
        reads.await.unwrap().map(drop).unwrap_err(),
    ];
    for refused in refused {
        assert_eq!(refused.kind(), ErrorKind::Lost);
    }
    assert_eq!(store.backend().keys(), [held.key()]);
}

/// A downgrade on its way when its caller releases has no effect when it arrives.
#[tokio::test(start_paused = true)]
async fn a_late_downgrade_changes_nothing() {
    let store = store();
    let (session, link) = mortal(&store, secs(60)).await;
    let lock = session.rw_lock("x").unwrap();
    let guard = lock.write().await.unwrap();
    link.inject(Fault::Silent);
    assert!(
        tokio::time::timeout(secs(1), guard.downgrade())
            .await
            .is_err()
    );
    link.heal();
    until_no_ghost(store.backend()).await;
    // The next writer is alone, whatever of the first is still to come.
    let guard = lock.write().await.unwrap();
    tokio::time::sleep(secs(5)).await;
    let other = open(&store).await.rw_lock("x").unwrap();
    let refused = other.try_read().await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::WouldBlock);
    guard.release().await.unwrap();
}
