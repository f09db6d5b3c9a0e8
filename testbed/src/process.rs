//! A child process that a test talks to line by line, pauses and kills.
//!
//! Meant for lock holders: a process that is stopped in the middle of its critical section, or
//! killed in it, is the one thing that a task inside the test cannot play.

use std::collections::VecDeque;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::Notify;

use crate::error::{Doing, Error, Result};
use crate::reaper::{Guarded, Reaper};

/// How many lines an error shows, and how many of standard error are kept.
const KEPT_LINES: usize = 40;

/// A child process with its standard input and output connected to the test.
///
/// Killed when dropped, and when this process ends in any way. What it started itself is not; and
/// a SIGKILL that hits this process right between starting the other and telling the watchdog
/// leaves it to notice that its standard input has ended.
#[derive(Debug)]
pub struct Process {
    what: String,
    process: Guarded,
    reaper: Reaper,
    stdin: Option<ChildStdin>,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
}

impl Process {
    /// Starts the command. Its three standard streams are replaced: the test reads standard output
    /// with [`expect_line`](Self::expect_line), standard error is collected for error messages.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the program cannot be started.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let what = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let reaper = Reaper::without_folder()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .doing(format!("start {what}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take();
        let stderr = child.stderr.take();
        let process = reaper.adopt(&what, child);
        Ok(Self {
            process,
            reaper,
            stdin,
            stdout: Lines::read_from(stdout, usize::MAX),
            stderr: Lines::read_from(stderr, KEPT_LINES),
            what,
        })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the process has not ended. A paused process is running.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// Writes the line and a line break to the process's standard input.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the input is closed; [`Error::Io`] when the process has closed
    /// its end.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Err(Error::NotRunning {
                what: format!("the standard input of {}", self.what),
            });
        };
        // In one write, so that a reader never sees half a line.
        stdin
            .write_all(format!("{line}\n").as_bytes())
            .and_then(|()| stdin.flush())
            .doing(format!("write to {}", self.what))
    }

    /// Closes the process's standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The next line of standard output that contains `pattern`; lines before it are skipped.
    /// Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when it does not come in time, [`Error::Ended`] when the output ends
    /// before; both show the lines that came instead, and the end of standard error.
    pub fn expect_line(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut skipped = VecDeque::new();
        loop {
            match self.stdout.next_before(deadline) {
                Next::Line(line) if line.contains(pattern) => return Ok(line),
                Next::Line(line) => skip(&mut skipped, line),
                Next::End => return Err(self.ended(pattern, skipped)),
                Next::Nothing => return Err(self.timed_out(pattern, timeout, skipped)),
            }
        }
    }

    /// [`expect_line`](Self::expect_line) for a test whose runtime has to go on.
    ///
    /// # Errors
    ///
    /// As [`expect_line`](Self::expect_line).
    ///
    /// # Cancel safety
    ///
    /// Lines skipped so far are gone when the future is dropped; the line it waits for is not.
    pub async fn expect_line_async(&mut self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = tokio::time::Instant::now() + timeout;
        let mut skipped = VecDeque::new();
        loop {
            match self.stdout.next_before_async(deadline).await {
                Next::Line(line) if line.contains(pattern) => return Ok(line),
                Next::Line(line) => skip(&mut skipped, line),
                Next::End => return Err(self.ended(pattern, skipped)),
                Next::Nothing => return Err(self.timed_out(pattern, timeout, skipped)),
            }
        }
    }

    /// The next line of standard output if one is there already.
    pub fn try_line(&mut self) -> Option<String> {
        self.stdout.lock().lines.pop_front()
    }

    /// Whether [`try_line`](Self::try_line) would find one.
    pub fn has_line(&self) -> bool {
        !self.stdout.lock().lines.is_empty()
    }

    /// The last lines of standard error, at most forty.
    pub fn stderr(&self) -> String {
        let lines = self.stderr.lock();
        let lines: Vec<&str> = lines.lines.iter().map(String::as_str).collect();
        lines.join("\n")
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process was waited for.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.signal(signal)
    }

    /// SIGSTOP. Returns when every thread of the process has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// SIGTERM: asks the process to end. A paused process obeys after [`resume`](Self::resume).
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process was waited for.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// SIGKILL. Returns when the process is gone. Killing one that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the operating system refuses to tell of the end.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.reaper.kill(&mut self.process)
    }

    /// Waits for the process to end. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::TimedOut`] when it does not end in time; it goes on then.
    pub fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        if self.process.ended_within(timeout) {
            self.reaper.collect(&mut self.process)
        } else {
            Err(self.not_ended(timeout))
        }
    }

    /// [`wait`](Self::wait) for a test whose runtime has to go on.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost when the future is dropped.
    pub async fn wait_async(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let deadline = tokio::time::Instant::now() + timeout;
        while self.process.is_running() {
            if tokio::time::Instant::now() >= deadline {
                return Err(self.not_ended(timeout));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.reaper.collect(&mut self.process)
    }

    fn not_ended(&self, timeout: Duration) -> Error {
        Error::TimedOut {
            what: format!("the end of {}", self.what),
            after: timeout,
            seen: self.seen(VecDeque::new()),
        }
    }

    fn timed_out(&self, pattern: &str, timeout: Duration, skipped: VecDeque<String>) -> Error {
        Error::TimedOut {
            what: format!("a line with {pattern:?} from {}", self.what),
            after: timeout,
            seen: self.seen(skipped),
        }
    }

    fn ended(&self, pattern: &str, skipped: VecDeque<String>) -> Error {
        Error::Ended {
            what: format!("a line with {pattern:?} from {}", self.what),
            seen: self.seen(skipped),
        }
    }

    fn seen(&self, skipped: VecDeque<String>) -> String {
        let mut seen = String::new();
        for line in skipped {
            seen.push_str("\n  ");
            seen.push_str(&line);
        }
        for line in self.stderr().lines() {
            seen.push_str("\n  stderr: ");
            seen.push_str(line);
        }
        seen
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.reaper.kill(&mut self.process);
    }
}

fn skip(skipped: &mut VecDeque<String>, line: String) {
    if skipped.len() == KEPT_LINES {
        skipped.pop_front();
    }
    skipped.push_back(line);
}

/// The lines of a stream, which a thread of its own reads: a process never blocks on a full pipe
/// because the test does not read.
#[derive(Debug, Default)]
struct Lines {
    state: Mutex<LinesState>,
    arrived: Condvar,
    arrived_async: Notify,
}

#[derive(Debug, Default)]
struct LinesState {
    lines: VecDeque<String>,
    ended: bool,
}

enum Next {
    Line(String),
    /// The stream has ended.
    End,
    /// Nothing before the deadline.
    Nothing,
}

impl Lines {
    fn read_from(stream: Option<impl Read + Send + 'static>, keep: usize) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let Some(stream) = stream else {
            lines.lock().ended = true;
            return lines;
        };
        let reader = Arc::clone(&lines);
        // Ends with the stream: when the last process that holds its other end is gone.
        std::thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\n', '\r']).to_owned();
                line.clear();
                let mut state = reader.lock();
                if state.lines.len() == keep {
                    state.lines.pop_front();
                }
                state.lines.push_back(text);
                drop(state);
                reader.wake();
            }
            reader.lock().ended = true;
            reader.wake();
        });
        lines
    }

    fn lock(&self) -> MutexGuard<'_, LinesState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.arrived.notify_all();
        // Stores a permit when nobody waits yet: the one reader cannot miss it.
        self.arrived_async.notify_one();
    }

    fn next_now(state: &mut LinesState) -> Option<Next> {
        match state.lines.pop_front() {
            Some(line) => Some(Next::Line(line)),
            None => state.ended.then_some(Next::End),
        }
    }

    fn next_before(&self, deadline: Instant) -> Next {
        let mut state = self.lock();
        loop {
            if let Some(next) = Self::next_now(&mut state) {
                return next;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Nothing;
            }
            let waited = self.arrived.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    async fn next_before_async(&self, deadline: tokio::time::Instant) -> Next {
        loop {
            if let Some(next) = Self::next_now(&mut self.lock()) {
                return next;
            }
            let arrived = self.arrived_async.notified();
            if tokio::time::timeout_at(deadline, arrived).await.is_err() {
                return Self::next_now(&mut self.lock()).unwrap_or(Next::Nothing);
            }
        }
    }
}
