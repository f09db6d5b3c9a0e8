//! The wait of the last reference to a store for the ends of its sessions.

use std::process;
use std::sync::Arc;
use std::time::Duration;

use crate::executor::is_library_thread;
use crate::sync::{Condvar, Mutex};

/// How long the drop of the last reference to a store waits.
const LONGEST: Duration = Duration::from_millis(500);

/// How many sessions of a store have not ended on the library's thread.
struct Unfinished {
    process: u32,
    count: Mutex<usize>,
    ended: Condvar,
}

/// Counts a session of the library's thread until it is dropped.
pub(crate) struct Running(Arc<Unfinished>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.count.lock() -= 1;
        self.0.ended.notify_all();
    }
}

/// A reference from a store, session, handle or guard of the application. The last drop waits for the ends of the sessions,
/// because the process may end next, and a lock that is still held would stay held for its TTL.
pub(crate) struct StoreRef(Arc<Unfinished>);

impl StoreRef {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Unfinished {
            process: process::id(),
            count: Mutex::new(0),
            ended: Condvar::default(),
        }))
    }

    pub(crate) fn enter(&self) -> Running {
        *self.0.count.lock() += 1;
        Running(Arc::clone(&self.0))
    }
}

impl Drop for StoreRef {
    fn drop(&mut self) {
        // On the library's thread nothing could end meanwhile; a forked child has no such thread.
        if is_library_thread() || self.0.process != process::id() {
            return;
        }
        let mut count = self.0.count.lock();
        self.0.ended.wait_while_for(&mut count, |count| *count > 0, LONGEST);
    }
}
