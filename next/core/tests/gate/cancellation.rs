//! Dropping a future at any await point leaves nothing behind (rule L5).

use std::time::Duration;

use tenure_core::{ErrorKind, Session};

use crate::scripted::{Fault, Scripted, at_every_await_point, polled};

const TTL: Duration = Duration::from_secs(9);

/// Checks that the lock is free, at once and for another client.
async fn assert_nothing_is_left(store: &Scripted, session: &Session) {
    store.until_empty().await;
    assert!(session.is_valid());
    store.calm();
    let other = store.session(TTL).await;
    assert!(other.try_lock("a").await.unwrap().is_some());
}

async fn cancel_lock(script: impl Fn(&Scripted)) {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        script(&store);
        let locked = polled(session.lock("a"), polls).await;
        let ended = locked.is_some();
        drop(locked);
        assert_nothing_is_left(&store, &session).await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lock_dropped_at_any_await_point_leaves_nothing() {
    cancel_lock(|_| {}).await;
}

#[tokio::test(start_paused = true)]
async fn lock_dropped_while_answers_are_lost_leaves_nothing() {
    cancel_lock(|store| {
        store.once("join", Fault::LoseAnswer);
        store.once("join", Fault::LoseRequest);
        store.once("leave", Fault::LoseAnswer);
        store.once("leave", Fault::LoseRequest);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lock_dropped_while_its_request_is_slow_leaves_nothing() {
    cancel_lock(|store| store.once("join", Fault::Delay(Duration::from_millis(700)))).await;
}

#[tokio::test(start_paused = true)]
async fn lock_whose_request_arrives_after_the_withdrawal_leaves_nothing() {
    cancel_lock(|store| store.once("join", Fault::Late(Duration::from_secs(2)))).await;
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::Late(Duration::from_secs(2)));
    assert!(polled(session.lock("a"), 3).await.is_none());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(store.entries(), 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_lock_dropped_at_any_await_point_leaves_nothing() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
        let guard = holder.lock("a").await.unwrap();
        let releasing = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(350)).await;
            guard.release().await.unwrap();
        });
        let locked = polled(session.lock("a"), polls).await;
        let ended = locked.is_some();
        drop(locked);
        releasing.await.unwrap();
        assert_nothing_is_left(&store, &session).await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn try_lock_dropped_at_any_await_point_leaves_nothing() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        let tried = polled(session.try_lock("a"), polls).await;
        let ended = tried.is_some();
        drop(tried);
        assert_nothing_is_left(&store, &session).await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn lock_timeout_dropped_at_any_await_point_leaves_nothing() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let (holder, session) = (store.session(TTL).await, store.session(TTL).await);
        let guard = holder.lock("a").await.unwrap();
        let locker = session.locker("a");
        let timed_out = polled(locker.lock_timeout(Duration::from_millis(250)), polls).await;
        let ended = timed_out.is_some();
        if let Some(outcome) = timed_out {
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::TimedOut);
        }
        store.until(|store| store.entries() == 1).await;
        guard.release().await.unwrap();
        assert_nothing_is_left(&store, &session).await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn release_dropped_at_any_await_point_is_carried_out() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        store.once("leave", Fault::LoseRequest);
        let guard = session.lock("a").await.unwrap();
        let ended = polled(guard.release(), polls).await.is_some();
        assert_nothing_is_left(&store, &session).await;
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn close_dropped_at_any_await_point_is_carried_out_once_begun() {
    // Its first poll gives the order, and the rest is one wait.
    for polls in 0..3 {
        let store = Scripted::paused();
        let session = store.session(TTL).await;
        let _guard = session.lock("a").await.unwrap();
        polled(session.close(), polls).await;
        match polls {
            0 => assert!(session.is_valid()),
            _ => store.until(|store| store.sessions() == 0 && store.entries() == 0).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn open_dropped_at_any_await_point_leaves_no_session() {
    at_every_await_point(async |polls| {
        let store = Scripted::paused();
        let opened = polled(store.session(TTL), polls).await;
        let ended = opened.is_some();
        drop(opened);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(store.sessions(), 0);
        ended
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn panic_of_the_backend_is_an_error_and_leaves_nothing() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::Panic);
    let error = session.lock("a").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    store.until(|store| store.calls("leave") == 1).await;
    assert_nothing_is_left(&store, &session).await;
}

#[tokio::test(start_paused = true)]
async fn grant_after_the_caller_was_dropped_is_given_back() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    store.once("join", Fault::Delay(Duration::from_millis(100)));
    assert!(polled(session.lock("a"), 2).await.is_none());
    store.until(|store| store.entries() == 1).await;
    assert_nothing_is_left(&store, &session).await;
}
