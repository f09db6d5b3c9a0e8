//! What the servers of all stores share: a start on free ports, the wait until one serves, the log.

use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Result};
use crate::reaper::{excerpt, is_running};

/// Launches a server; again, with other ports, when somebody has taken one of them.
pub(crate) fn launch_on_free_ports<S>(mut launch: impl FnMut() -> Result<S>) -> Result<S> {
    let mut taken = 0;
    loop {
        match launch() {
            // Ports are reserved where the system allows it; elsewhere, and against programs
            // that bind a fixed port, there is only trying again.
            Err(Error::Start { log, .. }) if says_taken(&log) && taken < 5 => taken += 1,
            started => return started,
        }
    }
}

/// Some quote the system's words, others write them small.
fn says_taken(log: &str) -> bool {
    ["Address already in use", "address already in use"]
        .iter()
        .any(|words| log.contains(words))
}

/// A server's log, which each of its starts goes on with.
pub(crate) fn open_log(path: &Path) -> Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .doing(format!("write {}", path.display()))
}

/// Waits until a server serves; owns what it needs, so that it can do so on another thread.
pub(crate) struct Probe {
    pub(crate) what: &'static str,
    pub(crate) pid: u32,
    pub(crate) log: PathBuf,
    pub(crate) timeout: Duration,
    /// How long between two questions, at first and at the most.
    pub(crate) pause: (Duration, Duration),
    /// The question.
    pub(crate) serves: Box<dyn FnMut() -> bool + Send>,
}

impl Probe {
    pub(crate) fn wait(mut self) -> Result<()> {
        let start = Instant::now();
        let (mut pause, longest) = self.pause;
        loop {
            if !is_running(self.pid) {
                return Err(self.failed("the process ended".to_owned()));
            }
            if (self.serves)() {
                return Ok(());
            }
            if start.elapsed() > self.timeout {
                return Err(self.failed(format!("it does not serve after {:?}", self.timeout)));
            }
            std::thread::sleep(pause);
            pause = (pause * 3 / 2).min(longest);
        }
    }

    /// [`wait`](Self::wait) that lets the runtime go on.
    pub(crate) async fn wait_async(self) -> Result<()> {
        on_a_thread(self.what, move || self.wait()).await
    }

    fn failed(&self, reason: String) -> Error {
        Error::Start {
            what: self.what.to_owned(),
            reason,
            log: excerpt(&self.log),
        }
    }
}

/// Asks again and again until there is an answer, or an error; what goes on is what was seen instead.
pub(crate) fn wait_until<T>(
    what: &str,
    timeout: Duration,
    pause: Duration,
    mut ask: impl FnMut() -> ControlFlow<Result<T>, String>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        let seen = match ask() {
            ControlFlow::Break(answer) => return answer,
            ControlFlow::Continue(seen) => seen,
        };
        if start.elapsed() > timeout {
            return Err(Error::TimedOut {
                what: what.to_owned(),
                after: timeout,
                seen,
            });
        }
        std::thread::sleep(pause);
    }
}

/// Work on this server on a blocking thread of the tokio runtime.
pub(crate) async fn on_a_thread<T: Send + 'static>(
    server: &str,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .doing(format!("wait for the thread that works on {server}"))?
}
