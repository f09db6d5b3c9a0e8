//! A wall clock that a test moves under a running server.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use parking_lot::Mutex;

use crate::error::{Action, Error, Result};
use crate::folder::Folder;
use crate::program::{Program, run};

const COMPILER: Program = Program {
    name: "cc",
    package: "gcc",
    variable: "TENURE_CC",
};

const SOURCE: &str = include_str!("clock.c");

/// A library that changes the answers of the clock, and the file with the offset. Compiled when a test needs it: libfaketime,
/// which does the same for other programs, makes Redis hang.
#[derive(Debug)]
pub(super) struct MovableClock {
    library: PathBuf,
    offset: PathBuf,
    file: File,
    nanos: Mutex<i64>,
}

impl MovableClock {
    /// Compiles the library into the folder: some 100 ms.
    pub(super) fn build(folder: &Folder) -> Result<Self> {
        let (source, library, offset) = (
            folder.join("clock.c"),
            folder.join("clock.so"),
            folder.join("clock-offset"),
        );
        fs::write(&source, SOURCE).action("write the source of the clock")?;
        run(Command::new(COMPILER.find()?)
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source]))?;
        let file = File::create(&offset).action("create the offset of the clock")?;
        let clock = Self {
            library,
            offset,
            file,
            nanos: Mutex::new(0),
        };
        clock.step(Duration::ZERO, 1)?;
        Ok(clock)
    }

    /// Moves the clock; back if `sign` is -1.
    pub(super) fn step(&self, by: Duration, sign: i64) -> Result<()> {
        let by =
            i64::try_from(by.as_nanos()).map_err(|_| Error::Usage(format!("a clock cannot be moved by {by:?}")))?;
        let mut nanos = self.nanos.lock();
        *nanos = nanos.saturating_add(sign * by);
        // One write of eight aligned bytes: the server sees the old or the new value.
        self.file.write_all_at(&nanos.to_ne_bytes(), 0).action("move the clock")
    }

    /// Returns the variables that start a program under this clock.
    pub(super) fn variables(&self) -> [String; 2] {
        [
            format!("LD_PRELOAD={}", self.library.display()),
            format!("TENURE_CLOCK_OFFSET={}", self.offset.display()),
        ]
    }
}
