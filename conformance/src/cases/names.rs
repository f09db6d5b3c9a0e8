//! Names: rule L8.

use tenure_core::ErrorKind;

use super::tools::*;
use crate::case::Verdict;
use crate::harness::Harness;

/// Names that a careless key layout, a query or a shell would confuse.
const HOSTILE: &[&str] = &[
    "a",
    "A",
    "a/",
    "/a",
    "a/b",
    "a//b",
    "a/b/",
    "ab",
    "aa",
    "a-1",
    "a/1",
    "a.b",
    "a:b",
    "a\\b",
    "%2F",
    "a%2Fb",
    "a%2fb",
    "a%252Fb",
    "%",
    "%00",
    "../",
    "..",
    ".",
    "../a",
    "/",
    "//",
    " ",
    "  ",
    "a ",
    " a",
    "a\tb",
    "\n",
    "\r\n",
    "'",
    "\"",
    "`",
    "'; DROP TABLE locks; --",
    "$(a)",
    "{a}",
    "[a]",
    "*",
    "a*",
    "?",
    "#a",
    "a?ttl=1s",
    "lock",
    "default",
    "tenure",
    "é",
    "e\u{301}",
    "ключ",
    "ß",
    "SS",
    "ı",
    "i",
    "🔒",
    "\u{202e}a",
    "\u{feff}a",
    "\u{1}",
    "\u{7f}",
    "\u{10ffff}",
];

/// The hostile ones, and two of full length that differ in their last byte alone.
fn hostile() -> Vec<String> {
    let long = "x".repeat(tenure_core::MAX_NAME_BYTES - 1);
    let mut names: Vec<String> = HOSTILE.iter().map(|&name| name.to_owned()).collect();
    names.extend([format!("{long}y"), format!("{long}z")]);
    names
}

/// L8: different names never block each other; equal ones do.
pub async fn l8_names_are_isolated(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let other = open(harness, LONG).await?;
    let names = hostile();
    let mut guards = Vec::new();
    for name in &names {
        match promptly("try_lock", session.locker(name)?.try_lock()).await? {
            Ok(guard) => guards.push(guard),
            Err(error) => ensure!(false, "{name:?} is blocked by another name: {error}"),
        }
    }
    for name in &names {
        ensure!(
            is_taken(&other.locker(name)?).await?,
            "{name:?} is held, and was granted to another"
        );
    }
    // Releasing one frees that one alone.
    let (first, rest) = (guards.remove(0), guards);
    give_back(first).await?;
    give_back(becomes_free(PROMPT, "after its release", &other.locker(&names[0])?).await?).await?;
    for name in &names[1..] {
        ensure!(
            is_taken(&other.locker(name)?).await?,
            "releasing {:?} freed {name:?}",
            names[0]
        );
    }
    ensure!(
        rest.iter().all(|guard| guard.is_valid()),
        "releasing {:?} cost another guard its validity",
        names[0]
    );
    held!(
        "{} names were held side by side, each of them exclusively",
        names.len()
    )
}

/// L8: names that no store could take are refused before anything is sent.
pub async fn l8_bad_names_are_refused(harness: &dyn Harness) -> Verdict {
    let session = open(harness, LONG).await?;
    let most = tenure_core::MAX_NAME_BYTES;
    for (what, name) in [
        ("an empty name", String::new()),
        ("a name with a NUL", "a\0b".to_owned()),
        ("a name that is too long", "x".repeat(most + 1)),
        ("a name of too many bytes", "é".repeat(most / 2 + 1)),
    ] {
        refused(what, session.locker(&name), &[ErrorKind::InvalidName])?;
    }
    let longest = session.locker("x".repeat(most))?;
    give_back(promptly("try_lock", longest.try_lock()).await??).await?;
    held!("empty, NUL-bearing and oversized names are refused, {most} bytes are taken")
}
