//! `tenure conform`: what it chooses, what it prints, where to.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::{PATIENCE, run, tenure, tenure_done};
use tenure_testbed::{Process, Signal, output_within};

/// Without looking for servers that happen to be installed here.
const EMBEDDED: [&str; 3] = ["conform", "--url", "memory:"];

fn conform(args: &[&str]) -> support::Done {
    let mut command = tenure(EMBEDDED.iter().chain(args));
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    output_within(command, WHOLE_SUITE).unwrap().into()
}

/// A limit for a run of many cases in real time.
const WHOLE_SUITE: Duration = Duration::from_secs(250);

#[test]
fn the_embedded_store_keeps_what_it_claims() {
    let done = conform(&[]);
    done.exits(0);
    for word in ["mutual exclusion", "memory", "held", "0 violated"] {
        assert!(done.stdout.contains(word), "no {word:?} in {done:?}");
    }
    assert_eq!(done.stderr, "", "no bar where there is no terminal");
}

#[test]
fn cases_are_chosen_by_name_and_stores_stand_side_by_side() {
    let done = conform(&[
        "--url",
        "memory:other",
        "--only",
        "l8_*",
        "--format",
        "json",
    ]);
    done.exits(0);
    let lines: Vec<Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (cases, others): (Vec<&Value>, Vec<&Value>) =
        lines.iter().partition(|line| line["case"].is_string());
    let (guarantees, stores): (Vec<&Value>, Vec<&Value>) = others
        .into_iter()
        .partition(|line| line["guarantee"].is_string());
    let titles: Vec<&str> = stores
        .iter()
        .map(|line| line["store"].as_str().unwrap())
        .collect();
    assert_eq!(titles, ["memory", "memory (2)"]);
    let names = guarantees
        .iter()
        .filter(|line| line["guarantee"] == "names" && line["standing"] == "held");
    assert_eq!(names.count(), 2, "{guarantees:?}");
    assert!(!cases.is_empty() && cases.len() % 2 == 0);
    for case in cases {
        assert!(case["case"].as_str().unwrap().starts_with("l8_"), "{case}");
        assert_eq!(case["rule"], "L8");
        assert_eq!(case["outcome"], "held", "{case}");
    }
    for store in stores {
        assert!(store["held"].as_u64().unwrap() > 0, "{store}");
        assert!(store["deployment"].is_string(), "{store}");
    }

    let again = conform(&["--json", "--only", "l8_*"]);
    again.exits(0);
    assert!(again.stdout.starts_with('{'), "{again:?}");
}

#[test]
fn what_is_denied_is_shown() {
    let done = conform(&["--only", "*_outlives_a_crash"]);
    done.exits(0);
    let shown = "acknowledged grant on memory: denied, shown\n    store_a_grant_outlives_a_crash: ";
    assert!(done.stdout.contains(shown), "{done:?}");
    let done = conform(&["--only", "*_outlives_a_crash", "--json"]);
    let lines = done.stdout.lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| line["guarantee"] == "acknowledged grant");
    let line = line.unwrap();
    assert_eq!(line["standing"], "denied, shown", "{line}");
    let seen = &line["shown"][0];
    assert_eq!(seen["case"], "store_a_grant_outlives_a_crash", "{line}");
    assert!(
        seen["seen"]
            .as_str()
            .unwrap()
            .contains("granted to another")
    );
}

/// The set-ups that promise less stand beside the others, for the cases that concern them.
#[test]
#[cfg(feature = "redis")]
fn set_ups_stand_beside_the_stores() {
    let mut command = tenure(["conform", "--json", "--only", "l1_*"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let done: support::Done = output_within(command, WHOLE_SUITE).unwrap().into();
    done.exits(0);
    for (store, standing) in [
        ("redis, no persistence", "denied, shown"),
        ("redis + replica, asynchronous", "denied, shown"),
        ("redis cluster, a primary lost", "denied, shown"),
        ("redis, clock that jumps", "denied, shown"),
        ("redis", "held; denied, no control here"),
    ] {
        let lines = done.stdout.lines();
        let mut lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
        let line =
            lines.find(|line| line["store"] == store && line["guarantee"] == "mutual exclusion");
        assert_eq!(line.unwrap()["standing"], standing, "{store}: {done:?}");
    }
}

/// One run of the long form, as an object.
fn long(args: &[&str]) -> (support::Done, Vec<Value>) {
    let done = conform(&[&["--long", "--json"], args].concat());
    let lines = done.stdout.lines();
    let runs = lines.map(|line| serde_json::from_str(line).unwrap());
    let runs = runs.collect();
    (done, runs)
}

#[test]
fn the_long_form_runs_on_the_embedded_store() {
    let (done, runs) = long(&["--seed", "3", "--at-once", "1"]);
    done.exits(0);
    let [run] = &runs[..] else {
        panic!("one seed, one store: {done:?}");
    };
    assert_eq!(run["store"], "memory");
    assert_eq!(run["seed"], 3);
    assert_eq!(run["outcome"], "passed", "{run}");
    assert!(run["operations"].as_u64().unwrap() >= 10_000, "{run}");
    let faults = run["faults"].as_object().unwrap();
    assert!(
        faults
            .values()
            .map(|count| count.as_u64().unwrap())
            .sum::<u64>()
            >= 8
    );
    let command = "tenure conform --long --url memory: --only memory --seed 3";
    assert_eq!(run["command"], command);

    // The schedule is the seed's, whatever else is chosen; how many of it there is time for is not.
    let folder = tempfile::tempdir().unwrap();
    let histories = folder.path().to_str().unwrap();
    let again = ["--long", "--json", "--seed", "3", "--seeds", "50"];
    let more = [
        "--at-once",
        "1",
        "--only",
        "memory",
        "--histories",
        histories,
    ];
    let args = EMBEDDED.into_iter().chain(again).chain(more);
    let mut running = Process::spawn(tenure(args)).unwrap();
    let line = running.expect_line("", 4 * PATIENCE).unwrap();
    let run: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(run["seed"], 3);
    let again = run["faults"].as_object().unwrap();
    for (kind, count) in faults {
        let other = again.get(kind).and_then(Value::as_u64).unwrap_or_default();
        assert!(
            count.as_u64().unwrap().abs_diff(other) <= 1,
            "{kind}: {count} and then {other}"
        );
    }
    let files = run["histories"].as_array().unwrap();
    assert!(!files.is_empty());
    for file in files {
        assert!(std::path::Path::new(file.as_str().unwrap()).is_file());
    }

    // Broken off, it has told what had ended, and says how much that was.
    running.signal(Signal::TERM).unwrap();
    assert_eq!(running.wait(PATIENCE).unwrap().code(), Some(143));
    assert_eq!(running.try_line(), None);
    support::says(&running, "stopped by a signal, after 1 of 50 runs");
}

#[test]
fn the_long_form_refuses_what_it_cannot_do() {
    for (args, word) in [
        (&["--long", "--only", "nonsense"][..], "no store is left"),
        (&["--long", "--format", "html"], "--format table"),
        (&["--long", "--seeds", "0"], "0 is not in"),
        (&["--long", "--at-once", "0"], "0 is not in"),
        (&["--long", "--faults"], "cannot be used with"),
        (&["--at-once", "2"], "--long"),
    ] {
        let done = conform(args);
        done.exits(64);
        assert!(done.stderr.contains(word), "{args:?}: {done:?}");
    }
    let done = run(tenure(["conform", "--long", "--only", "nonsense"]));
    done.exits(64);
    let names = "no store matches `nonsense`: with --long, --only chooses among memory, etcd";
    assert!(done.stderr.contains(names), "{done:?}");
}

#[test]
fn the_report_goes_to_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.txt");
    let done = conform(&["--only", "l8_*", "--out", path.to_str().unwrap()]);
    done.exits(0);
    assert_eq!(done.stdout, "");
    let report = std::fs::read_to_string(&path).unwrap();
    assert!(report.contains("mutual exclusion"), "{report}");

    let nowhere = folder.path().join("no/such/folder");
    conform(&["--out", nowhere.to_str().unwrap()]).fails(70, &["no/such/folder"]);
}

#[test]
fn every_form_has_the_store_its_version_and_what_came_of_it() {
    let deployment = "embedded, in this process";
    let printed = |arguments: &[&str]| {
        let done = conform(&[&["--only", "l8_*"], arguments].concat());
        done.exits(0);
        done.stdout
    };
    let markdown = printed(&["--format", "markdown"]);
    for expected in [
        "# Conformance\n\n**passed**: ",
        "* Again: `tenure conform --url memory: --only 'l8_*' --format markdown`\n",
        "| guarantee | memory |\n|---|---|\n",
        "| names (L8) | isolated: held |\n",
        deployment,
    ] {
        assert!(markdown.contains(expected), "no {expected:?} in {markdown}");
    }
    let brief = printed(&["--format", "markdown", "--brief"]);
    assert!(markdown.contains(&brief), "{brief}");
    assert!(brief.starts_with("| guarantee | memory |\n"), "{brief}");

    let junit = printed(&["--format", "junit"]);
    for expected in [
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuites ",
        "<testsuite name=\"memory\" tests=\"",
        "failures=\"0\" errors=\"0\" skipped=\"0\"",
        "<testcase classname=\"memory\" name=\"l8_bad_names_are_refused\" time=\"",
        deployment,
    ] {
        assert!(junit.contains(expected), "no {expected:?} in {junit}");
    }

    let html = printed(&["--format", "html"]);
    assert!(html.starts_with("<!doctype html>\n"), "{html}");
    assert!(html.ends_with("</html>\n"), "{html}");
    for expected in ["l8_bad_names_are_refused", deployment] {
        assert!(html.contains(expected), "no {expected:?} in {html}");
    }
    assert!(!html.contains("://"), "nothing from outside: {html}");
}

#[test]
fn a_page_goes_to_a_file_and_secrets_do_not_go_into_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let out = ["--format", "html", "--out", path.to_str().unwrap()];
    let arguments = ["--only", "l8_*", "--faults"];
    // Of an embedded store nothing more can be started.
    conform(&[&arguments[..], &out].concat()).exits(0);
    let page = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        page.matches("<th scope=\"col\" role=\"columnheader\">")
            .count(),
        2,
        "{page}"
    );
    assert!(
        page.contains("tenure conform --url memory: --only &#39;l8_*&#39; --faults --format html")
    );
}

/// A store that is not there is 69, and one that goes away meanwhile is, too: what it broke by that says
/// little about its promises.
#[cfg(feature = "redis")]
#[test]
fn a_store_that_goes_away_is_69() {
    let dead = format!("redis://{}", support::dead_address());
    tenure_done(["conform", "--url", &dead]).fails(69, &[&dead["redis://".len()..]]);

    let mut server = tenure_testbed::RedisServer::start().unwrap();
    let url = server.url();
    // It holds a lock for three TTLs, and needs nothing but the URL.
    let only = ["--only", "s1_lock_outlives_three_ttls"];
    let running =
        std::thread::spawn(move || tenure_done(["conform", "--url", &url].iter().chain(&only)));
    support::until("a session", || {
        assert!(!running.is_finished(), "ended before the store did");
        server
            .command(&["KEYS", "*/session/*"])
            .is_ok_and(|keys| !keys.is_empty())
    });
    server.kill().unwrap();
    running.join().unwrap().fails(69, &["the store was gone"]);
}

/// Everything but what a standby is made with: set-ups with one are left out, and nothing fails.
#[cfg(feature = "postgres")]
#[test]
fn a_set_up_that_cannot_be_started_is_left_out() {
    use std::os::unix::fs::PermissionsExt as _;

    let named = std::env::var_os("TENURE_POSTGRES").map(std::path::PathBuf::from);
    let installed = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten();
    let newest = installed
        .flatten()
        .map(|it| it.path().join("bin/postgres"))
        .max();
    let real = named.or(newest).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let everybody = || std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder.path(), everybody()).unwrap();
    for program in ["postgres", "initdb"] {
        let script = folder.path().join(program);
        let real = real.with_file_name(program);
        std::fs::write(
            &script,
            format!("#!/bin/sh\nexec {} \"$@\"\n", real.display()),
        )
        .unwrap();
        std::fs::set_permissions(&script, everybody()).unwrap();
    }
    let mut command = tenure(["conform", "--json", "--only", "store_commits_outlive_*"]);
    command.env("TENURE_POSTGRES", folder.path().join("postgres"));
    for other in ["TENURE_ETCD", "TENURE_REDIS_SERVER"] {
        command.env(other, "/nowhere");
    }
    let done = run(command);
    done.exits(0);
    for set_up in ["asynchronous", "synchronous"] {
        let left_out = format!("postgres + standby, {set_up} is left out: ");
        assert!(done.stderr.contains(&left_out), "{done:#?}");
    }
    assert!(!done.stdout.contains("standby, "), "{done:#?}");
    assert!(
        done.stdout.contains(r#""store":"postgres, fsync off""#),
        "{done:#?}"
    );
}

/// What a server at a URL must not suffer, one that is started here does.
#[cfg(feature = "redis")]
#[test]
fn faults_are_for_servers_of_our_own() {
    let server = tenure_testbed::RedisServer::builder()
        .password("canary")
        .start()
        .unwrap();
    let url = format!("redis://:canary@{}", server.address());
    let arguments = ["conform", "--url", &url, "--only", "l1_*_through_a_restart"];
    let alone = tenure_done(arguments.iter().chain(&["--json"]));
    alone.fails(1, &["nothing was proved"]);
    assert!(
        alone
            .stdout
            .contains("there is no way to restart the store"),
        "{alone:?}"
    );
    let done = tenure_done(arguments.iter().chain(&["--faults", "--json"]));
    let stores = |word: &str| {
        let lines = done
            .stdout
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap());
        let cases = lines.filter(|line| line["case"].is_string() && line["outcome"] == word);
        cases
            .map(|line| line["store"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        stores("denied, shown"),
        ["redis, no persistence"],
        "{done:?}"
    );
    assert_eq!(
        stores("denied, no control here"),
        [format!("redis at {}", server.address())],
        "{done:?}"
    );
    assert!(
        !done.stdout.contains("canary") && !done.stderr.contains("canary"),
        "{done:?}"
    );
}

#[test]
fn what_makes_no_sense_is_64() {
    conform(&["--brief"]).fails(64, &["--brief", "markdown"]);
    conform(&["--json", "--brief"]).fails(64, &["--brief"]);
    conform(&["--format", "yaml"]).fails(64, &["yaml", "junit"]);
    conform(&["--only", "nothing_like_this"]).fails(64, &["nothing_like_this"]);
    conform(&["--namespace", "x"]).fails(64, &["--namespace"]);
    conform(&["--ttl", "5s"]).fails(64, &["--ttl"]);
    let before = ["--ttl", "5s", "--namespace", "x", "conform"];
    run(tenure(before)).fails(64, &["--namespace", "--ttl"]);
    let help = conform(&["--help"]);
    help.exits(0);
    assert!(!help.stdout.contains("--ttl") && !help.stdout.contains("--namespace"));
}

#[test]
fn two_forms_of_one_report_are_64() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("x.html");
    for long in [&[][..], &["--long"]] {
        let args = [
            "--json",
            "--format",
            "html",
            "--out",
            page.to_str().unwrap(),
        ];
        let done = conform(&[long, &args].concat());
        done.fails(64, &["--json goes with --format json"]);
        assert!(!page.exists(), "{done:?}");
    }
    let done = conform(&["--json", "--format", "json", "--only", "l8_*"]);
    done.exits(0);
    assert!(done.stdout.starts_with('{'), "{done:?}");
}

#[test]
fn without_a_url_it_tries_what_is_here() {
    let done = run(tenure(["conform", "--only", "l8_*"]));
    done.exits(0);
    assert!(done.stdout.contains("memory"), "{done:?}");
    if cfg!(feature = "etcd") {
        assert!(done.stdout.contains("etcd"), "{done:?}");
    } else {
        assert!(done.stderr.contains("feature `etcd`"), "{done:?}");
    }
    if cfg!(feature = "redis") {
        assert!(done.stdout.contains("redis"), "{done:?}");
    } else {
        assert!(done.stderr.contains("feature `redis`"), "{done:?}");
    }
    // Their programs are nowhere to be found.
    let mut command = tenure(["conform", "--only", "l8_*"]);
    command.env("TENURE_ETCD", "/no/such/etcd");
    command.env("TENURE_REDIS_SERVER", "/no/such/redis-server");
    let done = run(command);
    done.exits(0);
    assert!(done.stderr.contains("tenure: etcd is left out"), "{done:?}");
    assert!(
        done.stderr.contains("tenure: redis is left out"),
        "{done:?}"
    );
}
