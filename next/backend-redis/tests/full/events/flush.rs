//! `FLUSHALL` and `FLUSHDB`.

use tenure_core::LossReason;
use tenure_testbed::RedisOptions;

use super::{TTL, on_a_server, open, others_go_on};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushall_ends_everything_and_holders_receive_lost() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    server.admin().flush().unwrap();
    // Before the holders know it: the resource has the token to tell them apart.
    others_go_on(&url, greatest).await;
    scene.ends_everything(LossReason::Revoked).await;
    let next = open(&url, TTL).await.unwrap();
    assert_eq!(next.stm().get("key").await.unwrap(), None);
    assert_eq!(next.queue("stored").len().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flushdb_of_another_database_changes_nothing() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    let mut admin = server.admin().connection().unwrap();
    for command in ["SELECT 1", "SET of others", "FLUSHDB", "SELECT 0"] {
        let words: Vec<_> = command.split(' ').collect();
        redis::Cmd::new().arg(&words).query::<()>(&mut admin).unwrap();
    }
    scene.wait_renewed(&mut admin);
    scene.goes_on().await;
}
