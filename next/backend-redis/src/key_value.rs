//! Transactional memory: keys with revisions.

use async_trait::async_trait;
use futures_util::future::select_all;
use tenure_core::backend::{
    Commit, CommitOutcome, CommitRecord, Fence, Key, KeyRead, Marker, Nonce, Resolution, Snapshot, Stm, StoredValue,
    Write,
};
use tenure_core::compare::{OpResult, Relation, StmEntry, Target};
use tenure_core::{Effect, Error, ErrorKind, Kind, Result};
use tokio::time::{Duration, Instant, sleep_until};

use crate::keys;
use crate::script::{Answer, Argument, KEY_VALUE};
use crate::session::{Call, RedisSession};
use crate::waiters::after_lease;

/// The most keys that one script reads: 1,000 take the server about 1 ms.
const KEYS_AT_ONCE: usize = 1000;

/// The most bytes of values in one answer, unless a single value is longer.
const BYTES_AT_ONCE: u64 = 8 << 20;

/// How often a read in several steps begins again because a key was written in between.
const MOST_TRIES: u32 = 20;

/// The fields of an entry in an answer.
const FIELDS: usize = 4;

/// Reads the entry that begins at `index`; `None` for an absent key. The value is that of the answer.
fn entry(answer: &Answer, index: usize) -> Result<Option<StmEntry>> {
    Ok(match answer.number(index)? {
        0 => None,
        created => Some(StmEntry::new(
            answer.bytes(index + 3)?,
            created,
            answer.number(index + 1)?,
            answer.number(index + 2)?,
        )),
    })
}

/// A part of a read.
struct Part {
    revision: u64,
    removed: u64,
    /// How long the first lease of one of the keys lasts.
    first_end: Option<Duration>,
    entries: Vec<Option<StmEntry>>,
}

impl Part {
    /// Returns whether one of the keys may have changed after `revision`. Any removal may have been that of an absent key.
    fn has_changed_after(&self, revision: u64) -> bool {
        let modified = |entry: &Option<StmEntry>| entry.as_ref().map_or(self.removed, |entry| entry.modified);
        // A server that has lost its newest writes may show an older state.
        self.revision < revision || self.entries.iter().any(|entry| modified(entry) > revision)
    }
}

fn known(read: &KeyRead) -> Argument {
    read.known.filter(|known| *known > 0).map_or("".into(), Argument::Int)
}

impl RedisSession {
    fn path_of_key(&self, key: &Key) -> String {
        keys::path(key.kind, &key.name, false)
    }

    /// Reads as many of `keys` as one answer has room for, at least one. A key's second part is the revision that is known.
    async fn read_part(&self, keys: impl Iterator<Item = (&Key, Argument)>) -> Result<Part> {
        let mut arguments = vec![BYTES_AT_ONCE.into()];
        for (key, known) in keys {
            arguments.extend([self.path_of_key(key).into(), known]);
        }
        let call = Call::new(&KEY_VALUE, "read", Nonce::new(0), arguments);
        let answer = self.call(&call).await?;
        if answer.word()? != "ok" {
            return Err(answer.unexpected());
        }
        Ok(Part {
            revision: answer.number(1)?,
            removed: answer.number(2)?,
            first_end: answer.number(3).ok().map(Duration::from_millis),
            entries: (4..answer.len())
                .step_by(FIELDS)
                .map(|index| entry(&answer, index))
                .collect::<Result<_>>()?,
        })
    }

    /// Reads all keys at one revision; `None` if one may have been written between two parts.
    async fn read_once(&self, keys: &[KeyRead]) -> Result<Option<Snapshot>> {
        let mut snapshot = Snapshot::new(0, Vec::with_capacity(keys.len()));
        loop {
            let rest = &keys[snapshot.values.len()..];
            let some = rest.iter().take(KEYS_AT_ONCE);
            let part = self.read_part(some.map(|read| (&read.key, known(read)))).await?;
            if snapshot.values.is_empty() {
                snapshot.revision = part.revision;
            } else if part.has_changed_after(snapshot.revision) {
                return Ok(None);
            } else if part.entries.is_empty() {
                return Err(crate::error::unexpected("read", "no entry"));
            }
            let stored = part.entries.into_iter().zip(rest).map(|(entry, read)| {
                let entry = entry?;
                let value = (read.known != Some(entry.modified)).then_some(entry.value);
                Some(StoredValue::new(value, entry.created, entry.modified, entry.version))
            });
            snapshot.values.extend(stored);
            if snapshot.values.len() >= keys.len() {
                return Ok(Some(snapshot));
            }
        }
    }

    fn fence(&self, fence: Option<&Fence>, arguments: &mut Vec<Argument>) {
        let Some(fence) = fence else {
            return arguments.push("".into());
        };
        let shared = self.client.config().interop && fence.kind == Kind::Lock;
        arguments.extend([
            self.path(fence.kind, &fence.name).into(),
            fence.nonce.get().into(),
            fence.token.into(),
            u64::from(fence.exclusive).into(),
            if shared { fence.name.as_str() } else { "" }.into(),
        ]);
    }

    /// Lists the arguments of a commit, in the order in which `kv.lua` reads them.
    fn commit_arguments(&self, commit: &Commit) -> Result<Vec<Argument>> {
        let branches = [&commit.then, &commit.or_else];
        let is_put = |write: &Write| matches!(write, Write::Put { .. });
        let may_put = branches.iter().any(|branch| branch.iter().any(is_put));
        let mut arguments = vec![u64::from(may_put).into()];
        self.fence(commit.fence.as_ref(), &mut arguments);
        arguments.push((commit.compares.len() as u64).into());
        for compare in &commit.compares {
            let (target, wanted) = match compare.target() {
                Target::Value(value) => ("value", Argument::Bytes(value.clone())),
                Target::Version(number) => ("version", Argument::Int(*number)),
                Target::Created(number) => ("created", Argument::Int(*number)),
                Target::Modified(number) => ("modified", Argument::Int(*number)),
            };
            let relation = match compare.relation() {
                Relation::Equal => "=",
                Relation::NotEqual => "!",
                Relation::Less => "<",
                Relation::Greater => ">",
            };
            let path = self.path_of_key(compare.key());
            arguments.extend([path.into(), target.into(), relation.into(), wanted]);
        }
        for branch in branches {
            arguments.push((branch.len() as u64).into());
            for write in branch {
                let path = Argument::from(self.path_of_key(write.key()));
                match write {
                    Write::Get(_) => arguments.extend(["get".into(), path]),
                    Write::Put { value, leased, .. } => {
                        let what = if *leased { "lease" } else { "put" };
                        arguments.extend([what.into(), path, Argument::Bytes(value.to_vec())]);
                    }
                    Write::Delete(_) => arguments.extend(["delete".into(), path]),
                    _ => return Err(Error::unsupported("this write")),
                }
            }
        }
        Ok(arguments)
    }
}

/// Reads the answer of a commit that was carried out.
fn record(commit: &Commit, answer: &Answer) -> Result<CommitRecord> {
    let (revision, succeeded) = (answer.number(1)?, answer.flag(2));
    let branch = if succeeded { &commit.then } else { &commit.or_else };
    let mut index = 3;
    let results = branch.iter().map(|write| {
        Ok(match write {
            Write::Get(_) => {
                index += FIELDS;
                OpResult::Get(entry(answer, index - FIELDS)?)
            }
            Write::Delete(_) => OpResult::Delete,
            _ => OpResult::Put,
        })
    });
    let results = results.collect::<Result<_>>()?;
    Ok(CommitRecord::new(succeeded, revision, results))
}

#[async_trait]
impl Stm for RedisSession {
    async fn read(&self, keys: &[KeyRead], _at: Option<u64>) -> Result<Snapshot> {
        for _ in 0..MOST_TRIES {
            if let Some(snapshot) = self.read_once(keys).await? {
                return Ok(snapshot);
            }
        }
        let message = "these keys are too many for one script, and some are written all the time: read fewer at once";
        Err(Error::new(ErrorKind::Unavailable, message))
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome> {
        let arguments = self.commit_arguments(commit)?;
        let call = Call::marked(&KEY_VALUE, "commit", commit.marker, arguments);
        let answer = self.call(&call).await?;
        match answer.word()? {
            "done" => record(commit, &answer).map(CommitOutcome::Done),
            "fence" => Ok(CommitOutcome::FenceLost),
            "again" => {
                let message = "the commit was carried out before, and its answer is not kept";
                Err(Error::new(ErrorKind::Unavailable, message).with_effect(Effect::Unknown))
            }
            _ => Err(answer.unexpected()),
        }
    }

    async fn resolve(&self, marker: Marker) -> Result<Resolution> {
        let call = Call::marked(&KEY_VALUE, "resolve", marker, Vec::new());
        let answer = self.call(&call).await?;
        match answer.word()? {
            "committed" => Ok(Resolution::Committed {
                revision: answer.number(1)?,
                succeeded: answer.flag(2),
            }),
            "aborted" => Ok(Resolution::Aborted),
            _ => Err(answer.unexpected()),
        }
    }

    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()> {
        let subscribe = |key| self.client.subscribe(keys::topic(&self.root, &self.path_of_key(key)));
        let mut topics: Vec<_> = keys.iter().map(subscribe).collect();
        for topic in &mut topics {
            // The confirmation: no change is missed after it.
            topic.next().await;
        }
        loop {
            let mut first_end: Option<Duration> = None;
            for some in keys.chunks(KEYS_AT_ONCE) {
                // `-`: no value is wanted.
                let part = self.read_part(some.iter().map(|key| (key, "-".into()))).await?;
                if part.has_changed_after(revision) {
                    return Ok(());
                }
                first_end = first_end.into_iter().chain(part.first_end).min();
            }
            let until = first_end.map(|rest| Instant::now() + after_lease(rest.as_millis() as u64));
            let told = select_all(topics.iter_mut().map(|topic| Box::pin(topic.next())));
            tokio::select! {
                _ = told => {}
                () = async { sleep_until(until.unwrap_or_else(Instant::now)).await }, if until.is_some() => {}
            }
        }
    }

    fn check(&self, commit: &Commit) -> Result<()> {
        self.commit_arguments(commit).map(drop)
    }
}
