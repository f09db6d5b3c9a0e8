//! A command that runs under a holding, whatever is held.

use std::ffi::OsString;
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tenure::{Holding, LossReason};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::exit::{CANNOT_START, Failure, NOT_FOUND};
use crate::output::printable;
use crate::signals::{Received, Signals};

/// How a command that ran under a holding came to its end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Itself(ExitStatus),
    /// It was ended because the holding was lost.
    Lost(LossReason, ExitStatus),
}

/// Runs `command` (a program and its arguments) for as long as `holding` lasts.
///
/// The child has the standard streams of this process, but for its input if there is an `input`, and stays in its process group: it can use
/// the terminal, and job control treats the two as one. Signals that come here go on to it. Once
/// the holding is lost it gets SIGTERM and, `kill_after` later, SIGKILL. It never outlives this
/// future.
pub(crate) async fn run(
    command: &[OsString],
    input: Option<&[u8]>,
    holding: &Holding,
    signals: &mut Signals,
    kill_after: Duration,
) -> Result<Ended, Failure> {
    let mut child = start(command, input.is_some(), holding)?;
    let _feeding = input.and_then(|input| Feeding::start(&mut child, input));
    loop {
        tokio::select! {
            biased;
            // Looked at first: after a pause of this process everything is ready at once, and a
            // child that ended too late has not ended under the lock.
            reason = holding.lost() => {
                let status = end(&mut child, signals, kill_after).await;
                return status.map(|status| Ended::Lost(reason, status)).map_err(unwatched);
            }
            status = child.wait() => return status.map(Ended::Itself).map_err(unwatched),
            received = signals.next() => forward(&child, received),
        }
    }
}

/// What writes the child's input, for as long as this lives.
struct Feeding(JoinHandle<()>);

impl Feeding {
    fn start(child: &mut Child, input: &[u8]) -> Option<Self> {
        let mut stdin = child.stdin.take()?;
        let input = input.to_vec();
        Some(Self(tokio::spawn(async move {
            // A child that does not read to the end is free to do so.
            if let Err(error) = stdin.write_all(&input).await {
                tracing::debug!(%error, "the child did not read all of its input");
            }
        })))
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        // The child has ended; something that it started may have inherited the pipe.
        self.0.abort();
    }
}

fn start(command: &[OsString], fed: bool, holding: &Holding) -> Result<Child, Failure> {
    let [program, arguments @ ..] = command else {
        return Err(Failure::usage("the command is empty"));
    };
    Command::new(program)
        .args(arguments)
        .stdin(if fed {
            Stdio::piped()
        } else {
            Stdio::inherit()
        })
        .env("TENURE_NAME", holding.name().as_str())
        .env("TENURE_TOKEN", holding.token().to_string())
        .env("TENURE_SESSION", holding.session_id().as_str())
        // Should this process panic or return early, the child goes with it.
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => NOT_FOUND,
                _ => CANNOT_START,
            };
            let program = printable(&program.to_string_lossy());
            Failure::new(code, format!("cannot run `{program}`: {error}"))
        })
}

/// SIGTERM, and SIGKILL if that does not help in time. Signals still go on to the child meanwhile.
async fn end(
    child: &mut Child,
    signals: &mut Signals,
    kill_after: Duration,
) -> io::Result<ExitStatus> {
    send(child, Signal::TERM);
    // A stopped process acts on SIGTERM only once it goes on.
    send(child, Signal::CONT);
    let patience = tokio::time::sleep(kill_after);
    tokio::pin!(patience);
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status,
            () = &mut patience => break,
            received = signals.next() => forward(child, received),
        }
    }
    send(child, Signal::KILL);
    child.wait().await
}

fn forward(child: &Child, received: Received) {
    // The terminal has told the child already. Twice is worse than once: many programs take a
    // second Ctrl-C for "at once, without cleaning up".
    if received.from_terminal {
        return;
    }
    if let Some(signal) = Signal::from_named_raw(received.number) {
        send(child, signal);
    }
}

fn send(child: &Child, signal: Signal) {
    // Without an id it has been waited for. Until then the id is its own, even if it has ended.
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = kill_process(pid, signal)
    {
        tracing::debug!(?signal, %error, "the child did not get a signal");
    }
}

fn unwatched(error: io::Error) -> Failure {
    Failure::os("wait for the command", error)
}
