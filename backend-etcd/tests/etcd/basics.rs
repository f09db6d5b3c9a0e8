//! Locks on a healthy etcd.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use etcd_client::GetOptions;
use tenure_core::{ErrorKind, Session};
use tenure_etcd::EtcdSession;
use tokio::task::JoinSet;

use crate::common::*;

#[tokio::test]
async fn lock_release_try_and_timeout() {
    let bed = Bed::new("basics").await;
    let (a, b) = (bed.session(secs(10)).await, bed.session(secs(10)).await);
    let guard = a.locker("orders").unwrap().lock().await.unwrap();
    assert!(guard.is_valid());

    let other = b.locker("orders").unwrap();
    let start = Instant::now();
    assert_eq!(
        other.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
    assert!(start.elapsed() < secs(2));
    bed.until_in_line("orders", 1).await; // a try leaves nothing

    let waited = other.lock_timeout(ms(100)).await.unwrap_err();
    assert_eq!(waited.kind(), ErrorKind::TimedOut);
    bed.until_in_line("orders", 1).await; // nor does a wait that ended

    guard.release().await.unwrap();
    let guard = other.try_lock().await.unwrap();
    drop(guard);
    let guard = within(SOON, "a dropped guard is released", other.lock()).await;
    guard.unwrap().release().await.unwrap();

    a.close().await.unwrap();
    b.close().await.unwrap();
    bed.until_empty(SOON).await;
}

/// Lets `sessions` queue up one after the other behind a holder; they must be granted in that order.
async fn fifo(bed: &Bed, holder: Session<EtcdSession>, sessions: Vec<Session<EtcdSession>>) {
    let guard = holder.locker("fifo").unwrap().lock().await.unwrap();
    let order = Arc::new(Mutex::new(vec![(usize::MAX, guard.token())]));
    let mut waiters = JoinSet::new();
    let count = sessions.len();
    for (place, session) in sessions.into_iter().enumerate() {
        let order = Arc::clone(&order);
        waiters.spawn(async move {
            let guard = session.locker("fifo").unwrap().lock().await.unwrap();
            order.lock().unwrap().push((place, guard.token()));
            guard.release().await.unwrap();
            session
        });
        bed.until_in_line("fifo", place + 2).await;
    }
    guard.release().await.unwrap();
    within(LATER, "everybody's turn", waiters.join_all()).await;
    let order = order.lock().unwrap().clone();
    let places: Vec<_> = order[1..].iter().map(|(place, _)| *place).collect();
    assert_eq!(places, (0..count).collect::<Vec<_>>());
    assert!(order.is_sorted_by(|a, b| a.1 < b.1), "tokens rise");
}

#[tokio::test]
async fn fifo_among_the_sessions_of_one_client() {
    let bed = Bed::new("fifo-one").await;
    let store = bed.store().await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(open(&store, secs(20)).await);
    }
    fifo(&bed, open(&store, secs(20)).await, sessions).await;
}

#[tokio::test]
async fn fifo_among_separate_clients() {
    let bed = Bed::new("fifo-many").await;
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(bed.session(secs(20)).await);
    }
    fifo(&bed, bed.session(secs(20)).await, sessions).await;
}

#[tokio::test]
async fn a_second_ask_of_one_session_waits_under_a_key_of_its_own() {
    let bed = Bed::new("twice").await;
    let session = bed.session(secs(10)).await;
    let lock = session.locker("x").unwrap();
    let first = lock.lock().await.unwrap();
    let plain = format!("{}{}", bed.prefix("x"), session.id());
    assert_eq!(first.key(), plain);
    assert_eq!(
        lock.try_lock().await.unwrap_err().kind(),
        ErrorKind::WouldBlock
    );

    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    bed.until_in_line("x", 2).await;
    assert!(!waiting.is_finished());
    let token = first.token();
    first.release().await.unwrap();
    let second = within(SOON, "the second ask", waiting).await;
    let second = second.unwrap().unwrap();
    assert!(second.key().starts_with(&format!("{plain}-")));
    assert!(second.token() > token);

    // While the suffixed one holds, the plain key is free for the next ask again.
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.lock().await }
    });
    bed.until_in_line("x", 2).await;
    second.release().await.unwrap();
    let third = within(SOON, "the third ask", waiting).await;
    let third = third.unwrap().unwrap();
    assert_eq!(third.key(), plain);
    third.release().await.unwrap();
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn the_token_is_the_create_revision_of_a_leased_key() {
    let bed = Bed::new("token").await;
    let session = bed.session(secs(10)).await;
    let lock = session.locker("x").unwrap();
    let mut last = None;
    for round in 0..5 {
        let guard = if round % 2 == 0 {
            lock.lock().await.unwrap()
        } else {
            lock.try_lock().await.unwrap()
        };
        let found = bed.raw.kv_client().get(guard.key(), None).await.unwrap();
        let kv = &found.kvs()[0];
        assert_eq!(kv.create_revision().unsigned_abs(), guard.token().get());
        assert_eq!(kv.lease(), lease(&session));
        assert!(Some(guard.token()) > last);
        last = Some(guard.token());
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn hostile_names_never_meet() {
    let bed = Bed::new("names").await;
    let session = bed.session(secs(20)).await;
    let long = "n".repeat(512);
    let names = [
        "a",
        "a/b",
        "a/",
        "/a",
        "/",
        "//",
        "A",
        "a%2Fb",
        "a%",
        "%",
        "..",
        "../a",
        "a/..",
        " ",
        "a ",
        "\n",
        "\u{1}",
        "ключ",
        "🔒",
        "\u{202e}x",
        "e\u{301}",
        "é",
        "a-1",
        "a*",
        "'; drop",
        "layout",
        "withdrawn",
        "detached",
        long.as_str(),
    ];
    let mut guards = Vec::new();
    for name in names {
        let guard = session.locker(name).unwrap().try_lock().await;
        guards.push(guard.unwrap_or_else(|e| panic!("{name:?}: {e}")));
    }
    let keys = bed.keys().await;
    assert_eq!(keys.len(), names.len() + 1, "{keys:?}");
    // The same names in another namespace whose own name is a prefix of this one's.
    let mut inner = Bed::new("x").await;
    inner.namespace = tenure_core::Namespace::new(format!("{}/lock", bed.namespace)).unwrap();
    let other = inner.session(secs(20)).await;
    for name in names {
        drop(other.locker(name).unwrap().try_lock().await.unwrap());
    }
    for name in names {
        let again = session.locker(name).unwrap().try_lock().await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::WouldBlock, "{name:?}");
    }
    for guard in guards {
        guard.release().await.unwrap();
    }
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn nothing_grows() {
    let bed = Bed::new("growth").await;
    let store = bed.store().await;
    let session = open(&store, secs(20)).await;
    let lock = session.locker("x").unwrap();
    for _ in 0..2_000 {
        lock.lock().await.unwrap().release().await.unwrap();
    }
    assert_eq!(bed.keys().await, [format!("{}/layout", bed.root())]);
    session.close().await.unwrap();
    bed.until_empty(SOON).await;
}

#[tokio::test]
async fn the_record_of_a_lock_is_readable_for_operators() {
    let bed = Bed::new("ops").await;
    let session = bed.session(secs(10)).await;
    let guard = session.locker("orders/eu").unwrap().lock().await.unwrap();
    let options = GetOptions::new().with_prefix();
    let prefix = format!("tenure/1/{}/lock/orders%2Feu/", bed.namespace);
    let found = bed
        .raw
        .kv_client()
        .get(prefix.as_str(), Some(options))
        .await;
    assert_eq!(found.unwrap().count(), 1);
    assert_eq!(guard.key(), format!("{prefix}{}", session.id()));
}
