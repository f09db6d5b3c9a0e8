//! Who may talk to whom, and what is never said aloud.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};

use tenure_core::backend::StoreUrl;
use tenure_core::{Durability, Error, ErrorKind, Namespace};
use tenure_redis::RedisConfig;
use tenure_testbed::{
    Certs, Identity, RedisCluster, RedisReplica, RedisSentinels, RedisServer, Tls,
};

use crate::common::*;

fn secure(url: &str, ca: &Path, rest: &str) -> RedisConfig {
    config(format!("{url}?ca={}{rest}", ca.display()))
}

fn shown(identity: &Identity) -> String {
    let (cert, key) = (identity.cert.display(), identity.key.display());
    format!("&cert={cert}&key={key}")
}

#[tokio::test]
async fn tls_accepts_the_right_and_refuses_the_wrong() {
    let certs = Certs::generate().unwrap();
    let server = RedisServer::builder().tls(certs.tls());
    let server = server.start_async().await.unwrap();
    let url = server.url();
    use_it(secure(&url, &certs.ca, "")).await.unwrap();
    use_it(secure(&url, &certs.ca, "&server_name=localhost"))
        .await
        .unwrap();

    for (what, config) in [
        ("wrong authority", secure(&url, &certs.other_ca, "")),
        (
            "wrong name",
            secure(&url, &certs.ca, "&server_name=elsewhere.invalid"),
        ),
        ("the system's authorities", config(&url)),
    ] {
        let error = refused(what, config).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error}");
        assert!(
            error.chain().to_string().contains("certificate"),
            "{what}: {error}"
        );
    }
    let plain = config(url.replace("rediss", "redis"));
    let error = refused("plaintext to a TLS port", plain).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.chain().to_string().contains("`rediss`"), "{error}");
    let plain = RedisServer::start_async().await.unwrap();
    let plain = plain.url().replace("redis", "rediss");
    let error = refused("TLS to a plain port", secure(&plain, &certs.ca, "")).await;
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(
        error.chain().to_string().contains("write `redis`"),
        "{error}"
    );
    let error = refused("no such file", secure(&url, Path::new("/nowhere.pem"), "")).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let certs = Certs::generate().unwrap();
    let tls = Tls::new(certs.ca.clone(), certs.wrong_host.clone());
    let server = RedisServer::builder().tls(tls).start_async().await.unwrap();
    let error = refused("wrong host", secure(&server.url(), &certs.ca, "")).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    let named = secure(&server.url(), &certs.ca, "&server_name=elsewhere.invalid");
    use_it(named).await.unwrap();
}

#[tokio::test]
async fn mutual_tls_wants_the_right_certificate() {
    let certs = Certs::generate().unwrap();
    let server = RedisServer::builder().tls(certs.mutual_tls());
    let server = server.start_async().await.unwrap();
    let config = |identity: &Identity| secure(&server.url(), &certs.ca, &shown(identity));
    use_it(config(&certs.client)).await.unwrap();
    for (what, config) in [
        ("none", secure(&server.url(), &certs.ca, "")),
        ("expired", config(&certs.expired_client)),
        ("foreign", config(&certs.foreign_client)),
    ] {
        let error = refused(what, config).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error}");
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

/// Sentinels and redirections lead to servers by addresses of their own: each is checked as well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_by_way_of_sentinels_and_nodes() {
    let certs = Certs::generate().unwrap();
    let server = RedisServer::builder().tls(certs.mutual_tls());
    let pair = RedisReplica::builder().server(server.clone());
    let pair = pair.start_async().await.unwrap();
    let sentinels = RedisSentinels::start_async(&pair).await.unwrap();
    let cluster = RedisCluster::builder().node(server);
    let cluster = cluster.start_async().await.unwrap();
    for url in [sentinels.url(), cluster.url()] {
        assert!(url.starts_with("rediss+"), "{url}");
        use_it(secure(&url, &certs.ca, &shown(&certs.client)))
            .await
            .unwrap();
        for (what, config) in [
            ("none", secure(&url, &certs.ca, "")),
            (
                "authority",
                secure(&url, &certs.other_ca, &shown(&certs.client)),
            ),
        ] {
            let error = refused(what, config).await;
            assert_eq!(error.kind(), ErrorKind::Unauthorized, "{what}: {error}");
        }
    }
}

#[tokio::test]
async fn a_wrong_password_is_final() {
    let server = RedisServer::builder().password("right");
    let server = server.start_async().await.unwrap();
    let address = server.address();
    use_it(config(format!("redis://:right@{address}")))
        .await
        .unwrap();
    use_it(config(format!("redis://default:right@{address}")))
        .await
        .unwrap();
    for user in ["", ":wrong@", "nobody:right@"] {
        let error = refused(user, config(format!("redis://{user}{address}"))).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{user}: {error}");
        assert!(!error.is_retryable(), "{user}: {error}");
        // The host, the server's word for it, and nothing of the library's.
        let text = error.chain().to_string();
        let word = if user.is_empty() {
            "NOAUTH "
        } else {
            "WRONGPASS "
        };
        for once in [&*address.to_string(), word] {
            assert_eq!(text.matches(once).count(), 1, "{once}: {text}");
        }
        assert!(!text.contains(" - "), "{text}");
    }
    // Nor is it tried again and again in the background.
    let refusals = || server.info("acl_access_denied_auth").unwrap();
    let before = refusals();
    tokio::time::sleep(ms(300)).await;
    assert_eq!(refusals(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_have_passwords_of_their_own() {
    let server = RedisServer::builder()
        .user("default", "off")
        .user("app", "on >secret ~* &* +@all");
    let pair = RedisReplica::builder().server(server);
    let pair = pair.start_async().await.unwrap();
    let sentinel = RedisServer::builder().password("watch");
    let sentinels = RedisSentinels::builder().sentinel(sentinel);
    let sentinels = sentinels.start_async(&pair).await.unwrap();
    let url = |user: &str, query: &str| {
        let url = sentinels.url().replace("://", &format!("://{user}"));
        config(format!("{url}?{query}"))
    };
    use_it(url("app:secret@", "sentinel_password=watch&db=2"))
        .await
        .unwrap();
    assert!(
        pair.primary.info("db2").unwrap().is_some(),
        "database 2 was used"
    );
    for (user, query) in [
        ("app:secret@", ""),
        ("app:secret@", "sentinel_password=wrong"),
        ("app:wrong@", "sentinel_password=watch"),
    ] {
        let error = refused(query, url(user, query)).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{query}: {error}");
    }
    let unknown = sentinels.url().replace("/tenure", "/other");
    let unknown = config(format!(
        "{}?sentinel_password=watch",
        unknown.replace("://", "://app:secret@")
    ));
    let error = refused("unknown service", unknown).await;
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.chain().to_string().contains("`other`"), "{error}");
}

#[tokio::test]
async fn the_rights_that_the_documentation_lists_are_enough() {
    let namespace = Namespace::new("app").unwrap();
    let rules = tenure_redis::acl_rules(&namespace);
    let server = RedisServer::builder()
        .user("default", "off")
        .user("app", &format!("on >secret {rules}"));
    let server = server.start_async().await.unwrap();
    let address = server.address();
    let url = |namespace: &str| {
        format!("redis://app:secret@{address}?namespace={namespace}&wait_replicas=0")
    };
    let store = store(url("app")).await;
    let session = open(&store, secs(2)).await;
    let guard = lock(&session, "x").await;
    // Waits, and is told by a push.
    let other = open(&store, secs(2)).await.locker("x").unwrap();
    let waiting = tokio::spawn(async move { other.lock().await.map(drop) });
    // Renewed, audited.
    tokio::time::sleep(secs(2)).await;
    assert!(guard.is_valid(), "{:?}", guard.loss());
    guard.release().await.unwrap();
    within(SOON, "a push", waiting).await.unwrap().unwrap();
    session.close().await.unwrap();
    use_everything(&store).await.unwrap();
    // Newer servers know a right to say by which library one comes, which we can do without.
    if server.version() < "7.2" {
        let denied = server.info("errorstat_NOPERM").unwrap();
        assert_eq!(denied, None, "something that was not reported");
    }
    use_it(config(format!(
        "redis://app:secret@{address}/2?namespace=app"
    )))
    .await
    .unwrap();
    // What it may not see is said to be unknown: the right to see it shows the passwords of others, too.
    let claims = store.guarantees().await.unwrap();
    assert_eq!(claims.durability.value, Durability::Volatile);
    let reason = claims.durability.reason;
    assert!(reason.contains("may not ask for `appendfsync`"), "{reason}");
    let asked = server.command(&["ACL", "DRYRUN", "app", "config", "get", "requirepass"]);
    assert_ne!(asked.unwrap(), "OK", "the documented rule shows passwords");
    // Another's namespace is none of its business.
    let error = refused("another namespace", config(url("other"))).await;
    assert_eq!(error.kind(), ErrorKind::Unauthorized, "{error}");
    assert!(error.chain().to_string().contains("NOPERM"), "{error}");
}

#[tokio::test]
async fn who_lacks_a_right_hears_which() {
    let rules = tenure_redis::acl_rules(&Namespace::default());
    for (denied, word) in [("evalsha", "evalsha"), ("zadd", "zadd"), ("get", "get")] {
        let server = RedisServer::builder()
            .user("default", "off")
            .user("app", &format!("on >secret {rules} -{denied}"));
        let server = server.start_async().await.unwrap();
        let url = format!("redis://app:secret@{}", server.address());
        let error = refused(denied, config(url)).await;
        assert_eq!(error.kind(), ErrorKind::Unauthorized, "{denied}: {error}");
        let shown = error.chain().to_string().to_lowercase();
        assert!(shown.contains(word), "{denied}: {error}");
    }
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

fn all_of(error: &Error) -> String {
    let mut all = format!("{error} {error:?} {error:#?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        all += &format!(" {error} {error:?}");
        source = error.source();
    }
    all
}

#[tokio::test]
async fn passwords_are_never_shown() {
    let server = RedisServer::builder().password(CANARY);
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

    let address = server.address();
    let right = config(format!("redis://:{CANARY}@{address}"));
    let mut said = vec![format!("{right:?} {right:#?}")];
    use_it(right.clone()).await.unwrap();
    let store = store(format!("redis://:{CANARY}@{address}")).await;
    said.push(format!(
        "{store:?} {:?} {:?}",
        store.backend(),
        store.guarantees().await
    ));
    let session = open(&store, secs(5)).await;
    said.push(format!("{session:?}"));
    for wrong in [
        format!("redis://:{CANARY}-wrong@{address}"),
        format!("redis://nobody:{CANARY}@{address}"),
        format!("redis://:{CANARY}@127.0.0.1:1"),
        format!("rediss://:{CANARY}@{address}"),
        format!("redis+sentinel://:{CANARY}@{address}/x?sentinel_password={CANARY}"),
        format!("redis+sentinel://127.0.0.1:1/x?sentinel_user=u&sentinel_password={CANARY}"),
        format!("redis+cluster://:{CANARY}-wrong@{address}"),
    ] {
        said.push(format!("{:?}", StoreUrl::parse(&wrong)));
        said.push(format!("{:?}", config(&wrong)));
        said.push(all_of(&refused("wrong", config(&wrong)).await));
    }
    for nonsense in [
        format!("redis://:{CANARY}@nowhere"),
        format!("redis://:{CANARY}@{address}?nonsense=1"),
        format!("redis://:{CANARY}@{address}?ttl=x"),
        format!("redis://{address}?sentinel_password={CANARY}"),
        format!("redis+sentinel://{address}/x?sentinel_password={CANARY}&sentinel_password=x"),
    ] {
        let error = StoreUrl::parse(&nonsense).and_then(RedisConfig::from_url);
        said.push(all_of(&error.unwrap_err()));
    }
    drop((session, store, server));
    said.push(all_of(&refused("down", right).await));
    for text in said {
        assert!(!text.contains(CANARY), "{text}");
    }
    let traces = String::from_utf8_lossy(&traces.0.lock().unwrap()).into_owned();
    assert!(traces.contains("session open"));
    for line in traces.lines() {
        assert!(!line.contains(CANARY), "{line}");
    }
}
