//! Signals, with their origin: what the terminal has sent, it has sent to the child too.

use std::io;
use std::time::{Duration, Instant};

use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGWINCH,
    SIGXCPU,
};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::{Cause, Origin};
use tokio::sync::mpsc;

use crate::exit::Failure;

/// Those that tenure listens to. Not SIGTSTP: caught here, Ctrl-Z would stop the child and leave
/// the shell waiting for tenure; uncaught, it stops both, and `fg` continues both.
///
/// The alarms and SIGXCPU come by themselves: `perl -e 'alarm 60; exec @ARGV' tenure lock ...` is an old way to
/// bound a command.
const LISTENED: [i32; 11] = [
    SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGALRM, SIGVTALRM, SIGPROF,
    SIGXCPU,
];

/// Those that end a process which is not told otherwise.
const ENDING: [i32; 8] = [
    SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU,
];

/// The same signal of the same sender within this is the same order: `timeout` signals its child and then the
/// group of its child.
const REPEATED: Duration = Duration::from_millis(100);

/// Within this a signal that came together with the end of the command has arrived here too: Ctrl-C
/// reaches both, and the command may be the first to act on it.
const SETTLING: Duration = Duration::from_millis(100);

/// A signal that has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Received {
    pub(crate) number: i32,
    /// The terminal sent it, to every process in the foreground: Ctrl-C, Ctrl-\, a new size.
    pub(crate) from_terminal: bool,
}

/// The signals that have come since [`listen`](Self::listen), in order.
#[derive(Debug)]
pub(crate) struct Signals {
    received: mpsc::UnboundedReceiver<Received>,
}

impl Signals {
    /// From now on no signal ends this process before it has let go of what it holds.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let refused = |error| Failure::os("listen to signals", error);
        let ignored = ignored();
        let listened = LISTENED
            .into_iter()
            .filter(|signal| ignored & (1 << (signal - 1)) == 0);
        let mut signals = SignalsInfo::<WithOrigin>::new(listened).map_err(refused)?;
        let (sender, received) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                let mut last = None;
                for origin in signals.forever() {
                    let sent_by = origin.process.map(|process| process.pid);
                    let this = (origin.signal, sent_by);
                    let repeated = last.is_some_and(|(earlier, at): (_, Instant)| {
                        sent_by.is_some() && earlier == this && at.elapsed() < REPEATED
                    });
                    last = Some((this, Instant::now()));
                    if !repeated && sender.send(Received::from(origin)).is_err() {
                        return;
                    }
                }
            })
            .map_err(refused)?;
        Ok(Self { received })
    }

    /// The next signal. Cancel safe.
    pub(crate) async fn next(&mut self) -> Received {
        match self.received.recv().await {
            Some(received) => received,
            // The thread has ended, which it never does before this is dropped.
            None => std::future::pending().await,
        }
    }

    /// The next signal that is meant to end this process; others are dropped. Cancel safe.
    pub(crate) async fn ending(&mut self) -> i32 {
        loop {
            let number = self.next().await.number;
            if ENDING.contains(&number) {
                return number;
            }
        }
    }

    /// A signal that shows that somebody is in a hurry *now*: what came before, or with what has
    /// just ended, is dropped.
    pub(crate) async fn hurry(&mut self) -> i32 {
        tokio::time::sleep(SETTLING).await;
        while self.received.try_recv().is_ok() {}
        self.ending().await
    }
}

impl From<Origin> for Received {
    fn from(origin: Origin) -> Self {
        // SIGHUP is left out: a hang-up reaches the session's leader alone, which may be tenure.
        let by_keys = matches!(origin.signal, SIGINT | SIGQUIT | SIGWINCH);
        Self {
            number: origin.signal,
            from_terminal: by_keys && origin.cause == Cause::Kernel,
        }
    }
}

/// The mask of the signals that the caller has this process ignore: SIGHUP under `nohup`, SIGINT and SIGQUIT in
/// the background of a script. A signal that is caught is not ignored any more, by the command neither. Known on
/// Linux only.
fn ignored() -> u64 {
    let read = || -> io::Result<Option<u64>> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigIgn:"))
            .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        Ok(mask)
    };
    read().ok().flatten().unwrap_or_default()
}
