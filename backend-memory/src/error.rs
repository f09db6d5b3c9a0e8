//! The errors that the embedded store makes.

use std::time::Duration;

use tenure_core::{Effect, Error, ErrorKind};

/// A link fault swallowed the request or its answer.
pub(crate) fn no_answer() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "no answer came back over the link (an injected fault): try again",
    )
    .with_effect(Effect::Unknown)
}

/// The TTL asked for is above the maximum.
pub(crate) fn too_long(ttl: Duration, most: Duration) -> Error {
    Error::new(
        ErrorKind::Config,
        format!("a TTL of {ttl:?} is above the embedded store's maximum of {most:?}"),
    )
}

/// An operator took a wait out of its line: the next attempt goes to the end.
pub(crate) fn removed_from_line() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "an operator removed this wait from its line: try again",
    )
}

/// The session carries as much as it may.
pub(crate) fn full(capacity: usize) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!(
            "the session holds or waits for {capacity} things, the most that this store carries for one session: open another session"
        ),
    )
}

/// A barrier has one hold at a time.
pub(crate) fn held() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "the barrier is held already: wait for its release",
    )
}

/// The participants of a double barrier do not agree.
pub(crate) fn another_count(count: u32) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("those who are there gave another count: {count}"),
    )
}

/// A double barrier is closed until all have left.
pub(crate) fn one_too_many() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "one too many: all have entered already, and not all have left; enter again when they have",
    )
}

/// Asked about a commit that is settled, or was never sent.
pub(crate) fn no_such_commit() -> Error {
    Error::new(
        ErrorKind::Internal,
        "nothing is known of this commit any more",
    )
}
