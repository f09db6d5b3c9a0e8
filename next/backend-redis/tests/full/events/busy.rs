//! A script of another client that does not end: Redis answers `BUSY`.

use std::thread::JoinHandle;
use std::time::Duration;

use tenure_core::LossReason;
use tenure_testbed::{RedisOptions, RedisServer, wait_until};

use super::{TTL, on_a_server, others_go_on, says, soon};

fn options() -> RedisOptions {
    RedisOptions::default().line("busy-reply-threshold 20")
}

/// Runs a script for ever. Returns once Redis refuses what others send.
fn run_endless_script(server: &RedisServer) -> JoinHandle<()> {
    let mut connection = server.admin().connection().unwrap();
    let script = std::thread::spawn(move || {
        let ended = redis::cmd("EVAL")
            .arg("while true do end")
            .arg(0)
            .query::<()>(&mut connection);
        assert!(ended.unwrap_err().to_string().contains("killed"));
    });
    wait_until("a busy server", || {
        let refused = server.admin().execute(&["PING"]).err();
        Ok(refused.filter(|error| says(error, "BUSY")))
    })
    .unwrap();
    script
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn busy_server_refuses_and_loses_nothing_when_its_script_is_killed() {
    let (server, scene) = on_a_server(options(), 2 * TTL).await;
    let script = run_endless_script(&server);
    scene.refuses_at_once("busy with a script").await;
    let patient = scene.start_patient_steps().await;
    server.admin().execute(&["SCRIPT", "KILL"]).unwrap();
    script.join().unwrap();
    patient.are_done_once().await;
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_is_busy_for_longer_than_the_ttl_ends_everything() {
    let (server, scene) = on_a_server(options(), Duration::from_secs(2)).await;
    let (url, greatest) = (scene.url.clone(), scene.greatest_token());
    let script = run_endless_script(&server);
    let lost = tokio::spawn(scene.ends_everything(LossReason::Unreachable));
    soon("the losses", lost).await.unwrap();
    server.admin().execute(&["SCRIPT", "KILL"]).unwrap();
    script.join().unwrap();
    others_go_on(&url, greatest).await;
}
