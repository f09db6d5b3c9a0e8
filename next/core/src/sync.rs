//! The locks and atomics of the runtime. Under `cfg(shuttle)` they are shuttle's, so that a test can explore their
//! interleavings.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex};
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(shuttle)]
pub(crate) use self::explored::{Condvar, Mutex};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shuttle's types with the interface of `parking_lot`.
#[cfg(shuttle)]
mod explored {
    use std::sync::PoisonError;
    use std::time::Duration;

    use shuttle::sync::{self, MutexGuard};

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// Waits for nothing: shuttle has no time.
    #[derive(Debug, Default)]
    pub(crate) struct Condvar;

    impl Condvar {
        pub(crate) fn notify_all(&self) {}

        pub(crate) fn wait_while_for<T>(
            &self,
            _guard: &mut MutexGuard<'_, T>,
            _condition: impl FnMut(&mut T) -> bool,
            _limit: Duration,
        ) {
        }
    }
}
