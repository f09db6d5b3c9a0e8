//! etcd.

use std::net::TcpStream;
use std::time::Duration;

use tenure_testbed::{Certs, Error, EtcdOptions, EtcdServer, Proxy, shared_etcd, unique_name};

use crate::client::{assert_silent, connect, receive, send};

fn start(options: EtcdOptions) -> EtcdServer {
    EtcdServer::start(options).expect("etcd")
}

fn put(server: &EtcdServer, key: &str) {
    server.admin().put(key, "value").expect("put");
}

fn keys(server: &EtcdServer) -> Vec<String> {
    server.admin().keys("").expect("keys")
}

const HEALTH: &str = "GET /health HTTP/1.0\r\n\r\n";

#[test]
fn server_keeps_its_data_through_a_kill() {
    let server = start(EtcdOptions::default());
    assert_eq!(server.url(), format!("etcd://{}", server.address()));
    put(&server, "a");
    server.kill().expect("killed");
    assert!(!server.is_running());
    assert!(TcpStream::connect(server.address()).is_err());
    assert!(matches!(server.pause(), Err(Error::NotRunning(_))));
    server.restart().expect("restarted");
    assert_eq!(server.admin().get("a").expect("an answer").as_deref(), Some("value"));
}

#[test]
fn server_restored_to_a_snapshot_forgets_later_writes() {
    let server = start(EtcdOptions::default());
    put(&server, "early");
    server.save_snapshot().expect("saved");
    let saved = server.admin().revision().expect("a revision");
    for _ in 0..2 {
        put(&server, "late");
        put(&server, "later");
        server.restore_snapshot().expect("restored");
        assert_eq!(keys(&server), ["early"]);
        assert_eq!(server.admin().revision().expect("a revision"), saved);
    }
}

#[test]
fn server_paused_is_silent_and_goes_on() {
    let server = start(EtcdOptions::default());
    let client = connect(server.address());
    server.pause().expect("paused");
    assert!(server.is_running());
    send(&client, HEALTH);
    assert_silent(&client);
    server.resume().expect("resumed");
    receive(&client, "HTTP/1.0 200 OK\r\n");
    server.pause().expect("paused");
    server.restart().expect("a paused server is restarted as any other");
}

#[test]
fn admin_reads_and_changes_a_server() {
    let server = start(EtcdOptions::default().election_timeout(Duration::from_secs(2)));
    let admin = server.admin();
    for key in ["a/1", "a/2", "b"] {
        put(&server, key);
    }
    assert_eq!(admin.keys("a/").expect("keys"), ["a/1", "a/2"]);
    assert!(admin.delete("a/1").expect("deleted"));
    assert!(!admin.delete("a/1").expect("not there"));
    assert_eq!(admin.get("a/1").expect("an answer"), None);
    let granted = admin.run(&["lease", "grant", "1"]).expect("granted");
    // An election timeout of 2 s means leases of at least 3 s.
    assert!(granted.ends_with("granted with TTL(3s)"), "{granted}");
    assert_eq!(admin.leases().expect("leases"), 1);
    admin
        .revoke(granted.split(' ').nth(1).expect("an id"))
        .expect("revoked");
    assert_eq!(admin.leases().expect("leases"), 0);
    admin.compact().expect("compacted");
    assert!(admin.run(&["get", "a/1", "--rev=2"]).is_err(), "that is compacted");
    assert!(server.metric("etcd_server_has_leader").expect("metrics") == Some(1.0));
}

#[test]
fn server_with_a_password_refuses_clients_without_one() {
    let server = start(EtcdOptions::default().root_password("secret canary"));
    put(&server, "a");
    let stranger = tenure_testbed::EtcdAdmin::by_address(&server.address().to_string());
    let error = stranger.get("a").expect_err("refused").to_string();
    assert!(error.contains("user name is empty"), "{error}");
    let refused = server.admin().run(&["get", "--rev=1000000", "a"]).expect_err("refused");
    assert!(!format!("{refused:?}").contains("canary"), "{refused:?}");
}

#[test]
fn server_with_tls_serves_nothing_else() {
    let certs = Certs::generate().expect("certificates");
    for tls in [certs.tls(), certs.mutual_tls()] {
        let server = start(EtcdOptions::default().tls(tls));
        assert_eq!(server.url(), format!("etcds://{}", server.address()));
        put(&server, "a");
        let stranger = tenure_testbed::EtcdAdmin::by_address(&server.address().to_string());
        assert!(stranger.run(&["get", "--command-timeout=1s", "a"]).is_err());
    }
}

#[test]
fn shared_etcd_serves_through_a_proxy() {
    let shared = shared_etcd().expect("etcd");
    let key = unique_name("key");
    shared.admin().put(&key, "x").expect("put");
    let address = shared.url().trim_start_matches("etcd://").parse().expect("an address");
    let proxy = Proxy::start(address).expect("a proxy");
    let through = tenure_testbed::EtcdAdmin::by_address(&proxy.address().to_string());
    assert_eq!(through.get(&key).expect("an answer").as_deref(), Some("x"));
    let same = shared_etcd().expect("etcd");
    assert!(std::ptr::eq(shared, same));
}
