//! Output on stdout: plain lines, JSON lines, tables.

use std::io::{IsTerminal as _, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use comfy_table::{ContentArrangement, Table, presets};

use crate::exit::Failure;

/// Prints a line, now: whoever reads it may be waiting for it.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
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

/// A value in the same way; bytes that are not UTF-8 as `\xNN`.
pub(crate) fn printable_bytes(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        out.push_str(&printable(chunk.valid()));
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
}

/// Prints a value as it is, and a newline, now.
pub(crate) fn value(value: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(value)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

/// The same beside the work of the runtime: a reader who takes its time must not keep a session from
/// being renewed.
pub(crate) async fn aside(
    print: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> Result<(), Failure> {
    match tokio::task::spawn_blocking(print).await {
        Ok(printed) => printed,
        Err(error) => Err(Failure::os("write to stdout", std::io::Error::other(error))),
    }
}

/// A line of `--json`: an object whose fields stay in the order in which they were set.
#[derive(Debug, Default)]
pub(crate) struct Object(Vec<(String, serde_json::Value)>);

impl Object {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn set(&mut self, field: &str, value: serde_json::Value) {
        self.0.push((field.to_owned(), value));
    }

    /// Sets `field` to the text, or `field_base64` if the value is not UTF-8; `None` is null.
    pub(crate) fn set_bytes(&mut self, field: &str, value: Option<&[u8]>) {
        match value.map(|value| (value, std::str::from_utf8(value))) {
            None => self.set(field, serde_json::Value::Null),
            Some((_, Ok(text))) => self.set(field, text.into()),
            Some((bytes, Err(_))) => {
                let encoded = BASE64_STANDARD.encode(bytes);
                self.set(&format!("{field}_base64"), encoded.into());
            }
        }
    }

    /// The line.
    pub(crate) fn text(&self) -> String {
        let field = |(field, value): &(String, serde_json::Value)| {
            format!("{}:{value}", serde_json::Value::from(field.as_str()))
        };
        let fields: Vec<String> = self.0.iter().map(field).collect();
        format!("{{{}}}", fields.join(","))
    }

    /// Prints the line, now.
    pub(crate) fn print(&self) -> Result<(), Failure> {
        line(&self.text())
    }
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
        assert_eq!(printable_bytes(b"a\n\xff\xfeb"), "a\\n\\xff\\xfeb");
    }

    #[test]
    fn an_object_keeps_its_order_and_its_bytes() {
        let mut object = Object::new();
        object.set("name", "a\"\n".into());
        object.set_bytes("value", Some(b"\xff"));
        object.set_bytes("text", Some("ключ".as_bytes()));
        object.set_bytes("none", None);
        assert_eq!(
            object.text(),
            r#"{"name":"a\"\n","value_base64":"/w==","text":"ключ","none":null}"#
        );
    }
}
