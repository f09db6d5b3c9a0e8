//! The executor of an exploration: each task is one of shuttle's, and all of them count as the library's thread.

use std::cell::Cell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use shuttle::future::JoinHandle;

use crate::error::Result;
use crate::sync::{Condvar, Mutex, fault};

shuttle::thread_local! {
    static IS_LIBRARY_TASK: Cell<bool> = const { Cell::new(false) };
}

/// Runs tasks under shuttle.
#[derive(Clone, Debug, Default)]
pub struct Executor(Arc<Tasks>);

#[derive(Debug, Default)]
struct Tasks {
    running: Mutex<usize>,
    ended: Condvar,
}

/// Counts a task until it is dropped.
struct Counted(Arc<Tasks>);

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.running.lock() -= 1;
        self.0.ended.notify_all();
    }
}

impl Executor {
    /// Returns the executor.
    ///
    /// # Errors
    ///
    /// None.
    pub fn library() -> Result<Self> {
        Ok(Self::default())
    }

    /// Returns the executor.
    ///
    /// # Errors
    ///
    /// None.
    pub fn current() -> Result<Self> {
        Ok(Self::default())
    }

    /// Returns true: the last drop of a store waits for its tasks.
    pub const fn is_library(&self) -> bool {
        true
    }

    /// Does nothing: there is no runtime to enter.
    pub const fn enter(&self) {}

    /// Runs `work` in a task of shuttle.
    pub fn spawn<F>(&self, work: F) -> Option<JoinHandle<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = std::any::type_name::<F>();
        let forgotten = (fault::is("a dropped step is dropped") && task.contains("futures_util"))
            || (fault::is("departures in the background are forgotten") && task.contains("drain"));
        if forgotten {
            return None;
        }
        *self.0.running.lock() += 1;
        let counted = Counted(Arc::clone(&self.0));
        Some(shuttle::future::spawn(async move {
            let _counted = counted;
            IS_LIBRARY_TASK.with(|is| is.set(true));
            work.await
        }))
    }

    /// Blocks until no task is left. A task that never ends shows as a deadlock.
    pub(crate) fn until_idle(&self) {
        let mut running = self.0.running.lock();
        self.0
            .ended
            .wait_while_for(&mut running, |running| *running > 0, Duration::MAX);
    }

    /// Polls `work` in the caller's task.
    ///
    /// # Cancel safety
    ///
    /// As `work`.
    pub async fn run_in_place<F: Future>(&self, work: F) -> F::Output {
        work.await
    }
}

/// Returns whether the caller is a task of an executor.
pub fn is_library_thread() -> bool {
    IS_LIBRARY_TASK.try_with(Cell::get).unwrap_or(true)
}
