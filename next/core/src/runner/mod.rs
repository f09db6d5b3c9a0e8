//! Runners: leaders and consumers that go on in another session after a loss.

use std::future::pending;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Fuse, FusedFuture};

mod consumer;
mod leader;
mod supervised;

pub use consumer::ConsumeOptions;
pub use leader::{Lead, LeadOptions};
pub use supervised::SupervisedSession;

/// A request to stop, which may come at any time.
struct Stop(Fuse<BoxFuture<'static, ()>>);

impl Stop {
    fn new(until: Option<BoxFuture<'static, ()>>) -> Self {
        Self(until.unwrap_or_else(|| Box::pin(pending())).fuse())
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
