//! Text for stdout.

use std::io::Write as _;

use crate::exit::Failure;

/// Prints `text` and the end of a line on stdout.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush());
    written.map_err(|error| Failure::stdout(&error))
}
