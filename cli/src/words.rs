//! Lines of words, as `tenure shell` and `tenure txn` read them, and the way back.
//!
//! A word is a run of anything but blanks, taken as it is. One that begins with a quote ends with
//! the same quote: in `'single'` ones everything is taken as it is, in `"double"` ones a backslash
//! begins an escape. Words are bytes, like the values that they become.

use std::fmt::Write as _;

/// One word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Word {
    pub(crate) bytes: Vec<u8>,
    /// Whether it stood in quotes, so that nothing in it has a meaning.
    pub(crate) quoted: bool,
    /// Whether an `@` stood before these quotes: see [`split_with_names`].
    pub(crate) named: bool,
}

impl Word {
    /// Whether it is this word of a language: one in quotes never is.
    pub(crate) fn is(&self, keyword: &str) -> bool {
        !self.quoted && self.bytes == keyword.as_bytes()
    }

    /// The word as text.
    pub(crate) fn text(&self) -> Result<&str, String> {
        std::str::from_utf8(&self.bytes).map_err(|_| format!("{} is not UTF-8", quote(&self.bytes)))
    }
}

/// Splits a line into its words.
pub(crate) fn split(line: &[u8]) -> Result<Vec<Word>, String> {
    split_by(line, |rest| first(rest, |_| false))
}

/// The same where `@"a b"` is a word, too: the name `a b`.
pub(crate) fn split_with_names(line: &[u8]) -> Result<Vec<Word>, String> {
    split_by(line, |rest| match rest {
        [b'@', b'"' | b'\'', ..] => {
            let (mut word, behind) = first(&rest[1..], |_| false)?;
            word.named = true;
            Ok((word, behind))
        }
        _ => first(rest, |_| false),
    })
}

fn split_by(
    line: &[u8],
    first: impl Fn(&[u8]) -> Result<(Word, &[u8]), String>,
) -> Result<Vec<Word>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii();
    while !rest.is_empty() {
        let (word, behind) = first(rest)?;
        words.push(word);
        rest = behind.trim_ascii_start();
    }
    Ok(words)
}

/// The word with which `text` begins, and what stands behind it. A bare word ends before a blank,
/// and before whatever `ends` says.
pub(crate) fn first(text: &[u8], ends: impl Fn(u8) -> bool) -> Result<(Word, &[u8]), String> {
    let (bytes, rest) = match text {
        [b'"', inside @ ..] => double_quoted(inside)?,
        [b'\'', inside @ ..] => {
            let end = inside.iter().position(|&byte| byte == b'\'');
            let end = end.ok_or("a quote ' is not closed")?;
            (inside[..end].to_vec(), &inside[end + 1..])
        }
        _ => {
            let is_end = |byte: &u8| byte.is_ascii_whitespace() || ends(*byte);
            let end = text.iter().position(is_end).unwrap_or(text.len());
            let word = Word {
                bytes: text[..end].to_vec(),
                quoted: false,
                named: false,
            };
            return Ok((word, &text[end..]));
        }
    };
    if let Some(&next) = rest.first()
        && !next.is_ascii_whitespace()
        && !ends(next)
    {
        return Err("behind a closing quote there has to be a blank".to_owned());
    }
    let word = Word {
        bytes,
        quoted: true,
        named: false,
    };
    Ok((word, rest))
}

/// What stands up to the closing quote, and what stands behind it.
fn double_quoted(inside: &[u8]) -> Result<(Vec<u8>, &[u8]), String> {
    let unclosed = || "a quote \" is not closed".to_owned();
    let mut bytes = Vec::new();
    let mut rest = inside;
    loop {
        let (&byte, behind) = rest.split_first().ok_or_else(unclosed)?;
        rest = behind;
        match byte {
            b'"' => return Ok((bytes, rest)),
            b'\\' => rest = escape(rest, &mut bytes)?,
            byte => bytes.push(byte),
        }
    }
}

/// Reads what stands behind a backslash.
fn escape<'a>(text: &'a [u8], bytes: &mut Vec<u8>) -> Result<&'a [u8], String> {
    let (&letter, rest) = text.split_first().ok_or("a quote \" is not closed")?;
    bytes.push(match letter {
        b'\\' | b'"' | b'\'' => letter,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'0' => 0,
        b'x' => {
            let digits = rest.get(..2).and_then(|digits| number(digits, 16));
            let byte = digits.and_then(|number| u8::try_from(number).ok());
            bytes.push(byte.ok_or("\\x takes two hexadecimal digits")?);
            return Ok(&rest[2..]);
        }
        b'u' => {
            let wrong = "\\u takes a character's number: \\u{1f512}";
            let inside = rest.strip_prefix(b"{").ok_or(wrong)?;
            let end = inside.iter().position(|&byte| byte == b'}').ok_or(wrong)?;
            let character = number(&inside[..end], 16).and_then(char::from_u32);
            let mut buffer = [0; 4];
            let encoded = character.ok_or(wrong)?.encode_utf8(&mut buffer);
            bytes.extend_from_slice(encoded.as_bytes());
            return Ok(&inside[end + 1..]);
        }
        other => {
            return Err(format!(
                "unknown escape \\{}: there are \\\\ \\\" \\' \\n \\r \\t \\0 \\xNN \\u{{N}}",
                other.escape_ascii()
            ));
        }
    });
    Ok(rest)
}

/// Digits only: `from_str_radix` would take a sign.
fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let text = std::str::from_utf8(digits).ok()?;
    let digits = text.chars().all(|digit| digit.is_digit(radix));
    digits.then(|| u32::from_str_radix(text, radix).ok())?
}

/// The word that stands for these bytes: on one line, harmless on a terminal, and read back as
/// what it was.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '"' | '\\' => out.extend(['\\', character]),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                character if is_plain(character) || character == ' ' => out.push(character),
                // A `String` takes it all.
                character => {
                    let _ = write!(out, "\\u{{{:x}}}", u32::from(character));
                }
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// The bytes as they are if that is a word which can mean nothing else, else in quotes.
pub(crate) fn word(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if is_bare(text) => text.to_owned(),
        _ => quote(bytes),
    }
}

fn is_bare(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['@', '#'])
        && text
            .chars()
            .all(|character| is_plain(character) && !"\"'\\=".contains(character))
}

/// Whether a character shows as itself and takes its own place: no blank, no control character, and
/// none of those that turn the direction of the text or cannot be seen.
fn is_plain(character: char) -> bool {
    is_harmless(character) && !character.is_whitespace()
}

/// Whether a terminal shows a character where it stands: no control character, no line break, and none of those
/// that turn the direction of the text or cannot be seen.
pub(crate) fn is_harmless(character: char) -> bool {
    let invisible = matches!(u32::from(character),
        0xad | 0x34f | 0x61c | 0x115f | 0x1160 | 0x17b4 | 0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
        | 0x2028..=0x202e | 0x2060..=0x206f | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0
        | 0xfff9..=0xfffb | 0xe0000..=0xe0fff);
    !character.is_control() && !invisible
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts(line: &str) -> Result<Vec<String>, String> {
        let words = split(line.as_bytes())?;
        Ok(words
            .iter()
            .map(|word| String::from_utf8_lossy(&word.bytes).into_owned())
            .collect())
    }

    #[test]
    fn bare_words_are_taken_as_they_are() {
        assert_eq!(texts("  put a\tb\\n  ").unwrap(), ["put", "a", "b\\n"]);
        assert_eq!(
            texts(r#"push {"a":1} it's"#).unwrap(),
            ["push", r#"{"a":1}"#, "it's"]
        );
        assert!(texts(" \t ").unwrap().is_empty());
    }

    #[test]
    fn quotes() {
        assert_eq!(
            texts(r#"put "a b" 'c "d" \n'"#).unwrap(),
            ["put", "a b", r#"c "d" \n"#]
        );
        assert_eq!(texts(r#""" ''"#).unwrap(), ["", ""]);
        assert_eq!(
            texts(r#""\"\\\n\t\x41\u{1f512}\0""#).unwrap(),
            ["\"\\\n\tA🔒\0"]
        );
        assert_eq!(split(br#""\xff""#).unwrap()[0].bytes, [0xff]);
    }

    #[test]
    fn what_is_no_word_says_why() {
        for (line, why) in [
            ("\"a", "not closed"),
            ("'a", "not closed"),
            ("\"a\\", "not closed"),
            ("\"a\"b", "blank"),
            ("'a''b'", "blank"),
            (r#""\q""#, "\\q"),
            (r#""\x4""#, "two hex"),
            (r#""\x+4""#, "two hex"),
            (r#""\u{d800}""#, "\\u"),
            (r#""\u{}""#, "\\u"),
            (r#""\u41""#, "\\u"),
        ] {
            let said = texts(line).unwrap_err();
            assert!(said.contains(why), "{line}: {said}");
        }
    }

    #[test]
    fn a_quoted_word_stays_on_its_line() {
        assert_eq!(quote(b"a\nb\x1b[2J\xff"), r#""a\nb\u{1b}[2J\xff""#);
        assert_eq!(
            quote("\u{202e}x\u{2028}".as_bytes()),
            r#""\u{202e}x\u{2028}""#
        );
        assert_eq!(word(b"node-1:80"), "node-1:80");
        assert_eq!(word("ключ".as_bytes()), "ключ");
        for quoted in ["", "a b", "a=1", "@a", "\"", "it's", "\u{a0}", "\\"] {
            assert!(word(quoted.as_bytes()).starts_with('"'), "{quoted:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(words in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12), 0..5)) {
            let line: Vec<String> = words.iter().map(|bytes| word(bytes)).collect();
            let line = line.join(" ");
            prop_assert!(!line.contains(char::is_control), "{}", line);
            let read: Vec<Vec<u8>> = split(line.as_bytes()).unwrap().into_iter().map(|word| word.bytes).collect();
            prop_assert_eq!(read, words);
        }

        #[test]
        fn text_is_read_back(text in "\\PC{0,12}|[\u{0}-\u{ff}\u{2028}\\\\\"' ]{0,12}") {
            let read = split(quote(text.as_bytes()).as_bytes()).unwrap();
            prop_assert_eq!(&read, &[Word { bytes: text.into_bytes(), quoted: true, named: false }]);
        }

        #[test]
        fn nothing_panics(line in prop::collection::vec(any::<u8>(), 0..40), tricky in "[\"'\\\\xu{}4 a]{0,20}") {
            let _ = split(&line);
            let _ = split(tricky.as_bytes());
        }
    }
}
