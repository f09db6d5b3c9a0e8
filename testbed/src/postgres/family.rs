//! The processes of one server: the first, which is our child, and one for each connection.
//!
//! They put themselves into process groups of their own, so there is no signal for all of them.

use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::error::Result;
use crate::reaper::{Guarded, Reaper};

/// Stops all of them, the first one first, so that none is added. Returns the others.
pub(super) fn stop(reaper: &Reaper, first: &Guarded) -> Result<Vec<u32>> {
    first.pause()?;
    let others = children(first.pid());
    for &pid in &others {
        // Those that are stopped do not notice that the first is gone: somebody has to kill them.
        reaper.watch(pid);
        signal(pid, Signal::STOP);
    }
    wait_until(&others, |state| matches!(state, 'T' | 't' | 'Z' | 'X'));
    Ok(others)
}

/// Continues them.
pub(super) fn resume(reaper: &Reaper, first: &Guarded, others: &[u32]) -> Result<()> {
    for &pid in others {
        signal(pid, Signal::CONT);
        reaper.forget(pid);
    }
    first.resume()
}

/// Kills all of them, the first one last: until it collects the others, their numbers are no
/// one else's, and as it is stopped by then, it never does.
pub(super) fn kill(reaper: &Reaper, first: &mut Guarded) -> Result<()> {
    if first.is_running() && first.pause().is_ok() {
        let others = children(first.pid());
        for &pid in &others {
            signal(pid, Signal::KILL);
        }
        wait_until(&others, |state| matches!(state, 'Z' | 'X'));
        for pid in others {
            reaper.forget(pid);
        }
    }
    reaper.kill(first).map(drop)
}

fn signal(pid: u32, signal: Signal) {
    // Fails only for a process that is gone.
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

fn wait_until(pids: &[u32], is_so: impl Fn(char) -> bool) {
    while !pids
        .iter()
        .all(|&pid| state_and_parent(pid).is_none_or(|(state, _)| is_so(state)))
    {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The children that have not ended. None where there is no `/proc`: there, only the first process
/// is stopped, and those of connections go on until they notice that it is gone.
fn children(parent: u32) -> Vec<u32> {
    let Ok(all) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    all.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|&pid| {
            state_and_parent(pid)
                .is_some_and(|(state, its)| its == parent && !matches!(state, 'Z' | 'X'))
        })
        .collect()
}

fn state_and_parent(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.next()?.parse().ok()?))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen() {
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .expect("sleep");
        let seen = children(std::process::id()).contains(&child.id());
        child.kill().expect("killed");
        child.wait().expect("collected");
        assert!(seen);
        assert!(!children(std::process::id()).contains(&child.id()));
    }
}
