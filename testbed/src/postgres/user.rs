//! Whom a server runs as: PostgreSQL refuses to be started by root.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use crate::error::{Doing, Error, Result};

/// A user without rights, by whom the server runs when this process is root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    uid: u32,
    gid: u32,
}

impl User {
    /// Nobody else than who runs this process, unless that is root: then the user of the
    /// installed package, or whoever owns nothing.
    pub(super) fn find() -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let users = std::fs::read_to_string("/etc/passwd").doing("read /etc/passwd")?;
        let found = ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| Self::named(name, &users));
        found.map(Some).ok_or_else(|| {
            Error::Config(
                "PostgreSQL does not run as root, and here is neither a user `postgres` nor `nobody`"
                    .to_owned(),
            )
        })
    }

    fn named(name: &str, users: &str) -> Option<Self> {
        users.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next() != Some(name) {
                return None;
            }
            let mut numbers = fields.skip(1).map(str::parse);
            let (uid, gid) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
            (uid != 0).then_some(Self { uid, gid })
        })
    }

    /// The command will run as this user, without the groups of root.
    pub(crate) fn runs(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

/// Gives a file or folder to whom the server runs as.
pub(super) fn give(user: Option<User>, path: &Path) -> Result<()> {
    let Some(user) = user else {
        return Ok(());
    };
    std::os::unix::fs::chown(path, Some(user.uid), Some(user.gid))
        .doing(format!("give {} to another user", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_and_root_is_none() {
        let users =
            "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var:/bin/sh\ntoor:x:0:0::/:\n";
        let postgres = User { uid: 101, gid: 104 };
        assert_eq!(User::named("postgres", users), Some(postgres));
        assert_eq!(User::named("toor", users), None);
        assert_eq!(User::named("nobody", users), None);
    }
}
