//! Options of a server, and its configuration file.

use std::fmt::Write as _;
use std::path::Path;

use super::admin::ADMIN;
use crate::certs::Tls;
use crate::folder::Folder;
use crate::port::Port;

/// The part that a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Part {
    #[default]
    Store,
    Node,
    Sentinel,
}

/// Options of a server. By default: no TLS, no password, an append-only file that is flushed at every write.
#[derive(Debug, Clone)]
#[must_use]
pub struct RedisOptions {
    persistent: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) movable_clock: bool,
    pub(crate) part: Part,
    lines: Vec<String>,
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            persistent: true,
            tls: None,
            movable_clock: false,
            part: Part::Store,
            lines: Vec::new(),
        }
    }
}

impl RedisOptions {
    /// Keeps nothing: a restarted server is empty.
    pub fn without_persistence(mut self) -> Self {
        self.persistent = false;
        self
    }

    /// Serves TLS only, to clients, replicas and nodes.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Sets the password of the default user. URLs do not contain it.
    pub fn password(self, password: &str) -> Self {
        self.line(format!("requirepass {}", quoted(password)))
    }

    /// Adds a user: `user("app", "on >secret ~ns:* &ns:* +@all")`. `user("default", "off")` refuses all clients without one.
    pub fn user(self, name: &str, rules: &str) -> Self {
        self.line(format!("user {name} {rules}"))
    }

    /// Adds a line to the configuration file, such as `maxmemory 100mb`. It follows the testbed's own lines and overrides them.
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Lets [`RedisServer::move_clock`](crate::RedisServer::move_clock) move the wall clock of the server. Needs a C compiler.
    pub fn movable_clock(mut self) -> Self {
        self.movable_clock = true;
        self
    }

    pub(crate) fn part(mut self, part: Part) -> Self {
        self.part = part;
        self
    }

    /// Returns `redis`, or `rediss` with TLS, with the kind (`+cluster`) behind it.
    pub(crate) fn scheme(&self, kind: &str) -> String {
        format!("redis{}{kind}", if self.tls.is_some() { "s" } else { "" })
    }

    /// Returns the configuration file. Passwords are in it and not in arguments, which every user of the machine may read.
    pub(crate) fn configuration(&self, folder: &Folder, port: &Port, bus: &Port) -> String {
        let mut lines = vec![
            format!("dir {}", quoted_path(&folder.join("data"))),
            "bind 127.0.0.1".to_owned(),
            format!("unixsocket {}", quoted_path(&folder.join("redis.sock"))),
            format!("user {ADMIN} on >{ADMIN} ~* &* +@all"),
        ];
        match &self.tls {
            None => lines.push(format!("port {}", port.number())),
            Some(tls) => lines.extend(tls_lines(tls, port)),
        }
        if self.part != Part::Sentinel {
            lines.extend(self.store_lines());
        }
        if self.part == Part::Node {
            lines.push("cluster-enabled yes".to_owned());
            lines.push(format!("cluster-port {}", bus.number()));
        }
        lines.extend(self.lines.iter().cloned());
        lines.join("\n") + "\n"
    }

    fn store_lines(&self) -> Vec<String> {
        let mut lines = vec![
            // A snapshot is made when a test asks for it, and at no other time.
            "save \"\"".to_owned(),
            "enable-debug-command local".to_owned(),
            // For the replica and the nodes that follow, whichever they are.
            format!("masteruser {ADMIN}"),
            format!("masterauth {ADMIN}"),
            "repl-diskless-sync yes".to_owned(),
            "repl-diskless-sync-delay 0".to_owned(),
        ];
        lines.push(format!("appendonly {}", if self.persistent { "yes" } else { "no" }));
        lines.push("appendfsync always".to_owned());
        lines
    }
}

fn tls_lines(tls: &Tls, port: &Port) -> [String; 8] {
    let (ca, clients) = match &tls.client_ca {
        Some(ca) => (ca, "yes"),
        None => (&tls.ca, "no"),
    };
    [
        "port 0".to_owned(),
        format!("tls-port {}", port.number()),
        format!("tls-cert-file {}", quoted_path(&tls.server.certificate)),
        format!("tls-key-file {}", quoted_path(&tls.server.key)),
        format!("tls-ca-cert-file {}", quoted_path(ca)),
        format!("tls-auth-clients {clients}"),
        "tls-replication yes".to_owned(),
        "tls-cluster yes".to_owned(),
    ]
}

fn quoted_path(path: &Path) -> String {
    quoted(&path.display().to_string())
}

/// Returns a word of the configuration file, with any content.
fn quoted(word: &str) -> String {
    let mut quoted = String::from("\"");
    for byte in word.bytes() {
        match byte {
            b'"' | b'\\' => quoted.extend(['\\', char::from(byte)]),
            b' '..=b'~' => quoted.push(char::from(byte)),
            _ => {
                let _ = write!(quoted, "\\x{byte:02x}");
            }
        }
    }
    quoted + "\""
}
