//! A snapshot that fails: Redis answers `MISCONF` to every write, by `stop-writes-on-bgsave-error`.

use std::time::Duration;

use tenure_core::LossReason;
use tenure_testbed::{RedisOptions, RedisServer, wait_until};

use super::{TTL, on_a_server, others_go_on};

/// Redis refuses writes only where snapshots are wanted.
fn options() -> RedisOptions {
    RedisOptions::default().line("save 3600 1")
}

fn snapshot(server: &RedisServer, wanted: &str) {
    server.admin().execute(&["BGSAVE"]).unwrap();
    wait_until("the end of a snapshot", || {
        Ok((server.admin().info("rdb_last_bgsave_status")?.as_deref() == Some(wanted)).then_some(()))
    })
    .unwrap();
}

/// Puts a folder in the place of the snapshot, and returns it.
fn let_snapshots_fail(server: &RedisServer) -> std::path::PathBuf {
    let place = server.data().join("dump.rdb");
    std::fs::create_dir_all(place.join("in the way")).unwrap();
    snapshot(server, "err");
    place
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_snapshot_refuses_writes_and_loses_nothing_when_it_is_mended() {
    let (server, scene) = on_a_server(options(), 2 * TTL).await;
    let place = let_snapshots_fail(&server);
    scene.refuses_at_once("cannot persist").await;
    assert_eq!(scene.guest.stm().get_string("key").await.unwrap().as_deref(), Some("1"));
    let patient = scene.start_patient_steps().await;
    std::fs::remove_dir_all(place).unwrap();
    snapshot(&server, "ok");
    patient.are_done_once().await;
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_that_fail_for_longer_than_the_ttl_end_everything() {
    let (server, scene) = on_a_server(options(), Duration::from_secs(2)).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    let place = let_snapshots_fail(&server);
    scene.ends_everything(LossReason::Unreachable).await;
    std::fs::remove_dir_all(place).unwrap();
    snapshot(&server, "ok");
    others_go_on(&url, greatest).await;
}

/// The setting that lets writes go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_snapshot_without_the_setting_changes_nothing() {
    let (server, scene) = on_a_server(options().line("stop-writes-on-bgsave-error no"), TTL).await;
    let_snapshots_fail(&server);
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}
