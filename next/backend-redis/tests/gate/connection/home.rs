//! The application's runtime, on which the connection for commands lives: blocked, not driven, or gone.

use tenure_redis::RedisBackend;
use tenure_testbed::{RedisOptions, RedisServer};
use tokio::runtime::{Builder, Runtime};

use super::{connect, eventually, write};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

async fn write_soon(backend: &RedisBackend) {
    eventually("a write from another runtime", async || write(backend).await).await;
}

/// Nothing runs the connection, and no answer would ever be read.
#[test]
fn runtime_that_is_not_driven_is_left_by_a_request_of_another_one() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let home = runtime();
    let backend = home.block_on(connect(&server.url())).unwrap();
    runtime().block_on(write_soon(&backend));
    // The first one goes on with the new connections.
    home.block_on(write_soon(&backend));
}

#[test]
fn blocked_workers_are_left_by_a_request_of_another_runtime() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let home = Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let backend =
        home.block_on(async { tokio::spawn(async move { connect(&server.url()).await.map(|it| (it, server)) }).await });
    let (backend, _server) = backend.unwrap().unwrap();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    home.spawn(async move {
        drop(begin);
        blocked.recv()
    });
    begun.recv().unwrap_err();
    runtime().block_on(write_soon(&backend));
    drop(release);
    home.block_on(write_soon(&backend));
}
