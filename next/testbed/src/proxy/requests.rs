//! Requests of Redis in a stream of bytes, for faults that concern whole requests.

/// Answers nothing to the next request, and nothing to itself.
const SKIP: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$4\r\nSKIP\r\n";

/// Returns the number at the beginning of `bytes` behind `mark`, and the rest behind its line.
fn number(bytes: &[u8], mark: u8) -> Option<(usize, &[u8])> {
    let line = bytes.strip_prefix(&[mark])?;
    let end = line.windows(2).position(|window| window == b"\r\n")?;
    let number = std::str::from_utf8(&line[..end]).ok()?.parse().ok()?;
    Some((number, &line[end + 2..]))
}

/// Returns the words of the first request and the rest; `None` if it is not whole.
fn first(bytes: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (count, mut rest) = number(bytes, b'*')?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, from) = number(rest, b'$')?;
        words.push(from.get(..length)?);
        rest = from.get(length + 2..)?;
    }
    Some((words, rest))
}

fn is_script(words: &[&[u8]]) -> bool {
    matches!(words, [b"EVAL" | b"EVALSHA", ..])
}

/// Returns whether one of the whole requests of `bytes` is a script whose operation, its first argument behind the key, is not
/// one of `except`.
pub(super) fn has_script_except(mut bytes: &[u8], except: &[&str]) -> bool {
    while let Some((words, rest)) = first(bytes) {
        let operation = words.get(4).copied().unwrap_or_default();
        if is_script(&words) && !except.iter().any(|other| other.as_bytes() == operation) {
            return true;
        }
        bytes = rest;
    }
    false
}

/// Puts a copy before every script, whose answer the server leaves out. A request that is not whole stays in `bytes`.
pub(super) fn repeat_scripts(bytes: &mut Vec<u8>) -> Vec<u8> {
    let (mut doubled, mut left) = (Vec::new(), &bytes[..]);
    while let Some((words, rest)) = first(left) {
        let request = &left[..left.len() - rest.len()];
        if is_script(&words) {
            doubled.extend_from_slice(SKIP);
            doubled.extend_from_slice(request);
        }
        doubled.extend_from_slice(request);
        left = rest;
    }
    let kept = bytes.len() - left.len();
    bytes.drain(..kept);
    doubled
}
