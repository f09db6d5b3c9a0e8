//! Transactional memory: etcd's own keys, revisions and transactions.

use async_trait::async_trait;
use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare as EtcdCompare, CompareOp, GetOptions, Txn, TxnOp};
use futures_util::future::{join_all, select_all};
use tenure_core::backend::{
    Commit, CommitOutcome, CommitRecord, Fence, Key, KeyRead, Marker, Resolution, Snapshot, Stm, StoredValue, Write,
};
use tenure_core::compare::{Compare, OpResult, Relation, StmEntry, Target};
use tenure_core::{Error, ErrorKind, Kind, Result};

use crate::connection::Target as Watched;
use crate::error::unexpected;
use crate::fence::Write as FencedWrite;
use crate::places::Place;
use crate::session::EtcdSession;
use crate::txn::{Answer, KEYS_AT_ONCE, MOST_OPERATIONS, Output, delete, get, get_revisions, put, was_created};

/// The comparisons and operations of a commit that are not the caller's: the fence with the session's key, the guard, the slot.
const OWN_OPERATIONS: usize = 4;

/// etcd refuses a request of more than 1.5 MiB (`--max-request-bytes`). The rest is for the operations that are not the caller's.
const MOST_BYTES: usize = (3 << 19) - 512;

/// The bytes of an operation in a request besides its key and its value.
const OPERATION_BYTES: usize = 24;

fn entry(found: PbKeyValue) -> StmEntry {
    let (created, modified) = (found.create_revision.unsigned_abs(), found.mod_revision.unsigned_abs());
    StmEntry::new(found.value, created, modified, found.version.unsigned_abs())
}

fn stored(found: &PbKeyValue, value: Option<Vec<u8>>) -> StoredValue {
    StoredValue::new(
        value.map(Into::into),
        found.create_revision.unsigned_abs(),
        found.mod_revision.unsigned_abs(),
        found.version.unsigned_abs(),
    )
}

/// The record of a commit in its slot.
struct Record {
    nonce: u64,
    succeeded: bool,
}

impl Record {
    fn write(marker: Marker, succeeded: bool) -> String {
        format!("{} {}", marker.nonce, u8::from(succeeded))
    }

    fn read(value: &[u8]) -> Option<Self> {
        let (nonce, succeeded) = std::str::from_utf8(value).ok()?.split_once(' ')?;
        Some(Self {
            nonce: nonce.parse().ok()?,
            succeeded: succeeded == "1",
        })
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl EtcdSession {
    fn key_of(&self, key: &Key) -> String {
        self.shared.keys.object(key.kind, &key.name)
    }

    /// Reads some keys at a revision, the present one if it is 0. A key whose revision is known takes two operations: one for its
    /// revisions, one for its value if that is newer.
    async fn read_some(&self, keys: &[KeyRead], revision: i64) -> Result<Snapshot> {
        let at = || GetOptions::new().with_revision(revision);
        let mut reads = Vec::with_capacity(2 * keys.len());
        for read in keys {
            let key = self.key_of(&read.key);
            match read.known {
                None => reads.push(TxnOp::get(key, Some(at()))),
                Some(known) => {
                    reads.push(TxnOp::get(key.as_str(), Some(at().with_keys_only())));
                    let newer = at().with_min_mod_revision(signed(known).saturating_add(1));
                    reads.push(TxnOp::get(key, Some(newer)));
                }
            }
        }
        let mut answer = self.read(Txn::new().and_then(reads)).await?;
        let revision = if revision == 0 { answer.revision } else { revision };
        let mut snapshot = Snapshot::new(revision.unsigned_abs(), Vec::with_capacity(keys.len()));
        for read in keys {
            let found = answer.key()?;
            let newer = match read.known {
                None => found.clone(),
                Some(_) => answer.key()?,
            };
            let value = newer.map(|newer| newer.value);
            snapshot.values.push(found.map(|found| stored(&found, value)));
        }
        Ok(snapshot)
    }

    /// Reads all keys at one revision.
    async fn read_at(&self, keys: &[KeyRead], revision: i64) -> Result<Snapshot> {
        let mut all = Snapshot::new(revision.unsigned_abs(), Vec::with_capacity(keys.len()));
        let mut pages = keys.chunks(KEYS_AT_ONCE / 2).peekable();
        let mut is_first = true;
        while std::mem::take(&mut is_first) || pages.peek().is_some() {
            self.read_page(pages.next().unwrap_or_default(), &mut all).await?;
        }
        Ok(all)
    }

    /// Adds keys to a snapshot. Values that are too long for one answer are read by halves.
    async fn read_page(&self, keys: &[KeyRead], all: &mut Snapshot) -> Result<()> {
        let mut rest = keys;
        let mut size = keys.len();
        loop {
            match self
                .read_some(&rest[..size.min(rest.len())], signed(all.revision))
                .await
            {
                Ok(snapshot) => {
                    all.revision = snapshot.revision;
                    all.values.extend(snapshot.values);
                    rest = &rest[size.min(rest.len())..];
                    if rest.is_empty() {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::TooLarge && size > 1 => size /= 2,
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns the revisions of `keys` that wrote them last, at a revision, the present one if it is 0.
    async fn revisions(&self, keys: &[Key], revision: i64) -> Result<(i64, Vec<i64>)> {
        let (mut at, mut all) = (revision, Vec::with_capacity(keys.len()));
        for keys in keys.chunks(KEYS_AT_ONCE) {
            let read = |key| {
                TxnOp::get(
                    self.key_of(key),
                    Some(GetOptions::new().with_keys_only().with_revision(at)),
                )
            };
            let mut answer = self
                .read(Txn::new().and_then(keys.iter().map(read).collect::<Vec<_>>()))
                .await?;
            if at == 0 {
                at = answer.revision;
            }
            for _ in keys {
                all.push(answer.key()?.map_or(0, |found| found.mod_revision));
            }
        }
        Ok((at, all))
    }

    /// Returns the guard of a commit, if this process has it.
    fn guard(&self, fence: &Fence) -> Option<Place> {
        let place = self.places.holding(fence.nonce, fence.token)?;
        let is_it = place.kind == fence.kind && place.name == fence.name;
        let is_alone = !fence.exclusive || place.mode == tenure_core::backend::Mode::Exclusive;
        (is_it && is_alone).then_some(place)
    }

    fn compare(&self, compare: &Compare<Key>) -> EtcdCompare {
        let key = self.key_of(compare.key());
        let relation = match compare.relation() {
            Relation::Equal => CompareOp::Equal,
            Relation::NotEqual => CompareOp::NotEqual,
            Relation::Less => CompareOp::Less,
            Relation::Greater => CompareOp::Greater,
        };
        match compare.target() {
            Target::Value(value) => EtcdCompare::value(key, relation, value.clone()),
            Target::Version(number) => EtcdCompare::version(key, relation, signed(*number)),
            Target::Created(number) => EtcdCompare::create_revision(key, relation, signed(*number)),
            Target::Modified(number) => EtcdCompare::mod_revision(key, relation, signed(*number)),
        }
    }

    fn operation(&self, write: &Write) -> Result<TxnOp> {
        let key = self.key_of(write.key());
        Ok(match write {
            Write::Get(_) => get(&key),
            Write::Put { value, leased, .. } => put(&key, value.to_vec(), if *leased { self.lease } else { 0 }),
            Write::Delete(_) => delete(&key),
            _ => return Err(Error::unsupported("this write")),
        })
    }

    /// Returns how often the key of a writer was written before it is downgraded: the note of a token is a write too.
    fn writes(place: &Place) -> i64 {
        if place.is_noted { 2 } else { 1 }
    }

    /// Returns the comparisons that prove a guard. A writer that was downgraded does not hold its lock alone: its key was written
    /// again then.
    fn prove(&self, place: &Place, fence: &Fence) -> Vec<EtcdCompare> {
        let mut proof = vec![was_created(&place.key, place.created)];
        if fence.exclusive && place.kind == Kind::RwLock {
            proof.push(EtcdCompare::version(&*place.key, CompareOp::Equal, Self::writes(place)));
        }
        proof
    }
}

/// Reads the results of the operations of a branch.
fn results(branch: &[Write], answer: &mut Answer) -> Result<Vec<OpResult>> {
    let result = |write: &Write| {
        Ok(match (write, answer.outputs.next()) {
            (Write::Get(_), Some(Output::Range(found))) => OpResult::Get(found.into_iter().next().map(entry)),
            (Write::Put { .. }, Some(Output::Put)) => OpResult::Put,
            (Write::Delete(_), Some(Output::Delete(_))) => OpResult::Delete,
            _ => return Err(unexpected("Txn")),
        })
    };
    branch.iter().map(result).collect()
}

fn is_read(write: &Write) -> bool {
    matches!(write, Write::Get(_))
}

#[async_trait]
impl Stm for EtcdSession {
    async fn read(&self, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot> {
        if let Some(at) = at {
            match self.read_at(keys, signed(at)).await {
                // Compacted: the present one, and the caller compares the revisions.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                read => return read,
            }
        }
        self.read_at(keys, 0).await
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome> {
        self.note_nonce(commit.marker.nonce);
        let guard = match &commit.fence {
            None => None,
            Some(fence) => match self.guard(fence) {
                Some(place) => Some((place, fence)),
                None => return Ok(CommitOutcome::FenceLost),
            },
        };
        let slot = self.shared.keys.slot(self.lease, commit.marker.slot.get());
        let record = |succeeded| put(&slot, Record::write(commit.marker, succeeded), self.lease);
        let compares: Vec<_> = commit.compares.iter().map(|compare| self.compare(compare)).collect();
        let branch = |writes: &[Write]| {
            writes
                .iter()
                .map(|write| self.operation(write))
                .collect::<Result<Vec<_>>>()
        };
        let (then, or_else) = (branch(&commit.then)?, branch(&commit.or_else)?);
        let proof = guard
            .as_ref()
            .map_or_else(Vec::new, |(place, fence)| self.prove(place, fence));
        let reads_guard = guard.iter().map(|(place, _)| get_revisions(&place.key));
        // A branch that only reads needs no record: the commit may be tried again.
        let is_flat = commit.or_else.iter().all(is_read);
        let write = match is_flat {
            true => FencedWrite {
                compares: [proof, compares].concat(),
                then: [then, vec![record(true)]].concat(),
                or_else: [reads_guard.collect(), or_else].concat(),
            },
            false => {
                let then = [then, vec![record(true)]].concat();
                let or_else = [or_else, vec![record(false)]].concat();
                let inner = Txn::new().when(compares).and_then(then).or_else(or_else);
                FencedWrite {
                    compares: proof,
                    then: vec![TxnOp::txn(inner)],
                    or_else: Vec::new(),
                }
            }
        };
        let mut answer = self.write(write).await?;
        let (succeeded, mut answer) = match (answer.succeeded, is_flat) {
            (true, true) => (true, answer),
            (true, false) => {
                let inner = answer.txn()?;
                (inner.succeeded, inner)
            }
            (false, false) => return Ok(CommitOutcome::FenceLost),
            (false, true) => {
                if let Some((place, fence)) = &guard {
                    let found = answer.key()?;
                    let must_be_alone = fence.exclusive && place.kind == Kind::RwLock;
                    let holds = found.is_some_and(|found| {
                        found.create_revision == place.created
                            && !(must_be_alone && found.version != Self::writes(place))
                    });
                    if !holds {
                        return Ok(CommitOutcome::FenceLost);
                    }
                }
                (false, answer)
            }
        };
        let branch = if succeeded { &commit.then } else { &commit.or_else };
        let results = results(branch, &mut answer)?;
        let revision = answer.revision.unsigned_abs();
        Ok(CommitOutcome::Done(CommitRecord::new(succeeded, revision, results)))
    }

    async fn resolve(&self, marker: Marker) -> Result<Resolution> {
        // After this the commit cannot arrive any more: what is not recorded has not happened.
        self.settle().await?;
        let slot = self.shared.keys.slot(self.lease, marker.slot.get());
        let session = self.shared.keys.session(self.lease);
        let mut answer = self
            .read(Txn::new().and_then([get_revisions(&session), get(&slot)]))
            .await?;
        if answer.key()?.is_none() {
            // With the session its records end.
            return Err(crate::error::revoked());
        }
        let found = answer.key()?;
        let revision = found.as_ref().map_or(0, |found| found.mod_revision.unsigned_abs());
        let record = found.and_then(|found| Record::read(&found.value));
        match record {
            Some(record) if record.nonce == marker.nonce.get() => Ok(Resolution::Committed {
                succeeded: record.succeeded,
                revision,
            }),
            Some(record) if record.nonce > marker.nonce.get() => {
                let message = "a later commit has used the record of this one";
                Err(Error::new(ErrorKind::Conflict, message))
            }
            _ => Ok(Resolution::Aborted),
        }
    }

    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()> {
        let subscribe = |key| self.shared.watches.subscribe(Watched::key(self.key_of(key)));
        let watches: Vec<_> = keys.iter().map(subscribe).collect();
        join_all(watches.iter().map(|watch| watch.opened())).await;
        let before = match self.revisions(keys, signed(revision)).await {
            Ok((_, before)) => before,
            // Compacted: they may have changed.
            Err(error) if error.kind() == ErrorKind::Conflict => return Ok(()),
            Err(error) => return Err(error),
        };
        loop {
            let seen: Vec<_> = watches.iter().map(|watch| watch.seen()).collect();
            if self.revisions(keys, 0).await?.1 != before {
                return Ok(());
            }
            let changes = watches
                .iter()
                .zip(seen)
                .map(|(watch, seen)| Box::pin(watch.changed(seen)));
            select_all(changes).await;
        }
    }

    fn check(&self, commit: &Commit) -> Result<()> {
        let refuse = |message: String| Err(Error::new(ErrorKind::TooLarge, message));
        let most = MOST_OPERATIONS - OWN_OPERATIONS;
        let longest = commit.compares.len().max(commit.then.len()).max(commit.or_else.len());
        if longest > most {
            return refuse(format!(
                "a commit on etcd has at most {most} comparisons and {most} operations in a branch, this one has {longest}: split it"
            ));
        }
        let name = |key: &Key| self.key_of(key).len() + OPERATION_BYTES;
        let compared = commit.compares.iter().map(|compare| {
            let value = match compare.target() {
                Target::Value(value) => value.len(),
                _ => 0,
            };
            name(compare.key()) + value
        });
        let written = commit.then.iter().chain(&commit.or_else).map(|write| {
            let value = match write {
                Write::Put { value, .. } => value.len(),
                _ => 0,
            };
            name(write.key()) + value
        });
        let bytes: usize = compared.chain(written).sum();
        if bytes > MOST_BYTES {
            return refuse(format!(
                "a commit on etcd has at most {MOST_BYTES} bytes, this one has {bytes}: split it"
            ));
        }
        Ok(())
    }
}
