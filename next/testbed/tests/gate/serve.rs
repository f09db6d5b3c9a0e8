//! `tenure-testbed serve -- COMMAND`.

use std::process::{Command, Output};

fn run(arguments: &[&str], redis: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tenure-testbed"));
    command.args(arguments).env_remove("TENURE_TEST_REDIS");
    command
        .envs(redis.map(|url| ("TENURE_TEST_REDIS", url)))
        .output()
        .expect("the program runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

#[test]
fn serve_exports_a_server_and_returns_the_status_of_the_command() {
    // The command finds a server, which has ended afterwards.
    let script = "echo $TENURE_TEST_REDIS; exec 3<>/dev/tcp/127.0.0.1/${TENURE_TEST_REDIS##*:} || exit 9; exit 7";
    for stores in [&["serve", "--"][..], &["serve", "redis", "--"]] {
        let output = run(&[stores, &["bash", "-c", script]].concat(), None);
        assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
        let url = text(&output.stdout);
        let address = url
            .strip_prefix("redis://")
            .expect("a URL")
            .parse()
            .expect("an address");
        assert!(crate::client::ask_redis(address, "PING").is_err(), "it has ended");
    }
    assert_eq!(
        run(&["serve", "--", "sh", "-c", "kill -9 $$"], None).status.code(),
        Some(128 + 9)
    );
}

#[test]
fn serve_leaves_a_server_that_the_environment_names() {
    let output = run(
        &["serve", "--", "sh", "-c", "echo $TENURE_TEST_REDIS"],
        Some("redis://given"),
    );
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(0), "redis://given")
    );
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
    for (variable, value) in [("TENURE_REDIS_SERVER", "/none"), ("PATH", "/none")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tenure-testbed"));
        command
            .args(["serve", "--", "true"])
            .env_remove("TENURE_TEST_REDIS")
            .env(variable, value);
        let output = command.output().expect("the program runs");
        assert_eq!(output.status.code(), Some(70));
        let message = "tenure-testbed: `redis-server` was not found: install the Debian package `redis-server`, \
                       or set TENURE_REDIS_SERVER to the path of the program";
        assert_eq!(text(&output.stderr), message);
    }
}
