//! Where the servers' programs are.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// The path of an executable: what the variable names, else the first of that name in `PATH`.
pub(crate) fn find_binary(
    binary: &'static str,
    package: &'static str,
    variable: &'static str,
) -> Result<PathBuf> {
    find_binary_in(binary, package, variable, Vec::new())
}

/// The same, where some folders come before those of `PATH`.
pub(crate) fn find_binary_in(
    binary: &'static str,
    package: &'static str,
    variable: &'static str,
    folders: Vec<PathBuf>,
) -> Result<PathBuf> {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty());
    let in_path = std::env::var_os("PATH").unwrap_or_default();
    choose(named.map(PathBuf::from), folders, &in_path, binary).ok_or(Error::MissingBinary {
        binary,
        package,
        variable,
    })
}

fn choose(
    named: Option<PathBuf>,
    folders: Vec<PathBuf>,
    in_path: &OsStr,
    binary: &str,
) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.metadata()
            .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    };
    match named {
        Some(path) => Some(path).filter(is_program),
        None => folders
            .into_iter()
            .chain(std::env::split_paths(in_path))
            .map(|folder| folder.join(binary))
            .find(is_program),
    }
}
