//! Values, and the limits that hold on every store.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// The largest value, in bytes. Every store accepts values of this size.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

/// A payload that `Debug` shows only by its length in bytes, for types that contain one.
#[derive(Clone, Copy)]
pub struct Redacted<'a>(pub &'a [u8]);

impl fmt::Debug for Redacted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// Refuses a value that is larger than some store accepts, before anything is sent.
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
