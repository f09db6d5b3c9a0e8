//! As much of PostgreSQL's protocol as a test bed needs: one text of SQL, one answer.

use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Doing, Error, Result};

/// The user that everything is done as: it owns the server.
pub(super) const ADMIN: &str = "postgres";

/// A server's own socket in the file system: reached whatever its ports, certificates, users and
/// passwords are.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) socket: PathBuf,
}

impl Control {
    /// Sends SQL over a connection of its own, and renders all rows: a line for each, with `|`
    /// between the columns and nothing for null.
    pub(super) fn sql(&self, database: &str, sql: &str, timeout: Duration) -> Result<String> {
        // What follows may be a password.
        let shown: Vec<&str> = sql.split_whitespace().take(3).collect();
        let shown = shown.join(" ");
        let answer = self
            .exchange(database, sql, timeout)
            .doing(format!("ask PostgreSQL to `{shown}`"))?;
        answer.map_err(|message| Error::Reply {
            command: shown,
            message,
        })
    }

    fn exchange(
        &self,
        database: &str,
        sql: &str,
        timeout: Duration,
    ) -> io::Result<Result<String, String>> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(&startup(database))?;
        if let Err(message) = answer(&mut stream)? {
            return Ok(Err(message));
        }
        stream.get_mut().write_all(&message(b'Q', &[sql]))?;
        let answered = answer(&mut stream)?;
        // Politely: a connection that is cut is a line in the log.
        let _ = stream.get_mut().write_all(&message(b'X', &[]));
        Ok(answered)
    }
}

fn startup(database: &str) -> Vec<u8> {
    let version = 196_608_u32.to_be_bytes();
    let words = [
        "user",
        ADMIN,
        "database",
        database,
        "application_name",
        "testbed",
        "",
    ];
    let body: Vec<u8> = version.into_iter().chain(strings(&words)).collect();
    [length(&body), body].concat()
}

fn message(kind: u8, words: &[&str]) -> Vec<u8> {
    let body = strings(words);
    [vec![kind], length(&body), body].concat()
}

fn strings(words: &[&str]) -> Vec<u8> {
    let ended = words.iter().map(|word| [word.as_bytes(), &[0]].concat());
    ended.collect::<Vec<_>>().concat()
}

/// The length counts itself.
fn length(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    length.to_be_bytes().to_vec()
}

/// All rows until the server is ready for the next question; or its first error.
fn answer(stream: &mut impl io::Read) -> io::Result<Result<String, String>> {
    let (mut rows, mut error) = (Vec::new(), None);
    loop {
        let (kind, body) = match read(stream) {
            Ok(message) => message,
            // After a fatal error there is nothing more.
            Err(ended) => return error.map_or(Err(ended), |error| Ok(Err(error))),
        };
        match kind {
            b'Z' => return Ok(error.map_or_else(|| Ok(rows.join("\n")), Err)),
            b'D' => rows.push(row(&body)?),
            b'E' => error = error.or_else(|| Some(complaint(&body))),
            // Zero says that no password is wanted.
            b'R' if body != [0; 4] => {
                return Ok(Err("it wants a password on its own socket".to_owned()));
            }
            _ => {}
        }
    }
}

fn read(stream: &mut impl io::Read) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u64::from(u32::from_be_bytes(length)).saturating_sub(4);
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body)?;
    if body.len() as u64 == length {
        Ok((kind, body))
    } else {
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn row(mut body: &[u8]) -> io::Result<String> {
    let mut columns = Vec::new();
    let mut count = [0; 2];
    body.read_exact(&mut count)?;
    for _ in 0..u16::from_be_bytes(count) {
        let mut length = [0; 4];
        body.read_exact(&mut length)?;
        // Null has the length -1.
        let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(0);
        let (column, rest) = body
            .split_at_checked(length)
            .ok_or(io::ErrorKind::InvalidData)?;
        columns.push(String::from_utf8_lossy(column).into_owned());
        body = rest;
    }
    Ok(columns.join("|"))
}

/// The fields of an error: a letter and a text each.
fn complaint(body: &[u8]) -> String {
    let fields = body.split(|&byte| byte == 0);
    let field = |wanted: u8| {
        let mut all = fields.clone();
        let found = all.find_map(|field| field.strip_prefix(&[wanted]));
        String::from_utf8_lossy(found.unwrap_or_default()).into_owned()
    };
    format!("{}: {} ({})", field(b'S'), field(b'M'), field(b'C'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)] // A test fails by panicking.

    use super::*;

    fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
        [vec![kind], length(body), body.to_vec()].concat()
    }

    #[test]
    fn rows_and_errors() {
        let one = b"\0\x02\0\0\0\x011\xff\xff\xff\xff";
        let rows = [frame(b'D', one), frame(b'D', one), frame(b'Z', b"I")].concat();
        assert_eq!(answer(&mut &rows[..]).unwrap().unwrap(), "1|\n1|");
        let refused = frame(b'E', b"SERROR\0C42601\0Mno\0\0");
        let text = "ERROR: no (42601)";
        for rest in [frame(b'Z', b"I"), Vec::new()] {
            let bytes = [refused.clone(), rest].concat();
            assert_eq!(answer(&mut &bytes[..]).unwrap().unwrap_err(), text);
        }
        assert!(answer(&mut &frame(b'D', b"\0\x02\0\0\0\x01")[..]).is_err());
        assert!(answer(&mut &b"D\0\0"[..]).is_err(), "cut off");
        assert!(
            answer(&mut &frame(b'R', &[0, 0, 0, 5])[..])
                .unwrap()
                .is_err()
        );
    }
}
