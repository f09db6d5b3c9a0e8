//! The password file of PostgreSQL's own programs: `PGPASSFILE`, else `~/.pgpass`.

use std::io::Read as _;
use std::path::{Path, PathBuf};

/// No file of passwords is longer: it may be a device.
const MOST: u64 = 1024 * 1024;

/// The password for a connection, of the first line that fits. `None` without a file, and for one that others could
/// read, as PostgreSQL's own programs have it.
pub(crate) fn find(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let path = path()?;
    let text = read(&path)?;
    // The directory of a socket is this machine.
    let host = if host.starts_with('/') {
        "localhost"
    } else {
        host
    };
    let wanted = [host, &port.to_string(), database, user];
    text.lines().find_map(|line| password(line, &wanted))
}

fn path() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|it| !it.is_empty());
    match set("PGPASSFILE") {
        Some(path) => Some(path.into()),
        None => set("HOME").map(|home| Path::new(&home).join(".pgpass")),
    }
}

fn read(path: &Path) -> Option<String> {
    let file = std::fs::File::open(path).ok()?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if file.metadata().ok()?.permissions().mode() & 0o077 != 0 {
            let path = path.display();
            tracing::warn!(%path, "ignored a password file that others may read: `chmod 600` it");
            return None;
        }
    }
    let mut text = String::new();
    match file.take(MOST).read_to_string(&mut text) {
        Ok(_) => Some(text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "could not read the password file");
            None
        }
    }
}

/// The password of a line `host:port:database:user:password`, if the others are these. `*` is any; a backslash goes
/// before a colon or a backslash that is meant.
fn password(line: &str, wanted: &[&str; 4]) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let mut rest = line;
    for wanted in wanted {
        let (field, wild, after) = field(rest)?;
        if !wild && field != *wanted {
            return None;
        }
        rest = after;
    }
    let (mut password, mut escaped) = (String::new(), false);
    for char in rest.chars() {
        escaped = char == '\\' && !escaped;
        if !escaped {
            password.push(char);
        }
    }
    (!password.is_empty()).then_some(password)
}

/// The first field of the rest of a line, whether it is any, and what follows it.
fn field(rest: &str) -> Option<(String, bool, &str)> {
    let mut field = String::new();
    let mut chars = rest.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            ':' => return Some((field, &rest[..at] == "*", &rest[at + 1..])),
            '\\' => field.extend(chars.next().map(|(_, escaped)| escaped)),
            other => field.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_the_line_that_fits_is_found() {
        const WANTED: [&str; 4] = ["db.internal", "5432", "shop", "app"];
        for (line, found) in [
            ("db.internal:5432:shop:app:secret", Some("secret")),
            ("*:*:*:*:secret", Some("secret")),
            ("*:*:*:app:a\\:b\\\\c", Some("a:b\\c")),
            ("*:*:*:app:a:b", Some("a:b")),
            ("*:*:*:\\a\\p\\p:p", Some("p")),
            ("*:*:*:\\*:p", None),
            ("db:5432:shop:app:secret", None),
            ("db.internal:5433:shop:app:secret", None),
            ("#*:*:*:*:secret", None),
            ("*:*:*:*", None),
            ("*:*:*:*:", None),
            ("", None),
        ] {
            assert_eq!(password(line, &WANTED).as_deref(), found, "{line}");
        }
        let local = ["::1", "1", "d", "u"];
        assert_eq!(password("\\:\\:1:1:d:u:x", &local).as_deref(), Some("x"));
    }
}
