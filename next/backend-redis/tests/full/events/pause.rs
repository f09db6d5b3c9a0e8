//! `CLIENT PAUSE`.

use std::time::Duration;

use tenure_core::LossReason;
use tenure_testbed::RedisOptions;

use super::{Scene, TTL, on_a_server, others_go_on};

/// Shorter than the TTL: requests are answered late, and that is all.
async fn short_pause(mode: &str) {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    server.admin().execute(&["CLIENT", "PAUSE", "1000", mode]).unwrap();
    let patient = scene.start_patient_steps().await;
    patient.are_done_once().await;
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_of_writes_shorter_than_the_ttl_costs_nothing() {
    short_pause("WRITE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_of_all_shorter_than_the_ttl_costs_nothing() {
    short_pause("ALL").await;
}

/// Longer than `timeout`, after which the connections are replaced.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_of_all_longer_than_the_timeout_costs_nothing() {
    let server = tenure_testbed::RedisServer::start(RedisOptions::default()).unwrap();
    let url = format!("{}?timeout=400ms&connect_timeout=400ms", server.url());
    let scene = Scene::set(&url, server.admin(), 2 * TTL).await;
    server.admin().execute(&["CLIENT", "PAUSE", "2000", "ALL"]).unwrap();
    let patient = scene.start_patient_steps().await;
    patient.are_done_once().await;
    scene.goes_on().await;
}

/// Longer than the TTL: each holding is lost at its deadline, and is free when the pause ends.
async fn long_pause(mode: &str) {
    let (server, scene) = on_a_server(RedisOptions::default(), Duration::from_secs(2)).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    server.admin().execute(&["CLIENT", "PAUSE", "5000", mode]).unwrap();
    scene.ends_everything(LossReason::Unreachable).await;
    others_go_on(&url, greatest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_of_writes_longer_than_the_ttl_ends_everything() {
    long_pause("WRITE").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pause_of_all_longer_than_the_ttl_ends_everything() {
    long_pause("ALL").await;
}
