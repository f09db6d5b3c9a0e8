//! Users, passwords, TLS, and servers that may not be used.

use tenure_core::{Error, ErrorKind};
use tenure_testbed::{Certs, EtcdOptions, EtcdServer, Tls};

use crate::{connect, open, start};

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
async fn absent_server_is_unavailable_and_named() {
    let server = start(EtcdOptions::default());
    server.kill().unwrap();
    let error = refused(&server.url()).await;
    assert_says(
        &error,
        ErrorKind::Unavailable,
        &[&server.address().to_string(), "start it"],
    );
    assert!(error.is_retryable());
}

#[tokio::test]
async fn wrong_password_is_final_and_not_shown() {
    let server = start(EtcdOptions::default().root_password("right"));
    let address = server.address();
    let wrong = refused(&format!("etcd://root:canary@{address}")).await;
    assert_says(&wrong, ErrorKind::Unauthorized, &["password", &address.to_string()]);
    assert!(!wrong.is_retryable() && !format!("{wrong:?}").contains("canary"));
    let none = refused(&server.url()).await;
    assert_says(&none, ErrorKind::Unauthorized, &["user:password@"]);
    let store = connect(&format!("etcd://root:right@{address}")).await.unwrap();
    open(&store).await.lock("a").await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn user_with_a_role_on_the_namespace_can_do_all_and_nothing_beside_it() {
    let server = start(EtcdOptions::default().root_password("right"));
    let admin = server.admin();
    for words in [
        &["role", "add", "app"][..],
        &[
            "role",
            "grant-permission",
            "--prefix=true",
            "app",
            "readwrite",
            "tenure/2/ns/",
        ],
        // To recognise a namespace of an older layout.
        &["role", "grant-permission", "app", "read", "tenure/1/ns/layout"],
        &["user", "add", "app:secret"],
        &["user", "grant-role", "app", "app"],
    ] {
        admin.run(words).unwrap();
    }
    let url = |namespace| format!("etcd://app:secret@{}/{namespace}", server.address());
    let error = refused(&url("other")).await;
    assert_says(&error, ErrorKind::Unauthorized, &["readwrite"]);
    let store = connect(&url("ns")).await.unwrap();
    let (first, second) = (open(&store).await, open(&store).await);
    let guard = first.lock("a").await.unwrap();
    let waiter = second.clone();
    let waiting = tokio::spawn(async move { waiter.lock("a").await });
    guard.release().await.unwrap();
    waiting.await.unwrap().unwrap().release().await.unwrap();
    let shared = first.rw_lock("a").write().await.unwrap().downgrade().await.unwrap();
    shared.release().await.unwrap();
    assert_eq!(second.election("a").leader().await.unwrap(), None);
    store.guarantees().await.unwrap();
    first.close().await.unwrap();
}

#[tokio::test]
async fn tls_is_required_where_it_is_asked_for_and_checks_names_and_certificates() {
    let certs = Certs::generate().unwrap();
    let server = start(EtcdOptions::default().tls(certs.mutual_tls()));
    let (address, ca) = (server.address(), certs.ca.display());
    let client = |identity: &tenure_testbed::Identity| {
        format!("cert={}&key={}", identity.certificate.display(), identity.key.display())
    };
    let good = format!("etcds://{address}/ns?ca={ca}&{}", client(&certs.client));
    open(&connect(&good).await.unwrap())
        .await
        .lock("a")
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let plain = refused(&format!("etcd://{address}")).await;
    assert_says(&plain, ErrorKind::Unavailable, &["etcds://"]);
    for url in [
        format!("etcds://{address}?ca={ca}"),
        format!("etcds://{address}?ca={ca}&{}", client(&certs.foreign_client)),
        format!(
            "etcds://{address}?ca={}&{}",
            certs.other_ca.display(),
            client(&certs.client)
        ),
    ] {
        let error = refused(&url).await;
        assert!(
            matches!(error.kind(), ErrorKind::Unauthorized | ErrorKind::Unavailable),
            "{url}: {}",
            error.chain()
        );
    }
    let wrong_host = Tls {
        server: certs.wrong_host.clone(),
        ..certs.tls()
    };
    let elsewhere = start(EtcdOptions::default().tls(wrong_host));
    let error = refused(&format!("etcds://{}?ca={ca}", elsewhere.address())).await;
    assert_says(&error, ErrorKind::Unauthorized, &["certificate"]);
    let named = format!("etcds://{}?ca={ca}&server_name=elsewhere.invalid", elsewhere.address());
    connect(&named).await.unwrap();
}

async fn check_layout(server: &EtcdServer, key: &str, value: &str) {
    server.admin().put(key, value).unwrap();
    let error = refused(&format!("{}/ns", server.url())).await;
    assert_says(&error, ErrorKind::Config, &[&format!("layout {value}"), "layout 2"]);
    server.admin().delete(key).unwrap();
}

#[tokio::test]
async fn namespace_of_another_layout_is_refused() {
    let server = start(EtcdOptions::default());
    check_layout(&server, "tenure/1/ns/layout", "1").await;
    check_layout(&server, "tenure/2/ns/layout", "3").await;
    connect(&format!("{}/ns", server.url())).await.unwrap();
    connect(&format!("{}/ns", server.url())).await.unwrap();
}
