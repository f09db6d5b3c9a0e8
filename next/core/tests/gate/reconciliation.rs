//! The comparison of the store's entries with the session's own.

use std::time::Duration;

use tenure_core::LossReason;
use tenure_core::backend::{Nonce, SessionEvent};
use tokio::time::sleep;

use crate::scripted::{Fault, Scripted};

const TTL: Duration = Duration::from_secs(9);

#[tokio::test(start_paused = true)]
async fn stray_entry_is_withdrawn_within_a_third_of_the_ttl() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    session.lock("a").await.unwrap().release().await.unwrap();
    let guard = session.lock("a").await.unwrap();
    store.plant(&session, Nonce::new(1), "b");
    assert_eq!(store.entries(), 2);
    sleep(TTL / 3 + Duration::from_millis(100)).await;
    assert_eq!(store.entries(), 1);
    assert!(guard.is_valid());
    assert!(session.try_lock("b").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn stray_entry_is_withdrawn_at_once_on_a_new_connection() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    session.lock("a").await.unwrap().release().await.unwrap();
    store.plant(&session, Nonce::new(1), "b");
    store.report(&session, SessionEvent::Reconcile);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(store.entries(), 0);
}

/// The server behind it may know an older deadline.
#[tokio::test(start_paused = true)]
async fn session_is_renewed_at_once_on_a_new_connection() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    sleep(TTL / 6).await;
    store.report(&session, SessionEvent::Reconcile);
    sleep(TTL / 12).await;
    assert_eq!(store.calls("renew"), 1);
    assert!(session.remaining() > TTL - TTL / 6);
}

#[tokio::test(start_paused = true)]
async fn holding_that_the_store_does_not_list_is_lost() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.forget(&session);
    let kept = session.lock("b").await.unwrap();
    store.report(&session, SessionEvent::Reconcile);
    assert_eq!(guard.lost().await, LossReason::Revoked);
    assert!(kept.is_valid() && session.is_valid());
}

#[tokio::test(start_paused = true)]
async fn request_that_begins_while_the_pages_are_read_is_no_stray() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let _first = session.lock("a").await.unwrap();
    store.once("entries", Fault::Delay(Duration::from_millis(100)));
    store.report(&session, SessionEvent::Reconcile);
    store.until(|store| store.calls("entries") == 1).await;
    // Before the second page is read.
    let guard = session.lock("b").await.unwrap();
    store.until(|store| store.calls("entries") >= 3).await;
    sleep(Duration::from_millis(100)).await;
    assert!(guard.is_valid());
    assert_eq!((store.entries(), store.calls("leave")), (2, 0));
}

#[tokio::test(start_paused = true)]
async fn grant_that_crosses_with_the_pages_is_not_lost() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    // Listed after 140 ms, answered after 280 ms.
    store.once("entries", Fault::Delay(Duration::from_millis(140)));
    store.report(&session, SessionEvent::Reconcile);
    sleep(Duration::from_millis(50)).await;
    // Granted after 150 ms, answered after 250 ms.
    store.once("join", Fault::Delay(Duration::from_millis(100)));
    let guard = session.lock("a").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!((store.calls("entries"), store.calls("leave")), (1, 0));
    assert!(guard.is_valid());
}

#[tokio::test(start_paused = true)]
async fn entry_that_ends_while_the_pages_are_read_is_no_stray() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    let _other = session.lock("b").await.unwrap();
    // The first page lists the lock that is released before the second one is read.
    store.once("entries", Fault::Delay(Duration::from_millis(1)));
    store.once("entries", Fault::Delay(Duration::from_millis(100)));
    store.report(&session, SessionEvent::Reconcile);
    store.until(|store| store.calls("entries") == 2).await;
    guard.release().await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(store.calls("leave"), 1);
}

#[tokio::test(start_paused = true)]
async fn store_that_cannot_list_loses_nothing() {
    let store = Scripted::paused();
    let session = store.session(TTL).await;
    let guard = session.lock("a").await.unwrap();
    store.always("entries", Fault::LoseRequest);
    sleep(TTL * 2).await;
    assert!(guard.is_valid());
}
