//! Values, as far as every store carries them.

use std::fmt;

use crate::{Error, ErrorKind, Result};

/// The largest value, in bytes: what every store carries.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// Shows how long a payload is, and nothing of it: for the `Debug` of what carries one.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(pub &'a [u8]);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Refuses what some store would refuse, before anything is sent.
pub(crate) fn check(value: &[u8]) -> Result<()> {
    if value.len() <= MAX_VALUE_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!(
            "a value may have at most {MAX_VALUE_BYTES} bytes, this one has {}: store it elsewhere and pass its address",
            value.len()
        ),
    ))
}
