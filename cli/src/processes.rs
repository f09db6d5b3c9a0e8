//! The processes of a command: its process group, or the one process where it shares the group of this one.

use std::io;
use std::time::Duration;

use rustix::process::{
    Pid, Signal, WaitOptions, kill_process, kill_process_group, test_kill_process,
    test_kill_process_group, waitpgid,
};
use rustix::time::{ClockId, clock_gettime};

/// How often a look is taken whether processes are gone. Nothing tells of the end of a grandchild.
pub(crate) const GLANCE: Duration = Duration::from_millis(5);

/// What a signal for the command is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Processes {
    /// The group of the command: also the processes that it started, unless they left the group.
    Group(Pid),
    /// The command alone, in the group of `tenure`.
    One(Pid),
}

impl Processes {
    /// Sends a signal. Processes that have ended are no error.
    pub(crate) fn send(self, signal: Signal) {
        let sent = match self {
            Self::Group(id) => kill_process_group(id, signal),
            Self::One(id) => kill_process(id, signal),
        };
        if let Err(error) = sent {
            tracing::debug!(?signal, %error, "the command did not get a signal");
        }
    }

    /// Asks them to end. A stopped process acts on SIGTERM only once it continues.
    pub(crate) fn terminate(self) {
        self.send(Signal::TERM);
        self.send(Signal::CONT);
    }

    /// Whether any of them exists. A process that has ended exists until its parent has waited for it.
    pub(crate) fn exist(self) -> bool {
        let tested = match self {
            Self::Group(id) => test_kill_process_group(id),
            Self::One(id) => test_kill_process(id),
        };
        // A process of another user exists, although it cannot be signalled.
        !matches!(tested, Err(error) if error == rustix::io::Errno::SRCH)
    }

    /// Waits for those members of the group that this process adopted (see [`adopt_orphans`]) and that have
    /// ended. The command itself has to be waited for before.
    pub(crate) fn reap(self) {
        if let Self::Group(id) = self {
            while let Ok(Some(_)) = waitpgid(id, WaitOptions::NOHANG) {}
        }
    }
}

/// Makes this process the parent of what its children leave behind: otherwise a process that has ended stays
/// in the group until process 1 has waited for it, which in many containers never happens.
pub(crate) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        tracing::debug!(%error, "orphans are left to process 1");
    }
}

/// The time since the machine started, sleep included: one clock for all processes.
pub(crate) fn now() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The process id as the operating system's calls take it.
pub(crate) fn pid(id: u32) -> io::Result<Pid> {
    i32::try_from(id)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| io::Error::other("not a process id"))
}
