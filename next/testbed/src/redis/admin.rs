//! An operator's access to a Redis server.

use std::path::Path;
use std::time::Duration;

use redis::{
    Client, Connection, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _, RedisConnectionInfo,
};

use crate::error::{Error, Result};

/// The user of the testbed on its own servers, with all rights, whatever a test does to the others.
pub(crate) const ADMIN: &str = "testbed";

/// The limit of one answer. Only a paused server is silent for as long.
const ANSWER: Duration = Duration::from_secs(20);

/// An operator's access to a server. Each call opens a connection of its own.
///
/// On a [`RedisServer`](crate::RedisServer) it passes by every proxy, certificate and user of the test: it uses a socket in the
/// folder of the server, as a user with all rights.
///
/// Methods fail with [`Error::Redis`] when the server is not reached, refuses, or answers something else than the wanted type. A
/// `CLIENT KILL` may meet these connections too, as sentinels send it to a server whose role they change.
#[derive(Debug, Clone)]
pub struct RedisAdmin(ConnectionInfo);

impl RedisAdmin {
    /// Access by a URL, such as `redis://user:password@127.0.0.1:6379`.
    pub fn by_url(url: &str) -> Result<Self> {
        url.into_connection_info().map(Self).map_err(failed("a URL"))
    }

    pub(crate) fn by_socket(socket: &Path) -> Result<Self> {
        let user = RedisConnectionInfo::default().set_username(ADMIN).set_password(ADMIN);
        let info = ConnectionAddr::Unix(socket.to_owned()).into_connection_info();
        Ok(Self(info.map_err(failed("a socket"))?.set_redis_settings(user)))
    }

    /// Opens a blocking connection, for more than the methods below.
    pub fn connection(&self) -> Result<Connection> {
        let open = || {
            let connection = Client::open(self.0.clone())?.get_connection_with_timeout(ANSWER)?;
            connection.set_read_timeout(Some(ANSWER))?;
            connection.set_write_timeout(Some(ANSWER))?;
            Ok(connection)
        };
        open().map_err(failed("AUTH"))
    }

    /// Executes a command and returns its answer: `query::<Option<String>>(&["GET", "a"])`.
    pub fn query<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let mut command = redis::Cmd::new();
        command.arg(words);
        command
            .query(&mut self.connection()?)
            .map_err(failed(&words[..words.len().min(2)].join(" ")))
    }

    /// Executes a command whose answer does not matter.
    pub fn execute(&self, words: &[&str]) -> Result<()> {
        self.query::<redis::Value>(words).map(drop)
    }

    /// Returns a value of `INFO everything`, such as `role` or `connected_clients`.
    pub fn info(&self, field: &str) -> Result<Option<String>> {
        let info: String = self.query(&["INFO", "everything"])?;
        let mut lines = info
            .lines()
            .filter_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(lines.next().map(|value| value.trim_end().to_owned()))
    }

    /// Returns how often the server has executed this command since its start, in scripts too: `evalsha`, `ssubscribe`,
    /// `client|kill`.
    pub fn calls(&self, command: &str) -> Result<u64> {
        let stats = self.info(&format!("cmdstat_{command}"))?.unwrap_or_default();
        let calls = stats
            .strip_prefix("calls=")
            .and_then(|rest| rest.split(',').next()?.parse().ok());
        Ok(calls.unwrap_or(0))
    }

    /// Returns the keys that match a pattern such as `{tenure/*`, in order; bytes that are not UTF-8 as U+FFFD.
    pub fn keys(&self, pattern: &str) -> Result<Vec<String>> {
        let mut keys = Vec::new();
        let mut cursor = "0".to_owned();
        loop {
            let (next, page): (String, Vec<Vec<u8>>) =
                self.query(&["SCAN", &cursor, "MATCH", pattern, "COUNT", "1000"])?;
            keys.extend(page.iter().map(|key| String::from_utf8_lossy(key).into_owned()));
            cursor = next;
            if cursor == "0" {
                keys.sort();
                keys.dedup();
                return Ok(keys);
            }
        }
    }

    /// Deletes all keys of all databases.
    pub fn flush(&self) -> Result<()> {
        self.execute(&["FLUSHALL", "SYNC"])
    }

    /// Changes a setting until the next restart.
    pub fn set_config(&self, setting: &str, value: &str) -> Result<()> {
        self.execute(&["CONFIG", "SET", setting, value])
    }

    /// Creates or changes a user until the next restart. The rules are words of `ACL SETUSER`: `on >secret ~ns:* &ns:* +@all`.
    /// [`RedisOptions::user`](crate::RedisOptions::user) makes one that lasts.
    pub fn set_user(&self, name: &str, rules: &str) -> Result<()> {
        let mut words = vec!["ACL", "SETUSER", name];
        words.extend(rules.split_whitespace());
        self.execute(&words)
    }
}

fn failed(command: &str) -> impl FnOnce(redis::RedisError) -> Error {
    move |source| Error::Redis {
        command: command.to_owned(),
        source,
    }
}
