//! Silence, and a second endpoint.

use std::time::{Duration, Instant};

use tenure_core::{Error, ErrorKind, LossReason, SessionOptions};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Direction, EtcdCluster, Flow, Proxy};

use crate::common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_network_is_a_loss_by_the_deadline() {
    let bed = Bed::new("silence").await;
    for direction in [None, Some(Direction::Up), Some(Direction::Down)] {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address())).await;
        let (a, b) = (open(&store, secs(3)).await, open(&store, secs(3)).await);
        let guard = a.locker("x").unwrap().lock().await.unwrap();
        let waiting = tokio::spawn(async move { b.locker("x").unwrap().lock().await.map(drop) });
        bed.until_in_line("x", 2).await;
        match direction {
            None => proxy.silence(),
            Some(direction) => proxy.set(direction, Flow::Drop),
        }
        let left = guard.remaining();
        let silent = Instant::now();
        assert_eq!(guard.lost().await, LossReason::Unreachable);
        let took = silent.elapsed();
        assert!(took < left + ms(300), "{direction:?}: {took:?} of {left:?}");
        let refused = within(secs(4), "an error", waiting).await.unwrap();
        assert_eq!(refused.unwrap_err().loss(), Some(LossReason::Unreachable));
        assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
        proxy.heal();
        eventually("a new session", SOON, async || {
            let Ok(session) = store.open(SessionOptions::new().ttl(secs(3))).await else {
                return false;
            };
            let lock = session.locker("x").unwrap();
            lock.lock_timeout(secs(8)).await.is_ok()
        })
        .await;
        bed.until_in_line("x", 0).await;
    }
}

/// How a pair of endpoints to one server goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    SilentFromTheStart,
    RefusedFromTheStart,
    Silent,
    SilentAnswers,
    Refused,
    /// The same, twice: there and back again.
    Alternating,
}

async fn survives(trouble: Trouble) {
    let bed = Bed::new("two").await;
    let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
    let [first, second] = &proxies;
    match trouble {
        Trouble::SilentFromTheStart => first.silence(),
        Trouble::RefusedFromTheStart => first.refuse(true),
        _ => {}
    }
    let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
        .starting_at(0)
        .namespace(bed.namespace.clone());
    let store = connect(config).await;
    let session = open(&store, secs(4)).await;
    let other = open(&store, secs(4)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let waiting = tokio::spawn({
        let lock = other.locker("x").unwrap();
        async move { lock.lock().await?.release().await }
    });
    bed.until_in_line("x", 2).await;
    match trouble {
        Trouble::Silent | Trouble::Alternating => first.silence(),
        Trouble::SilentAnswers => first.set(Direction::Down, Flow::Drop),
        Trouble::Refused => {
            first.refuse(true);
            first.cut();
        }
        _ => {}
    }
    // Two TTLs and more: a session that renews over the dead one is lost by then.
    let until = Instant::now() + secs(9);
    let mut turned = false;
    while Instant::now() < until {
        assert!(session.is_valid(), "{trouble:?}: {:?}", session.loss());
        assert!(other.is_valid(), "{trouble:?}: {:?}", other.loss());
        if matches!(trouble, Trouble::Alternating) && !turned && until < Instant::now() + secs(5) {
            turned = true;
            first.heal();
            second.silence();
        }
        tokio::time::sleep(ms(20)).await;
    }
    // One attempt may still meet what is dead; it fails over to what is not.
    let probe = session.locker("y").unwrap();
    eventually("calls fail over", SOON, async || {
        match probe.try_lock().await {
            Ok(guard) => guard.release().await.is_ok(),
            Err(error) => {
                assert!(error.is_retryable(), "{trouble:?}: {error}");
                false
            }
        }
    })
    .await;
    if let Err(error) = guard.release().await {
        assert!(error.is_retryable(), "{trouble:?}: {error}");
    }
    let turn = within(SOON, "the waiter's turn", waiting).await.unwrap();
    turn.unwrap_or_else(|error| assert!(error.is_retryable(), "{trouble:?}: {error}"));
    assert!(session.is_valid() && other.is_valid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_endpoints_survive_the_trouble_of_one() {
    // Side by side: most of it is waiting.
    tokio::join!(
        survives(Trouble::SilentFromTheStart),
        survives(Trouble::RefusedFromTheStart),
        survives(Trouble::Silent),
        survives(Trouble::SilentAnswers),
        survives(Trouble::Refused),
        survives(Trouble::Alternating),
    );
}

#[tokio::test]
async fn a_call_is_bounded() {
    let bed = Bed::new("bound").await;
    let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
    let timeout = ms(700);
    let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
        .namespace(bed.namespace.clone())
        .timeout(timeout);
    let store = connect(config.clone()).await;
    let session = open(&store, secs(30)).await;
    for proxy in &proxies {
        proxy.silence();
    }
    async fn timed<T>(call: impl Future<Output = Result<T, Error>>) -> Duration {
        let start = Instant::now();
        let Err(refused) = within(secs(20), "an end", call).await else {
            panic!("nobody can have answered");
        };
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert!(refused.is_retryable());
        start.elapsed()
    }
    let noise = ms(600);
    // What must not be sent twice takes one timeout, the rest one for each endpoint.
    let took = timed(session.locker("x").unwrap().try_lock()).await;
    assert!(took >= timeout && took < timeout + noise, "{took:?}");
    let took = timed(store.open(SessionOptions::new())).await;
    assert!(took < timeout * 2 + noise, "{took:?}");
    let took = timed(store.guarantees()).await;
    assert!(took < timeout * 4 + noise, "{took:?}");
    let took = timed(tenure_etcd::connect(config)).await;
    assert!(took < timeout * 2 + noise, "{took:?}");
    for proxy in &proxies {
        proxy.heal();
        proxy.refuse(true);
        proxy.cut();
    }
    let took = timed(session.locker("y").unwrap().try_lock()).await;
    assert!(took < timeout * 2 + noise, "{took:?}");
}

/// A waiter behind a connection that goes silent, with another endpoint at hand, is not kept
/// from its turn for longer than it takes to notice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_that_comes_in_silence_is_found_over_the_other_endpoint() {
    let bed = Bed::new("turn").await;
    let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
    let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
        .starting_at(0)
        .namespace(bed.namespace.clone());
    let holder = bed.session(secs(30)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let session = open(&connect(config).await, secs(6)).await;
    let waiting = tokio::spawn(async move { session.locker("x").unwrap().lock().await.map(drop) });
    bed.until_in_line("x", 2).await;
    proxies[0].silence();
    guard.release().await.unwrap();
    // Two timeouts (2 s) for the watch, or the renewal's patience: whichever is first.
    within(secs(7), "its turn", waiting).await.unwrap().unwrap();
}

/// Not all clients of a cluster use one member.
#[tokio::test]
async fn clients_start_at_different_endpoints() {
    let bed = Bed::new("spread").await;
    let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
    let mut stores = Vec::new();
    for _ in 0..32 {
        let addresses = proxies.iter().map(|proxy| proxy.address().to_string());
        let config = EtcdConfig::new(addresses).namespace(bed.namespace.clone());
        stores.push(connect(config).await);
    }
    let used = proxies.each_ref().map(Proxy::accepted);
    assert!(used.iter().all(|used| *used > 0), "{used:?}");
    assert_eq!(used.iter().sum::<u64>(), 32, "one connection each");
}

/// A request without an answer says nothing of the connection: all watches of the client are on it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeout_alone_keeps_the_connection() {
    // The cluster elects no member while the leader stands still.
    let cluster = EtcdCluster::builder().election_timeout(secs(20));
    let cluster = cluster.start_async().await.unwrap();
    let leader = cluster.leader().expect("a leader");
    let followers = (0..3).filter(|member| *member != leader);
    let followers: Vec<_> = followers.map(|it| &cluster.members[it]).collect();
    let bed = Bed::on(followers[0], "slow").await;
    let proxies: Vec<_> = followers
        .iter()
        .map(|member| Proxy::start(member.address()).unwrap())
        .collect();
    let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
        .starting_at(0)
        .timeout(ms(700))
        .namespace(bed.namespace.clone());
    let session = open(&connect(config).await, secs(60)).await;
    let lock = session.locker("x").unwrap();
    let accepted = || [proxies[0].accepted(), proxies[1].accepted()];
    let before = accepted();
    cluster.members[leader].pause().unwrap();
    let refused = within(SOON, "an answer", lock.try_lock()).await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Unavailable);
    cluster.members[leader].resume().unwrap();
    eventually("the lock", LATER, async || match lock.try_lock().await {
        Ok(guard) => guard.release().await.is_ok(),
        Err(_) => false,
    })
    .await;
    assert_eq!(accepted(), before, "connections accepted");
    assert_eq!(before[1], 0, "the other endpoint was not needed");
}
