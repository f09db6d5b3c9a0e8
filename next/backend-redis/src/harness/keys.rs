//! The keys of a namespace, as an operator reads them, and the rules that hold for them between two scripts.

use std::collections::BTreeSet;

use redis::FromRedisValue;
use tenure_core::Result;

use crate::admin;
use crate::backend::RedisBackend;
use crate::connection::{Line, Link};
use crate::error::unexpected;
use crate::keys;

/// Returns what the keys in the namespace of `backend` contradict each other in; nothing if they agree.
///
/// A request is in a wait queue, an item in flight, a consumer waiting and a key leased if and only if the index of the session
/// names it, and no key is without an owner. This holds between any two scripts, also when sessions have ended and nothing
/// was swept. But a look takes many requests: while other clients act, only a contradiction that stays is one.
///
/// # Errors
///
/// `Unavailable`; `Foreign` for a key of a wrong type; `Unauthorized` for a user who may not read all keys.
pub async fn check_keys(backend: &RedisBackend) -> Result<Vec<String>> {
    let reader = Reader::new(backend).await?;
    let mut check = Check::default();
    let keys = reader.keys("*").await?;
    for key in &keys {
        check.key(&reader, key).await?;
    }
    Ok(check.contradictions(&keys))
}

/// Access to the keys of one namespace, which are named without its root.
pub(crate) struct Reader {
    link: Link,
    root: String,
}

impl Reader {
    pub(crate) async fn new(backend: &RedisBackend) -> Result<Self> {
        Ok(Self {
            link: backend.client().link().await?,
            root: keys::root(&backend.client().config().namespace),
        })
    }

    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// Executes `command` on a key of the namespace.
    pub(crate) async fn ask<T: FromRedisValue>(&self, command: &str, key: &str, rest: &[&str]) -> Result<T> {
        let key = format!("{}{key}", self.root);
        self.query(&[&[command, &key], rest].concat()).await
    }

    /// Executes a command on the server.
    pub(crate) async fn query<T: FromRedisValue>(&self, words: &[&str]) -> Result<T> {
        let mut command = redis::Cmd::new();
        command.arg(words);
        let answer = self.link.command(Line::Commands, command).await?;
        redis::from_redis_value(answer).map_err(|error| unexpected(words[0], error))
    }

    /// Lists the keys that match `pattern`, in order.
    pub(crate) async fn keys(&self, pattern: &str) -> Result<Vec<String>> {
        let pattern = admin::literal(&self.root) + pattern;
        let (mut cursor, mut keys) = ("0".to_owned(), BTreeSet::new());
        loop {
            let words = ["SCAN", &cursor, "MATCH", &pattern, "COUNT", "1000"];
            let (next, page): (String, Vec<Vec<u8>>) = self.query(&words).await?;
            keys.extend(page.iter().map(|key| {
                let key = String::from_utf8_lossy(key);
                key.strip_prefix(&self.root).unwrap_or(&key).to_owned()
            }));
            cursor = next;
            if cursor == "0" {
                return Ok(keys.into_iter().collect());
            }
        }
    }

    /// Lists the members of a sorted set, in order.
    pub(crate) async fn members(&self, key: &str) -> Result<Vec<String>> {
        self.ask("ZRANGE", key, &["0", "-1"]).await
    }

    /// Lists the fields of a hash.
    pub(crate) async fn fields(&self, key: &str) -> Result<Vec<String>> {
        self.ask("HKEYS", key, &[]).await
    }
}

/// The knowledge of a look, each fact as a line of text.
#[derive(Default)]
struct Check {
    /// Named by the indexes of the sessions.
    indexed: BTreeSet<String>,
    /// Named by the objects.
    placed: BTreeSet<String>,
    /// Candidates with a value, and those with a place.
    values: BTreeSet<String>,
    candidates: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Check {
    async fn key(&mut self, reader: &Reader, key: &str) -> Result<()> {
        let (kind, rest) = key.split_once('/').unwrap_or((key, ""));
        match (kind, key.rsplit_once('/')) {
            ("token" | "revision" | "deadlines", None) => {}
            ("session", _) => {
                let due: Option<f64> = reader.ask("ZSCORE", "deadlines", &[&format!("s/{rest}")]).await?;
                if due.is_none() {
                    self.wrong.push(format!("{key} is never swept"));
                }
            }
            ("held" | "kept", _) => {
                let entries: Vec<(String, String)> = reader.ask("HGETALL", key, &[]).await?;
                let entries = entries.iter().flat_map(|(nonce, entry)| indexed(rest, nonce, entry));
                self.indexed.extend(entries);
            }
            ("data" | "barrier", _) => {
                // The value follows the first line.
                let text: Vec<u8> = reader.ask("GETRANGE", key, &["0", "200"]).await?;
                let text = String::from_utf8_lossy(&text);
                match text.lines().next().and_then(|head| head.split(' ').nth(3)) {
                    Some("-") => {}
                    Some(session) => {
                        self.placed.insert(format!("{key} {session}"));
                    }
                    None => self.wrong.push(format!("{key} has no owner")),
                }
            }
            ("queue", Some((path, "values"))) => self.queue(reader, path).await?,
            // With the values and the consumers. Ids outlive their items.
            ("queue", Some((_, "items" | "ready" | "delayed" | "claims" | "wants" | "ids"))) => {}
            ("queue", Some((path, "consumers"))) => {
                let consumers = reader.members(key).await?;
                let wants = reader.fields(&format!("{path}/wants")).await?;
                self.agree(path, "consumers", &consumers, "wants", &wants);
                self.placed
                    .extend(consumers.iter().map(|consumer| format!("{path} {consumer} -")));
            }
            ("election", Some((path, "values"))) => {
                let fields = reader.fields(key).await?;
                self.values.extend(fields.iter().map(|field| format!("{path} {field}")));
            }
            ("lock" | "rw_lock" | "election" | "double_barrier" | "interop", Some((path, set))) => {
                let members: Vec<(String, f64)> = reader.ask("ZRANGE", key, &["0", "-1", "WITHSCORES"]).await?;
                for (member, score) in members {
                    let token = match set {
                        "holders" => score.to_string(),
                        "waiters" => "-".to_owned(),
                        _ => {
                            self.wrong.push(format!("{key} is no key of a wait queue"));
                            break;
                        }
                    };
                    if let ("election", Some((candidate, _))) = (kind, member.rsplit_once(':')) {
                        self.candidates.insert(format!("{path} {candidate}"));
                    }
                    self.placed.insert(format!("{path} {member} {token}"));
                }
            }
            _ => self.wrong.push(format!("{key} is of no known kind")),
        }
        Ok(())
    }

    /// Checks that each item is in one place, and notes those in flight.
    async fn queue(&mut self, reader: &Reader, path: &str) -> Result<()> {
        let part = |part: &str| format!("{path}/{part}");
        let values = reader.fields(&part("values")).await?;
        let items = reader.fields(&part("items")).await?;
        self.agree(path, "values", &values, "items", &items);
        let claims: Vec<(String, String)> = reader.ask("HGETALL", &part("claims"), &[]).await?;
        let mut places = reader.members(&part("ready")).await?;
        places.extend(reader.members(&part("delayed")).await?);
        places.extend(claims.iter().map(|(place, _)| place.clone()));
        self.agree(path, "values", &values, "places", &places);
        let claims = claims.iter().map(|(place, claim)| format!("{path} {claim} {place}"));
        self.placed.extend(claims);
        Ok(())
    }

    fn agree(&mut self, path: &str, what: &str, these: &[String], other: &str, those: &[String]) {
        let (mut a, mut b) = (these.to_vec(), those.to_vec());
        a.sort();
        b.sort();
        if a != b {
            self.wrong
                .push(format!("{path}: {what} {a:?} do not agree with {other} {b:?}"));
        }
    }

    fn contradictions(mut self, keys: &[String]) -> Vec<String> {
        let has = |key: &str| keys.binary_search_by(|known| known.as_str().cmp(key)).is_ok();
        for key in keys {
            if let Some(session) = key.strip_prefix("held/").or_else(|| key.strip_prefix("kept/"))
                && !has(&format!("session/{session}"))
            {
                self.wrong.push(format!("{key} belongs to no session"));
            }
            let (path, part) = key.rsplit_once('/').unwrap_or_default();
            let owner = match part {
                "items" | "ready" | "delayed" | "claims" => "values",
                "wants" => "consumers",
                _ => continue,
            };
            if path.starts_with("queue/") && !has(&format!("{path}/{owner}")) {
                self.wrong.push(format!("{key} is there without {owner}"));
            }
        }
        let mut differ = |what: &str, these: &BTreeSet<String>, those: &BTreeSet<String>| {
            let only = these.difference(those).map(|fact| format!("{what}: {fact}"));
            self.wrong.extend(only);
        };
        differ("in an object, in no index", &self.placed, &self.indexed);
        differ("in an index, in no object", &self.indexed, &self.placed);
        differ("a value without a candidate", &self.values, &self.candidates);
        differ("a candidate without a value", &self.candidates, &self.values);
        self.wrong
    }
}

/// Returns the facts of an entry in the index of `session`. That of a request which an operator has ended is a mark.
fn indexed(session: &str, nonce: &str, entry: &str) -> Vec<String> {
    match *entry.splitn(3, ' ').collect::<Vec<_>>() {
        ["k"] => vec![format!("{nonce} {session}")],
        ["q", "-", path] => vec![format!("{path} {session}:{nonce} -")],
        ["q", claims, path] => {
            let claims = claims.split(',').filter_map(|claim| claim.split_once('@'));
            let fact = |(token, place)| format!("{path} {session}:{nonce}:{token} {place}");
            claims.map(fact).collect()
        }
        [token, mode, path] => vec![format!("{path} {session}:{nonce}:{mode} {token}")],
        _ => Vec::new(),
    }
}
