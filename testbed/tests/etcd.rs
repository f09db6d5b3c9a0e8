//! A real etcd, started in every way that other tests rely on.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use tenure_testbed::{Direction, Error, EtcdCluster, EtcdServer, Flow, Process, Proxy};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn keeps_data_and_ports_across_a_kill() {
    let mut etcd = EtcdServer::start().expect("etcd");
    let (address, pid, folder) = (etcd.address(), etcd.pid(), etcd.data_dir());
    assert!(etcd.is_at_least(3, 4), "{}", etcd.version());
    assert!(!etcd.is_at_least(9, 0));
    assert_eq!(etcd.endpoints(), [format!("http://{address}")]);
    etcd.run_etcdctl(&["put", "a", "1"]).expect("put");
    etcd.kill().expect("killed");
    assert!(!etcd.is_running());
    assert!(TcpStream::connect(address).is_err(), "refused");
    assert!(matches!(etcd.pause(), Err(Error::NotRunning { .. })));
    etcd.kill().expect("killing the dead is no error");
    etcd.restart().expect("restarted");
    assert_eq!(etcd.address(), address);
    assert_ne!(etcd.pid(), pid);
    assert_eq!(
        etcd.run_etcdctl(&["get", "a", "--print-value-only"])
            .expect("get"),
        "1"
    );
    drop(etcd);
    assert!(!folder.exists(), "the folder is removed");
    assert!(TcpStream::connect(address).is_err(), "the port is free");
}

#[test]
fn a_lost_disk_is_an_empty_store() {
    let mut etcd = EtcdServer::start().expect("etcd");
    etcd.run_etcdctl(&["put", "a", "1"]).expect("put");
    etcd.kill().expect("killed");
    std::fs::remove_dir_all(etcd.data_dir()).expect("removed");
    etcd.restart().expect("restarted");
    assert_eq!(etcd.run_etcdctl(&["get", "a"]).expect("get"), "");
}

#[tokio::test]
async fn a_paused_server_is_silent_and_goes_on() {
    let mut etcd = EtcdServer::start_async().await.expect("etcd");
    etcd.pause().expect("paused");
    let start = Instant::now();
    assert!(etcd.metrics().is_err(), "no answer");
    assert!(
        start.elapsed() >= Duration::from_millis(900),
        "silence, not a refusal"
    );
    etcd.resume().expect("resumed");
    assert!(
        etcd.metrics()
            .expect("an answer")
            .contains("etcd_debugging_mvcc_watcher_total")
    );
    // A paused server can be killed and restarted as any other.
    etcd.pause().expect("paused");
    etcd.restart_async().await.expect("restarted");
    assert!(etcd.metrics().is_ok());
}

#[test]
fn many_start_at_once() {
    let starts: Vec<_> = (0..6)
        .map(|_| std::thread::spawn(EtcdServer::start))
        .collect();
    let servers: Vec<_> = starts
        .into_iter()
        .map(|start| start.join().expect("no panic").expect("etcd"))
        .collect();
    for (number, server) in servers.iter().enumerate() {
        server
            .run_etcdctl(&["put", "who", &number.to_string()])
            .expect("put");
    }
    for (number, server) in servers.iter().enumerate() {
        let who = server
            .run_etcdctl(&["get", "who", "--print-value-only"])
            .expect("get");
        assert_eq!(who, number.to_string(), "each is its own store");
    }
}

#[test]
fn demands_the_root_password_also_after_a_restart() {
    let mut etcd = EtcdServer::builder()
        .root_password("p: \"w'$")
        .auth_token_ttl(5)
        .start()
        .expect("etcd");
    for _ in 0..2 {
        etcd.run_etcdctl(&["put", "a", "1"]).expect("root may");
        let anyone = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .args([&format!("--endpoints={}", etcd.endpoint()), "get", "a"])
            .output()
            .expect("etcdctl");
        assert!(!anyone.status.success(), "anyone else may not");
        etcd.restart().expect("restarted");
    }
    let error = etcd
        .run_etcdctl(&["role", "get", "nobody"])
        .expect_err("no such role");
    let text = error.to_string();
    assert!(
        text.contains("role get nobody") && !text.contains("p: "),
        "{text}"
    );
}

#[test]
fn restarts_with_a_space_alarm() {
    let mut etcd = EtcdServer::builder()
        .arg("--quota-backend-bytes=65536")
        .start()
        .expect("etcd");
    let value = "x".repeat(30_000);
    let full = (0..50).any(|i| {
        etcd.run_etcdctl(&["put", &format!("k{i}"), &value])
            .is_err()
    });
    assert!(full, "the quota is reached");
    etcd.restart()
        .expect("it serves, though it calls itself unhealthy");
    etcd.run_etcdctl(&["get", "k0"]).expect("reads go on");
}

#[test]
fn a_server_that_ends_shows_its_log() {
    let error = EtcdServer::builder()
        .arg("--no-such-option")
        .start()
        .expect_err("etcd refuses");
    let text = error.to_string();
    assert!(matches!(error, Error::Start { .. }), "{text}");
    assert!(text.contains("no-such-option"), "{text}");
}

/// Not a test of its own: what runs with a variable that names nothing.
#[test]
#[ignore = "the process that the next test starts"]
fn start_one_and_ask_it() {
    let outcome = EtcdServer::start().and_then(|etcd| etcd.run_etcdctl(&["get", "a"]));
    match outcome {
        Err(error @ Error::MissingBinary { .. }) => println!("missing: {error}"),
        other => println!("not missing: {other:?}"),
    }
}

#[test]
fn a_missing_binary_names_its_debian_package() {
    let this = std::env::current_exe().expect("this binary");
    let folder = tempfile::tempdir().expect("a folder");
    let nothing = folder.path().join("nothing");
    for (variable, binary, package) in [
        ("TENURE_ETCD", "etcd", "etcd-server"),
        ("TENURE_ETCDCTL", "etcdctl", "etcd-client"),
    ] {
        // Neither what is not there, nor what is no program.
        for path in [nothing.as_path(), folder.path()] {
            let mut command = std::process::Command::new(&this);
            command
                .args([
                    "start_one_and_ask_it",
                    "--exact",
                    "--ignored",
                    "--nocapture",
                ])
                .env(variable, path);
            let mut process = Process::spawn(command).expect("this binary again");
            let line = process.expect_line("missing: ", SOON).expect("an answer");
            let named = [
                format!("`{binary}`"),
                format!("Debian package `{package}`"),
                variable.to_owned(),
            ];
            assert!(
                !line.contains("not missing") && named.iter().all(|name| line.contains(name)),
                "{line}"
            );
        }
    }
}

#[test]
fn is_reached_through_the_proxy() {
    let etcd = EtcdServer::start().expect("etcd");
    let proxy = Proxy::start(etcd.address()).expect("a proxy");
    let program = etcd.etcdctl(&[""; 0]).expect("etcdctl");
    let put = |key: &str| {
        // Not `etcd.etcdctl`: a second `--endpoints` would be used beside the first.
        let done = std::process::Command::new(program.get_program())
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", proxy.address()))
            .args(["--command-timeout=1s", "--dial-timeout=1s"])
            .args(["put", key, "1"])
            .output()
            .expect("etcdctl");
        done.status.success()
    };
    assert!(put("through"));
    // The answer to one put is lost, and the put has happened.
    let trigger = proxy.when(Direction::Up, "unanswered", Direction::Down, Flow::Drop);
    assert!(!put("unanswered"));
    assert!(trigger.has_fired());
    assert!(
        etcd.run_etcdctl(&["get", "unanswered"])
            .expect("get")
            .contains("unanswered")
    );
    // The request itself is lost.
    proxy.heal();
    let trigger = proxy.cut_when(Direction::Up, "undelivered");
    proxy.when(Direction::Up, "undelivered", Direction::Up, Flow::Hold);
    assert!(!put("undelivered"));
    assert!(trigger.has_fired());
    assert_eq!(etcd.run_etcdctl(&["get", "undelivered"]).expect("get"), "");
}

#[test]
fn three_members_lose_their_leader_and_get_it_back() {
    let mut etcd = EtcdCluster::start().expect("etcd");
    assert_eq!(etcd.endpoints().len(), 3);
    etcd.members[0]
        .run_etcdctl(&["put", "a", "1"])
        .expect("put");
    let leader = etcd.leader().expect("a leader");
    etcd.members[leader].kill().expect("killed");
    let next = etcd.wait_for_leader_change(leader, SOON).expect("another");
    assert_ne!(next, leader);
    let get = ["get", "a", "--print-value-only"];
    let kept = etcd.members[next].run_etcdctl(&get).expect("get");
    assert_eq!(kept, "1", "a majority has it");
    etcd.members[next]
        .run_etcdctl(&["put", "a", "2"])
        .expect("put");
    etcd.members[leader].restart().expect("restarted");
    let caught_up = etcd.members[leader].run_etcdctl(&get).expect("get");
    assert_eq!(caught_up, "2", "a read through the quorum");
}

#[test]
fn a_paused_leader_is_replaced_and_knows_it_when_it_goes_on() {
    let etcd = EtcdCluster::start().expect("etcd");
    let leader = etcd.leader().expect("a leader");
    etcd.members[leader].pause().expect("paused");
    etcd.wait_for_leader_change(leader, SOON).expect("another");
    etcd.members[leader].resume().expect("resumed");
    etcd.members[leader]
        .run_etcdctl(&["put", "a", "1"])
        .expect("put");
    assert_ne!(etcd.leader(), Some(leader), "the other is the leader");
}
