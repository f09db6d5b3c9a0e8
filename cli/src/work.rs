//! A session, what is done in it, and its end.

use std::time::Duration;

use tenure::{Error, Session};

use crate::args::Global;
use crate::exit::{self, Failure};
use crate::signals::Signals;

/// How long the end may take once everything is let go of. The TTL bounds the rest.
const CLOSING: Duration = Duration::from_secs(3);

/// Opens a session, does `work` in it, and ends it, whatever came of the work. Signals do not end
/// the process meanwhile: `work` has to look at them.
pub(crate) async fn in_session(
    global: &Global,
    work: impl AsyncFnOnce(&Session, &mut Signals) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    global.hint_if_private();
    let mut signals = Signals::listen()?;
    let session = tokio::select! {
        biased;
        signal = signals.ending() => return Ok(exit::of_signal(signal)),
        session = global.open() => session?,
    };
    let done = work(&session, &mut signals).await;
    close(session, &mut signals).await;
    done
}

/// What `work` answers, unless a signal comes first. The work is dropped then: a wait is withdrawn
/// by that, and closing the session waits for it.
pub(crate) async fn unless_told<T>(
    signals: &mut Signals,
    work: impl Future<Output = tenure::Result<T>>,
) -> Result<tenure::Result<T>, Failure> {
    tokio::select! {
        biased;
        signal = signals.ending() => Err(Failure::interrupted(signal, "stopped by a signal")),
        done = work => Ok(done),
    }
}

/// One question to the store, or one change of it, in a session of its own.
pub(crate) async fn ask<T>(
    global: &Global,
    question: impl AsyncFnOnce(&Session) -> tenure::Result<T>,
    tell: impl FnOnce(T) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    in_session(global, async |session, signals| {
        let answer = unless_told(signals, question(session)).await?;
        // Nothing was held, so nothing can have been lost.
        tell(answer.map_err(Failure::waiting)?)
    })
    .await
}

/// Ends the session, so that nothing of it is left in the store when this process has ended.
pub(crate) async fn close(session: Session, signals: &mut Signals) {
    let closed = |closed: Result<(), Error>| match closed {
        Ok(()) => {}
        Err(error) => tracing::debug!(%error, "closing the session"),
    };
    tokio::select! {
        done = tokio::time::timeout(CLOSING, session.close()) => match done {
            Ok(done) => closed(done),
            Err(_) => tracing::debug!("the session was not closed in time: its TTL ends it"),
        },
        _ = signals.hurry() => {}
    }
}
