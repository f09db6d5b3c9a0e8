//! Waiting: near the head and far from it, with the dead, the withdrawn and the cut off in between.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use tenure_core::{ErrorKind, FencingToken, LossReason, Result, Session};
use tenure_etcd::EtcdSession;
use tenure_testbed::{Direction, EtcdServer, Flow, Proxy};
use tokio::task::{JoinHandle, JoinSet};

use crate::common::*;

/// Who was granted, in which order, under which token.
type Order = Arc<Mutex<Vec<(usize, FencingToken)>>>;

/// A waiter that notes its turn and lets go.
fn wait(
    session: Session<EtcdSession>,
    name: &'static str,
    place: usize,
    order: &Order,
) -> JoinHandle<Result<()>> {
    let order = Arc::clone(order);
    tokio::spawn(async move {
        let guard = session.locker(name)?.lock().await?;
        order.lock().unwrap().push((place, guard.token()));
        guard.release().await
    })
}

fn places(order: &Order) -> Vec<usize> {
    let order = order.lock().unwrap();
    assert!(order.is_sorted_by(|a, b| a.1 < b.1), "tokens rise");
    order.iter().map(|(place, _)| *place).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_of_separate_clients_takes_turns() {
    let bed = Bed::new("crowd").await;
    let inside = Arc::new(AtomicBool::new(false));
    let last = Arc::new(Mutex::new(None));
    let mut clients = JoinSet::new();
    for _ in 0..60 {
        let session = bed.session(secs(30)).await;
        let (inside, last) = (Arc::clone(&inside), Arc::clone(&last));
        clients.spawn(async move {
            let lock = session.locker("x").unwrap();
            for _ in 0..8 {
                let guard = lock.lock().await.unwrap();
                assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
                let before = last.lock().unwrap().replace(guard.token());
                assert!(before < Some(guard.token()), "tokens rise");
                tokio::task::yield_now().await;
                inside.store(false, Ordering::SeqCst);
                guard.release().await.unwrap();
            }
        });
    }
    // 480 turns: a second or two if nothing stalls; a stall costs ten seconds.
    within(secs(25), "everybody's turns", clients.join_all()).await;
    bed.until_in_line("x", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn near_and_far_keep_one_order() {
    let bed = Bed::new("mixed").await;
    let store = bed.store().await;
    let holder = bed.session(secs(40)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let order = Order::default();
    let mut waiting = Vec::new();
    // Every third belongs to one client (near: its own do not count), the others stand alone.
    for place in 0..66 {
        let session = if place % 3 == 0 {
            open(&store, secs(40)).await
        } else {
            bed.session(secs(40)).await
        };
        waiting.push(wait(session, "x", place, &order));
        bed.until_in_line("x", place + 2).await;
    }
    guard.release().await.unwrap();
    for waiting in waiting {
        within(LATER, "a turn", waiting).await.unwrap().unwrap();
    }
    assert_eq!(places(&order), (0..66).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dead_and_the_withdrawn_are_passed_over() {
    let bed = Bed::new("gaps").await;
    let holder = bed.session(secs(40)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let order = Order::default();
    let mut waiting = Vec::new();
    let mut sessions = Vec::new();
    for place in 0..50 {
        let session = bed.session(secs(40)).await;
        sessions.push(session.clone());
        waiting.push(wait(session, "x", place, &order));
        bed.until_in_line("x", place + 2).await;
    }
    let dead = [0, 1, 17, 18, 30, 49];
    let withdrawn = [2, 19, 25, 26, 48];
    for place in dead {
        bed.revoke(&sessions[place]).await;
    }
    for place in withdrawn {
        waiting[place].abort();
    }
    // While everybody lives: the withdrawn leave promptly, not at their turn.
    bed.until_in_line("x", 51 - dead.len() - withdrawn.len())
        .await;
    guard.release().await.unwrap();
    for (place, waiting) in waiting.into_iter().enumerate() {
        let ended = within(LATER, "an end", waiting).await;
        match ended {
            Err(aborted) => assert!(aborted.is_cancelled() && withdrawn.contains(&place)),
            Ok(Err(error)) => {
                assert!(dead.contains(&place), "{place}: {error}");
                assert_eq!(error.kind(), ErrorKind::Lost);
            }
            Ok(Ok(())) => {}
        }
    }
    let gone: HashSet<_> = dead.into_iter().chain(withdrawn).collect();
    let expected: Vec<_> = (0..50).filter(|place| !gone.contains(place)).collect();
    assert_eq!(places(&order), expected);
}

#[tokio::test]
async fn a_waiter_whose_key_was_deleted_is_told() {
    let bed = Bed::new("deleted").await;
    let holder = bed.session(secs(60)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let order = Order::default();
    // More than are near: the last one watches its predecessor alone.
    let mut waiting = Vec::new();
    for place in 0..20 {
        waiting.push(wait(bed.session(secs(60)).await, "x", place, &order));
        bed.until_in_line("x", place + 2).await;
    }
    let line = bed.line("x").await;
    let far = waiting.pop().unwrap();
    bed.delete(&line[20].0).await;
    bed.delete(&line[1].0).await;
    let near = within(SOON, "near", waiting.remove(0)).await.unwrap();
    assert_eq!(near.unwrap_err().loss(), Some(LossReason::Revoked));
    // The far one finds out by its slow check.
    let far = within(secs(25), "far", far).await.unwrap();
    assert_eq!(far.unwrap_err().loss(), Some(LossReason::Revoked));
    guard.release().await.unwrap();
    for waiting in waiting {
        within(SOON, "a turn", waiting).await.unwrap().unwrap();
    }
}

/// `count` wait through a proxy, as one client or as separate ones; `fault` strikes; the holder,
/// who is not behind the proxy, lets go; everybody gets a turn in order.
async fn through_a_fault(
    name: &'static str,
    count: usize,
    one_client: bool,
    fault: impl AsyncFnOnce(&Bed, &Proxy),
) {
    let bed = Bed::new(name).await;
    let proxy = Proxy::start(bed.address).unwrap();
    let holder = bed.session(secs(30)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let store = connect(bed.through(proxy.address())).await;
    let order = Order::default();
    let mut waiting = Vec::new();
    for place in 0..count {
        let session = if one_client {
            open(&store, secs(30)).await
        } else {
            open(&connect(bed.through(proxy.address())).await, secs(30)).await
        };
        waiting.push(wait(session, "x", place, &order));
        bed.until_in_line("x", place + 2).await;
    }
    fault(&bed, &proxy).await;
    guard.release().await.unwrap();
    proxy.heal();
    for waiting in waiting {
        // Less than a slow check takes for each: they may need one at the very most.
        within(secs(25), "a turn", waiting).await.unwrap().unwrap();
    }
    assert_eq!(places(&order), (0..count).collect::<Vec<_>>());
    bed.until_in_line("x", 0).await;
}

#[tokio::test]
async fn a_release_while_all_connections_are_cut() {
    through_a_fault("cut", 10, true, async |_, proxy| proxy.cut()).await;
}

#[tokio::test]
async fn a_release_while_the_server_refuses() {
    for one_client in [true, false] {
        through_a_fault("refused", 10, one_client, async |_, proxy| {
            proxy.refuse(true);
            proxy.cut();
            // Long enough for every waiter to meet the refusal.
            tokio::time::sleep(ms(300)).await;
        })
        .await;
    }
}

#[tokio::test]
async fn a_release_while_far_waiters_are_cut_off() {
    through_a_fault("far-cut", 24, false, async |_, proxy| {
        proxy.refuse(true);
        proxy.cut();
        tokio::time::sleep(ms(300)).await;
    })
    .await;
}

#[tokio::test]
async fn a_compaction_while_the_watch_is_down() {
    for one_client in [true, false] {
        through_a_fault("compaction", 10, one_client, async |bed, proxy| {
            proxy.refuse(true);
            proxy.cut();
            let mut revision = 0;
            for _ in 0..20 {
                let put = bed.raw.kv_client().put("noise", "", None).await.unwrap();
                revision = put.header().unwrap().revision();
            }
            bed.raw.kv_client().compact(revision, None).await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn a_compaction_while_all_is_well() {
    through_a_fault("compacted", 10, true, async |bed, _| {
        let put = bed.raw.kv_client().put("noise", "", None).await.unwrap();
        let revision = put.header().unwrap().revision();
        bed.raw.kv_client().compact(revision, None).await.unwrap();
    })
    .await;
}

/// A waiter that must ask anew finds its own place, however many stand behind it by then.
#[tokio::test]
async fn a_crowd_behind_does_not_hide_the_place() {
    let bed = Bed::new("behind").await;
    let proxy = Proxy::start(bed.address).unwrap();
    let holder = bed.session(secs(30)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let config = bed.through(proxy.address()).timeout(secs(20));
    let session = open(&connect(config).await, secs(40)).await;
    // It is placed, but the answer is lost.
    let lost = proxy.when(
        Direction::Up,
        bed.prefix("x").into_bytes(),
        Direction::Down,
        Flow::Drop,
    );
    let order = Order::default();
    let waiting = wait(session, "x", 0, &order);
    bed.until_in_line("x", 2).await;
    assert!(lost.has_fired());
    for number in 0..200 {
        let key = format!("{}stranger-{number}", bed.prefix("x"));
        bed.raw.kv_client().put(key, "", None).await.unwrap();
    }
    // It asks anew, and its own place and the holder's are beyond what it is told.
    proxy.cut();
    proxy.heal();
    tokio::time::sleep(ms(500)).await;
    assert!(!waiting.is_finished());
    guard.release().await.unwrap();
    within(SOON, "its turn", waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_killed_and_restarted_keeps_line_and_order() {
    let mut server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "restart").await;
    let holder = bed.session(secs(20)).await;
    let guard = holder.locker("x").unwrap().lock().await.unwrap();
    let store = bed.store().await;
    let order = Order::default();
    let mut waiting = Vec::new();
    for place in 0..24 {
        let session = if place < 4 {
            open(&store, secs(20)).await
        } else {
            bed.session(secs(20)).await
        };
        waiting.push(wait(session, "x", place, &order));
        bed.until_in_line("x", place + 2).await;
    }
    server.kill().unwrap();
    server.restart_async().await.unwrap();
    assert!(guard.is_valid());
    let token = guard.token();
    let mut released = guard.release().await;
    if let Err(error) = &mut released {
        // The first request may meet the dead connection; the release goes on in the background.
        assert!(error.is_retryable(), "{error}");
    }
    for waiting in waiting {
        within(secs(25), "a turn", waiting).await.unwrap().unwrap();
    }
    assert_eq!(places(&order), (0..24).collect::<Vec<_>>());
    assert!(order.lock().unwrap()[0].1 > token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_less_than_the_ttl() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "pause").await;
    let (a, b) = (bed.session(secs(10)).await, bed.session(secs(10)).await);
    let guard = a.locker("x").unwrap().lock().await.unwrap();
    let order = Order::default();
    let waiting = wait(b.clone(), "x", 0, &order);
    bed.until_in_line("x", 2).await;
    server.pause().unwrap();
    tokio::time::sleep(secs(5)).await;
    assert!(guard.is_valid() && b.is_valid());
    server.resume().unwrap();
    eventually("renewed", SOON, async || a.remaining() > secs(8)).await;
    let released = guard.release().await;
    assert!(released.is_ok() || released.unwrap_err().is_retryable());
    within(secs(20), "the waiter's turn", waiting)
        .await
        .unwrap()
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stands_still_for_longer_than_the_ttl() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "stopped").await;
    let (a, b) = (bed.session(secs(3)).await, bed.session(secs(3)).await);
    let guard = a.locker("x").unwrap().lock().await.unwrap();
    let order = Order::default();
    let waiting = wait(b.clone(), "x", 0, &order);
    bed.until_in_line("x", 2).await;
    server.pause().unwrap();
    let left = guard.remaining();
    let stopped = std::time::Instant::now();
    assert_eq!(guard.lost().await, LossReason::Unreachable);
    assert!(stopped.elapsed() < left + ms(500), "by the deadline");
    let refused = within(secs(4), "an error, no hang", waiting).await.unwrap();
    assert_eq!(refused.unwrap_err().loss(), Some(LossReason::Unreachable));
    assert!(guard.release().await.is_err());
    server.resume().unwrap();
    // The server goes on by its own clock and frees all that.
    bed.until_in_line("x", 0).await;
    let session = bed.session(secs(5)).await;
    drop(session.locker("x").unwrap().lock().await.unwrap());
}
