//! What can go wrong in a test bed.

use std::io;
use std::process::ExitStatus;
use std::time::Duration;

/// The result of this crate's methods.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a server, a process or the proxy could not do what the test asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that the test bed needs is not installed.
    #[error(
        "`{binary}` was not found: install the Debian package `{package}`, \
         or set {variable} to the path of the binary"
    )]
    MissingBinary {
        /// The program's name.
        binary: &'static str,
        /// The Debian package that holds it.
        package: &'static str,
        /// The environment variable that names another path.
        variable: &'static str,
    },

    /// A server did not start to serve.
    #[error("{what} did not start: {reason}\n--- from its log ---\n{log}")]
    Start {
        /// Which server.
        what: String,
        /// What was seen instead.
        reason: String,
        /// The first and the last lines of the server's log.
        log: String,
    },

    /// The process has ended, so it cannot be paused, talked to or asked.
    #[error("{what} is not running")]
    NotRunning {
        /// Which process.
        what: String,
    },

    /// A command of an administration tool failed.
    #[error("`{command}` failed ({status}): {output}")]
    Command {
        /// The command line, without secrets.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote, standard error last.
        output: String,
    },

    /// A server refused a command that the test bed sent over the server's own protocol.
    #[error("`{command}` was refused by the server: {message}")]
    Reply {
        /// The command, without secrets.
        command: String,
        /// The server's answer.
        message: String,
    },

    /// A holder could not do what it was told: an error of tenure in another process.
    #[error("`{command}` was refused by the holder ({kind}): {message}")]
    Refused {
        /// The command.
        command: String,
        /// The kind of tenure's error, such as `Lost` or `WouldBlock`.
        kind: String,
        /// Its message.
        message: String,
    },

    /// What the test waited for did not happen in time.
    #[error("{what}: nothing after {after:?}{seen}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// What came instead, each line on a line of its own.
        seen: String,
    },

    /// A process ended, or closed its output, before it said what the test waited for.
    #[error("{what}: the process ended first{seen}")]
    Ended {
        /// What was waited for.
        what: String,
        /// What came instead, each line on a line of its own.
        seen: String,
    },

    /// The options contradict each other or cannot be met here.
    #[error("{0}")]
    Config(String),

    /// The operating system refused.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: String,
        /// Its answer.
        source: io::Error,
    },
}

/// Says what was tried when the operating system refused it.
pub(crate) trait Doing<T> {
    fn doing(self, doing: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io {
            doing: doing.into(),
            source: source.into(),
        })
    }
}
