//! What happens to a server, and what holders and waiters notice of it.

use std::time::Instant;

use tenure_core::{ErrorKind, HoldFor};
use tenure_testbed::RedisServer;

use crate::common::*;

/// Leases are renewed and locks given back although no new one can be had.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_memory_takes_nothing_away() {
    let server = RedisServer::builder().start().unwrap();
    let bed = Bed::on(&server, "full");
    let (session, other) = (bed.session(secs(2)).await, bed.session(secs(2)).await);
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let lead = session.election("e").unwrap().campaign("me").await.unwrap();
    let lock = other.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("lock/x", 2).await;
    bed.ask(&["CONFIG", "SET", "maxmemory", "1kb"]);
    // New connections, over which the first step of every session has more to write.
    bed.ask(&["CLIENT", "KILL", "TYPE", "normal"]);
    bed.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    // That first step is let through, whatever it is.
    let lock = session.locker("y").unwrap();
    let refused = match lock.try_lock().await {
        Err(error) => error,
        Ok(guard) => {
            guard.release().await.unwrap();
            lock.try_lock().await.unwrap_err()
        }
    };
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert!(
        refused.chain().to_string().contains("maxmemory"),
        "{refused}"
    );
    tokio::time::sleep(secs(5)).await;
    assert!(guard.is_valid() && lead.is_valid(), "renewed all the time");
    guard.release().await.unwrap();
    let guard = within(SOON, "a hand-off", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
    lead.resign().await.unwrap();
    assert_eq!(bed.in_line("lock/x") + bed.in_line("election/e"), 0);
    bed.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    let lock = session.locker("y").unwrap();
    let guard = within(SOON, "a lock afterwards", lock.lock())
        .await
        .unwrap();
    guard.release().await.unwrap();
}

/// Whoever wants to make room can: with a new session, over a new connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_memory_can_be_emptied() {
    let server = RedisServer::builder().start().unwrap();
    let bed = Bed::on(&server, "emptied");
    let session = bed.session(secs(30)).await;
    let queue = session.queue("q").unwrap();
    for item in ["one", "two", "three"] {
        queue.enqueue(item).await.unwrap();
    }
    session.stm().unwrap().put("k", "v").await.unwrap();
    let held = session.rw_lock("rw").unwrap().write().await.unwrap();
    let barrier = session.barrier("b").unwrap();
    barrier.hold(HoldFor::Session).await.unwrap();
    let lead = session.election("e").unwrap().campaign("me").await.unwrap();
    let lock = session.rw_lock("rw").unwrap();
    let mut waiting = Box::pin(lock.read());
    while bed.in_line("rw_lock/rw") < 2 {
        let _ = tokio::time::timeout(ms(5), &mut waiting).await;
    }
    bed.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    // What is given up is given up.
    drop(waiting);
    bed.until_in_line("rw_lock/rw", 1).await;
    let late = bed.session(secs(30)).await;
    let queue = late.queue("q").unwrap();
    let item = within(SOON, "dequeue", queue.dequeue()).await.unwrap();
    item.ack().await.unwrap();
    assert_eq!(within(SOON, "pop", queue.pop()).await.unwrap(), b"two");
    assert_eq!(queue.purge().await.unwrap(), 1);
    assert!(late.stm().unwrap().delete("k").await.unwrap());
    late.barrier("b").unwrap().release().await.unwrap();
    let leader = late.election("e").unwrap();
    assert!(leader.leader().await.unwrap().is_some());
    assert!(
        within(SOON, "a look", leader.observe().next())
            .await
            .unwrap()
            .unwrap()
            .is_some()
    );
    held.downgrade().await.unwrap().release().await.unwrap();
    lead.resign().await.unwrap();
    // What needs room does not get it.
    let refused = [
        late.locker("x").unwrap().try_lock().await.err(),
        late.rw_lock("x").unwrap().try_read().await.err(),
        late.election("x").unwrap().try_campaign("me").await.err(),
        queue.enqueue("x").await.err(),
        late.stm().unwrap().put("k", "v").await.err(),
        late.barrier("x")
            .unwrap()
            .hold(HoldFor::Session)
            .await
            .err(),
    ];
    for error in refused {
        let error = error.expect("refused");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.chain().to_string().contains("maxmemory"), "{error}");
    }
    late.close().await.unwrap();
    session.close().await.unwrap();
    // What an observer saw is remembered for a while.
    assert_eq!(bed.of("DEL", "election/e/order", &[]), "1");
    bed.until_empty().await;
}

/// A server that is silent for longer than the TTL: everybody knows by the deadline, and afterwards
/// there is one holder.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_servers_holders_are_lost_by_their_deadline() {
    let server = RedisServer::builder().start().unwrap();
    let bed = Bed::on(&server, "silent");
    let (short, long) = (bed.session(secs(2)).await, bed.session(secs(30)).await);
    let guard = short.locker("x").unwrap().lock().await.unwrap();
    let lock = long.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    let late = short.locker("x").unwrap();
    let doomed = tokio::spawn(async move { late.lock().await });
    bed.until_in_line("lock/x", 3).await;
    server.pause().unwrap();
    let paused = Instant::now();
    within(secs(2) + ms(500), "the loss", guard.lost()).await;
    assert!(!guard.is_valid());
    let refused = within(ms(500), "the end of a wait", doomed).await.unwrap();
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Lost);
    tokio::time::sleep(secs(3).saturating_sub(paused.elapsed())).await;
    server.resume().unwrap();
    let guard = within(SOON, "the lock after a silence", waiting)
        .await
        .unwrap()
        .unwrap();
    assert!(guard.is_valid() && long.locker("y").unwrap().try_lock().await.is_ok());
    guard.release().await.unwrap();
    bed.until_in_line("lock/x", 0).await;
}

/// An operator takes a writer out for whom many readers wait.
#[tokio::test(flavor = "multi_thread")]
async fn readers_behind_a_removed_writer_all_go_on() {
    let bed = Bed::new("removed");
    let (session, other) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    let writer = session.rw_lock("x").unwrap().write().await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let lock = other.rw_lock("x").unwrap();
        readers.spawn(async move { lock.read().await });
    }
    bed.until_in_line("rw_lock/x", 51).await;
    let (line, who) = writer.key().rsplit_once('#').unwrap();
    assert_eq!(bed.ask(&["ZREM", line, &format!("{who}:w")]), "1");
    let mut held = Vec::new();
    while let Some(read) = within(SOON, "a reader", readers.join_next()).await {
        held.push(read.unwrap().unwrap());
    }
    assert_eq!(held.len(), 50);
    for guard in held {
        guard.release().await.unwrap();
    }
    // What the writer's second entry hid is gone too: another one gets in and out.
    let lock = other.rw_lock("x").unwrap();
    let again = within(SOON, "another writer", lock.write()).await.unwrap();
    again.release().await.unwrap();
    drop(within(SOON, "another reader", lock.read()).await.unwrap());
}
