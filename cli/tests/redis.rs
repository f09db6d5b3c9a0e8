//! `tenure lock` on a lock that is shared with whoever sets a key of Redis with `SET NX PX`.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::{PATIENCE, run, says, tenure, until};
use tenure_testbed::{Process, RedisReplica, RedisSentinels, RedisServer, Signal};

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

/// `tenure --url URL ARGS...`, run to its end.
fn at(url: &str, args: &[&str]) -> support::Done {
    run(tenure(["--url", url].iter().chain(args)))
}

#[test]
fn what_another_program_has_is_no_negative_answer() {
    let redis = RedisServer::start().unwrap();
    let url = redis.url();
    for key in ["data/k", "lock/x", "queue/q/values", "election/e"] {
        let key = format!("{{tenure/1/default}}/{key}");
        ask(&redis, &["RPUSH", &key, "theirs"]);
    }
    at(&url, &["get", "k"]).fails(78, &["another type"]);
    at(&url, &["put", "k", "v"]).fails(78, &["another type"]);
    at(&url, &["lock", "x", "--", "true"]).fails(78, &["another type"]);
    at(&url, &["leader", "e"]).fails(78, &["another type"]);
    ask(&redis, &["HSET", "orders", "6c2d-thread:1", "1"]);
    run(lock(&redis, &["orders", "--", "true"])).fails(78, &["Redisson"]);
    // What somebody deleted is told, and costs nothing else.
    for item in ["one", "two"] {
        at(&url, &["enqueue", "jobs", item]).exits(0);
    }
    let values = "{tenure/1/default}/queue/jobs/values";
    let ready = ["ZRANGE", "{tenure/1/default}/queue/jobs/ready", "0", "0"];
    let place = ask(&redis, &ready);
    ask(&redis, &["HDEL", values, &place]);
    at(&url, &["dequeue", "jobs"]).fails(78, &[&place, values]);
    let next = at(&url, &["dequeue", "jobs"]);
    next.exits(0);
    assert_eq!(next.stdout, "two\n");
}

#[test]
fn a_url_that_leads_nowhere_is_one() {
    let redis = RedisServer::builder().password("right").start().unwrap();
    let address = redis.address();
    let (with, without) = (
        format!("redis://:right@{address}"),
        format!("redis://{address}"),
    );
    at(&format!("{with}/99"), &["get", "k"]).fails(78, &["no database 99"]);
    let cluster = with.replace("redis://", "redis+cluster://");
    at(&cluster, &["get", "k"]).fails(78, &["no node of a cluster"]);
    let sentinel =
        with.replace("redis://", "redis+sentinel://") + "/mymaster?sentinel_password=right";
    at(&sentinel, &["get", "k"]).fails(78, &["no sentinel"]);
    let odd = format!("redis://:50%zz@{address}");
    let refused = at(&odd, &["get", "k"]);
    refused.fails(78, &["%25"]);
    assert!(!refused.stderr.contains("zz"), "{refused:?}");
    at(&format!("{with}?timeout=0s"), &["get", "k"]).fails(78, &["`timeout`"]);
    let none = at(&without, &["get", "k"]);
    none.fails(77, &["wants a password"]);
    let wrong = at(&format!("redis://:wrong@{address}"), &["get", "k"]);
    wrong.fails(77, &["refused the user or the password"]);
    // Each cause once.
    for (done, cause) in [(none, "NOAUTH"), (wrong, "WRONGPASS")] {
        assert_eq!(done.stderr.matches(cause).count(), 1, "{done:?}");
    }
}

#[test]
fn a_sentinel_is_no_server() {
    let pair = RedisReplica::start().unwrap();
    let sentinels = RedisSentinels::start(&pair).unwrap();
    let url = sentinels.url();
    let hosts = url.strip_prefix("redis+sentinel://").unwrap();
    let url = format!("redis://{}", hosts.split([',', '/']).next().unwrap());
    at(&url, &["get", "k"]).fails(78, &["redis+sentinel://"]);
}

#[test]
fn whoever_may_not_look_around_has_not_shown_anything_broken() {
    let redis = RedisServer::start().unwrap();
    let rules = "on >secret ~* &* +@all -scan";
    let rules: Vec<_> = ["ACL", "SETUSER", "app"]
        .into_iter()
        .chain(rules.split(' '))
        .collect();
    ask(&redis, &rules);
    let url = format!("redis://app:secret@{}", redis.address());
    let conform = ["conform", "--only", "l4_*"];
    at(&url, &conform).fails(77, &["operator", "scan"]);
    ask(&redis, &["ACL", "SETUSER", "app", "+scan"]);
    at(&url, &conform).exits(0);
}

/// As the documentation has them: what every program needs, on the suite's namespaces, and two rights more.
#[test]
fn the_suite_needs_few_rights_and_leaves_nothing() {
    let redis = RedisServer::start().unwrap();
    let namespace = tenure::Namespace::new("shop").unwrap();
    let needed = tenure::redis::acl_rules(&namespace);
    let commands = needed.split(' ').filter(|rule| rule.starts_with('+'));
    let patterns = ["~", "&"].map(|kind| {
        let of = |name: &str| format!("{kind}{{tenure/1/{name}}}/*");
        [of("shop"), of("shop%2Fconformance-*")]
    });
    let user = ["ACL", "SETUSER", "app", "on", ">secret"];
    let mut rules: Vec<&str> = user.to_vec();
    rules.extend(commands.chain(patterns.as_flattened().iter().map(String::as_str)));
    ask(&redis, &[&rules[..], &["+scan"]].concat());
    let url = format!("redis://app:secret@{}?namespace=shop", redis.address());
    at(&url, &["conform", "--only", "l4_*"]).fails(77, &["operator", "can't run this command"]);
    assert_eq!(ask(&redis, &["DBSIZE"]), "0");

    ask(&redis, &["ACL", "LOG", "RESET"]);
    ask(&redis, &[&rules[..], &["+type"]].concat());
    let done = at(&url, &["conform"]);
    done.exits(0);
    assert!(done.stdout.contains(" 0 violated"), "{done:?}");
    // What the guarantees ask for, and do without: that right shows passwords.
    let log = ask(&redis, &["ACL", "LOG"]);
    let refused = log.split("object\n").skip(1);
    let mut refused = refused.filter_map(|entry| entry.lines().next());
    assert!(refused.all(|command| command == "config|get"), "{log}");
    assert_eq!(ask(&redis, &["DBSIZE"]), "0");
}

#[test]
fn a_suite_that_is_interrupted_leaves_nothing() {
    let redis = RedisServer::start().unwrap();
    for (form, signal) in [("--json", Signal::INT), ("--long", Signal::TERM)] {
        let conform = ["--url", &redis.url(), "conform", form];
        let mut running = Process::spawn(tenure(conform)).unwrap();
        until("many keys", || {
            ask(&redis, &["DBSIZE"])
                .parse::<u32>()
                .is_ok_and(|keys| keys > 30)
        });
        running.signal(signal).unwrap();
        running.wait(PATIENCE).unwrap();
        says(&running, "stopped by a signal");
        assert_eq!(ask(&redis, &["KEYS", "*"]), "", "{form}");
    }
}

#[test]
fn a_full_server_is_emptied_by_the_command() {
    let redis = RedisServer::start().unwrap();
    let url = redis.url();
    for item in ["one", "two", "three"] {
        at(&url, &["enqueue", "jobs", item]).exits(0);
    }
    at(&url, &["put", "k", "v"]).exits(0);
    ask(&redis, &["CONFIG", "SET", "maxmemory", "1"]);
    for refused in [
        &["enqueue", "jobs", "four"][..],
        &["put", "k", "w"],
        &["lock", "x", "--", "true"],
    ] {
        at(&url, refused).fails(69, &["maxmemory"]);
    }
    assert_eq!(at(&url, &["dequeue", "jobs"]).stdout, "one\n");
    assert_eq!(at(&url, &["queue-len", "jobs"]).stdout, "2\n");
    at(&url, &["dequeue", "jobs", "--count", "2"]).exits(0);
    at(&url, &["delete", "k"]).exits(0);
    ask(&redis, &["CONFIG", "SET", "maxmemory", "0"]);
    at(&url, &["queue-peek", "jobs"]).exits(1);
    at(&url, &["get", "k"]).exits(1);
}

/// The server lets them in, and then does not renew what they have.
#[test]
fn a_refused_renewal_is_told_as_one() {
    let redis = RedisServer::start().unwrap();
    let user = ["ACL", "SETUSER", "app", "on", ">old", "~*", "&*", "+@all"];
    ask(&redis, &user);
    let url = format!("redis://app:old@{}?ttl=2s", redis.address());
    let command = |args: &[&str]| tenure(["--url", &url].iter().chain(args));
    let mut holder = Process::spawn(command(&["lock", "x"])).unwrap();
    holder.expect_line("x token=", PATIENCE).unwrap();
    let mut waiter = Process::spawn(command(&["lock", "x"])).unwrap();
    let line = ["ZCARD", "{tenure/1/default}/lock/x"];
    until("a place in line", || ask(&redis, &line) == "2");
    ask(&redis, &["ACL", "SETUSER", "app", "-pexpire"]);
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(76));
    says(&holder, "refused to renew");
    says(&holder, "`PEXPIRE`");
    says(&holder, "stop the work");
    // It may be granted what the holder lost, before it loses it, too.
    let code = waiter.wait(PATIENCE).unwrap().code();
    says(&waiter, "refused to renew");
    if code != Some(76) {
        assert_eq!(code, Some(77));
        assert!(
            !waiter.stderr().contains("stop the work"),
            "{}",
            waiter.stderr()
        );
    }
    ask(&redis, &["ACL", "SETUSER", "app", "+pexpire"]);
    let mut holder = Process::spawn(command(&["lock", "y"])).unwrap();
    holder.expect_line("y token=", PATIENCE).unwrap();
    ask(&redis, &["ACL", "SETUSER", "app", "resetpass", ">new"]);
    ask(&redis, &["CLIENT", "KILL", "USER", "app"]);
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(76));
    says(&holder, "refused the user or the password");
}

/// A lock with these options, whose command prints the URL in its environment.
fn print<'a>(options: &[&'a str]) -> Vec<&'a str> {
    let command = ["--", "sh", "-c", "echo url=${TENURE_URL-none}"];
    [&["x"], options, &command[..]].concat()
}

#[test]
fn the_command_gets_the_url_on_request_only() {
    let redis = RedisServer::start().unwrap();
    let url = format!("{}?interop=true&ttl=2s", redis.url());
    for (options, expected) in [(&[][..], "none"), (&["--pass-url"], &*url)] {
        let expected = format!("url={expected}\n");
        let by_flag = run(lock(&redis, &print(options)));
        assert_eq!(by_flag.stdout, expected, "{by_flag:?}");
        let mut by_variable = tenure(["lock"].iter().chain(&print(options)));
        by_variable.env("TENURE_URL", &url);
        let by_variable = run(by_variable);
        assert_eq!(by_variable.stdout, expected, "{by_variable:?}");
    }
}
