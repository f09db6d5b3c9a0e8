//! Writes the sources of tenure-core once more, as they are but for three things: what threads and
//! tasks meet in (`std::sync`, and tokio's `sync`, `time`, `runtime` and `spawn`) is that of
//! `src/exploring.rs`; the faults of `planted.rs` can be switched on; and core's own unit tests,
//! which need a real runtime, are left out.

use std::path::{Path, PathBuf};
use std::{env, fs};

include!("planted.rs");

/// What is exchanged everywhere.
const EXCHANGED: &[(&str, &str)] = &[
    ("tokio::sync::Mutex", "crate::exploring::sync::AsyncMutex"),
    ("std::sync::", "crate::exploring::sync::"),
    ("tokio::sync::", "crate::exploring::sync::"),
    ("tokio::time::", "crate::exploring::time::"),
    ("tokio::runtime::", "crate::exploring::runtime::"),
    ("tokio::spawn(", "crate::exploring::spawn("),
    // In an order that is the same in every run.
    (
        "use std::collections::HashMap;",
        "use std::collections::BTreeMap as HashMap;",
    ),
    (
        "use std::collections::{BTreeMap, HashMap};",
        "use std::collections::{BTreeMap, BTreeMap as HashMap};",
    ),
    ("#[cfg(test)]", "#[cfg(any())]"),
];

/// What is exchanged in one file, and has to be there.
const EXCHANGED_IN: &[(&str, &str, &str)] = &[
    // The same numbers in every run.
    (
        "ask.rs",
        "    NEXT.fetch_add(1, Ordering::Relaxed)\n",
        "    let _ = &NEXT;\n    crate::exploring::nonce()\n",
    ),
    // So few that they run out.
    (
        "slots.rs",
        "const SLOTS: u32 = 64;",
        "const SLOTS: u32 = 2;",
    ),
    // To see whether anything is left.
    (
        "ledger.rs",
        "impl Ledger {\n",
        "impl Ledger {\n    pub(crate) fn standing(&self) -> usize { self.inner().queues.len() }\n",
    ),
];

fn main() {
    let core = Path::new("../core/src");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo")).join("core");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=planted.rs");
    println!("cargo::rerun-if-changed={}", core.display());
    copy(core, Path::new(""), &out);
}

fn copy(core: &Path, folder: &Path, out: &Path) {
    fs::create_dir_all(out.join(folder)).expect("a folder to write to");
    let entries = fs::read_dir(core.join(folder)).expect("the sources of core");
    for entry in entries.map(|entry| entry.expect("a source")) {
        let path = folder.join(entry.file_name());
        if entry.path().is_dir() {
            copy(core, &path, out);
        } else {
            let text = fs::read_to_string(entry.path()).expect("a source that is text");
            let text = exchanged(&path, text, out);
            // Untouched if it says the same already.
            let target = out.join(&path);
            if fs::read_to_string(&target).ok().as_deref() != Some(text.as_str()) {
                fs::write(target, text).expect("a file to write");
            }
        }
    }
}

fn exchanged(path: &Path, text: String, out: &Path) -> String {
    let name = path.to_str().expect("a name that is text");
    let mut text = with_faults(name, &text);
    for (_, from, to) in EXCHANGED_IN.iter().filter(|(file, ..)| *file == name) {
        found_once(name, &text, from);
        text = text.replace(from, to);
    }
    for (from, to) in EXCHANGED {
        text = text.replace(from, to);
    }
    // Included, not compiled as a file of its own: where its modules are has to be said.
    let folder = match name {
        "lib.rs" => out.to_owned(),
        _ => out.join(path.with_extension("")),
    };
    let line = |line: &str| {
        if name == "lib.rs" && line.starts_with("//!") {
            return String::new();
        }
        let module = line.strip_prefix("pub ").unwrap_or(line);
        match module
            .strip_prefix("mod ")
            .and_then(|m| m.strip_suffix(';'))
        {
            Some(module) => {
                let path = folder.join(module).with_extension("rs");
                format!("#[path = {path:?}]\n{line}\n")
            }
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

fn with_faults(name: &str, text: &str) -> String {
    let mut faults: Vec<(usize, &Planted)> = PLANTED
        .iter()
        .filter(|planted| planted.file == name)
        .map(|planted| (found_once(name, text, planted.before), planted))
        .collect();
    faults.sort_by_key(|(at, _)| *at);
    let (mut with_faults, mut done) = (String::new(), 0);
    for (at, Planted { name, fault, .. }) in faults {
        with_faults += &text[done..at];
        with_faults += &format!("if crate::exploring::planted({name:?}) {{\n{fault}\n}}\n");
        done = at;
    }
    with_faults + &text[done..]
}

/// Sources move on: what is not found where it was must not be passed over.
fn found_once(name: &str, text: &str, what: &str) -> usize {
    assert_eq!(
        text.matches(what).count(),
        1,
        "core/src/{name} has to have this once, for interleavings/build.rs and planted.rs:\n{what}"
    );
    text.find(what).expect("counted")
}
