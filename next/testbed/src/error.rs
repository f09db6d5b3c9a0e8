//! The errors of the testbed.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The reason why a server or the proxy could not do what the test asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A program that the testbed needs is not installed.
    #[error(
        "`{program}` was not found: install the Debian package `{package}`, or set {variable} to the path of the program"
    )]
    MissingProgram {
        /// The program's name.
        program: &'static str,
        /// The Debian package that contains it.
        package: &'static str,
        /// The environment variable that names another path.
        variable: &'static str,
    },

    /// A server ended, or did not serve within 30 seconds.
    #[error("{server} did not start: {reason}\n--- from {}\n{log}", path.display())]
    Start {
        /// The server.
        server: &'static str,
        /// The state that was seen instead.
        reason: String,
        /// The path of the server's log.
        path: PathBuf,
        /// The last lines of the log.
        log: String,
    },

    /// The process has ended, so it cannot be paused or resumed.
    #[error("{0} is not running")]
    NotRunning(&'static str),

    /// An awaited condition did not hold within 30 seconds.
    #[error("{what}: not seen within 30 s{seen}")]
    NotSeen {
        /// The condition.
        what: String,
        /// The last error that was seen instead, if there was one.
        seen: String,
    },

    /// A Redis server refused a command, or did not answer it.
    #[error("Redis failed to execute `{command}`")]
    Redis {
        /// The first two words of the command; what follows may be a secret.
        command: String,
        /// The refusal.
        source: ::redis::RedisError,
    },

    /// A program that the testbed ran failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// The command.
        command: String,
        /// Its messages.
        output: String,
    },

    /// The options contradict each other or cannot be met.
    #[error("{0}")]
    Usage(String),

    /// The operating system refused.
    #[error("cannot {action}")]
    Io {
        /// The action.
        action: String,
        /// The refusal.
        source: io::Error,
    },
}

impl Error {
    /// Returns the message with those of its sources.
    pub(crate) fn with_sources(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            let _ = write!(text, ": {error}");
            source = error.source();
        }
        text
    }
}

/// Names the action that the operating system refused.
pub(crate) trait Action<T> {
    fn action(self, action: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> Action<T> for Result<T, E> {
    fn action(self, action: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::Io {
            action: action.into(),
            source: source.into(),
        })
    }
}
