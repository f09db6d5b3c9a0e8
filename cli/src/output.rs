//! Output on stdout: plain lines, JSON lines, tables.

use std::borrow::Cow;
use std::io::{IsTerminal as _, Write as _};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use comfy_table::{ContentArrangement, Table, presets};

use crate::exit::Failure;
use crate::words;

/// Prints a line, now: whoever reads it may be waiting for it.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

/// Text that did not come from this program, on one line and harmless on a terminal: characters that control it,
/// cannot be seen or turn the direction of the text are escaped. Every such text goes through here.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// The same for a text of several lines.
pub(crate) fn printable_lines(text: &str) -> String {
    escaped(text, |character| character == '\n')
}

fn escaped(text: &str, kept: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if words::is_harmless(character) || kept(character) {
            out.push(character);
        } else {
            out.extend(character.escape_default());
        }
    }
    out
}

/// A line of JSON with the same characters in the escapes of JSON: its meaning stays.
fn printable_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if words::is_harmless(character) {
            out.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
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

/// Prints a value and a newline, now: as it is, but on a terminal with all escaped that could do something to it.
pub(crate) fn value(value: &[u8]) -> Result<(), Failure> {
    let mut stdout = std::io::stdout().lock();
    let value = match stdout.is_terminal() {
        true => Cow::Owned(shown_on_terminal(value).into_bytes()),
        false => Cow::Borrowed(value),
    };
    stdout
        .write_all(&value)
        .and_then(|()| stdout.write_all(b"\n"))
        .and_then(|()| stdout.flush())
        .map_err(Failure::stdout)
}

/// Lines and columns of a value stay.
fn shown_on_terminal(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        let kept = |character| matches!(character, '\n' | '\t');
        out.push_str(&escaped(chunk.valid(), kept));
        out.extend(chunk.invalid().iter().map(|byte| format!("\\x{byte:02x}")));
    }
    out
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
        printable_json(&format!("{{{}}}", fields.join(",")))
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
        assert_eq!(printable("\u{202e}x\u{200b}"), "\\u{202e}x\\u{200b}");
        assert_eq!(printable_lines("a\r\nb\u{9b}"), "a\\r\nb\\u{9b}");
        assert_eq!(
            shown_on_terminal(b"a\tb\n\x1b[2J\xff"),
            "a\tb\n\\u{1b}[2J\\xff"
        );
    }

    #[test]
    fn json_keeps_its_meaning() {
        let mut object = Object::new();
        let text = "\u{9b}\u{202e}\u{e0041}\u{7f}\"\\ключ";
        object.set("text", text.into());
        let line = object.text();
        assert!(
            line.contains("\\u009b\\u202e\\udb40\\udc41\\u007f"),
            "{line}"
        );
        let read: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(read["text"], text);
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
