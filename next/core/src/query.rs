//! Questions to the store, which change nothing.

use futures_util::future::BoxFuture;

use crate::error::{Error, Result};
use crate::name::Name;
use crate::runtime::in_flight::InFlight;
use crate::runtime::retry::{RetryScope, retry};
use crate::runtime::session::SessionRef;

/// Asks until the store answers, fails with an error that a retry cannot cure, or the session ends. Cancel safe: an
/// attempt in flight is polled to its end in the background.
pub(crate) async fn query<T: Send + 'static>(
    session: &SessionRef,
    operation: &'static str,
    name: Option<&Name>,
    attempt: impl Fn() -> BoxFuture<'static, Result<T>>,
) -> Result<T> {
    let in_flight = || InFlight::new(session.executor(), attempt());
    long_poll(session, operation, name, in_flight).await
}

/// Asks like [`query`], for a step that waits in the store and may be dropped.
pub(crate) async fn long_poll<T, F: Future<Output = Result<T>>>(
    session: &SessionRef,
    operation: &'static str,
    name: Option<&Name>,
    attempt: impl Fn() -> F,
) -> Result<T> {
    let asking = retry(session, RetryScope::Valid, Error::is_retryable, attempt);
    let answer = session.run(None, asking).await;
    answer.map_err(|error| session.explain(error, operation, name.map(Name::as_str)))
}
