//! The watchdog: a process that ends the command when `tenure` cannot do it in time.
//!
//! `tenure` starts itself again with [`ARGUMENT`], and writes [`Message`]s into the standard input of that
//! process. The watchdog sends the command SIGTERM and later SIGKILL when the lease is about to end, and when
//! the pipe is closed: then `tenure` was killed. Linux' parent-death signal is no substitute: it follows the
//! thread that spawned, not the process, and does not reach grandchildren.
//!
//! A watchdog leads the process group into which the command is started. So there is no moment in which the
//! command runs and the watchdog does not know it.

use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Signal, getpgrp};
use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU,
};
use tokio::io::AsyncReadExt as _;
use tokio::process::ChildStdout;

use crate::exit::Failure;
use crate::processes::{self, GLANCE, Processes};

/// What a `tenure` that is to be a watchdog is started with. Not a command: `--help` does not show it.
const ARGUMENT: &str = "__watchdog";

/// How long a watchdog may take to start.
const STARTING: Duration = Duration::from_secs(1);

/// What a watchdog watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Its own group. Processes have this long between SIGTERM and SIGKILL.
    OwnGroup(Duration),
    /// What it is told.
    Told,
}

/// The longest wait without a look at the clock: timers stand still while the machine sleeps, and the clock
/// does not.
const SLICE: Duration = Duration::from_millis(500);

/// What `tenure` tells its watchdog, a line each. Times are those of [`processes::now`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The processes to watch, and how long they have between SIGTERM and SIGKILL.
    Watch(Processes, Duration),
    /// They may run until then, unless a later message says more.
    Deadline(Duration),
    /// They are to be sent SIGTERM now, and SIGKILL then.
    End(Duration),
    /// They were sent SIGTERM, and are to be sent SIGKILL then.
    Kill(Duration),
}

impl Message {
    fn line(self) -> String {
        match self {
            Self::Watch(Processes::Group(id), patience) => {
                format!("group {} {}\n", id.as_raw_nonzero(), patience.as_nanos())
            }
            Self::Watch(Processes::One(id), patience) => {
                format!("process {} {}\n", id.as_raw_nonzero(), patience.as_nanos())
            }
            Self::Deadline(at) => format!("deadline {}\n", at.as_nanos()),
            Self::End(at) => format!("end {}\n", at.as_nanos()),
            Self::Kill(at) => format!("kill {}\n", at.as_nanos()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let time = |text: &str| text.parse().ok().map(Duration::from_nanos);
        let pid = |text: &str| processes::pid(text.parse().ok()?).ok();
        match words[..] {
            ["group", id, patience] => {
                Some(Self::Watch(Processes::Group(pid(id)?), time(patience)?))
            }
            ["process", id, patience] => {
                Some(Self::Watch(Processes::One(pid(id)?), time(patience)?))
            }
            ["deadline", at] => time(at).map(Self::Deadline),
            ["end", at] => time(at).map(Self::End),
            ["kill", at] => time(at).map(Self::Kill),
            _ => None,
        }
    }
}

/// A running watchdog. Dropped, it ends and has done nothing.
#[derive(Debug)]
pub(crate) struct Watchdog {
    process: Child,
    pipe: Option<ChildStdin>,
    /// Where it says that it catches signals; `None` once it has.
    starting: Option<ChildStdout>,
}

impl Watchdog {
    pub(crate) fn start(task: Task) -> Result<Self, Failure> {
        let refused = |error| Failure::os("start the watchdog of the command", error);
        // The file itself, even if another has taken its name since.
        let own = PathBuf::from("/proc/self/exe");
        let program = match own.exists() {
            true => own,
            false => std::env::current_exe().map_err(refused)?,
        };
        let mut command = Command::new(program);
        command.arg0("tenure").arg(ARGUMENT);
        if let Task::OwnGroup(patience) = task {
            command.arg(patience.as_nanos().to_string());
        }
        let mut process = command
            // Neither secrets nor a folder that somebody wants to unmount.
            .env_clear()
            .current_dir("/")
            // What ends the group of `tenure` must not end its watchdog.
            .process_group(0)
            .stdin(Stdio::piped())
            // Whoever reads the output of `tenure` must not wait for the watchdog.
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(refused)?;
        let pipe = process.stdin.take();
        let starting = process.stdout.take();
        let starting = starting.map(ChildStdout::from_std).transpose();
        let mut watchdog = Self {
            process,
            pipe,
            starting: None,
        };
        watchdog.starting = starting.map_err(refused)?;
        Ok(watchdog)
    }

    /// The group that it leads.
    pub(crate) fn group(&self) -> u32 {
        self.process.id()
    }

    /// Waits until it catches signals: one that is sent to its group before would end it.
    pub(crate) async fn started(&mut self) {
        if let Some(starting) = &mut self.starting {
            let mut byte = [0];
            if !matches!(
                tokio::time::timeout(STARTING, starting.read(&mut byte)).await,
                Ok(Ok(1))
            ) {
                tracing::debug!("the watchdog of the command did not start in time");
            }
            self.starting = None;
        }
    }

    /// Ends it. Nothing can be told then.
    pub(crate) fn end(&mut self) {
        // Before the pipe is closed, which would mean that `tenure` was killed. Only a killed process is waited
        // for: this takes no time.
        let ended = self.process.kill().and_then(|()| self.process.wait());
        if let Err(error) = ended {
            tracing::debug!(%error, "the watchdog was not waited for");
        }
        self.pipe = None;
    }

    /// Returns whether the watchdog could be told: it cannot once it has ended.
    pub(crate) fn tell(&mut self, message: Message) -> bool {
        let Some(pipe) = &mut self.pipe else {
            return false;
        };
        if let Err(error) = pipe.write_all(message.line().as_bytes()) {
            tracing::warn!(%error, "the watchdog of the command has ended");
            self.pipe = None;
        }
        self.pipe.is_some()
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.end();
    }
}

/// What this process is to watch, if it was started for that.
pub(crate) fn task(mut arguments: impl Iterator<Item = OsString>) -> Option<Task> {
    if arguments.nth(1)? != ARGUMENT {
        return None;
    }
    match arguments.next() {
        None => Some(Task::Told),
        Some(patience) => {
            let patience = patience.to_str()?.parse().ok()?;
            Some(Task::OwnGroup(Duration::from_nanos(patience)))
        }
    }
}

/// The process itself.
pub(crate) fn main(task: Task) -> ExitCode {
    ignore_signals();
    // Nobody may listen: `tenure` was killed.
    let _ = io::stdout()
        .write_all(b".")
        .and_then(|()| io::stdout().flush());
    let (sender, messages) = mpsc::channel();
    let read = move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if let Some(message) = Message::parse(&line)
                && sender.send(message).is_err()
            {
                return;
            }
        }
    };
    if std::thread::Builder::new().spawn(read).is_err() {
        return ExitCode::FAILURE;
    }
    let mut watch = Watch::default();
    if let Task::OwnGroup(patience) = task {
        watch.watched = Some((Processes::Group(getpgrp()), patience));
    }
    loop {
        match messages.recv_timeout(watch.patience(processes::now())) {
            Ok(message) => watch.hear(message),
            // Only now: a later deadline may have been on its way.
            Err(RecvTimeoutError::Timeout) => watch.act(processes::now()),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    watch.abandon(processes::now());
    // Its own group exists for as long as it does: it ends with the others.
    while !watch.is_over() {
        std::thread::sleep(GLANCE);
        watch.act(processes::now());
    }
    ExitCode::SUCCESS
}

/// Service managers and shutdown scripts signal every process that they find. Only SIGKILL is meant for this
/// one.
fn ignore_signals() {
    let ignored = Arc::new(AtomicBool::new(false));
    for signal in [
        SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU,
    ] {
        // One that cannot be caught ends the watchdog, which `tenure` then does without.
        let _ = signal_hook::flag::register(signal, Arc::clone(&ignored));
    }
}

/// What the watchdog knows, and has done.
#[derive(Debug, Default)]
struct Watch {
    watched: Option<(Processes, Duration)>,
    deadline: Option<Duration>,
    terminated: bool,
    killed: bool,
}

impl Watch {
    fn hear(&mut self, message: Message) {
        match message {
            Message::Watch(processes, patience) => self.watched = Some((processes, patience)),
            Message::Deadline(at) if !self.terminated => self.deadline = Some(at),
            Message::Deadline(_) => {}
            Message::End(at) => self.end(at),
            Message::Kill(at) => {
                self.terminated = true;
                self.deadline = Some(at);
            }
        }
    }

    /// Sends SIGTERM, once; SIGKILL follows at `at`.
    fn end(&mut self, at: Duration) {
        self.deadline = Some(self.deadline.map_or(at, |deadline| deadline.min(at)));
        if let Some((processes, _)) = self.watched
            && !self.terminated
        {
            self.terminated = true;
            processes.terminate();
        }
    }

    /// When to send SIGTERM, or SIGKILL after that.
    fn due(&self) -> Option<Duration> {
        let (deadline, (_, patience)) = (self.deadline?, self.watched?);
        match (self.terminated, self.killed) {
            (false, _) => Some(deadline.saturating_sub(patience)),
            (true, false) => Some(deadline),
            (true, true) => None,
        }
    }

    /// How long nothing is to be done.
    fn patience(&self, now: Duration) -> Duration {
        let due = self.due().map(|due| due.saturating_sub(now));
        due.unwrap_or(SLICE).min(SLICE)
    }

    /// Does what is due.
    fn act(&mut self, now: Duration) {
        if let (Some(due), Some(deadline)) = (self.due(), self.deadline)
            && due <= now
            && !self.terminated
        {
            self.end(deadline);
        }
        if let (Some(due), Some((processes, _))) = (self.due(), self.watched)
            && due <= now
            && self.terminated
        {
            self.killed = true;
            processes.send(Signal::KILL);
        }
    }

    /// `tenure` was killed: nobody renews the lease.
    fn abandon(&mut self, now: Duration) {
        if let Some((_, patience)) = self.watched {
            self.end(now + patience);
        }
    }

    /// Whether there is nothing left to end.
    fn is_over(&self) -> bool {
        self.killed || self.watched.is_none_or(|(processes, _)| !processes.exist())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let id = processes::pid(7).unwrap();
        let time = Duration::new(3, 5);
        for message in [
            Message::Watch(Processes::Group(id), time),
            Message::Watch(Processes::One(id), Duration::ZERO),
            Message::Deadline(time),
            Message::End(time),
            Message::Kill(time),
        ] {
            assert_eq!(Message::parse(&message.line()), Some(message));
        }
        for nonsense in ["", "group 0 1", "group 1", "deadline soon", "end -1"] {
            assert_eq!(Message::parse(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn sigterm_is_due_before_the_deadline_and_moves_with_it() {
        let seconds = Duration::from_secs;
        let mut watch = Watch::default();
        assert_eq!(watch.due(), None);
        // No process has this id: signals go nowhere.
        let id = processes::pid(i32::MAX as u32).unwrap();
        watch.hear(Message::Watch(Processes::Group(id), seconds(2)));
        watch.hear(Message::Deadline(seconds(10)));
        assert_eq!(watch.due(), Some(seconds(8)));
        watch.hear(Message::Deadline(seconds(13)));
        watch.act(seconds(8));
        assert!(!watch.terminated);
        watch.act(seconds(11));
        assert!(watch.terminated && !watch.killed);
        // What was ended is not continued.
        watch.hear(Message::Deadline(seconds(20)));
        assert_eq!(watch.due(), Some(seconds(13)));
        watch.act(seconds(13));
        assert!(watch.killed && watch.is_over());
    }

    #[test]
    fn a_killed_tenure_leaves_the_patience_or_less() {
        let seconds = Duration::from_secs;
        let id = processes::pid(i32::MAX as u32).unwrap();
        for (deadline, due) in [(Some(10), 5), (Some(4), 4), (None, 5)] {
            let mut watch = Watch::default();
            watch.hear(Message::Watch(Processes::One(id), seconds(2)));
            if let Some(deadline) = deadline {
                watch.hear(Message::Deadline(seconds(deadline)));
            }
            watch.abandon(seconds(3));
            assert_eq!(watch.due(), Some(seconds(due)));
        }
    }
}
