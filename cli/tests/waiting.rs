//! Waits that outlive their session, the server's life, or a lack of connections.
#![cfg(all(feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{PATIENCE, run, tenure, until};
use tenure_testbed::{PostgresServer, Process, RedisServer};

fn spawn(url: &str, args: &[&str]) -> Process {
    Process::spawn(tenure(["--url", url, "-v"].iter().chain(args))).unwrap()
}

/// What waits, and what lets it in after the restart.
const WAITS: [(&[&str], &[&str]); 3] = [
    (&["lock", "l", "--wait", "25s", "--", "echo", "in"], &[]),
    (
        &["elect", "e", "b", "--wait", "25s", "--", "echo", "in"],
        &[],
    ),
    (&["dequeue", "q", "--wait", "25s"], &["enqueue", "q", "in"]),
];

fn waiters_survive(url: &str, are_waiting: impl Fn() -> bool, restart: impl FnOnce()) {
    let mut holders = [spawn(url, &["lock", "l"]), spawn(url, &["elect", "e", "a"])];
    for holder in &mut holders {
        holder.expect_line("token=", PATIENCE).unwrap();
    }
    let waiters = WAITS.map(|(args, then)| (spawn(url, args), then));
    until("the waiters", are_waiting);
    restart();
    for mut holder in holders {
        holder.wait(PATIENCE).unwrap();
    }
    for (mut waiter, then) in waiters {
        if !then.is_empty() {
            run(tenure(["--url", url].iter().chain(then))).exits(0);
        }
        waiter.expect_line("in", PATIENCE).unwrap();
        assert_eq!(waiter.wait(PATIENCE).unwrap().code(), Some(0));
    }
}

#[test]
fn waiters_join_again_after_a_restart_of_redis() {
    let server = RedisServer::builder().no_persistence().start().unwrap();
    let url = format!("redis://{}?ttl=2s", server.address());
    let server = std::cell::RefCell::new(server);
    let lines = ["lock/l", "election/e", "queue/q/line"];
    let are_waiting = || {
        let count = |line: &str| {
            let key = format!("{{tenure/1/default}}/{line}");
            server.borrow().command(&["ZCARD", &key]).unwrap()
        };
        lines.map(count) == ["2", "2", "1"]
    };
    waiters_survive(&url, are_waiting, || server.borrow_mut().restart().unwrap());
}

#[test]
fn waiters_join_again_after_a_restart_of_postgresql() {
    let server = PostgresServer::start().unwrap();
    let url = server.url() + "?sslmode=disable&ttl=2s";
    let server = std::cell::RefCell::new(server);
    let count = "SELECT (SELECT count(*) FROM tenure.tickets) >= 2 \
                 AND (SELECT count(*) FROM tenure.queue_waits) >= 1";
    let are_waiting = || server.borrow().sql(count).unwrap() == "t";
    waiters_survive(&url, are_waiting, || server.borrow_mut().restart().unwrap());
}

#[test]
fn a_wait_ends_at_its_limit_whatever_happens_to_the_store() {
    let mut redis = RedisServer::builder().no_persistence().start().unwrap();
    let url = format!("redis://{}?ttl=2s", redis.address());
    let mut holder = spawn(&url, &["lock", "l"]);
    holder.expect_line("token=", PATIENCE).unwrap();
    let mut waiter = spawn(&url, &["lock", "l", "--wait", "6s", "--", "true"]);
    let line = "{tenure/1/default}/lock/l";
    until("the waiter", || {
        redis.command(&["ZCARD", line]).unwrap() == "2"
    });
    redis.kill().unwrap();
    assert_eq!(waiter.wait(PATIENCE).unwrap().code(), Some(69));
}

/// More lockers than the server has connections for: all of them come to it.
#[test]
fn lockers_wait_for_a_connection() {
    let postgres = PostgresServer::builder().setting("max_connections", 12);
    let postgres = postgres.start().unwrap();
    let url = postgres.url() + "?sslmode=disable";
    run(tenure(["--url", &url, "lock", "l", "--", "true"])).exits(0);
    let lock = ["lock", "l", "--wait", "60s", "--", "sleep", "0.1"];
    let mut lockers: Vec<_> = (0..10).map(|_| spawn(&url, &lock)).collect();
    for locker in &mut lockers {
        let code = locker.wait(2 * PATIENCE).unwrap().code();
        assert_eq!(code, Some(0), "{}", locker.stderr());
    }
}
