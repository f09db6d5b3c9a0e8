//! `tenure-testbed serve -- COMMAND`.

use std::net::TcpStream;
use std::process::{Command, Output};

/// The stores, and the first part of their URLs.
const STORES: [(&str, &str, &str); 2] = [
    ("etcd", "TENURE_TEST_ETCD", "etcd://"),
    ("redis", "TENURE_TEST_REDIS", "redis://"),
];

fn run(arguments: &[&str], given: Option<(&str, &str)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure-testbed"));
    command.args(arguments);
    for (_, variable, _) in STORES {
        command.env_remove(variable);
    }
    command.envs(given).output().expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[test]
fn serve_exports_a_server_and_returns_the_status_of_the_command() {
    // The command finds a server, which has ended afterwards.
    for (store, variable, scheme) in STORES {
        let script = format!("echo ${variable}; exec 3<>/dev/tcp/127.0.0.1/${{{variable}##*:}} || exit 9; exit 7");
        for stores in [&["serve", "--"][..], &["serve", store, "--"]] {
            let output = run(&[stores, &["bash", "-c", &script]].concat(), None);
            assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
            let url = text(&output.stdout);
            let address = url.strip_prefix(scheme).expect("a URL");
            assert!(TcpStream::connect(address).is_err(), "it has ended");
        }
    }
    assert_eq!(
        run(&["serve", "--", "sh", "-c", "kill -9 $$"], None).status.code(),
        Some(128 + 9)
    );
}

#[test]
fn serve_leaves_a_server_that_the_environment_names() {
    for (store, variable, _) in STORES {
        let script = format!("echo ${variable}");
        let output = run(
            &["serve", store, "--", "sh", "-c", &script],
            Some((variable, "given://here")),
        );
        assert_eq!(
            (output.status.code(), text(&output.stdout).as_str()),
            (Some(0), "given://here")
        );
    }
}

#[test]
fn serve_without_a_command_says_how_it_is_used() {
    for arguments in [
        &[][..],
        &["serve"],
        &["serve", "--"],
        &["serve", "oracle", "--", "true"],
        &["start"],
    ] {
        let output = run(arguments, None);
        assert_eq!(output.status.code(), Some(70));
        assert!(
            text(&output.stderr).contains("usage: tenure-testbed serve"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn serve_without_the_program_names_its_debian_package() {
    let programs = [
        ("etcd", "etcd", "etcd-server", "TENURE_ETCD_SERVER"),
        ("redis", "redis-server", "redis-server", "TENURE_REDIS_SERVER"),
    ];
    for (store, program, package, variable) in programs {
        for missing in [variable, "PATH"] {
            let output = run(&["serve", store, "--", "true"], Some((missing, "/none")));
            assert_eq!(output.status.code(), Some(70));
            let message = format!(
                "tenure-testbed: `{program}` was not found: install the Debian package `{package}`, or set {variable} to the \
                 path of the program"
            );
            assert_eq!(text(&output.stderr), message);
        }
    }
}
