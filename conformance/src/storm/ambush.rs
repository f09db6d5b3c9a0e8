//! Where a fault waits for its victim: between reading what a lock protects and writing it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

const NOBODY: usize = usize::MAX;
const ANYBODY: usize = usize::MAX - 1;

/// Holdings last some milliseconds; a fault that goes looking for a holder comes too late. So the next
/// holder stops in the middle of its work until the fault is over.
#[derive(Debug)]
pub(super) struct Ambush(AtomicUsize);

impl Ambush {
    pub(super) const fn new() -> Self {
        Self(AtomicUsize::new(NOBODY))
    }

    /// Waits for a holder, who stops where it is; none if nobody comes within `patience`.
    pub(super) async fn lay(&self, patience: Duration) -> Option<usize> {
        let until = Instant::now() + patience;
        self.0.store(ANYBODY, Ordering::SeqCst);
        loop {
            match self.0.load(Ordering::SeqCst) {
                NOBODY => return None,
                ANYBODY if Instant::now() < until => {}
                ANYBODY => {
                    self.lift();
                    return None;
                }
                client => return Some(client),
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Whoever was stopped goes on.
    pub(super) fn lift(&self) {
        self.0.store(NOBODY, Ordering::SeqCst);
    }

    /// Stops here if the ambush is laid, until it is lifted. Says whether it was.
    pub(super) async fn pass(&self, client: usize) -> bool {
        let order = Ordering::SeqCst;
        let fell = self.0.compare_exchange(ANYBODY, client, order, order);
        if fell.is_err() {
            return false;
        }
        while self.0.load(order) == client {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        true
    }
}
