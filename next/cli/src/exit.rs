//! Exit codes, and the failures that lead to them.

use std::fmt::Display;
use std::io::Write as _;

use tenure::{Error, ErrorKind};

use crate::text::one_line;

/// Done.
pub(crate) const DONE: u8 = 0;
/// A negative answer.
pub(crate) const NEGATIVE: u8 = 1;
/// A command line that is not understood.
pub(crate) const USAGE: u8 = 64;
/// The store cannot be reached.
const UNREACHABLE: u8 = 69;
/// A failure of tenure itself, or a refusal of the operating system.
const INTERNAL: u8 = 70;
/// Not acquired in time: of commands to come, so the help does not list it.
const NOT_ACQUIRED: u8 = 75;
/// Lost while held: of commands to come, so the help does not list it.
const LOST: u8 = 76;
/// Not permitted.
const NOT_PERMITTED: u8 = 77;
/// A bad URL or name.
const BAD_CONFIG: u8 = 78;
/// The code that shells show for a process that SIGPIPE ended.
const BROKEN_PIPE: u8 = 128 + 13;

const fn of_kind(kind: ErrorKind) -> u8 {
    match kind {
        // The outcome of a commit is unknown because the store became unreachable.
        ErrorKind::Unavailable | ErrorKind::CommitUnknown => UNREACHABLE,
        ErrorKind::TimedOut => NOT_ACQUIRED,
        ErrorKind::Lost => LOST,
        ErrorKind::Unauthorized => NOT_PERMITTED,
        ErrorKind::Config | ErrorKind::InvalidName | ErrorKind::Unsupported | ErrorKind::Foreign => BAD_CONFIG,
        ErrorKind::Conflict => NEGATIVE,
        ErrorKind::TooLarge => USAGE,
        _ => INTERNAL,
    }
}

/// Prints what clap says of a command line, and returns the exit code.
pub(crate) fn of_usage(error: &clap::Error) -> u8 {
    let printed = error.print();
    match printed {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => BROKEN_PIPE,
        _ if error.use_stderr() => USAGE,
        _ => DONE,
    }
}

/// Why the command could not do its task, and its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// Creates the failure of a call to the operating system; `task` names the call.
    pub(crate) fn os(task: impl Display, error: &std::io::Error) -> Self {
        Self::new(INTERNAL, format!("cannot {task}: {error}"))
    }

    /// Creates the failure of a write to stdout. Programs that SIGPIPE ends print no message, and neither does this.
    pub(crate) fn stdout(error: &std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(BROKEN_PIPE, ""),
            _ => Self::os("write to stdout", error),
        }
    }

    /// Prints the message on stderr, and returns the exit code.
    pub(crate) fn print(&self) -> u8 {
        if !self.message.is_empty() {
            say(&self.message);
        }
        self.code
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(of_kind(error.kind()), error.chain().to_string())
    }
}

/// Prints a message on stderr.
pub(crate) fn say(message: impl Display) {
    // Not `eprintln`, which panics if stderr is closed.
    let line = format!("tenure: {}\n", one_line(&message.to_string()));
    let _ = std::io::stderr().write_all(line.as_bytes());
}
