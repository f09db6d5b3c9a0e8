//! Nothing outlives a test process, however it ends. Each test starts this binary again, as a process that has a server.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use tenure_testbed::{RedisOptions, RedisServer, wait_until};

/// Set for the process that has a server: how it behaves.
const BEHAVIOUR: &str = "TENURE_TESTBED_BEHAVIOUR";

/// Lets some time pass, so that the kills hit different moments. No verdict depends on it.
fn pass(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}

#[test]
#[ignore = "the process that the other tests start and end"]
fn process_with_a_server() {
    static NEVER_DROPPED: OnceLock<RedisServer> = OnceLock::new();
    let behaviour = std::env::var(BEHAVIOUR).unwrap_or_default();
    if behaviour == "starts" {
        println!("\nstarts");
        loop {
            drop(RedisServer::start(RedisOptions::default()).expect("redis"));
        }
    }
    let server = RedisServer::start(RedisOptions::default()).expect("redis");
    match behaviour.as_str() {
        "restarted" => server.restart().expect("restarted"),
        "paused" => server.pause().expect("paused"),
        _ => {}
    }
    let server = NEVER_DROPPED.get_or_init(|| server);
    println!("\nserver {}", server.pid());
    if behaviour == "exits" {
        std::process::exit(0);
    }
    // Until it is killed, or the other process ends.
    let _ = std::io::stdin().read_line(&mut String::new());
}

/// Starts the process, and returns it with the line that it prints.
fn start(behaviour: &str, folder: &Path, prefix: &str) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().expect("this binary"))
        .args(["watchdog::process_with_a_server", "--exact", "--ignored", "--nocapture"])
        .env(BEHAVIOUR, behaviour)
        .env("TMPDIR", folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this binary again");
    let output = BufReader::new(child.stdout.take().expect("its output"));
    let line = output
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.strip_prefix(prefix)?.to_owned()));
    (child, line.expect("the line"))
}

/// Whether a process runs. One that has ended may wait for its collection by the machine's first process.
fn runs(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| !rest.starts_with('Z')))
}

fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}

/// Returns whether a process works in this folder, or has it in its arguments.
fn any_process_uses(folder: &Path) -> bool {
    let name = folder.to_string_lossy();
    std::fs::read_dir("/proc").expect("/proc").flatten().any(|entry| {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        // Redis replaces its arguments when it has read them.
        let works_in = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        works_in.starts_with(folder) || String::from_utf8_lossy(&arguments).contains(&*name)
    })
}

fn leaves_nothing(behaviour: &str, end: impl FnOnce(&mut Child)) {
    let folder = std::env::temp_dir().join(tenure_testbed::unique_name("watchdog"));
    std::fs::create_dir(&folder).expect("a folder");
    let (mut child, server) = start(behaviour, &folder, "server ");
    if behaviour != "exits" {
        assert!(runs(&server) && !is_empty(&folder));
    }
    end(&mut child);
    wait_until("the end of the server", || Ok((!runs(&server)).then_some(()))).expect("ended");
    wait_until("no folder", || Ok(is_empty(&folder).then_some(()))).expect("removed");
    child.wait().expect("collected");
    std::fs::remove_dir(folder).expect("removed");
}

#[test]
fn process_killed_leaves_no_server() {
    for behaviour in ["started", "restarted", "paused"] {
        leaves_nothing(behaviour, |child| child.kill().expect("killed"));
    }
}

#[test]
fn process_terminated_leaves_no_server() {
    leaves_nothing("started", |child| {
        let killed = Command::new("kill").arg(child.id().to_string()).status();
        assert!(killed.expect("`kill` runs").success());
    });
}

#[test]
fn process_that_exits_without_a_drop_leaves_no_server() {
    leaves_nothing("exits", |child| assert!(child.wait().expect("it exits").success()));
}

#[test]
fn process_killed_at_any_moment_of_a_start_leaves_no_server() {
    let folder = std::env::temp_dir().join(tenure_testbed::unique_name("watchdog"));
    std::fs::create_dir(&folder).expect("a folder");
    for moment in 0..20 {
        let (mut child, _) = start("starts", &folder, "starts");
        pass(moment * 7);
        child.kill().expect("killed");
        child.wait().expect("collected");
    }
    wait_until("no process", || Ok((!any_process_uses(&folder)).then_some(()))).expect("ended");
    // A kill between the creation of the folder and the start of the watchdog leaves it, empty.
    let left = || std::fs::read_dir(&folder).expect("the folder").flatten();
    wait_until("nothing in a folder", || {
        Ok(left().all(|entry| is_empty(&entry.path())).then_some(()))
    })
    .expect("removed");
    std::fs::remove_dir_all(folder).expect("removed");
}
