//! The fencing token.

use std::fmt;

/// The number that a holder passes to the resource it protects, so that the resource can refuse
/// a holder that came before (see [`FenceGate`](crate::FenceGate)).
///
/// Every grant's token is greater than every token granted before for the same name (rule L2).
/// Tokens stay below 2^53, so that they survive JSON, Lua and spreadsheets.
///
/// The pattern is that of "How to do distributed locking" (M. Kleppmann, 2016) and of Chubby's
/// sequencers (M. Burrows, OSDI 2006).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    /// The greatest token, 2^53 - 1.
    pub const MAX: Self = Self((1 << 53) - 1);

    /// A token from its number: for backends, and for the resource's side, which reads it off
    /// the wire.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number.
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

impl std::str::FromStr for FencingToken {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}
