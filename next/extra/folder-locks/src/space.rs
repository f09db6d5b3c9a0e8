//! The folder of a namespace, and how a step runs on it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind as IoErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tenure_core::clock::Clock;
use tenure_core::name::escape;
use tenure_core::{Effect, Error, ErrorKind, Namespace, Result};

use crate::state::State;

/// The kernel's random name of the time since the last reboot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// One namespace of a folder.
#[derive(Debug)]
pub(crate) struct Space {
    folder: PathBuf,
    namespace: Namespace,
    boot: String,
    clock: Clock,
}

/// Which version of the state a file is: it changes with each rename.
pub(crate) type Version = Option<(u64, i64, i64)>;

impl Space {
    pub(crate) fn open(folder: PathBuf, namespace: &Namespace) -> Result<Self> {
        // Escaped and with a prefix, because a namespace may be called `..`.
        let folder = folder.join(format!("namespace-{}", escape(namespace.as_str())));
        fs::create_dir_all(&folder).map_err(unavailable)?;
        Ok(Self {
            boot: fs::read_to_string(BOOT_ID).map_err(unavailable)?.trim().into(),
            namespace: namespace.clone(),
            clock: Clock::boot_time(),
            folder,
        })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Returns the beginning of the ids of this namespace's sessions.
    pub(crate) fn prefix(&self) -> String {
        format!("{}-", escape(self.namespace.as_str()))
    }

    /// Returns the time since the reboot.
    pub(crate) fn now(&self) -> Duration {
        let now = self.clock.now();
        now.since(now - Duration::MAX)
    }

    /// Returns the version of the state. A waiter looks at it often, and reads the state only if it has changed.
    pub(crate) fn version(&self) -> Version {
        let file = fs::metadata(self.folder.join("state")).ok()?;
        Some((file.ino(), file.mtime(), file.mtime_nsec()))
    }

    /// Runs a step on a thread that may block. A dropped step runs to its end.
    pub(crate) async fn step<T: Send + 'static>(
        self: &Arc<Self>,
        step: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let space = Arc::clone(self);
        let stepping = tokio::task::spawn_blocking(move || space.step_here(step));
        stepping.await.unwrap_or_else(|failed| {
            let error = Error::new(ErrorKind::Internal, "a step on the folder did not end");
            Err(error.with_source(failed).with_effect(Effect::Unknown))
        })
    }

    /// Runs a step. One that fails writes nothing.
    fn step_here<T>(&self, step: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        let mut options = OpenOptions::new();
        let lock = options
            .create(true)
            .truncate(false)
            .write(true)
            .open(self.folder.join("lock"));
        // Unlocked when it is closed, at the end of this step or of this process.
        let lock = lock.map_err(unavailable)?;
        lock.lock().map_err(unavailable)?;
        let before = self.read()?;
        let mut state = State::parse(&before, &self.boot)?;
        // Under the lock: time never goes back from one step to the next.
        state.begin(self.now());
        let answer = step(&mut state)?;
        let after = state.text()?;
        if after != before {
            self.replace(&after)?;
        }
        Ok(answer)
    }

    fn read(&self) -> Result<Vec<u8>> {
        match fs::read(self.folder.join("state")) {
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(unavailable),
        }
    }

    fn replace(&self, text: &[u8]) -> Result<()> {
        let new = self.folder.join("state.new");
        let replaced = File::create(&new)
            .and_then(|mut file| io::Write::write_all(&mut file, text))
            .and_then(|()| fs::rename(&new, self.folder.join("state")));
        replaced.map_err(unavailable)
    }
}

/// The error of an operation on the folder. None has an effect that fails: only the last one, the rename, shows it to others.
fn unavailable(error: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, "cannot use the folder").with_source(error)
}
