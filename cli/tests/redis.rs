//! `tenure lock` on a lock that is shared with whoever sets a key of Redis with `SET NX PX`.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::{PATIENCE, run, tenure, until};
use tenure_testbed::{Process, RedisServer};

/// `tenure --url URL lock ARGS...`
fn lock(redis: &RedisServer, args: &[&str]) -> Command {
    let url = format!("{}?interop=true&ttl=2s", redis.url());
    tenure(["--url", &url, "lock"].iter().chain(args))
}

fn ask(redis: &RedisServer, command: &[&str]) -> String {
    redis.command(command).unwrap()
}

fn is_held(redis: &RedisServer) -> bool {
    ask(redis, &["EXISTS", "orders"]) == "1"
}

const FOREIGN: [&str; 5] = ["SET", "orders", "theirs", "NX", "PX"];

/// Whether somebody else gets it.
fn take(redis: &RedisServer, millis: &str) -> bool {
    ask(redis, &[&FOREIGN[..], &[millis]].concat()) == "OK"
}

#[test]
fn one_lock_for_the_command_and_for_others() {
    let redis = RedisServer::start().unwrap();
    let holding = ["orders", "--", "sh", "-c", "echo in; read line; exit 0"];
    let mut ours = Process::spawn(lock(&redis, &holding)).unwrap();
    ours.expect_line("in", PATIENCE).unwrap();
    assert!(!take(&redis, "60000"));
    ours.close_stdin();
    assert!(ours.wait(PATIENCE).unwrap().success());
    assert!(!is_held(&redis), "given back");

    assert!(take(&redis, "60000"));
    run(lock(&redis, &["--try", "orders", "--", "true"])).exits(75);
    let mut ours = Process::spawn(lock(&redis, &holding)).unwrap();
    let line = "{tenure/1/default}/interop/orders";
    until("a place in line", || ask(&redis, &["ZCARD", line]) == "1");
    assert!(!ours.has_line());
    ask(&redis, &["DEL", "orders"]);
    ours.expect_line("in", PATIENCE).unwrap();

    // Killed, it says nothing to anybody; the key goes by itself.
    ours.kill().unwrap();
    assert!(is_held(&redis));
    until("the end of its time", || take(&redis, "60000"));
    ask(&redis, &["DEL", "orders"]);
    ask(&redis, &["HSET", "orders", "6c2d-thread:1", "1"]);
    let refused = run(lock(&redis, &["orders", "--", "true"]));
    assert_ne!(refused.code, Some(0), "{refused:?}");
    assert!(refused.stderr.contains("Redisson"), "{refused:?}");
}
