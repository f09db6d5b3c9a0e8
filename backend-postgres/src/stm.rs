//! Transactional memory (see `migrations/functions/60_stm.sql`).
//!
//! A commit is one statement, which leaves a marker in a slot of its session. It goes over the store's
//! writing connection; one that is bound to a lock, over the connection that has the lock. There is no
//! past to read in: core reads again what an attempt read before, with each further read.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{
    Done, Fence, Kind, Outcome, Read, Resolution, Slot, Stm, Transaction, namespace_root, path,
};
use tenure_core::{
    Compare, Effect, Entry, Error, ErrorKind, LossReason, Name, Op, OpResult, Relation, Result,
    Target,
};

use crate::error;
use crate::key::{key_of, signed};
use crate::session::PostgresSession;
use crate::step::{Row, Rows, Step, step};

/// The namespace's keys, as one session on PostgreSQL sees them.
#[derive(Debug)]
pub struct PostgresStm {
    session: Arc<PostgresSession>,
}

/// One statement, hence one snapshot: the revision, and what stands under each key.
const READ: &str = "SELECT coalesce((SELECT r.revision FROM tenure.revisions AS r WHERE r.root = $1), 0) AS revision, \
    k.n, d.value, d.created, d.modified, d.version \
    FROM (SELECT) AS one LEFT JOIN pg_catalog.unnest($2::pg_catalog.text[]) WITH ORDINALITY AS k(path, n) ON true \
    LEFT JOIN LATERAL (SELECT * FROM tenure.data AS d WHERE d.path = k.path OFFSET 0) AS d ON true \
    ORDER BY k.n";

const COMMIT: &str = "SELECT status, revision, succeeded, vals, created, modified, versions \
    FROM tenure.stm_commit($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22)";

const RESOLVE: &str = "SELECT status, last, succeeded FROM tenure.stm_resolve($1, $2, $3, $4, $5)";

/// A transaction as the statement takes it.
struct Request {
    root: String,
    session: i64,
    nonce: i64,
    fence: Option<Holding>,
    compares: Compares,
    branches: [Branch; 2],
}

/// A guard that stands for a row.
struct Holding {
    kind: &'static str,
    session: i64,
    path: String,
    key: String,
    token: i64,
}

#[derive(Default)]
struct Compares {
    paths: Vec<String>,
    parts: Vec<i16>,
    relations: Vec<i16>,
    numbers: Vec<Option<i64>>,
    values: Vec<Option<Vec<u8>>>,
}

#[derive(Default)]
struct Branch {
    what: Vec<i16>,
    paths: Vec<String>,
    values: Vec<Option<Vec<u8>>>,
}

/// What came of one request to commit.
enum Sent {
    Ended(Outcome),
    /// Nothing, because the slot was written at this revision.
    Moved(u64),
}

impl PostgresStm {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }

    fn root(&self) -> String {
        namespace_root(&self.session.client.config.namespace)
    }

    fn path(&self, key: &Name) -> String {
        path(&self.session.client.config.namespace, Kind::Data, key)
    }

    fn request(&self, transaction: &Transaction) -> Request {
        let mut compares = Compares::default();
        for compare in &transaction.compares {
            compares.push(self.path(compare.key()), compare);
        }
        let branch = |ops: &[Op<Name>]| {
            let mut branch = Branch::default();
            for op in ops {
                branch.push(self.path(op.key()), op);
            }
            branch
        };
        Request {
            root: self.root(),
            session: self.session.id,
            nonce: signed(transaction.nonce()),
            fence: transaction
                .fence
                .as_ref()
                .filter(|fence| !is_line(fence.kind()))
                .map(|fence| Holding {
                    kind: fence.kind().as_str(),
                    session: owner(fence),
                    path: self.path_of(fence),
                    key: fence.key().to_owned(),
                    token: signed(fence.token().get()),
                }),
            compares,
            branches: [branch(&transaction.then), branch(&transaction.or_else)],
        }
    }

    fn path_of(&self, fence: &Fence) -> String {
        path(
            &self.session.client.config.namespace,
            fence.kind(),
            fence.name(),
        )
    }

    /// Sends one request over the connection that it belongs to; none if the guard is not held.
    async fn step(
        &self,
        transaction: &Transaction,
        request: &Request,
        slot: Option<Slot>,
    ) -> Result<Option<Rows>> {
        match &transaction.fence {
            Some(fence) if is_line(fence.kind()) => self.over_main(fence, request, slot).await,
            _ if slot.is_some() => {
                let client = &self.session.client;
                client.write(request.step(slot)).await.map(Some)
            }
            _ => self.session.read(|| request.step(None)).await.map(Some),
        }
    }

    /// Over the main connection of the session that holds the lock: there the statement is done while the
    /// lock is held, or not at all.
    async fn over_main(
        &self,
        fence: &Fence,
        request: &Request,
        slot: Option<Slot>,
    ) -> Result<Option<Rows>> {
        let Some(holder) = self.session.client.session(owner(fence)) else {
            return Ok(None);
        };
        let path = self.path_of(fence);
        let mut main = holder.main().await;
        let (nonce, key, token) = (fence.nonce(), key_of(&path), fence.token());
        if !main.own().holds(nonce, key, &path, token) {
            return Ok(None);
        }
        let done = main.call(request.step(slot)).await;
        done.map(Some).map_err(|error| match main.is_over() {
            // It broke under this commit.
            true => {
                error::no_connection("the connection that has the lock broke during the commit")
                    .with_source(error)
                    .with_effect(Effect::Unknown)
            }
            false => error,
        })
    }

    async fn send(
        &self,
        transaction: &Transaction,
        request: &Request,
        slot: Option<Slot>,
    ) -> Result<Sent> {
        let Some(rows) = self.step(transaction, request, slot).await? else {
            return Ok(Sent::Ended(Outcome::FenceLost));
        };
        let row = rows.first()?;
        let status: String = row.get("status")?;
        match status.as_str() {
            "done" => Ok(Sent::Ended(Outcome::Done(done(transaction, row)?))),
            "fence" => Ok(Sent::Ended(Outcome::FenceLost)),
            "moved" => Ok(Sent::Moved(revision(row, "revision")?)),
            "lost" => Err(Error::lost(LossReason::Revoked)),
            other => Err(error::unexpected(COMMIT, other)),
        }
    }
}

#[async_trait]
impl Stm for PostgresStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        if at.is_some() {
            // Never asked for: what is read here is not repeatable.
            return Err(Error::new(
                ErrorKind::Conflict,
                "there is no past to read in",
            ));
        }
        let (root, paths) = (self.root(), keys.iter().map(|key| self.path(key)));
        let paths: Vec<String> = paths.collect();
        let rows = self.session.read(|| step(READ).with(&root).with(&paths));
        let rows = rows.await?;
        Ok(Read {
            revision: revision(rows.first()?, "revision")?,
            repeatable: false,
            entries: rows
                .iter()
                .take(keys.len())
                .map(entry)
                .collect::<Result<_>>()?,
        })
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let request = self.request(transaction);
        if !transaction.writes() {
            return match self.send(transaction, &request, None).await {
                Ok(Sent::Ended(outcome)) => Ok(outcome),
                Ok(Sent::Moved(_)) => Err(error::unexpected(COMMIT, "moved")),
                Err(error) => Err(error.with_effect(Effect::None)),
            };
        }
        let (nonce, slots) = (transaction.nonce(), &self.session.slots);
        let mut slot = slots.take(nonce).await;
        loop {
            let sent = self.send(transaction, &request, Some(slot)).await;
            match sent {
                Ok(Sent::Moved(last)) => {
                    slots.moved(nonce, last);
                    slot.last = last;
                }
                Ok(Sent::Ended(outcome)) => {
                    slots.settle(nonce, written(transaction, &outcome).unwrap_or(slot.last));
                    return Ok(outcome);
                }
                Err(error) => {
                    // Else the slot stays this commit's until it is resolved.
                    if error.effect() == Effect::None {
                        slots.settle(nonce, slot.last);
                    }
                    return Err(error);
                }
            }
        }
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        let (nonce, slots) = (transaction.nonce(), &self.session.slots);
        let Some(slot) = slots.of(nonce) else {
            let message = "nothing is known of a commit that is settled";
            return Err(Error::new(ErrorKind::Internal, message));
        };
        let (root, last) = (self.root(), signed(slot.last));
        let resolve = step(RESOLVE)
            .with(&root)
            .with(self.session.id)
            .with(i32::try_from(slot.number).unwrap_or(i32::MAX))
            .with(last)
            .with(signed(nonce));
        let resolved = match self.session.client.write(resolve).await {
            Ok(rows) => resolution(rows.first()?),
            Err(error) => Err(error),
        };
        match resolved {
            Ok((resolution, last)) => {
                slots.settle(nonce, last);
                Ok(resolution)
            }
            Err(error) => {
                if !error.is_retryable() {
                    slots.settle(nonce, slot.last);
                }
                Err(error)
            }
        }
    }

    fn check(&self, transaction: &Transaction) -> Result<()> {
        transaction.check(|name| self.path(name).len())
    }
}

/// Whether what is held is an advisory lock of the holder's main connection.
fn is_line(kind: Kind) -> bool {
    matches!(kind, Kind::Lock | Kind::Election | Kind::RwLock)
}

/// The session that holds the guard; no session has 0.
fn owner(fence: &Fence) -> i64 {
    fence.session().as_str().parse().unwrap_or(0)
}

impl Compares {
    fn push(&mut self, path: String, compare: &Compare<Name>) {
        // Revisions and versions are far below what a bigint holds: nothing is above that, or equal.
        let most = |number: &u64| i64::try_from(*number).unwrap_or(i64::MAX);
        let (part, number, value) = match compare.target() {
            Target::Value(value) => (1, None, Some(value.clone())),
            Target::Created(number) => (2, Some(most(number)), None),
            Target::Modified(number) => (3, Some(most(number)), None),
            Target::Version(number) => (4, Some(most(number)), None),
        };
        self.paths.push(path);
        self.parts.push(part);
        self.relations.push(match compare.relation() {
            Relation::Equal => 0,
            Relation::NotEqual => 1,
            Relation::Less => 2,
            Relation::Greater => 3,
        });
        self.numbers.push(number);
        self.values.push(value);
    }
}

impl Branch {
    fn push(&mut self, path: String, op: &Op<Name>) {
        let (what, value) = match op {
            Op::Get(_) => (0, None),
            Op::Put(_, value) => (1, Some(value.clone())),
            Op::Delete(_) => (2, None),
        };
        self.what.push(what);
        self.paths.push(path);
        self.values.push(value);
    }

    fn writes(&self) -> bool {
        self.what.iter().any(|&what| what != 0)
    }
}

impl Request {
    fn step(&self, slot: Option<Slot>) -> Step<'_> {
        let fence = self.fence.as_ref();
        let mut step = step(COMMIT)
            .with(&self.root)
            .with(self.session)
            .with(slot.map(|slot| i32::try_from(slot.number).unwrap_or(i32::MAX)))
            .with(slot.map(|slot| signed(slot.last)))
            .with(self.nonce)
            .with(fence.map(|it| it.kind))
            .with(fence.map(|it| it.session))
            .with(fence.map(|it| it.path.as_str()))
            .with(fence.map(|it| it.key.as_str()))
            .with(fence.map(|it| it.token))
            .with(&self.compares.paths)
            .with(&self.compares.parts)
            .with(&self.compares.relations)
            .with(&self.compares.numbers)
            .with(&self.compares.values);
        for branch in &self.branches {
            step = step
                .with(&branch.what)
                .with(&branch.paths)
                .with(&branch.values);
        }
        let writes: Vec<bool> = self.branches.iter().map(Branch::writes).collect();
        step.with(writes)
    }
}

fn revision(row: Row<'_>, column: &str) -> Result<u64> {
    Ok(row.get::<i64>(column)?.cast_unsigned())
}

fn entry(row: Row<'_>) -> Result<Option<Entry>> {
    let Some(value) = row.get::<Option<Vec<u8>>>("value")? else {
        return Ok(None);
    };
    Ok(Some(Entry {
        value,
        created: revision(row, "created")?,
        modified: revision(row, "modified")?,
        version: revision(row, "version")?,
    }))
}

fn branch(transaction: &Transaction, succeeded: bool) -> &[Op<Name>] {
    match succeeded {
        true => &transaction.then,
        false => &transaction.or_else,
    }
}

/// The revision that the transaction's slot was written at, if what was done writes.
fn written(transaction: &Transaction, outcome: &Outcome) -> Option<u64> {
    match outcome {
        Outcome::Done(done) => {
            let writes = branch(transaction, done.succeeded).iter().any(Op::writes);
            writes.then_some(done.revision)
        }
        Outcome::FenceLost => None,
    }
}

fn done(transaction: &Transaction, row: Row<'_>) -> Result<Done> {
    type Numbers = Option<Vec<Option<i64>>>;
    let succeeded: bool = row.get("succeeded")?;
    let mut values = row
        .get::<Option<Vec<Option<Vec<u8>>>>>("vals")?
        .unwrap_or_default()
        .into_iter();
    let numbers = |column| -> Result<_> {
        Ok(row
            .get::<Numbers>(column)?
            .unwrap_or_default()
            .into_iter()
            .map(|number| number.unwrap_or(0).cast_unsigned()))
    };
    let (mut created, mut modified, mut versions) = (
        numbers("created")?,
        numbers("modified")?,
        numbers("versions")?,
    );
    let mut get = || {
        let numbers = (created.next()?, modified.next()?, versions.next()?);
        let (created, modified, version) = numbers;
        Some(values.next()?.map(|value| Entry {
            value,
            created,
            modified,
            version,
        }))
    };
    let results: Option<Vec<OpResult>> = branch(transaction, succeeded)
        .iter()
        .map(|op| match op {
            Op::Get(_) => get().map(OpResult::Get),
            Op::Put(..) => Some(OpResult::Put),
            Op::Delete(_) => Some(OpResult::Delete),
        })
        .collect();
    Ok(Done {
        revision: revision(row, "revision")?,
        succeeded,
        results: results.ok_or_else(|| error::unexpected(COMMIT, "too few results"))?,
    })
}

/// What came of it, and when its slot was last written.
fn resolution(row: Row<'_>) -> Result<(Resolution, u64)> {
    let last = revision(row, "last")?;
    let status: String = row.get("status")?;
    match status.as_str() {
        "committed" => Ok((
            Resolution::Committed {
                revision: last,
                succeeded: row.get("succeeded")?,
            },
            last,
        )),
        "aborted" => Ok((Resolution::Aborted, last)),
        "unknown" => Err(Error::lost(LossReason::Revoked)),
        other => Err(error::unexpected(RESOLVE, other)),
    }
}
