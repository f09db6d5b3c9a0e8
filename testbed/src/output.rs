//! Running a command to its end, with a limit.

use std::io::{Read, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::error::{Doing as _, Error, Result};

/// Returns the factor by which the limits of tests are longer, which `TENURE_TEST_PATIENCE` says: a test that missed a
/// limit is repeated alone with a factor of 2.
pub fn patience() -> u32 {
    static GIVEN: LazyLock<u32> = LazyLock::new(|| {
        let given = std::env::var("TENURE_TEST_PATIENCE").ok();
        let given = given.and_then(|factor| factor.parse().ok());
        given.unwrap_or(1).clamp(1, 10)
    });
    *GIVEN
}

/// Runs the command to its end and returns what it printed. Standard output and standard error are captured unless the
/// command sets `stdout` to something else. Blocks the thread.
///
/// # Errors
///
/// [`Error::Io`] if the command cannot be started, and [`Error::TimedOut`], with the command's words, if it has not ended
/// within the limit times [`patience`]. It is killed then.
pub fn output_within(command: Command, limit: Duration) -> Result<Output> {
    run(command, None, limit)
}

/// As [`output_within`], with `input` on the command's standard input.
///
/// # Errors
///
/// As of [`output_within`].
pub fn output_with_input(mut command: Command, input: &[u8], limit: Duration) -> Result<Output> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    run(command, Some(input.to_owned()), limit)
}

fn run(mut command: Command, input: Option<Vec<u8>>, limit: Duration) -> Result<Output> {
    let program = Path::new(command.get_program()).to_string_lossy();
    let arguments = command.get_args().map(|word| word.to_string_lossy());
    let what = arguments.fold(program.into_owned(), |all, word| all + " " + &word);
    let limit = limit * patience();
    let mut child = command
        .stderr(Stdio::piped())
        .spawn()
        .doing(format!("start `{what}`"))?;
    let (stdout, stderr) = (read(child.stdout.take()), read(child.stderr.take()));
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A command that does not read all of it is not at fault.
        std::thread::spawn(move || stdin.write_all(&input));
    }
    let deadline = Instant::now() + limit;
    let late = |child: &mut Child, seen: String| {
        let _ = child.kill();
        let _ = child.wait();
        Error::TimedOut {
            what: format!("NOT JUDGED: the end of `{what}`"),
            after: limit,
            seen,
        }
    };
    let status = loop {
        match child.try_wait().doing(format!("wait for `{what}`"))? {
            Some(status) => break status,
            None if Instant::now() >= deadline => return Err(late(&mut child, String::new())),
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    // A process that the command left behind may keep them open.
    let left = || deadline.saturating_duration_since(Instant::now()) + Duration::from_secs(1);
    let (Ok(stdout), Ok(stderr)) = (stdout.recv_timeout(left()), stderr.recv_timeout(left()))
    else {
        let seen = "\nthe command has ended, and something holds its output open".to_owned();
        return Err(late(&mut child, seen));
    };
    Ok(Output {
        status,
        stdout,
        stderr,
    })
}

fn read(pipe: Option<impl Read + Send + 'static>) -> Receiver<Vec<u8>> {
    let (send, receive) = channel();
    std::thread::spawn(move || {
        let mut all = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut all);
        }
        let _ = send.send(all);
    });
    receive
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_is_killed_and_named_at_the_limit() {
        let mut command = Command::new("sleep");
        command.arg("1000").stdout(Stdio::piped());
        let error = output_within(command, Duration::from_millis(100)).expect_err("killed");
        assert!(error.to_string().contains("sleep 1000"), "{error}");
    }

    #[test]
    fn input_and_output_are_passed() {
        let done = output_with_input(Command::new("cat"), b"words", Duration::from_secs(30));
        assert_eq!(done.expect("runs").stdout, b"words");
    }
}
