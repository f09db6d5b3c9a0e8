//! A lock holder in a process of its own.
//!
//! A task inside the test cannot be stopped with a signal while it believes that it holds a lock,
//! nor be killed there. This process can: `tenure-holder`, a binary of this crate, opens one session
//! and takes one lock at a time as it is told.
//!
//! ```no_run
//! use std::time::Duration;
//! use tenure_testbed::{EtcdServer, Holder};
//!
//! # fn main() -> Result<(), tenure_testbed::Error> {
//! let etcd = EtcdServer::start()?;
//! let url = format!("etcd://{}/app", etcd.address());
//! let mut first = Holder::open(&url, Duration::from_secs(3))?;
//! let mut second = Holder::open(&url, Duration::from_secs(3))?;
//! let old = first.lock("orders")?;
//! first.pause()?;
//! let new = second.lock("orders")?; // once the first one's lease has run out
//! assert!(new.token > old.token);
//! first.resume()?;
//! assert!(!first.validity()?.valid);
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::{Doing, Error, Result};
use crate::process::Process;

/// How long an answer may take that does not depend on others: long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

const BINARY: &str = "tenure-holder";
const VARIABLE: &str = "TENURE_HOLDER";
const BUILD: [&str; 7] = [
    "build",
    "--package",
    "tenure-testbed",
    "--bin",
    BINARY,
    "--features",
    "holder",
];

/// A `tenure-holder` process. Killed when dropped, and when this process ends in any way.
///
/// Each command has one answer. The methods that start with `begin` send a command whose answer
/// may be long in coming, or is to come after a pause; another method fetches the answer. All that
/// wait block the thread.
#[derive(Debug)]
pub struct Holder {
    process: Process,
    /// The command that was sent and not yet answered.
    pending: Option<String>,
}

/// A session as its holder reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderSession {
    /// The store's name for it.
    pub id: String,
    /// The TTL granted.
    pub ttl: Duration,
}

/// A lock that was granted to a holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderGrant {
    /// The fencing token.
    pub token: u64,
    /// The store's name for the holding.
    pub key: String,
    /// Whether it was valid when the holder looked, right after the grant.
    pub valid: bool,
}

/// What a holder knows of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// Whether it is certainly still held.
    pub valid: bool,
    /// For how long, without a further renewal; in whole milliseconds, rounded down.
    pub remaining: Duration,
}

/// What a spinning holder saw around a gap in its own schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// How long it was not scheduled.
    pub length: Duration,
    /// The answer of the check before the gap.
    pub before: bool,
    /// The answer of the first check that began after the gap.
    pub after: Validity,
}

/// When and why a holder was told that it had lost what it held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// The reason: `expired`, `unreachable`, `revoked`, ...
    pub reason: String,
    /// By the wall clock, which all processes of one machine share.
    pub at: SystemTime,
}

impl Holder {
    /// Starts a process that holds nothing yet; see [`holder_binary`] for where it comes from.
    ///
    /// # Errors
    ///
    /// Those of [`holder_binary`]; [`Error::Io`] when it cannot be started.
    pub fn start() -> Result<Self> {
        Ok(Self {
            process: Process::spawn(Command::new(holder_binary()?))?,
            pending: None,
        })
    }

    /// [`start`](Self::start) and [`open_session`](Self::open_session).
    ///
    /// # Errors
    ///
    /// As there.
    pub fn open(url: &str, ttl: Duration) -> Result<Self> {
        let mut holder = Self::start()?;
        holder.open_session(url, ttl)?;
        Ok(holder)
    }

    /// Connects to the store and opens a session, in place of the one before.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kind of tenure's error; [`Error::TimedOut`] without an answer
    /// within [`PATIENCE`]; [`Error::Ended`] when the process ends instead. The same for every
    /// other command.
    pub fn open_session(&mut self, url: &str, ttl: Duration) -> Result<HolderSession> {
        let answer = self.ask(format!("open {url} {}", ttl.as_millis()))?;
        Ok(HolderSession {
            id: answer.text("session")?,
            ttl: answer.milliseconds("ttl_ms")?,
        })
    }

    /// Takes the lock, waiting for it for [`PATIENCE`] at most.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn lock(&mut self, name: &str) -> Result<HolderGrant> {
        self.begin_lock(name)?;
        self.granted(PATIENCE)
    }

    /// Takes the lock if it is free; `Refused` with the kind `WouldBlock` if not.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn try_lock(&mut self, name: &str) -> Result<HolderGrant> {
        self.ask(format!("try {name}"))?.grant()
    }

    /// Takes the lock, waiting no longer than `limit`; `Refused` with the kind `TimedOut` after
    /// that. `name` must not hold a space.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn lock_timeout(&mut self, name: &str, limit: Duration) -> Result<HolderGrant> {
        self.send(format!("timeout {name} {}", limit.as_millis()))?;
        self.granted(limit + PATIENCE)
    }

    /// Goes into the line for the lock; [`granted`](Self::granted) waits for its turn. Nothing
    /// tells when the request has reached the store: look there.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] while another answer is still to come; [`Error::Io`] when the process is
    /// gone. The same for every other `begin`.
    pub fn begin_lock(&mut self, name: &str) -> Result<()> {
        self.send(format!("lock {name}"))
    }

    /// Waits for the lock that [`begin_lock`](Self::begin_lock) asked for. After
    /// [`Error::TimedOut`] it may be called again.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn granted(&mut self, timeout: Duration) -> Result<HolderGrant> {
        self.answer(timeout)?.grant()
    }

    /// Whether an answer has been read that nobody fetched yet.
    pub fn has_answered(&self) -> bool {
        self.process.has_line()
    }

    /// Whether it is still held, as the holder sees it: of the lock, or of the session while none
    /// was taken.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn validity(&mut self) -> Result<Validity> {
        self.ask("valid".to_owned())?.validity()
    }

    /// Returns when the holder does nothing any more but check its validity, without a break, on
    /// its only thread: nothing is renewed meanwhile and no timer runs. To be followed by
    /// [`pause`](Self::pause), [`resume`](Self::resume) and [`gap`](Self::gap). It ends with the
    /// first gap in its schedule that is longer than `gap`, whatever the cause, or with `Refused`
    /// and the kind `TimedOut` after two minutes.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn begin_spin(&mut self, gap: Duration) -> Result<()> {
        let command = format!("spin {}", gap.as_millis());
        self.send(command.clone())?;
        self.answer(PATIENCE)?;
        self.pending = Some(command);
        Ok(())
    }

    /// The gap that a spinning holder has seen.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn gap(&mut self, timeout: Duration) -> Result<Gap> {
        let answer = self.answer(timeout)?;
        Ok(Gap {
            length: answer.milliseconds("gap_ms")?,
            before: answer.value("before")?,
            after: answer.validity()?,
        })
    }

    /// Appends a line, the token and `text`, to a file: a resource that compares no tokens, written
    /// by a holder that does not ask whether it still holds anything. The path must not hold a
    /// space.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn write(&mut self, file: &Path, text: &str) -> Result<()> {
        self.begin_write(file, text)?;
        self.done()
    }

    /// Sends [`write`](Self::write) without waiting for it: a paused holder does it as soon as it
    /// goes on. [`done`](Self::done) waits.
    ///
    /// # Errors
    ///
    /// See [`begin_lock`](Self::begin_lock).
    pub fn begin_write(&mut self, file: &Path, text: &str) -> Result<()> {
        self.send(format!("write {} {text}", file.display()))
    }

    /// Waits for what was begun, where the answer says no more than that it worked.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn done(&mut self) -> Result<()> {
        self.answer(PATIENCE).map(drop)
    }

    /// Lets the holder wait for its loss; [`lost`](Self::lost) fetches what it was told.
    ///
    /// # Errors
    ///
    /// See [`begin_lock`](Self::begin_lock).
    pub fn begin_lost(&mut self) -> Result<()> {
        self.send("lost".to_owned())
    }

    /// Waits for the loss that [`begin_lost`](Self::begin_lost) waits for.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn lost(&mut self, timeout: Duration) -> Result<Loss> {
        let answer = self.answer(timeout)?;
        Ok(Loss {
            reason: answer.text("reason")?,
            at: SystemTime::UNIX_EPOCH + answer.milliseconds("at_ms")?,
        })
    }

    /// Gives the lock back; `Refused` with the kind `Lost` if it was not held any more.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn release(&mut self) -> Result<()> {
        self.ask("release".to_owned()).map(drop)
    }

    /// Closes the session.
    ///
    /// # Errors
    ///
    /// See [`open_session`](Self::open_session).
    pub fn close(&mut self) -> Result<()> {
        self.ask("close".to_owned()).map(drop)
    }

    /// SIGSTOP. Returns when every thread has stopped.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process has ended.
    pub fn pause(&self) -> Result<()> {
        self.process.pause()
    }

    /// SIGCONT.
    ///
    /// # Errors
    ///
    /// [`Error::NotRunning`] when the process has ended.
    pub fn resume(&self) -> Result<()> {
        self.process.resume()
    }

    /// SIGKILL. Returns when the process is gone.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] when the operating system refuses to tell of the end.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// Begins to put `count` items into `queue`, one by one: `tag-0`, `tag-1`, ...
    ///
    /// # Errors
    ///
    /// [`Error::Config`] while an answer is outstanding.
    pub fn begin_produce(&mut self, queue: &str, tag: &str, count: u64) -> Result<()> {
        self.send(format!("produce {queue} {tag} {count}"))
    }

    /// The end of [`begin_produce`](Self::begin_produce): how many were accepted.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with what it failed with.
    pub fn produced(&mut self, timeout: Duration) -> Result<u64> {
        self.answer(timeout)?.value("produced")
    }

    /// Begins to work off `queue`, which takes `work` for each item. Each delivery leaves a line `VALUE COUNT TOKEN` in `file` before its
    /// acknowledgement, and each acknowledgement that was confirmed a line `VALUE done TOKEN`.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] while an answer is outstanding.
    pub fn begin_consume(&mut self, queue: &str, work: Duration, file: &Path) -> Result<()> {
        let work = work.as_millis();
        self.send(format!("consume {queue} {work} {}", file.display()))
    }

    /// The end of [`begin_consume`](Self::begin_consume), once the queue is empty: how many were
    /// acknowledged.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with what it failed with.
    pub fn consumed(&mut self, timeout: Duration) -> Result<u64> {
        self.answer(timeout)?.value("consumed")
    }

    /// The process, for everything else.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn ask(&mut self, command: String) -> Result<Answer> {
        self.send(command)?;
        self.answer(PATIENCE)
    }

    fn send(&mut self, command: String) -> Result<()> {
        if let Some(pending) = &self.pending {
            return Err(Error::Config(format!(
                "the holder's answer to `{pending}` is still to come, so `{command}` has to wait"
            )));
        }
        if command.contains(['\n', '\r']) {
            return Err(Error::Config(
                "a holder's command is one line; this one has a line break".to_owned(),
            ));
        }
        self.process.send_line(&command)?;
        self.pending = Some(command);
        Ok(())
    }

    fn answer(&mut self, timeout: Duration) -> Result<Answer> {
        let Some(command) = self.pending.clone() else {
            return Err(Error::Config(
                "the holder was not asked anything".to_owned(),
            ));
        };
        let line = self.process.expect_line("", timeout)?;
        self.pending = None;
        let answer = Answer { command, line };
        if !answer.line.starts_with("error ") {
            return Ok(answer);
        }
        Err(Error::Refused {
            kind: answer.text("kind")?,
            message: answer
                .line
                .split_once("message=")
                .map_or_else(String::new, |(_, message)| message.to_owned()),
            command: answer.command,
        })
    }
}

/// An answer: `key=value` pairs with spaces between them.
struct Answer {
    command: String,
    line: String,
}

impl Answer {
    fn value<T: FromStr>(&self, key: &str) -> Result<T> {
        self.line
            .split(' ')
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
            .and_then(|value| value.parse().ok())
            .ok_or_else(|| {
                Error::Config(format!(
                    "the holder's answer to `{}` has no proper `{key}`: {}",
                    self.command, self.line
                ))
            })
    }

    fn text(&self, key: &str) -> Result<String> {
        self.value(key)
    }

    fn milliseconds(&self, key: &str) -> Result<Duration> {
        self.value(key).map(Duration::from_millis)
    }

    fn grant(&self) -> Result<HolderGrant> {
        Ok(HolderGrant {
            token: self.value("token")?,
            key: self.text("key")?,
            valid: self.value("valid")?,
        })
    }

    fn validity(&self) -> Result<Validity> {
        Ok(Validity {
            valid: self.value("valid")?,
            remaining: self.milliseconds("remaining_ms")?,
        })
    }
}

/// The path of `tenure-holder`: what `TENURE_HOLDER` names, else the one beside the running test
/// (`target/<profile>/`) if it is newer than its sources, else a new one, built with `cargo build`
/// in the same profile. That is done once in a process, and may take minutes.
///
/// # Errors
///
/// [`Error::Config`] when `TENURE_HOLDER` names nothing, or when the build fails, with its output.
pub fn holder_binary() -> Result<PathBuf> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    if let Some(named) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => Ok(named),
            false => Err(Error::Config(format!(
                "{VARIABLE} names `{}`, which is no file",
                named.display()
            ))),
        };
    }
    // Held during the build: the tests of one process wait for each other's.
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = &*found {
        return Ok(found.clone());
    }
    let test = std::env::current_exe().doing("find the running program")?;
    let folder = profile_folder(&test);
    let beside = folder.join(format!("{BINARY}{}", std::env::consts::EXE_SUFFIX));
    let manifest = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"));
    if !is_fresh(&beside, manifest) {
        build(folder, &beside)?;
    }
    Ok(found.insert(beside).clone())
}

/// `target/<profile>` of `target/<profile>/deps/some-test`.
fn profile_folder(program: &Path) -> &Path {
    let folder = program.parent().unwrap_or(Path::new(""));
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("deps" | "examples") => folder.parent().unwrap_or(folder),
        _ => folder,
    }
}

/// Whether the binary is there and newer than everything that cargo made it from, by the list that
/// cargo leaves beside it, and than the manifest, which says what stores it knows. A binary without a
/// list was put there by somebody who knows.
fn is_fresh(binary: &Path, manifest: &Path) -> bool {
    let modified = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    let Some(built) = modified(binary) else {
        return false;
    };
    let Ok(list) = std::fs::read_to_string(binary.with_extension("d")) else {
        return true;
    };
    // `binary: source source ...`, spaces within a path escaped.
    let sources = list.lines().next().and_then(|line| line.split_once(": "));
    let sources = sources.map_or("", |(_, sources)| sources);
    let sources = sources.replace("\\ ", "\0");
    let sources = sources.split_ascii_whitespace();
    let mut sources = sources.map(|source| source.replace('\0', " "));
    let older = |source: &Path| modified(source).is_some_and(|changed| changed <= built);
    older(manifest) && sources.all(|source| older(Path::new(&source)))
}

fn build(folder: &Path, binary: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(name) => name,
    };
    let by_hand = format!(
        "build it with `cargo {}`, or set {VARIABLE} to its path",
        BUILD.join(" ")
    );
    let output = Command::new(cargo)
        .args(BUILD)
        .arg("--profile")
        .arg(profile)
        // Where it is found next time, also under `cargo test --target`.
        .arg("--target-dir")
        .arg(folder.parent().unwrap_or(folder))
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output();
    let failed = match output {
        Ok(output) if output.status.success() && binary.is_file() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    Err(Error::Config(format!(
        "`{BINARY}` is not there and cannot be built: {by_hand}\n{failed}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_by_their_keys() {
        let answer = |line: &str| Answer {
            command: "lock a".to_owned(),
            line: line.to_owned(),
        };
        let grant = answer("token=7 key=t/1/a=b/x valid=true").grant();
        let expected = HolderGrant {
            token: 7,
            key: "t/1/a=b/x".to_owned(),
            valid: true,
        };
        assert_eq!(grant.expect("a grant"), expected);
        let error = answer("token=x key=k valid=true").grant().unwrap_err();
        assert!(error.to_string().contains("no proper `token`"), "{error}");
    }

    #[test]
    fn a_binary_older_than_a_source_of_its_is_not_fresh() {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name);
        let touch = |name: &str, seconds| {
            let file = std::fs::File::create(at(name)).expect("a file");
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            file.set_modified(time).expect("a time");
        };
        let fresh = || is_fresh(&at("bin"), &at("Cargo.toml"));
        touch("Cargo.toml", 9);
        assert!(!fresh(), "there is none");
        touch("bin", 10);
        assert!(fresh(), "no list");
        touch("a.rs", 9);
        touch("b c.rs", 9);
        let escaped = at("b c.rs").display().to_string().replace(' ', "\\ ");
        let list = format!(
            "{}: {} {escaped}\n",
            at("bin").display(),
            at("a.rs").display()
        );
        std::fs::write(at("bin.d"), list).expect("a list");
        assert!(fresh());
        touch("Cargo.toml", 11);
        assert!(!fresh(), "the manifest is newer");
        touch("Cargo.toml", 9);
        touch("b c.rs", 11);
        assert!(!fresh(), "a source is newer");
        std::fs::remove_file(at("b c.rs")).expect("removed");
        assert!(!fresh(), "a source is gone");
    }
}
