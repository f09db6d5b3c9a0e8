//! Clusters: whatever the namespace, wherever its slot is, and while it moves.

use tenure_core::{ErrorKind, Session};
use tenure_redis::RedisSession;
use tenure_testbed::RedisCluster;

use crate::common::*;

const SLOT_OF: &str = "{tenure/1/default}/last";

async fn token_of_a_cycle(session: &Session<RedisSession>) -> tenure_core::FencingToken {
    let guard = lock(session, "cycle").await;
    let token = guard.token();
    guard.release().await.unwrap();
    token
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_namespace_finds_its_node() {
    let cluster = RedisCluster::start_async().await.unwrap();
    let mut owners = std::collections::HashSet::new();
    for number in 0..8 {
        let key = format!("{{tenure/1/ns{number}}}/last");
        let slot = cluster.slot_of(&key).unwrap();
        owners.insert(cluster.owner_of(slot).unwrap());
        use_it(config(format!("{}?namespace=ns{number}", cluster.url())))
            .await
            .unwrap();
        let store = store(format!("{}?namespace=all{number}", cluster.url())).await;
        use_everything(&store).await.unwrap();
    }
    assert!(owners.len() > 1, "some are redirected: {owners:?}");
    // A part of the nodes is enough to begin with.
    let one = cluster.nodes[0].address();
    for number in 0..8 {
        use_it(config(format!(
            "redis+cluster://{one}?namespace=ns{number}"
        )))
        .await
        .unwrap();
    }
    let error = refused("one server", config(cluster.nodes[0].url())).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(
        error.chain().to_string().contains("redis+cluster"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_moves_while_locks_are_held() {
    let cluster = RedisCluster::start_async().await.unwrap();
    let session = session(cluster.url(), secs(30)).await;
    let guard = lock(&session, "x").await;
    let before = token_of_a_cycle(&session).await;
    let slot = cluster.slot_of(SLOT_OF).unwrap();
    let from = cluster.owner_of(slot).unwrap().unwrap();
    let to = (from + 1) % 3;
    cluster.begin_move(slot, to).unwrap();
    // From here to the end everything is refused, and tried again.
    let handle = session.locker("y").unwrap();
    let locking = tokio::spawn(async move { handle.lock().await });
    let refusals = || cluster.nodes[from].info("errorstat_ASK").unwrap();
    until("a refusal", || refusals().is_some()).await;
    cluster.move_keys(slot, to).unwrap();
    assert!(!locking.is_finished());
    cluster.finish_move(slot, to).unwrap();
    let other = within(LATER, "the lock", locking).await.unwrap().unwrap();
    assert!(other.token() > before);
    assert!(guard.is_valid(), "{:?}", guard.loss());
    // Exclusion moved along.
    let rival = self::session(cluster.url(), secs(30)).await;
    let tried = rival.locker("x").unwrap().try_lock().await.unwrap_err();
    assert_eq!(tried.kind(), ErrorKind::WouldBlock, "{tried}");
    within(LATER, "a release", guard.release()).await.unwrap();
    assert!(token_of_a_cycle(&session).await > other.token());
}

/// Pushes reach those who wait, too, although they sit at the old node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_told_after_a_move() {
    let cluster = RedisCluster::start_async().await.unwrap();
    let holder = session(cluster.url(), secs(30)).await;
    let guard = lock(&holder, "x").await;
    let waiter = session(cluster.url(), secs(30)).await;
    let waiting = waiter.locker("x").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    let slot = cluster.slot_of(SLOT_OF).unwrap();
    let from = cluster.owner_of(slot).unwrap().unwrap();
    until("a place in line", || {
        let line = "{tenure/1/default}/lock/x";
        cluster.nodes[from].command(&["ZCARD", line]).unwrap() == "2"
    })
    .await;
    let to = (from + 1) % 3;
    cluster.begin_move(slot, to).unwrap();
    cluster.move_keys(slot, to).unwrap();
    cluster.finish_move(slot, to).unwrap();
    within(LATER, "a release", guard.release()).await.unwrap();
    let _granted = within(SOON, "the lock", waiting).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_takes_over_for_a_primary_that_died() {
    let cluster = RedisCluster::builder().with_replicas();
    let mut cluster = cluster.start_async().await.unwrap();
    let slot = cluster.slot_of(SLOT_OF).unwrap();
    let from = cluster.owner_of(slot).unwrap().unwrap();
    // Known from the URL is the one alone that dies.
    let url = format!("redis+cluster://{}", cluster.nodes[from].address());
    let session = session(url, secs(60)).await;
    let guard = lock(&session, "x").await;
    let before = token_of_a_cycle(&session).await;
    // Its replica has it all.
    let replica = &cluster.nodes[from + 3];
    until("the replica", || {
        let offset = replica.info("slave_repl_offset").unwrap();
        let written = cluster.nodes[from].info("master_repl_offset").unwrap();
        offset == written
    })
    .await;
    cluster.nodes[from].kill().unwrap();
    cluster
        .wait_for_owner_change_async(slot, from, LATER)
        .await
        .unwrap();
    assert!(token_of_a_cycle(&session).await > before);
    assert!(guard.is_valid(), "{:?}", guard.loss());
    within(LATER, "a release", guard.release()).await.unwrap();
}
