//! Values, as far as every store carries them.

use crate::{Error, ErrorKind, Result};

/// The largest value, in bytes: what every store carries.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;

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
