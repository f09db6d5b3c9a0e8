//! A wall clock that a test moves under a running server.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::programs::find_binary;

const SOURCE: &str = include_str!("clock.c");

/// The library that lies about the time, and the file that says by how much.
///
/// A few lines of C, compiled when they are needed: libfaketime, which does the same for other
/// programs, hangs Redis.
#[derive(Debug)]
pub(super) struct Clock {
    library: PathBuf,
    offset: PathBuf,
    file: File,
    nanos: Mutex<i64>,
}

impl Clock {
    /// Compiles the library into `folder`; takes about a tenth of a second.
    pub(super) fn compile(folder: &Path) -> Result<Self> {
        if !cfg!(target_os = "linux") {
            return Err(Error::Config(
                "a server's clock can be moved on Linux only".to_owned(),
            ));
        }
        let compiler = find_binary("cc", "gcc", "TENURE_CC")?;
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        std::fs::write(&source, SOURCE).doing("write the source of the clock")?;
        let output = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .stdin(Stdio::null())
            .output()
            .doing("run `cc`")?;
        if !output.status.success() {
            return Err(Error::Command {
                command: "cc -shared clock.c".to_owned(),
                status: output.status,
                output: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            });
        }
        let offset = folder.join("clock-offset");
        let file = File::create(&offset).doing("write the offset of the clock")?;
        let clock = Self {
            library,
            offset,
            file,
            nanos: Mutex::new(0),
        };
        clock.move_by(0)?;
        Ok(clock)
    }

    /// Moves the clock, forward if positive.
    pub(super) fn move_by(&self, nanos: i64) -> Result<()> {
        let mut offset = self.nanos.lock().unwrap_or_else(PoisonError::into_inner);
        *offset = offset.saturating_add(nanos);
        // One write of eight aligned bytes: the server's mapping sees the old or the new value.
        self.file
            .write_all_at(&offset.to_ne_bytes(), 0)
            .doing("move the clock")
    }

    /// What `env` has to be told to start a program under this clock.
    pub(super) fn environment(&self) -> [String; 2] {
        [
            format!("LD_PRELOAD={}", self.library.display()),
            format!("TENURE_CLOCK_OFFSET={}", self.offset.display()),
        ]
    }
}

/// A length of time as the clock counts it.
pub(super) fn nanos(by: Duration) -> Result<i64> {
    i64::try_from(by.as_nanos())
        .map_err(|_| Error::Config(format!("a clock cannot be moved by {by:?}")))
}
