//! A session, what is done in it, and its end.

use std::time::{Duration, Instant};

use tenure::{Error, ErrorKind, LossReason, Session};

use crate::args::Global;
use crate::exit::{self, Failure};
use crate::signals::Signals;

/// How long the end may take once everything is let go of. The TTL bounds the rest.
const CLOSING: Duration = Duration::from_secs(3);

/// The time between the end of a session and the next.
const BREATH: Duration = Duration::from_millis(50);

/// For how long a waiter without a limit looks for a store that has gone away, at least; else for a TTL.
const LOOKING: Duration = Duration::from_secs(10);

/// Opens a session, does `work` in it, and ends it, whatever came of the work. Signals do not end
/// the process meanwhile: `work` has to look at them.
pub(crate) async fn in_session(
    global: &Global,
    work: impl AsyncFnOnce(&Session, &mut Signals) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    in_sessions(
        global,
        Some(Duration::ZERO),
        async |sessions: &mut Sessions<'_>| work(&sessions.session, &mut sessions.signals).await,
    )
    .await
}

/// The same for work that waits up to `limit`, and may do so in several sessions, one after the other.
pub(crate) async fn in_sessions(
    global: &Global,
    limit: Option<Duration>,
    work: impl AsyncFnOnce(&mut Sessions<'_>) -> Result<u8, Failure>,
) -> Result<u8, Failure> {
    global.hint_if_private();
    let mut signals = Signals::listen()?;
    let until = after(limit);
    let session = tokio::select! {
        biased;
        signal = signals.ending() => return Ok(exit::of_signal(signal)),
        session = open(global, |failed| is_full(failed) && is_before(until)) => session?,
    };
    let mut sessions = Sessions {
        global,
        session,
        signals,
    };
    let done = work(&mut sessions).await;
    let Sessions {
        session,
        mut signals,
        ..
    } = sessions;
    close(session, &mut signals).await;
    done
}

/// The present session of a command that waits, and the signals.
pub(crate) struct Sessions<'a> {
    global: &'a Global,
    pub(crate) session: Session,
    pub(crate) signals: Signals,
}

impl Sessions<'_> {
    /// Waits for something up to `limit`. When the session ends meanwhile (a store that was restarted), waits
    /// again in a new one while there is time.
    pub(crate) async fn take<T>(
        &mut self,
        limit: Option<Duration>,
        stopped: &str,
        take: impl AsyncFn(&Session, Option<Duration>) -> tenure::Result<T>,
    ) -> Result<T, Failure> {
        let until = after(limit);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let taken = tokio::select! {
                biased;
                signal = self.signals.ending() => return Err(Failure::interrupted(signal, stopped)),
                taken = take(&self.session, left) => taken,
            };
            let error = match taken {
                Err(error) if joins_again(&error, &self.session) && is_before(until) => error,
                taken => return taken.map_err(Failure::waiting),
            };
            let error = Failure::waiting(error);
            tracing::info!(why = error.message(), "waiting again, in a new session");
            let patience = limit.unwrap_or_else(|| self.session.ttl().max(LOOKING));
            let patience = until.or_else(|| after(Some(patience)));
            let again = async {
                // An operator who ends session after session is not outrun.
                tokio::time::sleep(BREATH).await;
                // So that its place in line does not stand in the way of the next.
                let _ = tokio::time::timeout(CLOSING, self.session.clone().close()).await;
                let may_come = |failed: &Error| {
                    (failed.kind() == ErrorKind::Unavailable && is_before(patience))
                        || (is_full(failed) && is_before(until))
                };
                open(self.global, may_come).await
            };
            self.session = tokio::select! {
                biased;
                signal = self.signals.ending() => return Err(Failure::interrupted(signal, stopped)),
                session = again => session?,
            };
        }
    }
}

/// When `limit` is over; `None` for never.
fn after(limit: Option<Duration>) -> Option<Instant> {
    limit.and_then(|limit| Instant::now().checked_add(limit))
}

fn is_before(until: Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() < until)
}

/// Whether a wait that failed is worth another session: the session ended, or there was no connection for it. A
/// store that answers that it cannot (it is full) is not asked again.
fn joins_again(error: &Error, session: &Session) -> bool {
    match error.loss() {
        Some(reason) => !matches!(
            reason,
            LossReason::Refused | LossReason::Closed | LossReason::Detached
        ),
        None => {
            error.kind() == ErrorKind::Unavailable && (session.loss().is_some() || is_full(error))
        }
    }
}

/// Whether the server has no connection left: others end, and with them their connections.
fn is_full(error: &Error) -> bool {
    let message = error.explanation().to_string();
    [
        // PostgreSQL, in the words of its backend: of the server, a database, a role.
        "PostgreSQL has no connection left",
        "as many connections as it may",
        // Redis.
        "max number of clients reached",
    ]
    .iter()
    .any(|words| message.contains(words))
}

/// Opens a session, and tries again after a failure for as long as `again` says.
async fn open(global: &Global, again: impl Fn(&Error) -> bool) -> Result<Session, Failure> {
    // Processes that were refused together do not come back together.
    let mut pause = Duration::from_millis(50 + u64::from(std::process::id() % 100));
    loop {
        match global.open().await? {
            Ok(session) => return Ok(session),
            Err(error) if again(&error) => {
                tracing::debug!(error = %error.chain(), "opening a session, trying again");
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 3 / 2).min(Duration::from_secs(1));
    }
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
        Err(error) => tracing::debug!(error = %error.chain(), "closing the session"),
    };
    tokio::select! {
        done = tokio::time::timeout(CLOSING, session.close()) => match done {
            Ok(done) => closed(done),
            Err(_) => tracing::debug!("the session was not closed in time: its TTL ends it"),
        },
        _ = signals.hurry() => {}
    }
}
