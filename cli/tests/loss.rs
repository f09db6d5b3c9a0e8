//! Commands under a holding that is lost, and commands whose `tenure` ends in any way: no process of theirs
//! runs beside the next holder.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use support::{PATIENCE, run, says, tenure, until};
use tenure_testbed::{Process, Proxy, RedisServer, Signal};

/// A child that ignores SIGTERM, and says its process id.
const STUBBORN: &str = "trap '' TERM; echo pid $$; for i in $(seq 1500); do sleep 0.02; done";

/// Says whether the process `$1` runs. One that has ended and was not waited for does not.
const LOOK: &str =
    r#"case "$(ps -o stat= -p "$1")" in ''|Z*) echo alone;; *) echo beside $1;; esac"#;

fn url(address: impl std::fmt::Display) -> String {
    format!("redis://{address}?ttl=2s")
}

fn spawn(url: &str, args: &[&str]) -> Process {
    Process::spawn(tenure(["--url", url].iter().chain(args))).unwrap()
}

/// The process id that the next line with `word` ends with.
fn pid(process: &mut Process, word: &str) -> String {
    let line = process.expect_line(word, PATIENCE).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

fn runs(pid: &str) -> bool {
    let look = Command::new("sh").args(["-c", LOOK, "look", pid]).output();
    String::from_utf8(look.unwrap().stdout).unwrap() != "alone\n"
}

/// What the holders of the six kinds run, and who comes after each.
const KINDS: [(&[&str], &[&str]); 6] = [
    (&["lock", "l"], &["lock", "l"]),
    (&["read-lock", "r"], &["write-lock", "r"]),
    (&["write-lock", "w"], &["read-lock", "w"]),
    (&["elect", "e", "a"], &["elect", "e", "b"]),
    (&["dequeue", "q"], &["dequeue", "q"]),
    (
        &["barrier", "enter", "b", "--count", "2"],
        &["barrier", "enter", "b", "--count", "2"],
    ),
];

#[test]
fn stubborn_children_are_dead_before_the_next_holder_is_granted() {
    let redis = RedisServer::start().unwrap();
    let proxy = Proxy::start(redis.address()).unwrap();
    let (slow, direct) = (url(proxy.address()), url(redis.address()));
    run(tenure(["--url", &direct, "enqueue", "q", "item"])).exits(0);
    let mut pairs = Vec::new();
    let mut entering = None;
    for (holding, next) in KINDS {
        let barrier = holding[0] == "barrier";
        if barrier {
            // Its successor is inside as well, and leaves at once: it ends when the other has left.
            let args = [next, &["--", "echo", "inside"]].concat();
            entering = Some(spawn(&direct, &args));
        }
        let args = [holding, &["--", "sh", "-c", STUBBORN]].concat();
        let mut holder = spawn(&slow, &args);
        let child = pid(&mut holder, "pid");
        let next = match barrier {
            true => entering.take().unwrap(),
            false => {
                let args = [next, &["--", "sh", "-c", LOOK, "look", &child]].concat();
                spawn(&direct, &args)
            }
        };
        pairs.push((holding, holder, child, next));
    }
    proxy.silence();
    let lost = Instant::now();
    for (holding, mut holder, child, mut next) in pairs {
        if holding[0] == "barrier" {
            next.expect_line("inside", PATIENCE).unwrap();
            assert!(next.wait(PATIENCE).unwrap().success());
            assert!(!runs(&child), "{holding:?}");
        } else {
            let line = next.expect_line("", PATIENCE).unwrap();
            assert_eq!(line, "alone", "{holding:?}");
            assert!(next.wait(PATIENCE).unwrap().success());
        }
        assert_eq!(
            holder.wait(PATIENCE).unwrap().code(),
            Some(76),
            "{holding:?}"
        );
        says(&holder, "tenure: lost ");
    }
    assert!(
        lost.elapsed() > Duration::from_secs(1),
        "the leases ran out"
    );
}

/// While renewals succeed nothing is signalled, however long it takes.
#[test]
fn a_child_is_left_alone_while_renewals_succeed() {
    let redis = RedisServer::start().unwrap();
    let url = format!("redis://{}?ttl=4s", redis.address());
    let child = "trap 'echo signalled; exit 1' TERM; for i in 1 2 3 4 5 6 7 8; do sleep 0.7; done";
    let done = run(tenure([
        "--url",
        &url,
        "lock",
        "l",
        "--kill-after",
        "1s",
        "--",
        "sh",
        "-c",
        child,
    ]));
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""), "{done:?}");
}

#[test]
fn kill_after_has_to_fit_into_the_ttl() {
    for (ttl, kill_after) in [("2s", "5s"), ("10s", "5100ms"), ("1s", "600ms")] {
        let lock = [
            "--url",
            "memory:",
            "--ttl",
            ttl,
            "lock",
            "l",
            "--kill-after",
            kill_after,
        ];
        let args = lock.iter().chain(&["--", "true"]);
        run(tenure(args)).fails(64, &["--kill-after"]);
    }
    for (ttl, kill_after) in [("10s", "5s"), ("1s", "500ms"), ("2s", "0s")] {
        let lock = [
            "--url",
            "memory:",
            "--ttl",
            ttl,
            "lock",
            "l",
            "--kill-after",
            kill_after,
        ];
        run(tenure(lock.iter().chain(&["--", "true"]))).exits(0);
    }
}

#[test]
fn processes_that_the_child_started_end_with_the_holding() {
    let redis = RedisServer::start().unwrap();
    let proxy = Proxy::start(redis.address()).unwrap();
    let direct = url(redis.address());
    let script =
        "sh -c 'trap \"\" TERM; for i in $(seq 1500); do sleep 0.02; done' & echo pid $!; wait";
    let mut holder = spawn(
        &url(proxy.address()),
        &["lock", "l", "--", "sh", "-c", script],
    );
    let worker = pid(&mut holder, "pid");
    let mut next = spawn(
        &direct,
        &["lock", "l", "--", "sh", "-c", LOOK, "look", &worker],
    );
    proxy.silence();
    assert_eq!(next.expect_line("", PATIENCE).unwrap(), "alone");
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(76));

    // One that the child leaves behind ends before the release.
    let script = "sh -c 'trap \"\" TERM; for i in $(seq 1500); do sleep 0.02; done' >/dev/null 2>&1 & echo pid $!; exit 3";
    let mut holder = spawn(&direct, &["lock", "m", "--", "sh", "-c", script]);
    let worker = pid(&mut holder, "pid");
    let mut next = spawn(
        &direct,
        &["lock", "m", "--", "sh", "-c", LOOK, "look", &worker],
    );
    assert_eq!(next.expect_line("", PATIENCE).unwrap(), "alone");
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(3));
}

#[test]
fn a_child_does_not_outlive_its_tenure_beside_the_next_holder() {
    let redis = RedisServer::start().unwrap();
    let url = url(redis.address());
    for signal in [
        Signal::KILL,
        Signal::ALARM,
        Signal::XCPU,
        Signal::ABORT,
        Signal::STOP,
    ] {
        let mut holder = spawn(&url, &["lock", "l", "--", "sh", "-c", STUBBORN]);
        let child = pid(&mut holder, "pid");
        let mut next = spawn(&url, &["lock", "l", "--", "sh", "-c", LOOK, "look", &child]);
        holder.signal(signal).unwrap();
        if let Signal::ALARM | Signal::XCPU = signal {
            // Forwarded as any other; this child dies of it.
            assert_eq!(
                holder.wait(PATIENCE).unwrap().code(),
                Some(128 + signal.as_raw())
            );
        }
        assert_eq!(
            next.expect_line("", PATIENCE).unwrap(),
            "alone",
            "{signal:?}"
        );
        until("the end of the next", || !next.is_running());
    }
}

#[test]
fn a_kill_of_the_group_reaches_the_child_once() {
    let script = r#"
        n=0
        trap 'n=$((n+1)); echo term $n' TERM
        trap 'echo total $n; kill $sleeper; exit 0' USR1
        sleep 600 & sleeper=$!
        echo ready
        while :; do wait $sleeper; done
    "#;
    let mut command = tenure(["lock", "x", "--", "sh", "-c", script]);
    command.process_group(0);
    let mut holder = Process::spawn(command).unwrap();
    holder.expect_line("ready", PATIENCE).unwrap();
    let group = format!("-{}", holder.pid());
    let killed = Command::new("kill").args(["-TERM", "--", &group]).status();
    assert!(killed.unwrap().success());
    holder.expect_line("term 1", PATIENCE).unwrap();
    holder.signal(Signal::USR1).unwrap();
    assert_eq!(holder.expect_line("total", PATIENCE).unwrap(), "total 1");
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(0));
}

/// The mask of ignored signals, without SIGPIPE: Rust's runtime sets that for itself and resets it for
/// what it starts.
#[cfg(target_os = "linux")]
fn ignored(output: &str) -> u64 {
    let mask = output.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    u64::from_str_radix(mask.unwrap().trim(), 16).unwrap() & !(1 << 12)
}

#[test]
#[cfg(target_os = "linux")]
fn signals_that_the_caller_ignores_stay_ignored() {
    let traps = "trap '' HUP INT QUIT TERM USR1 USR2 ALRM XCPU WINCH; exec \"$@\"";
    let run_ignoring = |program: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", traps, "sh"]).args(program);
        command.env_remove("TENURE_URL");
        run(command)
    };
    let status = ["grep", "SigIgn", "/proc/self/status"];
    let bare = run_ignoring(&status);
    let tenure = [env!("CARGO_BIN_EXE_tenure"), "lock", "x", "--"];
    let under = run_ignoring(&[&tenure[..], &status[..]].concat());
    assert_eq!(ignored(&under.stdout), ignored(&bare.stdout), "{under:?}");
}
