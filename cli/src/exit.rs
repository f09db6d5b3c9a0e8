//! Exit codes, and the failures that lead to them. The one place where an [`ErrorKind`] becomes a
//! number.

use std::fmt::Display;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use tenure::{Error, ErrorKind, LossReason};

use crate::output::{printable, printable_lines};

/// Done.
pub(crate) const DONE: u8 = 0;
/// A negative answer.
pub(crate) const NEGATIVE: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 64;
/// The store cannot be reached.
pub(crate) const UNREACHABLE: u8 = 69;
/// tenure itself failed: a bug, or an operating system that refuses.
pub(crate) const INTERNAL: u8 = 70;
/// Not acquired (in time).
pub(crate) const NOT_ACQUIRED: u8 = 75;
/// Lost while held.
pub(crate) const LOST: u8 = 76;
/// Not permitted.
pub(crate) const NOT_PERMITTED: u8 = 77;
/// A bad URL or name.
pub(crate) const BAD_CONFIG: u8 = 78;
/// The command exists and cannot be started, as in shells.
pub(crate) const CANNOT_START: u8 = 126;
/// The command was not found, as in shells.
pub(crate) const NOT_FOUND: u8 = 127;

/// The exit code of an error, wherever it came from.
const fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Unavailable => UNREACHABLE,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => NOT_ACQUIRED,
        ErrorKind::Lost => LOST,
        ErrorKind::Unauthorized => NOT_PERMITTED,
        // The store at this URL cannot do it: no answer of the store, and not to be taken for one.
        // Nor is what something else keeps under this name.
        ErrorKind::Config
        | ErrorKind::InvalidName
        | ErrorKind::Unsupported
        | ErrorKind::Foreign => BAD_CONFIG,
        ErrorKind::Conflict => NEGATIVE,
        ErrorKind::TooLarge => USAGE,
        // The store went away between the commit and its answer.
        ErrorKind::CommitUnknown => UNREACHABLE,
        // `ErrorKind` may grow.
        _ => INTERNAL,
    }
}

/// The exit code of a question with the answer yes or no.
pub(crate) const fn of_answer(yes: bool) -> u8 {
    if yes { DONE } else { NEGATIVE }
}

/// 128+n if a signal ended it.
pub(crate) fn of_child(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok())
        .unwrap_or(INTERNAL)
}

/// The exit code of a process that ends because of a signal, as shells count.
pub(crate) fn of_signal(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(INTERNAL)
}

/// The signal for who writes into a pipe that nobody reads, on every system that has it.
const SIGPIPE: i32 = 13;

/// Why tenure ends without having done what it was asked, and its exit code.
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

    /// The operating system refused: `what` says what it was to do.
    pub(crate) fn os(what: impl Display, error: std::io::Error) -> Self {
        Self::new(INTERNAL, format!("cannot {what}: {error}"))
    }

    /// What was to go to stdout did not. That nobody reads on (`tenure ... | head -1`) other programs learn by
    /// a signal, which ends them without a word.
    pub(crate) fn stdout(error: std::io::Error) -> Self {
        match error.kind() {
            std::io::ErrorKind::BrokenPipe => Self::new(of_signal(SIGPIPE), ""),
            _ => Self::os("write to stdout", error),
        }
    }

    /// A signal ended it: `what` says what was stopped.
    pub(crate) fn interrupted(signal: i32, what: impl Into<String>) -> Self {
        Self::new(of_signal(signal), what)
    }

    /// An error of a wait, before anything was held: nothing can have been lost then.
    pub(crate) fn waiting(error: Error) -> Self {
        match error.loss() {
            Some(LossReason::Unreachable) => Self::new(UNREACHABLE, described(&error)),
            Some(LossReason::Refused) => Self::new(NOT_PERMITTED, described(&error)),
            Some(_) => Self::new(NOT_ACQUIRED, described(&error)),
            None => error.into(),
        }
    }

    /// The same failure, and what had come of it by then.
    pub(crate) fn after(mut self, what: &str) -> Self {
        self.message = format!("{what}; and then the store was gone: {}", self.message);
        self
    }

    /// The same failure with the codes that the user wants for 75 and 76.
    pub(crate) fn recoded(mut self, not_acquired: u8, lost: u8) -> Self {
        self.code = match self.code {
            NOT_ACQUIRED => not_acquired,
            LOST => lost,
            code => code,
        };
        self
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Says it on stderr, if there is anything to say.
    pub(crate) fn tell(&self) {
        if !self.message.is_empty() {
            say(&self.message);
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::new(code(error.kind()), described(&error))
    }
}

/// An error in the words of the command line: those of the library are its methods'.
pub(crate) fn described(error: &Error) -> String {
    let message = error.explanation();
    match (error.operation().map(words), error.name()) {
        (Some(operation), Some(name)) => format!("{operation} {name:?}: {message}"),
        (Some(operation), None) => format!("{operation}: {message}"),
        (None, Some(name)) => format!("{name:?}: {message}"),
        (None, None) => message.to_string(),
    }
}

/// What a method of the library is called here.
fn words(operation: &str) -> String {
    let word = operation.strip_prefix("try_").unwrap_or(operation);
    let word = ["_timeout", "_many"]
        .iter()
        .find_map(|end| word.strip_suffix(end))
        .unwrap_or(word);
    match word {
        "read" => "read-lock".to_owned(),
        "write" => "write-lock".to_owned(),
        "campaign" => "elect".to_owned(),
        "hold" | "wait" | "enter" | "leave" => format!("barrier {word}"),
        "is_held" => "barrier".to_owned(),
        "depth" => "queue-len".to_owned(),
        "peek" => "queue-peek".to_owned(),
        "purge" => "queue-purge".to_owned(),
        "open" => "opening a session".to_owned(),
        "stm" => "transaction".to_owned(),
        "raise_token_floor" => "token-floor".to_owned(),
        word => word.replace('_', " "),
    }
}

/// Says something on stderr, on one line: a server's text in it cannot pass for a word of tenure. Unlike
/// `eprintln!` this does not panic when nobody listens.
pub(crate) fn say(message: impl Display) {
    write(&printable(&message.to_string()));
}

/// The same on several lines, for what explains a command line. Its words may be in it: no line but the first
/// begins as tenure's own do.
pub(crate) fn say_lines(message: &str) {
    write(&printable_lines(message).replace("\ntenure:", "\n tenure:"));
}

fn write(message: &str) {
    // In one piece: others may write to the same place at the same time.
    let line = format!("tenure: {message}\n");
    let _ = std::io::stderr().write_all(line.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_while_waiting_is_no_loss() {
        let lost = |reason| Failure::waiting(Error::lost(reason)).code();
        assert_eq!(lost(LossReason::Unreachable), UNREACHABLE);
        assert_eq!(lost(LossReason::Expired), NOT_ACQUIRED);
        assert_eq!(Failure::from(Error::lost(LossReason::Expired)).code(), LOST);
    }

    #[test]
    fn the_words_are_those_of_the_command() {
        let told = |operation| {
            let error = Error::new(ErrorKind::TimedOut, "no")
                .during(operation)
                .on("x");
            described(&error.with_source(std::io::Error::other("why")))
        };
        for (operation, expected) in [
            ("lock_timeout", "lock"),
            ("try_lock", "lock"),
            ("dequeue_timeout", "dequeue"),
            ("try_write", "write-lock"),
            ("hold", "barrier hold"),
            ("depth", "queue-len"),
        ] {
            assert_eq!(told(operation), format!("{expected} \"x\": no: why"));
        }
    }

    #[test]
    fn what_another_program_has_is_no_answer() {
        let failure = |kind| Failure::from(Error::new(kind, "")).code();
        assert_eq!(failure(ErrorKind::Foreign), BAD_CONFIG);
        let refused = Failure::waiting(Error::lost(LossReason::Refused));
        assert_eq!(refused.code(), NOT_PERMITTED);
    }

    #[test]
    fn the_users_codes_replace_two() {
        let code = |kind| Failure::from(Error::new(kind, "")).recoded(10, 20).code();
        assert_eq!(code(ErrorKind::TimedOut), 10);
        assert_eq!(code(ErrorKind::WouldBlock), 10);
        assert_eq!(code(ErrorKind::Lost), 20);
        assert_eq!(code(ErrorKind::Unavailable), UNREACHABLE);
    }

    #[test]
    fn children() {
        assert_eq!(of_child(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(of_child(ExitStatus::from_raw(9)), 137);
    }
}
