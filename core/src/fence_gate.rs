//! The resource's side of fencing.

use std::sync::{Mutex, PoisonError};

use crate::FencingToken;

/// Protects a resource in this process: refuses whoever comes with a token older than the newest
/// seen.
///
/// A lease alone cannot stop a holder that was paused for longer than its TTL and then goes on
/// writing; the resource can, by comparing tokens. Put the gate where the writes arrive, one for
/// each protected resource. A resource in a database compares in the statement that writes:
/// `UPDATE ... SET value = $1, fence = $2 WHERE id = $3 AND fence <= $2`, and no row means stale.
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
    /// A gate in front of `value` that has seen no token yet.
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(Guarded {
            newest: None,
            value,
        }))
    }

    /// A gate that has seen `newest` already: for a resource that stores it beside its data.
    pub const fn with_newest(value: T, newest: FencingToken) -> Self {
        Self(Mutex::new(Guarded {
            newest: Some(newest),
            value,
        }))
    }

    /// Runs `write` if no newer token has been seen. Check and write are one step: no newer
    /// token can slip in between.
    ///
    /// The same token may write any number of times.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a newer one has been seen; `write` has not run then.
    pub fn write<R>(
        &self,
        token: FencingToken,
        write: impl FnOnce(&mut T) -> R,
    ) -> Result<R, StaleToken> {
        // A writer that panicked leaves its half-done value behind, but never an older token.
        let mut guarded = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match guarded.newest {
            Some(newest) if newest > token => Err(StaleToken {
                offered: token,
                newest,
            }),
            _ => {
                guarded.newest = Some(token);
                Ok(write(&mut guarded.value))
            }
        }
    }

    /// Looks at the value; needs no token.
    pub fn read<R>(&self, read: impl FnOnce(&T) -> R) -> R {
        read(&self.0.lock().unwrap_or_else(PoisonError::into_inner).value)
    }

    /// The newest token seen.
    pub fn newest(&self) -> Option<FencingToken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).newest
    }
}

impl FenceGate<()> {
    /// Notes `token`, for a resource that lives elsewhere.
    ///
    /// A newer token may be admitted before the caller has acted: only [`write`](Self::write)
    /// makes check and action one step.
    ///
    /// # Errors
    ///
    /// [`StaleToken`] if a newer one has been seen.
    pub fn admit(&self, token: FencingToken) -> Result<(), StaleToken> {
        self.write(token, |()| ())
    }
}

/// A token older than the newest that the gate has seen: whoever sent it has lost its holding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stale fencing token {offered}: {newest} has been seen, so its holder has lost the lock")]
pub struct StaleToken {
    /// The token that was refused.
    pub offered: FencingToken,
    /// The newest seen.
    pub newest: FencingToken,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_only_what_is_older() {
        let gate = FenceGate::default();
        for (token, admitted) in [
            (5, true),
            (5, true),
            (4, false),
            (9, true),
            (5, false),
            (9, true),
        ] {
            assert_eq!(
                gate.admit(FencingToken::new(token)).is_ok(),
                admitted,
                "token {token}"
            );
        }
        assert_eq!(gate.newest(), Some(FencingToken::new(9)));
    }

    #[test]
    fn a_panicking_writer_does_not_open_the_gate() {
        let gate = FenceGate::new(0);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gate.write(FencingToken::new(3), |_| panic!("writer"))
        }));
        assert!(panicked.is_err());
        assert!(
            gate.write(FencingToken::new(2), |value| *value = 1)
                .is_err()
        );
    }
}
