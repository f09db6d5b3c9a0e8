//! Where the servers' programs are.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::error::{Doing, Error, Result};

/// The path of an executable: what the variable names, else the first of that name in `PATH`.
pub(crate) fn find_binary(
    binary: &'static str,
    package: &'static str,
    variable: &'static str,
) -> Result<PathBuf> {
    find_binary_in(binary, package, variable, Vec::new())
}

/// The path of an executable that the variable names; without it, there is none.
pub(crate) fn find_named_binary(
    binary: &'static str,
    package: &'static str,
    variable: &'static str,
) -> Result<PathBuf> {
    let named = std::env::var_os(variable).unwrap_or_default();
    choose(Some(named.into()), Vec::new(), OsStr::new(""), binary).ok_or(Error::MissingBinary {
        binary,
        package,
        variable,
    })
}

/// The path of an executable: what the variable names, else the first of that name in these folders and those of
/// `PATH`.
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

/// Runs a command to its end; `shown` are the arguments that an error may show.
pub(crate) fn run<A: AsRef<OsStr>>(mut command: Command, shown: &[A]) -> Result<String> {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or_default();
    let mut name = program.to_string_lossy().into_owned();
    for arg in shown {
        name.push(' ');
        name.push_str(&arg.as_ref().to_string_lossy());
    }
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(format!("run `{name}`"))?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    if output.status.success() {
        return Ok(stdout.trim_end_matches('\n').to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(Error::Command {
        command: name,
        status: output.status,
        output: format!("{stdout}{stderr}").trim().to_owned(),
    })
}

/// What is known of programs, by their paths: asked once, because each question starts one.
pub(crate) type Known<B> = Mutex<Option<HashMap<PathBuf, B>>>;

/// What is known of the program at `path`, or what it says of itself now.
pub(crate) fn once_asked<B: Clone>(
    known: &Known<B>,
    path: PathBuf,
    ask: impl FnOnce(&Path) -> Result<B>,
) -> Result<B> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let known = known.get_or_insert_default();
    if let Some(binary) = known.get(&path) {
        return Ok(binary.clone());
    }
    let binary = ask(&path)?;
    known.insert(path, binary.clone());
    Ok(binary)
}

/// What the program of this name writes when it is asked for its version.
pub(crate) fn version_text(name: &str, path: &Path) -> Result<String> {
    let output = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .doing(format!("run `{name} --version`"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The version that was found in the `text` of the program at `path`, which should be `store`.
pub(crate) fn version_in(
    found: Option<&str>,
    store: &str,
    path: &Path,
    text: &str,
) -> Result<String> {
    found.map(str::to_owned).ok_or_else(|| {
        let path = path.display();
        Error::Config(format!("`{path}` does not look like {store}: {text}"))
    })
}
