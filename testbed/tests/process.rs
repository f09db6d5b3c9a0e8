//! Child processes, played by `sh` and `cat`.

use std::process::Command;
use std::time::{Duration, Instant};

use tenure_testbed::{Error, Process, Signal};

const SOON: Duration = Duration::from_secs(20);
const QUIET: Duration = Duration::from_millis(150);

fn sh(script: &str) -> Process {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    Process::spawn(command).expect("sh")
}

#[test]
fn lines_go_both_ways() {
    let mut cat = Process::spawn(Command::new("cat")).expect("cat");
    cat.send_line("first").expect("sent");
    cat.send_line("second").expect("sent");
    assert_eq!(cat.expect_line("sec", SOON).expect("heard"), "second");
    cat.close_stdin();
    assert!(cat.send_line("third").is_err());
    assert!(cat.wait(SOON).expect("it ends").success());
    assert!(!cat.is_running());
}

#[test]
fn an_error_shows_what_came_instead() {
    let mut process = sh("echo one; echo trouble >&2; exec sleep 1000");
    // The line on standard error has its own way here.
    let deadline = Instant::now() + SOON;
    while process.stderr().is_empty() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = process.expect_line("two", QUIET).expect_err("no such line");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("\"two\"") && text.contains("one") && text.contains("trouble"),
        "{text}"
    );
}

#[test]
fn an_end_is_told_at_once() {
    let mut process = sh("echo one; echo last words >&2; exit 4");
    let start = Instant::now();
    let error = process.expect_line("two", SOON).expect_err("it ended");
    assert!(matches!(error, Error::Ended { .. }), "{error}");
    assert!(start.elapsed() < SOON / 2);
    assert_eq!(process.wait(SOON).expect("it ends").code(), Some(4));
    // Still the same the second time, and killing the dead is no error.
    assert_eq!(process.wait(SOON).expect("it ended").code(), Some(4));
    assert_eq!(process.kill().expect("it ended").code(), Some(4));
    assert!(matches!(process.pause(), Err(Error::NotRunning { .. })));
    assert!(matches!(
        process.signal(Signal::TERM),
        Err(Error::NotRunning { .. })
    ));
}

#[test]
fn a_paused_process_does_nothing_until_it_is_resumed() {
    let mut cat = Process::spawn(Command::new("cat")).expect("cat");
    for _ in 0..20 {
        cat.pause().expect("paused");
        cat.send_line("x").expect("sent");
        assert!(cat.expect_line("x", Duration::from_millis(5)).is_err());
        assert!(cat.is_running());
        cat.resume().expect("resumed");
        cat.expect_line("x", SOON).expect("heard");
    }
}

#[test]
fn signals_arrive() {
    let mut process = sh(
        "trap 'echo told' USR1; echo ready; while read -r _; do :; done; \
                          while :; do sleep 0.01; done",
    );
    process.close_stdin();
    process.expect_line("ready", SOON).expect("ready");
    process.signal(Signal::USR1).expect("sent");
    process.expect_line("told", SOON).expect("told");
    process.terminate().expect("sent");
    assert!(!process.wait(SOON).expect("it ends").success());
}

#[test]
fn a_wait_has_its_limit() {
    let mut process = sh("exec sleep 1000");
    assert!(matches!(process.wait(QUIET), Err(Error::TimedOut { .. })));
    assert!(process.is_running());
}

#[test]
fn a_dropped_process_is_gone() {
    let process = sh("exec sleep 1000");
    let path = format!("/proc/{}", process.pid());
    assert!(std::path::Path::new(&path).exists());
    drop(process);
    assert!(!std::path::Path::new(&path).exists());
}

#[test]
fn a_process_that_writes_much_is_not_blocked_by_a_test_that_reads_nothing() {
    let mut process = sh("yes | head -n 200000; echo done");
    assert!(process.wait(SOON).expect("it ends").success());
    process.expect_line("done", SOON).expect("all the lines");
}

#[tokio::test]
async fn the_runtime_goes_on_while_it_waits() {
    let mut process = sh("read -r line; echo \"$line\"; exec sleep 1000");
    let ticks = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (missing, ()) = tokio::join!(process.expect_line_async("x", QUIET), ticks);
    assert!(matches!(missing, Err(Error::TimedOut { .. })));
    process.send_line("x").expect("sent");
    process.expect_line_async("x", SOON).await.expect("heard");
    assert!(process.wait_async(QUIET).await.is_err());
    process.terminate().expect("sent");
    process.wait_async(SOON).await.expect("it ends");
}

#[test]
fn a_missing_program_is_an_error() {
    let error = Process::spawn(Command::new("tenure-no-such-program")).expect_err("missing");
    assert!(
        error.to_string().contains("tenure-no-such-program"),
        "{error}"
    );
}
