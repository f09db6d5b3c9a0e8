//! Nothing is held or waited for by nobody, whatever became of requests and answers.

use std::future::Future;
use std::pin::pin;

use tenure_core::Session;
use tenure_redis::RedisSession;
use tenure_testbed::{Proxy, RedisServer};

use crate::common::*;

/// A session that reaches the server by way of a proxy, and gives up a connection attempt late.
async fn by_way_of(proxy: &Proxy, bed: &Bed<'_>) -> Session<RedisSession> {
    let config = bed.through(proxy.address());
    let config = config.timeout(secs(1)).connect_timeout(secs(3));
    open(&connect(config).await, secs(60)).await
}

/// Lets go of one who waits while it asks a server that cannot be reached: such a question certainly
/// did nothing, but the place was taken long before.
async fn let_go_in_the_dark<T>(
    proxy: &Proxy,
    waiting: impl Future<Output = T>,
    stands: impl AsyncFnOnce(),
) {
    let mut waiting = pin!(waiting);
    tokio::select! {
        _ = &mut waiting => panic!("not its turn"),
        () = stands() => {}
    }
    // Nothing answers, not even new connections: whoever waits looks by itself, in vain.
    proxy.silence();
    proxy.cut();
    assert!(tokio::time::timeout(secs(4), &mut waiting).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_let_go_of_in_the_dark_leaves_the_line() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "dark");
    let proxy = Proxy::start(server.address()).unwrap();
    let (far, near) = (by_way_of(&proxy, &bed).await, bed.session(secs(60)).await);
    let guard = near.locker("x").unwrap().lock().await.unwrap();
    let lock = far.locker("x").unwrap();
    let_go_in_the_dark(&proxy, lock.lock(), async || {
        bed.until_in_line("lock/x", 2).await;
    })
    .await;
    // Its question fails only now.
    tokio::time::sleep(secs(4)).await;
    proxy.heal();
    bed.until_in_line("lock/x", 1).await;
    guard.release().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_let_go_of_in_the_dark_leaves_the_line() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "dark");
    let proxy = Proxy::start(server.address()).unwrap();
    let (far, near) = (by_way_of(&proxy, &bed).await, bed.session(secs(60)).await);
    let (queue, elsewhere) = (far.queue("x").unwrap(), near.queue("x").unwrap());
    elsewhere.enqueue("late").await.unwrap();
    let item = elsewhere.dequeue().await.unwrap();
    let_go_in_the_dark(&proxy, queue.dequeue(), async || {
        bed.until_in_line("queue/x/line", 1).await;
        // Something to look for soon, of which it is told.
        item.nack_after(secs(2)).await.unwrap();
        tokio::time::sleep(ms(300)).await;
    })
    .await;
    tokio::time::sleep(secs(4)).await;
    proxy.heal();
    bed.until_in_line("queue/x/line", 0).await;
    let queue = near.queue("x").unwrap();
    let item = within(SOON, "the item", queue.dequeue()).await.unwrap();
    item.ack().await.unwrap();
}

/// As if the server had lost the last moments: what was given back is held again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_forgetful_server_brings_back_is_given_back_again() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "forgets");
    let session = bed.session(secs(3)).await;
    let index = format!("held/{}", session.id());
    let lock = session.locker("x").unwrap();
    let guard = lock.lock().await.unwrap();
    let (token, key) = (guard.token().to_string(), guard.key().to_owned());
    let who = key.rsplit_once('#').unwrap().1;
    let nonce = who.rsplit_once(':').unwrap().1;
    guard.release().await.unwrap();
    bed.of("ZADD", "lock/x", &[&token, &format!("{who}:w")]);
    bed.of("HSET", &index, &[nonce, "lock/x"]);
    bed.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    let again = within(SOON, "a lock that nobody has", lock.lock()).await;
    again.unwrap().release().await.unwrap();
    bed.until_in_line("lock/x", 0).await;
}

/// More of the dead than one renewal has time for, and the living go on.
#[tokio::test(flavor = "multi_thread")]
async fn many_dead_sessions_are_buried_soon() {
    let bed = Bed::new("many-dead");
    for number in 0..60 {
        let id = format!("{number:032x}");
        bed.of("ZADD", "sessions", &["1", &id]);
        let (index, line) = (format!("held/{id}"), format!("lock/{number}"));
        bed.of("HSET", &index, &["0000000000000001", &line]);
        bed.of("ZADD", &line, &["1", &format!("{id}:0000000000000001:w")]);
    }
    let session = bed.session(secs(3)).await;
    eventually("all are buried", || bed.keys().len() < 6).await;
    session.close().await.unwrap();
}

/// A mixture of everything, with connections broken all the time; `TENURE_CYCLES` for more of it.
#[tokio::test(flavor = "multi_thread")]
async fn much_coming_and_going_leaves_nothing() {
    let cycles = std::env::var("TENURE_CYCLES").ok();
    let cycles: u64 = cycles.and_then(|count| count.parse().ok()).unwrap_or(600);
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "churn");
    let mut tasks = tokio::task::JoinSet::new();
    for task in 0..6 {
        let session = bed.session(secs(10)).await;
        tasks.spawn(async move {
            for round in 0..cycles / 6 {
                churn(&session, (task + round) % 6).await;
            }
            session
        });
    }
    let mut sessions = Vec::new();
    let mut turn = 0;
    while sessions.len() < 6 {
        tokio::select! {
            Some(session) = tasks.join_next() => sessions.push(session.unwrap()),
            () = tokio::time::sleep(ms(150)) => {
                let kind = ["normal", "pubsub"][turn % 2];
                bed.ask(&["CLIENT", "KILL", "TYPE", kind]);
                turn += 1;
            }
        }
    }
    // While they live, what is left is theirs, and what is to be remembered for a while.
    let rest = |keys: &String| {
        let ours = ["session", "last", "revision", "deleted"];
        !ours.iter().any(|name| keys.starts_with(name)) && !keys.ends_with("/order")
    };
    let left = || bed.keys().into_iter().filter(rest).collect::<Vec<_>>();
    let start = std::time::Instant::now();
    while !left().is_empty() {
        assert!(start.elapsed() < SOON, "left behind: {:?}", left());
        tokio::time::sleep(ms(50)).await;
    }
    println!("{cycles} cycles, keys: {:?}", bed.keys().len());
    println!(
        "{}",
        bed.ask(&["INFO", "memory"])
            .lines()
            .nth(1)
            .unwrap_or_default()
    );
    for session in sessions {
        let slots = bed.of("HLEN", &format!("session/{}", session.id()), &[]);
        println!("fields of a session: {slots}");
        let _ = session.close().await;
    }
}

/// One thing out of six; its errors are those of broken connections.
async fn churn(session: &Session<RedisSession>, what: u64) {
    match what {
        0 => drop(session.locker("x").unwrap().lock_timeout(ms(5)).await),
        1 => {
            if let Ok(guard) = session.locker("x").unwrap().lock().await {
                let _ = guard.release().await;
            }
        }
        2 => drop(session.rw_lock("x").unwrap().read().await),
        3 => drop(session.rw_lock("x").unwrap().write().await),
        4 => {
            if let Ok(lead) = session.election("x").unwrap().campaign("me").await {
                let _ = lead.proclaim("still me").await;
                let _ = lead.resign().await;
            }
        }
        _ => {
            let queue = session.queue("x").unwrap();
            let _ = queue.enqueue("item").await;
            while let Ok(Some(item)) = queue.try_dequeue().await {
                let _ = item.ack().await;
            }
        }
    }
}
