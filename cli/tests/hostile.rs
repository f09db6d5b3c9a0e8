//! Servers, names, values and inputs that mean harm, or no good.
#![cfg(feature = "redis")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;

use support::{Done, PATIENCE, run, run_with_input, tenure, tenure_done};
use tenure_testbed::{Process, RedisServer};

/// A server that `answer`s every connection, as long as the test runs. Returns its address.
fn serve(answer: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let answer = Arc::new(answer);
        for stream in listener.incoming().map_while(Result::ok) {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

/// Nothing in it does anything to a terminal, and every line of tenure's is its own.
#[track_caller]
fn harmless(text: &str) {
    let harmful = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    assert!(!text.contains(harmful), "{text:?}");
    for line in text.lines() {
        assert!(!line.starts_with("tenure: lost"), "{text:?}");
    }
}

const EVIL: &str = "\u{1b}[2J\u{9b}1m\u{202e}live\u{200b}\ntenure: lost \"orders\": forged\r \u{7}";

#[test]
fn a_servers_text_is_escaped() {
    let text = EVIL.replace('\r', "");
    let redis = serve(move |mut stream| {
        let mut asked = [0; 4096];
        loop {
            let read = stream.read(&mut asked)?;
            // Each command is an array.
            let commands = asked[..read].iter().filter(|&&byte| byte == b'*').count();
            let answer = format!("-ERR {text}\r\n").repeat(commands);
            stream.write_all(answer.as_bytes())?;
            if read == 0 {
                return Ok(());
            }
        }
    });
    let url = format!("redis://{redis}");
    for verbose in ["-v", "-vvv"] {
        let done = tenure_done(["--url", &url, verbose, "lock", "orders", "--", "true"]);
        assert!(done.stderr.contains("live"), "{done:?}");
        assert!(done.code.is_some_and(|code| code >= 64), "{done:?}");
        harmless(&done.stderr);
    }
}

#[cfg(feature = "postgres")]
#[test]
fn what_a_postgresql_raises_is_escaped() {
    let postgres = tenure_testbed::PostgresServer::start().unwrap();
    let url = postgres.url() + "?sslmode=disable";
    tenure_done(["--url", &url, "get", "k"]).fails(1, &[]);
    // Anybody who may write to the schema can have the server say this.
    let evil = EVIL.replace('\'', "");
    let sql = format!(
        "CREATE FUNCTION evil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION '{evil}'; END $$; \
         CREATE TRIGGER evil BEFORE INSERT ON tenure.sessions FOR EACH ROW EXECUTE FUNCTION evil()"
    );
    postgres.sql(sql).unwrap();
    for command in [&["put", "k", "v"][..], &["enqueue", "q", "v"]] {
        let done = tenure_done(["--url", &url].iter().chain(command));
        assert!(done.stderr.contains("live"), "{done:?}");
        harmless(&done.stderr);
    }
}

#[test]
fn words_of_the_command_line_are_escaped() {
    let done = tenure_done(["lock", "x", &format!("--{EVIL}")]);
    done.fails(64, &["live"]);
    harmless(&done.stderr);
    let done = tenure_done(["lock", "x", "--", &format!("/none/{EVIL}")]);
    done.fails(127, &["live"]);
    harmless(&done.stderr);
}

#[test]
fn names_and_values_cannot_forge_a_field() {
    for (args, begins) in [
        (&["lock", "job token=1"][..], r#""job token=1" token="#),
        (&["lock", "a\u{202e}b"], r#""a\u{202e}b" token="#),
        (&["lock", "orders/eu-1"], "orders/eu-1 token="),
        (
            &["elect", "fe", "x token=999"],
            r#"fe leader="x token=999" token="#,
        ),
        (&["elect", "fe", "host:8080"], "fe leader=host:8080 token="),
    ] {
        let mut holder = Process::spawn(tenure(args)).unwrap();
        let line = holder.expect_line("token=", PATIENCE).unwrap();
        let token = line.strip_prefix(begins).map(str::parse::<u64>);
        assert!(matches!(token, Some(Ok(1..))), "{line}");
        holder.terminate().unwrap();
        assert_eq!(holder.wait(PATIENCE).unwrap().code(), Some(0));
    }
}

/// Runs `tenure` with little memory and an endless line on its standard input.
fn endless(args: &[&str]) -> Done {
    let mut command = Command::new("sh");
    command.args(["-c", r#"ulimit -v 2000000; exec "$@""#, "sh"]);
    command.arg(env!("CARGO_BIN_EXE_tenure")).args(args);
    command
        .env_remove("TENURE_URL")
        .env_remove("TENURE_URL_FILE");
    command.stdin(File::open("/dev/zero").unwrap());
    command.stdout(Stdio::piped());
    tenure_testbed::output_within(command, PATIENCE)
        .unwrap()
        .into()
}

#[test]
fn an_endless_input_is_given_up_at_the_limit() {
    endless(&["enqueue", "q", "-"]).fails(64, &["line 1", "1048576"]);
    endless(&["put", "k", "-"]).fails(64, &["1048576"]);
    endless(&["txn"]).fails(64, &["the transaction"]);
}

#[test]
fn a_shell_skips_a_line_that_is_too_long() {
    let mut input = vec![b'x'; 20 << 20];
    input.extend_from_slice(b"\nput k v\n");
    let done = run_with_input(tenure(["shell"]), &input);
    done.exits(0);
    assert!(
        done.stdout.starts_with("error: a line of more than "),
        "{done:?}"
    );
    assert!(done.stdout.ends_with("put k: written\n"), "{done:?}");
}

#[test]
fn a_dash_behind_dashes_is_a_value() {
    let redis = RedisServer::start().unwrap();
    let at = |args: &[&str], input: &[u8]| {
        let done = run_with_input(tenure(["--url", &redis.url()].iter().chain(args)), input);
        done.exits(0);
        done.stdout
    };
    at(&["enqueue", "q", "--", "-"], b"");
    at(&["enqueue", "--", "q", "-"], b"");
    at(&["enqueue", "q", "-"], b"one\n\ntwo");
    let values = at(&["dequeue", "q", "--count", "5"], b"");
    assert_eq!(values, "-\n-\none\n\ntwo\n");
    at(&["put", "k", "--", "-"], b"");
    assert_eq!(at(&["get", "k"], b""), "-\n");
    // As it is, with its ends of lines: a value may be anything.
    let large = vec![b'\n'; 300_000];
    at(&["put", "k", "-"], &large);
    assert_eq!(at(&["get", "k"], b"").len(), large.len() + 1);
}

#[test]
fn a_url_in_a_file() {
    let redis = RedisServer::builder().password("canary").start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("url");
    let with_file = |args: &[&str]| {
        let mut command = tenure(args);
        command.env("TENURE_URL_FILE", &path);
        command
    };
    let refused = |words: &[&str]| {
        let done = run(with_file(&["get", "k"]));
        done.fails(78, words);
        assert!(!done.stderr.contains("canary"), "{done:?}");
    };
    refused(&["TENURE_URL_FILE", "No such file"]);
    for (text, word) in [
        ("\n", "empty"),
        ("redis://:canary@a\nredis://:canary@b\n", "one line"),
        ("canary\n", "scheme"),
    ] {
        std::fs::write(&path, text).unwrap();
        refused(&[word]);
    }
    let url = format!("redis://:canary@{}", redis.address());
    std::fs::write(&path, format!("{url}\n")).unwrap();
    run(with_file(&["put", "k", "v"])).exits(0);
    assert_eq!(run(with_file(&["get", "k"])).stdout, "v\n");
    // What was said otherwise comes first.
    run(with_file(&["--url", "memory:", "get", "k"])).exits(1);
    let mut command = with_file(&["get", "k"]);
    command.env("TENURE_URL", "memory:");
    run(command).exits(1);
    // The command gets the name of the file on request.
    let print = "echo ${TENURE_URL-none} ${TENURE_URL_FILE-none}";
    let of = |options: &[&str]| {
        let args = [&["lock", "l"], options, &["--", "sh", "-c", print]].concat();
        run(with_file(&args)).stdout
    };
    assert_eq!(of(&[]), "none none\n");
    assert_eq!(of(&["--pass-url"]), format!("none {}\n", path.display()));
}

#[test]
fn the_token_floor_is_raised() {
    let done = tenure_done(["token-floor", "--at-least", "1000", "--url", "memory:"]);
    done.exits(0);
    assert_eq!(done.stdout, "tokens are at least 1000 from now on\n");
    assert!(done.stderr.contains("tenure: hint: "), "{done:?}");
    let done = tenure_done(["token-floor", "--at-least", "1000", "--json"]);
    assert_eq!(done.stdout, "{\"at_least\":1000}\n");
    for bad in ["-1", "many", "18446744073709551615", "99999999999999999999"] {
        tenure_done(["token-floor", "--at-least", bad]).fails(64, &[]);
    }
    tenure_done(["token-floor"]).fails(64, &["--at-least"]);
}

/// Answers every request of HTTP/2 with the status 404.
#[cfg(feature = "etcd")]
fn not_found(mut stream: TcpStream) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    stream.read_exact(&mut [0; PREFACE])?;
    // Empty SETTINGS.
    stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])?;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        std::io::copy(&mut (&stream).take(length.into()), &mut std::io::sink())?;
        match (head[3], head[4]) {
            // HEADERS: a request. The answer is one byte: `:status 404` of HPACK's static table.
            (1, _) => {
                let mut answer = vec![0, 0, 1, 1, 5];
                answer.extend_from_slice(&head[5..]);
                answer.push(0x8d);
                stream.write_all(&answer)?;
            }
            // SETTINGS, to be acknowledged.
            (4, 0) => stream.write_all(&[0, 0, 0, 4, 1, 0, 0, 0, 0])?,
            _ => {}
        }
    }
}

#[cfg(feature = "etcd")]
#[test]
fn a_server_of_something_else_is_a_bad_url() {
    let url = format!("etcd://{}/ns", serve(not_found));
    tenure_done(["--url", &url, "lock", "l", "--", "true"]).fails(78, &["404"]);
}
