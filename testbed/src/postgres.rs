//! A real PostgreSQL as a child process: alone, or with a standby.
//!
//! The programs (`postgres`, `initdb`, `pg_basebackup`; version 14 or later) are those of the newest
//! version in `/usr/lib/postgresql`, where Debian has them, or in `PATH`, or beside the `postgres` that
//! `TENURE_POSTGRES` names. PostgreSQL refuses to run as root: started by root, it runs as the user
//! `postgres` or `nobody`. Each server has a port and a folder of its own, so tests run side by side.
//!
//! The superuser is `postgres` and needs no password. The test bed works over a socket in the server's
//! folder: [`PostgresServer::sql`] answers whatever a test does to ports, certificates and users.

mod family;
mod replica;
mod user;
mod wire;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::ports::Port;
use crate::programs::{find_binary_in, run, version_in, version_text};
use crate::reaper::{Guarded, Reaper, tail};
use crate::server::{self, Probe, launch_on_free_ports, open_log};
use crate::tls::Tls;
pub(crate) use user::User;
use wire::{ADMIN, Control};

pub use replica::{PostgresReplica, PostgresReplicaBuilder};

/// How long SQL may take. Far more than it needs: only a paused server is silent so long.
const SQL: Duration = Duration::from_secs(30);

/// Options of a [`PostgresServer`] that is not yet started.
#[derive(Debug, Clone)]
#[must_use = "a builder does nothing until it is started"]
pub struct PostgresBuilder {
    settings: Vec<(String, String)>,
    hba: Vec<String>,
    users: Vec<(String, String)>,
    tls: Option<Tls>,
    start_timeout: Duration,
}

impl Default for PostgresBuilder {
    fn default() -> Self {
        Self {
            settings: Vec::new(),
            hba: Vec::new(),
            users: Vec::new(),
            tls: None,
            start_timeout: Duration::from_secs(60),
        }
    }
}

impl PostgresBuilder {
    /// One setting of `postgresql.conf`, such as `max_connections` or `fsync`. It comes after the test
    /// bed's own, so it wins over them.
    pub fn setting(mut self, name: impl Into<String>, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    /// A user who may log in with this password (SCRAM), and owns nothing. Give rights by
    /// [`PostgresServer::sql`].
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.users.push((name.into(), password.into()));
        self
    }

    /// One more line of `pg_hba.conf`, before the test bed's own: it wins over them.
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Serve TLS only.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// How long the server may take to serve; 60 seconds by default.
    pub fn start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Starts the server and waits until it serves. Blocks the thread, normally for a second: most of it
    /// is `initdb`.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBinary`] when PostgreSQL is not installed; [`Error::Start`], with the end of the
    /// log, when the server ends or does not serve in time; [`Error::Command`] when `initdb` fails.
    pub fn start(self) -> Result<PostgresServer> {
        let server = self.launch_on_a_free_port(&Origin::Nothing)?;
        for (name, password) in &server.options.users {
            server.sql(format!(
                "CREATE ROLE {} LOGIN PASSWORD {}",
                identifier(name),
                literal(password)
            ))?;
        }
        Ok(server)
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
    pub async fn start_async(self) -> Result<PostgresServer> {
        on_a_thread(move || self.start()).await
    }

    fn launch_on_a_free_port(self, origin: &Origin<'_>) -> Result<PostgresServer> {
        let programs = Programs::find()?;
        launch_on_free_ports(|| PostgresServer::launch(self.clone(), programs.clone(), origin))
    }
}

/// Where a server's first data come from.
enum Origin<'s> {
    Nothing,
    /// A copy of this server, which follows it through the proxy on this port.
    CopyOf(&'s PostgresServer, u16),
}

/// A running (or killed, or paused) PostgreSQL server.
///
/// Dropping it kills the server and removes its folder, as does the end of this process.
#[derive(Debug)]
pub struct PostgresServer {
    process: Guarded,
    reaper: Reaper,
    options: PostgresBuilder,
    programs: Programs,
    user: Option<User>,
    port: Port,
    /// The processes of connections that are paused, too.
    paused: Mutex<Vec<u32>>,
}

impl PostgresServer {
    /// Starts a server with the default options: no TLS, no passwords, and PostgreSQL's own defaults
    /// for everything else.
    ///
    /// # Errors
    ///
    /// As [`PostgresBuilder::start`].
    pub fn start() -> Result<Self> {
        Self::builder().start()
    }

    /// [`start`](Self::start) on a blocking thread of the tokio runtime.
    ///
    /// # Errors
    ///
    /// As [`PostgresBuilder::start`].
    pub async fn start_async() -> Result<Self> {
        Self::builder().start_async().await
    }

    /// The options, to be changed before the start.
    pub fn builder() -> PostgresBuilder {
        PostgresBuilder::default()
    }

    /// `postgres://postgres@127.0.0.1:PORT/postgres`: the superuser, in the database `postgres`.
    pub fn url(&self) -> String {
        self.url_of(ADMIN)
    }

    /// The same in another database.
    pub fn url_of(&self, database: &str) -> String {
        format!("postgres://{ADMIN}@{}/{database}", self.address())
    }

    /// The address, to put a proxy in front of.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The version of the programs, such as `15.18`.
    pub fn version(&self) -> &str {
        &self.programs.version
    }

    /// The id of the first process, the postmaster.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Whether the server has not ended. A paused server is running.
    pub fn is_running(&self) -> bool {
        self.process.is_running()
    }

    /// The folder with the data.
    pub fn data_dir(&self) -> PathBuf {
        data_path(&self.reaper)
    }

    /// The last `lines` lines of the server's log.
    pub fn log_tail(&self, lines: usize) -> String {
        tail(&log_path(&self.reaper), lines)
    }

    /// Runs SQL in the database `postgres`, as the superuser, over a connection of its own past every
    /// proxy, and returns all rows: a line for each, with `|` between the columns and nothing for null.
    /// Blocks the thread, for as long as the server thinks about it.
    ///
    /// # Errors
    ///
    /// [`Error::Reply`] when the server says no; [`Error::Io`] when it does not answer within thirty
    /// seconds (killed, paused).
    pub fn sql(&self, sql: impl AsRef<str>) -> Result<String> {
        self.sql_in(ADMIN, sql)
    }

    /// The same in another database.
    ///
    /// # Errors
    ///
    /// As [`sql`](Self::sql).
    pub fn sql_in(&self, database: &str, sql: impl AsRef<str>) -> Result<String> {
        self.control().sql(database, sql.as_ref(), SQL)
    }

    /// Creates an empty database: some 50 ms, where a server takes a second. Advisory locks of one are
    /// no business of another.
    ///
    /// # Errors
    ///
    /// As [`sql`](Self::sql).
    pub fn create_database(&self, name: &str) -> Result<()> {
        let create = format!("CREATE DATABASE {}", identifier(name));
        wait_until("a new database", SQL, || match self.sql(&create) {
            // Somebody, such as an autovacuum, is in the template of all databases.
            Err(Error::Reply { message, .. }) if message.contains("55006") => Ok(None),
            created => created.map(Some),
        })
        .map(drop)
    }

    /// Changes a setting of the running server, for connections that are made from now on at the
    /// latest; it outlasts a restart.
    ///
    /// # Errors
    ///
    /// As [`sql`](Self::sql).
    pub fn set(&self, name: &str, value: impl ToString) -> Result<()> {
        let before = self.sql("SELECT pg_conf_load_time()")?;
        self.sql(format!(
            "ALTER SYSTEM SET {} = {}",
            identifier(name),
            literal(&value.to_string())
        ))?;
        self.sql("SELECT pg_reload_conf()")?;
        wait_until("the new setting", SQL, || {
            let loaded = self.sql("SELECT pg_conf_load_time()")?;
            Ok((loaded != before).then_some(()))
        })
    }

    /// Ends the connections of all clients, as an administrator may: their next statement fails. Returns
    /// how many there were.
    ///
    /// # Errors
    ///
    /// As [`sql`](Self::sql).
    pub fn terminate_backends(&self) -> Result<usize> {
        let ended = self.sql(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity \
             WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()",
        )?;
        Ok(ended.parse().unwrap_or(0))
    }

    /// SIGKILL, for every process of the server: a crash. Returns when they are gone; the port refuses
    /// connections and stays reserved. Killing a server that has ended is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the operating system refuses to tell of the end.
    pub fn kill(&mut self) -> Result<()> {
        self.paused().clear();
        family::kill(&self.reaper, &mut self.process)
    }

    /// Starts the server again with the same data, port and options (and kills it first, if it still
    /// runs), and waits until it serves. Blocks the thread.
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

    /// Takes a base backup of the running server (`pg_basebackup`): [`restore`](Self::restore) returns to it. A second
    /// one replaces the first. Blocks the thread.
    ///
    /// # Errors
    ///
    /// [`Error::Command`] when the backup fails.
    pub fn save_backup(&self) -> Result<()> {
        let backup = backup_path(&self.reaper);
        if backup.exists() {
            std::fs::remove_dir_all(&backup).doing("remove the old backup")?;
        }
        self.programs.copy(&backup, self.user, self)
    }

    /// Kills the server, replaces its data by the last [`save_backup`](Self::save_backup), and starts it on the same
    /// port: whatever was written since is gone. Blocks the thread until it serves.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] without a backup; [`Error::Start`], with the end of the log.
    pub fn restore(&mut self) -> Result<()> {
        self.kill()?;
        let (data, backup) = (self.data_dir(), backup_path(&self.reaper));
        // The backup stays, to be restored again.
        std::fs::metadata(&backup).doing("find the backup")?;
        std::fs::remove_dir_all(&data).doing("remove the data")?;
        let mut copy = Command::new("cp");
        copy.arg("--archive").arg(&backup).arg(&data);
        run::<&str>(copy, &[])?;
        self.restart()
    }

    /// SIGSTOP, for every process of the server: connections stay open and silent. Returns when all have
    /// stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the server has ended.
    pub fn pause(&self) -> Result<()> {
        let mut paused = self.paused();
        *paused = family::stop(&self.reaper, &self.process)?;
        Ok(())
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the server has ended.
    pub fn resume(&self) -> Result<()> {
        let paused = std::mem::take(&mut *self.paused());
        family::resume(&self.reaper, &self.process, &paused)
    }

    fn paused(&self) -> std::sync::MutexGuard<'_, Vec<u32>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn launch(options: PostgresBuilder, programs: Programs, origin: &Origin<'_>) -> Result<Self> {
        let port = Port::pick()?;
        let reaper = Reaper::with_folder("postgres")?;
        let user = User::find()?;
        user::give(user, reaper.folder())?;
        let data = data_path(&reaper);
        let mut lines = vec![
            "listen_addresses = '127.0.0.1'".to_owned(),
            // In its folder: elsewhere it would stay behind when the server is killed.
            "dynamic_shared_memory_type = mmap".to_owned(),
            format!("port = {}", port.number()),
            format!(
                "unix_socket_directories = {}",
                path_literal(reaper.folder())
            ),
        ];
        match origin {
            Origin::Nothing => programs.init(&data, user)?,
            Origin::CopyOf(primary, link) => {
                programs.copy(&data, user, primary)?;
                lines.push(replica::follow(*link));
                write(user, &data.join("standby.signal"), "")?;
            }
        }
        if let Some(tls) = &options.tls {
            lines.extend(tls_lines(tls, &data, user)?);
        }
        let settings = options.settings.iter();
        lines.extend(settings.map(|(name, value)| format!("{name} = {}", literal(value))));
        write(
            user,
            &data.join("postgresql.conf"),
            &(lines.join("\n") + "\n"),
        )?;
        write(user, &data.join("pg_hba.conf"), hba(&options))?;
        let process = spawn(&programs, &reaper, user)?;
        let server = Self {
            process,
            reaper,
            options,
            programs,
            user,
            port,
            paused: Mutex::default(),
        };
        server.probe().wait()?;
        Ok(server)
    }

    fn relaunch(&mut self) -> Result<()> {
        self.kill()?;
        // It is known to be dead; its number may be somebody else's by now.
        let _ = std::fs::remove_file(self.data_dir().join("postmaster.pid"));
        let _ = std::fs::remove_file(socket_path(&self.reaper, &self.port, ".lock"));
        self.process = spawn(&self.programs, &self.reaper, self.user)?;
        Ok(())
    }

    fn control(&self) -> Control {
        Control {
            socket: socket_path(&self.reaper, &self.port, ""),
        }
    }

    fn probe(&self) -> Probe {
        let control = self.control();
        Probe {
            what: "postgres",
            pid: self.process.pid(),
            log: log_path(&self.reaper),
            timeout: self.options.start_timeout,
            // Each question is a process and a line in the log.
            pause: (Duration::from_millis(5), Duration::from_millis(100)),
            // While it starts and recovers it refuses.
            serves: Box::new(move || control.sql(ADMIN, "SELECT 1", SQL).is_ok()),
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        // The watchdog would do it, too; but a destructor that has returned has freed the port.
        let _ = self.kill();
    }
}

fn data_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("data")
}

fn backup_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("backup")
}

fn log_path(reaper: &Reaper) -> PathBuf {
    reaper.folder().join("postgres.log")
}

fn socket_path(reaper: &Reaper, port: &Port, ending: &str) -> PathBuf {
    let name = format!(".s.PGSQL.{}{ending}", port.number());
    reaper.folder().join(name)
}

fn spawn(programs: &Programs, reaper: &Reaper, user: Option<User>) -> Result<Guarded> {
    let log = open_log(&log_path(reaper))?;
    let args = ["-D".to_owned(), data_path(reaper).display().to_string()];
    reaper.spawn_server_as(user, "postgres", &programs.at("postgres"), &args, log)
}

/// A file that the server owns and nobody else reads.
fn write(user: Option<User>, path: &Path, text: impl AsRef<[u8]>) -> Result<()> {
    let doing = || format!("write {}", path.display());
    std::fs::write(path, text).doing(doing())?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).doing(doing())?;
    user::give(user, path)
}

/// Copies, because the server insists on owning its key.
fn tls_lines(tls: &Tls, data: &Path, user: Option<User>) -> Result<Vec<String>> {
    let ca = tls.client.as_ref().map_or(&tls.ca, |(ca, _)| ca);
    let mut lines = vec!["ssl = on".to_owned()];
    for (setting, name, path) in [
        ("ssl_cert_file", "server.crt", &tls.server.cert),
        ("ssl_key_file", "server.key", &tls.server.key),
        ("ssl_ca_file", "root.crt", ca),
    ] {
        let text = std::fs::read(path).doing(format!("read {}", path.display()))?;
        write(user, &data.join(name), text)?;
        lines.push(format!("{setting} = '{name}'"));
    }
    Ok(lines)
}

/// Who may connect: the first line that fits decides.
fn hba(options: &PostgresBuilder) -> String {
    let (kind, shown) = match &options.tls {
        None => ("host", ""),
        Some(Tls { client: None, .. }) => ("hostssl", ""),
        Some(_) => ("hostssl", " clientcert=verify-ca"),
    };
    let mut lines = vec![
        format!("local all {ADMIN} trust"),
        format!("local replication {ADMIN} trust"),
    ];
    lines.extend(options.hba.iter().cloned());
    for (name, _) in &options.users {
        let name = identifier(name);
        lines.push(format!(
            "{kind} all {name} 127.0.0.1/32 scram-sha-256{shown}"
        ));
    }
    lines.push(format!("{kind} all all 127.0.0.1/32 trust{shown}"));
    // A standby has no certificate.
    lines.push(format!("host replication {ADMIN} 127.0.0.1/32 trust"));
    lines.join("\n") + "\n"
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn path_literal(path: &Path) -> String {
    literal(&path.display().to_string())
}

/// Asks again and again until there is an answer.
fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    server::wait_until(what, timeout, Duration::from_millis(10), || match ask() {
        Ok(None) => ControlFlow::Continue(String::new()),
        Ok(Some(answer)) => ControlFlow::Break(Ok(answer)),
        Err(error) => ControlFlow::Break(Err(error)),
    })
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    server::on_a_thread("PostgreSQL", work).await
}

/// The PostgreSQL that is installed.
#[derive(Debug, Clone)]
struct Programs {
    folder: PathBuf,
    version: String,
}

impl Programs {
    fn find() -> Result<Self> {
        let path = find_binary_in("postgres", "postgresql", "TENURE_POSTGRES", debian())?;
        // What is in `PATH` may be a link to the one among its neighbours.
        let path = path.canonicalize().doing("find PostgreSQL's programs")?;
        let text = version_text("postgres", &path)?;
        let version = text
            .strip_prefix("postgres (PostgreSQL) ")
            .and_then(|rest| rest.split_whitespace().next());
        let version = version_in(version, "PostgreSQL", &path, &text)?;
        Ok(Self {
            folder: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            version,
        })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A new, empty cluster of databases.
    fn init(&self, data: &Path, user: Option<User>) -> Result<()> {
        let mut command = self.command("initdb", user);
        command.arg("--pgdata").arg(data);
        command.args(["--username", ADMIN, "--auth=trust", "--encoding=UTF8"]);
        // What the machine's own language is must not matter; and a copy that is lost with the machine
        // is no loss.
        command.args(["--locale=C", "--no-sync"]);
        run::<&str>(command, &[]).map(drop)
    }

    /// A copy of a running one.
    fn copy(&self, data: &Path, user: Option<User>, primary: &PostgresServer) -> Result<()> {
        let mut command = self.command("pg_basebackup", user);
        command.arg("--pgdata").arg(data);
        command.arg("--host").arg(primary.reaper.folder());
        command.args(["--port", &primary.port().to_string()]);
        command.args(["--username", ADMIN, "--no-password", "--checkpoint=fast"]);
        command.args(["--wal-method=stream", "--no-sync"]);
        run::<&str>(command, &[]).map(drop)
    }

    fn command(&self, name: &str, user: Option<User>) -> Command {
        let mut command = Command::new(self.at(name));
        for (name, _) in std::env::vars_os() {
            // Options for clients of some other server.
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // It may not be allowed to be where we are.
        command.current_dir("/").stdin(Stdio::null());
        if let Some(user) = user {
            user.runs(&mut command);
        }
        command
    }
}

/// Debian keeps the programs of each version in a folder of its own, out of `PATH`: the newest first.
fn debian() -> Vec<PathBuf> {
    let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") else {
        return Vec::new();
    };
    let mut versions: Vec<(u32, PathBuf)> = versions
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let version = entry.file_name().to_str()?.parse().ok()?;
            Some((version, entry.path().join("bin")))
        })
        .collect();
    versions.sort_by(|(one, _), (other, _)| other.cmp(one));
    versions.into_iter().map(|(_, folder)| folder).collect()
}
