//! Work of operators: rights, the end of a namespace, of a session and of a holding, and what is in a namespace.

use std::collections::BTreeSet;
use std::sync::Arc;

use redis::Value;
use tenure_core::executor::Executor;
use tenure_core::{FencingToken, Kind, Name, Namespace, Result, SessionId};

use crate::backend::RedisBackend;
use crate::config::RedisConfig;
use crate::connection::{Client, Line, Link, text};
use crate::error::unexpected;
use crate::keys;
use crate::script::{self, Answer};
use crate::sweep;

/// The commands outside the scripts. `set` and `del` are those of the confirmation by replicas.
const SENT: &[&str] = &[
    "eval",
    "evalsha",
    "ping",
    "select",
    "ssubscribe",
    "sunsubscribe",
    "del",
    "set",
    "wait",
    "info",
    "cluster|slots",
];

/// The number of keys that one request scans or removes.
const PAGE: usize = 500;

/// Returns the access control rules for a user that may do all that tenure does in `namespace`, and nothing else. They go behind
/// `ACL SETUSER app on >password`.
///
/// The command `wait` is for `wait_replicas`; `wait_aof` needs `+waitaof` as well, which Redis 7.0 does not know. `info` is for
/// the guarantees, which assume the weakest value for a property that they cannot read. `cluster|slots` finds a cluster's nodes
/// when those in the URL are gone.
///
/// The rules leave out `config|get`, without which the guarantees cannot report `appendfsync`. It also shows `requirepass` and
/// `masterauth`, with which the user could do everything.
pub fn acl_rules(namespace: &Namespace) -> String {
    let keys = pattern(&keys::tag(namespace));
    let mut commands: BTreeSet<String> = SENT.iter().map(|&name| name.to_owned()).collect();
    for script in script::all() {
        commands.extend(called_by(&script.source));
    }
    let commands: Vec<_> = commands.iter().map(|name| format!("+{name}")).collect();
    format!("~{keys}* &{keys}* {}", commands.join(" "))
}

/// Returns the commands that a script calls. Every call has the command's name as a literal.
fn called_by(source: &str) -> impl Iterator<Item = String> {
    let calls = source.split("redis.").skip(1);
    let names = calls.filter_map(|rest| {
        let rest = rest.strip_prefix("call('").or_else(|| rest.strip_prefix("pcall('"))?;
        rest.split('\'').next()
    });
    names.map(str::to_ascii_lowercase)
}

/// Returns a pattern that matches this text alone. An access control list cannot contain a space, so `?`, which matches any one
/// byte, replaces it.
fn pattern(text: &str) -> String {
    let mut pattern = String::new();
    for c in text.chars() {
        match c {
            '*' | '?' | '[' | ']' | '\\' | '^' => pattern.extend(['\\', c]),
            c if c.is_whitespace() => pattern.extend((0..c.len_utf8()).map(|_| '?')),
            c => pattern.push(c),
        }
    }
    pattern
}

/// Removes all keys of the configured namespace: data, queue items, holdings and wait queues. It is meant for a namespace that
/// is no longer in use, such as a test's. Active sessions lose their holdings and receive `Lost`. Names shared with other
/// programs ([interop](RedisConfig::interop)) belong to no namespace, and stay.
///
/// **Tokens restart at the server's clock.** They are greater than the earlier ones unless that clock was set back since, or
/// another server with an earlier clock took over. Do not use the namespace again for a resource that remembers its tokens.
///
/// The user needs the right to `SCAN` and `UNLINK`, besides those of [`acl_rules`]: the function scans all keys of the server,
/// some hundred at a time.
///
/// # Errors
///
/// Those of [`connect`](crate::connect); `Unauthorized` for a missing right. Some keys may be removed by then.
///
/// # Cancel safety
///
/// When the future is dropped, some keys may be removed.
pub async fn remove_namespace(config: RedisConfig) -> Result<()> {
    // Keys and channels have the same patterns, but `MATCH` takes a space.
    let pattern = literal(&keys::tag(&config.namespace)) + "*";
    let executor = config.executor.clone().map_or_else(Executor::library, Ok)?;
    let client = Client::connect(Arc::new(config), &executor).await?;
    let link = client.link().await?;
    let mut cursor = "0".to_owned();
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(PAGE);
        let (next, found) = page("SCAN", link.command(Line::Commands, scan).await?)?;
        for keys in found.chunks(PAGE) {
            let mut unlink = redis::cmd("UNLINK");
            for key in keys {
                match key {
                    Value::BulkString(key) => unlink.arg(key),
                    _ => return Err(unexpected("SCAN", "a key that is no text")),
                };
            }
            link.command(Line::Commands, unlink).await?;
        }
        cursor = next;
        if cursor == "0" {
            return Ok(());
        }
    }
}

/// Returns a pattern of `MATCH` for this text alone.
pub(crate) fn literal(text: &str) -> String {
    let special = |c| matches!(c, '*' | '?' | '[' | ']' | '\\' | '^');
    text.chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}

/// Reads the answer of a scan.
fn page(command: &str, answer: Value) -> Result<(String, Vec<Value>)> {
    match answer {
        Value::Array(parts) => match <[Value; 2]>::try_from(parts) {
            Ok([next, Value::Array(found)]) => Ok((text(&next), found)),
            _ => Err(unexpected(command, "no cursor and page")),
        },
        _ => Err(unexpected(command, "no list")),
    }
}

impl RedisBackend {
    /// Ends the holding of `name` under `token`, as an operator does: the next waiter is granted, and the holder's client
    /// receives `Lost`. Returns whether the holding existed.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    pub async fn break_holding(&self, kind: Kind, name: &Name, token: FencingToken) -> Result<bool> {
        let path = keys::path(kind, name, self.client().config().interop);
        let link = self.client().link().await?;
        let answer = self.act(&link, "break", "", vec![path.into(), token.into()]).await?;
        Ok(answer.word()? == "ok")
    }

    /// Ends a session with its entries, as an operator does, and notifies its client. Returns whether it existed.
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    pub async fn end_session(&self, id: &SessionId) -> Result<bool> {
        let link = self.client().link().await?;
        let answer = self.act(&link, "end", id.as_str(), Vec::new()).await?;
        // Its holdings go to the next waiters now.
        while sweep::step(&link).await? {}
        Ok(answer.word()? == "ok")
    }

    /// Lists the sessions of the namespace with their labels, those included that have expired and are not removed yet. Costs
    /// one request for each session.
    ///
    /// The user needs the right to `ZSCAN` and `HGET`, besides those of [`acl_rules`].
    ///
    /// # Errors
    ///
    /// `Unavailable`, `Unauthorized` or `Internal`.
    pub async fn sessions(&self) -> Result<Vec<(SessionId, String)>> {
        let root = keys::root(&self.client().config().namespace);
        let link = self.client().link().await?;
        let (mut cursor, mut sessions) = ("0".to_owned(), Vec::new());
        loop {
            let mut scan = redis::cmd("ZSCAN");
            scan.arg(format!("{root}deadlines")).arg(&cursor);
            scan.arg("MATCH").arg("s/*").arg("COUNT").arg(PAGE);
            let (next, found) = page("ZSCAN", link.command(Line::Commands, scan).await?)?;
            for member in found.iter().step_by(2).map(text) {
                let id = member.trim_start_matches("s/");
                let mut label = redis::cmd("HGET");
                label.arg(format!("{root}session/{id}")).arg("label");
                let label = link.command(Line::Commands, label).await?;
                sessions.push((SessionId::new(id), text(&label)));
            }
            cursor = next;
            if cursor == "0" {
                return Ok(sessions);
            }
        }
    }

    pub(crate) async fn act(
        &self,
        link: &Link,
        operation: &'static str,
        session: &str,
        own: Vec<script::Argument>,
    ) -> Result<Answer> {
        let mut arguments = vec![
            operation.into(),
            session.into(),
            link.epoch().into(),
            "".into(),
            "".into(),
        ];
        arguments.extend(own);
        let answer = link.call(Line::Commands, &script::ADMIN, arguments).await?;
        Answer::read(operation, answer)
    }
}
