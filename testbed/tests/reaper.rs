//! Nothing outlives the test process, however it ends.
//!
//! Each case starts this very test binary again, as a process that holds a server, and kills it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tenure_testbed::{EtcdServer, Process, Signal};

const SOON: Duration = Duration::from_secs(30);

/// Set for the process that holds a server; says how it is to behave.
const ROLE: &str = "TENURE_TESTBED_TEST_ROLE";

static NEVER_DROPPED: OnceLock<EtcdServer> = OnceLock::new();

/// Not a test of its own: what the other process runs.
#[test]
#[ignore = "the process that the other tests kill"]
fn hold_a_server() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    if role == "starting" {
        // Killed at any moment of this.
        println!("starting");
        loop {
            drop(EtcdServer::start().expect("etcd"));
        }
    }
    let mut server = EtcdServer::start().expect("etcd");
    if role == "restarted" {
        server.restart().expect("etcd again");
    }
    if role == "paused" {
        server.pause().expect("paused");
    }
    let mut helper = Command::new("sleep");
    helper.arg("1000");
    let helper = Process::spawn(helper).expect("sleep");
    let folder = server.data_dir();
    let server = NEVER_DROPPED.get_or_init(|| server);
    println!(
        "holding {} {} {}",
        server.pid(),
        helper.pid(),
        folder.display()
    );
    if role == "exits" {
        std::process::exit(3);
    }
    // Until killed.
    let _ = std::io::stdin().read_line(&mut String::new());
    std::thread::sleep(SOON);
}

fn holder(role: &str, folder: &Path) -> Process {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command
        .args(["hold_a_server", "--exact", "--ignored", "--nocapture"])
        .env(ROLE, role)
        .env("TMPDIR", folder);
    Process::spawn(command).expect("this binary again")
}

fn is_alive(pid: &str) -> bool {
    // A zombie has ended: whether anyone collects it is up to the machine's first process.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}

#[track_caller]
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !condition() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder)
        .expect("the folder")
        .next()
        .is_none()
}

fn ends_with(role: &str, end: impl FnOnce(&mut Process)) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut holder = holder(role, folder.path());
    let line = holder.expect_line("holding ", SOON).expect("a server");
    let (_, line) = line.split_once("holding ").expect("the line");
    let mut words = line.splitn(3, ' ');
    let mut next = || words.next().expect("three words").to_owned();
    let (server, helper, data) = (next(), next(), PathBuf::from(next()));
    if role != "exits" {
        assert!(is_alive(&server) && is_alive(&helper) && data.is_dir());
    }
    end(&mut holder);
    eventually("etcd is gone", || !is_alive(&server));
    eventually("the helper is gone", || !is_alive(&helper));
    eventually("the folders are removed", || is_empty(folder.path()));
}

#[test]
fn a_killed_process_leaves_nothing() {
    ends_with("holds", |holder| {
        holder.kill().expect("killed");
    });
}

#[test]
fn a_process_killed_after_a_restart_leaves_nothing() {
    ends_with("restarted", |holder| {
        holder.kill().expect("killed");
    });
}

#[test]
fn a_killed_process_leaves_no_paused_server() {
    ends_with("paused", |holder| {
        holder.kill().expect("killed");
    });
}

/// Not SIGINT: what runs in the background of a shell may have inherited that it is ignored.
#[test]
fn a_terminated_process_leaves_nothing() {
    ends_with("holds", |holder| holder.signal(Signal::TERM).expect("sent"));
}

#[test]
fn a_process_that_exits_without_dropping_leaves_nothing() {
    ends_with("exits", |holder| {
        assert_eq!(holder.wait(SOON).expect("it ends").code(), Some(3));
    });
}

#[test]
fn a_process_killed_at_any_moment_of_a_start_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    for moment in 0..40 {
        let mut holder = holder("starting", folder.path());
        holder.expect_line("starting", SOON).expect("it runs");
        // Not a wait for anything: the moments of the kill, spread over the first starts.
        std::thread::sleep(Duration::from_millis(moment * 7));
        holder.kill().expect("killed");
    }
    let data_dir = folder.path().to_string_lossy().into_owned();
    eventually("no process names the folder", || {
        processes_naming(&data_dir).is_empty()
    });
    // A kill between the making of a folder and the start of its watchdog leaves it, empty.
    eventually("no folder has anything in it", || {
        std::fs::read_dir(folder.path())
            .expect("the folder")
            .flatten()
            .all(|entry| is_empty(&entry.path()))
    });
}

fn processes_naming(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let names = processes.flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.into_string().ok());
    pids.filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()))
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
        })
        .collect()
}
