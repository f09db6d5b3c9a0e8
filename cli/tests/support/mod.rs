//! Running the real binary.
#![allow(dead_code, reason = "every test binary uses its part")]

use std::ffi::OsStr;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tenure_testbed::{Process, output_with_input, output_within};

/// Longer than anything takes on a busy machine, so that only a hang reaches it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Returns a command for a program that ignores no signal. The runner of the tests may ignore some, as `nohup` and a
/// shell's `&` do, and its children inherit that.
pub(crate) fn with_default_signals(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT,TERM", program]);
    command
}

/// `tenure` with these arguments, and no store in its environment.
pub(crate) fn tenure<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    let mut command = with_default_signals(env!("CARGO_BIN_EXE_tenure"));
    command.args(args);
    command
        .env_remove("TENURE_URL")
        .env_remove("TENURE_URL_FILE");
    command
}

/// What came of a command.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Done {
    /// The exit code is `code`, and a failure of tenure's own says so on stderr.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:#?}");
        assert!(self.stderr.contains("tenure: "), "{self:#?}");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} in {self:#?}");
        }
    }

    #[track_caller]
    pub(crate) fn exits(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{self:#?}");
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// Runs it to its end, with nothing on its standard input.
pub(crate) fn run(mut command: Command) -> Done {
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    output_within(command, PATIENCE).unwrap().into()
}

/// Runs `tenure` with these arguments to its end.
pub(crate) fn tenure_done<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Done {
    run(tenure(args))
}

/// Runs it to its end with this on its standard input.
pub(crate) fn run_with_input(command: Command, input: &[u8]) -> Done {
    output_with_input(command, input, PATIENCE).unwrap().into()
}

/// An address that refuses connections.
pub(crate) fn dead_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

/// Waits until the condition holds.
#[track_caller]
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        let limit = PATIENCE * tenure_testbed::patience();
        assert!(
            start.elapsed() < limit,
            "NOT JUDGED: waited too long for {what}"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the process has said this on stderr. Its last words may be on their way still when
/// it has ended.
#[track_caller]
pub(crate) fn says(process: &Process, words: &str) {
    until(words, || process.stderr().contains(words));
}

/// A `tenure shell` that is driven by a pipe.
pub(crate) struct Shell(pub(crate) Process);

impl Shell {
    /// `tenure ARGS... shell`
    pub(crate) fn start(args: &[&str]) -> Self {
        let command = tenure(args.iter().chain(&["shell"]));
        Self(Process::spawn(command).unwrap())
    }

    pub(crate) fn send(&mut self, line: &str) {
        self.0.send_line(line).unwrap();
    }

    /// The next line, which begins with this.
    #[track_caller]
    pub(crate) fn next(&mut self, begins: &str) -> String {
        let line = self.0.expect_line("", PATIENCE).unwrap();
        assert!(line.starts_with(begins), "{line:?} instead of {begins:?}");
        line
    }

    /// Sends a line and expects its outcome next: the whole line.
    #[track_caller]
    pub(crate) fn does(&mut self, line: &str, outcome: &str) {
        self.send(line);
        assert_eq!(self.next(""), outcome, "{line}");
    }

    /// The same for an outcome that ends with a token, which is returned.
    #[track_caller]
    pub(crate) fn takes(&mut self, line: &str, outcome: &str) -> u64 {
        self.send(line);
        self.token(outcome)
    }

    /// The same where what was given up may still be on its way out of the line.
    #[track_caller]
    pub(crate) fn takes_in_the_end(&mut self, line: &str, outcome: &str) -> u64 {
        self.send(line);
        let next = self.next("");
        match next.ends_with(": waiting") {
            true => self.token(outcome),
            false => {
                assert!(next.starts_with(&format!("{outcome} token=")), "{next}");
                next.rsplit_once('=').unwrap().1.parse().unwrap()
            }
        }
    }

    /// The token with which the next line ends.
    #[track_caller]
    pub(crate) fn token(&mut self, outcome: &str) -> u64 {
        let line = self.next(&format!("{outcome} token="));
        line.rsplit_once('=').unwrap().1.parse().unwrap()
    }

    /// Ends its input, and the shell with it.
    #[track_caller]
    pub(crate) fn ends(mut self) {
        self.0.close_stdin();
        assert_eq!(self.0.wait(PATIENCE).unwrap().code(), Some(0));
        assert_eq!(self.0.try_line(), None);
    }
}
