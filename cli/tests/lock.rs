//! `tenure lock` by itself: the child, its streams, its signals, its exit code. The embedded store
//! is enough for that; what two processes do to each other is in `etcd.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::{PATIENCE, run, run_with_input, says, tenure, tenure_done, with_default_signals};
use tenure_testbed::{Process, Signal};

/// `tenure lock NAME -- sh -c SCRIPT`.
fn under_lock(name: &str, script: &str) -> Command {
    tenure(["lock", name, "--", "sh", "-c", script])
}

#[test]
fn the_exit_code_is_the_childs() {
    for code in [0, 1, 2, 42, 75, 76, 255] {
        run(under_lock("orders", &format!("exit {code}"))).exits(code);
    }
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("INT", 130)] {
        run(under_lock("orders", &format!("kill -{signal} $$"))).exits(code);
    }
}

#[test]
fn a_command_that_cannot_run_is_127_or_126() {
    tenure_done(["lock", "x", "--", "/no/such/program"]).fails(127, &["/no/such/program"]);
    tenure_done(["lock", "x", "--", "no-such-program-either"]).fails(127, &[]);
    tenure_done(["lock", "x", "--", "/"]).fails(126, &[]);
    tenure_done(["lock", "x", "--", "/dev/null"]).fails(126, &[]);
}

#[test]
fn the_child_knows_what_it_holds() {
    let mut command = under_lock(
        "orders",
        r#"printf '%s|%s|%s' "$TENURE_NAME" "$TENURE_TOKEN" "$TENURE_SESSION""#,
    );
    for variable in ["TENURE_NAME", "TENURE_TOKEN", "TENURE_SESSION"] {
        command.env(variable, "inherited");
    }
    let done = run(command);
    done.exits(0);
    let [name, token, session] = done.stdout.split('|').collect::<Vec<_>>()[..] else {
        panic!("{done:?}");
    };
    assert_eq!(name, "orders");
    assert!(token.parse::<u64>().unwrap() > 0);
    assert!(!session.is_empty() && session != "inherited");
}

#[test]
fn the_streams_are_the_childs() {
    // Larger than a pipe, and not text.
    let input: Vec<u8> = (0..300_000_u32).map(|n| (n % 251) as u8).collect();
    let done = run_with_input(tenure(["lock", "x", "--", "cksum"]), &input);
    done.exits(0);
    let alone = run_with_input(Command::new("cksum"), &input);
    assert_eq!(done.stdout, alone.stdout);

    let done = run(under_lock("x", "echo out; echo err >&2"));
    assert_eq!(done.stdout, "out\n");
    assert!(done.stderr.ends_with("err\n"), "{done:?}");
}

#[test]
fn tenure_leaves_the_input_to_the_child_and_to_who_comes_after() {
    // What the child does not read is still there for the next command of the script.
    let script = format!(
        "'{}' lock x -- sh -c 'read line; echo child:$line'; read line; echo next:$line",
        env!("CARGO_BIN_EXE_tenure")
    );
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).env_remove("TENURE_URL");
    let done = run_with_input(shell, b"one\ntwo\n");
    assert_eq!(done.stdout, "child:one\nnext:two\n", "{done:?}");
}

#[test]
fn hostile_names_are_names() {
    for name in [
        "../../etc/passwd",
        " ",
        "a b",
        "'; drop table locks; --",
        "%2F",
        "a//b",
        "ключ",
        "🔒",
        "\"",
        "a\nb",
        "$HOME",
        "\u{202e}x",
        "*",
    ] {
        let done = run(under_lock(name, r#"printf %s "$TENURE_NAME""#));
        done.exits(0);
        assert_eq!(done.stdout, name);
    }
    let done = tenure_done(["lock", "--", "-rf", "--", "printenv", "TENURE_NAME"]);
    done.exits(0);
    assert_eq!(done.stdout, "-rf\n");
}

#[test]
fn without_a_command_it_holds_until_told() {
    for (signal, code) in [
        (Signal::INT, 0),
        (Signal::TERM, 0),
        (Signal::HUP, 0),
        (Signal::QUIT, 0),
    ] {
        let mut holder = Process::spawn(tenure(["lock", "orders"])).unwrap();
        let line = holder.expect_line("token=", PATIENCE).unwrap();
        let token = line.strip_prefix("orders token=").unwrap();
        assert!(token.parse::<u64>().unwrap() > 0, "{line}");
        assert!(holder.is_running());
        holder.signal(signal).unwrap();
        assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(code));
    }
}

#[test]
fn json_announces_what_is_held() {
    let mut holder = Process::spawn(tenure(["lock", "a\nb", "--json"])).unwrap();
    let line = holder.expect_line("token", PATIENCE).unwrap();
    let held: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(held["name"], "a\nb");
    assert!(held["token"].as_u64().unwrap() > 0);
    assert!(held["session"].is_string());
    holder.terminate().unwrap();
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(0));
}

#[test]
fn a_name_cannot_forge_a_line() {
    let mut holder = Process::spawn(tenure(["lock", "a\nb token=9"])).unwrap();
    let line = holder.expect_line("token=", PATIENCE).unwrap();
    assert!(line.starts_with(r#""a\nb token=9" token="#), "{line}");
    holder.terminate().unwrap();
}

#[test]
fn a_private_store_is_pointed_out() {
    let done = run(under_lock("x", "true"));
    done.exits(0);
    assert!(done.stderr.contains("tenure: hint: "), "{done:?}");
}

/// Says `ready PPID`, then `got SIGNAL` for every signal, until USR2 ends it.
const REPORTER: &str = r#"
    for s in INT TERM HUP QUIT USR1 WINCH; do trap "echo got $s" $s; done
    trap 'exit 7' USR2
    echo ready $PPID
    while :; do sleep 0.02; done
"#;

#[test]
fn signals_reach_the_child() {
    let mut holder = Process::spawn(under_lock("x", REPORTER)).unwrap();
    holder.expect_line("ready", PATIENCE).unwrap();
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::WINCH, "WINCH"),
    ] {
        holder.signal(signal).unwrap();
        let line = holder.expect_line("got", PATIENCE).unwrap();
        assert_eq!(line, format!("got {name}"));
    }
    holder.signal(Signal::USR2).unwrap();
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(7));
}

#[test]
fn a_child_that_a_forwarded_signal_kills_tells_so() {
    let mut holder = Process::spawn(under_lock("x", "echo ready; exec sleep 600")).unwrap();
    holder.expect_line("ready", PATIENCE).unwrap();
    holder.terminate().unwrap();
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(143));
}

/// The terminal sends Ctrl-C to the child by itself: forwarded, it would come twice.
#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_comes_once() {
    // `wait` runs a trap at once; a shell that waits for `sleep` in the foreground would take two
    // signals for one.
    let script = r#"
        n=0
        trap 'n=$((n+1)); echo int $n' INT
        trap 'echo total $n; kill $sleeper; exit 0' USR1
        sleep 600 & sleeper=$!
        echo ready $PPID
        while :; do wait $sleeper; done
    "#;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("child.sh");
    std::fs::write(&path, script).unwrap();
    // `script` gives it a terminal of its own. `exec`, because a shell that stays between the two is
    // ended by Ctrl-C itself, which is then what `script` tells.
    let line = format!(
        "exec '{}' lock x -- sh '{}'",
        env!("CARGO_BIN_EXE_tenure"),
        path.display()
    );
    let mut command = with_default_signals("script");
    command
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env_remove("TENURE_URL");
    let mut terminal = Process::spawn(command).unwrap();
    let ready = terminal.expect_line("ready ", PATIENCE).unwrap();
    let tenure = ready.trim().rsplit(' ').next().unwrap();
    terminal.send_line("\u{3}").unwrap();
    terminal.expect_line("int 1", PATIENCE).unwrap();
    // Comes after anything that was forwarded before it, and proves that `kill` is.
    let killed = Command::new("kill")
        .args(["-USR1", tenure])
        .status()
        .unwrap();
    assert!(killed.success());
    let total = terminal.expect_line("total", PATIENCE).unwrap();
    assert!(total.contains("total 1"), "{total}");
    assert_eq!(terminal.wait(PATIENCE).unwrap().code(), Some(0));
}

/// Paused past its TTL, tenure must not let the child go on.
#[test]
fn a_pause_past_the_ttl_ends_the_child() {
    let mut holder = Process::spawn(tenure([
        "--ttl",
        "1s",
        "lock",
        "x",
        "--",
        "sh",
        "-c",
        "trap 'echo ending; exit 0' TERM; echo ready; while :; do sleep 0.02; done",
    ]))
    .unwrap();
    holder.expect_line("ready", PATIENCE).unwrap();
    holder.pause().unwrap();
    // Nothing can be waited for: what is tested is that time passes.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    holder.resume().unwrap();
    holder.expect_line("ending", PATIENCE).unwrap();
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(76));
    says(&holder, "tenure: lost \"x\"");
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_and_the_code_can_be_chosen() {
    let mut holder = Process::spawn(tenure([
        "--ttl",
        "1s",
        "lock",
        "x",
        "--kill-after",
        "200ms",
        "--lost-code",
        "99",
        "--",
        "sh",
        "-c",
        "trap '' TERM; echo ready; while :; do sleep 0.02; done",
    ]))
    .unwrap();
    holder.expect_line("ready", PATIENCE).unwrap();
    holder.pause().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    holder.resume().unwrap();
    assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(99));
    says(&holder, "SIGKILL");
}
