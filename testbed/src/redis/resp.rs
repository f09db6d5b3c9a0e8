//! As much of Redis' protocol as a test bed needs: one command, one answer.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Doing, Error, Result};

/// The user that the test bed works as, whatever a test does to the others.
pub(super) const ADMIN: &str = "testbed";

/// A server's own socket in the file system: reached whatever its ports, certificates and users
/// are, and not seen by those who count connections from outside.
#[derive(Debug, Clone)]
pub(super) struct Control {
    socket: PathBuf,
}

impl Control {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// Sends one command over a connection of its own and renders the answer.
    pub(super) fn command<A: AsRef<str>>(&self, args: &[A], timeout: Duration) -> Result<String> {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        // What follows the first two words may be a password.
        let shown = args[..args.len().min(2)].join(" ");
        let reply = self
            .exchange(&args, timeout)
            .doing(format!("ask redis-server to `{shown}`"))?;
        match reply {
            Reply::Error(message) => Err(Error::Reply {
                command: shown,
                message,
            }),
            reply => Ok(reply.render()),
        }
    }

    fn exchange(&self, args: &[&str], timeout: Duration) -> io::Result<Reply> {
        let stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        let mut stream = BufReader::new(stream);
        for args in [&["AUTH", ADMIN, ADMIN], args] {
            stream.get_mut().write_all(&encode(args))?;
            match read(&mut stream)? {
                Reply::Error(message) if args[0] == "AUTH" => {
                    return Ok(Reply::Error(message));
                }
                Reply::Text(_) if args[0] == "AUTH" => {}
                reply => return Ok(reply),
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }
}

fn encode(args: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", args.len()).into_bytes();
    for arg in args {
        bytes.extend_from_slice(format!("${}\r\n{arg}\r\n", arg.len()).as_bytes());
    }
    bytes
}

/// An answer, in the older of the two protocols, which every server speaks unasked.
#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Text(String),
    Nil,
    List(Vec<Reply>),
    Error(String),
}

impl Reply {
    /// Text as it is, nil as nothing, a list as a line for each element.
    fn render(self) -> String {
        match self {
            Self::Text(text) | Self::Error(text) => text,
            Self::Nil => String::new(),
            Self::List(all) => {
                let all: Vec<String> = all.into_iter().map(Self::render).collect();
                all.join("\n")
            }
        }
    }
}

fn read(stream: &mut BufReader<UnixStream>) -> io::Result<Reply> {
    let mut line = Vec::new();
    stream.read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    let Some((kind, rest)) = line
        .strip_suffix("\r\n")
        .and_then(|line| line.split_at_checked(1))
    else {
        return Err(io::ErrorKind::UnexpectedEof.into());
    };
    Ok(match kind {
        "+" | ":" => Reply::Text(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        "$" => match length(rest)? {
            None => Reply::Nil,
            Some(length) => {
                let mut bytes = vec![0; length + 2];
                stream.read_exact(&mut bytes)?;
                bytes.truncate(length);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
        },
        "*" => match length(rest)? {
            None => Reply::Nil,
            Some(length) => Reply::List(
                (0..length)
                    .map(|_| read(stream))
                    .collect::<Result<_, _>>()?,
            ),
        },
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}

/// The length that a header states; `None` for the negative one of nil.
fn length(text: &str) -> io::Result<Option<usize>> {
    let length: i64 = text.parse().map_err(io::Error::other)?;
    Ok(usize::try_from(length).ok())
}
