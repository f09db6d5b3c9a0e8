//! A slot that moves to another node of a cluster.

use std::time::Duration;

use tenure_core::LossReason;
use tenure_testbed::{RedisCluster, RedisOptions};

use crate::events::{Scene, TTL, others_go_on};

struct Moving {
    cluster: RedisCluster,
    slot: u16,
    to: usize,
}

async fn scene(ttl: Duration) -> (Moving, Scene) {
    let cluster = RedisCluster::start(RedisOptions::default()).unwrap();
    let slot = cluster.slot("{tenure/scene}/").unwrap();
    let from = cluster.owner(slot).unwrap().unwrap();
    let scene = Scene::set(&cluster.url(), cluster.nodes[from].admin(), ttl).await;
    let to = (from + 1) % cluster.nodes.len();
    (Moving { cluster, slot, to }, scene)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_that_moves_within_the_ttl_costs_nothing() {
    let (Moving { cluster, slot, to }, scene) = scene(5 * TTL).await;
    cluster.begin_move(slot, to).unwrap();
    scene.refuses_at_once("moving the namespace's slot").await;
    let patient = scene.start_patient_steps().await;
    cluster.move_keys(slot, to).unwrap();
    cluster.finish_move(slot, to).unwrap();
    patient.are_done_once().await;
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_that_moves_for_longer_than_the_ttl_ends_everything() {
    let (Moving { cluster, slot, to }, scene) = scene(Duration::from_secs(2)).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    cluster.begin_move(slot, to).unwrap();
    scene.ends_everything(LossReason::Unreachable).await;
    cluster.move_keys(slot, to).unwrap();
    cluster.finish_move(slot, to).unwrap();
    others_go_on(&url, greatest).await;
}
