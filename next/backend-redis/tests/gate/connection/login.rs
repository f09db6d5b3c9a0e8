//! Users, passwords, TLS, and servers that may not be used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tenure_core::url::StoreUrl;
use tenure_core::{ConnectOptions, Credentials, Error, ErrorKind};
use tenure_redis::{RedisBackend, RedisConfig};
use tenure_testbed::{Certs, Identity, RedisOptions, RedisPair, RedisServer, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::{connect, eventually, write};

fn start(options: RedisOptions) -> RedisServer {
    RedisServer::start(options).unwrap()
}

async fn refused(url: &str) -> Error {
    match connect(url).await {
        Ok(_) => panic!("{url} is accepted"),
        Err(error) => error,
    }
}

fn assert_says(error: &Error, kind: ErrorKind, words: &[&str]) {
    let chain = error.chain().to_string();
    assert_eq!(error.kind(), kind, "{chain}");
    for word in words {
        assert!(chain.contains(word), "{word}: {chain}");
    }
}

#[tokio::test]
async fn wrong_password_is_final_and_not_shown() {
    let server = start(RedisOptions::default().password("right"));
    let address = server.address();
    let wrong = refused(&format!("redis://:canary@{address}")).await;
    assert_says(&wrong, ErrorKind::Unauthorized, &["WRONGPASS", &address.to_string()]);
    assert!(!wrong.is_retryable());
    assert!(!format!("{wrong:?}").contains("canary"));
    let none = refused(&format!("redis://{address}")).await;
    assert_says(&none, ErrorKind::Unauthorized, &["NOAUTH", "password"]);
    assert!(!none.is_retryable());
    connect(&format!("redis://:right@{address}")).await.unwrap();
}

/// A server that does not know a command repeats its arguments, and `HELLO` has the password.
#[tokio::test]
async fn password_is_not_shown_by_a_server_without_the_login_command() {
    let login = RedisOptions::default().user("app", "on >canary ~* &* +@all");
    let server = start(login.line("rename-command HELLO \"\""));
    let error = refused(&format!("redis://app:canary@{}", server.address())).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{}", error.chain());
    let shown = format!("{error:?} {}", error.chain());
    assert!(!shown.contains("canary"), "{shown}");
}

/// The attempts after a final failure begin when a request asks for one: the function is called again.
#[tokio::test]
async fn rotated_password_is_used_for_the_next_connection() {
    let server = start(RedisOptions::default().password("first"));
    let rotated = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&rotated);
    let options = ConnectOptions::new().credentials_from(move || {
        let password = if flag.load(Ordering::SeqCst) { "second" } else { "first" };
        async move { Ok(Credentials::new("", password)) }
    });
    let url = StoreUrl::parse(&server.url()).unwrap().with(options);
    let backend = RedisBackend::connect(RedisConfig::from_url(url).unwrap())
        .await
        .unwrap();
    server.admin().set_config("requirepass", "second").unwrap();
    server
        .admin()
        .execute(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
        .unwrap();
    let refused = eventually("a refusal", async || match write(&backend).await {
        Err(error) if error.kind() == ErrorKind::Unauthorized => Ok(error),
        Err(error) => Err(error),
        Ok(()) => Err(Error::new(ErrorKind::Internal, "the old connection still works")),
    })
    .await;
    assert!(!refused.is_retryable());
    rotated.store(true, Ordering::SeqCst);
    eventually("a write with the new password", async || write(&backend).await).await;
}

#[tokio::test]
async fn full_server_is_unavailable() {
    // The server reserves connections for itself, and the testbed's own need one.
    let server = start(RedisOptions::default());
    server.admin().set_config("maxclients", "1").unwrap();
    let error = refused(&server.url()).await;
    assert_says(&error, ErrorKind::Unavailable, &["maxclients"]);
    assert!(error.is_retryable());
}

#[tokio::test]
async fn evicting_server_is_refused_unless_it_is_allowed() {
    let server = start(RedisOptions::default().line("maxmemory-policy allkeys-lru"));
    assert_says(
        &refused(&server.url()).await,
        ErrorKind::Config,
        &["allkeys-lru", "allow_eviction"],
    );
    connect(&format!("{}?allow_eviction=true", server.url())).await.unwrap();
}

#[tokio::test]
async fn replica_and_absent_database_are_refused() {
    let pair = RedisPair::start(RedisOptions::default()).unwrap();
    let replica = refused(&pair.replica.url()).await;
    assert_says(
        &replica,
        ErrorKind::Unavailable,
        &["replica", &pair.replica.address().to_string()],
    );
    let absent = refused(&format!("{}/99", pair.primary.url())).await;
    assert_says(&absent, ErrorKind::Config, &["database 99"]);
    let old = refused(&format!("{}?wait_aof=true", pair.primary.url())).await;
    assert_says(&old, ErrorKind::Config, &["`wait_aof` needs Redis 7.2"]);
}

/// An imitation: no old server is at hand.
#[tokio::test]
async fn server_before_7_0_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(read @ 1..) = stream.read(&mut buffer).await {
                    let text = String::from_utf8_lossy(&buffer[..read]).to_uppercase();
                    let commands = text.matches('*').count();
                    let hello = "%3\r\n+version\r\n+6.2.14\r\n+mode\r\n+standalone\r\n+role\r\n+master\r\n";
                    let answers = match text.contains("HELLO") {
                        true => hello.to_owned() + &"+OK\r\n".repeat(commands - 1),
                        false => "+OK\r\n".repeat(commands),
                    };
                    if stream.write_all(answers.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let error = refused(&format!("redis://{address}")).await;
    assert_says(&error, ErrorKind::Config, &["6.2.14", "7.0", &address.to_string()]);
}

fn tls_url(server: &RedisServer, files: &[(&str, &std::path::Path)]) -> String {
    let query: Vec<_> = files
        .iter()
        .map(|(key, path)| format!("{key}={}", path.display()))
        .collect();
    format!("{}?{}", server.url(), query.join("&"))
}

#[tokio::test]
async fn tls_verifies_the_server() {
    let certs = Certs::generate().unwrap();
    let server = start(RedisOptions::default().tls(certs.tls()));
    let backend = connect(&tls_url(&server, &[("ca", &certs.ca)])).await.unwrap();
    write(&backend).await.unwrap();
    let other = refused(&tls_url(&server, &[("ca", &certs.other_ca)])).await;
    assert_says(&other, ErrorKind::Unauthorized, &["certificate", "`ca`"]);
    let named = refused(&(tls_url(&server, &[("ca", &certs.ca)]) + "&server_name=elsewhere.invalid")).await;
    assert_says(&named, ErrorKind::Unauthorized, &["`server_name`"]);
    let missing = refused(&tls_url(&server, &[("ca", "/nonexistent.pem".as_ref())])).await;
    assert_says(&missing, ErrorKind::Config, &["/nonexistent.pem"]);

    let elsewhere = Tls {
        server: certs.wrong_host.clone(),
        ..certs.tls()
    };
    let server = start(RedisOptions::default().tls(elsewhere));
    let wrong = refused(&tls_url(&server, &[("ca", &certs.ca)])).await;
    assert_says(&wrong, ErrorKind::Unauthorized, &["`server_name`"]);
    connect(&(tls_url(&server, &[("ca", &certs.ca)]) + "&server_name=elsewhere.invalid"))
        .await
        .unwrap();
}

#[tokio::test]
async fn tls_presents_the_client() {
    let certs = Certs::generate().unwrap();
    let server = start(RedisOptions::default().tls(certs.mutual_tls()));
    let url = |identity: &Identity| {
        tls_url(
            &server,
            &[
                ("ca", &certs.ca),
                ("cert", &identity.certificate),
                ("key", &identity.key),
            ],
        )
    };
    write(&connect(&url(&certs.client)).await.unwrap()).await.unwrap();
    for (problem, url) in [
        ("none", tls_url(&server, &[("ca", &certs.ca)])),
        ("expired", url(&certs.expired_client)),
        ("foreign", url(&certs.foreign_client)),
    ] {
        let error = refused(&url).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{problem}: {}", error.chain());
        assert!(error.message().contains("`cert`"), "{problem}: {}", error.chain());
    }
}

#[tokio::test]
async fn tls_on_one_side_alone_is_named() {
    let certs = Certs::generate().unwrap();
    let secure = start(RedisOptions::default().tls(certs.tls()));
    let plain = refused(&format!("redis://{}", secure.address())).await;
    assert_says(&plain, ErrorKind::Unavailable, &["`rediss`"]);
    let server = start(RedisOptions::default());
    let tls = refused(&format!("rediss://{}?ca={}", server.address(), certs.ca.display())).await;
    assert_says(&tls, ErrorKind::Unavailable, &["TLS"]);
}
