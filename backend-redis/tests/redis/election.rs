//! Elections when Redis forgets.

use tenure_core::ErrorKind;
use tenure_testbed::RedisServer;

use crate::common::*;

/// All is lost, and tokens with it: observers still see what comes after.
#[tokio::test(flavor = "multi_thread")]
async fn an_observer_goes_on_when_all_was_forgotten() {
    let server = RedisServer::builder().start().unwrap();
    let bed = Bed::on(&server, "forgotten");
    let (first, watcher) = (bed.session(secs(3)).await, bed.session(secs(3)).await);
    let lead = first
        .election("e")
        .unwrap()
        .campaign("first")
        .await
        .unwrap();
    let mut observer = watcher.election("e").unwrap().observe();
    let seen = within(SOON, "the leader", observer.next()).await;
    let seen = seen.unwrap().unwrap().expect("somebody leads");
    assert_eq!(seen.text(), "first");
    bed.ask(&["FLUSHALL"]);
    within(SOON, "the loss", lead.lost()).await;
    let second = bed.session(secs(3)).await;
    let lead = second
        .election("e")
        .unwrap()
        .campaign("second")
        .await
        .unwrap();
    assert!(lead.token() > seen.token(), "tokens go on rising");
    loop {
        let seen = within(SOON, "the next leader", observer.next()).await;
        if let Some(leader) = seen.unwrap().unwrap() {
            assert_eq!(
                (leader.text(), leader.token()),
                ("second".into(), lead.token())
            );
            break;
        }
    }
    lead.resign().await.unwrap();
    let seen = within(SOON, "a vacancy", observer.next()).await;
    assert!(seen.unwrap().unwrap().is_none());
}

/// A leader whose session ended says nothing any more, and nothing of the election stays.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_of_an_election() {
    let bed = Bed::new("traces");
    let session = bed.session(secs(20)).await;
    for round in 0..20 {
        let election = session.election("e").unwrap();
        let lead = election.campaign("a").await.unwrap();
        lead.proclaim("b").await.unwrap();
        if round % 2 == 0 {
            lead.resign().await.unwrap();
        } else {
            // As an operator would.
            let (line, who) = lead.key().rsplit_once('#').unwrap();
            assert_eq!(bed.ask(&["ZREM", line, &format!("{who}:w")]), "1");
            assert_eq!(
                lead.proclaim("c").await.unwrap_err().kind(),
                ErrorKind::Lost
            );
            assert_eq!(lead.resign().await.unwrap_err().kind(), ErrorKind::Lost);
        }
    }
    session.close().await.unwrap();
    eventually("nothing stays", || {
        bed.keys()
            .iter()
            .all(|key| key == "election/e/order" || key == "last")
    })
    .await;
}
