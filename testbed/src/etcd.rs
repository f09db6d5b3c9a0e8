//! A real etcd as a child process, alone or as a cluster of three.
//!
//! The binary is `etcd` from `PATH`, or what `TENURE_ETCD` names, or with [`EtcdBuilder::newer`] what
//! `TENURE_ETCD_NEWER` names; `etcdctl`, or `TENURE_ETCDCTL`,
//! is needed only for [`EtcdServer::etcdctl`] and [`EtcdBuilder::root_password`]. Each server has
//! ports and a folder of its own, so tests run side by side.

mod cluster;

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::error::{Doing, Result};
use crate::ports::Port;
use crate::programs::{Known, find_binary, find_named_binary, once_asked, run, version_in};
use crate::reaper::{Guarded, Reaper, tail};
use crate::server::{Probe, launch_on_free_ports, on_a_thread, open_log};
use crate::tls::Tls;

pub use cluster::{EtcdCluster, EtcdClusterBuilder};

/// Options of an [`EtcdServer`] that is not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct EtcdBuilder {
    name: String,
    /// All members by name and peer URL, where there are more than this one.
    cluster: Option<String>,
    args: Vec<String>,
    tls: Option<Tls>,
    root_password: Option<String>,
    newer: bool,
    fsync: bool,
    start_timeout: Duration,
}

impl Default for EtcdBuilder {
    fn default() -> Self {
        Self {
            name: "etcd-1".to_owned(),
            cluster: None,
            args: Vec::new(),
            tls: None,
            root_password: None,
            newer: false,
            fsync: false,
            start_timeout: Duration::from_secs(30),
        }
    }
}

impl EtcdBuilder {
    /// The member's name; `etcd-1` by default.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// One more argument of the server, such as `--auto-compaction-retention=1s`. It comes after
    /// the test bed's own arguments, so it wins over them.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Several more arguments.
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// The etcd that `TENURE_ETCD_NEWER` names, instead of the one that is installed. Without that variable the
    /// start ends with [`Error::MissingBinary`](crate::Error::MissingBinary).
    pub fn newer(mut self) -> Self {
        self.newer = true;
        self
    }

    /// Serve clients over TLS only.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Turn authentication on, with a user `root` who has this password, before `start` returns.
    /// Uses `etcdctl`.
    pub fn root_password(mut self, password: impl Into<String>) -> Self {
        self.root_password = Some(password.into());
        self
    }

    /// How long tokens of the (default) `simple` kind live, in seconds.
    pub fn auth_token_ttl(self, seconds: u32) -> Self {
        self.arg(format!("--auth-token-ttl={seconds}"))
    }

    /// Whether every write is flushed to the disk, as in production. Off by default, where the
    /// binary allows it: a killed etcd loses nothing by that, only a crashed machine would, and
    /// writes are many times faster.
    pub fn fsync(mut self, fsync: bool) -> Self {
        self.fsync = fsync;
        self
    }

    /// How long the server may take to serve; 30 seconds by default.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Starts the server and waits until it serves. Blocks the thread, normally for 0.1 to 1 s.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBinary`](crate::Error::MissingBinary) when etcd (or a needed `etcdctl`) is not installed;
    /// [`Error::Start`](crate::Error::Start), with the end of the log, when the server ends or does not serve in time;
    /// [`Error::Command`](crate::Error::Command) when authentication cannot be set up.
    pub fn start(self) -> Result<EtcdServer> {
        let binary = Binary::find(self.newer)?;
        launch_on_free_ports(|| EtcdServer::launch(self.clone(), binary.clone()))
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
    pub async fn start_async(self) -> Result<EtcdServer> {
        on_a_thread("etcd", move || self.start()).await
    }
}

/// A running (or killed, or paused) etcd: one alone, or a member of an [`EtcdCluster`].
///
/// Dropping it kills the server and removes its folder, as does the end of this process.
#[derive(Debug)]
pub struct EtcdServer {
    process: Guarded,
    reaper: Reaper,
    options: EtcdBuilder,
    binary: Binary,
    client: Port,
    peer: Port,
    metrics: Port,
}

impl EtcdServer {
    /// Starts a server with the default options: plain HTTP, no authentication.
    ///
    /// # Errors
    ///
    /// As [`EtcdBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`EtcdBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> EtcdBuilder {
        EtcdBuilder::default()
    }

    /// The client URL: `http://127.0.0.1:PORT`, or `https://...` with TLS.
    pub fn endpoint(&self) -> String {
        let scheme = if self.options.tls.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}", self.address())
    }

    /// The client URLs of all members.
    pub fn endpoints(&self) -> Vec<String> {
        vec![self.endpoint()]
    }

    /// The client address, to put a proxy in front of.
    pub fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// The version of the binary, such as `3.4.23`.
    pub fn version(&self) -> &str {
        &self.binary.version
    }

    /// Whether the version is `major.minor` or later.
    pub fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self
            .version()
            .split('.')
            .map_while(|part| part.parse::<u32>().ok());
        let (have_major, have_minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        (have_major, have_minor) >= (major, minor)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the server process has not ended. A paused server is running.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// The folder with the member's data. To lose the disk: kill, remove the folder, restart.
    pub fn data_dir(&self) -> PathBuf {
        self.reaper.folder().join("data")
    }

    /// The last `lines` lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&log_path(&self.reaper), lines)
    }

    /// The server's metrics, in Prometheus' text form: counts of watchers, leases, requests.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the server does not answer within a second (killed, paused).
    pub fn metrics(&self) -> Result<String> {
        http_get(self.metrics.number(), "/metrics", Duration::from_secs(1))
            .doing("read the metrics of etcd")
    }

    /// SIGKILL. Returns when the process is gone; its port refuses connections and stays reserved.
    /// Killing a server that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::Error::Io) when the operating system refuses to tell of the end.
    pub fn kill(&mut self) -> Result<()> {
        self.reaper.kill(&mut self.process).map(drop)
    }

    /// Starts the server again with the same data, ports and options (and kills it first, if it
    /// still runs), and waits until it serves. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Start`](crate::Error::Start), with the end of the log.
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

    /// Saves a snapshot of the store with `etcdctl snapshot save`; [`restore_async`](Self::restore_async)
    /// returns to it. A second one replaces the first. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Command`](crate::Error::Command) when it fails;
    /// [`Error::MissingBinary`](crate::Error::MissingBinary) when `etcdctl` is not installed.
    pub fn save_snapshot(&self) -> Result<()> {
        let file = self.snapshot_file().display().to_string();
        self.run_etcdctl(&["snapshot", "save", &file]).map(drop)
    }

    /// Kills the server, replaces its data by the last [snapshot](Self::save_snapshot) with
    /// `etcdctl snapshot restore`, and starts it again on the same ports. For a server that is alone.
    ///
    /// # Errors
    ///
    /// [`Error::Command`](crate::Error::Command) when the snapshot cannot be restored,
    /// [`Error::Start`](crate::Error::Start) as for [`restart_async`](Self::restart_async).
    ///
    /// # Cancel safety
    ///
    /// When the future is dropped the server is left starting.
    pub async fn restore_async(&mut self) -> Result<()> {
        self.kill()?;
        let data = self.data_dir();
        match std::fs::remove_dir_all(&data) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).doing("remove the data of etcd");
            }
            _ => {}
        }
        let peer = format!("http://{}", self.peer.address());
        let name = &self.options.name;
        self.run_etcdctl(&[
            "snapshot".to_owned(),
            "restore".to_owned(),
            self.snapshot_file().display().to_string(),
            format!("--data-dir={}", data.display()),
            format!("--name={name}"),
            format!("--initial-cluster={name}={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
        ])?;
        self.restart_async().await
    }

    fn snapshot_file(&self) -> PathBuf {
        self.reaper.folder().join("snapshot.db")
    }

    /// SIGSTOP: connections stay open and silent. Returns when every thread has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`](crate::Error::NotRunning) when the server has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`](crate::Error::NotRunning) when the server has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// An `etcdctl` that is set up for this server (API version 3, endpoint, certificates, the
    /// root password if there is one), with `args` after that. Not started yet. An `--endpoints` in
    /// `args` does not replace the server's own but adds to it: etcdctl would use either.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBinary`](crate::Error::MissingBinary) when `etcdctl` is not installed.
    pub fn etcdctl<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<Command> {
        self.etcdctl_as(self.options.root_password.as_deref(), args)
    }

    /// Runs [`etcdctl`](Self::etcdctl) and returns what it wrote, without the last line break.
    /// Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Command`](crate::Error::Command) when it fails; [`Error::MissingBinary`](crate::Error::MissingBinary).
    pub fn run_etcdctl<A: AsRef<OsStr>>(&self, args: &[A]) -> Result<String> {
        run(self.etcdctl(args)?, args)
    }

    fn etcdctl_as<A: AsRef<OsStr>>(
        &self,
        root_password: Option<&str>,
        args: &[A],
    ) -> Result<Command> {
        let binary = find_binary("etcdctl", "etcd-client", "TENURE_ETCDCTL")?;
        let mut command = Command::new(binary);
        // etcdctl also takes its options from such variables, and refuses an option given twice.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCDCTL_") {
                command.env_remove(name);
            }
        }
        command.env("ETCDCTL_API", "3");
        command.arg(format!("--endpoints={}", self.endpoint()));
        if let Some(tls) = &self.options.tls {
            command.arg("--cacert").arg(&tls.ca);
            if let Some((_, client)) = &tls.client {
                command
                    .arg("--cert")
                    .arg(&client.cert)
                    .arg("--key")
                    .arg(&client.key);
            }
        }
        if let Some(password) = root_password {
            command
                .arg("--user=root")
                .arg(format!("--password={password}"));
        }
        command.args(args);
        Ok(command)
    }

    fn launch(options: EtcdBuilder, binary: Binary) -> Result<Self> {
        let ports = [Port::pick()?, Port::pick()?, Port::pick()?];
        let server = Self::spawn(options, binary, ports)?;
        server.probe().wait()?;
        server.enable_auth()?;
        Ok(server)
    }

    /// Starts the process. A member alone of several does not serve yet.
    fn spawn(
        options: EtcdBuilder,
        binary: Binary,
        [client, peer, metrics]: [Port; 3],
    ) -> Result<Self> {
        let reaper = Reaper::with_folder("etcd")?;
        let log = open_log(&log_path(&reaper))?;
        let args = arguments(&options, &binary, &reaper, [&client, &peer, &metrics]);
        let process = reaper.spawn_server("etcd", &binary.path, &args, log)?;
        Ok(Self {
            process,
            reaper,
            options,
            binary,
            client,
            peer,
            metrics,
        })
    }

    fn relaunch(&mut self) -> Result<()> {
        self.kill()?;
        let ports = [&self.client, &self.peer, &self.metrics];
        let args = arguments(&self.options, &self.binary, &self.reaper, ports);
        let log = open_log(&log_path(&self.reaper))?;
        self.process = self
            .reaper
            .spawn_server("etcd", &self.binary.path, &args, log)?;
        Ok(())
    }

    fn enable_auth(&self) -> Result<()> {
        let Some(password) = &self.options.root_password else {
            return Ok(());
        };
        let add = ["user", "add", "root", "--new-user-password", password];
        let steps: [&[&str]; 4] = [
            &["role", "add", "root"],
            &add,
            &["user", "grant-role", "root", "root"],
            &["auth", "enable"],
        ];
        for step in steps {
            // The password is no part of the words that an error shows.
            let shown = &step[..step.len().min(3)];
            run(self.etcdctl_as(None, step)?, shown)?;
        }
        Ok(())
    }

    fn probe(&self) -> Probe {
        let mut health = Health::on(self.metrics.number());
        let pause = Duration::from_millis(10);
        Probe {
            what: "etcd",
            pid: self.process.pid(),
            log: log_path(&self.reaper),
            timeout: self.options.start_timeout,
            pause: (pause, pause),
            serves: Box::new(move || health.is_good()),
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        // The watchdog would do it, too; but a destructor that has returned has freed the port.
        let _ = self.reaper.kill(&mut self.process);
    }
}

/// The server's arguments, the same at every start.
fn arguments(
    options: &EtcdBuilder,
    binary: &Binary,
    reaper: &Reaper,
    [client, peer, metrics]: [&Port; 3],
) -> Vec<String> {
    let scheme = if options.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let client = format!("{scheme}://{}", client.address());
    let peer = format!("http://{}", peer.address());
    let alone = format!("{}={peer}", options.name);
    let mut args = vec![
        format!("--name={}", options.name),
        format!("--data-dir={}", reaper.folder().join("data").display()),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!(
            "--initial-cluster={}",
            options.cluster.as_ref().unwrap_or(&alone)
        ),
        // Health without TLS and without a client certificate, whatever the clients need.
        format!("--listen-metrics-urls=http://{}", metrics.address()),
        "--logger=zap".to_owned(),
    ];
    if let Some(tls) = &options.tls {
        args.push(format!("--cert-file={}", tls.server.cert.display()));
        args.push(format!("--key-file={}", tls.server.key.display()));
        if let Some((ca, _)) = &tls.client {
            args.push("--client-cert-auth".to_owned());
            args.push(format!("--trusted-ca-file={}", ca.display()));
        }
    }
    if options.root_password.is_some() {
        // The cheapest hash: passwords are checked at every (re)authentication.
        args.push("--bcrypt-cost=4".to_owned());
    }
    if binary.can_skip_fsync && !options.fsync {
        args.push("--unsafe-no-fsync".to_owned());
    }
    args.extend(options.args.iter().cloned());
    args
}

fn log_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("etcd.log")
}

/// What a server that starts says of itself.
struct Health {
    metrics: u16,
    leader_since: Option<Instant>,
}

impl Health {
    fn on(metrics: u16) -> Self {
        Self {
            metrics,
            leader_since: None,
        }
    }

    fn is_good(&mut self) -> bool {
        let health = self.get("/health");
        // `true` comes after a read through the quorum, so the store serves.
        if health.contains(r#""health":"true""#) {
            return true;
        }
        // With an alarm raised (no space left) a server that serves calls itself unhealthy for
        // ever; it has a leader then. So has one that is about to be healthy: wait a little.
        if !health.is_empty() && self.get("/metrics").contains("\netcd_server_has_leader 1") {
            let since = *self.leader_since.get_or_insert_with(Instant::now);
            return since.elapsed() > Duration::from_secs(2);
        }
        false
    }

    /// The body of the answer; empty if there is none.
    fn get(&self, path: &str) -> String {
        http_get(self.metrics, path, Duration::from_secs(2)).unwrap_or_default()
    }
}

/// The body of a plain HTTP answer, whatever its status.
fn http_get(port: u16, path: &str, timeout: Duration) -> std::io::Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // Version 1.0: the body ends with the connection and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let (_, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok(body.to_owned())
}

fn command(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// The etcd that is installed, and what it can do.
#[derive(Debug, Clone)]
struct Binary {
    path: PathBuf,
    version: String,
    can_skip_fsync: bool,
}

impl Binary {
    fn find(newer: bool) -> Result<Self> {
        static KNOWN: Known<Binary> = Mutex::new(None);
        let package = "etcd-server";
        let path = match newer {
            true => find_named_binary("etcd", package, "TENURE_ETCD_NEWER")?,
            false => find_binary("etcd", package, "TENURE_ETCD")?,
        };
        once_asked(&KNOWN, path, Self::ask)
    }

    fn ask(path: &Path) -> Result<Self> {
        // 3.4's late releases take the option without listing it, so it has to be tried.
        let skip = ["--unsafe-no-fsync", "--version"];
        let (text, can_skip_fsync) = match run(command(path, &skip), &skip) {
            Ok(text) => (text, true),
            Err(_) => (run(command(path, &["--version"]), &["--version"])?, false),
        };
        let version = text
            .lines()
            .find_map(|line| line.strip_prefix("etcd Version:"))
            .map(str::trim);
        Ok(Self {
            path: path.to_owned(),
            version: version_in(version, "etcd", path, &text)?,
            can_skip_fsync,
        })
    }
}
