//! Runners: leaders and consumers that go on in another session after a loss.

use std::fmt;
use std::future::pending;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse, FusedFuture};

mod consumer;
mod leader;
mod supervised;

pub use consumer::ConsumeOptions;
pub use leader::{Lead, LeadOptions};
pub use supervised::SupervisedSession;

/// A request to stop, which may come at any time, or never.
struct Stop(Fuse<BoxFuture<'static, ()>>);

impl Default for Stop {
    fn default() -> Self {
        Self::at(pending())
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request to stop")
    }
}

impl Stop {
    fn at(request: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(request.boxed().fuse())
    }

    /// Returns whether the request has come.
    fn has_come(&self) -> bool {
        self.0.is_terminated()
    }

    /// Waits for the request, for ever once it has come.
    async fn comes(&mut self) {
        (&mut self.0).await;
    }
}
