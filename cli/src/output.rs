//! Output on stdout: plain lines, JSON lines, tables.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};

use crate::exit::Failure;

/// Prints a line, now: whoever reads it may be waiting for it.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(|error| Failure::os("write to stdout", error))
}

/// `name` on one line and harmless on a terminal: control characters are escaped. `--json` and
/// TENURE_NAME have it as it is.
pub(crate) fn printable(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// A table as wide as the terminal. Elsewhere nothing is wrapped: a row is a line, for `grep`.
pub(crate) fn table(to_stdout: bool) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    if to_stdout
        && std::io::stdout().is_terminal()
        && let Some((width, _)) = terminal_size::terminal_size()
    {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width.0);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line() {
        assert_eq!(printable("a\nb token=9"), "a\\nb token=9");
        assert_eq!(printable("\u{1b}[2J ключ"), "\\u{1b}[2J ключ");
    }
}
