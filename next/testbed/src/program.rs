//! The programs of the servers.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Action, Error, Result};

/// A program that a test needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// The Debian package that contains it.
    pub(crate) package: &'static str,
    /// The environment variable that names another path.
    pub(crate) variable: &'static str,
}

impl Program {
    /// Returns the path that the variable names, else the first program of that name in `PATH`.
    pub(crate) fn find(&self) -> Result<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let candidates: Vec<PathBuf> = match std::env::var_os(self.variable).filter(|named| !named.is_empty()) {
            Some(named) => vec![named.into()],
            None => std::env::split_paths(&path)
                .map(|folder| folder.join(self.name))
                .collect(),
        };
        let missing = Error::MissingProgram {
            program: self.name,
            package: self.package,
            variable: self.variable,
        };
        candidates.into_iter().find(|path| is_program(path)).ok_or(missing)
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

/// Runs a command to its end and returns its output.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    // Without its environment, in which a password may be.
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    let shown = words.join(" ");
    let output = command.output().action(format!("run {shown}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Error::Command { command: shown, output })
}
