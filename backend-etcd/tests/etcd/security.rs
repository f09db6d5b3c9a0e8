//! Who may talk to whom, and what is never said aloud.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use tenure_core::backend::StoreUrl;
use tenure_core::{ErrorKind, Result};
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Certs, EtcdServer, Identity, Tls};

use crate::common::*;

fn url(url: &str) -> EtcdConfig {
    EtcdConfig::from_url(StoreUrl::parse(url).unwrap()).unwrap()
}

/// Connects, takes a lock and lets go.
async fn use_it(config: EtcdConfig) -> Result<()> {
    let store = tenure_etcd::connect(config).await?;
    let session = store.open(Default::default()).await?;
    session.locker("x")?.lock().await?.release().await?;
    session.close().await
}

/// The refusal, which must come promptly.
async fn refused(what: &str, config: EtcdConfig) -> tenure_core::Error {
    let start = Instant::now();
    let Err(error) = use_it(config).await else {
        panic!("{what}: accepted");
    };
    assert!(start.elapsed() < secs(5), "{what}: {:?}", start.elapsed());
    error
}

fn shown(identity: &Identity) -> String {
    let (cert, key) = (identity.cert.display(), identity.key.display());
    format!("&cert={cert}&key={key}")
}

fn secure(server: &EtcdServer, ca: &Path, rest: &str) -> EtcdConfig {
    let (address, ca) = (server.address(), ca.display());
    url(&format!("etcds://{address}/tls?ca={ca}{rest}"))
}

#[tokio::test]
async fn tls_accepts_the_right_and_refuses_the_wrong() {
    let certs = Certs::generate().unwrap();
    let start = |tls: Tls| EtcdServer::builder().tls(tls).start_async();
    let server = start(certs.tls()).await.unwrap();
    use_it(secure(&server, &certs.ca, "")).await.unwrap();
    use_it(secure(&server, &certs.ca, "&server_name=localhost"))
        .await
        .unwrap();

    let error = refused("wrong authority", secure(&server, &certs.other_ca, "")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.chain().to_string().contains("certificate"), "{error}");
    let elsewhere = secure(&server, &certs.ca, "&server_name=elsewhere.invalid");
    let error = refused("wrong name", elsewhere).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let system = url(&format!("etcds://{}/tls", server.address()));
    let error = refused("unknown authority", system).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let plain = url(&format!("etcd://{}/tls", server.address()));
    let error = refused("plaintext to a TLS port", plain).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.chain().to_string().contains("etcds://"), "{error}");
    let plain = shared().address();
    let ca = certs.ca.display();
    let error = refused(
        "TLS to a plain port",
        url(&format!("etcds://{plain}/tls?ca={ca}")),
    )
    .await;
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unavailable | ErrorKind::Unauthorized
        ),
        "{error}"
    );
    let error = refused(
        "no such file",
        secure(&server, Path::new("/nowhere.pem"), ""),
    )
    .await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let certs = Certs::generate().unwrap();
    let tls = Tls::new(certs.ca.clone(), certs.wrong_host.clone());
    // `etcdctl` would refuse it, too; nothing asks it here.
    let server = EtcdServer::builder().tls(tls).start_async().await.unwrap();
    let error = refused("wrong host", secure(&server, &certs.ca, "")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let named = secure(&server, &certs.ca, "&server_name=elsewhere.invalid");
    use_it(named).await.unwrap();
}

#[tokio::test]
async fn mutual_tls_wants_the_right_certificate() {
    let certs = Certs::generate().unwrap();
    let server = EtcdServer::builder().tls(certs.mutual_tls());
    let server = server.start_async().await.unwrap();
    let config = |identity: &Identity| secure(&server, &certs.ca, &shown(identity));
    use_it(config(&certs.client)).await.unwrap();
    for (what, config) in [
        ("none", secure(&server, &certs.ca, "")),
        ("expired", config(&certs.expired_client)),
        ("foreign", config(&certs.foreign_client)),
    ] {
        let error = refused(what, config).await;
        assert!(
            matches!(
                error.kind(),
                ErrorKind::Unavailable | ErrorKind::Unauthorized
            ),
            "{what}: {error}"
        );
        assert!(
            error.chain().to_string().contains("`cert`"),
            "{what}: {error}"
        );
    }
    let swapped = Identity {
        cert: certs.client.cert.clone(),
        key: certs.expired_client.key.clone(),
    };
    let error = refused("a key that is not the certificate's", config(&swapped)).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

/// Everything that tenure writes to its traces on this thread.
#[derive(Clone, Default)]
struct Traces(Arc<Mutex<Vec<u8>>>);

impl Write for Traces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

const CANARY: &str = "canary-7f3a";

#[tokio::test]
async fn the_password_is_never_shown() {
    let server = EtcdServer::builder().root_password(CANARY);
    let server = server.start_async().await.unwrap();
    let traces = Traces::default();
    let writer = traces.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    // While there is one dispatcher, an event that another thread meets first is off for all: a second one ends that.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    // One thread, so this covers the tasks as well.
    let _installed = tracing::subscriber::set_default(subscriber);

    let mut shown = Vec::new();
    let address = server.address();
    let config = url(&format!("etcd://root:{CANARY}@{address}/canary"));
    shown.push(format!("{config:?} {config:#?}"));
    use_it(config.clone()).await.unwrap();
    let store = connect(config).await;
    shown.push(format!("{store:?} {:?}", store.guarantees().await));
    for wrong in [
        format!("etcd://root:{CANARY}-wrong@{address}/canary"),
        format!("etcd://nobody:{CANARY}@{address}/canary"),
        format!("etcd://root:{CANARY}@127.0.0.1:1/canary"),
        format!("etcds://root:{CANARY}@{address}/canary"),
    ] {
        let error = refused("wrong", url(&wrong)).await;
        let text = error.chain().to_string();
        let here = address.to_string();
        let host = match wrong.contains("127.0.0.1:1/") {
            true => "127.0.0.1:1",
            false => here.as_str(),
        };
        assert!(text.contains(host), "{text}");
        shown.push(format!("{error} {error:?} {error:#?}"));
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            shown.push(format!("{error} {error:?}"));
            source = error.source();
        }
    }
    for nonsense in [
        format!("etcd://root:{CANARY}@nowhere/canary"),
        format!("etcd://root:{CANARY}@{address}/canary?nonsense=1"),
        format!("etcd://root:{CANARY}@{address}/canary?ttl=x"),
    ] {
        let error = StoreUrl::parse(&nonsense).and_then(EtcdConfig::from_url);
        shown.push(format!("{:?}", error.unwrap_err()));
    }
    let server_down = server.address();
    drop(server);
    let error = tenure_etcd::connect(url(&format!("etcd://root:{CANARY}@{server_down}/canary")));
    shown.push(format!("{:?}", error.await.unwrap_err()));
    for text in shown {
        assert!(!text.contains(CANARY), "{text}");
    }
    let traces = String::from_utf8_lossy(&traces.0.lock().unwrap()).into_owned();
    let ours: Vec<_> = traces
        .lines()
        .filter(|line| line.contains("tenure"))
        .collect();
    assert!(ours.iter().any(|line| line.contains("session open")));
    for line in ours {
        assert!(!line.contains(CANARY), "{line}");
    }
}

/// A user whose role has one grant: read and write below the namespace's root.
fn limit(server: &EtcdServer, namespace: &str) {
    let prefix = format!("tenure/1/{namespace}/");
    for step in [
        &["role", "add", "app"][..],
        &[
            "role",
            "grant-permission",
            "app",
            "readwrite",
            "--prefix=true",
            &prefix,
        ],
        &["user", "add", "app:secret"],
        &["user", "grant-role", "app", "app"],
    ] {
        server.run_etcdctl(step).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_on_the_namespace_is_enough_and_no_more() {
    let server = EtcdServer::builder().root_password("root-secret");
    let server = server.start_async().await.unwrap();
    limit(&server, "app");
    let address = server.address();
    let config = url(&format!("etcd://app:secret@{address}/app"));
    // Everything we do: wait, near and far, audit, detach, resume, reclaim, withdraw, close, ask
    // for the guarantees.
    let store = connect(config.clone()).await;
    store.guarantees().await.unwrap();
    let session = open(&store, secs(3)).await;
    let guard = session.locker("x").unwrap().lock().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..22 {
        let (store, before) = (connect(config.clone()).await, waiting.len());
        let lock = open(&store, secs(20)).await.locker("x").unwrap();
        waiting.push(tokio::spawn(async move {
            lock.lock().await.map(|guard| (before, drop(guard)))
        }));
    }
    let other = open(&store, secs(20)).await;
    let timed = other.locker("x").unwrap().lock_timeout(ms(200)).await;
    assert_eq!(timed.unwrap_err().kind(), ErrorKind::TimedOut);
    let until = Instant::now() + secs(4);
    while Instant::now() < until {
        assert!(guard.is_valid(), "renewed and audited: {:?}", guard.loss());
        tokio::time::sleep(ms(50)).await;
    }
    let token = guard.token();
    let id = session.detach().await.unwrap();
    let session = store.resume(&id).await.unwrap();
    let guard = session.locker("x").unwrap().reclaim(token).await.unwrap();
    guard.release().await.unwrap();
    for waiting in waiting {
        within(secs(20), "a turn", waiting).await.unwrap().unwrap();
    }
    session.close().await.unwrap();

    let foreign = url(&format!("etcd://app:secret@{address}/app2"));
    let error = refused("another namespace", foreign).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let wrong = url(&format!("etcd://app:wrong@{address}/app"));
    let error = refused("wrong password", wrong).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(!error.is_retryable());
    let nobody = url(&format!("etcd://{address}/app"));
    let error = refused("no user", nobody).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let superfluous = url(&format!("etcd://app:secret@{}/app", shared().address()));
    let error = refused("a user where there are none", superfluous).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");

    // Rights that are taken away in mid-wait end the wait with an error that says so.
    let session = open(&store, secs(20)).await;
    let guard = session.locker("y").unwrap().lock().await.unwrap();
    let taken = [
        "role",
        "revoke-permission",
        "app",
        "--prefix=true",
        "tenure/1/app/",
    ];
    server.run_etcdctl(&taken).unwrap();
    let error = within(SOON, "lock", session.locker("z").unwrap().lock()).await;
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Unauthorized);
    assert_eq!(
        guard.release().await.unwrap_err().kind(),
        ErrorKind::Unauthorized
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_auth_token_may_expire_under_a_session() {
    let server = EtcdServer::builder()
        .root_password("root-secret")
        .auth_token_ttl(2);
    let server = server.start_async().await.unwrap();
    limit(&server, "app");
    let address = server.address();
    let config = url(&format!("etcd://app:secret@{address}/app"));
    let store = connect(config.clone()).await;
    let holder = open(&connect(config).await, secs(30)).await;
    let sessions = [open(&store, secs(30)).await, open(&store, secs(30)).await];
    let wait = |session: usize, name: &str| {
        let lock = sessions[session].locker(name).unwrap();
        tokio::spawn(async move { lock.lock().await?.release().await })
    };
    // A standing watch, opened with the first token...
    let first = holder.locker("first").unwrap().lock().await.unwrap();
    let standing = wait(0, "first");
    tokio::time::sleep(ms(300)).await;
    // ...then silence for longer than tokens live: nothing but keepalives.
    tokio::time::sleep(secs(4)).await;
    let second = holder.locker("second").unwrap().lock().await.unwrap();
    let fresh = wait(1, "second"); // opens a watch on the old stream
    let again = wait(0, "second");
    tokio::time::sleep(ms(500)).await;
    assert!(!standing.is_finished() && !fresh.is_finished() && !again.is_finished());
    // Less than the slow check, which must not be what helps.
    first.release().await.unwrap();
    within(secs(4), "the old watch", standing)
        .await
        .unwrap()
        .unwrap();
    second.release().await.unwrap();
    within(secs(4), "the new one", fresh)
        .await
        .unwrap()
        .unwrap();
    within(secs(4), "and its neighbour", again)
        .await
        .unwrap()
        .unwrap();
    assert!(sessions.iter().all(|session| session.is_valid()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_without_rights_is_told() {
    let server = EtcdServer::builder().root_password("root-secret");
    let server = server.start_async().await.unwrap();
    limit(&server, "app");
    let store = connect(url(&format!("etcd://app:secret@{}/app", server.address()))).await;
    let session = open(&store, secs(20)).await;
    let queue = session.queue("x").unwrap();
    let taken = [
        "role",
        "revoke-permission",
        "app",
        "--prefix=true",
        "tenure/1/app/",
    ];
    server.run_etcdctl(&taken).unwrap();
    let tried = within(SOON, "an answer", queue.try_dequeue()).await;
    assert_eq!(tried.unwrap_err().kind(), ErrorKind::Unauthorized);
    let waited = within(SOON, "an answer", queue.dequeue()).await;
    assert_eq!(waited.unwrap_err().kind(), ErrorKind::Unauthorized);
}
