//! A command that runs under a holding, whatever is held.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tenure::{Holding, LossReason};
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use crate::args::ProcessGroup;
use crate::exit::{CANNOT_START, Failure, NOT_FOUND, say};
use crate::output::printable;
use crate::processes::{self, GLANCE, Processes};
use crate::signals::{Received, Signals};
use crate::watchdog::{Message, Task, Watchdog};

/// How long SIGKILL may take. Only the kernel can delay it further, and then runs nothing of the process.
const KILLING: Duration = Duration::from_secs(2);

/// How a command that ran under a holding came to its end.
#[derive(Debug)]
pub(crate) enum Ended {
    /// By itself.
    Itself(ExitStatus),
    /// It was ended because the holding was lost, or (no reason) could not be renewed in time.
    Lost(Option<LossReason>, ExitStatus),
}

/// What is run, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orders<'a> {
    /// A program and its arguments.
    pub(crate) command: &'a [OsString],
    /// Its standard input; without one it has that of this process.
    pub(crate) input: Option<&'a [u8]>,
    /// The time from SIGTERM to SIGKILL.
    pub(crate) kill_after: Duration,
    pub(crate) process_group: ProcessGroup,
    /// The variables that it gets beside those of what is held.
    pub(crate) url: &'a [(&'static str, Option<OsString>)],
}

/// The remaining validity when a renewal is due: renewals start at a third of the TTL, and validity ends the
/// library's margin before the TTL does.
pub(crate) fn left_at_renewal(ttl: Duration) -> Duration {
    let margin = (ttl / 20).max(Duration::from_millis(50)).min(ttl / 2);
    (ttl * 2 / 3).saturating_sub(margin)
}

/// How long before the deadline SIGKILL comes: timers fire late on a busy machine. Of the time that renewals have,
/// it takes a part.
fn slack(kill_after: Duration, ttl: Duration) -> Duration {
    let spare = left_at_renewal(ttl).saturating_sub(kill_after);
    (spare / 4).min(ttl / 20).min(Duration::from_millis(250))
}

/// When what is `left` is over.
fn deadline(left: impl FnOnce() -> Duration) -> Duration {
    // The clock first: a pause in between makes the deadline earlier, never later.
    let now = processes::now();
    now + left()
}

/// Runs a command for as long as `holding` lasts.
///
/// Signals that come here go on to it. Once the holding is lost, or so early before its deadline that SIGKILL
/// comes by then, its processes get SIGTERM and, `kill_after` later, SIGKILL. Those that it leaves behind are
/// ended as well. None outlives this future; nor this process: the [`Watchdog`] sees to that.
pub(crate) async fn run(
    orders: Orders<'_>,
    ttl: Duration,
    holding: &Holding,
    signals: &mut Signals,
) -> Result<Ended, Failure> {
    let slack = slack(orders.kill_after, ttl);
    let reserve = orders.kill_after + slack;
    // Nothing is started that would have to be ended at once.
    while holding.loss().is_none() && holding.remaining() <= reserve {
        tokio::time::sleep(GLANCE).await;
    }
    if let Some(reason) = holding.loss() {
        return Err(crate::hold::lost(holding, Some(reason)));
    }
    // The watchdog acts a moment after this process would, and still before the deadline.
    let left = || holding.remaining().saturating_sub(slack / 2);
    let mut running = Running::start(&orders, holding, deadline(left))?;
    loop {
        running.may_run_until(deadline(left));
        if let Some(reason) = holding.loss() {
            let grace = match reason {
                // The deadline has passed: this process, or the machine, was paused.
                LossReason::Expired | LossReason::Unreachable | LossReason::Refused => {
                    Duration::ZERO
                }
                _ => orders.kill_after,
            };
            let status = running.end(signals, grace).await?;
            return Ok(Ended::Lost(Some(reason), status));
        }
        let remaining = holding.remaining();
        if remaining <= reserve {
            let grace = orders.kill_after.min(remaining);
            let status = running.end(signals, grace).await?;
            return Ok(Ended::Lost(holding.loss(), status));
        }
        let look = (remaining - reserve).min(ttl / 10);
        tokio::select! {
            biased;
            // Looked at first: after a pause of this process everything is ready at once, and a
            // child that ended too late has not ended under the lock.
            _ = holding.lost() => {}
            status = running.child.wait() => {
                let status = status.map_err(unwatched)?;
                running.ended(status)?;
                if holding.loss().is_none() {
                    running.end_the_rest(signals, orders.kill_after.min(holding.remaining())).await?;
                    return Ok(Ended::Itself(status));
                }
            }
            received = signals.next() => running.forward(received).await,
            () = tokio::time::sleep(look) => {}
        }
    }
}

/// A command that was started. Dropped, its processes are killed.
struct Running {
    child: Child,
    processes: Processes,
    watchdog: Watchdog,
    /// The time between SIGTERM and SIGKILL.
    kill_after: Duration,
    /// Whether they were sent SIGTERM, and until when they have.
    ending: Option<Duration>,
    /// Until when the watchdog knows that the processes may run.
    told: Duration,
    /// How the command has ended, if it has.
    status: Option<ExitStatus>,
    over: bool,
    _feeding: Option<Feeding>,
}

impl Running {
    fn start(orders: &Orders<'_>, holding: &Holding, deadline: Duration) -> Result<Self, Failure> {
        let own_group = match orders.process_group {
            ProcessGroup::Auto => orders.input.is_some() || !io::stdin().is_terminal(),
            ProcessGroup::Always => true,
            ProcessGroup::Never => false,
        };
        processes::adopt_orphans();
        let kill_after = orders.kill_after;
        let mut watchdog = Watchdog::start(match own_group {
            true => Task::OwnGroup(kill_after),
            false => Task::Told,
        })?;
        // Before the command runs: this process may be paused at any time.
        watchdog.tell(Message::Deadline(deadline));
        let group = processes::pid(watchdog.group()).map_err(unwatched)?;
        let group = own_group.then_some(group);
        let mut child = start(orders, group, holding)?;
        let processes = match group {
            Some(group) => Processes::Group(group),
            None => {
                let id = child.id().ok_or_else(|| io::Error::other("no process id"));
                let one = Processes::One(id.and_then(processes::pid).map_err(unwatched)?);
                watchdog.tell(Message::Watch(one, kill_after));
                one
            }
        };
        let feeding = orders.input;
        let feeding = feeding.and_then(|input| Feeding::start(&mut child, input));
        Ok(Self {
            child,
            processes,
            watchdog,
            kill_after,
            ending: None,
            told: deadline,
            status: None,
            over: false,
            _feeding: feeding,
        })
    }

    /// Tells the watchdog of a deadline that has moved: renewals move it by a third of the TTL.
    fn may_run_until(&mut self, deadline: Duration) {
        if deadline > self.told + Duration::from_millis(5) {
            self.told = deadline;
            self.watchdog.tell(Message::Deadline(deadline));
        }
    }

    /// SIGTERM, and SIGKILL for what still runs after `grace`; without any, SIGKILL at once. Returns once the
    /// processes are gone. Signals still go on to them meanwhile.
    async fn end(&mut self, signals: &mut Signals, grace: Duration) -> Result<ExitStatus, Failure> {
        let by = processes::now() + grace;
        if !grace.is_zero() {
            self.ending = Some(by);
            // Stopped with the rest of its group, the watchdog would do nothing.
            self.processes.send(Signal::CONT);
            // The watchdog sends it, so that it comes once: it may have done so already, while this process
            // was paused.
            if !self.watchdog.tell(Message::End(by)) {
                self.processes.terminate();
            }
            self.gone(signals, by).await?;
        }
        self.processes.send(Signal::KILL);
        let status = match self.status {
            Some(status) => status,
            None => {
                let status = self.child.wait().await.map_err(unwatched)?;
                self.ended(status)?
            }
        };
        self.gone(signals, processes::now() + KILLING).await?;
        self.over = true;
        Ok(status)
    }

    /// The command has ended. The watchdog makes room, so that it can be seen whether its group has other members;
    /// if it has, these get another, which is none of them.
    fn ended(&mut self, status: ExitStatus) -> Result<ExitStatus, Failure> {
        self.status = Some(status);
        self.watchdog.end();
        self.processes.reap();
        if matches!(self.processes, Processes::Group(_)) && self.processes.exist() {
            self.watchdog = Watchdog::start(Task::Told)?;
            let watch = Message::Watch(self.processes, self.kill_after);
            self.watchdog.tell(watch);
            self.watchdog.tell(match self.ending {
                Some(by) => Message::Kill(by),
                None => Message::Deadline(self.told),
            });
        }
        Ok(status)
    }

    /// Ends what the command, which has ended, has left in its group.
    async fn end_the_rest(
        &mut self,
        signals: &mut Signals,
        grace: Duration,
    ) -> Result<(), Failure> {
        if self.gone(signals, Duration::ZERO).await? {
            self.over = true;
            return Ok(());
        }
        say("the command has left processes behind: they are ended before the release");
        self.end(signals, grace).await.map(drop)
    }

    /// Waits for the end of all processes, or for `until`; returns whether they are gone.
    async fn gone(&mut self, signals: &mut Signals, until: Duration) -> Result<bool, Failure> {
        loop {
            if self.status.is_some() {
                self.processes.reap();
                // Of one process alone that was all.
                if matches!(self.processes, Processes::One(_)) || !self.processes.exist() {
                    return Ok(true);
                }
            }
            let left = until.saturating_sub(processes::now());
            if left.is_zero() {
                return Ok(false);
            }
            tokio::select! {
                biased;
                status = self.child.wait(), if self.status.is_none() => {
                    self.ended(status.map_err(unwatched)?)?;
                }
                received = signals.next() => self.forward(received).await,
                () = tokio::time::sleep(left), if self.status.is_none() => {}
                () = tokio::time::sleep(left.min(GLANCE)), if self.status.is_some() => {}
            }
        }
    }

    async fn forward(&mut self, received: Received) {
        // The terminal has told a child in the same group already. Twice is worse than once: many programs
        // take a second Ctrl-C for "at once, without cleaning up".
        if received.from_terminal && matches!(self.processes, Processes::One(_)) {
            return;
        }
        // Waited for, its id may be another's. What is left of a group is signalled by those who end it.
        if self.status.is_none()
            && let Some(signal) = Signal::from_named_raw(received.number)
        {
            self.watchdog.started().await;
            self.processes.send(signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // An early return or a panic: `kill_on_drop` sees to the command, this to the rest.
        if !self.over && matches!(self.processes, Processes::Group(_)) {
            self.processes.send(Signal::KILL);
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

fn start(orders: &Orders<'_>, group: Option<Pid>, holding: &Holding) -> Result<Child, Failure> {
    let [program, arguments @ ..] = orders.command else {
        return Err(Failure::usage("the command is empty"));
    };
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(match orders.input {
            Some(_) => Stdio::piped(),
            None => Stdio::inherit(),
        })
        .env("TENURE_NAME", holding.name().as_str())
        .env("TENURE_TOKEN", holding.token().to_string())
        .env("TENURE_SESSION", holding.session_id().as_str())
        // Should this process panic or return early, the child goes with it.
        .kill_on_drop(true);
    for (variable, value) in orders.url {
        match value {
            Some(value) => command.env(variable, value),
            None => command.env_remove(variable),
        };
    }
    if let Some(group) = group {
        command.process_group(group.as_raw_nonzero().get());
    }
    command.spawn().map_err(|error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NOT_FOUND,
            _ => CANNOT_START,
        };
        let program = printable(&program.to_string_lossy());
        Failure::new(code, format!("cannot run `{program}`: {error}"))
    })
}

fn unwatched(error: io::Error) -> Failure {
    Failure::os("wait for the command", error)
}
