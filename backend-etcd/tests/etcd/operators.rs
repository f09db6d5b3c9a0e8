//! What operators do to an etcd, and what comes of it: see the table in docs/etcd.md.

use std::time::Instant;

use tenure_core::ErrorKind;
use tenure_core::backend::StoreUrl;
use tenure_etcd::EtcdConfig;
use tenure_testbed::{Certs, EtcdServer, Identity};

use crate::common::*;

/// How often etcd answered requests of this method.
fn handled(server: &EtcdServer, method: &str) -> u64 {
    let metrics = server.metrics().unwrap();
    let line = metrics.lines().find(|line| {
        line.starts_with("grpc_server_handled_total{grpc_code=\"OK\"")
            && line.contains(&format!("grpc_method=\"{method}\""))
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

#[tokio::test]
async fn namespace_removal_deletes_a_bounded_number_of_keys_a_request() {
    let server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "pages").await;
    let neighbour = Bed::on(&server, "pages").await;
    let kept = format!("{}/data/kept", neighbour.root());
    neighbour
        .raw
        .kv_client()
        .put(kept.as_str(), "", None)
        .await
        .unwrap();
    let keys = 1_700;
    for number in 0..keys {
        let key = format!("{}/data/{number}", bed.root());
        bed.raw.kv_client().put(key, "", None).await.unwrap();
    }
    let before = (handled(&server, "DeleteRange"), handled(&server, "Range"));
    tenure_etcd::remove_namespace(bed.config()).await.unwrap();
    let deletions = handled(&server, "DeleteRange") - before.0;
    let reads = handled(&server, "Range") - before.1;
    assert_eq!(bed.keys().await, Vec::<String>::new());
    assert_eq!(neighbour.keys().await, [kept], "of another namespace");
    assert_eq!((deletions, reads), (4, 5), "for {keys} keys");
}

/// The session, waiter and observer of a lost history end, and those that come after it work at once.
#[tokio::test]
async fn sessions_end_with_a_restore_and_new_ones_work_on_the_same_connection() {
    let mut server = EtcdServer::start_async().await.unwrap();
    let bed = Bed::on(&server, "restored").await;
    let store = bed.store().await;
    let session = open(&store, secs(6)).await;
    let kept = session.locker("kept").unwrap().lock().await.unwrap();
    server.save_snapshot().unwrap();
    let lost = session.locker("lost").unwrap().lock().await.unwrap();
    let released = session.locker("again").unwrap();
    for _ in 0..20 {
        released.lock().await.unwrap().release().await.unwrap();
    }
    server.restore_async().await.unwrap();
    // Whatever this client asks first shows it, and so does its watch or renewal.
    let start = Instant::now();
    let fresh = loop {
        match store.open(Default::default()).await {
            Ok(fresh) => break fresh,
            Err(error) => assert!(start.elapsed() < SOON, "{error}"),
        }
    };
    // The revision was above the restored one: the history is known to be lost.
    assert!(
        !lost.is_valid() && !kept.is_valid(),
        "after {:?}",
        start.elapsed()
    );
    let error = session.locker("x").unwrap().try_lock().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Lost, "{error}");
    let guard = fresh.locker("lost").unwrap().try_lock().await.unwrap();
    assert!(guard.is_valid());
    guard.release().await.unwrap();
    // With its next renewal, the lost session lets go of what the snapshot says it holds.
    let guard = fresh
        .locker("kept")
        .unwrap()
        .lock_timeout(SOON)
        .await
        .unwrap();
    guard.release().await.unwrap();
}

/// A client certificate that is replaced on disk is used by the next connection.
#[tokio::test]
async fn rotated_certificates_are_read_at_the_next_connection() {
    let certs = Certs::generate().unwrap();
    let server = EtcdServer::builder().tls(certs.mutual_tls());
    let mut server = server.start_async().await.unwrap();
    let folder = std::env::temp_dir().join(format!("tenure-rotation-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let files = Identity {
        cert: folder.join("client.pem"),
        key: folder.join("client.key"),
    };
    let write = |identity: &Identity| {
        std::fs::copy(&identity.cert, &files.cert).unwrap();
        std::fs::copy(&identity.key, &files.key).unwrap();
    };
    write(&certs.client);
    let url = format!(
        "etcds://{}/tls?ca={}&cert={}&key={}",
        server.address(),
        certs.ca.display(),
        files.cert.display(),
        files.key.display()
    );
    let config = EtcdConfig::from_url(StoreUrl::parse(&url).unwrap()).unwrap();
    let store = tenure_etcd::connect(config).await.unwrap();
    store.open(Default::default()).await.unwrap();
    // With the old one gone, the client is refused; with a good one there again, it is served.
    server.kill().unwrap();
    write(&certs.foreign_client);
    let error = store.open(Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    server.restart_async().await.unwrap();
    let error = store.open(Default::default()).await.unwrap_err();
    write(&certs.client);
    let start = Instant::now();
    while let Err(error) = store.open(Default::default()).await {
        assert!(start.elapsed() < SOON, "{error}");
        tokio::time::sleep(ms(20)).await;
    }
    assert!(
        matches!(
            error.kind(),
            ErrorKind::Unauthorized | ErrorKind::Unavailable
        ),
        "{error}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}
