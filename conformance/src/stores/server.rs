//! What the harnesses of real servers share.

use std::sync::atomic::{AtomicU64, Ordering};

use tenure_core::{Namespace, Result};
use tenure_testbed::{Direction, Flow, Proxy};

use crate::harness::Link;

/// A namespace that no other case has.
pub(super) fn fresh_namespace(parent: &str) -> Result<Namespace> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    Namespace::new(format!(
        "{parent}-{}-{:x}-{}",
        std::process::id(),
        since.as_millis(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ))
}

impl Link for Proxy {
    fn silence(&self) {
        Proxy::silence(self);
    }

    fn mute(&self) {
        self.set(Direction::Down, Flow::Drop);
    }

    fn hold(&self) {
        self.set(Direction::Down, Flow::Hold);
    }

    fn heal(&self) {
        Proxy::heal(self);
    }

    fn requests(&self) -> Option<u64> {
        Some(self.pieces(Direction::Up))
    }

    fn cut(&self) {
        Proxy::cut(self);
    }

    fn cut_midway(&self, bytes: u64) {
        let _fired = Proxy::cut_after(self, Direction::Down, bytes);
    }
}
