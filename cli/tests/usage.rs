//! What is refused before anything is held: every error has its exit code, and says what to do.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use support::{run, tenure, tenure_done};

#[test]
fn help_and_version_are_no_errors() {
    for args in [&["--help"][..], &["lock", "--help"], &["--version"]] {
        let done = tenure_done(args);
        done.exits(0);
        assert!(done.stdout.contains("tenure"), "{done:?}");
        assert_eq!(done.stderr, "");
    }
}

#[test]
fn help_does_not_show_the_url_of_the_environment() {
    let mut command = tenure(["lock", "--help"]);
    command.env("TENURE_URL", "etcd://root:canary@localhost:2379/ns");
    let done = run(command);
    done.exits(0);
    assert!(!done.stdout.contains("canary"));
    assert!(done.stdout.contains("TENURE_URL"));
}

#[test]
fn usage_is_64() {
    for args in [
        &[][..],
        &["frobnicate"],
        &["lock"],
        &["lock", "--", "true"],
        &["lock", "orders", "extra"],
        &["lock", "orders", "--"],
        &["lock", "orders", "--bogus"],
        &["lock", "orders", "--try", "--wait", "1s"],
        &["lock", "orders", "--wait", "soon"],
        &["lock", "orders", "--ttl", "0s"],
        &["lock", "orders", "--kill-after"],
        &["lock", "orders", "--url", "memory:", "--url", "memory:"],
        &["conform", "--format", "pdf"],
    ] {
        let done = tenure_done(args);
        done.fails(64, &[]);
        assert!(done.stderr.starts_with("tenure: "), "{done:?}");
        assert_eq!(done.stdout, "", "{args:?}");
    }
}

#[test]
fn how_many_is_said_plainly() {
    for (count, why) in [
        ("0", "at least 1"),
        ("none", "a whole number"),
        ("99999999999999999999", "too large"),
    ] {
        for args in [
            &["dequeue", "q", "--count", count][..],
            &["barrier", "enter", "b", "--count", count],
        ] {
            let done = tenure_done(args);
            done.fails(64, &["--count", why]);
            assert!(!done.stderr.contains(".."), "{done:?}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_value_is_said_though_it_begins_with_a_dash() {
    let range = "-1 is not in 0..=";
    for (args, why) in [
        (&["lock", "n", "--wait", "-1s"][..], "cannot be negative"),
        (&["lock", "n", "--ttl", "-500ms"], "cannot be negative"),
        (&["lock", "n", "--kill-after", "-soon"], "not a duration"),
        (&["dequeue", "q", "--wait", "-1"], "not a duration"),
        (&["dequeue", "q", "--count", "-1"], "a whole number"),
        (&["enqueue", "q", "x", "--priority", "-1"], range),
        (&["lock", "n", "--not-acquired-code", "-1"], range),
        (&["lock", "n", "--lost-code", "-1"], range),
        (&["conform", "--long", "--seeds", "-1"], "-1 is not in 1..="),
    ] {
        let done = tenure_done(args);
        done.fails(64, &["invalid value", why]);
        assert!(!done.stderr.contains("tip:"), "{done:?}");
    }
    // The variable of a script was empty: `--wait $wait -- true`.
    for option in ["--ttl", "--wait", "--kill-after"] {
        let done = tenure_done(["lock", "n", option, "--", "true"]);
        done.fails(64, &["a value is required", option]);
    }
}

#[test]
fn a_duration_may_be_too_long() {
    for option in ["--ttl", "--wait", "--kill-after"] {
        let done = tenure_done(["lock", "n", option, "999999999999999999h", "--", "true"]);
        done.fails(64, &[option, "too long"]);
    }
    // That it is a duration does not make it a TTL.
    tenure_done(["lock", "n", "--ttl", "25h", "--", "true"]).fails(78, &["86400s"]);
}

#[test]
fn an_empty_variable_is_named() {
    for command in [
        &["lock", "x", "--", "true"][..],
        &["guarantees"],
        &["conform"],
    ] {
        let mut command = tenure(command);
        command.env("TENURE_URL", "");
        run(command).fails(78, &["TENURE_URL is empty"]);
    }
    let mut command = tenure(["guarantees", "--url", "memory:"]);
    command.env("TENURE_URL", "");
    run(command).exits(0);
}

#[test]
fn bad_urls_are_78() {
    for (url, words) in [
        ("", &["scheme"][..]),
        ("orders", &["scheme"]),
        (
            "zookeeper://localhost/x",
            &["zookeeper", "memory", "etcd", "redis"],
        ),
        ("memory:?colour=red", &["colour"]),
        ("memory:a#b", &["#"]),
        ("redis://u:canary@[::1", &["brackets"]),
    ] {
        for command in [
            &["lock", "x", "--", "true"][..],
            &["guarantees"],
            &["conform"],
        ] {
            let done = tenure_done(["--url", url].iter().chain(command));
            done.fails(78, words);
        }
    }
    let mut command = tenure(["lock", "x", "--", "true"]);
    command.env("TENURE_URL", "nonsense");
    run(command).fails(78, &["scheme"]);
}

#[test]
#[cfg(not(feature = "etcd"))]
fn a_scheme_without_its_feature_names_the_feature() {
    let done = tenure_done([
        "--url",
        "etcd://localhost:2379/ns",
        "lock",
        "x",
        "--",
        "true",
    ]);
    done.fails(78, &["feature `etcd`"]);
}

#[test]
#[cfg(not(feature = "redis"))]
fn a_scheme_with_a_plus_names_its_feature() {
    let url = "rediss+sentinel://localhost:26379/service";
    let done = tenure_done(["--url", url, "lock", "x", "--", "true"]);
    done.fails(78, &["feature `redis`"]);
}

#[test]
fn bad_names_are_78() {
    let long = "x".repeat(10_000);
    for (name, words) in [("", "empty"), (long.as_str(), "512")] {
        let done = tenure_done(["lock", name, "--", "true"]);
        done.fails(78, &[words]);
        assert!(
            done.stderr.len() < 500,
            "the message repeats the name: {done:?}"
        );
    }
    tenure_done(["--namespace", "", "lock", "x", "--", "true"]).fails(78, &["namespace"]);
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt as _;
        let name = std::ffi::OsStr::from_bytes(b"\xff\xfe");
        let mut command = tenure(["lock"]);
        command.arg(name).args(["--", "true"]);
        run(command).fails(78, &["UTF-8"]);
    }
}

#[test]
fn a_bad_name_is_refused_before_the_store_is_asked() {
    let url = format!("etcd://{}/ns", support::dead_address());
    tenure_done(["--url", &url, "lock", "", "--", "true"]).fails(78, &["empty"]);
}

#[test]
fn options_may_stand_before_and_after_the_command() {
    tenure_done(["--url", "nonsense", "guarantees", "--url", "memory:"]).exits(0);
    let mut command = tenure(["guarantees", "--url", "memory:"]);
    command.env("TENURE_URL", "nonsense");
    run(command).exits(0);
}

#[test]
fn guarantees_of_the_embedded_store() {
    let table = tenure_done(["guarantees"]);
    table.exits(0);
    assert_eq!(table.stderr, "");
    for word in ["mutual exclusion", "L1", "FIFO"] {
        assert!(table.stdout.contains(word), "{table:?}");
    }

    let lines = tenure_done(["guarantees", "--json"]);
    lines.exits(0);
    let rows: Vec<serde_json::Value> = lines
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(rows.len() > 5);
    for row in &rows {
        for key in ["deployment", "guarantee", "value", "reason"] {
            assert!(!row[key].as_str().unwrap().is_empty(), "{row}");
        }
        assert!(row["rule"].is_string());
    }
}
