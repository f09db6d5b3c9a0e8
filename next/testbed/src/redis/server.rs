//! One server as a child process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use parking_lot::Mutex;

use super::admin::RedisAdmin;
use super::clock::MovableClock;
use super::options::{Part, RedisOptions};
use crate::error::{Action, Error, Result};
use crate::folder::{Folder, replace_folder};
use crate::port::Port;
use crate::process::Process;
use crate::program::Program;

const PROGRAM: Program = Program {
    name: "redis-server",
    package: "redis-server",
    variable: "TENURE_REDIS_SERVER",
};

/// A Redis server of the test's own, with ports and a folder of its own. Dropped, it is killed and its folder removed.
///
/// Methods fail with [`Error::Start`], with the end of the log, when the server does not start; [`Error::NotRunning`] when it has
/// ended; [`Error::Usage`] when its options lack something; [`Error::Io`] when the operating system refuses.
#[derive(Debug)]
pub struct RedisServer {
    // Fields are dropped in this order: the process ends before its folder goes.
    process: Mutex<Process>,
    admin: RedisAdmin,
    pub(crate) options: RedisOptions,
    program: PathBuf,
    port: Port,
    pub(crate) bus: Port,
    clock: Option<MovableClock>,
    folder: Folder,
}

impl RedisServer {
    /// Starts a server and waits until it serves. Fails with [`Error::MissingProgram`] when Redis, or the C compiler for a movable
    /// clock, is not installed.
    pub fn start(options: RedisOptions) -> Result<Self> {
        let program = PROGRAM.find()?;
        let (port, bus, folder) = (Port::reserve()?, Port::reserve()?, Folder::create("redis")?);
        // Written once: sentinels keep their state in this file.
        let file = folder.join("redis.conf");
        fs::write(&file, options.configuration(&folder, &port, &bus)).action("write the configuration of Redis")?;
        let clock = options
            .movable_clock
            .then(|| MovableClock::build(&folder))
            .transpose()?;
        let process = Mutex::new(launch(&program, &options, clock.as_ref(), &folder)?);
        let server = Self {
            process,
            admin: RedisAdmin::by_socket(&folder.join("redis.sock"))?,
            options,
            program,
            port,
            bus,
            clock,
            folder,
        };
        server.wait_ready(&server.process.lock())?;
        Ok(server)
    }

    /// Returns `redis://127.0.0.1:PORT`, or `rediss://` with TLS, without user and password.
    pub fn url(&self) -> String {
        format!("{}://{}", self.options.scheme(""), self.address())
    }

    /// The address that clients connect to, and that a [`Proxy`](crate::Proxy) forwards to.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().pid()
    }

    /// Whether the server has not ended. A paused one is running.
    pub fn is_running(&self) -> bool {
        self.process.lock().is_running()
    }

    /// Returns an operator's access, past every proxy, certificate and user of the test.
    pub fn admin(&self) -> &RedisAdmin {
        &self.admin
    }

    /// The folder with the data. A lost disk: kill, remove the folder, restart.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Returns the last lines of the server's log.
    pub fn log(&self, lines: usize) -> String {
        self.process.lock().log(lines)
    }

    /// Sends SIGKILL; returns when the process has ended. Its port refuses connections then. Nothing to do if it has ended.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// Kills the server if it runs, starts it with the same data, ports and options, and waits until it serves. Changes by
    /// [`RedisAdmin::set_config`] and [`RedisAdmin::set_user`] are lost.
    pub fn restart(&self) -> Result<()> {
        self.restart_with(|| Ok(()))
    }

    /// Copies the data to the snapshot, as an operator's backup does.
    pub fn save_snapshot(&self) -> Result<()> {
        self.admin().execute(&["SAVE"])?;
        replace_folder(&self.data(), &self.folder.join("snapshot"))
    }

    /// Kills the server, replaces its data by the last snapshot, and starts it: all later writes are lost.
    pub fn restore_snapshot(&self) -> Result<()> {
        self.restart_with(|| replace_folder(&self.folder.join("snapshot"), &self.data()))
    }

    /// Sends SIGSTOP: connections stay open and silent. Returns when every thread has stopped.
    pub fn pause(&self) -> Result<()> {
        self.process.lock().pause()
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.process.lock().resume()
    }

    /// Moves the wall clock forward, as a step of NTP does; in force on return. Steps add up and outlast a restart. Needs
    /// [`RedisOptions::movable_clock`].
    pub fn move_clock(&self, forward: Duration) -> Result<()> {
        self.movable_clock()?.step(forward, 1)
    }

    /// Moves the wall clock back.
    pub fn move_clock_back(&self, back: Duration) -> Result<()> {
        self.movable_clock()?.step(back, -1)
    }

    /// Returns whether the clock can be moved.
    pub fn has_movable_clock(&self) -> bool {
        self.clock.is_some()
    }

    fn movable_clock(&self) -> Result<&MovableClock> {
        self.clock
            .as_ref()
            .ok_or_else(|| Error::Usage("this server was started without `movable_clock`".to_owned()))
    }

    fn restart_with(&self, prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut process = self.process.lock();
        process.kill()?;
        prepare()?;
        *process = launch(&self.program, &self.options, self.clock.as_ref(), &self.folder)?;
        self.wait_ready(&process)
    }

    fn wait_ready(&self, process: &Process) -> Result<()> {
        // While it loads its data it answers with an error.
        process.wait_ready(|| self.admin.execute(&["PING"]).is_ok())
    }
}

fn launch(program: &Path, options: &RedisOptions, clock: Option<&MovableClock>, folder: &Folder) -> Result<Process> {
    // It may have been removed as a lost disk.
    fs::create_dir_all(folder.join("data")).action("create the folder of the data")?;
    let mut command = match clock {
        None => Command::new(program),
        // By `env`: nothing but the server runs under the other clock.
        Some(clock) => {
            let mut command = Command::new("env");
            command.args(clock.variables()).arg(program);
            command
        }
    };
    command.arg(folder.join("redis.conf"));
    if options.part == Part::Sentinel {
        command.arg("--sentinel");
    }
    Process::start(PROGRAM.name, &command, folder.join("redis.log"))
}
