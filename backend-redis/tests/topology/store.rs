//! What a server keeps, what it forgets, and what it says about that.

use tenure_core::{Durability, EarlyRelease, ErrorKind, Exclusion, FenceGate, MinorityLoss};
use tenure_testbed::RedisServer;
use tenure_testbed::redis::AppendFsync;

use crate::common::*;

#[tokio::test]
async fn a_server_that_may_evict_is_refused() {
    let server = RedisServer::builder().max_memory("100mb", "allkeys-lru");
    let server = server.start_async().await.unwrap();
    let error = refused("eviction", config(server.url())).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.chain().to_string().contains("noeviction"), "{error}");
    let store = store(format!("{}?allow_eviction=true", server.url())).await;
    let reason = store.guarantees().await.unwrap().early_release.reason;
    assert!(reason.contains("allkeys-lru"), "{reason}");
}

#[tokio::test]
async fn guarantees_are_those_of_the_live_server() {
    let server = RedisServer::start_async().await.unwrap();
    let store = store(server.url()).await;
    let claims = store.guarantees().await.unwrap();
    assert_eq!(
        claims.deployment,
        format!("Redis {}, one server, appendfsync always", server.version())
    );
    assert_eq!(claims.durability.value, Durability::Durable);
    assert_eq!(
        claims.mutual_exclusion.value,
        Exclusion::UnlessReleasedEarly
    );
    assert_eq!(claims.early_release.value, EarlyRelease::OnEvents);
    assert_eq!(claims.minority_loss.value, MinorityLoss::SingleMember);
    // Asked anew each time.
    server
        .command(&["CONFIG", "SET", "appendfsync", "everysec"])
        .unwrap();
    let claims = store.guarantees().await.unwrap();
    assert_eq!(claims.durability.value, Durability::Volatile);
    server
        .command(&["CONFIG", "SET", "appendonly", "no"])
        .unwrap();
    let claims = store.guarantees().await.unwrap();
    assert!(
        claims.deployment.ends_with("no append-only file"),
        "{}",
        claims.deployment
    );
}

#[tokio::test]
async fn what_may_not_be_asked_is_taken_for_the_weakest() {
    for (denied, word) in [("info", "INFO"), ("config", "appendfsync")] {
        let server = RedisServer::builder()
            .user("default", "off")
            .user("app", &format!("on >secret ~* &* +@all -{denied}"));
        let server = server.start_async().await.unwrap();
        let store = store(format!("redis://app:secret@{}", server.address())).await;
        let claims = store.guarantees().await.unwrap();
        assert_eq!(claims.durability.value, Durability::Volatile, "{denied}");
        let reason = claims.early_release.reason;
        assert!(reason.contains(word), "{denied}: {reason}");
    }
}

/// The counterexample to mutual exclusion, and what tokens are for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_forgets_grants_twice_but_tokens_rise() {
    let server = RedisServer::builder().no_persistence();
    let mut server = server.start_async().await.unwrap();
    let first = session(server.url(), secs(60)).await;
    let guard = lock(&first, "x").await;
    server.kill().unwrap();
    server.restart_async().await.unwrap();
    let second = session(server.url(), secs(60)).await;
    let another = lock(&second, "x").await;
    assert!(guard.is_valid() && another.is_valid(), "held twice");
    assert!(another.token() > guard.token());
    let gate = FenceGate::new(());
    gate.admit(another.token()).unwrap();
    assert!(gate.admit(guard.token()).is_err(), "the resource is safe");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_flushes_keeps_locks_through_a_crash() {
    let server = RedisServer::builder().append_only(AppendFsync::Always);
    let mut server = server.start_async().await.unwrap();
    let first = session(server.url(), secs(60)).await;
    let guard = lock(&first, "x").await;
    let second = session(server.url(), secs(60)).await;
    let waiting = second.locker("x").unwrap();
    let waiting = tokio::spawn(async move { waiting.lock().await });
    server.kill().unwrap();
    server.restart_async().await.unwrap();
    let third = session(server.url(), secs(60)).await;
    let tried = third.locker("x").unwrap().try_lock().await.unwrap_err();
    assert_eq!(tried.kind(), ErrorKind::WouldBlock, "{tried}");
    let token = guard.token();
    guard.release().await.unwrap();
    let granted = within(SOON, "the waiter", waiting).await.unwrap().unwrap();
    assert!(granted.token() > token);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_forward_grants_twice_but_tokens_rise() {
    let server = RedisServer::builder().movable_clock();
    let server = server.start_async().await.unwrap();
    let first = session(server.url(), secs(60)).await;
    let guard = lock(&first, "x").await;
    let second = session(server.url(), secs(60)).await;
    let handle = second.locker("x").unwrap();
    let tried = handle.try_lock().await.unwrap_err();
    assert_eq!(tried.kind(), ErrorKind::WouldBlock, "{tried}");
    server.clock_forward(secs(120)).unwrap();
    let third = session(server.url(), secs(60)).await;
    let another = lock(&third, "x").await;
    assert!(guard.is_valid() && another.is_valid(), "held twice");
    assert!(another.token() > guard.token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_back_lets_tokens_rise() {
    let server = RedisServer::builder().movable_clock();
    let server = server.start_async().await.unwrap();
    let session = session(server.url(), secs(60)).await;
    let mut last = None;
    for _ in 0..3 {
        let guard = lock(&session, "x").await;
        assert!(Some(guard.token()) > last);
        last = Some(guard.token());
        guard.release().await.unwrap();
        server.clock_back(secs(420)).unwrap();
    }
}
