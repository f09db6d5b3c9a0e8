//! Subscriptions: each session has one, on every link.

use std::time::Duration;

use tenure_core::backend::{Backend, Opened, SessionEvents};
use tenure_redis::RedisBackend;
use tenure_testbed::{RedisAdmin, RedisCluster, RedisOptions, RedisServer, unique_name, wait_until};

use super::connect;

/// Opens a session that nothing renews: a session of a client without requests.
async fn open(backend: &RedisBackend) -> Opened {
    let (events, _) = SessionEvents::channel();
    backend.open(Duration::from_secs(60), "", events).await.unwrap()
}

/// Waits until the server has subscriptions to exactly `count` channels.
fn wait_for_channels(admin: &RedisAdmin, count: usize) {
    wait_until(&format!("{count} channels"), || {
        let channels: Vec<String> = admin.query(&["PUBSUB", "SHARDCHANNELS"])?;
        Ok((channels.len() == count).then_some(()))
    })
    .unwrap();
}

#[tokio::test]
async fn channels_are_subscribed_on_each_link_and_end_with_their_sessions() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let backend = connect(&format!("{}?timeout=600ms", server.url())).await.unwrap();
    let mut sessions = Vec::new();
    for _ in 0..300 {
        sessions.push(open(&backend).await);
    }
    wait_for_channels(server.admin(), 300);
    for _ in 0..5 {
        server.admin().execute(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
        wait_for_channels(server.admin(), 300);
    }
    server.restart().unwrap();
    wait_for_channels(server.admin(), 300);
    sessions.truncate(100);
    wait_for_channels(server.admin(), 100);
    sessions.push(open(&backend).await);
    wait_for_channels(server.admin(), 101);
    sessions.clear();
    wait_for_channels(server.admin(), 0);
}

/// The server ends the subscriptions of a slot that has moved. Nothing else tells a client that sends no request.
#[tokio::test]
async fn moved_slot_is_followed_without_a_request() {
    let cluster = RedisCluster::start(RedisOptions::default()).unwrap();
    let namespace = unique_name("ns");
    let backend = connect(&format!("{}?namespace={namespace}", cluster.url()))
        .await
        .unwrap();
    let _sessions = [open(&backend).await, open(&backend).await];
    let slot = cluster.slot(&format!("{{tenure/{namespace}}}/")).unwrap();
    let owner = cluster.owner(slot).unwrap().unwrap();
    wait_for_channels(cluster.nodes[owner].admin(), 2);
    let next = (owner + 1) % cluster.nodes.len();
    cluster.move_slot(slot, next).unwrap();
    wait_for_channels(cluster.nodes[next].admin(), 2);
    wait_for_channels(cluster.nodes[owner].admin(), 0);
}
