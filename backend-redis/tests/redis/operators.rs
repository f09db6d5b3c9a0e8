//! What operators do to a server in use: nothing of a lost history stays valid for longer than to the next renewal, and
//! nobody waits for ever.

use tenure_core::{ErrorKind, LossReason};
use tenure_testbed::RedisServer;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_server_ends_every_session_with_its_next_renewal() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "flushed");
    let (one, two) = (bed.session(secs(6)).await, bed.session(secs(6)).await);
    let held = one.locker("x").unwrap().lock().await.unwrap();
    let lock = two.locker("x").unwrap();
    let waiting = tokio::spawn(async move { lock.lock().await });
    bed.until_in_line("lock/x", 2).await;
    let queue = two.queue("jobs").unwrap();
    let taking = tokio::spawn(async move { queue.dequeue().await });
    bed.until_in_line("queue/jobs/line", 1).await;
    bed.ask(&["FLUSHALL"]);
    // A third of the TTL, and some.
    let lost = within(secs(4), "the loss", held.lost()).await;
    assert_eq!(lost, LossReason::Revoked);
    let ends = async { tokio::join!(waiting, taking) };
    let (waited, taken) = within(secs(4), "the waiters' ends", ends).await;
    assert_eq!(waited.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    assert_eq!(taken.unwrap().unwrap_err().kind(), ErrorKind::Lost);
    let token = held.token();
    let next = bed.session(secs(6)).await;
    let next = next.locker("x").unwrap().lock().await.unwrap();
    assert!(next.token() > token);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_killed_cost_nothing() {
    let server = RedisServer::start().unwrap();
    let bed = Bed::on(&server, "killed");
    let (one, two) = (bed.session(secs(60)).await, bed.session(secs(60)).await);
    for kind in ["normal", "pubsub", "normal", "pubsub"] {
        let held = one.locker("x").unwrap().lock().await.unwrap();
        let lock = two.locker("x").unwrap();
        let waiting = tokio::spawn(async move { lock.lock().await });
        bed.until_in_line("lock/x", 2).await;
        bed.ask(&["CLIENT", "KILL", "TYPE", kind]);
        assert!(held.is_valid());
        held.release().await.unwrap();
        let next = within(SOON, "its turn", waiting).await.unwrap().unwrap();
        next.release().await.unwrap();
    }
}

/// The file has one session that lives on with another lock than it has now, and lacks the other session.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_state_ends_what_it_does_not_have() {
    let mut server = RedisServer::builder().no_persistence().start().unwrap();
    let url = server.address().to_string();
    let config = tenure_redis::RedisConfig::new(url);
    let one = open(&connect(config.clone()).await, secs(9)).await;
    let before = one.locker("before").unwrap().lock().await.unwrap();
    server.command(&["SAVE"]).unwrap();
    let two = open(&connect(config.clone()).await, secs(9)).await;
    let after = one.locker("after").unwrap().lock().await.unwrap();
    let others = two.locker("others").unwrap().lock().await.unwrap();
    server.kill().unwrap();
    server.restart_async().await.unwrap();
    let (lost, ended) = within(secs(6), "both losses", async {
        tokio::join!(after.lost(), others.lost())
    })
    .await;
    assert_eq!(lost, LossReason::Revoked);
    assert_eq!(ended, LossReason::Revoked);
    assert!(before.is_valid() && one.is_valid() && !two.is_valid());
    before.release().await.unwrap();
    let three = open(&connect(config).await, secs(9)).await;
    for name in ["before", "after", "others"] {
        let lock = three.locker(name).unwrap();
        drop(within(SOON, name, lock.lock()).await.unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_taken_away_ends_the_session_by_its_deadline() {
    let server = RedisServer::builder()
        .user("app", "on >secret ~* &* +@all")
        .start()
        .unwrap();
    let url = format!("redis://app:secret@{}", server.address());
    let url = tenure_core::backend::StoreUrl::parse(&url).unwrap();
    let config = tenure_redis::RedisConfig::from_url(url).unwrap();
    let session = open(&connect(config).await, secs(2)).await;
    let held = session.locker("x").unwrap().lock().await.unwrap();
    server
        .command(&["ACL", "SETUSER", "app", "-pexpire"])
        .unwrap();
    let lost = within(secs(4), "the loss", held.lost()).await;
    assert_eq!(lost, LossReason::Refused);
}
