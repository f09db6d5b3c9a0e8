//! A server that loses its newest writes: a restart from an older file, as after a failover to a replica that lagged.
//! What was released, withdrawn or acknowledged by then stays so; waiters go on waiting.

use tenure_core::{ErrorKind, FencingToken, LossReason};
use tenure_testbed::RedisServer;

use crate::common::*;

const TTL: u64 = 6;

/// A server that keeps what it is told to save, and nothing else.
fn forgetful() -> RedisServer {
    RedisServer::builder().no_persistence().start().unwrap()
}

fn save(server: &RedisServer) {
    server.command(&["SAVE"]).unwrap();
}

/// From here on the server is as it was when it was saved.
async fn back(server: &mut RedisServer) {
    server.kill().unwrap();
    server.restart_async().await.unwrap();
}

/// Waits until so many stand in the line at `path`, of the namespace `default`.
async fn until_standing(server: &RedisServer, path: &str, count: usize) {
    let key = format!("{{tenure/1/default}}/{path}");
    let count = count.to_string();
    eventually(path, || server.command(&["ZCARD", &key]).unwrap() == count).await;
}

async fn session(server: &RedisServer) -> tenure_core::Session<tenure_redis::RedisSession> {
    let config = tenure_redis::RedisConfig::new(server.address().to_string());
    open(&connect(config).await, secs(TTL)).await
}

/// A holder releases, the next one is granted and releases; the server loses the first release and all after it.
/// A third one is granted soon, though both live on.
macro_rules! released_places_are_free {
    ($($name:ident: $path:literal, $take:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let mut server = forgetful();
            let (one, two) = (session(&server).await, session(&server).await);
            let take = $take;
            let first = take(one.clone()).await.unwrap();
            let waiting = tokio::spawn(take(two.clone()));
            until_standing(&server, $path, 2).await;
            save(&server);
            first.release().await.unwrap();
            let second = within(SOON, "its turn", waiting).await.unwrap().unwrap();
            back(&mut server).await;
            // Whatever the answer, the place goes.
            let _ = second.release().await;
            let three = session(&server).await;
            let third = within(SOON, "a lock that nobody has", take(three.clone())).await;
            third.unwrap().release().await.unwrap();
            assert!(one.is_valid() && two.is_valid());
        }
    )*};
}

released_places_are_free! {
    a_lock_released_after_lost_writes_is_free: "lock/x",
        |session: tenure_core::Session<tenure_redis::RedisSession>| async move { session.locker("x")?.lock().await };
    a_write_lock_released_after_lost_writes_is_free: "rw_lock/x",
        |session: tenure_core::Session<tenure_redis::RedisSession>| async move { session.rw_lock("x")?.write().await };
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leadership_resigned_after_lost_writes_is_free() {
    let mut server = forgetful();
    let (one, two) = (session(&server).await, session(&server).await);
    let first = one.election("x").unwrap().campaign("one").await.unwrap();
    let election = two.election("x").unwrap();
    let waiting = tokio::spawn(async move { election.campaign("two").await });
    until_standing(&server, "election/x", 2).await;
    save(&server);
    first.resign().await.unwrap();
    let second = within(SOON, "its turn", waiting).await.unwrap().unwrap();
    back(&mut server).await;
    let _ = second.resign().await;
    let three = session(&server).await;
    let election = three.election("x").unwrap();
    let third = within(SOON, "a vacancy", election.campaign("three")).await;
    third.unwrap().resign().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_whose_place_was_lost_takes_another() {
    let mut server = forgetful();
    let (one, two) = (session(&server).await, session(&server).await);
    let held = one.locker("x").unwrap().lock().await.unwrap();
    let led = one.election("x").unwrap().campaign("one").await.unwrap();
    let written = one.rw_lock("x").unwrap().write().await.unwrap();
    save(&server);
    let (lock, election, rw_lock) = (
        two.locker("x").unwrap(),
        two.election("x").unwrap(),
        two.rw_lock("x").unwrap(),
    );
    let locking = tokio::spawn(async move { lock.lock().await });
    let running = tokio::spawn(async move { election.campaign("two").await });
    let reading = tokio::spawn(async move { rw_lock.read().await });
    for path in ["lock/x", "election/x", "rw_lock/x"] {
        until_standing(&server, path, 2).await;
    }
    back(&mut server).await;
    for path in ["lock/x", "election/x", "rw_lock/x"] {
        until_standing(&server, path, 2).await;
    }
    held.release().await.unwrap();
    led.resign().await.unwrap();
    written.release().await.unwrap();
    drop(within(SOON, "the lock", locking).await.unwrap().unwrap());
    drop(within(SOON, "the office", running).await.unwrap().unwrap());
    drop(within(SOON, "reading", reading).await.unwrap().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_participant_whose_entry_was_lost_enters_again() {
    let mut server = forgetful();
    let (one, two) = (session(&server).await, session(&server).await);
    save(&server);
    let barrier = one.double_barrier("x", 2).unwrap();
    let entering = tokio::spawn(async move { barrier.enter().await });
    until_standing(&server, "double_barrier/x", 1).await;
    back(&mut server).await;
    let barrier = two.double_barrier("x", 2).unwrap();
    let second = within(SOON, "both are there", barrier.enter());
    let (second, first) = tokio::join!(second, entering);
    let (first, second) = (first.unwrap().unwrap(), second.unwrap());
    let left = async { tokio::join!(first.leave(), second.leave()) };
    let (first, second) = within(SOON, "both have left", left).await;
    first.and(second).unwrap();
}

/// Two items were acknowledged: one whose delivery the server still knows, one whose it does not.
#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledged_item_does_not_come_back() {
    let mut server = forgetful();
    let (one, two) = (session(&server).await, session(&server).await);
    let queue = one.queue("jobs").unwrap();
    for item in ["first", "second", "kept"] {
        queue.enqueue(item).await.unwrap();
    }
    let first = queue.dequeue().await.unwrap();
    save(&server);
    let second = queue.dequeue().await.unwrap();
    first.ack().await.unwrap();
    second.ack().await.unwrap();
    back(&mut server).await;
    // As soon as its session has renewed over the new connection.
    let key = |part: &str| format!("{{tenure/1/default}}/queue/jobs/{part}");
    eventually("one item", || {
        server.command(&["HLEN", &key("values")]).unwrap() == "1"
    })
    .await;
    let left = two.queue("jobs").unwrap().dequeue().await.unwrap();
    assert_eq!(left.value(), b"kept");
    left.ack().await.unwrap();
    assert_eq!(server.command(&["ZCARD", &key("in_flight")]).unwrap(), "0");
    assert!(one.is_valid());
}

/// A wait that was served and a wait that was cancelled stand in line again; an item comes to one who waits now, and
/// what else the session has stays its own.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_goes_to_no_consumer_that_waited_before() {
    let mut server = forgetful();
    let (one, two) = (session(&server).await, session(&server).await);
    let queue = one.queue("jobs").unwrap();
    queue.enqueue("held").await.unwrap();
    let held = queue.dequeue().await.unwrap();
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.dequeue().await }
    });
    until_standing(&server, "queue/jobs/line", 1).await;
    let cancelled = tokio::spawn({
        let queue = queue.clone();
        async move { queue.dequeue().await }
    });
    until_standing(&server, "queue/jobs/line", 2).await;
    save(&server);
    queue.enqueue("served").await.unwrap();
    let served = within(SOON, "an item", waiting).await.unwrap().unwrap();
    served.ack().await.unwrap();
    cancelled.abort();
    until_standing(&server, "queue/jobs/line", 0).await;
    back(&mut server).await;
    let other = two.queue("jobs").unwrap();
    other.enqueue("late").await.unwrap();
    let late = within(SOON, "the item", other.dequeue()).await.unwrap();
    assert_eq!(late.value(), b"late");
    late.ack().await.unwrap();
    assert!(held.is_valid(), "{:?}", held.loss());
    held.ack().await.unwrap();
}

/// Without a break of the connection: as when a primary was made a replica of another one and a primary again.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_lost_over_a_connection_that_holds_is_noticed() {
    let server = forgetful();
    let one = session(&server).await;
    let lock = one.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let record = format!("{{tenure/1/default}}/session/{}", one.id());
    let renewals = || -> u64 {
        let renewals = server.command(&["HGET", &record, "renewals"]).unwrap();
        renewals.parse().unwrap_or(0)
    };
    eventually("renewals", || renewals() >= 2).await;
    server.command(&["HSET", &record, "renewals", "0"]).unwrap();
    server
        .command(&["DEL", "{tenure/1/default}/lock/x"])
        .unwrap();
    let connections = || server.info("total_connections_received").unwrap();
    let before = connections();
    eventually("another connection", || connections() != before).await;
    let lost = within(SOON, "the loss", guard.lost()).await;
    assert_eq!(lost, LossReason::Revoked);
    assert!(one.is_valid());
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    lock.lock().await.unwrap().release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_raised_token_floor_holds_for_every_kind() {
    let mut server = forgetful();
    let one = session(&server).await;
    let low = one.locker("x").unwrap().lock().await.unwrap().token();
    let floor = FencingToken::new(low.get() * 2);
    let store = connect(tenure_redis::RedisConfig::new(server.address().to_string())).await;
    store.raise_token_floor(floor).await.unwrap();
    let next = one.locker("y").unwrap().lock().await.unwrap().token();
    assert!(next >= floor);
    // A lower one changes nothing.
    store.raise_token_floor(low).await.unwrap();
    save(&server);
    back(&mut server).await;
    let queue = one.queue("jobs").unwrap();
    queue.enqueue("item").await.unwrap();
    let tokens = [
        one.election("x")
            .unwrap()
            .campaign("")
            .await
            .unwrap()
            .token(),
        one.rw_lock("x").unwrap().read().await.unwrap().token(),
        queue.dequeue().await.unwrap().token(),
    ];
    assert!(tokens.iter().all(|token| *token > floor), "{tokens:?}");
}

/// A process that ends before its first renewal cleans up, too.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_are_too_short_to_renew_bury_the_dead() {
    let bed = Bed::new("short-lives");
    for number in 0..30 {
        let id = format!("{number:032x}");
        bed.of("ZADD", "sessions", &["1", &id]);
        let (index, line) = (format!("held/{id}"), format!("lock/{number}"));
        bed.of("HSET", &index, &["0000000000000001", &line]);
        bed.of("ZADD", &line, &["1", &format!("{id}:0000000000000001:w")]);
    }
    for _ in 0..5 {
        let session = bed.session(secs(60)).await;
        session.close().await.unwrap();
    }
    bed.until_empty().await;
}
