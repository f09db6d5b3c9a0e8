//! Servers that end, stop or lose answers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tenure_core::{Effect, ErrorKind};
use tenure_redis::RedisBackend;
use tenure_testbed::{Direction, Flow, Proxy, RedisOptions, RedisServer, wait_until};

use super::{connect, eventually, write};

fn server() -> RedisServer {
    RedisServer::start(RedisOptions::default()).unwrap()
}

/// Returns the ids of tenure's connections to the server.
fn clients(server: &RedisServer) -> Vec<u64> {
    let list: String = server.admin().query(&["CLIENT", "LIST"]).unwrap();
    let ours = list.lines().filter(|line| line.contains(" name=tenure "));
    let ids = ours.filter_map(|line| line.strip_prefix("id=")?.split(' ').next()?.parse().ok());
    ids.collect()
}

/// Returns the ids of the two connections of the present link.
async fn link(server: &RedisServer, backend: &RedisBackend) -> Vec<u64> {
    eventually("a write", async || write(backend).await).await;
    // Those of the search end a moment later.
    wait_until("a link of two connections", || {
        let now = clients(server);
        Ok((now.len() == 2).then_some(now))
    })
    .unwrap()
}

#[tokio::test]
async fn absent_server_is_unavailable_and_named() {
    let server = server();
    server.kill().unwrap();
    let error = connect(&server.url()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert_eq!(error.effect(), Effect::None);
    assert!(
        error.chain().to_string().contains(&server.address().to_string()),
        "{}",
        error.chain()
    );
}

#[tokio::test]
async fn killed_server_is_reconnected_after_its_restart() {
    let server = server();
    let backend = connect(&server.url()).await.unwrap();
    write(&backend).await.unwrap();
    for _ in 0..3 {
        server.kill().unwrap();
        let error = write(&backend).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert!(error.is_retryable());
        server.restart().unwrap();
        eventually("a write after the restart", async || write(&backend).await).await;
    }
}

/// Without a request: a client that waits for a message sends none.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_connection_is_replaced_without_a_request() {
    let server = server();
    let backend = connect(&server.url()).await.unwrap();
    for round in 0..6 {
        let before = link(&server, &backend).await;
        let id = before[round % 2].to_string();
        let killed: u64 = server.admin().query(&["CLIENT", "KILL", "ID", &id]).unwrap();
        assert_eq!(killed, 1);
        wait_until("new connections", || {
            let now = clients(&server);
            Ok((now.len() >= 2 && now.iter().all(|id| !before.contains(id))).then_some(()))
        })
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn silent_server_is_noticed_without_a_request_and_replaced() {
    let server = server();
    let backend = connect(&format!("{}?timeout=400ms", server.url())).await.unwrap();
    let before = link(&server, &backend).await;
    server.pause().unwrap();
    // Either the watch over the link has noticed by now, or the request is the one that is not answered.
    let error = write(&backend).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    server.resume().unwrap();
    eventually("a write after the pause", async || write(&backend).await).await;
    assert!(link(&server, &backend).await.iter().all(|id| !before.contains(id)));

    let proxy = Proxy::start(server.address()).unwrap();
    let _idle = connect(&format!("redis://{}?timeout=400ms", proxy.address()))
        .await
        .unwrap();
    let accepted = proxy.accepted();
    proxy.silence();
    wait_until("an attempt to replace the silent connections", || {
        Ok((proxy.accepted() > accepted).then_some(()))
    })
    .unwrap();
}

#[tokio::test]
async fn lost_answer_has_an_unknown_effect() {
    let server = server();
    let proxy = Proxy::start(server.address()).unwrap();
    let backend = connect(&format!("redis://{}?timeout=400ms", proxy.address()))
        .await
        .unwrap();
    write(&backend).await.unwrap();
    proxy.set(Direction::Answers, Flow::Drop);
    let error = write(&backend).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.effect(), Effect::Unknown, "{}", error.chain());
    assert!(error.is_retryable());
    proxy.heal();
    eventually("a write after the fault", async || write(&backend).await).await;
}

/// A request that was never sent says so: of 200, at most 128 are in flight.
#[tokio::test]
async fn request_behind_the_limit_has_no_effect_when_the_link_ends() {
    let server = server();
    let proxy = Proxy::start(server.address()).unwrap();
    let backend = connect(&format!("redis://{}?timeout=400ms", proxy.address()))
        .await
        .unwrap();
    proxy.set(Direction::Answers, Flow::Drop);
    let errors = join_all((0..200).map(|_| write(&backend))).await;
    let effects: Vec<_> = errors.into_iter().map(|error| error.unwrap_err().effect()).collect();
    let unknown = effects.iter().filter(|effect| **effect == Effect::Unknown).count();
    assert_eq!(unknown, 128, "{effects:?}");
    assert!(effects.iter().all(|effect| *effect != Effect::Applied));
}

#[tokio::test]
async fn burst_of_requests_is_answered_completely() {
    let backend = Arc::new(connect(&server_url()).await.unwrap());
    let request = |_| {
        let backend = Arc::clone(&backend);
        tokio::spawn(async move { write(&backend).await })
    };
    for answer in join_all((0..5_000).map(request)).await {
        answer.unwrap().unwrap();
    }
}

fn server_url() -> String {
    tenure_testbed::shared_redis().unwrap().url().to_owned()
}

/// The connections live on the library's thread: an application that blocks its runtime keeps them.
#[tokio::test]
async fn blocked_runtime_keeps_the_link() {
    let server = server();
    let backend = connect(&format!("{}?timeout=1s", server.url())).await.unwrap();
    let before = link(&server, &backend).await;
    std::thread::sleep(Duration::from_secs(4)); // real time: the application blocks its runtime for four timeouts
    write(&backend).await.unwrap();
    assert_eq!(clients(&server), before);
}

#[test]
fn store_outlives_the_runtime_that_connected() {
    let server = server();
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let first = runtime();
    let backend = first.block_on(connect(&server.url())).unwrap();
    drop(first);
    // No time driver: no timer may belong to the caller's runtime.
    let bare = tokio::runtime::Builder::new_current_thread().build().unwrap();
    bare.block_on(write(&backend)).unwrap();
    server.kill().unwrap();
    for _ in 0..3 {
        // The last ones wait for a link.
        bare.block_on(write(&backend)).unwrap_err();
    }
    server.restart().unwrap();
    runtime().block_on(eventually("a write after the restart", async || write(&backend).await));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn dropped_store_closes_its_connections() {
    let server = server();
    let backend = connect(&server.url()).await.unwrap();
    link(&server, &backend).await;
    drop(backend);
    wait_until("no connection", || Ok(clients(&server).is_empty().then_some(()))).unwrap();
}

/// While no server is there, every caller gets the failure of one attempt, and attempts have pauses between them.
#[tokio::test]
async fn many_callers_share_one_attempt() {
    let server = server();
    let proxy = Proxy::start(server.address()).unwrap();
    let backend = Arc::new(connect(&format!("redis://{}", proxy.address())).await.unwrap());
    server.kill().unwrap();
    let before = proxy.accepted();
    for _ in 0..4 {
        let errors = join_all((0..100).map(|_| write(&backend))).await;
        assert!(errors.iter().all(Result::is_err));
    }
    let attempts = proxy.accepted() - before;
    assert!((1..=8).contains(&attempts), "{attempts} attempts for 400 calls");
}
