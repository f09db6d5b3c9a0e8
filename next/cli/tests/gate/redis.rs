//! The command on Redis: the server of the test run, and one with a password.

use serde_json::Value;
use tenure_testbed::{RedisOptions, RedisServer, shared_redis};

use crate::support::{Ended, tenure};

fn check_secrecy(ended: &Ended) {
    assert!(!ended.stdout.contains("canary"), "{}", ended.stdout);
    assert!(!ended.stderr.contains("canary"), "{}", ended.stderr);
}

#[test]
fn guarantees_of_redis_are_read_from_the_server() {
    let ended = tenure(&["guarantees", "--url", shared_redis().unwrap().url()]);
    assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
    assert!(
        ended.stdout.starts_with("Redis 7") || ended.stdout.starts_with("Redis 8"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("appendfsync"), "{}", ended.stdout);
}

#[test]
fn redis_and_the_embedded_store_stand_beside_each_other() {
    let shared = shared_redis().unwrap();
    let ended = tenure(&[
        "conform",
        "--json",
        "--only",
        "l1_excludes_others/*",
        "--url",
        "memory:",
        "--url",
        shared.url(),
    ]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stderr, ended.stdout);
    let reports: Vec<Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let stores: Vec<_> = reports.iter().map(|report| report["store"].as_str().unwrap()).collect();
    assert!(stores[0] == "memory" && stores[1].starts_with("redis://"), "{stores:?}");
    for report in &reports {
        let cases = report["cases"].as_array().unwrap();
        assert!(
            cases.len() > 5 && cases.iter().all(|case| case["outcome"] == "held"),
            "{report:#}"
        );
    }
}

#[test]
fn password_is_in_no_output_and_a_wrong_one_is_not_permitted() {
    let server = RedisServer::start(RedisOptions::default().password("canary")).unwrap();
    let with = |password: &str| format!("redis://:{password}@{}", server.address());

    let right = with("canary");
    let ended = tenure(&["guarantees", "--url", &right]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    check_secrecy(&ended);
    let ended = tenure(&["conform", "--only", "l4_a_try_*/lock", "--url", &right]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.stderr, ended.stdout);
    assert!(ended.stderr.contains(&server.url()), "{}", ended.stderr);
    check_secrecy(&ended);
    let left = server.admin().keys("*conform*").unwrap();
    assert!(left.is_empty(), "{left:?}");

    for command in ["guarantees", "conform"] {
        let ended = tenure(&[command, "--url", &with("canary-2")]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(77), ""), "{}", ended.stderr);
        check_secrecy(&ended);
    }
}
