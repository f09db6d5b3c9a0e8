//! The connection itself: silent servers, old servers, and what is left when all is over.

use std::net::SocketAddr;
use std::sync::Arc;

use tenure_core::{ErrorKind, Session};
use tenure_redis::RedisSession;
use tenure_testbed::{Proxy, RedisServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::common::*;

/// Nobody but the watchdog would find out: all renew every eight hours, and the one who waits behind
/// another who waits does not look before that one's lease ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_noticed_though_everybody_only_waits() {
    const DAY: u64 = 24 * 60 * 60;
    let server = RedisServer::start_async().await.unwrap();
    let proxy = Proxy::start(server.address()).unwrap();
    let holder = session(server.url(), secs(DAY)).await;
    let guard = lock(&holder, "x").await;
    let places = async |count: &str| {
        until("a place in line", || {
            let line = "{tenure/1/default}/lock/x";
            server.command(&["ZCARD", line]).unwrap() == count
        })
        .await;
    };
    let wait = |session: &Session<RedisSession>| {
        let lock = session.locker("x").unwrap();
        tokio::spawn(async move { lock.lock().await })
    };
    let second = session(server.url(), secs(DAY)).await;
    let next = wait(&second);
    places("2").await;
    let url = format!("redis://{}", proxy.address());
    let third = session(url + "?timeout=300ms&connect_timeout=300ms", secs(DAY)).await;
    let last = wait(&third);
    places("3").await;
    let before = proxy.accepted();
    proxy.silence();
    until("another connection", || proxy.accepted() > before).await;
    guard.release().await.unwrap();
    let next = within(SOON, "the lock", next).await.unwrap().unwrap();
    // Told to nobody: the push goes into the silence.
    next.release().await.unwrap();
    proxy.heal();
    let granted = within(SOON, "the lock", last).await.unwrap().unwrap();
    assert!(granted.is_valid());
}

#[tokio::test]
async fn nothing_is_left_when_the_last_one_goes() {
    let server = RedisServer::start_async().await.unwrap();
    // What asks is a client itself.
    let clients = || server.info("connected_clients").unwrap();
    assert_eq!(clients().as_deref(), Some("1"));
    for query in ["", "?wait_aof=false&wait_replicas=0"] {
        let store = store(format!("{}{query}", server.url())).await;
        let session = open(&store, secs(10)).await;
        let guard = lock(&session, "x").await;
        // One for commands, one for subscriptions.
        assert_eq!(clients().as_deref(), Some("3"));
        drop(guard);
        drop((session, store));
        until("the connection is closed", || {
            clients().as_deref() == Some("1")
        })
        .await;
    }
}

/// Answers every command with what `answer` makes of it.
async fn pretender(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = Arc::clone(&answer);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(length @ 1..) = stream.read(&mut buffer).await {
                    // Commands of a few short words arrive whole.
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    for command in text.split('*').skip(1) {
                        let name = command.split("\r\n").nth(2).unwrap_or_default();
                        let _ = stream.write_all(answer(name).as_bytes()).await;
                    }
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn old_servers_are_refused() {
    let older = pretender(|name| format!("-ERR unknown command '{name}'\r\n")).await;
    let old = pretender(|name| match name {
        "HELLO" => {
            "%3\r\n$7\r\nversion\r\n$6\r\n6.0.16\r\n$4\r\nmode\r\n$10\r\nstandalone\r\n$4\r\nrole\r\n$6\r\nmaster\r\n".into()
        }
        _ => "+OK\r\n".into(),
    })
    .await;
    for url in [older, old] {
        let error = refused(&url, config(&url)).await;
        assert_eq!(error.kind(), ErrorKind::Config, "{error}");
        assert!(error.chain().to_string().contains("6.2"), "{error}");
    }
}

#[tokio::test]
async fn what_only_newer_servers_can_is_refused_by_older_ones() {
    let server = RedisServer::start_async().await.unwrap();
    let newer = server.version() >= "7.2";
    let used = use_it(config(format!("{}?wait_aof=true", server.url()))).await;
    match used {
        Ok(()) => assert!(newer),
        Err(error) => {
            assert!(!newer, "{error}");
            assert_eq!(error.kind(), ErrorKind::Config, "{error}");
            assert!(error.chain().to_string().contains("7.2"), "{error}");
        }
    }
}

/// A sentinel that names `primary`, or nothing.
async fn sentinel(primary: Option<SocketAddr>) -> String {
    let url = pretender(move |name| match (name, primary) {
        ("SENTINEL", Some(primary)) => {
            let (host, port) = (primary.ip().to_string(), primary.port().to_string());
            format!(
                "*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n",
                host.len(),
                port.len()
            )
        }
        ("SENTINEL", None) => "*-1\r\n".into(),
        _ => "+OK\r\n".into(),
    })
    .await;
    url.replace("redis://", "")
}

#[tokio::test]
async fn what_a_minority_of_the_sentinels_names_is_not_connected_to() {
    let (real, old) = (
        RedisServer::start_async().await.unwrap(),
        RedisServer::start_async().await.unwrap(),
    );
    for (named, is_enough) in [
        ([Some(real.address()), Some(real.address()), None], true),
        (
            [
                Some(old.address()),
                Some(real.address()),
                Some(real.address()),
            ],
            true,
        ),
        ([Some(old.address()), None, None], false),
        ([Some(old.address()), Some(real.address()), None], false),
    ] {
        let mut sentinels = Vec::new();
        for primary in named {
            sentinels.push(sentinel(primary).await);
        }
        let url = format!("redis+sentinel://{}/main", sentinels.join(","));
        if is_enough {
            use_it(config(url)).await.unwrap();
            continue;
        }
        let error = refused("a minority", config(url)).await;
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(
            error.chain().to_string().contains("more than half"),
            "{error}"
        );
    }
    assert_eq!(
        old.command(&["DBSIZE"]).unwrap(),
        "0",
        "nothing was done there"
    );
}
