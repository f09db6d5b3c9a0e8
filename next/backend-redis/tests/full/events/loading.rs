//! A server that loads its data: Redis answers `LOADING`.

use std::sync::Arc;

use tenure_core::ErrorKind;
use tenure_testbed::{RedisOptions, RedisServer, wait_until};

use super::{TTL, on_a_server, refusal, says};

/// Loads slowly, and answers meanwhile.
fn options() -> RedisOptions {
    RedisOptions::default().line("loading-process-events-interval-bytes 1024")
}

/// 200 values of 1 kB and a delay of 10 ms for each.
fn slow_down(server: &RedisServer) {
    server
        .admin()
        .execute(&["DEBUG", "POPULATE", "200", "of-others", "1000"])
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_meet_a_reload_lose_nothing() {
    let (server, scene) = on_a_server(options(), 3 * TTL).await;
    slow_down(&server);
    server.admin().set_config("key-load-delay", "10000").unwrap();
    let mut admin = server.admin().connection().unwrap();
    let reload = std::thread::spawn(move || redis::cmd("DEBUG").arg("RELOAD").query::<()>(&mut admin));
    wait_until("a server that loads", || {
        let refused = server.admin().execute(&["GET", "a"]).err();
        Ok(refused.filter(|error| says(error, "oading")))
    })
    .unwrap();
    scene.refuses_at_once("loading its data").await;
    let patient = scene.start_patient_steps().await;
    reload.join().unwrap().unwrap();
    patient.are_done_once().await;
    server.admin().set_config("key-load-delay", "0").unwrap();
    scene.wait_renewed(&mut server.admin().connection().unwrap());
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_meet_a_restart_lose_nothing() {
    let (server, scene) = on_a_server(options().line("key-load-delay 10000"), 3 * TTL).await;
    slow_down(&server);
    // From the append-only file to its base, which is what the delay is for.
    server.admin().execute(&["BGREWRITEAOF"]).unwrap();
    wait_until("a rewritten file", || {
        let admin = server.admin();
        let is_over = admin.info("aof_rewrite_in_progress")?.as_deref() == Some("0")
            && admin.info("aof_rewrite_scheduled")?.as_deref() == Some("0");
        Ok(is_over.then_some(()))
    })
    .unwrap();
    let server = Arc::new(server);
    let restarted = Arc::clone(&server);
    let restart = std::thread::spawn(move || restarted.restart());
    let refused = refusal(&scene.guest, "loading its data").await;
    assert_eq!(refused.kind(), ErrorKind::Unavailable);
    assert!(refused.is_retryable());
    restart.join().unwrap().unwrap();
    scene.goes_on().await;
}
