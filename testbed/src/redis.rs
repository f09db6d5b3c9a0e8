//! A real Redis as a child process: alone, with a replica, under sentinels, or as a cluster.
//!
//! The binary is `redis-server` (7.0 or later) from `PATH`, or what `TENURE_REDIS_SERVER` names. No
//! other program is needed; [`RedisBuilder::movable_clock`] needs a C compiler. Each server has
//! ports and a folder of its own, so tests run side by side.
//!
//! Beside the users that a test asks for, every server has one for the test bed itself
//! (`testbed`), by which it is asked over a socket in its folder: [`RedisServer::command`] works
//! whatever a test does to ports, certificates and users.

mod clock;
mod cluster;
mod replica;
mod resp;
mod sentinel;

use std::fmt::Write as _;
use std::fs::File;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::ports::Port;
use crate::programs::{Known, find_binary, once_asked, version_in, version_text};
use crate::reaper::{Guarded, Reaper, tail};
use crate::server::{self, Probe, launch_on_free_ports, open_log};
use crate::tls::Tls;
use clock::Clock;
use resp::{ADMIN, Control};

pub use cluster::{RedisCluster, RedisClusterBuilder};
pub use replica::{RedisReplica, RedisReplicaBuilder};
pub use sentinel::{RedisSentinels, RedisSentinelsBuilder};

/// The program, and Debian's package of it.
const SERVER: &str = "redis-server";

/// How long one command may take. Far more than it needs: only a paused server is silent so long.
const COMMAND: Duration = Duration::from_secs(5);

/// Makes `to` a copy of `from`.
fn replace_folder(from: &Path, to: &Path) -> Result<()> {
    match std::fs::remove_dir_all(to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).doing("remove a folder of Redis")
        }
        _ => copy_folder(from, to).doing("copy the data of Redis"),
    }
}

fn copy_folder(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// When a write reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppendFsync {
    /// Before it is answered.
    #[default]
    Always,
    /// Within about a second.
    EverySecond,
    /// When the operating system likes.
    No,
}

impl AppendFsync {
    fn word(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::EverySecond => "everysec",
            Self::No => "no",
        }
    }
}

/// Options of a [`RedisServer`] that is not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct RedisBuilder {
    persistence: Option<AppendFsync>,
    lines: Vec<String>,
    tls: Option<Tls>,
    cluster: bool,
    sentinel: bool,
    movable_clock: bool,
    start_timeout: Duration,
}

impl Default for RedisBuilder {
    fn default() -> Self {
        Self {
            persistence: Some(AppendFsync::Always),
            lines: Vec::new(),
            tls: None,
            cluster: false,
            sentinel: false,
            movable_clock: false,
            start_timeout: Duration::from_secs(30),
        }
    }
}

impl RedisBuilder {
    /// Keep an append-only file and flush it so. On by default, and flushed at every write: the
    /// only way in which Redis keeps what it has acknowledged.
    pub fn append_only(mut self, fsync: AppendFsync) -> Self {
        self.persistence = Some(fsync);
        self
    }

    /// Keep nothing: a restart is an empty store.
    pub fn no_persistence(mut self) -> Self {
        self.persistence = None;
        self
    }

    /// How much memory it may use (`100mb`), and what it does then (`noeviction`, `allkeys-lru`).
    pub fn max_memory(self, limit: &str, policy: &str) -> Self {
        self.line(format!("maxmemory {limit}"))
            .line(format!("maxmemory-policy {policy}"))
    }

    /// The password of the default user. The URL does not contain it.
    pub fn password(self, password: &str) -> Self {
        self.line(format!("requirepass {}", quoted(password)))
    }

    /// A user with these rules: `user("app", "on >secret ~ns:* &ns:* +@all")`. To keep everybody
    /// else out: `user("default", "off")`.
    pub fn user(self, name: &str, rules: &str) -> Self {
        self.line(format!("user {name} {rules}"))
    }

    /// One more line of the configuration file. It comes after the test bed's own lines, so it wins
    /// over them.
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Serve TLS only, to clients, replicas and other nodes.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// A server whose wall clock [`RedisServer::clock_forward`] and [`RedisServer::clock_back`]
    /// move.
    pub fn movable_clock(mut self) -> Self {
        self.movable_clock = true;
        self
    }

    /// How long the server may take to serve; 30 seconds by default.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Starts the server and waits until it serves. Blocks the thread, normally for some 50 ms.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBinary`] when Redis (or a needed compiler) is not installed;
    /// [`Error::Start`], with the end of the log, when the server ends or does not serve in time.
    pub fn start(self) -> Result<RedisServer> {
        let binary = Binary::find()?;
        launch_on_free_ports(|| RedisServer::launch(self.clone(), binary.clone()))
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped, the start goes on in the background and its server is ended as
    /// soon as it is done.
    pub async fn start_async(self) -> Result<RedisServer> {
        on_a_thread(move || self.start()).await
    }

    fn scheme(&self, kind: &str) -> String {
        let secure = if self.tls.is_some() { "s" } else { "" };
        format!("redis{secure}{kind}")
    }
}

/// A running (or killed, or paused) Redis server.
///
/// Dropping it kills the server and removes its folder, as does the end of this process.
#[derive(Debug)]
pub struct RedisServer {
    process: Guarded,
    reaper: Reaper,
    options: RedisBuilder,
    binary: Binary,
    port: Port,
    bus: Port,
    clock: Option<Clock>,
}

impl RedisServer {
    /// Starts a server with the default options: no TLS, no password, every write flushed.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`RedisBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> RedisBuilder {
        RedisBuilder::default()
    }

    /// `redis://127.0.0.1:PORT`, or `rediss://...` with TLS; without user and password.
    pub fn url(&self) -> String {
        format!("{}://{}", self.options.scheme(""), self.address())
    }

    /// The address, to put a proxy in front of.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The version of the binary, such as `7.0.15`.
    pub fn version(&self) -> &str {
        &self.binary.version
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the server process has not ended. A paused server is running.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// The folder with the data. To lose the disk: kill, remove the folder, restart.
    pub fn data_dir(&self) -> PathBuf {
        self.reaper.folder().join("data")
    }

    /// The last `lines` lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&log_path(&self.reaper), lines)
    }

    /// Sends a command, as a user who may do everything, over a connection of its own past every
    /// proxy, and returns the answer: text as it is, nothing for nil, a line for each element of a
    /// list. Blocks the thread, for as long as the server thinks about it.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the server says no; [`Error::Io`] when it does not answer within five
    /// seconds (killed, paused), or when somebody's `CLIENT KILL` met this connection, too: sentinels
    /// send one to a server whose part they change.
    pub fn command<A: AsRef<str>>(&self, args: &[A]) -> Result<String> {
        self.control().command(args, COMMAND)
    }

    /// One value out of `INFO`, such as `role` or `connected_clients`; `None` if it is not there.
    ///
    /// # Errors
    ///
    /// As [`command`](Self::command).
    pub fn info(&self, field: &str) -> Result<Option<String>> {
        self.control().info(field)
    }

    /// SIGKILL. Returns when the process is gone; its port refuses connections and stays reserved.
    /// Killing a server that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the operating system refuses to tell of the end.
    pub fn kill(&mut self) -> Result<()> {
        self.reaper.kill(&mut self.process).map(drop)
    }

    /// Starts the server again with the same data, ports and options (and kills it first, if it
    /// still runs), and waits until it serves. Blocks the thread. What `CONFIG SET` changed is
    /// forgotten unless it was followed by `CONFIG REWRITE`.
    ///
    /// # Errors
    ///
    /// [`Error::Start`], with the end of the log.
    pub fn restart(&mut self) -> Result<()> {
        self.relaunch()?;
        self.probe().wait()
    }

    /// [`restart`](Self::restart) that lets the runtime go on while the server starts.
    ///
    /// # Errors
    ///
    /// As [`restart`](Self::restart).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server is left starting.
    pub async fn restart_async(&mut self) -> Result<()> {
        self.relaunch()?;
        self.probe().wait_async().await
    }

    /// Copies the data, as an operator's backup does: [`restore_async`](Self::restore_async) returns to it.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the server cannot save; [`Error::Io`] when the operating system refuses the copy.
    pub fn save_snapshot(&self) -> Result<()> {
        self.command(&["SAVE"])?;
        replace_folder(&self.data_dir(), &self.backup_dir())
    }

    /// Kills the server, puts the last snapshot back and starts the server on it.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] without a snapshot; otherwise as [`restart`](Self::restart).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server is left starting.
    pub async fn restore_async(&mut self) -> Result<()> {
        self.kill()?;
        replace_folder(&self.backup_dir(), &self.data_dir())?;
        self.restart_async().await
    }

    fn backup_dir(&self) -> PathBuf {
        self.reaper.folder().join("backup")
    }

    /// SIGSTOP: connections stay open and silent. Returns when every thread has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the server has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the server has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// The server's wall clock jumps forward, as by a step of NTP; in force when this returns.
    /// Jumps add up, and outlast a restart.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] without [`RedisBuilder::movable_clock`].
    pub fn clock_forward(&self, by: Duration) -> Result<()> {
        self.movable()?.move_by(clock::nanos(by)?)
    }

    /// The server's wall clock jumps back.
    ///
    /// # Errors
    ///
    /// As [`clock_forward`](Self::clock_forward).
    pub fn clock_back(&self, by: Duration) -> Result<()> {
        self.movable()?.move_by(-clock::nanos(by)?)
    }

    fn movable(&self) -> Result<&Clock> {
        self.clock.as_ref().ok_or_else(|| {
            Error::Config("this server was started without `movable_clock`".to_owned())
        })
    }

    fn launch(options: RedisBuilder, binary: Binary) -> Result<Self> {
        let (port, bus) = (Port::pick()?, Port::pick()?);
        let reaper = Reaper::with_folder("redis")?;
        let clock = options
            .movable_clock
            .then(|| Clock::compile(reaper.folder()))
            .transpose()?;
        std::fs::write(
            reaper.folder().join("redis.conf"),
            configuration(&options, &reaper, [&port, &bus]),
        )
        .doing("write the configuration of redis-server")?;
        let process = spawn(&options, &binary, &reaper, clock.as_ref())?;
        let server = Self {
            process,
            reaper,
            options,
            binary,
            port,
            bus,
            clock,
        };
        server.probe().wait()?;
        Ok(server)
    }

    fn relaunch(&mut self) -> Result<()> {
        self.kill()?;
        // The configuration is not written again: sentinels and nodes keep their state in it.
        self.process = spawn(
            &self.options,
            &self.binary,
            &self.reaper,
            self.clock.as_ref(),
        )?;
        Ok(())
    }

    fn control(&self) -> Control {
        Control::new(socket_path(&self.reaper))
    }

    fn probe(&self) -> Probe {
        let control = self.control();
        let pause = Duration::from_millis(5);
        Probe {
            what: SERVER,
            pid: self.process.pid(),
            log: log_path(&self.reaper),
            timeout: self.options.start_timeout,
            pause: (pause, pause),
            // While it loads its data it answers with an error.
            serves: Box::new(move || {
                matches!(control.command(&["PING"], COMMAND).as_deref(), Ok("PONG"))
            }),
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        // The watchdog would do it, too; but a destructor that has returned has freed the port.
        let _ = self.reaper.kill(&mut self.process);
    }
}

fn log_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("redis.log")
}

fn socket_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("redis.sock")
}

fn spawn(
    options: &RedisBuilder,
    binary: &Binary,
    reaper: &Reaper,
    clock: Option<&Clock>,
) -> Result<Guarded> {
    // Removed together with the data when a disk is lost.
    let data = reaper.folder().join("data");
    std::fs::create_dir_all(&data).doing(format!("create {}", data.display()))?;
    let log = open_log(&log_path(reaper))?;
    let config = reaper.folder().join("redis.conf").display().to_string();
    let mut args = vec![config];
    if options.sentinel {
        args.push("--sentinel".to_owned());
    }
    start(&binary.path, args, clock, reaper, log)
}

fn start(
    program: &Path,
    mut args: Vec<String>,
    clock: Option<&Clock>,
    reaper: &Reaper,
    log: File,
) -> Result<Guarded> {
    let Some(clock) = clock else {
        return reaper.spawn_server(SERVER, program, &args, log);
    };
    // By `env`, so that nothing but the server runs under the other clock.
    args.insert(0, program.display().to_string());
    args.splice(0..0, clock.environment());
    reaper.spawn_server(SERVER, Path::new("env"), &args, log)
}

/// The configuration file. Passwords stand in it and not in the arguments, which anyone may see.
fn configuration(options: &RedisBuilder, reaper: &Reaper, [port, bus]: [&Port; 2]) -> String {
    let mut lines = vec![
        format!("dir {}", quoted_path(&reaper.folder().join("data"))),
        "bind 127.0.0.1".to_owned(),
        format!("unixsocket {}", quoted_path(&socket_path(reaper))),
        format!("user {ADMIN} on >{ADMIN} ~* &* +@all"),
    ];
    match &options.tls {
        None => lines.push(format!("port {}", port.number())),
        Some(tls) => lines.extend(tls_lines(tls, port)),
    }
    if !options.sentinel {
        lines.extend(store_lines(options));
    }
    if options.cluster {
        lines.push("cluster-enabled yes".to_owned());
        lines.push(format!("cluster-port {}", bus.number()));
        // Which slots and which nodes: lost with the data would mean another node.
        lines.push("cluster-config-file nodes.conf".to_owned());
    }
    lines.extend(options.lines.iter().cloned());
    lines.join("\n") + "\n"
}

fn store_lines(options: &RedisBuilder) -> Vec<String> {
    let mut lines = vec![
        // No snapshots in the background: the file is written at once or not at all.
        "save \"\"".to_owned(),
        "enable-debug-command local".to_owned(),
        // For replicas and nodes, whichever of them is the primary.
        format!("masteruser {ADMIN}"),
        format!("masterauth {ADMIN}"),
        "repl-diskless-sync yes".to_owned(),
        "repl-diskless-sync-delay 0".to_owned(),
    ];
    match options.persistence {
        None => lines.push("appendonly no".to_owned()),
        Some(fsync) => {
            lines.push("appendonly yes".to_owned());
            lines.push(format!("appendfsync {}", fsync.word()));
        }
    }
    lines
}

fn tls_lines(tls: &Tls, port: &Port) -> Vec<String> {
    let (ca, clients) = match &tls.client {
        Some((ca, _)) => (ca, "yes"),
        None => (&tls.ca, "no"),
    };
    vec![
        "port 0".to_owned(),
        format!("tls-port {}", port.number()),
        format!("tls-cert-file {}", quoted_path(&tls.server.cert)),
        format!("tls-key-file {}", quoted_path(&tls.server.key)),
        format!("tls-ca-cert-file {}", quoted_path(ca)),
        format!("tls-auth-clients {clients}"),
        "tls-replication yes".to_owned(),
        "tls-cluster yes".to_owned(),
    ]
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// A word of the configuration file, whatever is in it.
fn quoted(word: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in word.bytes() {
        match byte {
            b'"' | b'\\' => {
                quoted.push('\\');
                quoted.push(char::from(byte));
            }
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "\\x{byte:02x}");
            }
        }
    }
    quoted.push('"');
    quoted
}

impl Control {
    /// One value out of `INFO`.
    fn info(&self, field: &str) -> Result<Option<String>> {
        let info = self.command(&["INFO", "everything"], COMMAND)?;
        Ok(info
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
            .map(|value| value.trim_end().to_owned()))
    }
}

/// Asks again and again until there is an answer. Errors are answers that may still change.
fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    server::wait_until(what, timeout, Duration::from_millis(20), || match ask() {
        Ok(Some(answer)) => ControlFlow::Break(Ok(answer)),
        Ok(None) => ControlFlow::Continue(String::new()),
        Err(error) => ControlFlow::Continue(format!("\n{error}")),
    })
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    server::on_a_thread(SERVER, work).await
}

/// The Redis that is installed.
#[derive(Debug, Clone)]
struct Binary {
    path: PathBuf,
    version: String,
}

impl Binary {
    fn find() -> Result<Self> {
        static KNOWN: Known<Binary> = Mutex::new(None);
        let path = find_binary(SERVER, SERVER, "TENURE_REDIS_SERVER")?;
        once_asked(&KNOWN, path, Self::ask)
    }

    fn ask(path: &Path) -> Result<Self> {
        let text = version_text(SERVER, path)?;
        let version = text
            .split_whitespace()
            .find_map(|word| word.strip_prefix("v="));
        Ok(Self {
            path: path.to_owned(),
            version: version_in(version, "Redis", path, &text)?,
        })
    }
}
