//! A value that is set once and can be awaited.

use std::sync::Arc;

use crate::sync::{Notify, OnceLock};

/// A value that is set once. Clones share it.
#[derive(Debug)]
pub(crate) struct Signal<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: OnceLock<T>,
    notify: Notify,
}

impl<T> Clone for Signal<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Clone + Send + Sync + 'static> Signal<T> {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            value: OnceLock::new(),
            notify: Notify::new(),
        }))
    }

    /// Sets the value unless it is already set. Returns whether this call set it.
    pub(crate) fn set(&self, value: T) -> bool {
        let first = self.0.value.set(value).is_ok();
        if first {
            self.0.notify.notify_waiters();
        }
        first
    }

    pub(crate) fn get(&self) -> Option<T> {
        self.0.value.get().cloned()
    }

    /// Waits until the value is set. Borrows nothing. Cancel safe.
    pub(crate) fn wait(&self) -> impl Future<Output = T> + Send + use<T> {
        let inner = Arc::clone(&self.0);
        async move {
            loop {
                let mut notified = std::pin::pin!(inner.notify.notified());
                // Registers before it reads the value, so that a `set` in between wakes this task.
                notified.as_mut().enable();
                if let Some(value) = inner.value.get() {
                    return value.clone();
                }
                notified.await;
            }
        }
    }
}
