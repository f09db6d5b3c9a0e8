//! `tenure lock`.

use std::ffi::OsString;
use std::time::Duration;

use serde_json::json;
use tenure::{Error, ErrorKind, LockGuard, Name, Session};

use crate::args::{Global, Lock};
use crate::child::{self, Ended};
use crate::exit::{self, Failure, say};
use crate::output::{self, printable};
use crate::signals::Signals;
use crate::store;

/// How long the end may take once the lock is let go of. The TTL bounds the rest.
const CLOSING: Duration = Duration::from_secs(3);

pub(crate) async fn run(global: &Global, args: &Lock) -> Result<u8, Failure> {
    let (name, command) = args.subject()?;
    let name = store::name(name)?;
    let recoded =
        |failure: Failure| failure.recoded(args.hold.not_acquired_code, args.hold.lost_code);

    global.hint_if_private();
    let mut signals = Signals::listen()?;
    let session = tokio::select! {
        biased;
        signal = signals.ending() => return Ok(exit::of_signal(signal)),
        session = global.open() => session?,
    };
    let done = match take(&session, &name, args, &mut signals).await {
        Err(failure) => Err(recoded(failure)),
        Ok(Taken::Interrupted(signal)) => {
            say(format_args!("stopped waiting for {name:?}"));
            Ok(exit::of_signal(signal))
        }
        Ok(Taken::Held(guard)) => hold(global, args, command, guard, &mut signals)
            .await
            .map_err(recoded),
    };
    close(session, &mut signals).await;
    done
}

enum Taken {
    Held(LockGuard),
    /// A signal came first.
    Interrupted(i32),
}

async fn take(
    session: &Session,
    name: &Name,
    args: &Lock,
    signals: &mut Signals,
) -> Result<Taken, Failure> {
    let lock = session.locker(name)?;
    let taking = async {
        match args.wait.wait {
            _ if args.wait.no_wait => lock.try_lock().await,
            Some(limit) => lock.lock_timeout(limit).await,
            None => lock.lock().await,
        }
    };
    // A signal drops the wait, which withdraws from the queue; closing the session waits for that.
    tokio::select! {
        biased;
        signal = signals.ending() => Ok(Taken::Interrupted(signal)),
        taken = taking => taken.map(Taken::Held).map_err(Failure::waiting),
    }
}

/// Holds the lock until a signal, or for as long as the command runs, and gives it back.
async fn hold(
    global: &Global,
    args: &Lock,
    command: &[OsString],
    guard: LockGuard,
    signals: &mut Signals,
) -> Result<u8, Failure> {
    if command.is_empty() {
        announce(global, &guard)?;
        tokio::select! {
            biased;
            reason = guard.lost() => return Err(lost(&guard, reason)),
            _ = signals.ending() => {}
        }
        return give_back(guard, signals).await.map(|()| exit::DONE);
    }
    match child::run(command, &guard, signals, args.hold.kill_after).await? {
        Ended::Lost(reason, status) => {
            say(format_args!("the command was ended: {status}"));
            Err(lost(&guard, reason))
        }
        Ended::Itself(status) => match give_back(guard, signals).await {
            Ok(()) => Ok(exit::of_child(status)),
            // A loss is never masked by what the command says, nor its failure by silence.
            Err(failure) if failure.code() == exit::LOST => {
                say(format_args!("the command ended by itself: {status}"));
                Err(failure)
            }
            // It was held until the command had ended: the command's word counts.
            Err(failure) => {
                failure.tell();
                Ok(exit::of_child(status))
            }
        },
    }
}

fn announce(global: &Global, guard: &LockGuard) -> Result<(), Failure> {
    if global.json {
        let object = json!({
            "name": guard.name().as_str(),
            "token": guard.token().get(),
            "session": guard.session_id().as_str(),
            "key": guard.key(),
        });
        output::line(&object.to_string())
    } else {
        let name = printable(guard.name().as_str());
        output::line(&format!("{name} token={}", guard.token()))
    }
}

fn lost(guard: &LockGuard, reason: tenure::LossReason) -> Failure {
    Error::lost(reason)
        .during("hold")
        .on(guard.name().as_str())
        .into()
}

/// Releases and waits for the store's word, unless a signal shows that somebody is in a hurry.
async fn give_back(guard: LockGuard, signals: &mut Signals) -> Result<(), Failure> {
    let name = guard.name().clone();
    let unconfirmed = |error: Error| {
        let message = format!("{error}; the store frees it once the lease has run out");
        Failure::new(exit::UNREACHABLE, message)
    };
    tokio::select! {
        biased;
        released = guard.release() => released.map_err(|error| match error.kind() {
            ErrorKind::Unavailable => unconfirmed(error),
            _ => error.into(),
        }),
        () = signals.hurry() => {
            let error = Error::new(ErrorKind::Unavailable, "interrupted before the store had confirmed it");
            Err(unconfirmed(error.during("release").on(name.as_str())))
        }
    }
}

/// Ends the session, so that nothing of it is left in the store when this process has ended.
async fn close(session: Session, signals: &mut Signals) {
    tokio::select! {
        closed = tokio::time::timeout(CLOSING, session.close()) => match closed {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "closing the session"),
            Err(_) => tracing::debug!("the session was not closed in time: its TTL ends it"),
        },
        () = signals.hurry() => {}
    }
}
