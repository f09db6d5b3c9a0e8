//! Fencing tokens.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A number that the holder sends to the protected resource, so that the resource can reject a stale holder (see
/// [`FenceGate`](crate::FenceGate)).
///
/// Every grant's token is greater than all tokens granted before for the same name (rule L2). Tokens stay below
/// 2^53, so that JSON, Lua and spreadsheets represent them exactly.
///
/// The pattern follows "How to do distributed locking" (M. Kleppmann, 2016) and Chubby's sequencers (M. Burrows,
/// OSDI 2006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FencingToken(u64);

impl FencingToken {
    /// The greatest token, 2^53 - 1.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// Creates a token from its number, for backends and for resources that receive it.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> Self {
        token.0
    }
}

/// Converts to a `bigint` of SQL. A store's tokens are at most [`FencingToken::MAX`]; a greater number becomes `i64::MAX`.
impl From<FencingToken> for i64 {
    fn from(token: FencingToken) -> Self {
        Self::try_from(token.0).unwrap_or(Self::MAX)
    }
}

impl FromStr for FencingToken {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
