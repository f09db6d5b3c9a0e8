//! Histories as JSON lines, so that each run can be judged again.
//!
//! The first line names the kind of the history and the version of the format; each further line is one operation. A
//! file that ends within a line, as after a crash, is an error with the number of that line. Without that line it is a
//! history.

use std::fmt;
use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the format that is written. Histories of a later version are refused.
pub const VERSION: u32 = 1;

/// An operation that can be written to a file.
pub trait Recorded: Serialize + DeserializeOwned {
    /// The kind of the history, in the first line of the file.
    const KIND: &'static str;
}

#[derive(Serialize, Deserialize)]
struct Header {
    history: String,
    version: u32,
}

/// An error at one line of a file.
#[derive(Debug)]
pub struct ReadError {
    /// The number of the line, from 1.
    pub line: usize,
    /// The reason.
    pub reason: String,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} of the history: {}", self.line, self.reason)
    }
}

impl std::error::Error for ReadError {}

/// Writes a history.
///
/// # Errors
///
/// Those of the writer.
pub fn write<T: Recorded>(to: &mut impl Write, history: &[T]) -> io::Result<()> {
    let header = Header {
        history: T::KIND.to_owned(),
        version: VERSION,
    };
    serde_json::to_writer(&mut *to, &header)?;
    to.write_all(b"\n")?;
    for operation in history {
        serde_json::to_writer(&mut *to, operation)?;
        to.write_all(b"\n")?;
    }
    to.flush()
}

/// Reads the kind of a history: `lock`, `queue` or `list-append`.
///
/// # Errors
///
/// [`ReadError`] if the first line is missing, is not a header, or has a later version.
pub fn kind(from: impl BufRead) -> Result<String, ReadError> {
    let wrong = |reason: String| ReadError { line: 1, reason };
    let first = from.lines().next();
    let first = first.ok_or_else(|| wrong("the file is empty".to_owned()))?;
    let first = first.map_err(|error| wrong(error.to_string()))?;
    let header: Header = serde_json::from_str(&first).map_err(|error| wrong(error.to_string()))?;
    match header.version {
        1..=VERSION => Ok(header.history),
        later => Err(wrong(format!(
            "the format has version {later}; this program reads versions up to {VERSION}"
        ))),
    }
}

/// Splits a file of several histories, one after another, into the histories.
pub fn sections(file: &str) -> Vec<&str> {
    let mut begins: Vec<usize> = Vec::new();
    let mut at = 0;
    for line in file.split_inclusive('\n') {
        if begins.is_empty() || serde_json::from_str::<Header>(line).is_ok() {
            begins.push(at);
        }
        at += line.len();
    }
    let ends = begins.iter().copied().skip(1).chain([file.len()]);
    begins.iter().zip(ends).map(|(begin, end)| &file[*begin..end]).collect()
}

/// Reads a history.
///
/// # Errors
///
/// [`ReadError`] at the first line that cannot be read, also if the history is of another kind.
pub fn read<T: Recorded>(mut from: impl BufRead) -> Result<Vec<T>, ReadError> {
    let found = kind(&mut from)?;
    if found != T::KIND {
        let reason = format!("the history is of kind `{found}`, expected `{}`", T::KIND);
        return Err(ReadError { line: 1, reason });
    }
    let mut history = Vec::new();
    for (index, line) in from.lines().enumerate() {
        let wrong = |reason: String| ReadError {
            line: index + 2,
            reason,
        };
        let line = line.map_err(|error| wrong(error.to_string()))?;
        history.push(serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?);
    }
    Ok(history)
}
