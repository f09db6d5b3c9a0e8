//! Acts of operators, and the keys that they see.

use tenure_core::url::StoreUrl;
use tenure_core::{ErrorKind, FencingToken, LossReason, Op};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{EtcdOptions, EtcdServer, wait_until};

use crate::{connect, open, start};

fn keys(server: &EtcdServer, prefix: &str) -> Vec<String> {
    server.admin().keys(&format!("tenure/2/ns/{prefix}")).unwrap()
}

/// etcd keeps a deleted key until it compacts, and each look at a lock visits it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_a_lock_are_used_again() {
    let server = start(EtcdOptions::default());
    let store = connect(&format!("{}/ns", server.url())).await.unwrap();
    let session = open(&store).await;
    let mut last = FencingToken::new(0);
    for _ in 0..3 {
        let guard = session.lock("a").await.unwrap();
        assert_eq!(guard.key(), format!("tenure/2/ns/lock/a/{}-0", session.id()));
        assert!(guard.token() > last);
        last = guard.token();
        let waiter = session.clone();
        let waiting = tokio::spawn(async move { waiter.lock("a").await });
        wait_until("a second key", || {
            Ok((keys(&server, "lock/a/").len() == 2).then_some(()))
        })
        .unwrap();
        guard.release().await.unwrap();
        let second = waiting.await.unwrap().unwrap();
        assert!(second.key().ends_with("-1"), "{}", second.key());
        second.release().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raised_floor_lifts_every_later_token_and_keeps_those_that_are_held() {
    let server = start(EtcdOptions::default());
    let store = connect(&format!("{}/ns", server.url())).await.unwrap();
    let (first, second) = (open(&store).await, open(&store).await);
    let guard = first.lock("a").await.unwrap();
    let waiter = second.clone();
    let waiting = tokio::spawn(async move { waiter.lock("a").await });
    wait_until("a waiter", || Ok((keys(&server, "lock/a/").len() == 2).then_some(()))).unwrap();
    let mut floor = FencingToken::new(1_000_000);
    store.raise_token_floor(floor).await.unwrap();
    // A lower one changes nothing.
    store.raise_token_floor(FencingToken::new(7)).await.unwrap();
    assert!(guard.is_valid() && guard.token() < floor);
    guard.release().await.unwrap();
    // The waiter had come before, and its observers see the token that it was granted.
    let later = waiting.await.unwrap().unwrap();
    assert!(
        later.token() >= floor && later.token().get() < floor.get() + 1_000,
        "{}",
        later.token()
    );
    later.release().await.unwrap();
    for _ in 0..2 {
        floor = FencingToken::new(2 * floor.get());
        store.raise_token_floor(floor).await.unwrap();
        let guard = first.lock("a").await.unwrap();
        assert!(
            guard.token() >= floor && guard.token().get() < floor.get() + 1_000,
            "{}",
            guard.token()
        );
        guard.release().await.unwrap();
    }
    let error = store.raise_token_floor(FencingToken::MAX).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn removed_namespace_ends_its_sessions() {
    let server = start(EtcdOptions::default());
    let store = connect(&format!("{}/ns", server.url())).await.unwrap();
    let session = open(&store).await;
    let guard = session.lock("a").await.unwrap();
    server.admin().run(&["del", "--prefix", "tenure/2/ns/"]).unwrap();
    let error = session.lock("b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{}", error.chain());
    let error = guard.release().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{}", error.chain());
    assert_eq!(keys(&server, ""), Vec::<String>::new());
    assert_eq!(session.lost().await, LossReason::Revoked);
}

#[tokio::test]
async fn removed_namespace_leaves_nothing_behind_and_others_alone() {
    let server = start(EtcdOptions::default());
    let url = format!("{}/ns", server.url());
    let (store, other) = (
        connect(&url).await.unwrap(),
        connect(&format!("{url}-2")).await.unwrap(),
    );
    let (session, elsewhere) = (open(&store).await, open(&other).await);
    let _kept = elsewhere.lock("a").await.unwrap();
    // More than go in one request.
    let stm = session.stm();
    for batch in 0..6 {
        let puts = (0..100).map(|number| Op::put(format!("{batch}-{number}"), "x"));
        stm.txn().then(puts).commit().await.unwrap();
    }
    let before = server.admin().keys("tenure/2/ns-2/").unwrap();
    let config = EtcdConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    tenure_etcd::remove_namespace(config).await.unwrap();
    assert_eq!(keys(&server, ""), Vec::<String>::new());
    assert_eq!(server.admin().keys("tenure/2/ns-2/").unwrap(), before);
    let error = session.lock("b").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{}", error.chain());
    elsewhere.lock("b").await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn full_etcd_accepts_releases_and_refuses_locks() {
    let server = start(EtcdOptions::default().argument("--quota-backend-bytes=8388608"));
    let store = connect(&format!("{}/ns", server.url())).await.unwrap();
    let session = open(&store).await;
    let guards = [session.lock("a").await.unwrap(), session.lock("b").await.unwrap()];
    let large = "x".repeat(100 << 10);
    while server.admin().put("filler", &large).is_ok() {}
    let error = session.lock("c").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(error.chain().to_string().contains("NOSPACE"), "{}", error.chain());
    for guard in guards {
        guard.release().await.unwrap();
    }
    assert_eq!(keys(&server, "lock/"), Vec::<String>::new());
    session.close().await.unwrap();
}

/// The waiters have come before the raise: their tokens are above it, in the order of their places, in the store too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_keep_their_places_when_the_floor_is_raised() {
    let server = start(EtcdOptions::default());
    let store = connect(&format!("{}/ns", server.url())).await.unwrap();
    let (first, observer) = (open(&store).await, open(&store).await.election("a"));
    let lead = first.election("a").campaign("first").await.unwrap();
    let mut waiting = Vec::new();
    for number in 0..3 {
        let session = open(&store).await;
        waiting.push(tokio::spawn(
            async move { session.election("a").campaign("next").await },
        ));
        wait_until("a candidate", || {
            Ok((keys(&server, "election/a/").len() == 2 + number).then_some(()))
        })
        .unwrap();
    }
    let floor = FencingToken::new(1_000_000);
    store.raise_token_floor(floor).await.unwrap();
    let mut last = lead.token();
    assert_eq!(observer.leader().await.unwrap().unwrap().token, last);
    lead.resign().await.unwrap();
    for next in waiting {
        let lead = next.await.unwrap().unwrap();
        assert!(
            lead.token() >= floor && lead.token() > last,
            "{} after {last}",
            lead.token()
        );
        last = lead.token();
        lead.proclaim("news").await.unwrap();
        let seen = observer.leader().await.unwrap().unwrap();
        assert_eq!((seen.token, &*seen.value), (last, &b"news"[..]));
        lead.resign().await.unwrap();
    }
    // A later candidate is above them all.
    assert!(first.election("a").campaign("last").await.unwrap().token() > last);
}
