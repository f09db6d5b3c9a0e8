//! `tenure` against a real etcd: what two processes do to each other, what a paused or killed one
//! leaves behind, and whether `etcdctl` and `tenure` respect each other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;
use std::time::{Duration, Instant};

use support::{Done, PATIENCE, dead_address, run, says, tenure, tenure_done, until};
use tenure_testbed::{EtcdServer, Process};

fn url(etcd: &EtcdServer) -> String {
    format!("etcd://{}/cli", etcd.address())
}

fn interop_url(etcd: &EtcdServer) -> String {
    format!("{}?interop=true", url(etcd))
}

/// `tenure --url URL lock ARGS...`
fn lock(url: &str, args: &[&str]) -> Command {
    tenure(["--url", url, "lock"].iter().chain(args))
}

fn spawn(command: Command) -> Process {
    Process::spawn(command).unwrap()
}

fn code(process: &mut Process) -> Option<i32> {
    process.wait(PATIENCE).unwrap().code()
}

/// A holder that has told its token.
fn holder(url: &str, args: &[&str]) -> (Process, u64) {
    let mut process = spawn(lock(url, args));
    let token = token(&mut process);
    (process, token)
}

fn token(process: &mut Process) -> u64 {
    let line = process.expect_line("token=", PATIENCE).unwrap();
    let (_, token) = line.rsplit_once("token=").unwrap();
    token.parse().unwrap()
}

/// The number of keys in the store: holdings and places in line.
fn keys(etcd: &EtcdServer) -> usize {
    let listed = etcd
        .run_etcdctl(&["get", "", "--prefix", "--keys-only"])
        .unwrap();
    listed.lines().filter(|line| !line.is_empty()).count()
}

/// Waits until so many keys are there, so that a waiter is known to be in line.
#[track_caller]
fn until_keys(etcd: &EtcdServer, count: usize) {
    until(&format!("{count} keys"), || keys(etcd) == count);
}

#[test]
fn a_held_lock_is_not_acquired() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let (mut first, token) = holder(&url, &["orders"]);

    run(lock(&url, &["orders", "--try", "--", "true"])).fails(75, &["orders"]);
    let started = Instant::now();
    run(lock(&url, &["orders", "--wait", "300ms", "--", "true"])).fails(75, &["orders"]);
    assert!(started.elapsed() >= Duration::from_millis(300));
    let other_code = ["orders", "--try", "--not-acquired-code", "9", "--", "true"];
    run(lock(&url, &other_code)).fails(9, &["orders"]);

    // Other names and namespaces are other locks.
    for name in ["Orders", "orders/", "orders/eu", "order"] {
        run(lock(&url, &[name, "--try", "--", "true"])).exits(0);
    }
    run(lock(
        &url,
        &["orders", "--try", "--namespace", "other", "--", "true"],
    ))
    .exits(0);

    // Nothing is left but the first one's key, and its release frees the lock at once.
    first.terminate().unwrap();
    assert_eq!(code(&mut first), Some(0));
    let (mut second, later) = holder(&url, &["orders", "--try"]);
    assert!(later > token);
    second.terminate().unwrap();
    assert_eq!(code(&mut second), Some(0));
}

#[test]
fn two_commands_never_run_at_the_same_time() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let folder = tempfile::tempdir().unwrap();
    // `mkdir` fails if the other is inside.
    let critical = format!(
        "cd '{}' && mkdir inside && rmdir inside && echo $TENURE_TOKEN >> tokens",
        folder.path().display()
    );
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    run(lock(&url, &["orders", "--", "sh", "-c", &critical])).exits(0);
                }
            });
        }
    });
    let tokens = std::fs::read_to_string(folder.path().join("tokens")).unwrap();
    let tokens: Vec<u64> = tokens.lines().map(|token| token.parse().unwrap()).collect();
    assert_eq!(tokens.len(), 20);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[test]
fn a_killed_holder_is_replaced_within_the_ttl_and_two_seconds() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let ttl = Duration::from_secs(2);
    let (mut dead, first) = holder(&url, &["orders", "--ttl", "2s"]);
    let mut waiter = spawn(lock(&url, &["orders"]));
    until("the waiter's place in line", || keys(&etcd) >= 2);
    dead.kill().unwrap();
    let killed = Instant::now();
    let second = token(&mut waiter);
    assert!(
        killed.elapsed() < ttl + Duration::from_secs(2),
        "{:?}",
        killed.elapsed()
    );
    assert!(second > first);
}

#[test]
fn a_paused_holders_child_is_ended() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let child =
        "trap 'echo ending; exit 0' TERM; echo token=$TENURE_TOKEN; while :; do sleep 0.02; done";
    let (mut paused, first) = holder(&url, &["orders", "--ttl", "2s", "--", "sh", "-c", child]);
    paused.pause().unwrap();
    // The other holder proves that the TTL has passed.
    let (mut other, second) = holder(&url, &["orders"]);
    assert!(second > first, "{second} must be greater than {first}");
    paused.resume().unwrap();
    paused.expect_line("ending", PATIENCE).unwrap();
    assert_eq!(code(&mut paused), Some(76));
    // The late one has not taken the lock from the other.
    run(lock(&url, &["orders", "--try", "--", "true"])).exits(75);
    other.terminate().unwrap();
    assert_eq!(code(&mut other), Some(0));
}

#[test]
fn a_paused_holder_without_a_command_says_so() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let (mut paused, _) = holder(&url, &["orders", "--ttl", "2s"]);
    paused.pause().unwrap();
    let (_other, _) = holder(&url, &["orders"]);
    paused.resume().unwrap();
    assert_eq!(code(&mut paused), Some(76));
    says(&paused, "tenure: ");
}

#[test]
fn an_operators_revocation_ends_the_child() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let child = "echo token=$TENURE_TOKEN; exec sleep 600";
    let (mut holder, _) = holder(&url, &["orders", "--ttl", "3s", "--", "sh", "-c", child]);
    etcd.run_etcdctl(&["del", "", "--prefix"]).unwrap();
    assert_eq!(code(&mut holder), Some(76));
}

#[test]
fn a_waiter_that_is_told_to_end_withdraws() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let (mut first, _) = holder(&url, &["orders"]);
    for (signal, expected) in [
        (tenure_testbed::Signal::INT, 130),
        (tenure_testbed::Signal::TERM, 143),
    ] {
        let held = keys(&etcd);
        let mut waiter = spawn(lock(&url, &["orders", "--", "true"]));
        until("the waiter's place in line", || keys(&etcd) > held);
        waiter.signal(signal).unwrap();
        assert_eq!(code(&mut waiter), Some(expected));
        assert_eq!(keys(&etcd), held, "the place in line is still there");
    }
    first.terminate().unwrap();
    assert_eq!(code(&mut first), Some(0));
    // Nothing of any of them is left that could hold up the next.
    run(lock(&url, &["orders", "--try", "--", "true"])).exits(0);
}

#[test]
fn a_store_that_goes_away_costs_the_lock() {
    let mut etcd = EtcdServer::start().unwrap();
    let child = "echo token=$TENURE_TOKEN; exec sleep 600";
    let (mut holder, _) = holder(
        &url(&etcd),
        &["orders", "--ttl", "2s", "--", "sh", "-c", child],
    );
    etcd.kill().unwrap();
    assert_eq!(code(&mut holder), Some(76));
    says(&holder, "did not answer");
}

#[test]
fn a_waiter_whose_store_goes_away_says_69() {
    let mut etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let (_first, _) = holder(&url, &["orders"]);
    let held = keys(&etcd);
    let mut waiter = spawn(lock(&url, &["orders", "--ttl", "2s"]));
    until("the waiter's place in line", || keys(&etcd) > held);
    etcd.kill().unwrap();
    assert_eq!(code(&mut waiter), Some(69));
}

/// It was held until the command had ended, so the command's word counts; without one, the release
/// itself was what was asked for.
#[test]
fn a_release_that_the_store_does_not_confirm() {
    let etcd = EtcdServer::start().unwrap();
    let url = url(&etcd);
    let child = "echo token=$TENURE_TOKEN; read line; exit 3";
    let (mut with, _) = holder(&url, &["one", "--ttl", "60s", "--", "sh", "-c", child]);
    let (mut without, _) = holder(&url, &["two", "--ttl", "60s"]);
    etcd.pause().unwrap();
    with.send_line("go on").unwrap();
    without.terminate().unwrap();
    assert_eq!(code(&mut with), Some(3));
    says(&with, "tenure: release");
    assert_eq!(code(&mut without), Some(69));
}

/// Ctrl-C ends the command, and is no reason to end the release that follows.
#[test]
fn a_signal_from_before_the_commands_end_does_not_interrupt_the_release() {
    let etcd = EtcdServer::start().unwrap();
    let child = "trap '' TERM; echo token=$TENURE_TOKEN; read line; kill -TERM $PPID; exit 3";
    let (mut with, _) = holder(
        &url(&etcd),
        &["one", "--ttl", "60s", "--", "sh", "-c", child],
    );
    // Nothing is confirmed, so that there is something to interrupt.
    etcd.pause().unwrap();
    with.send_line("go on").unwrap();
    assert_eq!(code(&mut with), Some(3));
    says(&with, "tenure: release");
    assert!(!with.stderr().contains("interrupted"));
}

#[test]
fn a_dead_endpoint_is_69() {
    let url = format!("etcd://{}/ns", dead_address());
    for command in [
        &["lock", "x", "--", "true"][..],
        &["guarantees"],
        &["conform"],
    ] {
        let started = Instant::now();
        tenure_done(["--url", &url].iter().chain(command)).fails(69, &[]);
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn bad_etcd_urls_are_78() {
    for (url, words) in [
        ("etcd://127.0.0.1:1/ns?tll=10s", &["tll", "ttl"][..]),
        ("etcd://127.0.0.1:1/ns?ttl=soon", &["ttl"]),
        ("etcd:///ns", &[]),
    ] {
        tenure_done(["--url", url, "lock", "x", "--", "true"]).fails(78, words);
    }
}

#[test]
fn wrong_credentials_are_77_and_never_printed() {
    let etcd = EtcdServer::builder()
        .root_password("s3cret-canary")
        .start()
        .unwrap();
    let with = |credentials: &str| format!("etcd://{credentials}{}/ns", etcd.address());
    let leaks =
        |done: &Done, password: &str| format!("{}{}", done.stdout, done.stderr).contains(password);

    for command in [
        &["lock", "x", "-vvv", "--", "true"][..],
        &["guarantees", "-vvv"],
    ] {
        let wrong = with("root:wr0ng-canary@");
        let done = tenure_done(["--url", &wrong].iter().chain(command));
        done.fails(77, &[&etcd.address().to_string()]);
        assert!(!leaks(&done, "wr0ng-canary"), "{done:?}");

        let right = with("root:s3cret-canary@");
        let done = tenure_done(["--url", &right].iter().chain(command));
        done.exits(0);
        assert!(!leaks(&done, "s3cret-canary"), "{done:?}");
        // Otherwise there was nothing in which it could have leaked.
        if command.contains(&"lock") {
            assert!(done.stderr.contains("tenure_core"), "{done:?}");
        }
    }
    tenure_done(["--url", &with(""), "lock", "x", "--", "true"]).fails(77, &[]);
    // A URL that cannot be used is not repeated either.
    let broken = with("root:s3cret-canary@").replace("/ns", "/ns?bogus=1");
    let done = tenure_done(["--url", &broken, "lock", "x", "-vvv", "--", "true"]);
    done.fails(78, &["bogus"]);
    assert!(!leaks(&done, "s3cret-canary"), "{done:?}");
}

#[test]
fn guarantees_are_read_off_the_live_server() {
    let etcd = EtcdServer::start().unwrap();
    let done = tenure_done(["--url", &url(&etcd), "guarantees"]);
    done.exits(0);
    assert!(done.stdout.contains(etcd.version()), "{done:?}");
}

/// `etcdctl lock NAME`, which prints the key that it holds.
fn etcdctl_lock(etcd: &EtcdServer, name: &str) -> Process {
    spawn(etcd.etcdctl(&["lock", "--ttl", "3", name]).unwrap())
}

#[test]
fn etcdctl_keeps_tenure_out() {
    let etcd = EtcdServer::start().unwrap();
    let url = interop_url(&etcd);
    let mut theirs = etcdctl_lock(&etcd, "shared");
    theirs.expect_line("shared/", PATIENCE).unwrap();

    run(lock(&url, &["shared", "--try", "--", "true"])).fails(75, &[]);
    let mut ours = spawn(lock(&url, &["shared"]));
    until_keys(&etcd, 2);
    assert!(ours.try_line().is_none());
    theirs.signal(tenure_testbed::Signal::INT).unwrap();
    token(&mut ours);
    ours.terminate().unwrap();
    assert_eq!(code(&mut ours), Some(0));
}

#[test]
fn tenure_keeps_etcdctl_out() {
    let etcd = EtcdServer::start().unwrap();
    let (mut ours, _) = holder(&interop_url(&etcd), &["shared"]);
    let mut theirs = etcdctl_lock(&etcd, "shared");
    until_keys(&etcd, 2);
    assert!(theirs.try_line().is_none());
    ours.terminate().unwrap();
    assert_eq!(code(&mut ours), Some(0));
    theirs.expect_line("shared/", PATIENCE).unwrap();
}

#[test]
fn etcdctl_and_tenure_wait_in_one_line() {
    let etcd = EtcdServer::start().unwrap();
    let url = interop_url(&etcd);
    let (first, one) = holder(&url, &["shared"]);
    let mut second = etcdctl_lock(&etcd, "shared");
    until_keys(&etcd, 2);
    let mut third = spawn(lock(&url, &["shared"]));
    until_keys(&etcd, 3);
    let mut fourth = etcdctl_lock(&etcd, "shared");
    until_keys(&etcd, 4);

    first.terminate().unwrap();
    second.expect_line("shared/", PATIENCE).unwrap();
    assert!(third.try_line().is_none() && fourth.try_line().is_none());
    second.signal(tenure_testbed::Signal::INT).unwrap();
    let three = token(&mut third);
    assert!(three > one);
    assert!(fourth.try_line().is_none());
    third.terminate().unwrap();
    fourth.expect_line("shared/", PATIENCE).unwrap();
}

#[test]
fn the_one_outlives_the_death_of_the_other() {
    let etcd = EtcdServer::start().unwrap();
    let url = interop_url(&etcd);

    let mut theirs = etcdctl_lock(&etcd, "shared");
    theirs.expect_line("shared/", PATIENCE).unwrap();
    let mut ours = spawn(lock(&url, &["shared", "--ttl", "2s"]));
    until_keys(&etcd, 2);
    theirs.kill().unwrap();
    token(&mut ours);

    let mut theirs = etcdctl_lock(&etcd, "shared");
    until_keys(&etcd, 2);
    ours.kill().unwrap();
    theirs.expect_line("shared/", PATIENCE).unwrap();
}
