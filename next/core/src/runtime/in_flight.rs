//! Futures that are polled to their end although their caller drops them.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tracing::{Instrument as _, Span};

use crate::error::{Effect, Error, ErrorKind, Result};
use crate::executor::Executor;

/// A future of a backend. Its caller polls it, with the executor entered. If the caller drops it before its end, it moves to a
/// task of the executor, which polls it to its end and drops the output. The output's `Drop` undoes an outcome without a receiver.
///
/// No output crosses a channel, so none can be lost between a sender and a receiver that is dropped unread.
#[must_use = "a future does nothing unless it is polled"]
pub(crate) struct InFlight<T: Send + 'static> {
    executor: Executor,
    operation: Option<BoxFuture<'static, T>>,
    /// The caller's span, for the task.
    span: Span,
}

impl<T: Send + 'static> InFlight<T> {
    pub(crate) fn new(executor: &Executor, operation: impl Future<Output = T> + Send + 'static) -> Self {
        Self {
            executor: executor.clone(),
            operation: Some(Box::pin(operation)),
            span: Span::current(),
        }
    }
}

impl<T: Send + 'static> Future for InFlight<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        let Some(operation) = &mut this.operation else {
            return Poll::Pending;
        };
        let _entered = this.executor.enter();
        let output = std::task::ready!(operation.as_mut().poll(context));
        this.operation = None;
        Poll::Ready(output)
    }
}

impl<T: Send + 'static> Drop for InFlight<T> {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            let span = std::mem::replace(&mut self.span, Span::none());
            drop(self.executor.spawn(operation.map(drop).instrument(span)));
        }
    }
}

/// Returns the output of `operation`, or an error with an unknown effect if the backend panicked in it.
pub(crate) async fn caught<T>(operation: impl Future<Output = Result<T>>) -> Result<T> {
    let output = AssertUnwindSafe(operation).catch_unwind().await;
    output.unwrap_or_else(|_| {
        let error = Error::new(ErrorKind::Internal, "the backend panicked: please report it");
        Err(error.with_effect(Effect::Unknown))
    })
}
