//! Observers and proclamations.

use std::time::Duration;

use tenure_core::backend::{Leader, LeaderUpdate};
use tenure_core::{Effect, Error, ErrorKind, FencingToken, Observer, Result};

use crate::stm_store::{Fault, StmStore};

fn state(version: u64, leader: Option<&str>) -> Result<LeaderUpdate> {
    let leader = leader.map(|value| Leader::new(FencingToken::new(1), value.as_bytes()));
    Ok(LeaderUpdate::new(version, leader))
}

fn failure(kind: ErrorKind) -> Result<LeaderUpdate> {
    Err(Error::new(kind, "no answer").with_effect(Effect::Unknown))
}

async fn next(observer: &mut Observer) -> Option<Result<LeaderUpdate>> {
    let limit = Duration::from_secs(5);
    tokio::time::timeout(limit, observer.next())
        .await
        .expect("nothing to see")
}

async fn sees(observer: &mut Observer, expected: Result<LeaderUpdate>) {
    assert_eq!(next(observer).await.unwrap().unwrap(), expected.unwrap());
}

#[tokio::test(start_paused = true)]
async fn observer_shows_changes_never_goes_back_and_survives_failures() {
    let store = StmStore::new();
    let session = store.session().await;
    let mut observer = session.election("e").observe();
    store.show([
        failure(ErrorKind::Unavailable),
        state(5, Some("a")),
        failure(ErrorKind::Unavailable),
        state(3, None),
        state(5, Some("a")),
        state(6, Some("a")),
        state(7, None),
        state(6, Some("a")),
        state(9, Some("c")),
    ]);
    sees(&mut observer, state(5, Some("a"))).await;
    sees(&mut observer, state(7, None)).await;
    sees(&mut observer, state(9, Some("c"))).await;
    let quiet = tokio::time::timeout(Duration::from_secs(5), observer.next());
    assert!(quiet.await.is_err());
    // The wait that was dropped has lost nothing.
    store.show([state(10, None)]);
    sees(&mut observer, state(10, None)).await;
}

#[tokio::test(start_paused = true)]
async fn observer_ends_after_an_error_that_no_retry_can_cure() {
    let store = StmStore::new();
    let session = store.session().await;
    let mut observer = session.election("e").observe();
    store.show([failure(ErrorKind::Unauthorized), state(1, None)]);
    let error = next(&mut observer).await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Unauthorized, Some("observe"))
    );
    assert_eq!(error.name(), Some("e"));
    assert!(next(&mut observer).await.is_none());
    let error = next(&mut session.election("").observe()).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidName);
}

#[tokio::test(start_paused = true)]
async fn proclamation_is_repeated_under_its_number_and_a_later_one_has_a_greater() {
    let store = StmStore::new();
    let session = store.session().await;
    let lead = session.election("e").campaign("a").await.unwrap();
    store.once("proclaim", Fault::LoseAnswer);
    store.once("proclaim", Fault::LoseAnswer);
    lead.proclaim("b").await.unwrap();
    lead.proclaim("c").await.unwrap();
    let numbers = store.proclaimed();
    assert_eq!(numbers.len(), 4);
    assert!(numbers[0] == numbers[2] && numbers[2] < numbers[3], "{numbers:?}");
}

#[tokio::test(start_paused = true)]
async fn proclamation_of_a_closed_session_is_not_sent() {
    let store = StmStore::new();
    let session = store.session().await;
    let lead = session.election("e").campaign("a").await.unwrap();
    session.close().await.unwrap();
    let error = lead.proclaim("b").await.unwrap_err();
    assert_eq!((error.kind(), error.effect()), (ErrorKind::Lost, Effect::None));
    assert_eq!((error.operation(), error.name()), (Some("proclaim"), Some("e")));
    assert_eq!(store.calls("proclaim"), 0);
}
