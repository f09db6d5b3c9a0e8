//! Transactional memory: the trait, the handle, and what a transaction's code sees.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::Instrument;

use crate::drive::{self, BoxFuture, Core, Keeper, Settled};
use crate::holding::Holding;
use crate::ledger::{Ledger, Picture, Places, Seen};
use crate::name::Name;
use crate::txn::{
    Bound, Compare, Entry, Fence, MAX_OPERATIONS, Op, OpResult, Relation, Target, Transaction, Txn,
    check_value, execute,
};
use crate::{Error, ErrorKind, Result};

/// A namespace's keys, and transactions on them, as a backend implements them.
///
/// Read and write sets, isolation levels, retries, the order among the transactions of one
/// process, and what to do about a lost answer are core's business.
///
/// # To ensure correctness
///
/// - `read` returns what stood under *all* the keys at one instant no earlier than its call.
/// - `commit` happens in one atomic step, in which the fence is looked at too: if what it names is
///   not held *in the store* at that instant, nothing happens (rule T3).
/// - A commit that wrote leaves a marker with its [nonce](Transaction::nonce), in the same step.
///   [`Slots`](crate::backend::Slots) does this without growth.
/// - `resolve` finds that marker, or makes it impossible for the commit to happen from then on:
///   whichever comes first decides (rule T4). An absent marker alone proves nothing: the request
///   may be on its way still.
/// - Revisions rise with every commit that wrote, over the whole namespace at least.
/// - A failed commit says with [`Error::with_effect`] whether it may have happened: `Unknown`
///   makes core call `resolve` until it succeeds or the session ends. A transaction that
///   [writes](Transaction::writes) nothing never has an unknown effect.
/// - Every call ends within a bound of the backend's own.
#[async_trait]
pub trait Stm: Send + Sync + 'static {
    /// One consistent picture of `keys`: now, or as of the revision `at` that an earlier
    /// [`Read`] returned as repeatable.
    ///
    /// # Errors
    ///
    /// `Conflict` when `at` cannot be read any more.
    ///
    /// # Cancel safety
    ///
    /// Core drops this future when nobody waits for it.
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read>;

    /// Does one branch of the transaction, whole, or nothing.
    async fn commit(&self, transaction: &Transaction) -> Result<Outcome>;

    /// Finds out what came of a commit whose answer was lost, or sees to it that nothing does.
    /// Idempotent.
    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution>;

    /// Refuses, before anything is sent, what this store does not take (rule T5): call
    /// [`Transaction::check`] with the length that a key has in the store.
    ///
    /// # Errors
    ///
    /// Those of [`Transaction::check`].
    fn check(&self, transaction: &Transaction) -> Result<()>;
}

/// What a read returns.
#[derive(Clone, Debug)]
pub struct Read {
    /// The store's revision at that instant.
    pub revision: u64,
    /// Whether more keys can be read as of that revision later. If not, core reads those from
    /// before again with each further one, and ends the attempt when they have changed.
    pub repeatable: bool,
    /// What stands under each key asked for, in that order.
    pub entries: Vec<Option<Entry>>,
}

/// What came of a commit.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// One of the branches was done.
    Done(Done),
    /// The fence is not held any more: nothing was done.
    FenceLost,
}

/// A transaction that was done.
#[derive(Clone, Debug)]
pub struct Done {
    /// The store's revision after it; that of its writes, if there were any.
    pub revision: u64,
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// What came of each operation of the branch.
    pub results: Vec<OpResult>,
}

/// What came of a commit whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// It was done.
    Committed {
        /// The revision of its writes.
        revision: u64,
        /// Whether the comparisons held.
        succeeded: bool,
    },
    /// It was not, and never will be.
    Aborted,
}

/// How much transactions are kept apart. The names and their meaning are those of etcd's Go STM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// An attempt reads one consistent snapshot. It commits if nothing that it read has changed
    /// since, and nothing that it writes was written by another after the snapshot.
    #[default]
    SerializableSnapshot,
    /// An attempt reads one consistent snapshot. It commits if nothing that it read has changed
    /// since; what it writes without reading may overwrite another's newer write.
    Serializable,
    /// The same key read twice in an attempt gives the same value; different keys may be read at
    /// different revisions, so that code may see what never was at one time. It commits if
    /// nothing that it read has changed since.
    RepeatableReads,
    /// As `RepeatableReads`, and it commits whatever has changed since. Updates may be lost:
    /// write what does not depend on what was read.
    ReadCommitted,
}

impl Isolation {
    /// Whether every attempt reads one consistent snapshot.
    const fn reads_a_snapshot(self) -> bool {
        matches!(self, Self::SerializableSnapshot | Self::Serializable)
    }

    /// Whether a commit checks that what was read has not changed.
    const fn checks_reads(self) -> bool {
        !matches!(self, Self::ReadCommitted)
    }
}

impl fmt::Display for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SerializableSnapshot => "serializable-snapshot",
            Self::Serializable => "serializable",
            Self::RepeatableReads => "repeatable-reads",
            Self::ReadCommitted => "read-committed",
        })
    }
}

/// How many attempts a transaction has unless told.
pub const DEFAULT_ATTEMPTS: u32 = 100;

/// Transactional memory: what [`Session::stm`](crate::Session::stm) returns. Cheap to clone.
///
/// Keys are names like any other, values are bytes. A transaction is a closure that reads and
/// writes; what it wrote is committed in one step if nothing of what it read has changed in the
/// meantime, else it runs again. So it must do nothing that cannot be done twice.
///
/// ```
/// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
/// let left = session.stm()?.run(async |tx| {
///     let balance: u64 = tx.get_as("alice").await?.unwrap_or(0);
///     let half = balance / 2;
///     let other: u64 = tx.get_as("bob").await?.unwrap_or(0);
///     tx.put_as("alice", &(balance - half))?;
///     tx.put_as("bob", &(other + half))?;
///     Ok(balance - half)
/// }).await?;
/// # let _ = left; Ok(()) }
/// ```
///
/// A transaction that [`run`](Self::run)s in a task of its own takes `|tx| async move { .. }`;
/// what it counts by mutation goes outside the `async`: `|tx| { tries += 1; async move { .. } }`.
///
/// Transactions need a live session: their markers hang on it. When it is lost, what was not sent
/// ends with `Lost`, and what was sent and not answered with `CommitUnknown`. What they wrote
/// stays when the session ends.
///
/// Conflicts between transactions of one [`Store`](crate::Store), in one process, are settled
/// here: they queue at the keys that they have in common, and the next in line is handed what the
/// one before it wrote. So a transaction should not wait for another one on the same keys from
/// inside its closure: that costs a second of waiting, then goes on.
pub struct StmHandle<S: ?Sized = dyn Stm> {
    keeper: Arc<Keeper>,
    stm: Arc<S>,
    options: Options,
}

#[derive(Clone, Debug)]
struct Options {
    isolation: Isolation,
    attempts: u32,
    prefetch: Vec<String>,
}

impl<S: ?Sized> Clone for StmHandle<S> {
    fn clone(&self) -> Self {
        Self {
            keeper: Arc::clone(&self.keeper),
            stm: Arc::clone(&self.stm),
            options: self.options.clone(),
        }
    }
}

impl<S: ?Sized> fmt::Debug for StmHandle<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StmHandle")
            .field("isolation", &self.options.isolation)
            .field("attempts", &self.options.attempts)
            .finish_non_exhaustive()
    }
}

impl<S: Stm + ?Sized> StmHandle<S> {
    pub(crate) fn new(keeper: Arc<Keeper>, stm: Arc<S>) -> Self {
        Self {
            keeper,
            stm,
            options: Options {
                isolation: Isolation::default(),
                attempts: DEFAULT_ATTEMPTS,
                prefetch: Vec::new(),
            },
        }
    }

    /// Transactions at this level. [`Isolation::SerializableSnapshot`] unless told.
    #[must_use]
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.options.isolation = isolation;
        self
    }

    /// Gives up with `Conflict` after so many attempts; at least one. [`DEFAULT_ATTEMPTS`] unless
    /// told.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.options.attempts = attempts.max(1);
        self
    }

    /// Reads these keys together with the first one that the closure reads, in one round trip.
    /// What an attempt read is there for the next one anyway.
    #[must_use]
    pub fn prefetch<K: Into<String>>(mut self, keys: impl IntoIterator<Item = K>) -> Self {
        self.options.prefetch = keys.into_iter().map(Into::into).collect();
        self
    }

    /// Transactions that commit only if `guard` is held in the store at the commit (rule T3):
    /// what a holder that was paused, or lost its lease without knowing, still tries has no
    /// effect.
    ///
    /// Borrows the guard, so that it cannot be released before the commit.
    pub fn fenced_by<'g>(&self, guard: &'g Holding) -> FencedStm<'g, S> {
        FencedStm {
            handle: self.clone(),
            bound: Bound::new(&self.keeper, guard),
            guard: PhantomData,
        }
    }

    /// Runs `work` as a transaction, again and again until it commits. Its result is that of the
    /// attempt that did.
    ///
    /// `work` passes the errors of its [`Tx`] on with `?`. An error of its own ends it, and
    /// leaves no trace; [`try_run`](Self::try_run) for errors of another type.
    ///
    /// # Errors
    ///
    /// - Whatever `work` returns.
    /// - `Conflict` when all [attempts](Self::attempts) met one: nothing was written. Retryable.
    /// - `InvalidName` and `TooLarge`, before anything is sent.
    /// - `Lost` when the session has ended, or the guard of [`fenced_by`](Self::fenced_by) is not
    ///   held any more: nothing was written.
    /// - `CommitUnknown` when the answer to a commit was lost and the session ended before the
    ///   outcome could be found out.
    ///
    /// A store that cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe at every await point: the transaction happens whole or not at all, and a
    /// commit that was sent is brought to its end in the background.
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.try_run(work).await
    }

    /// [`run`](Self::run) for code with errors of its own type.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As for [`run`](Self::run).
    pub async fn try_run<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        E: From<Error>,
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.transact(Ok(None), work).await
    }

    /// An explicit transaction: `when` comparisons hold `then` operations `or_else` others.
    pub fn txn(&self) -> Txn<'static, S> {
        Txn::new(Arc::clone(&self.keeper), Arc::clone(&self.stm), None)
    }

    /// What stands under `key`, and its revisions.
    ///
    /// # Errors
    ///
    /// `InvalidName`; `Lost` when the session has ended; `Unauthorized`. A store that cannot be
    /// reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self, key: impl AsRef<str>) -> Result<Option<Entry>> {
        let reading = async {
            let keys = vec![Name::new(key)?];
            let read = read(self.keeper.core(), &self.stm, keys, None).await?;
            Ok(read.entries.into_iter().next().flatten())
        };
        reading.await.map_err(|error: Error| error.during("get"))
    }

    /// Writes `value` under `key`, whatever stands there. Returns the revision of the write.
    ///
    /// # Errors
    ///
    /// Those of [`Txn::commit`].
    ///
    /// # Cancel safety
    ///
    /// As for [`Txn::commit`].
    pub async fn put(&self, key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Result<u64> {
        let putting = async {
            let put = Op::Put(Name::new(key)?, value.into());
            let transaction = Transaction::new(Vec::new(), vec![put], Vec::new(), None);
            Ok(execute(&self.keeper, &self.stm, transaction)
                .await?
                .revision)
        };
        putting.await.map_err(|error: Error| error.during("put"))
    }

    /// Deletes `key`, and says whether it was there.
    ///
    /// # Errors
    ///
    /// Those of [`Txn::commit`].
    ///
    /// # Cancel safety
    ///
    /// As for [`Txn::commit`].
    pub async fn delete(&self, key: impl AsRef<str>) -> Result<bool> {
        let deleting = async {
            let key = Name::new(key)?;
            let there = Compare::new(key.clone(), Target::Created(0), Relation::Greater);
            let transaction =
                Transaction::new(vec![there], vec![Op::Delete(key)], Vec::new(), None);
            Ok(execute(&self.keeper, &self.stm, transaction)
                .await?
                .succeeded)
        };
        deleting
            .await
            .map_err(|error: Error| error.during("delete"))
    }

    async fn transact<T, E, F, Fut>(&self, fence: Result<Option<Fence>>, work: F) -> Result<T, E>
    where
        E: From<Error>,
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let core = self.keeper.core();
        let span = tracing::debug_span!("tenure", operation = "transaction", session = %core.id());
        let explain = |error: Error| E::from(error.during("transaction"));
        let mut run = Run {
            keeper: &self.keeper,
            stm: &self.stm,
            options: &self.options,
            fence: fence.map_err(explain)?,
            places: None,
            distrust: 0,
        };
        run.until_committed(work, explain).instrument(span).await
    }
}

/// Transactional memory whose commits are bound to a guard. What
/// [`StmHandle::fenced_by`] returns.
pub struct FencedStm<'g, S: ?Sized = dyn Stm> {
    handle: StmHandle<S>,
    bound: Bound,
    guard: PhantomData<&'g ()>,
}

impl<S: ?Sized> fmt::Debug for FencedStm<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FencedStm")
            .field("handle", &self.handle)
            .field("bound", &self.bound)
            .finish()
    }
}

impl<'g, S: Stm + ?Sized> FencedStm<'g, S> {
    /// [`StmHandle::run`], bound to the guard. A transaction that only reads is committed too, so
    /// that its result is one of the guard's time.
    ///
    /// # Errors
    ///
    /// As for [`StmHandle::run`]; `Lost` when the guard is not held in the store any more, and
    /// `Config` for a guard of another store.
    ///
    /// # Cancel safety
    ///
    /// As for [`StmHandle::run`].
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.try_run(work).await
    }

    /// [`run`](Self::run) for code with errors of its own type.
    ///
    /// # Errors
    ///
    /// As for [`run`](Self::run).
    ///
    /// # Cancel safety
    ///
    /// As for [`StmHandle::run`].
    pub async fn try_run<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        E: From<Error>,
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let fence = Bound::fence(Some(&self.bound));
        self.handle.transact(fence, work).await
    }

    /// [`StmHandle::txn`], bound to the guard.
    pub fn txn(&self) -> Txn<'g, S> {
        let bound = Some(self.bound.clone());
        Txn::new(
            Arc::clone(&self.handle.keeper),
            Arc::clone(&self.handle.stm),
            bound,
        )
    }
}

/// One call of `run`, over all its attempts.
struct Run<'a, S: ?Sized> {
    keeper: &'a Arc<Keeper>,
    stm: &'a Arc<S>,
    options: &'a Options,
    fence: Option<Fence>,
    /// In the queues of the process, from the first commit or conflict on.
    places: Option<Places>,
    /// How often in a row the process's own ledger said that a commit need not be sent.
    distrust: u32,
}

/// What one attempt hands to the next.
#[derive(Default)]
struct Start {
    /// What is known already, at one revision.
    picture: Option<Picture>,
    repeatable: bool,
    /// What will be read most likely.
    hints: Vec<Name>,
}

/// What a commit came to.
enum Verdict {
    Committed,
    Conflict(Start),
}

impl<S: Stm + ?Sized> Run<'_, S> {
    async fn until_committed<T, E, F, Fut>(
        &mut self,
        mut work: F,
        explain: impl Fn(Error) -> E,
    ) -> Result<T, E>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        let prefetch = self.options.prefetch.iter().map(Name::new);
        let prefetch: Vec<Name> = prefetch.collect::<Result<_>>().map_err(&explain)?;
        let mut start = Start::default();
        let reader: Arc<dyn Reader> = Arc::new(ReaderOf {
            core: Arc::clone(self.keeper.core()),
            stm: Arc::clone(self.stm),
        });
        for attempt in 1..=self.options.attempts {
            if attempt > 2 {
                self.pause(attempt).await;
            }
            start.hints.extend_from_slice(&prefetch);
            let tx = Tx::new(Arc::clone(&reader), self.options.isolation, start);
            // Ended on every way out, so that no clone of it is of any use afterwards.
            let attempt = EndOf(tx.clone());
            let done = work(tx).await;
            let ended = attempt.0.end();
            if ended.stale {
                start = ended.start_again();
                continue;
            }
            let value = done?;
            match self.commit(ended).await.map_err(&explain)? {
                Verdict::Committed => return Ok(value),
                Verdict::Conflict(next) => start = next,
            }
        }
        Err(explain(exhausted(self.options.attempts)))
    }

    /// Lets others go first, longer with each attempt. The first repetition has what it needs.
    async fn pause(&self, attempt: u32) {
        const MOST: u64 = 100_000;
        let most = (500_u64 << attempt.min(10)).min(MOST);
        let clock = self.keeper.core().clock();
        clock
            .sleep(Duration::from_micros(clock.random() % most))
            .await;
    }

    async fn commit(&mut self, ended: Ended) -> Result<Verdict> {
        let isolation = self.options.isolation;
        let reads_only = ended.writes.is_empty() && self.fence.is_none();
        // One snapshot, taken while this ran: nothing that a commit could add.
        if reads_only && (isolation.reads_a_snapshot() || !isolation.checks_reads()) {
            return Ok(Verdict::Committed);
        }
        if reads_only && ended.reads.is_empty() {
            return Ok(Verdict::Committed);
        }
        let mut transaction = self.transaction(&ended);
        if self.stm.check(&transaction).is_err() {
            // What is only asked for on behalf of the next attempt must not make it too large.
            transaction.or_else.clear();
            self.stm.check(&transaction)?;
        }
        let core = Arc::clone(self.keeper.core());
        if isolation.checks_reads()
            && let Some(start) = self.wait_for_own(&ended).await
        {
            return Ok(Verdict::Conflict(start));
        }
        let asked: Vec<Name> = transaction
            .or_else
            .iter()
            .map(|op| op.key().clone())
            .collect();
        let (revision, succeeded, results) =
            match drive::commit(&core, Arc::clone(self.stm), transaction).await? {
                Settled::Answered(done) => (done.revision, done.succeeded, done.results),
                Settled::Found {
                    revision,
                    succeeded,
                } => (revision, succeeded, Vec::new()),
            };
        self.distrust = 0;
        if succeeded {
            self.tell_others(ended, revision);
            return Ok(Verdict::Committed);
        }
        tracing::debug!("conflict");
        let mut start = ended.start_again();
        if !asked.is_empty() && asked.len() == results.len() {
            let seen = asked
                .into_iter()
                .zip(results)
                .filter_map(|(key, result)| match result {
                    OpResult::Get(entry) => Some((key, Seen::from(entry))),
                    _ => None,
                });
            let seen = seen.collect();
            start.picture = Some(Picture { revision, seen });
        }
        Ok(Verdict::Conflict(start))
    }

    /// What the level checks, what the code wrote, and what the next attempt wants to know.
    fn transaction(&self, ended: &Ended) -> Transaction {
        let isolation = self.options.isolation;
        let mut compares = Vec::new();
        if isolation.checks_reads() {
            compares.extend(ended.reads.iter().map(|(key, seen)| {
                Compare::new(
                    key.clone(),
                    Target::Modified(seen.modified),
                    Relation::Equal,
                )
            }));
        }
        if isolation == Isolation::SerializableSnapshot
            && let Some(at) = ended.at
        {
            let blind = ended
                .writes
                .keys()
                .filter(|key| !ended.reads.contains_key(*key));
            compares
                .extend(blind.map(|key| {
                    Compare::new(key.clone(), Target::Modified(at + 1), Relation::Less)
                }));
        }
        let writes = ended.writes.iter().map(|(key, value)| match value {
            Some(value) => Op::Put(key.clone(), value.to_vec()),
            None => Op::Delete(key.clone()),
        });
        /// Above this the next attempt had better read for itself.
        const HANDY: usize = 1024 * 1024;
        let bytes: usize = ended
            .reads
            .values()
            .filter_map(|seen| seen.value.as_ref())
            .map(|value| value.len())
            .sum();
        let again = match ended.reads.len() {
            count if count <= MAX_OPERATIONS && bytes <= HANDY && !compares.is_empty() => {
                ended.reads.keys().cloned().map(Op::Get).collect()
            }
            _ => Vec::new(),
        };
        Transaction::new(compares, writes.collect(), again, self.fence.clone())
    }

    /// Waits for the commits of this process that are before this one at its keys, and says what
    /// to go on with if they have made it pointless.
    async fn wait_for_own(&mut self, ended: &Ended) -> Option<Start> {
        let ledger = Arc::clone(self.keeper.core().ledger());
        let reads = ended.reads.keys().map(|key| (key.clone(), false));
        let mut keys: BTreeMap<Name, bool> = reads.collect();
        keys.extend(ended.writes.keys().map(|key| (key.clone(), true)));
        if !self
            .places
            .as_ref()
            .is_some_and(|places| places.cover(&keys))
        {
            // Those from before go first: two that each keep some of the other's would hang.
            self.places = None;
            self.places = Some(Places::take(&ledger, keys).await);
        }
        if !self.is_stale(&ledger, ended) {
            return None;
        }
        if self.distrust > 0 {
            // It read while it stood at the front, and still: the ledger is wrong.
            ledger.forget(ended.reads.keys().chain(ended.writes.keys()));
            return None;
        }
        self.distrust += 1;
        tracing::debug!("conflict with another transaction of this process");
        let mut start = ended.start_again();
        let newest = self.places.as_ref()?.newest(ended.at.unwrap_or(0));
        start.picture = newest.map(|picture| Picture::clone(&picture));
        Some(start)
    }

    fn is_stale(&self, ledger: &Ledger, ended: &Ended) -> bool {
        let read = |(key, seen): (&Name, &Seen)| {
            // Absent says nothing: it may have come and gone.
            seen.modified != 0 && ledger.is_newer(key, seen.modified)
        };
        let blind = |key: &Name| match (self.options.isolation, ended.at) {
            (Isolation::SerializableSnapshot, Some(at)) => {
                !ended.reads.contains_key(key) && ledger.is_newer(key, at)
            }
            _ => false,
        };
        ended.reads.iter().any(read) || ended.writes.keys().any(blind)
    }

    /// Leaves what is certain after this commit to those of the process who wait for it.
    fn tell_others(&self, ended: Ended, revision: u64) {
        let ledger = self.keeper.core().ledger();
        if !ended.writes.is_empty() {
            Ledger::wrote(ledger, ended.writes.keys(), revision);
        }
        let mut seen = match self.options.isolation.checks_reads() {
            true => ended.reads,
            false => BTreeMap::new(),
        };
        for (key, value) in ended.writes {
            let modified = if value.is_some() { revision } else { 0 };
            seen.insert(key, Seen { value, modified });
        }
        ledger.leave(&Arc::new(Picture { revision, seen }));
    }
}

fn exhausted(attempts: u32) -> Error {
    let message = format!(
        "{attempts} attempts met a conflict with other transactions: try again later, or raise `attempts`"
    );
    Error::new(ErrorKind::Conflict, message).retryable(true)
}

/// Reads for a [`Tx`], which does not care whose they are.
trait Reader: Send + Sync + 'static {
    fn read(&self, keys: Vec<Name>, at: Option<u64>) -> BoxFuture<Result<Read>>;
}

struct ReaderOf<S: ?Sized> {
    core: Arc<Core>,
    stm: Arc<S>,
}

impl<S: Stm + ?Sized> Reader for ReaderOf<S> {
    fn read(&self, keys: Vec<Name>, at: Option<u64>) -> BoxFuture<Result<Read>> {
        let (core, stm) = (Arc::clone(&self.core), Arc::clone(&self.stm));
        Box::pin(async move { read(&core, &stm, keys, at).await })
    }
}

/// What stands under `keys`, asked until the store answers or the session ends.
async fn read<S: Stm + ?Sized>(
    core: &Arc<Core>,
    stm: &Arc<S>,
    keys: Vec<Name>,
    at: Option<u64>,
) -> Result<Read> {
    let keys: Arc<[Name]> = keys.into();
    drive::persistently(core, || {
        let (stm, keys) = (Arc::clone(stm), Arc::clone(&keys));
        Box::pin(async move { stm.read(&keys, at).await })
    })
    .await
}

impl From<Option<Entry>> for Seen {
    fn from(entry: Option<Entry>) -> Self {
        let modified = entry.as_ref().map_or(0, |entry| entry.modified);
        let value = entry.map(|entry| entry.value.into());
        Self { value, modified }
    }
}

/// One attempt of a transaction, as its code sees it. Cheap to clone; of no use once the attempt
/// has ended.
///
/// Reads see what this attempt wrote itself. Nothing that it writes is seen by anybody before the
/// commit.
#[derive(Clone)]
pub struct Tx(Arc<Attempt>);

impl fmt::Debug for Tx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("Tx")
            .field("reads", &state.reads.len())
            .field("writes", &state.writes.len())
            .field("ended", &state.ended)
            .finish_non_exhaustive()
    }
}

struct Attempt {
    reader: Arc<dyn Reader>,
    isolation: Isolation,
    /// One read at a time: each builds on the snapshot of those before.
    gate: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    ended: bool,
    /// What was read has changed: this attempt cannot commit.
    stale: bool,
    reads: BTreeMap<Name, Seen>,
    /// Known at the same revision, and not asked for yet.
    known: BTreeMap<Name, Seen>,
    writes: BTreeMap<Name, Option<Arc<[u8]>>>,
    /// The revision of what was read; of the first read where there is no snapshot.
    at: Option<u64>,
    repeatable: bool,
    hints: Vec<Name>,
}

/// What an attempt came to.
struct Ended {
    stale: bool,
    reads: BTreeMap<Name, Seen>,
    writes: BTreeMap<Name, Option<Arc<[u8]>>>,
    at: Option<u64>,
    repeatable: bool,
}

impl Ended {
    /// The next attempt will most likely read what this one read.
    fn start_again(&self) -> Start {
        Start {
            picture: None,
            repeatable: self.repeatable,
            hints: self.reads.keys().cloned().collect(),
        }
    }
}

struct EndOf(Tx);

impl Drop for EndOf {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Tx {
    fn new(reader: Arc<dyn Reader>, isolation: Isolation, start: Start) -> Self {
        let (at, known) = match start.picture {
            Some(picture) => (Some(picture.revision), picture.seen),
            None => (None, BTreeMap::new()),
        };
        let state = State {
            at,
            known,
            repeatable: start.repeatable,
            hints: start.hints,
            ..State::default()
        };
        Self(Arc::new(Attempt {
            reader,
            isolation,
            gate: tokio::sync::Mutex::new(()),
            state: Mutex::new(state),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) -> Ended {
        let mut state = self.state();
        let state = std::mem::replace(
            &mut *state,
            State {
                ended: true,
                ..State::default()
            },
        );
        Ended {
            stale: state.stale,
            reads: state.reads,
            writes: state.writes,
            at: state.at,
            repeatable: state.repeatable,
        }
    }

    /// What stands under `key`; what this attempt wrote there, if it did.
    ///
    /// # Errors
    ///
    /// `Conflict` when what was read before has changed: pass it on, the transaction runs again.
    /// `InvalidName`; `Lost` when the session has ended. `Conflict` too once the attempt has
    /// ended.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get(&self, key: impl AsRef<str>) -> Result<Option<Vec<u8>>> {
        let values = self.values(&[key]).await?;
        Ok(values
            .into_iter()
            .next()
            .flatten()
            .map(|value| value.to_vec()))
    }

    /// [`get`](Self::get) of several keys in one round trip.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_many<K: AsRef<str>>(
        &self,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let keys: Vec<String> = keys
            .into_iter()
            .map(|key| key.as_ref().to_owned())
            .collect();
        let values = self.values(&keys).await?;
        Ok(values
            .into_iter()
            .map(|value| value.map(|value| value.to_vec()))
            .collect())
    }

    /// [`get`](Self::get), as text.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get); `Conflict` when the value is not UTF-8.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_string(&self, key: impl AsRef<str>) -> Result<Option<String>> {
        let value = self.get(&key).await?;
        value
            .map(String::from_utf8)
            .transpose()
            // Without the bytes, which the error would carry along.
            .map_err(|error| {
                unreadable(key.as_ref(), "is not UTF-8").with_source(error.utf8_error())
            })
    }

    /// [`get`](Self::get), read as the JSON of a `T`.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get); `Conflict` when the value is not the JSON of a `T`.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn get_as<T: DeserializeOwned>(&self, key: impl AsRef<str>) -> Result<Option<T>> {
        let Some(value) = self.values(&[&key]).await?.into_iter().next().flatten() else {
            return Ok(None);
        };
        serde_json::from_slice(&value).map(Some).map_err(|error| {
            // Where, but not in the words of the parser, which quote what it found.
            let what = match error.is_data() {
                true => "is JSON of another type",
                false => "is not JSON",
            };
            let (line, column) = (error.line(), error.column());
            unreadable(
                key.as_ref(),
                &format!("{what} (line {line}, column {column})"),
            )
        })
    }

    /// The store's revision at which `key` was last written; 0 if it is absent. What this attempt
    /// itself writes does not count.
    ///
    /// # Errors
    ///
    /// As for [`get`](Self::get).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub async fn rev(&self, key: impl AsRef<str>) -> Result<u64> {
        let seen = self.look(&[Name::new(key)?]).await?;
        Ok(seen.first().map_or(0, |seen| seen.modified))
    }

    /// Writes `value` under `key`, if the attempt commits.
    ///
    /// # Errors
    ///
    /// `InvalidName`, `TooLarge`: nothing is written by this call, and the attempt goes on if its code does.
    /// `Conflict` once the attempt has ended.
    pub fn put(&self, key: impl AsRef<str>, value: impl Into<Vec<u8>>) -> Result<()> {
        let value = value.into();
        let name = Name::new(key)?;
        check_value(&name, &value)?;
        self.write(name, Some(value.into()))
    }

    /// [`put`](Self::put) of the JSON of `value`.
    ///
    /// # Errors
    ///
    /// As for [`put`](Self::put); `Config` when `value` has no JSON.
    pub fn put_as<T: Serialize + ?Sized>(&self, key: impl AsRef<str>, value: &T) -> Result<()> {
        let json = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::Config, "the value cannot be written as JSON")
                .on(key.as_ref())
                .with_source(error)
        })?;
        self.put(key, json)
    }

    /// Deletes `key`, if the attempt commits.
    ///
    /// # Errors
    ///
    /// `InvalidName`: nothing is deleted by this call, and the attempt goes on if its code does. `Conflict` once
    /// the attempt has ended.
    pub fn delete(&self, key: impl AsRef<str>) -> Result<()> {
        self.write(Name::new(key)?, None)
    }

    fn write(&self, name: Name, value: Option<Arc<[u8]>>) -> Result<()> {
        let mut state = self.state();
        state.check()?;
        state.writes.insert(name, value);
        Ok(())
    }

    async fn values<K: AsRef<str>>(&self, keys: &[K]) -> Result<Vec<Option<Arc<[u8]>>>> {
        let names: Vec<Name> = keys.iter().map(Name::new).collect::<Result<_>>()?;
        let missing: Vec<Name> = {
            let state = self.state();
            state.check()?;
            let unwritten = |name: &&Name| !state.writes.contains_key(*name);
            names.iter().filter(unwritten).cloned().collect()
        };
        let seen = self.look(&missing).await?;
        let mut seen: BTreeMap<Name, Seen> = missing.into_iter().zip(seen).collect();
        let state = self.state();
        Ok(names
            .iter()
            .map(|name| match seen.get_mut(name) {
                Some(seen) => seen.value.clone(),
                None => state.writes.get(name).cloned().flatten(),
            })
            .collect())
    }

    /// What stands under `names` in this attempt's snapshot.
    async fn look(&self, names: &[Name]) -> Result<Vec<Seen>> {
        if let Some(seen) = self.state().recall(names)? {
            return Ok(seen);
        }
        let _turn = self.0.gate.lock().await;
        let (keys, at) = {
            let mut state = self.state();
            // Another read may have brought it.
            if let Some(seen) = state.recall(names)? {
                return Ok(seen);
            }
            state.wanted(names, self.0.isolation)
        };
        let read = match self.0.reader.read(keys.clone(), at).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                tracing::debug!(error = %error.chain(), "the snapshot is gone");
                self.state().stale = true;
                return Err(stale());
            }
            read => read?,
        };
        let mut state = self.state();
        state.check()?;
        state.learn(keys, read, at, self.0.isolation)?;
        state
            .recall(names)?
            .ok_or_else(|| Error::new(ErrorKind::Internal, "the store answered another question"))
    }
}

impl State {
    fn check(&self) -> Result<()> {
        if self.ended {
            let message =
                "this attempt of the transaction has ended: use the one that the closure is given";
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        if self.stale {
            return Err(stale());
        }
        Ok(())
    }

    /// What is known of `names`, if all of it is.
    fn recall(&mut self, names: &[Name]) -> Result<Option<Vec<Seen>>> {
        self.check()?;
        let mut found = Vec::with_capacity(names.len());
        for name in names {
            if let Some(seen) = self.known.remove(name) {
                self.reads.insert(name.clone(), seen);
            }
            match self.reads.get(name) {
                Some(seen) => found.push(seen.clone()),
                None => return Ok(None),
            }
        }
        Ok(Some(found))
    }

    /// What to ask the store for to learn `names`, and as of when.
    fn wanted(&mut self, names: &[Name], isolation: Isolation) -> (Vec<Name>, Option<u64>) {
        let mut keys: Vec<Name> = Vec::new();
        let mut asked = HashSet::new();
        let mut ask = |name: &Name| {
            if asked.insert(name.clone()) {
                keys.push(name.clone());
            }
        };
        let is_new = |name: &&Name| !self.reads.contains_key(*name);
        names.iter().filter(is_new).for_each(&mut ask);
        let hints = std::mem::take(&mut self.hints);
        let unknown = |name: &&Name| {
            !self.reads.contains_key(*name)
                && !self.known.contains_key(*name)
                && !self.writes.contains_key(*name)
        };
        hints.iter().filter(unknown).for_each(&mut ask);
        let snapshot = isolation.reads_a_snapshot();
        match self.at {
            Some(at) if snapshot && self.repeatable => (keys, Some(at)),
            // Everything from before once more: it must be what it was.
            Some(_) if snapshot => {
                self.reads.keys().chain(self.known.keys()).for_each(ask);
                (keys, None)
            }
            _ => (keys, None),
        }
    }

    fn learn(
        &mut self,
        keys: Vec<Name>,
        read: Read,
        at: Option<u64>,
        isolation: Isolation,
    ) -> Result<()> {
        self.repeatable = read.repeatable;
        if at.is_none() {
            self.at = match self.at {
                Some(first) if !isolation.reads_a_snapshot() => Some(first),
                _ => Some(read.revision),
            };
        }
        for (key, entry) in keys.into_iter().zip(read.entries) {
            let seen = Seen::from(entry);
            match self.reads.get(&key) {
                Some(before) if before.modified != seen.modified => self.stale = true,
                Some(_) => {}
                None => {
                    self.known.insert(key, seen);
                }
            }
        }
        self.check()
    }
}

fn stale() -> Error {
    let message = "what this transaction read has changed: pass this error on, and it runs again";
    Error::new(ErrorKind::Conflict, message).retryable(true)
}

fn unreadable(key: &str, why: &str) -> Error {
    Error::new(ErrorKind::Conflict, format!("the value {why}")).on(key)
}
