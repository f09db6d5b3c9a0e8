//! Servers as child processes.

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use crate::error::{Action, Error, Result};
use crate::folder::last_lines;
use crate::wait::LIMIT;
use crate::watchdog::Watchdog;

/// Announces its own id to the watchdog, by standard output, before it becomes the server: if this process were killed between the
/// start of a server and an announcement of its own, the server would be left.
const ANNOUNCE: &str = r#"echo "+ $$"; exec "$@" >&2 </dev/null"#;

/// A server as a child process, in a process group of its own. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    log: PathBuf,
    child: Child,
    collected: bool,
}

impl Process {
    /// Starts a server. Its output is appended to `log`, its standard input is empty.
    pub(crate) fn start(name: &'static str, command: &Command, log: PathBuf) -> Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .action(format!("write {}", log.display()))?;
        let mut shell = Command::new("sh");
        for (variable, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(variable, value),
                None => shell.env_remove(variable),
            };
        }
        let child = shell
            .args(["-c", ANNOUNCE, "tenure-start"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(Stdio::null())
            .stdout(Watchdog::get()?.announcements()?)
            .stderr(output)
            .process_group(0)
            .spawn()
            .action(format!("start {name}"))?;
        Ok(Self {
            name,
            log,
            child,
            collected: false,
        })
    }

    /// Calls `serves` until it is true; fails with the log when the process ends before.
    pub(crate) fn wait_ready(&self, mut serves: impl FnMut() -> bool) -> Result<()> {
        let start = Instant::now();
        loop {
            let reason = if !self.is_running() {
                "it has ended"
            } else if serves() {
                return Ok(());
            } else if start.elapsed() > LIMIT {
                "it does not serve within 30 s"
            } else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let (reason, path, log) = (reason.to_owned(), self.log.clone(), last_lines(&self.log, 30));
            return Err(Error::Start {
                server: self.name,
                reason,
                path,
                log,
            });
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has not ended. A paused one is running.
    pub(crate) fn is_running(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !self.collected && matches!(rustix::process::waitid(WaitId::Pid(self.raw_pid()), options), Ok(None))
    }

    /// Sends SIGKILL and collects the process. Nothing to do if it has ended.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.collected {
            return Ok(());
        }
        // Fails only if the process has ended.
        let _ = rustix::process::kill_process(self.raw_pid(), Signal::KILL);
        self.wait_for(WaitIdOptions::EXITED)?;
        Watchdog::get()?.forget(self.pid());
        self.collected = true;
        self.child.wait().map(drop).action(format!("collect {}", self.name))
    }

    /// Sends SIGSTOP; returns when every thread has stopped.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.wait_for(WaitIdOptions::STOPPED | WaitIdOptions::EXITED)?;
        if self.is_running() {
            Ok(())
        } else {
            Err(Error::NotRunning(self.name))
        }
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Err(Error::NotRunning(self.name));
        }
        rustix::process::kill_process(self.raw_pid(), signal).action(format!("send a signal to {}", self.name))
    }

    fn wait_for(&self, states: WaitIdOptions) -> Result<()> {
        loop {
            match rustix::process::waitid(WaitId::Pid(self.raw_pid()), states | WaitIdOptions::NOWAIT) {
                Err(rustix::io::Errno::INTR) => {}
                result => return result.map(drop).action(format!("wait for {}", self.name)),
            }
        }
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Returns the last lines of the log.
    pub(crate) fn log(&self, lines: usize) -> String {
        last_lines(&self.log, lines)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
