//! Sentinels, clusters, and replicas that confirm.

use std::net::SocketAddr;

use tenure_core::backend::Backend;
use tenure_core::guarantees::MinorityLoss;
use tenure_core::{Effect, ErrorKind};
use tenure_redis::RedisBackend;
use tenure_testbed::{RedisCluster, RedisOptions, RedisPair, RedisSentinels, RedisServer, shared_redis, unique_name};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{connect, eventually, write};

/// Starts a sentinel that names `primary` whatever it is asked.
async fn sentinel(primary: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let port = primary.port().to_string();
    let named = format!("*2\r\n$9\r\n127.0.0.1\r\n${}\r\n{port}\r\n", port.len());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let named = named.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
                    let answer = match text.contains("get-master-addr") {
                        true => named.clone(),
                        false => "+OK\r\n".repeat(text.matches('*').count()),
                    };
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn through(sentinels: &[SocketAddr], namespace: &str) -> tenure_core::Result<RedisBackend> {
    let hosts: Vec<_> = sentinels.iter().map(SocketAddr::to_string).collect();
    connect(&format!(
        "redis+sentinel://{}/service?namespace={namespace}",
        hosts.join(",")
    ))
    .await
}

/// A sentinel that is cut off from the others may name a primary that goes on beside the new one.
#[tokio::test]
async fn primary_of_a_minority_of_sentinels_is_refused() {
    let primary = RedisServer::start(RedisOptions::default()).unwrap();
    let gone = RedisServer::start(RedisOptions::default()).unwrap();
    gone.kill().unwrap();
    let (good, absent) = (sentinel(primary.address()).await, gone.address());
    for minority in [
        vec![good, absent, absent],
        vec![good, absent],
        vec![good, good, absent],
        vec![good, sentinel(gone.address()).await],
    ] {
        let error = through(&minority, "a").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert!(error.is_retryable());
        assert!(
            error.chain().to_string().contains("more than half"),
            "{}",
            error.chain()
        );
    }
    for majority in [vec![good], vec![absent, good, sentinel(primary.address()).await]] {
        through(&majority, "a").await.unwrap();
    }
    let silent = through(&[absent, absent, absent], "a").await.unwrap_err();
    assert_eq!(silent.kind(), ErrorKind::Unavailable, "{}", silent.chain());
}

#[tokio::test]
async fn failover_of_sentinels_is_followed() {
    let sentinels = RedisSentinels::start(RedisOptions::default()).unwrap();
    let backend = connect(&sentinels.url()).await.unwrap();
    write(&backend).await.unwrap();
    let guarantees = backend.guarantees().await.unwrap();
    assert_eq!(
        guarantees.minority_loss.value,
        MinorityLoss::Survives,
        "{}",
        guarantees.deployment
    );
    let first = sentinels.pair.primary.address();
    sentinels.pair.primary.kill().unwrap();
    let next = tokio::task::spawn_blocking(move || sentinels.wait_for_failover(first).map(|next| (next, sentinels)));
    let (next, sentinels) = next.await.unwrap().unwrap();
    assert_eq!(next, sentinels.pair.replica.address());
    eventually("a write to the new primary", async || write(&backend).await).await;
    let written = sentinels.pair.replica.admin().calls("evalsha").unwrap()
        + sentinels.pair.replica.admin().calls("eval").unwrap();
    assert!(written > 0);
}

#[tokio::test]
async fn url_of_another_topology_names_the_right_scheme() {
    let shared = shared_redis().unwrap();
    let address = shared.url().rsplit_once(['@', '/']).unwrap().1.to_owned();
    let cluster = connect(&format!("redis+cluster://{address}")).await.unwrap_err();
    assert!(cluster.message().contains("`redis://`"), "{}", cluster.chain());
    let sentinel = connect(&format!("redis+sentinel://{address}/service"))
        .await
        .unwrap_err();
    assert!(sentinel.message().contains("`redis://`"), "{}", sentinel.chain());
    for error in [cluster, sentinel] {
        assert_eq!(error.kind(), ErrorKind::Config);
    }
}

#[tokio::test]
async fn cluster_is_searched_and_a_moved_slot_is_followed() {
    let cluster = RedisCluster::start(RedisOptions::default()).unwrap();
    // From each node alone, so that most begin at one that redirects.
    let namespace = unique_name("ns");
    for node in &cluster.nodes {
        let url = format!("redis+cluster://{}?namespace={namespace}", node.address());
        write(&connect(&url).await.unwrap()).await.unwrap();
    }
    let single = connect(&cluster.nodes[0].url()).await.unwrap_err();
    assert!(single.message().contains("`redis+cluster://`"), "{}", single.chain());

    let backend = connect(&format!("{}?namespace={namespace}", cluster.url()))
        .await
        .unwrap();
    let slot = cluster.slot(&format!("{{tenure/{namespace}}}/")).unwrap();
    let owner = cluster.owner(slot).unwrap().unwrap();
    let next = (owner + 1) % cluster.nodes.len();

    // While the slot moves, a script is refused before it starts; the importing node must not be asked.
    cluster.begin_move(slot, next).unwrap();
    let moving = write(&backend).await.unwrap_err();
    assert_eq!(moving.kind(), ErrorKind::Unavailable, "{}", moving.chain());
    assert_eq!(moving.effect(), Effect::None, "{}", moving.chain());
    assert!(moving.is_retryable());
    assert!(moving.chain().to_string().contains("ASK"), "{}", moving.chain());
    assert_eq!(cluster.nodes[next].admin().calls("asking").unwrap(), 0);
    cluster.move_keys(slot, next).unwrap();
    write(&backend).await.unwrap_err();
    cluster.finish_move(slot, next).unwrap();
    eventually("a write to the new owner", async || write(&backend).await).await;
    let keys = cluster.nodes[next]
        .admin()
        .keys(&format!("{{tenure/{namespace}}}*"))
        .unwrap();
    assert!(!keys.is_empty());
}

#[tokio::test]
async fn grant_without_enough_replicas_is_not_confirmed() {
    let pair = RedisPair::start(RedisOptions::default()).unwrap();
    let url = |query: &str| format!("{}?{query}", pair.primary.url());
    // Half of the timeout is for the replicas.
    let patient = connect(&url("wait_replicas=1&timeout=40s")).await.unwrap();
    write(&patient).await.unwrap();
    let impatient = connect(&url("wait_replicas=1&timeout=400ms")).await.unwrap();
    pair.stop_replication();
    let error = write(&impatient).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert_eq!(error.effect(), Effect::Unknown);
    assert!(error.chain().to_string().contains("0 replicas"), "{}", error.chain());
    pair.resume_replication();
    write(&patient).await.unwrap();
    let alone = connect(&url("wait_replicas=2&timeout=400ms")).await.unwrap();
    let error = write(&alone).await.unwrap_err();
    assert!(
        error.chain().to_string().contains("of 2 that `wait_replicas`"),
        "{}",
        error.chain()
    );
}
