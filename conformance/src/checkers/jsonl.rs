//! Histories in files: JSON lines, so that every run can be judged again.
//!
//! The first line says of what kind the history is, and in which version of the format; each
//! further line is one entry. Times are nanoseconds since the history began. A file that ends in
//! the middle of a line, as after a crash, is an error with the number of that line: cut it off
//! and what remains is a history.

use std::fmt;
use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The version of the format that is written. Older ones can be read: since 2, a queue answers with what was popped.
pub const VERSION: u32 = 2;

/// What a line of a history can be.
pub trait Line: Serialize + DeserializeOwned {
    /// Names the kind of history in the first line of the file.
    const KIND: &'static str;
}

#[derive(Serialize, Deserialize)]
struct Header {
    history: String,
    version: u32,
}

/// Why a history could not be read.
#[derive(Debug)]
pub struct ReadError {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
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
/// What the writer says.
pub fn write<L: Line>(to: &mut impl Write, history: &[L]) -> io::Result<()> {
    let header = Header {
        history: L::KIND.to_owned(),
        version: VERSION,
    };
    serde_json::to_writer(&mut *to, &header)?;
    for line in history {
        to.write_all(b"\n")?;
        serde_json::to_writer(&mut *to, line)?;
    }
    to.write_all(b"\n")?;
    to.flush()
}

/// Reads a history back.
///
/// # Errors
///
/// The first line that cannot be read, and why: among others, a history of another kind.
pub fn read<L: Line>(from: impl BufRead) -> Result<Vec<L>, ReadError> {
    let mut history = Vec::new();
    let mut header = false;
    for (index, line) in from.lines().enumerate() {
        let wrong = |reason: String| ReadError {
            line: index + 1,
            reason,
        };
        let line = line.map_err(|error| wrong(error.to_string()))?;
        if !header {
            let found: Header =
                serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
            if found.history != L::KIND || !(1..=VERSION).contains(&found.version) {
                return Err(wrong(format!(
                    "a history of kind {:?}, version {}, where {:?}, version {VERSION} or earlier, was expected",
                    found.history,
                    found.version,
                    L::KIND
                )));
            }
            header = true;
        } else if !line.trim().is_empty() {
            history.push(serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?);
        }
    }
    if !header {
        return Err(ReadError {
            line: 1,
            reason: "the file is empty".to_owned(),
        });
    }
    Ok(history)
}

/// A time as whole nanoseconds.
pub(crate) mod nanos {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_nanos)
    }
}

/// A time that may be missing.
pub(crate) mod maybe_nanos {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        time: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(|time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
            .serialize(to)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(from)?.map(Duration::from_nanos))
    }
}

/// A fencing token as its number.
pub(crate) mod token {
    use serde::{Deserialize, Deserializer, Serializer};
    use tenure_core::FencingToken;

    pub(crate) fn serialize<S: Serializer>(token: &FencingToken, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(token.get())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<FencingToken, D::Error> {
        u64::deserialize(from).map(FencingToken::new)
    }
}

#[cfg(test)]
pub(crate) fn round_trip<L: Line + fmt::Debug + PartialEq>(history: &[L]) {
    let mut file = Vec::new();
    write(&mut file, history).unwrap();
    assert_eq!(read::<L>(file.as_slice()).unwrap(), history);
}

#[cfg(test)]
mod tests {
    use tenure_core::FencingToken;

    use super::super::history::{Event, What, told};
    use super::*;

    const TOKEN: FencingToken = FencingToken::MAX;

    fn every_line() -> Vec<Event> {
        told(&[
            (0, What::Asked),
            (0, What::Granted(TOKEN)),
            (1, What::Refused),
            (1, What::Unknown),
            (0, What::Wrote(TOKEN)),
            (0, What::WriteRefused(TOKEN, true)),
            (0, What::Looks(TOKEN)),
            (0, What::Valid(TOKEN)),
            (0, What::Ended(TOKEN)),
            (0, What::Releasing(TOKEN)),
            (0, What::Released(TOKEN)),
            (0, What::Commits(TOKEN)),
            (0, What::Committed(TOKEN)),
            (2, What::Fault("cut \"here\"\n".into())),
        ])
    }

    #[test]
    fn the_history_of_a_lock_comes_back() {
        round_trip(&every_line());
        round_trip::<Event>(&[]);
    }

    #[test]
    fn a_file_reads_like_this() {
        let mut file = Vec::new();
        write(&mut file, &every_line()[1..2]).unwrap();
        assert_eq!(
            String::from_utf8(file).unwrap(),
            "{\"history\":\"lock\",\"version\":2}\n{\"at\":1000000,\"client\":0,\"what\":{\"Granted\":9007199254740991}}\n"
        );
    }

    #[test]
    fn what_is_no_history_is_refused_by_its_line() {
        let fails = |file: &str| read::<Event>(file.as_bytes()).unwrap_err();
        assert_eq!(fails("").line, 1);
        assert_eq!(fails("what?").line, 1);
        let other = fails("{\"history\":\"bank\",\"version\":1}");
        assert!(other.to_string().contains("\"bank\""), "{other}");
        let newer = fails("{\"history\":\"lock\",\"version\":3}");
        assert!(newer.to_string().contains("version 3"), "{newer}");
        let older = read::<Event>("{\"history\":\"lock\",\"version\":1}".as_bytes());
        assert_eq!(older.unwrap(), Vec::new());
        let torn = fails("{\"history\":\"lock\",\"version\":1}\n{\"at\":1,\"cli");
        assert_eq!(torn.line, 2);
    }
}
