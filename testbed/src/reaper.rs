//! Child processes and folders that end with this process, however it ends.
//!
//! A destructor does not run when the test process is killed, nor for a value in a `static`.
//! `PR_SET_PDEATHSIG` would tie a child's life to the *thread* that started it, which in a test
//! harness ends long before the process. So a watchdog stands beside each child: a few lines of
//! `sh` that read from a pipe whose only lasting writer is this process. When the pipe closes, for
//! whatever reason, the watchdog kills the processes it was told of and removes the folder.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tempfile::TempDir;

use crate::error::{Doing, Error, Result};
use crate::postgres::User;

/// `$1` is the folder to remove, or empty. Lines: `+ PID` watch, `- PID` forget.
///
/// A PostgreSQL that was killed leaves a segment of System V shared memory behind, its id in the last
/// column of line 7. The system has room for some thousands, and then no server starts any more.
///
/// The loop around `rm` is for files that the dying process still creates while `rm` walks.
const WATCHDOG: &str = r#"
trap '' HUP INT QUIT TERM PIPE
pids=
while read -r op pid; do
    case $op in
        +) pids="$pids $pid" ;;
        -) kept=
           for p in $pids; do [ "$p" = "$pid" ] || kept="$kept $p"; done
           pids=$kept ;;
    esac
done
for p in $pids; do
    kill -s KILL -- "-$p"
    kill -s KILL -- "$p"
done
[ -n "$1" ] || exit 0
segment=$(sed -n '7s/.* //p' "$1/data/postmaster.pid")
[ -z "$segment" ] || ipcrm -m "$segment"
tries=0
while rm -rf -- "$1"; [ -e "$1" ] && [ "$tries" -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
"#;

/// Tells the watchdog (its standard input is the watchdog's pipe) its own id before it becomes the
/// server: were we killed between starting the server and telling, nobody would know of it.
const ANNOUNCE: &str = r#"echo "+ $$"; exec "$@" >&2 </dev/null"#;

/// A watchdog, the folder that it removes, and what it was told.
#[derive(Debug)]
pub(crate) struct Reaper {
    watchdog: Child,
    /// Closed to end the watchdog.
    pipe: Option<File>,
    folder: Option<PathBuf>,
}

impl Reaper {
    /// A watchdog without a folder.
    pub(crate) fn without_folder() -> Result<Self> {
        Self::watch_over(None)
    }

    /// A watchdog with a new, empty, private folder, whose name starts with `prefix`.
    pub(crate) fn with_folder(prefix: &str) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(&format!("tenure-{prefix}-"))
            .tempdir()
            .doing("create a temporary folder")?;
        Self::watch_over(Some(folder))
    }

    fn watch_over(folder: Option<TempDir>) -> Result<Self> {
        let keep = std::env::var_os("TENURE_TESTBED_KEEP").is_some_and(|value| !value.is_empty());
        let removed = folder.as_ref().filter(|_| !keep).map(TempDir::path);
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "tenure-watchdog"])
            .arg(removed.unwrap_or(Path::new("")))
            .current_dir("/")
            .stdin(Stdio::piped())
            // Not ours: who reads the test's output would wait for the watchdog.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not ours either: Ctrl-C must reach us and not the watchdog.
            .process_group(0)
            .spawn()
            .doing("start the watchdog `sh`")?;
        let pipe = watchdog
            .stdin
            .take()
            .map(|pipe| File::from(OwnedFd::from(pipe)));
        Ok(Self {
            watchdog,
            pipe,
            // From here on the watchdog is the one who removes it.
            folder: folder.map(TempDir::keep),
        })
    }

    /// The folder; empty without one.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_deref().unwrap_or(Path::new(""))
    }

    /// Starts a server, in a process group of its own, that the watchdog knows of before its first
    /// instruction. Its output goes to `log`, its standard input is empty.
    ///
    /// The program has to exist: a missing one shows as exit status 127.
    pub(crate) fn spawn_server(
        &self,
        what: &str,
        program: &Path,
        args: &[String],
        log: File,
    ) -> Result<Guarded> {
        self.spawn_server_as(None, what, program, args, log)
    }

    /// The same, as another user.
    pub(crate) fn spawn_server_as(
        &self,
        user: Option<User>,
        what: &str,
        program: &Path,
        args: &[String],
        log: File,
    ) -> Result<Guarded> {
        let pipe = self.pipe.as_ref().map(File::try_clone).transpose();
        let pipe = pipe.doing("share the watchdog's pipe")?;
        let mut command = Command::new("sh");
        for (name, _) in std::env::vars_os() {
            // etcd and PostgreSQL take options from such variables, and some that are set here would
            // mean ours.
            let text = name.to_string_lossy();
            if text.starts_with("ETCD_") || text.starts_with("PG") {
                command.env_remove(name);
            }
        }
        if let Some(user) = user {
            user.runs(&mut command);
            // It may not be allowed to be where we are.
            command.current_dir("/");
        }
        let child = command
            .args(["-c", ANNOUNCE, "tenure-start"])
            .arg(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(pipe.map_or_else(Stdio::null, Stdio::from))
            .stderr(log)
            .process_group(0)
            .spawn()
            .doing(format!("start {what}"))?;
        Ok(Guarded::new(what, child))
    }

    /// Adopts a child that was started in the ordinary way.
    pub(crate) fn adopt(&self, what: &str, child: Child) -> Guarded {
        self.tell('+', child.id());
        Guarded::new(what, child)
    }

    /// The watchdog kills this process, too, which is a child's child.
    pub(crate) fn watch(&self, pid: u32) {
        self.tell('+', pid);
    }

    /// The end of [`watch`](Self::watch).
    pub(crate) fn forget(&self, pid: u32) {
        self.tell('-', pid);
    }

    /// Kills the process and collects it. The watchdog forgets the id *between* its death and its
    /// collection: only then is it sure that the id names nobody else, and that the process no
    /// longer announces itself.
    pub(crate) fn kill(&self, guarded: &mut Guarded) -> Result<ExitStatus> {
        if guarded.status.is_none() {
            // Fails only if the process is gone, which is what is wanted.
            let _ = guarded.signal(Signal::KILL);
        }
        self.collect(guarded)
    }

    /// Waits for the end of the process, without a limit, and collects it.
    pub(crate) fn collect(&self, guarded: &mut Guarded) -> Result<ExitStatus> {
        if let Some(status) = guarded.status {
            return Ok(status);
        }
        guarded.wait_for(WaitIdOptions::EXITED)?;
        self.tell('-', guarded.child.id());
        let status = guarded
            .child
            .wait()
            .doing(format!("collect {}", guarded.what))?;
        guarded.status = Some(status);
        Ok(status)
    }

    fn tell(&self, op: char, pid: u32) {
        // A watchdog that is gone (someone killed it) is not worth a failed test.
        if let Some(mut pipe) = self.pipe.as_ref() {
            let _ = pipe.write_all(format!("{op} {pid}\n").as_bytes());
        }
    }
}

impl Drop for Reaper {
    /// Removes the folder and ends the watchdog. Processes that were not collected are killed.
    fn drop(&mut self) {
        self.pipe = None;
        let _ = self.watchdog.wait();
    }
}

/// A child process that a [`Reaper`] watches.
#[derive(Debug)]
pub(crate) struct Guarded {
    what: String,
    child: Child,
    status: Option<ExitStatus>,
}

impl Guarded {
    fn new(what: &str, child: Child) -> Self {
        Self {
            what: what.to_owned(),
            child,
            status: None,
        }
    }

    /// The process id; of a process that ended, the one it had.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has not ended. Does not collect it.
    pub(crate) fn is_running(&self) -> bool {
        self.status.is_none() && is_running(self.pid())
    }

    /// Sends a signal. The process is our child and not collected, so the id is still its own.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        if self.status.is_some() {
            return Err(self.not_running());
        }
        rustix::process::kill_process(self.raw_pid(), signal)
            .doing(format!("send a signal to {}", self.what))
    }

    /// SIGSTOP; returns when every thread of the process has stopped.
    pub(crate) fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        self.wait_for(WaitIdOptions::STOPPED | WaitIdOptions::EXITED)?;
        if self.is_running() {
            Ok(())
        } else {
            Err(self.not_running())
        }
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) -> Result<()> {
        if !self.is_running() {
            return Err(self.not_running());
        }
        self.signal(Signal::CONT)
    }

    /// Waits, without collecting it, until the process has ended or the time is over; answers
    /// whether it has ended.
    pub(crate) fn ended_within(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        while self.is_running() {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        true
    }

    fn wait_for(&self, what: WaitIdOptions) -> Result<()> {
        loop {
            let options = what | WaitIdOptions::NOWAIT;
            match rustix::process::waitid(WaitId::Pid(self.raw_pid()), options) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).doing(format!("wait for {}", self.what)),
            }
        }
    }

    fn not_running(&self) -> Error {
        Error::NotRunning {
            what: self.what.clone(),
        }
    }

    fn raw_pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }
}

/// Whether this child of ours has not ended. Does not collect it.
pub(crate) fn is_running(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    matches!(rustix::process::waitid(WaitId::Pid(pid), options), Ok(None))
}

/// The last `lines` lines of a file that may be long; empty if it cannot be read.
pub(crate) fn tail(path: &Path, lines: usize) -> String {
    let text = end_of(path);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The first lines of a log and the last: a program that refuses an option says so, and then
/// explains all of its options.
pub(crate) fn excerpt(path: &Path) -> String {
    let text = end_of(path);
    let all: Vec<&str> = text.lines().collect();
    if all.len() <= 30 {
        return all.join("\n");
    }
    let (first, last) = (&all[..5], &all[all.len() - 20..]);
    format!("{}\n[...]\n{}", first.join("\n"), last.join("\n"))
}

/// At most the last 64 KiB.
fn end_of(path: &Path) -> String {
    let read = || -> io::Result<String> {
        use std::io::{Read as _, Seek as _, SeekFrom};
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(64 * 1024)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    read().unwrap_or_default()
}
