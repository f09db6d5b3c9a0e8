//! Asks that nobody waits for any more leave nothing, whenever their requests arrive.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::Client;
use tenure_core::ErrorKind;
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Direction, Flow, Proxy};
use tokio::task::JoinSet;

use crate::common::*;

/// The answer to the acquiring transaction is lost, then the connection.
#[tokio::test]
async fn a_lost_answer_ends_in_a_grant_or_in_nothing() {
    let bed = Bed::new("lost").await;
    for round in 0..10 {
        let proxy = Proxy::start(bed.address).unwrap();
        let store = connect(bed.through(proxy.address()).timeout(ms(400))).await;
        let session = open(&store, secs(20)).await;
        let lock = session.locker("x").unwrap();
        let before = bed.line("x").await.len();
        assert_eq!(before, 0);
        let dropped = proxy.when(
            Direction::Up,
            bed.prefix("x").into_bytes(),
            Direction::Down,
            Flow::Drop,
        );
        // The request lands; then half of the rounds give up, the others go on asking.
        if round % 2 == 0 {
            let refused = lock.try_lock().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
            assert!(dropped.has_fired());
            proxy.heal();
            proxy.cut();
            bed.until_in_line("x", 0).await;
            drop(within(SOON, "free", lock.lock()).await.unwrap());
        } else {
            let waiting = tokio::spawn(async move { lock.lock().await });
            eventually("the request passed", SOON, async || dropped.has_fired()).await;
            bed.until_in_line("x", 1).await;
            let placed = bed.line("x").await;
            proxy.cut();
            proxy.heal();
            let guard = within(SOON, "granted", waiting).await.unwrap().unwrap();
            // Its first request is the one that counts: no second key, no second place.
            let token = guard.token().get();
            assert_eq!(placed[0].1.unsigned_abs(), token);
            assert_eq!(bed.line("x").await, placed);
            guard.release().await.unwrap();
        }
        bed.until_in_line("x", 0).await;
        assert!(session.is_valid());
        session.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

/// A request is held back by the network, its ask is withdrawn over another connection, and then
/// the request arrives.
#[tokio::test]
async fn a_request_that_arrives_after_its_withdrawal_finds_the_marker() {
    let bed = Bed::new("late").await;
    let mut landed_late = 0;
    // Until a control has landed late, which is a race inside the server: most often at once.
    for round in 0..20 {
        if round >= 4 && landed_late > 0 {
            break;
        }
        let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
        let [first, _] = &proxies;
        let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
            .starting_at(0)
            .namespace(bed.namespace.clone())
            .timeout(ms(700));
        let store = connect(config).await;
        let session = open(&store, secs(30)).await;
        let lock = session.locker("x").unwrap();
        // The control: a plain put of another client, held back and given up in the same way.
        let control = Client::connect([format!("http://{}", first.address())], None).await;
        let mut control = control.unwrap().kv_client();
        control.get("x", None).await.unwrap();

        let held = first.when(
            Direction::Up,
            bed.prefix("x").into_bytes(),
            Direction::Up,
            Flow::Hold,
        );
        let refused = lock.try_lock().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused}");
        assert!(held.has_fired(), "the request met the fault");
        let key = format!("control/{}/{round}", bed.namespace);
        let mut puts = JoinSet::new();
        for number in 0..8 {
            let (mut control, key) = (control.clone(), format!("{key}/{number}"));
            puts.spawn(async move {
                let put = control.put(key, "", None);
                assert!(tokio::time::timeout(ms(700), put).await.is_err());
            });
        }
        puts.join_all().await;
        let marker = format!("{}/withdrawn/{}-", bed.root(), session.id());
        eventually("the withdrawal, over the other one", SOON, async || {
            bed.keys().await.iter().any(|key| key.starts_with(&marker))
        })
        .await;
        let passed = first.bytes(Direction::Up);
        first.heal();
        eventually("what was held arrives", SOON, async || {
            first.bytes(Direction::Up) > passed
        })
        .await;
        // Whatever is to land, lands within this: the control shows that something does.
        tokio::time::sleep(ms(100)).await;
        assert_eq!(bed.line("x").await, []);
        landed_late += bed.list(key).await.len();
        let guard = within(SOON, "free", lock.try_lock()).await;
        drop(guard);
        session.close().await.unwrap();
    }
    assert!(
        landed_late > 0,
        "no control landed: the fault proves nothing"
    );
    bed.until_empty(SOON).await;
}

/// The same with the ask that waits: it asks anew over the other connection, and is then dropped.
#[tokio::test]
async fn a_late_request_of_a_dropped_wait_leaves_nothing() {
    let bed = Bed::new("late-wait").await;
    for _ in 0..3 {
        let proxies = [(); 2].map(|()| Proxy::start(bed.address).unwrap());
        let [first, _] = &proxies;
        let config = EtcdConfig::new(proxies.iter().map(|proxy| proxy.address().to_string()))
            .starting_at(0)
            .namespace(bed.namespace.clone())
            .timeout(ms(700));
        let holder = bed.session(secs(30)).await;
        let guard = holder.locker("x").unwrap().lock().await.unwrap();
        let session = open(&connect(config).await, secs(30)).await;
        let lock = session.locker("x").unwrap();
        let held = first.when(
            Direction::Up,
            bed.prefix("x").into_bytes(),
            Direction::Up,
            Flow::Hold,
        );
        let waiting = tokio::spawn(async move { lock.lock().await.map(drop) });
        bed.until_in_line("x", 2).await;
        assert!(held.has_fired());
        waiting.abort();
        bed.until_in_line("x", 1).await;
        first.heal();
        tokio::time::sleep(ms(100)).await;
        assert_eq!(bed.line("x").await.len(), 1);
        guard.release().await.unwrap();
        session.close().await.unwrap();
        holder.close().await.unwrap();
    }
    bed.until_empty(SOON).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_dropped_asks_leave_nothing() {
    let bed = Bed::new("dropped").await;
    // A request that times out on a busy machine leaves its marker, rightly: none must here.
    let store = connect(bed.config().timeout(secs(30))).await;
    let mut sessions = Vec::new();
    for _ in 0..8 {
        sessions.push(open(&store, secs(30)).await);
    }
    let granted = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..1_000_u64 {
        let lock = sessions[number as usize % sessions.len()]
            .locker("x")
            .unwrap();
        let granted = Arc::clone(&granted);
        // From "before the first message" to "holding", spread by a fixed scramble; later waves
        // are more patient, so that some get there on a busy machine, too.
        let most = 10_000 * (1 + number / 25);
        let patience = std::time::Duration::from_micros(number.wrapping_mul(7_919) % most);
        tasks.spawn(async move {
            let locking = async {
                let guard = lock.lock().await.unwrap();
                granted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                drop(guard);
            };
            let _ = tokio::time::timeout(patience, locking).await;
        });
        if number % 50 == 49 {
            // In waves: with a thousand in one line this would measure how etcd sorts it.
            let wave = std::mem::take(&mut tasks);
            within(LATER, "a wave", wave.join_all()).await;
        }
    }
    // Promptly: the rest of the sessions' lives is no excuse.
    bed.until_empty(SOON).await;
    assert!(granted.load(Ordering::Relaxed) > 0, "nobody came so far");
    for session in &sessions {
        assert!(session.is_valid());
        let guard = session.locker("x").unwrap().try_lock().await.unwrap();
        assert_eq!(
            guard.key(),
            format!("{}{}", bed.prefix("x"), session.id()),
            "the plain key is free again"
        );
        guard.release().await.unwrap();
    }
}
