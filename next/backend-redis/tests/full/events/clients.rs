//! `maxclients`.

use tenure_core::ErrorKind;
use tenure_testbed::RedisOptions;

use super::{TTL, on_a_server, open, refusal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_room_refuses_new_clients_and_keeps_the_others() {
    let (server, scene) = on_a_server(RedisOptions::default(), TTL).await;
    // Beyond the limit, the operator has no room either.
    let mut admin = server.admin().connection().unwrap();
    let mut set = |limit: u32| {
        let words = ["CONFIG", "SET", "maxclients"];
        redis::Cmd::new()
            .arg(&words)
            .arg(limit)
            .query::<()>(&mut admin)
            .unwrap();
    };
    set(1);
    let refused = open(&scene.url, TTL).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{}", refused.chain());
    assert!(
        refused.chain().to_string().contains("maxclients"),
        "{}",
        refused.chain()
    );
    set(10_000);
    scene.wait_renewed(&mut admin);
    scene.goes_on().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_end_while_there_is_no_room_return_later() {
    let (server, scene) = on_a_server(RedisOptions::default(), 2 * TTL).await;
    let mut admin = server.admin().connection().unwrap();
    let mut send = |command: &str| {
        let words: Vec<_> = command.split(' ').collect();
        redis::Cmd::new().arg(&words).query::<redis::Value>(&mut admin).unwrap();
    };
    send("CONFIG SET maxclients 1");
    send("CLIENT KILL TYPE normal SKIPME yes");
    send("CLIENT KILL TYPE pubsub SKIPME yes");
    refusal(&scene.guest, "maxclients").await;
    scene.refuses_at_once("maxclients").await;
    let patient = scene.start_patient_steps().await;
    send("CONFIG SET maxclients 10000");
    patient.are_done_once().await;
    scene.wait_renewed(&mut admin);
    scene.goes_on().await;
}
