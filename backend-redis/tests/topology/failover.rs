//! Replicas that take over.

use tenure_core::{ErrorKind, FenceGate, MinorityLoss};
use tenure_testbed::{RedisReplica, RedisSentinels, RedisServer};

use crate::common::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_was_replicated_outlives_its_primary() {
    let mut pair = RedisReplica::start_async().await.unwrap();
    let sentinels = RedisSentinels::start_async(&pair).await.unwrap();
    let store = store(sentinels.url()).await;
    let claims = store.guarantees().await.unwrap();
    assert_eq!(claims.minority_loss.value, MinorityLoss::Survives);
    let holder = open(&store, secs(30)).await;
    let guard = lock(&holder, "x").await;
    let waiter = session(sentinels.url(), secs(30)).await;
    let waiting = waiter.locker("x").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    until("a place in line", || {
        let line = "{tenure/1/default}/lock/x";
        pair.primary.command(&["ZCARD", line]).unwrap() == "2"
    })
    .await;
    pair.wait_in_sync_async().await.unwrap();
    let before = pair.primary.address();
    pair.primary.kill().unwrap();
    sentinels
        .wait_for_primary_change_async(before, LATER)
        .await
        .unwrap();
    assert!(guard.is_valid(), "{:?}", guard.loss());
    let token = guard.token();
    within(LATER, "a release", guard.release()).await.unwrap();
    let granted = within(LATER, "the waiter", waiting).await.unwrap().unwrap();
    assert!(granted.token() > token);
}

/// An operator's failover: the old primary lives on as a replica.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_primary_that_is_demoted_is_left() {
    let pair = RedisReplica::start_async().await.unwrap();
    let sentinels = RedisSentinels::start_async(&pair).await.unwrap();
    let session = session(sentinels.url(), secs(30)).await;
    let guard = lock(&session, "x").await;
    pair.wait_in_sync_async().await.unwrap();
    let before = pair.primary.address();
    sentinels.sentinels[0]
        .command(&["SENTINEL", "FAILOVER", sentinels.service()])
        .unwrap();
    sentinels
        .wait_for_primary_change_async(before, LATER)
        .await
        .unwrap();
    until("the demotion", || {
        // The sentinels hang up on everybody.
        pair.primary.info("role").ok().flatten().as_deref() == Some("slave")
    })
    .await;
    within(LATER, "a release", guard.release()).await.unwrap();
    lock(&session, "y").await.release().await.unwrap();
}

/// Nothing happened, so it is tried again, and nobody hears of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_by_a_replica_is_tried_again() {
    let server = RedisServer::start_async().await.unwrap();
    let session = session(server.url(), secs(30)).await;
    server.command(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    let refusals = || server.info("errorstat_READONLY").unwrap();
    let handle = session.locker("x").unwrap();
    let locking = tokio::spawn(async move { handle.lock().await });
    until("a refusal", || refusals().is_some()).await;
    let error = refused("a replica", config(server.url())).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable(), "{error}");
    assert!(
        error.chain().to_string().contains("is a replica"),
        "{error}"
    );
    server.command(&["REPLICAOF", "NO", "ONE"]).unwrap();
    let _granted = within(SOON, "the lock", locking).await.unwrap().unwrap();
}

/// The counterexample to mutual exclusion, and what tokens are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_lagged_grants_twice_but_tokens_rise() {
    let pair = RedisReplica::start_async().await.unwrap();
    let first = session(pair.primary.url(), secs(60)).await;
    pair.wait_in_sync_async().await.unwrap();
    pair.cut_replication();
    let guard = lock(&first, "x").await;
    pair.promote().unwrap();
    let second = session(pair.replica.url(), secs(60)).await;
    let another = lock(&second, "x").await;
    assert!(guard.is_valid() && another.is_valid(), "held twice");
    assert!(another.token() > guard.token());
    let gate = FenceGate::new(());
    gate.admit(another.token()).unwrap();
    assert!(gate.admit(guard.token()).is_err(), "the resource is safe");
}

/// With acknowledgement, what a replica has not received is not granted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_counts_that_too_few_have_acknowledged() {
    let pair = RedisReplica::start_async().await.unwrap();
    // Of the time for a request, half is for the replica: enough on a busy machine.
    let url = format!("{}?wait_replicas=1&timeout=4s", pair.primary.url());
    let first = session(&url, secs(60)).await;
    let guard = lock(&first, "x").await;
    // The replica has it already.
    let line = "{tenure/1/default}/lock/x";
    assert_eq!(pair.replica.command(&["ZCARD", line]).unwrap(), "1");
    // A grant that comes as a push counts only then, too.
    let second = session(&url, secs(60)).await;
    let waiting = second.locker("x").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    until("a place in line", || {
        pair.primary.command(&["ZCARD", line]).unwrap() == "2"
    })
    .await;
    pair.wait_in_sync_async().await.unwrap();
    pair.cut_replication();
    within(SOON, "a release", guard.release()).await.unwrap();
    let handle = first.locker("y").unwrap();
    let refused = handle.lock_timeout(secs(2)).await.unwrap_err();
    assert!(
        matches!(refused.kind(), ErrorKind::TimedOut | ErrorKind::Unavailable),
        "{refused}"
    );
    assert!(!waiting.is_finished(), "granted without the replica");
    // And what was not granted is given back.
    until("the place is gone", || {
        let line = "{tenure/1/default}/lock/y";
        pair.primary.command(&["ZCARD", line]).unwrap() == "0"
    })
    .await;
    pair.heal_replication();
    let _granted = within(LATER, "the lock", waiting).await.unwrap().unwrap();
}

/// A primary whose memory is full renews, and has it acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_memory_is_no_reason_to_acknowledge_nothing() {
    let pair = RedisReplica::start_async().await.unwrap();
    let url = format!("{}?wait_replicas=1&timeout=4s", pair.primary.url());
    let session = session(&url, secs(3)).await;
    let guard = lock(&session, "x").await;
    let full = ["CONFIG", "SET", "maxmemory", "1"];
    pair.primary.command(&full).unwrap();
    tokio::time::sleep(secs(5)).await;
    assert!(guard.is_valid(), "{:?}", guard.loss_error());
    within(SOON, "a release", guard.release()).await.unwrap();
}

/// More than there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_replicas_open_no_session() {
    let server = RedisServer::start_async().await.unwrap();
    let url = format!("{}?wait_replicas=1&timeout=2s", server.url());
    let error = refused("no replica", config(url)).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.chain().to_string().contains("wait_replicas"),
        "{error}"
    );
}
