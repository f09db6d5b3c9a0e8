//! Every example does what it says, on every store; the bank also while the store is killed.
#![cfg(any(feature = "etcd", feature = "redis", feature = "postgres"))]
#![allow(clippy::unwrap_used)] // A test that cannot be set up has to fail.

#[macro_use]
mod support;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::Bed;
use tenure_testbed::{Process, output_within};

/// For a machine on which everything else runs, too.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long one example may run.
const LIMIT: Duration = Duration::from_secs(40);

/// Each example, with a line near its end that shows that it got there.
const EXAMPLES: [(&str, &str); 9] = [
    ("lock", "the ledger: ["),
    ("election", "node-2 was elected"),
    ("rw_lock", "another reader came in"),
    ("queue", "given up: \"broken job\""),
    ("priority_queue", "treated: a cough"),
    ("barrier", "worker 3 goes on"),
    ("double_barrier", "participant 3 knows that phase 2 is over"),
    ("bank", "account sum is 500"),
    ("transfer", "bob: 51"),
];

fn example(name: &str, url: &str) -> Process {
    Process::spawn(command(name, url)).unwrap()
}

fn command(name: &str, url: &str) -> Command {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(|deps| deps.parent()).unwrap();
    let path: PathBuf = target.join("examples").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo build --examples` makes it",
        path.display()
    );
    let mut command = Command::new(path);
    command.arg(url).env_remove("TENURE_URL");
    command
}

fn runs(name: &str, last: &str, url: &str) {
    let mut command = command(name, url);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let output = output_within(command, LIMIT).unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && printed.contains(last),
        "{name} on {url}: {output:?}"
    );
}

#[test]
fn every_example_runs_on_the_embedded_store() {
    for (name, last) in EXAMPLES {
        runs(name, last, "memory:");
    }
}

on_every_store! {
    "examples":
    every_example_runs
    ;
    leases:
    the_bank_keeps_its_money_while_its_store_is_killed
    ;
    connections:
    the_bank_ends_with_its_server_and_its_money_is_all_there
}

fn every_example_runs(bed: Bed) {
    for (name, last) in EXAMPLES {
        runs(name, last, &bed.url);
    }
}

/// Transfers go on from where they were: no money is made or lost, whatever became of the commits
/// that were on their way.
#[cfg(any(feature = "etcd", feature = "redis"))]
fn the_bank_keeps_its_money_while_its_store_is_killed(mut bed: Bed) {
    let mut bank = example("bank", &bed.url);
    for _ in 0..2 {
        // In the midst of it: what is waited for is that some transfers have happened.
        bank_is_at_work(&bed);
        bed.kill_and_restart();
    }
    bank.expect_line("account sum is 500", PATIENCE).unwrap();
    assert!(bank.wait(PATIENCE).unwrap().success());
}

/// A session ends with the server there, and a bank with its session; no money is made or lost.
#[cfg(feature = "postgres")]
fn the_bank_ends_with_its_server_and_its_money_is_all_there(mut bed: Bed) {
    for _ in 0..3 {
        let mut bank = example("bank", &bed.url);
        bank_is_at_work(&bed);
        bed.kill_and_restart();
        assert!(!bank.wait(PATIENCE).unwrap().success());
        let died = std::time::Instant::now();
        // Its last words may be on their way still.
        while !bank.stderr().contains("Lost") {
            assert!(died.elapsed() < PATIENCE, "{}", bank.stderr());
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(bed.sum_of("account-"), 500);
    }
    runs("bank", "account sum is 500", &bed.url);
}

/// Until the first account has changed 20 times more.
fn bank_is_at_work(bed: &Bed) {
    let version = || bed.writes_of("account-0");
    let (start, begun) = (version(), std::time::Instant::now());
    while version() < start + 20 {
        assert!(begun.elapsed() < PATIENCE, "no transfer in {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
