//! One member as a child process.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use parking_lot::Mutex;

use super::admin::EtcdAdmin;
use super::options::{EtcdOptions, MEMBER, peer_url};
use crate::error::{Action, Result};
use crate::folder::Folder;
use crate::port::Port;
use crate::process::Process;
use crate::program::Program;

const PROGRAM: Program = Program {
    name: "etcd",
    package: "etcd-server",
    variable: "TENURE_ETCD_SERVER",
};

/// An etcd of one member of the test's own, with ports and a folder of its own. Dropped, it is killed and its folder removed.
///
/// A start takes some 200 ms. Methods fail as those of [`RedisServer`](crate::RedisServer), and as those of [`EtcdAdmin`] where
/// they use it.
#[derive(Debug)]
pub struct EtcdServer {
    // Fields are dropped in this order: the process ends before its folder goes.
    process: Mutex<Process>,
    admin: EtcdAdmin,
    options: EtcdOptions,
    program: PathBuf,
    client: Port,
    peer: Port,
    metrics: Port,
    folder: Folder,
}

impl EtcdServer {
    /// Starts a member and waits until it serves.
    pub fn start(options: EtcdOptions) -> Result<Self> {
        let program = PROGRAM.find()?;
        let (client, peer, metrics) = (Port::reserve()?, Port::reserve()?, Port::reserve()?);
        let folder = Folder::create("etcd")?;
        let arguments = options.arguments(&folder, [&client, &peer, &metrics]);
        let server = Self {
            process: Mutex::new(launch(&program, &arguments, &folder)?),
            admin: EtcdAdmin::of(&client.address().to_string(), &options),
            options,
            program,
            client,
            peer,
            metrics,
            folder,
        };
        server.wait_ready(&server.process.lock())?;
        if server.options.root_password.is_some() {
            server.enable_authentication()?;
        }
        Ok(server)
    }

    /// Returns `etcd://127.0.0.1:PORT`, or `etcds://` with TLS, without user and password.
    pub fn url(&self) -> String {
        let secure = if self.options.tls.is_some() { "s" } else { "" };
        format!("etcd{secure}://{}", self.address())
    }

    /// The address that clients connect to, and that a [`Proxy`](crate::Proxy) forwards to.
    pub fn address(&self) -> SocketAddr {
        self.client.address()
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.process.lock().pid()
    }

    /// Whether the server has not ended. A paused one is running.
    pub fn is_running(&self) -> bool {
        self.process.lock().is_running()
    }

    /// Returns an operator's access, as `root` if authentication is on.
    pub fn admin(&self) -> &EtcdAdmin {
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

    /// Returns a number of the server's metrics, such as `etcd_debugging_mvcc_watcher_total`; `None` if it has none of this name.
    pub fn metric(&self, name: &str) -> Result<Option<f64>> {
        let metrics = http_get(self.metrics.address(), "/metrics").action("read the metrics of etcd")?;
        let mut values = metrics
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(values.next().and_then(|value| value.parse().ok()))
    }

    /// Sends SIGKILL; returns when the process has ended. Its port refuses connections then. Nothing to do if it has ended.
    pub fn kill(&self) -> Result<()> {
        self.process.lock().kill()
    }

    /// Kills the server if it runs, starts it with the same data, ports and options, and waits until it serves.
    pub fn restart(&self) -> Result<()> {
        self.restart_with(|| Ok(()))
    }

    /// Copies the data to the snapshot, as an operator's backup does.
    pub fn save_snapshot(&self) -> Result<()> {
        let file = self.snapshot();
        if file.exists() {
            fs::remove_file(&file).action("remove the last snapshot")?;
        }
        let file = file.display().to_string();
        self.admin.run(&["snapshot", "save", &file]).map(drop)
    }

    /// Kills the server, replaces its data by the last snapshot, and starts it: all later writes are lost, and the revision falls.
    pub fn restore_snapshot(&self) -> Result<()> {
        self.restart_with(|| {
            let data = self.data();
            if data.exists() {
                fs::remove_dir_all(&data).action("remove the data of etcd")?;
            }
            let peer = peer_url(&self.peer);
            let arguments = [
                "snapshot".to_owned(),
                "restore".to_owned(),
                self.snapshot().display().to_string(),
                format!("--data-dir={}", data.display()),
                format!("--name={MEMBER}"),
                format!("--initial-cluster={MEMBER}={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
            ];
            self.admin.run(&arguments).map(drop)
        })
    }

    /// Sends SIGSTOP: connections stay open and silent. Returns when every thread has stopped.
    pub fn pause(&self) -> Result<()> {
        self.process.lock().pause()
    }

    /// Sends SIGCONT.
    pub fn resume(&self) -> Result<()> {
        self.process.lock().resume()
    }

    fn snapshot(&self) -> PathBuf {
        self.folder.join("snapshot.db")
    }

    fn restart_with(&self, prepare: impl FnOnce() -> Result<()>) -> Result<()> {
        let mut process = self.process.lock();
        process.kill()?;
        prepare()?;
        let arguments = self
            .options
            .arguments(&self.folder, [&self.client, &self.peer, &self.metrics]);
        *process = launch(&self.program, &arguments, &self.folder)?;
        self.wait_ready(&process)
    }

    fn wait_ready(&self, process: &Process) -> Result<()> {
        // `true` comes after a read through the quorum.
        let metrics = self.metrics.address();
        process.wait_ready(|| http_get(metrics, "/health").is_ok_and(|health| health.contains(r#""health":"true""#)))
    }

    fn enable_authentication(&self) -> Result<()> {
        let password = self.options.root_password.as_deref().unwrap_or_default();
        let admin = self.admin.without_user();
        admin.run(&["role", "add", "root"])?;
        admin.run(&["user", "add", &format!("root:{password}")])?;
        admin.run(&["user", "grant-role", "root", "root"])?;
        admin.run(&["auth", "enable"]).map(drop)
    }
}

fn launch(program: &Path, arguments: &[String], folder: &Folder) -> Result<Process> {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("ETCD_") {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    Process::start(PROGRAM.name, &command, folder.join("etcd.log"))
}

/// Returns the body of an HTTP answer, whatever its status.
fn http_get(address: SocketAddr, path: &str) -> std::io::Result<String> {
    let limit = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    // Version 1.0: the body ends with the connection and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}
