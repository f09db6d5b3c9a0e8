//! An operator's access to an etcd.

use std::ffi::OsStr;
use std::process::Command;

use super::options::EtcdOptions;
use crate::certs::Identity;
use crate::error::Result;
use crate::program::{Program, run};

const PROGRAM: Program = Program {
    name: "etcdctl",
    package: "etcd-client",
    variable: "TENURE_ETCDCTL",
};

/// An operator's access to an etcd by `etcdctl`: some 30 ms a call.
///
/// Methods fail with [`Error::MissingProgram`](crate::Error::MissingProgram), and with
/// [`Error::Command`](crate::Error::Command) when etcd refuses or does not answer within 5 s.
#[derive(Debug, Clone)]
pub struct EtcdAdmin {
    endpoint: String,
    ca: Option<std::path::PathBuf>,
    identity: Option<Identity>,
    password: Option<String>,
}

impl EtcdAdmin {
    /// Access to a server without TLS and authentication, by its `host:port`.
    pub fn by_address(address: &str) -> Self {
        Self {
            endpoint: format!("http://{address}"),
            ca: None,
            identity: None,
            password: None,
        }
    }

    /// With mutual TLS, the operator presents the server's certificate, which is good for clients too.
    pub(crate) fn of(address: &str, options: &EtcdOptions) -> Self {
        let tls = options.tls.as_ref();
        Self {
            endpoint: format!("{}://{address}", options.scheme()),
            ca: tls.map(|tls| tls.ca.clone()),
            identity: tls.filter(|tls| tls.client_ca.is_some()).map(|tls| tls.server.clone()),
            password: options.root_password.clone(),
        }
    }

    /// The same without a user, for the time before authentication is on.
    pub(crate) fn without_user(&self) -> Self {
        Self {
            password: None,
            ..self.clone()
        }
    }

    /// Runs `etcdctl` with these arguments and returns its output, without the last line break.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<String> {
        let mut command = Command::new(PROGRAM.find()?);
        // It also takes its options from such variables, and refuses an option that is given twice.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCDCTL_") {
                command.env_remove(name);
            }
        }
        command.env("ETCDCTL_API", "3");
        if let Some(password) = &self.password {
            // Not as an argument, which every user of the machine may read, and which an error would show.
            command.env("ETCDCTL_USER", format!("root:{password}"));
        }
        command.arg(format!("--endpoints={}", self.endpoint));
        if let Some(ca) = &self.ca {
            command.arg("--cacert").arg(ca);
        }
        if let Some(identity) = &self.identity {
            command.arg("--cert").arg(&identity.certificate);
            command.arg("--key").arg(&identity.key);
        }
        command.args(arguments);
        run(&mut command).map(|output| output.trim_end_matches('\n').to_owned())
    }

    /// Returns the keys that begin with `prefix`, in order.
    pub fn keys(&self, prefix: &str) -> Result<Vec<String>> {
        let output = self.run(&["get", "--prefix", "--keys-only", prefix])?;
        // An empty line follows each key.
        Ok(output
            .lines()
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect())
    }

    /// Returns the value of a key, `None` for an absent one.
    pub fn get(&self, key: &str) -> Result<Option<String>> {
        // The key precedes the value.
        let output = self.run(&["get", key])?;
        Ok(output.split_once('\n').map(|(_, value)| value.to_owned()))
    }

    /// Writes a key.
    pub fn put(&self, key: &str, value: &str) -> Result<()> {
        self.run(&["put", key, value]).map(drop)
    }

    /// Deletes a key; returns whether it was there.
    pub fn delete(&self, key: &str) -> Result<bool> {
        self.run(&["del", key]).map(|deleted| deleted != "0")
    }

    /// Revokes a lease, given in hexadecimal digits.
    pub fn revoke(&self, lease: &str) -> Result<()> {
        self.run(&["lease", "revoke", lease]).map(drop)
    }

    /// Returns the number of leases.
    pub fn leases(&self) -> Result<usize> {
        // `found 2 leases` precedes them.
        self.run(&["lease", "list"]).map(|output| output.lines().count() - 1)
    }

    /// Returns the store's revision.
    pub fn revision(&self) -> Result<u64> {
        let status = self.run(&["endpoint", "status", "--write-out=json"])?;
        let digits = status.split_once(r#""revision":"#).map_or("", |(_, rest)| rest);
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        Ok(digits[..end].parse().unwrap_or_default())
    }

    /// Forgets the history before the present revision.
    pub fn compact(&self) -> Result<()> {
        let revision = self.revision()?.to_string();
        self.run(&["compaction", &revision]).map(drop)
    }
}
