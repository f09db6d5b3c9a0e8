//! The locks, atomics and notifications of the runtime. Under `cfg(shuttle)` each of their operations is a scheduling point
//! of shuttle, so that `extra/interleavings` can explore them.

#[cfg(not(shuttle))]
pub(crate) use parking_lot::{Condvar, Mutex};
#[cfg(not(shuttle))]
pub(crate) use std::sync::OnceLock;
#[cfg(not(shuttle))]
pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
#[cfg(not(shuttle))]
pub(crate) use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

#[cfg(shuttle)]
pub(crate) use self::explored::{Condvar, Mutex, Notify, OnceLock, OwnedSemaphorePermit, Semaphore, fault};
#[cfg(shuttle)]
pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Shuttle's types with the interface of `parking_lot`, and tokio's with scheduling points.
#[cfg(shuttle)]
mod explored {
    use std::ops::{Deref, DerefMut};
    use std::pin::Pin;
    use std::sync::{Arc, PoisonError};
    use std::task::{Context, Poll};
    use std::time::Duration;

    use shuttle::sync::atomic::{AtomicBool, Ordering};
    use tokio::sync::futures::Notified as TokioNotified;

    /// The planted fault of this run, which the exploration has to find.
    pub(crate) mod fault {
        use std::sync::Mutex;

        static PLANTED: Mutex<&str> = Mutex::new("");

        pub(crate) fn plant(fault: &'static str) {
            *PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = fault;
        }

        pub(crate) fn is(fault: &str) -> bool {
            *PLANTED.lock().unwrap_or_else(std::sync::PoisonError::into_inner) == fault
        }
    }

    /// Lets shuttle run another task. Not a yield, which some schedulers treat as a sign of waiting.
    fn point() {
        AtomicBool::new(false).load(Ordering::SeqCst);
    }

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(shuttle::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            MutexGuard(Some(self.0.lock().unwrap_or_else(PoisonError::into_inner)))
        }
    }

    /// `None` only while a condition variable has the guard.
    pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.0.as_ref().expect("the guard is here")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.0.as_mut().expect("the guard is here")
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct Condvar(shuttle::sync::Condvar);

    impl Condvar {
        pub(crate) fn notify_all(&self) {
            if !fault::is("a session ends unnoticed") {
                self.0.notify_all();
            }
        }

        /// Waits without a limit: shuttle has no time, so a notification that is missing becomes a deadlock.
        pub(crate) fn wait_while_for<T>(
            &self,
            guard: &mut MutexGuard<'_, T>,
            mut condition: impl FnMut(&mut T) -> bool,
            _limit: Duration,
        ) {
            while condition(&mut **guard) {
                let waiting = guard
                    .0
                    .take()
                    .map(|held| self.0.wait(held).unwrap_or_else(PoisonError::into_inner));
                guard.0 = waiting;
            }
        }
    }

    #[derive(Debug)]
    pub(crate) struct OnceLock<T>(std::sync::OnceLock<T>);

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self(std::sync::OnceLock::new())
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            point();
            let free = fault::is("a value is looked at, then set") && self.0.get().is_none();
            if free {
                point();
            }
            match self.0.set(value) {
                Err(value) if !free => Err(value),
                _ => Ok(()),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            point();
            self.0.get()
        }
    }

    #[derive(Debug)]
    pub(crate) struct Notify(tokio::sync::Notify);

    impl Notify {
        pub(crate) fn new() -> Self {
            Self(tokio::sync::Notify::new())
        }

        pub(crate) fn notify_waiters(&self) {
            point();
            self.0.notify_waiters();
        }

        pub(crate) fn notify_one(&self) {
            point();
            if !fault::is("one notification is lost") {
                self.0.notify_one();
            }
        }

        pub(crate) fn notified(&self) -> Notified<'_> {
            // The first part of the call: tokio counts from here which `notify_waiters` concern it.
            let lazy = fault::is("a value is looked at, then awaited");
            Notified {
                notify: &self.0,
                waiting: (!lazy).then(|| Box::pin(self.0.notified())),
            }
        }
    }

    pub(crate) struct Notified<'a> {
        notify: &'a tokio::sync::Notify,
        waiting: Option<Pin<Box<TokioNotified<'a>>>>,
    }

    impl Notified<'_> {
        pub(crate) fn enable(self: Pin<&mut Self>) -> bool {
            point();
            let enabled = self
                .get_mut()
                .waiting
                .as_mut()
                .is_some_and(|waiting| waiting.as_mut().enable());
            point();
            enabled
        }
    }

    impl Future for Notified<'_> {
        type Output = ();

        fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
            point();
            let this = self.get_mut();
            let notify = this.notify;
            let waiting = this.waiting.get_or_insert_with(|| Box::pin(notify.notified()));
            waiting.as_mut().poll(context)
        }
    }

    #[derive(Debug)]
    pub(crate) struct Semaphore(Arc<tokio::sync::Semaphore>);

    impl Semaphore {
        pub(crate) fn new(permits: usize) -> Self {
            let more = usize::from(fault::is("there are more permits than slots"));
            Self(Arc::new(tokio::sync::Semaphore::new(permits + more)))
        }

        pub(crate) async fn acquire_owned(self: Arc<Self>) -> Result<OwnedSemaphorePermit, tokio::sync::AcquireError> {
            point();
            let permit = Arc::clone(&self.0).acquire_owned().await?;
            point();
            Ok(OwnedSemaphorePermit(Some(permit)))
        }
    }

    #[derive(Debug)]
    pub(crate) struct OwnedSemaphorePermit(Option<tokio::sync::OwnedSemaphorePermit>);

    impl Drop for OwnedSemaphorePermit {
        fn drop(&mut self) {
            point();
            drop(self.0.take());
        }
    }
}
