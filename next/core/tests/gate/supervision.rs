//! Supervised sessions on a store that does not answer.

use std::sync::Arc;
use std::time::Duration;

use tenure_core::{ErrorKind, LossReason, SessionOptions, Store};
use tokio::time::timeout;

use crate::scripted::{Fault, Scripted};

#[tokio::test(start_paused = true)]
async fn close_does_not_wait_for_an_open_without_an_answer() {
    let scripted = Scripted::paused();
    scripted.always("open", Fault::Hang);
    let sessions = Arc::new(Store::new(scripted.clone()).supervise(SessionOptions::new()));
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let sessions = Arc::clone(&sessions);
            tokio::spawn(async move { sessions.session().await })
        })
        .collect();
    scripted.until(|store| store.calls("open") == 1).await;
    timeout(Duration::from_secs(1), sessions.close()).await.unwrap();
    for call in calls {
        let error = call.await.unwrap().unwrap_err();
        assert_eq!(
            (error.kind(), error.loss()),
            (ErrorKind::Lost, Some(LossReason::Closed))
        );
    }
    scripted.heal("open");
    assert!(sessions.session().await.unwrap().is_valid());
}
