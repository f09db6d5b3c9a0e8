//! Waiting for conditions, and names that no other test uses.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// The limit of every wait: far above what anything needs, also on a busy machine.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

const PAUSE: Duration = Duration::from_millis(10);

/// Calls `look` until it returns a value. An error is a state that may still change.
///
/// # Errors
///
/// [`Error::NotSeen`] after 30 seconds, with the last error of `look`.
pub fn wait_until<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match look() {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => String::new(),
            Err(error) => format!(": {}", error.with_sources()),
        };
        if start.elapsed() > LIMIT {
            return Err(Error::NotSeen {
                what: what.to_owned(),
                seen,
            });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Returns `label-...`: a name that no other call returns, in any process that uses the same servers. For namespaces, users,
/// databases.
pub fn unique_name(label: &str) -> String {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    // Process ids are used again within a long run; the time is not.
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros();
    let (process, call) = (std::process::id(), CALLS.fetch_add(1, Ordering::Relaxed));
    format!("{label}-{now:x}-{process:x}-{call:x}")
}
