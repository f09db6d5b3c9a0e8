//! `tenure shell` from a pipe, on the embedded store: one outcome for each line. What two shells do
//! to each other is in `primitives.rs`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::process::Command;

use support::{Done, PATIENCE, Shell, run_with_input, says, tenure};
use tenure_testbed::{Process, Signal};

/// Runs the lines in one shell, to its end.
fn script(args: &[&str], lines: &str) -> Done {
    let command = tenure(args.iter().chain(&["shell"]));
    let done = run_with_input(command, lines.as_bytes());
    done.exits(0);
    done
}

#[track_caller]
fn prints(lines: &str, expected: &[&str]) {
    let done = script(&[], lines);
    let printed: Vec<&str> = done.stdout.lines().collect();
    assert_eq!(printed, expected);
}

#[test]
fn locks() {
    prints(
        "lock\nlock\nlock other\nunlock\nunlock\nlock\n",
        &[
            "lock: held token=1",
            "lock: error: held already",
            "lock @other: held token=2",
            "unlock: released",
            "unlock: error: not held",
            "lock: held token=3",
        ],
    );
}

/// What is printed can be typed: copied from a line, it names the same object.
#[test]
fn a_name_with_blanks() {
    prints(
        "lock \"a b\"\nunlock @\"a b\"\npush @\"a b\" x\npop @'a b'\n",
        &[
            "lock @\"a b\": held token=1",
            "unlock @\"a b\": released",
            "push @\"a b\": enqueued",
            "pop @\"a b\": value=x",
        ],
    );
}

#[test]
fn an_election() {
    prints(
        "query\nrev\nproclaim x\nelect 'a b'\nelect\nquery\nrev\nproclaim ready\nquery\nresign\nquery\nresign\n",
        &[
            "query: no leader",
            "rev: no leader",
            "proclaim: error: not the leader",
            "elect: leader token=1",
            "elect: error: held already",
            "query: leader=\"a b\" token=1",
            "rev: token=1",
            "proclaim: proclaimed",
            "query: leader=ready token=1",
            "resign: resigned",
            "query: no leader",
            "resign: error: not held",
        ],
    );
}

#[test]
fn a_watch() {
    let mut shell = Shell::start(&[]);
    shell.does("watch", "watch: no leader");
    shell.does("watch", "watch: error: watched already");
    // The command's outcome and the watch's are two lines, in either order.
    let lines = |shell: &mut Shell| {
        let mut lines = [shell.next(""), shell.next("")];
        lines.sort();
        lines
    };
    shell.send("elect a");
    assert_eq!(
        lines(&mut shell),
        ["elect: leader token=1", "watch: leader=a token=1"]
    );
    shell.send("proclaim b");
    assert_eq!(
        lines(&mut shell),
        ["proclaim: proclaimed", "watch: leader=b token=1"]
    );
    shell.send("resign");
    assert_eq!(lines(&mut shell), ["resign: resigned", "watch: no leader"]);
    shell.ends();
}

#[test]
fn a_read_write_lock() {
    let mut shell = Shell::start(&[]);
    let first = shell.takes("r", "r: held");
    // An upgrade can only wait for itself.
    shell.send("w");
    let refused = shell.next("w: error: ");
    assert!(refused.contains("upgrade"), "{refused}");
    shell.does("wunlock", "wunlock: error: not held");
    shell.does("runlock", "runlock: released");
    let second = shell.takes("w", "w: held");
    assert!(second > first);
    // A reader waits for the writer, and comes in when that is gone.
    shell.does("r", "r: waiting");
    shell.does("r", "r: error: waiting already");
    shell.send("wunlock");
    shell.next("wunlock: released");
    shell.token("r: held");
    shell.does("runlock", "runlock: released");
    shell.ends();
}

#[test]
fn a_wait_can_be_given_up() {
    let mut shell = Shell::start(&[]);
    shell.takes("w", "w: held");
    shell.does("r", "r: waiting");
    shell.send("runlock");
    shell.next("r: withdrawn");
    shell.next("runlock: withdrawn");
    shell.does("wunlock", "wunlock: released");
    // Nothing of it stays in line.
    shell.takes_in_the_end("w", "w: held");
    shell.ends();
}

#[test]
fn a_queue() {
    let mut shell = Shell::start(&[]);
    shell.does("push late", "push: enqueued");
    shell.does("pushp 0 \"a b\"", "pushp: enqueued");
    shell.does("push @jobs other", "push @jobs: enqueued");
    shell.does("pop", "pop: value=late");
    shell.does("pop", "pop: value=\"a b\"");
    // The prompt goes on while it waits.
    shell.does("pop", "pop: waiting");
    shell.does("pop @jobs", "pop @jobs: value=other");
    shell.send("push three");
    let mut lines = [shell.next(""), shell.next("")];
    lines.sort();
    assert_eq!(lines, ["pop: value=three", "push: enqueued"]);
    shell.does("pushp 7 later", "pushp: enqueued");
    shell.does("pushp 3 sooner", "pushp: enqueued");
    shell.does("pop", "pop: value=sooner");
    shell.ends();
}

#[test]
fn a_barrier() {
    let mut shell = Shell::start(&[]);
    shell.does("wait", "wait: released");
    shell.does("release", "release: not held");
    shell.does("hold", "hold: held");
    shell.send("hold");
    shell.next("hold: error: ");
    shell.does("wait", "wait: waiting");
    shell.send("release");
    let mut lines = [shell.next(""), shell.next("")];
    lines.sort();
    assert_eq!(lines, ["release: released", "wait: released"]);
    shell.ends();
}

#[test]
fn a_double_barrier_of_one() {
    let mut shell = Shell::start(&[]);
    shell.does("leave", "leave: error: not held");
    shell.does("enter 1", "enter: waiting");
    shell.token("enter: entered");
    shell.does("leave", "leave: waiting");
    shell.next("leave: left");
    shell.send("enter 0");
    shell.next("enter: error: ");
    shell.ends();
}

#[test]
fn keys() {
    prints(
        "get k\nput k \"a\\nget k: value=b\"\nget k\ndel k\ndel k\nput 'k k' ''\nget 'k k'\n",
        &[
            "get k: absent",
            "put k: written",
            r#"get k: value="a\nget k: value=b""#,
            "del k: deleted",
            "del k: absent",
            r#"put "k k": written"#,
            r#"get "k k": value="""#,
        ],
    );
}

#[test]
fn nonsense_is_a_line_and_no_exit() {
    let done = script(
        &[],
        "frobnicate\npush a b\nlock \"\n\x1b[2J\nquery x y\nget k\n",
    );
    let begins = [
        "frobnicate: error: unknown",
        "push: error: ",
        "lock: error: a quote",
        "\"\\u{1b}[2J\": error: ",
        "query: error: ",
        "get k: absent",
    ];
    assert_eq!(done.stdout.lines().count(), begins.len(), "{done:?}");
    for (line, begin) in done.stdout.lines().zip(begins) {
        assert!(line.starts_with(begin), "{line} instead of {begin}");
    }
}

#[test]
fn quit_ends_before_the_input_does() {
    prints("put a b\nquit\nput c d\n", &["put a: written"]);
    let help = script(&[], "help\n");
    for verb in ["elect", "pushp", "runlock", "enter", "del", "quit"] {
        let line = format!("help: {verb} ");
        assert!(help.stdout.contains(&line), "{line} in {help:?}");
    }
}

#[test]
fn waits_are_withdrawn_at_the_end_of_the_input() {
    prints(
        "pop\nw\nr\n",
        &[
            "pop: waiting",
            "w: held token=1",
            "r: waiting",
            "pop: withdrawn",
            "r: withdrawn",
        ],
    );
}

#[test]
fn json() {
    let done = script(
        &["--json"],
        "lock \"a\\nb\"\nget k\nput k \"\\xff\"\nget k\nfrob\nhelp\n",
    );
    let lines: Vec<serde_json::Value> = done
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines[0]["command"], "lock");
    assert_eq!(lines[0]["name"], "a\nb");
    assert_eq!(lines[0]["outcome"], "held");
    assert!(lines[0]["token"].as_u64().unwrap() > 0);
    assert_eq!(lines[1]["outcome"], "absent");
    assert_eq!(lines[3]["key"], "k");
    assert_eq!(lines[3]["value_base64"], "/w==");
    assert_eq!(lines[4]["outcome"], "error");
    assert!(lines[5]["usage"].is_string());
}

#[test]
fn objects_are_called_as_told() {
    let done = script(&["--json"], "lock\n");
    assert!(done.stdout.contains(r#""name":"demo""#));
    let mut command = tenure(["shell", "--name", "mine", "--json"]);
    command.env_remove("SHELL").env("CI", "true");
    let done = run_with_input(command, b"lock\n");
    assert!(done.stdout.contains(r#""name":"mine""#), "{done:?}");
}

#[test]
fn a_signal_ends_it() {
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let mut shell = Shell::start(&[]);
        shell.takes("lock", "lock: held");
        shell.0.signal(signal).unwrap();
        assert_eq!(shell.0.wait(PATIENCE).unwrap().code(), Some(code));
    }
}

/// The session is all that a shell has.
#[test]
fn a_pause_past_the_ttl_ends_it() {
    let mut shell = Shell::start(&["--ttl", "1s"]);
    let token = shell.takes("lock", "lock: held");
    shell.0.pause().unwrap();
    // Nothing can be waited for: what is tested is that time passes.
    std::thread::sleep(std::time::Duration::from_millis(1500));
    shell.0.resume().unwrap();
    let lost = shell.next("lock: lost reason=expired");
    assert!(lost.ends_with(&format!("token={token}")), "{lost}");
    assert_eq!(shell.0.wait(PATIENCE).unwrap().code(), Some(76));
    says(&shell.0, "tenure: shell");
}

/// With a prompt: a line is edited and completed, and outcomes come above it.
#[test]
#[cfg(target_os = "linux")]
fn on_a_terminal() {
    let line = format!("exec '{}' shell", env!("CARGO_BIN_EXE_tenure"));
    let mut command = Command::new("script");
    command
        .args(["-q", "-e", "-c", &line, "/dev/null"])
        .env("TERM", "xterm")
        .env_remove("TENURE_URL");
    let mut terminal = Process::spawn(command).unwrap();
    terminal.send_line("lock\r").unwrap();
    terminal
        .expect_line("lock: held token=1", PATIENCE)
        .unwrap();
    // Completed by the tab.
    terminal.send_line("unl\t\r").unwrap();
    terminal.expect_line("unlock: released", PATIENCE).unwrap();
    terminal.send_line("quit\r").unwrap();
    assert_eq!(terminal.wait(PATIENCE).unwrap().code(), Some(0));
}
