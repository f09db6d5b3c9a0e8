//! Detachments and resumptions that end in the middle.

use std::time::Duration;

use tenure_core::{SessionId, SessionOptions};
use tenure_redis::{RedisBackend, connect};
use tenure_testbed::{Direction, Flow, Proxy, RedisAdmin, RedisOptions, RedisServer};
use tokio::time::{sleep, timeout};

use crate::connection::config;

macro_rules! lua {
    ($($part:literal)*) => { concat!($(include_str!(concat!("../../lua/", $part, ".lua")), "\n"),*) };
}

const SWEEP: &str = lua!("prelude" "wait_queue" "interop" "key_value" "work_queue" "sweep");

/// The process dies after its detachment, which leaves entries for a sweep, and others remove those one by one. The sweep that
/// was due must not drop what the next process holds.
#[tokio::test]
async fn sweep_of_a_detachment_spares_what_was_resumed() {
    let server = RedisServer::start(RedisOptions::default().without_persistence()).unwrap();
    let admin = server.admin();
    let backend = RedisBackend::connect(config(&server.url())).await.unwrap();
    let store = tenure_core::Store::new(backend.clone());
    let options = || SessionOptions::new().ttl(Duration::from_secs(600));
    let (first, other) = (
        store.open(options()).await.unwrap(),
        store.open(options()).await.unwrap(),
    );
    let lock = first.lock("x").await.unwrap();
    let (token, id) = (lock.token(), first.id().clone());
    let mut holds = Vec::new();
    for number in 0..150 {
        holds.push(first.barrier(number.to_string()).hold().await.unwrap());
    }
    let record = format!("{{tenure/default}}/2/session/{}", id.as_str());
    let epoch: String = admin.query(&["HGET", &record, "epoch"]).unwrap();
    let entries: Vec<String> = admin
        .query(&["HKEYS", &format!("{{tenure/default}}/2/held/{}", id.as_str())])
        .unwrap();
    let kept = entries.iter().find(|field| field.parse::<u64>().is_ok()).unwrap();
    let detachment = [
        "EVAL",
        SWEEP,
        "1",
        "{tenure/default}/2/",
        "detach",
        id.as_str(),
        &epoch,
        "",
        "0",
        "1",
        "1000",
        kept,
    ];
    let answer: (String, u64) = admin.query(&detachment).unwrap();
    assert_eq!(answer.0, "more");
    for number in 0..150 {
        other.barrier(number.to_string()).open().await.unwrap();
    }
    let resumed = store.resume(&id).await.unwrap();
    let again = resumed.locker("x").reclaim(token).await.unwrap();
    // Sweeps all that is due, and finds no such session.
    backend.end_session(&SessionId::new("none")).await.unwrap();
    assert!(other.try_lock("x").await.unwrap().is_none(), "two hold the lock");
    again.release().await.unwrap();
    drop(holds);
    std::mem::forget(lock);
}

fn is_resumed(admin: &RedisAdmin, id: &str) -> bool {
    let record = format!("{{tenure/default}}/2/session/{id}");
    let resumed: Option<String> = admin.query(&["HGET", &record, "resumed"]).unwrap();
    resumed.is_some()
}

/// The record of a detached session can be used once. Its holdings would stay until the end of the TTL.
#[tokio::test]
async fn resumption_whose_answer_is_lost_is_repeated() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let first = connect(config(&server.url())).await.unwrap();
    let long = SessionOptions::new().ttl(Duration::from_secs(600));
    let session = first.open(long).await.unwrap();
    let lock = session.lock("x").await.unwrap();
    let token = lock.token();
    std::mem::forget(lock);
    let id = session.detach().await.unwrap();

    let proxy = Proxy::start(server.address()).unwrap();
    let url = format!("redis://{}?timeout=400ms", proxy.address());
    let second = connect(config(&url)).await.unwrap();
    proxy.set(Direction::Answers, Flow::Drop);
    let healing = async {
        while !is_resumed(server.admin(), id.as_str()) {
            sleep(Duration::from_millis(10)).await; // real time: looks again
        }
        proxy.heal();
    };
    let both = async { tokio::join!(second.resume(&id), healing) };
    let (resumed, ()) = timeout(Duration::from_secs(30), both)
        .await
        .expect("the end of a resumption");
    let lock = resumed.unwrap().locker("x").reclaim(token).await.unwrap();
    lock.release().await.unwrap();
}
