//! The resource's check of fencing tokens.

use parking_lot::Mutex;

use crate::token::FencingToken;

/// A gate that protects a resource in this process: it rejects tokens older than the newest one seen.
///
/// A lease alone cannot stop a stale holder that was paused for longer than its TTL and then writes. The resource can, by
/// comparing tokens. Put the gate where the writes arrive, one per protected resource. For a resource in a database, compare
/// in the statement that writes: `UPDATE ... SET value = $1, fence = $2 WHERE id = $3 AND fence <= $2`. If no row changed,
/// the token is stale.
///
/// ```
/// use tenure_core::{FenceGate, FencingToken};
///
/// let account = FenceGate::new(100);
/// let (old, new) = (FencingToken::new(7), FencingToken::new(8));
/// assert!(account.write(old, |balance| *balance -= 10).is_ok());
/// assert!(account.write(new, |balance| *balance -= 10).is_ok());
/// // The first holder wakes up from a long pause: its write is refused.
/// assert!(account.write(old, |balance| *balance = 0).is_err());
/// assert_eq!(account.read(|balance| *balance), 80);
/// ```
#[derive(Debug, Default)]
pub struct FenceGate<T = ()>(Mutex<Guarded<T>>);

#[derive(Debug, Default)]
struct Guarded<T> {
    newest: Option<FencingToken>,
    value: T,
}

impl<T> FenceGate<T> {
    /// Creates a gate for `value` that has seen no token yet.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(Guarded { newest: None, value }))
    }

    /// Creates a gate that has already seen `newest`, for a resource that stores the token with its data.
    pub const fn with_newest(value: T, newest: FencingToken) -> Self {
        Self(Mutex::new(Guarded {
            newest: Some(newest),
            value,
        }))
    }

    /// Runs `write` if no newer token has been seen. The check and the write are one atomic step.
    ///
    /// The same token may write any number of times.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a newer token has been seen; `write` did not run.
    pub fn write<R>(&self, token: FencingToken, write: impl FnOnce(&mut T) -> R) -> Result<R, StaleToken> {
        // The token is recorded before the write: a panic in `write` must not let an older token in.
        let mut guarded = self.0.lock();
        match guarded.newest {
            Some(newest) if newest > token => Err(StaleToken { offered: token, newest }),
            _ => {
                guarded.newest = Some(token);
                Ok(write(&mut guarded.value))
            }
        }
    }

    /// Runs `read` on the value. Reading needs no token.
    pub fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.lock().value)
    }

    /// Returns the newest token seen.
    pub fn newest(&self) -> Option<FencingToken> {
        self.0.lock().newest
    }
}

impl FenceGate<()> {
    /// Records `token`, for a resource outside this process.
    ///
    /// A newer token may be admitted before the caller acts. Only [`write`](Self::write) makes the check and the
    /// action one atomic step.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a newer token has been seen.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        self.write(token, |()| ())
    }
}

/// The error for a token older than the newest that the gate has seen: its sender has lost the holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "stale fencing token {offered}: the resource has seen {newest}, so the sender has lost its holding and must stop"
)]
pub struct StaleToken {
    /// The rejected token.
    pub offered: FencingToken,
    /// The newest token seen.
    pub newest: FencingToken,
}
