//! An eviction policy that is set while sessions are open.

use tenure_core::{ErrorKind, LossReason};
use tenure_testbed::RedisOptions;

use super::{TTL, on_a_server, open, others_go_on};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eviction_policy_refuses_new_clients_and_open_sessions_go_on_while_memory_lasts() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    server.admin().set_config("maxmemory-policy", "allkeys-lru").unwrap();
    let refused = open(&scene.url, TTL).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Config, "{}", refused.chain());
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evicted_holdings_are_lost_and_tokens_rise() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    server.admin().set_config("maxmemory-policy", "allkeys-lru").unwrap();
    server.admin().set_config("maxmemory", "1").unwrap();
    scene.ends_everything(LossReason::Revoked).await;
    server.admin().set_config("maxmemory", "0").unwrap();
    server.admin().set_config("maxmemory-policy", "noeviction").unwrap();
    others_go_on(&url, greatest).await;
}
