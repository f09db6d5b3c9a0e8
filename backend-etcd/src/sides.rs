//! Readers and writers in one line: who waits for whom, and how a key says which it is.

use tenure_core::backend::Side;

/// How a line tells its readers from its writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Sides {
    /// Everybody writes: a lock.
    Alone,
    /// By the value, `r <nonce>` or `w <nonce>`. Turning a writer into a reader is a put, which
    /// keeps the create revision: the token, and the place.
    InValue,
    /// By the key, `<line>read/...` or `<line>write/...`: the layout of Go's recipe.
    InKey,
}

/// All readers' values are below this, and no writer's.
pub(crate) const ABOVE_READERS: &str = "s";

impl Sides {
    /// What an ask of `side` has as its value.
    pub(crate) fn value(self, side: Side, nonce: u64) -> String {
        match (self, side) {
            (Self::Alone | Self::InKey, _) => format!("{nonce:x}"),
            (Self::InValue, Side::Read) => format!("r {nonce:x}"),
            (Self::InValue, Side::Write) => format!("w {nonce:x}"),
        }
    }

    /// What the keys of `side` begin with, in the line under `line`.
    pub(crate) fn stem(self, side: Side, line: &str) -> String {
        match (self, side) {
            (Self::Alone | Self::InValue, _) => line.to_owned(),
            (Self::InKey, Side::Read) => format!("{line}read/"),
            (Self::InKey, Side::Write) => format!("{line}write/"),
        }
    }

    /// The side of a key in the line under `line`.
    pub(crate) fn of(self, line: &str, key: &[u8], value: &[u8]) -> Side {
        let reads = match self {
            Self::Alone => false,
            Self::InValue => reads(value),
            // As for Go: its readers wait for what begins so, its writers for everything.
            Self::InKey => !key
                .get(line.len()..)
                .is_some_and(|rest| rest.starts_with(b"write")),
        };
        if reads { Side::Read } else { Side::Write }
    }

    /// Whether a list of keys without their values says who reads.
    pub(crate) fn show_in_keys(self) -> bool {
        self != Self::InValue
    }
}

/// Whether `value`, in a line of [`Sides::InValue`], is a reader's.
pub(crate) fn reads(value: &[u8]) -> bool {
    value < ABOVE_READERS.as_bytes()
}

/// Whether `side` waits for one of the side `before` that stands before it.
pub(crate) fn waits_for(side: Side, before: Side) -> bool {
    side == Side::Write || before == Side::Write
}
