//! The watchdog: a process beside the test process that ends the servers and removes their folders when that has ended.
//!
//! Destructors do not run when the test process is killed, nor for values in a `static`. `PR_SET_PDEATHSIG` would tie a server to
//! the *thread* that started it, which in a test harness ends long before the process. The watchdog reads from a pipe whose only
//! lasting writer is the test process: the pipe closes at its end, in whatever way that comes.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::error::{Action, Result};
use crate::wait::unique_name;

/// `$1` is the folder to remove, or empty. Lines: `+ PID` to kill in the end, `- PID` to forget.
///
/// The loop around `rm` is for files that a dying process still creates while `rm` walks.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM PIPE
pids=
while read -r action pid; do
    case $action in
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
tries=0
while rm -rf -- "$1"; [ -e "$1" ] && [ "$tries" -lt 200 ]; do
    tries=$((tries + 1))
    sleep 0.05
done
"#;

/// Room in memory from which on servers live there. No test loses power, so none needs a disk.
const ROOM: u64 = 2 << 30;

/// The watchdog of this process.
#[derive(Debug)]
pub(crate) struct Watchdog {
    folder: PathBuf,
    pipe: File,
}

impl Watchdog {
    /// Returns the watchdog of this process; starts it at the first call.
    pub(crate) fn get() -> Result<&'static Self> {
        static WATCHDOG: OnceLock<Watchdog> = OnceLock::new();
        static START: Mutex<()> = Mutex::new(());
        if let Some(watchdog) = WATCHDOG.get() {
            return Ok(watchdog);
        }
        let _one_starts_it = START.lock();
        if let Some(watchdog) = WATCHDOG.get() {
            return Ok(watchdog);
        }
        let started = Self::start()?;
        Ok(WATCHDOG.get_or_init(|| started))
    }

    fn start() -> Result<Self> {
        let folder = parent().join(unique_name("tenure"));
        // A server that runs as another user has to reach its own folder below.
        DirBuilder::new()
            .mode(0o711)
            .create(&folder)
            .action(format!("create {}", folder.display()))?;
        let mut process = Command::new("sh")
            .args(["-c", SCRIPT, "tenure-watchdog"])
            .arg(if keeps_folders() { Path::new("") } else { &folder })
            .current_dir("/")
            .stdin(Stdio::piped())
            // A reader of the test's output would wait for the watchdog.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C and a killed process group must not reach it.
            .process_group(0)
            .spawn()
            .action("start the watchdog by `sh`")?;
        let pipe = process
            .stdin
            .take()
            .map(OwnedFd::from)
            .ok_or(std::io::ErrorKind::BrokenPipe);
        Ok(Self {
            folder,
            pipe: pipe.action("reach the watchdog")?.into(),
        })
    }

    /// The folder that is removed in the end.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns a writer of `+ PID` lines for a child that announces itself.
    pub(crate) fn announcements(&self) -> Result<Stdio> {
        Ok(self.pipe.try_clone().action("share the pipe of the watchdog")?.into())
    }

    /// The watchdog will kill this process, with its group if it leads one.
    pub(crate) fn watch(&self, pid: u32) {
        self.send('+', pid);
    }

    /// The watchdog will not kill this process. To be called between its end and its collection: earlier it may still announce
    /// itself, later the id may belong to another process.
    pub(crate) fn forget(&self, pid: u32) {
        self.send('-', pid);
    }

    fn send(&self, action: char, pid: u32) {
        // A watchdog that was killed is not worth a failed test.
        let _ = (&self.pipe).write_all(format!("{action} {pid}\n").as_bytes());
    }
}

/// Whether `TENURE_TESTBED_KEEP` asks to keep the folders.
pub(crate) fn keeps_folders() -> bool {
    std::env::var_os("TENURE_TESTBED_KEEP").is_some_and(|value| !value.is_empty())
}

/// Returns `TMPDIR` if it is set, else the memory if it has room, else the system's temporary folder.
fn parent() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = || rustix::fs::statvfs(memory).is_ok_and(|stat| stat.f_bavail.saturating_mul(stat.f_frsize) >= ROOM);
    let writable = || rustix::fs::access(memory, rustix::fs::Access::WRITE_OK).is_ok();
    if std::env::var_os("TMPDIR").is_none() && has_room() && writable() {
        return memory.to_owned();
    }
    std::env::temp_dir()
}
