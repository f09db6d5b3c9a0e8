//! Reading what may be larger than anybody meant: never more than a limit is kept.

use std::io::{self, BufRead, Read as _};

/// A line, or the end of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// Without its end.
    Whole(Vec<u8>),
    /// It is longer than the limit. What is left of it is still to be read: see [`skip`].
    TooLong,
    End,
}

/// The next line, of `limit` bytes at most.
pub(crate) fn line(input: &mut impl BufRead, limit: usize) -> io::Result<Line> {
    let mut line = Vec::new();
    loop {
        let buffer = match input.fill_buf() {
            Ok(buffer) => buffer,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let end = buffer.iter().position(|&byte| byte == b'\n');
        let part = &buffer[..end.unwrap_or(buffer.len())];
        if part.len() > limit - line.len() {
            return Ok(Line::TooLong);
        }
        line.extend_from_slice(part);
        let (read, over) = (part.len() + usize::from(end.is_some()), buffer.is_empty());
        input.consume(read);
        match (end, over) {
            (Some(_), _) => return Ok(Line::Whole(line)),
            (None, true) if line.is_empty() => return Ok(Line::End),
            (None, true) => return Ok(Line::Whole(line)),
            (None, false) => {}
        }
    }
}

/// Reads what is left of a line, and drops it.
pub(crate) fn skip(input: &mut impl BufRead) -> io::Result<()> {
    input.skip_until(b'\n').map(drop)
}

/// All of standard input; `None` if it is more than `limit` bytes.
pub(crate) fn all(limit: usize) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    io::stdin().lock().take(most).read_to_end(&mut bytes)?;
    Ok((bytes.len() <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_up_to_a_limit() {
        let text: &[u8] = b"ab\n\nabcd\nabc\nabcde";
        let whole = |text: &[u8]| Line::Whole(text.to_vec());
        for capacity in [1, 2, 3, 100] {
            let mut input = io::BufReader::with_capacity(capacity, text);
            assert_eq!(line(&mut input, 3).unwrap(), whole(b"ab"));
            assert_eq!(line(&mut input, 3).unwrap(), whole(b""));
            assert_eq!(line(&mut input, 3).unwrap(), Line::TooLong);
            skip(&mut input).unwrap();
            assert_eq!(line(&mut input, 3).unwrap(), whole(b"abc"));
            assert_eq!(line(&mut input, 3).unwrap(), Line::TooLong);
            skip(&mut input).unwrap();
            assert_eq!(line(&mut input, 3).unwrap(), Line::End);
        }
    }
}
