//! Plain sockets.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// The limit of a wait for bytes that come.
const COMES: Duration = Duration::from_secs(30);
/// Long enough for bytes that must not come.
const QUIET: Duration = Duration::from_millis(150);

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(COMES)).expect("a limit");
    stream
}

pub(crate) fn send(mut stream: &TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).expect("sent");
}

#[track_caller]
pub(crate) fn receive(mut stream: &TcpStream, text: &str) {
    let mut received = vec![0; text.len()];
    stream.read_exact(&mut received).expect("bytes");
    assert_eq!(String::from_utf8_lossy(&received), text);
}

#[track_caller]
pub(crate) fn assert_silent(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(QUIET)).expect("a limit");
    let error = stream
        .read(&mut [0; 64])
        .expect_err("no byte, and no end of the stream");
    assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
    stream.set_read_timeout(Some(COMES)).expect("a limit");
}

#[track_caller]
pub(crate) fn assert_reset(mut stream: &TcpStream) {
    let error = stream
        .read(&mut [0; 64])
        .expect_err("a reset, not the end of the stream");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
}

/// Sends an inline command to a Redis and returns the first line of its answer.
pub(crate) fn ask_redis(address: SocketAddr, command: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(COMES))?;
    stream.write_all(format!("{command}\r\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None => Err(ErrorKind::UnexpectedEof.into()),
    }
}
