//! Transactional memory (see `lua/stm.lua` and `lua/commit.lua`).
//!
//! A commit is one script, which leaves a marker in a slot of the session's hash. There is no past
//! to read in: core reads again what an attempt read before, with each further read.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{
    Done, Fence, Kind, Outcome, Read, Resolution, Stm, Transaction, escape,
};
use tenure_core::{
    Compare, Effect, Entry, Error, ErrorKind, Name, Op, OpResult, Relation, Result, Target,
};

use crate::layout;
use crate::scripts;
use crate::session::RedisSession;
use crate::step::{Arg, Reply};

/// So many keys are read in one step, and in the last attempt of a read: 2,000 take a server about 1 ms.
const KEYS_AT_ONCE: [usize; 2] = [500, 2_000];

/// So many bytes of values are in one answer, unless a single value is larger.
const BYTES_AT_ONCE: u64 = 8 * 1024 * 1024;

/// How often a read in several steps starts again because something was written in between.
const TRIES: usize = 5;

/// The namespace's keys, as one session on Redis sees them.
#[derive(Debug)]
pub struct RedisStm {
    session: Arc<RedisSession>,
}

impl RedisStm {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }

    /// Reads in steps of so many keys, all as they were at the first step; none if one of them was written since.
    async fn read_in_steps(&self, keys: &[String], most: usize) -> Result<Option<Read>> {
        let mut read: Option<Read> = None;
        let mut left = keys;
        loop {
            let now = &left[..most.min(left.len())];
            let mut arguments = vec![Arg::Int(BYTES_AT_ONCE)];
            arguments.extend(now.iter().map(Arg::from));
            let reply = self.session.step(&scripts::STM_READ, 0, &arguments).await?;
            if reply.status() != "ok" {
                return Err(reply.unexpected());
            }
            let (revision, deleted) = (reply.unsigned(0)?, reply.unsigned(1)?);
            let entries = entries(&reply, 2)?;
            left = left.get(entries.len()..).unwrap_or_default();
            let is_newer = |entry: &Option<Entry>, than: u64| {
                entry.as_ref().map_or(deleted, |entry| entry.modified) > than
            };
            let read = match &mut read {
                // As it was, unless the server has lost a part of its history meanwhile.
                Some(read)
                    if revision < read.revision
                        || entries.iter().any(|entry| is_newer(entry, read.revision)) =>
                {
                    return Ok(None);
                }
                Some(read) => read,
                read => read.insert(Read {
                    revision,
                    repeatable: false,
                    entries: Vec::with_capacity(keys.len()),
                }),
            };
            // No end without this: an answer must bring something.
            let stuck = entries.is_empty();
            read.entries.extend(entries);
            if left.is_empty() {
                return Ok(Some(read.clone()));
            } else if stuck {
                return Err(reply.unexpected());
            }
        }
    }

    /// What says that a guard is held: its path, and its member there.
    fn fence<'a>(&self, fence: &'a Fence) -> (&'static str, String, &'a str, u64) {
        let path = self.session.path_of(fence.kind(), fence.name());
        // A grant's key is `<root><path>#<member>`.
        let member = fence
            .key()
            .rsplit_once('#')
            .map_or("", |(_, member)| member);
        (fence.kind().as_str(), path, member, fence.token().get())
    }

    /// Sends `transaction`, under a slot if it may write.
    async fn send(&self, transaction: &Transaction) -> Result<Outcome> {
        let script = match transaction.fence {
            Some(_) => &scripts::STM_COMMIT_FENCED,
            None => &scripts::STM_COMMIT,
        };
        let fence = transaction.fence.as_ref().map(|fence| self.fence(fence));
        let keys = keys_of(transaction);
        let arguments = arguments(transaction, fence.as_ref(), &keys);
        let nonce = transaction.nonce();
        let reply = match transaction.writes() {
            true => self.session.step_kept(script, nonce, &arguments).await?,
            false => self.session.step(script, nonce, &arguments).await?,
        };
        match reply.status() {
            "done" => done(transaction, &reply).map(Outcome::Done),
            "fence" => Ok(Outcome::FenceLost),
            "again" => Err(Error::new(
                ErrorKind::Unavailable,
                "the answer to this commit was lost",
            )
            .with_effect(Effect::Unknown)),
            _ => Err(reply.unexpected()),
        }
    }
}

#[async_trait]
impl Stm for RedisStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        if at.is_some() {
            // Never asked for: what is read here is not repeatable.
            return Err(no_snapshot("there is no past to read in"));
        }
        let keys: Vec<String> = keys.iter().map(|key| escape(key.as_str())).collect();
        for attempt in 1..=TRIES {
            let [few, many] = KEYS_AT_ONCE;
            let most = if attempt == TRIES { many } else { few };
            if let Some(read) = self.read_in_steps(&keys, most).await? {
                return Ok(read);
            }
        }
        let message = "these keys are too many for one step, and some of them were written between several: read fewer at a time";
        Err(no_snapshot(message).retryable(false))
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let sent = self.send(transaction).await;
        if !transaction.writes() {
            return sent.map_err(|error| error.with_effect(Effect::None));
        }
        match &sent {
            // The slot stays this commit's until it is resolved.
            Err(error) if error.effect() != Effect::None => {}
            _ => self.session.settled(transaction.nonce()),
        }
        sent
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        let nonce = transaction.nonce();
        if !self.session.keeps(nonce) {
            let message = "nothing is known of a commit that is settled";
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let found = self.session.step_kept(&scripts::STM_RESOLVE, nonce, &[]);
        let resolution = found.await.and_then(|reply| match reply.status() {
            "aborted" => Ok(Resolution::Aborted),
            "committed" => Ok(Resolution::Committed {
                revision: reply.unsigned(0)?,
                succeeded: reply.int(1)? == 1,
            }),
            _ => Err(reply.unexpected()),
        });
        match &resolution {
            Err(error) if error.is_retryable() => {}
            _ => self.session.settled(nonce),
        }
        resolution
    }

    fn check(&self, transaction: &Transaction) -> Result<()> {
        let root = self.session.root.len();
        transaction.check(|name| root + layout::path(Kind::Data, name).len())
    }
}

fn no_snapshot(message: &str) -> Error {
    Error::new(ErrorKind::Conflict, message)
}

/// The keys of comparisons and operations, in their order.
fn keys_of(transaction: &Transaction) -> Vec<String> {
    let compares = transaction.compares.iter().map(Compare::key);
    let ops = transaction.then.iter().chain(&transaction.or_else);
    let keys = compares.chain(ops.map(Op::key));
    keys.map(|key| escape(key.as_str())).collect()
}

/// What `commit.lua` expects.
fn arguments<'a>(
    transaction: &'a Transaction,
    fence: Option<&'a (&'static str, String, &'a str, u64)>,
    keys: &'a [String],
) -> Vec<Arg<'a>> {
    let mut arguments = Vec::with_capacity(8 + 4 * keys.len());
    match fence {
        Some((kind, path, member, token)) => {
            arguments.extend([Arg::Text(kind), Arg::Text(path), Arg::Text(member)]);
            arguments.push(Arg::Int(*token));
        }
        None => arguments.push(Arg::Text("")),
    }
    let mut keys = keys.iter().map(Arg::from);
    arguments.push(length(transaction.compares.len()));
    for (compare, key) in transaction.compares.iter().zip(&mut keys) {
        arguments.push(key);
        arguments.extend(test(compare));
    }
    for branch in [&transaction.then, &transaction.or_else] {
        arguments.push(length(branch.len()));
        for (op, key) in branch.iter().zip(&mut keys) {
            match op {
                Op::Get(_) => arguments.extend([Arg::Text("get"), key]),
                Op::Delete(_) => arguments.extend([Arg::Text("delete"), key]),
                Op::Put(_, value) => {
                    arguments.extend([Arg::Text("put"), key, Arg::Bytes(value)]);
                }
            }
        }
    }
    arguments
}

fn length(count: usize) -> Arg<'static> {
    Arg::Int(count as u64)
}

/// Which of an entry's parts, how, and with what.
fn test(compare: &Compare<Name>) -> [Arg<'_>; 3] {
    let (part, wanted) = match compare.target() {
        Target::Value(value) => ("1", Arg::Bytes(value)),
        Target::Created(number) => ("2", Arg::Int(*number)),
        Target::Modified(number) => ("3", Arg::Int(*number)),
        Target::Version(number) => ("4", Arg::Int(*number)),
    };
    let relation = match compare.relation() {
        Relation::Equal => "=",
        Relation::NotEqual => "!",
        Relation::Less => "<",
        Relation::Greater => ">",
    };
    [Arg::Text(part), Arg::Text(relation), wanted]
}

/// What stands under keys: four fields for each, from `field` on.
fn entries(reply: &Reply, field: usize) -> Result<Vec<Option<Entry>>> {
    let entry = |field| {
        let Some(value) = reply.bytes(field)? else {
            return Ok(None);
        };
        Ok(Some(Entry {
            value: value.to_vec(),
            created: reply.unsigned(field + 1)?,
            modified: reply.unsigned(field + 2)?,
            version: reply.unsigned(field + 3)?,
        }))
    };
    (field..reply.len()).step_by(4).map(entry).collect()
}

fn done(transaction: &Transaction, reply: &Reply) -> Result<Done> {
    let succeeded = reply.int(1)? == 1;
    let branch = match succeeded {
        true => &transaction.then,
        false => &transaction.or_else,
    };
    let mut entries = entries(reply, 2)?.into_iter();
    let result = |op: &Op<Name>| match op {
        Op::Get(_) => entries.next().map(OpResult::Get),
        Op::Put(..) => Some(OpResult::Put),
        Op::Delete(_) => Some(OpResult::Delete),
    };
    let results: Option<Vec<OpResult>> = branch.iter().map(result).collect();
    Ok(Done {
        revision: reply.unsigned(0)?,
        succeeded,
        results: results.ok_or_else(|| reply.unexpected())?,
    })
}
