//! Transactions as data: comparisons, operations, and what comes of them; and the explicit form,
//! if-then-else.

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use tracing::Instrument;

use crate::ask::{Ask, Grant, nonce};
use crate::drive::{self, Keeper, Settled};
use crate::holding::Holding;
use crate::ledger::Ledger;
use crate::name::{Kind, Name};
use crate::session::SessionId;
use crate::stm::Stm;
use crate::value::{self, Redacted};
use crate::{Effect, Error, ErrorKind, FencingToken, Result};

/// The most comparisons, and the most operations in one branch, that a transaction may have. The
/// same on every store: etcd takes 128 in a request, and the commit needs three of them itself.
pub const MAX_OPERATIONS: usize = 125;

/// The most that keys and values of one transaction may weigh together, in bytes, as
/// [`Transaction::weight`] counts them. The same on every store: etcd takes 1.5 MiB in a request.
pub const MAX_TRANSACTION_BYTES: usize = 1536 * 1024 - 1024;

/// What stands under a key.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// The store's revision at which the key came into being.
    pub created: u64,
    /// The store's revision at which it was last written.
    pub modified: u64,
    /// How often it was written since it came into being; 1 after the first time.
    pub version: u64,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("value", &Redacted(&self.value))
            .field("created", &self.created)
            .field("modified", &self.modified)
            .field("version", &self.version)
            .finish()
    }
}

/// How a comparison compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// `=`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `>`
    Greater,
}

impl Relation {
    fn holds<T: Ord + ?Sized>(self, found: &T, wanted: &T) -> bool {
        match self {
            Self::Equal => found == wanted,
            Self::NotEqual => found != wanted,
            Self::Less => found < wanted,
            Self::Greater => found > wanted,
        }
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Equal => "=",
            Self::NotEqual => "!=",
            Self::Less => "<",
            Self::Greater => ">",
        })
    }
}

/// What of a key is compared, and with what.
#[derive(Clone, PartialEq, Eq)]
pub enum Target {
    /// [`Entry::value`], byte by byte. Of a key that is absent, no such comparison holds.
    Value(Vec<u8>),
    /// [`Entry::version`]; 0 of a key that is absent.
    Version(u64),
    /// [`Entry::created`]; 0 of a key that is absent.
    Created(u64),
    /// [`Entry::modified`]; 0 of a key that is absent.
    Modified(u64),
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(value) => f.debug_tuple("Value").field(&Redacted(value)).finish(),
            Self::Version(number) => f.debug_tuple("Version").field(number).finish(),
            Self::Created(number) => f.debug_tuple("Created").field(number).finish(),
            Self::Modified(number) => f.debug_tuple("Modified").field(number).finish(),
        }
    }
}

/// One comparison of a transaction: `Compare::value("k").eq("v")`.
///
/// A key that is absent has version 0 and was created and modified at 0; no comparison of its
/// value holds, not even `!=`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare<K = String> {
    key: K,
    target: Target,
    relation: Relation,
}

impl Compare {
    /// Compares the value under `key`.
    pub fn value(key: impl Into<String>) -> CompareValue {
        CompareValue(key.into())
    }

    /// Compares how often `key` was written since it came into being.
    pub fn version(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Version)
    }

    /// Compares the revision at which `key` came into being: `.eq(0)` says that it is absent.
    pub fn create(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Created)
    }

    /// Compares the revision at which `key` was last written.
    pub fn modified(key: impl Into<String>) -> CompareNumber {
        CompareNumber(key.into(), Target::Modified)
    }
}

impl<K> Compare<K> {
    /// A comparison from its parts.
    pub fn new(key: K, target: Target, relation: Relation) -> Self {
        Self {
            key,
            target,
            relation,
        }
    }

    /// Whose.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// What, and with what.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// How.
    pub fn relation(&self) -> Relation {
        self.relation
    }

    /// Whether it holds for what stands under its key.
    pub fn holds(&self, found: Option<&Entry>) -> bool {
        let number =
            |of: fn(&Entry) -> u64, wanted: &u64| self.relation.holds(&found.map_or(0, of), wanted);
        match &self.target {
            Target::Value(wanted) => {
                found.is_some_and(|entry| self.relation.holds(&entry.value, wanted))
            }
            Target::Version(wanted) => number(|entry| entry.version, wanted),
            Target::Created(wanted) => number(|entry| entry.created, wanted),
            Target::Modified(wanted) => number(|entry| entry.modified, wanted),
        }
    }
}

/// A comparison of a value that still lacks its other side.
#[derive(Clone, Debug)]
#[must_use]
pub struct CompareValue(String);

/// A comparison of a number that still lacks its other side.
#[derive(Clone, Debug)]
#[must_use]
pub struct CompareNumber(String, fn(u64) -> Target);

macro_rules! relations {
    ($($name:ident $relation:ident $words:literal;)*) => {
        impl CompareValue {
            $(#[doc = concat!("The value is ", $words, " `value`.")]
            pub fn $name(self, value: impl Into<Vec<u8>>) -> Compare {
                Compare::new(self.0, Target::Value(value.into()), Relation::$relation)
            })*
        }

        impl CompareNumber {
            $(#[doc = concat!("The number is ", $words, " `number`.")]
            pub fn $name(self, number: u64) -> Compare {
                Compare::new(self.0, self.1(number), Relation::$relation)
            })*
        }
    };
}

relations! {
    eq Equal "equal to";
    ne NotEqual "other than";
    lt Less "less than";
    gt Greater "greater than";
}

/// One operation of a transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Op<K = String> {
    /// Reads, after what stands before it in the branch.
    Get(K),
    /// Writes.
    Put(K, Vec<u8>),
    /// Deletes; nothing happens to a key that is absent.
    Delete(K),
}

impl Op {
    /// Reads `key`.
    pub fn get(key: impl Into<String>) -> Self {
        Self::Get(key.into())
    }

    /// Writes `value` under `key`.
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self::Put(key.into(), value.into())
    }

    /// Deletes `key`.
    pub fn delete(key: impl Into<String>) -> Self {
        Self::Delete(key.into())
    }
}

impl<K: fmt::Debug> fmt::Debug for Op<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Get(key) => f.debug_tuple("Get").field(key).finish(),
            Self::Put(key, value) => {
                let mut put = f.debug_tuple("Put");
                put.field(key).field(&Redacted(value)).finish()
            }
            Self::Delete(key) => f.debug_tuple("Delete").field(key).finish(),
        }
    }
}

impl<K> Op<K> {
    /// Whose.
    pub fn key(&self) -> &K {
        match self {
            Self::Get(key) | Self::Put(key, _) | Self::Delete(key) => key,
        }
    }

    /// Whether it changes something.
    pub fn writes(&self) -> bool {
        !matches!(self, Self::Get(_))
    }
}

/// What came of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// What stood under the key.
    Get(Option<Entry>),
    /// It is written.
    Put,
    /// It is absent now.
    Delete,
}

/// What came of an explicit transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TxnOutcome {
    /// Whether all comparisons held, so that the operations of `then` were done; else those of
    /// `or_else`.
    pub succeeded: bool,
    /// A result for each operation of that branch, in their order.
    pub results: Vec<OpResult>,
    /// The store's revision after it.
    pub revision: u64,
}

/// What a transaction is bound to: it commits only if this is held *in the store* at the commit
/// (rule T3). Only core makes one, from a guard.
#[derive(Clone)]
pub struct Fence {
    ask: Ask,
    grant: Grant,
    session: SessionId,
}

impl Fence {
    pub(crate) fn new(ask: &Ask, grant: &Grant, session: &SessionId) -> Self {
        Self {
            ask: ask.clone(),
            grant: grant.clone(),
            session: session.clone(),
        }
    }

    /// What kind of thing is held.
    pub fn kind(&self) -> Kind {
        self.ask.kind()
    }

    /// Its name.
    pub fn name(&self) -> &Name {
        self.ask.name()
    }

    /// The nonce of the ask that was granted.
    pub fn nonce(&self) -> u64 {
        self.ask.nonce()
    }

    /// The grant's token.
    pub fn token(&self) -> FencingToken {
        self.grant.token()
    }

    /// The grant's key.
    pub fn key(&self) -> &str {
        self.grant.key()
    }

    /// The session that holds it: not always the one that commits.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// What the backend attached to the grant.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence")
            .field("key", &self.key())
            .field("token", &self.token())
            .finish_non_exhaustive()
    }
}

/// A transaction as a backend gets it: if all comparisons hold then one list of operations, else
/// the other; in one atomic step, in which the fence is looked at too.
///
/// Core has checked the names, the limits and that no key is written twice in one branch.
#[derive(Clone, Debug)]
pub struct Transaction {
    nonce: u64,
    /// What must hold.
    pub compares: Vec<Compare<Name>>,
    /// What is done if it does.
    pub then: Vec<Op<Name>>,
    /// What is done if it does not.
    pub or_else: Vec<Op<Name>>,
    /// What must be held in the store, or nothing at all is done.
    pub fence: Option<Fence>,
}

impl Transaction {
    pub(crate) fn new(
        compares: Vec<Compare<Name>>,
        then: Vec<Op<Name>>,
        or_else: Vec<Op<Name>>,
        fence: Option<Fence>,
    ) -> Self {
        Self {
            nonce: nonce(),
            compares,
            then,
            or_else,
            fence,
        }
    }

    /// The same, as a commit of its own: the one before is known not to have happened.
    pub(crate) fn anew(&mut self) {
        self.nonce = nonce();
    }

    /// Tells this commit from every other of the session: what its marker carries.
    pub fn nonce(&self) -> u64 {
        self.nonce
    }

    /// Whether it may change something.
    pub fn writes(&self) -> bool {
        self.then.iter().chain(&self.or_else).any(Op::writes)
    }

    /// How much it weighs in a request, in bytes, when a key is `key_bytes` long in the store.
    /// Counts all that stands around keys and values generously.
    pub fn weight(&self, key_bytes: impl Fn(&Name) -> usize) -> usize {
        /// Tags, lengths and numbers around one operation.
        const AROUND: usize = 48;
        let compare = |compare: &Compare<Name>| {
            let value = match compare.target() {
                Target::Value(value) => value.len(),
                _ => 0,
            };
            AROUND + key_bytes(compare.key()) + value
        };
        let operation = |op: &Op<Name>| {
            let value = match op {
                Op::Put(_, value) => value.len(),
                _ => 0,
            };
            AROUND + key_bytes(op.key()) + value
        };
        let fence = self
            .fence
            .as_ref()
            .map_or(0, |fence| 2 * (AROUND + fence.key().len()));
        let compares: usize = self.compares.iter().map(compare).sum();
        let operations = self.then.iter().chain(&self.or_else).map(operation);
        compares + operations.sum::<usize>() + fence
    }

    /// Refuses what no store takes (rule T5). A backend calls this from [`Stm::check`].
    ///
    /// # Errors
    ///
    /// `TooLarge`: more than [`MAX_OPERATIONS`], [`MAX_VALUE_BYTES`](crate::MAX_VALUE_BYTES) or
    /// [`MAX_TRANSACTION_BYTES`]; `Conflict` when a branch writes a key twice.
    pub fn check(&self, key_bytes: impl Fn(&Name) -> usize) -> Result<()> {
        let parts = [
            ("comparisons", self.compares.len()),
            ("operations in its first branch", self.then.len()),
            ("operations in its second branch", self.or_else.len()),
        ];
        for (what, count) in parts {
            if count > MAX_OPERATIONS {
                return Err(too_large(format!(
                    "a transaction of {count} {what}; {MAX_OPERATIONS} is the most: split it"
                )));
            }
        }
        for branch in [&self.then, &self.or_else] {
            let mut written = std::collections::HashSet::new();
            for op in branch {
                if let Op::Put(key, value) = op {
                    check_value(key, value)?;
                }
                if op.writes() && !written.insert(op.key()) {
                    let message = "one branch of a transaction writes this key twice: leave one";
                    return Err(Error::new(ErrorKind::Conflict, message).on(op.key().as_str()));
                }
            }
        }
        for compare in &self.compares {
            if let Target::Value(value) = compare.target() {
                check_value(compare.key(), value)?;
            }
        }
        let weight = self.weight(key_bytes);
        if weight > MAX_TRANSACTION_BYTES {
            return Err(too_large(format!(
                "a transaction of {weight} bytes; {MAX_TRANSACTION_BYTES} is the most: split it"
            )));
        }
        Ok(())
    }
}

fn too_large(message: String) -> Error {
    Error::new(ErrorKind::TooLarge, message)
}

pub(crate) fn check_value(key: &Name, value: &[u8]) -> Result<()> {
    value::check(value).map_err(|error| error.on(key.as_str()))
}

/// An explicit transaction: `when` these comparisons hold `then` these operations, `or_else`
/// those. What [`StmHandle::txn`](crate::StmHandle::txn) returns.
///
/// ```
/// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
/// use tenure_core::{Compare, Op};
/// let done = session.stm()?.txn()
///     .when([Compare::value("state").eq("open"), Compare::version("orders").lt(100)])
///     .then([Op::put("state", "closed"), Op::get("orders")])
///     .or_else([Op::get("state")])
///     .commit()
///     .await?;
/// println!("closed: {}", done.succeeded);
/// # Ok(()) }
/// ```
#[must_use = "a transaction does nothing until `commit`"]
pub struct Txn<'g, S: ?Sized = dyn Stm> {
    keeper: Arc<Keeper>,
    stm: Arc<S>,
    compares: Vec<Compare>,
    then: Vec<Op>,
    or_else: Vec<Op>,
    fence: Option<Bound>,
    /// The guard, which cannot be released before the commit.
    guard: PhantomData<&'g ()>,
}

/// A fence, and whether it belongs to the store that is to commit.
#[derive(Clone, Debug)]
pub(crate) struct Bound {
    fence: Fence,
    ours: bool,
}

impl Bound {
    pub(crate) fn new(keeper: &Keeper, guard: &Holding) -> Self {
        let (core, theirs) = (keeper.core(), guard.core());
        Self {
            fence: guard.fence(),
            ours: Arc::ptr_eq(core.ledger(), theirs.ledger()),
        }
    }

    pub(crate) fn fence(bound: Option<&Self>) -> Result<Option<Fence>> {
        match bound {
            Some(bound) if !bound.ours => {
                let message = "the guard belongs to another store, or to another connection to this one: open both sessions from one `Store`";
                Err(Error::new(ErrorKind::Config, message).on(bound.fence.name().as_str()))
            }
            bound => Ok(bound.map(|bound| bound.fence.clone())),
        }
    }
}

impl<S: ?Sized> fmt::Debug for Txn<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn")
            .field("compares", &self.compares)
            .field("then", &self.then)
            .field("or_else", &self.or_else)
            .finish_non_exhaustive()
    }
}

impl<'g, S: Stm + ?Sized> Txn<'g, S> {
    pub(crate) fn new(keeper: Arc<Keeper>, stm: Arc<S>, fence: Option<Bound>) -> Self {
        Self {
            keeper,
            stm,
            compares: Vec::new(),
            then: Vec::new(),
            or_else: Vec::new(),
            fence,
            guard: PhantomData,
        }
    }

    /// Adds comparisons. Without any, `then` is done.
    pub fn when(mut self, compares: impl IntoIterator<Item = Compare>) -> Self {
        self.compares.extend(compares);
        self
    }

    /// Adds operations that are done if all comparisons hold.
    pub fn then(mut self, operations: impl IntoIterator<Item = Op>) -> Self {
        self.then.extend(operations);
        self
    }

    /// Adds operations that are done if one does not.
    pub fn or_else(mut self, operations: impl IntoIterator<Item = Op>) -> Self {
        self.or_else.extend(operations);
        self
    }

    /// Binds the transaction to `guard`: nothing is done unless that is held in the store at the
    /// commit (rule T3). Borrows the guard, so that it cannot be released before.
    pub fn fenced_by<'n>(self, guard: &'n Holding) -> Txn<'n, S> {
        Txn {
            fence: Some(Bound::new(&self.keeper, guard)),
            keeper: self.keeper,
            stm: self.stm,
            compares: self.compares,
            then: self.then,
            or_else: self.or_else,
            guard: PhantomData,
        }
    }

    /// Sends it. Everything happens in one atomic step, or nothing.
    ///
    /// # Errors
    ///
    /// - `InvalidName`, `TooLarge`, and `Conflict` for a key that one branch writes twice: before
    ///   anything is sent.
    /// - `Lost` when the guard of [`fenced_by`](Self::fenced_by) is not held in the store any
    ///   more, or the session has ended: nothing was done.
    /// - `Config` for a guard of another store.
    /// - `CommitUnknown` when the answer was lost and the session ended before the outcome could
    ///   be found out. Nothing is sent twice unless the first is known not to have happened.
    /// - An error whose effect is `Applied` when it is committed, and what it read was lost with
    ///   the answer.
    ///
    /// A store that cannot be reached is tried again until the session ends.
    ///
    /// # Cancel safety
    ///
    /// Dropped before its first poll it did nothing; after it, it is done whole or not at all,
    /// and what was sent is brought to its end in the background.
    pub async fn commit(self) -> Result<TxnOutcome> {
        let core = Arc::clone(self.keeper.core());
        let span = tracing::debug_span!("tenure", operation = "txn", session = %core.id());
        let committing = self.send().instrument(span);
        committing.await.map_err(|error| error.during("txn"))
    }

    async fn send(self) -> Result<TxnOutcome> {
        let fence = Bound::fence(self.fence.as_ref())?;
        let transaction = Transaction::new(
            named(self.compares)?,
            operations(self.then)?,
            operations(self.or_else)?,
            fence,
        );
        execute(&self.keeper, &self.stm, transaction).await
    }
}

/// Checks and commits a transaction, and tells the process's ledger what it wrote.
pub(crate) async fn execute<S: Stm + ?Sized>(
    keeper: &Arc<Keeper>,
    stm: &Arc<S>,
    transaction: Transaction,
) -> Result<TxnOutcome> {
    stm.check(&transaction)?;
    let core = keeper.core();
    let (then, or_else) = (transaction.then.clone(), transaction.or_else.clone());
    let settled = drive::commit(core, Arc::clone(stm), transaction).await?;
    let branch = |succeeded| if succeeded { &then } else { &or_else };
    let outcome = match settled {
        Settled::Answered(done) => TxnOutcome {
            succeeded: done.succeeded,
            results: done.results,
            revision: done.revision,
        },
        Settled::Found {
            revision,
            succeeded,
        } => TxnOutcome {
            succeeded,
            results: without_answers(branch(succeeded), succeeded)?,
            revision,
        },
    };
    let written = branch(outcome.succeeded).iter().filter(|op| op.writes());
    Ledger::wrote(core.ledger(), written.map(Op::key), outcome.revision);
    Ok(outcome)
}

/// The results of a branch that is known to have been done, by a marker: what it read is lost.
fn without_answers(branch: &[Op<Name>], succeeded: bool) -> Result<Vec<OpResult>> {
    let result = |op: &Op<Name>| match op {
        Op::Put(..) => Ok(OpResult::Put),
        Op::Delete(_) => Ok(OpResult::Delete),
        Op::Get(_) => {
            let which = if succeeded { "then" } else { "or_else" };
            let message = format!(
                "committed, by its `{which}` branch, but what that read was lost with the answer: read it anew, and do not commit again"
            );
            Err(Error::new(ErrorKind::Unavailable, message)
                .with_effect(Effect::Applied)
                .retryable(false))
        }
    };
    branch.iter().map(result).collect()
}

fn named(compares: Vec<Compare>) -> Result<Vec<Compare<Name>>> {
    let named = |compare: Compare| {
        let key = Name::new(&compare.key)?;
        Ok(Compare::new(key, compare.target, compare.relation))
    };
    compares.into_iter().map(named).collect()
}

fn operations(ops: Vec<Op>) -> Result<Vec<Op<Name>>> {
    let named = |op: Op| {
        Ok(match op {
            Op::Get(key) => Op::Get(Name::new(key)?),
            Op::Put(key, value) => Op::Put(Name::new(key)?, value),
            Op::Delete(key) => Op::Delete(Name::new(key)?),
        })
    };
    ops.into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_VALUE_BYTES;

    fn entry(value: &str) -> Entry {
        Entry {
            value: value.into(),
            created: 3,
            modified: 5,
            version: 2,
        }
    }

    #[test]
    fn comparisons() {
        let here = entry("m");
        let some = Some(&here);
        assert!(Compare::value("k").eq("m").holds(some));
        assert!(Compare::value("k").ne("n").holds(some));
        assert!(Compare::value("k").lt("n").holds(some));
        assert!(Compare::value("k").gt("a").holds(some));
        assert!(Compare::version("k").eq(2).holds(some));
        assert!(Compare::create("k").lt(4).holds(some));
        assert!(Compare::modified("k").gt(4).holds(some));
        assert!(!Compare::modified("k").gt(5).holds(some));
    }

    #[test]
    fn absent_keys_count_as_zero_and_have_no_value() {
        for compare in [
            Compare::value("k").eq(""),
            Compare::value("k").ne("x"),
            Compare::value("k").lt("x"),
            Compare::value("k").gt(""),
            Compare::version("k").gt(0),
        ] {
            assert!(!compare.holds(None), "{compare:?}");
        }
        assert!(Compare::version("k").eq(0).holds(None));
        assert!(Compare::create("k").eq(0).holds(None));
        assert!(Compare::modified("k").lt(1).holds(None));
    }

    fn check(then: Vec<Op>) -> Option<ErrorKind> {
        let then = operations(then).unwrap();
        let checked = Transaction::new(Vec::new(), then, Vec::new(), None);
        checked
            .check(|name| name.as_str().len())
            .err()
            .map(|error| error.kind())
    }

    #[test]
    fn limits() {
        let puts = |count| (0..count).map(|n| Op::put(format!("{n}"), "v")).collect();
        let values = |count, size| {
            let put = |n| Op::put(format!("{n}"), vec![0; size]);
            (0..count).map(put).collect::<Vec<_>>()
        };
        assert_eq!(check(puts(MAX_OPERATIONS)), None);
        assert_eq!(check(puts(MAX_OPERATIONS + 1)), Some(ErrorKind::TooLarge));
        assert_eq!(check(values(1, MAX_VALUE_BYTES)), None);
        assert_eq!(
            check(values(1, MAX_VALUE_BYTES + 1)),
            Some(ErrorKind::TooLarge)
        );
        assert_eq!(check(values(2, MAX_VALUE_BYTES)), Some(ErrorKind::TooLarge));
        let twice = vec![Op::put("a", "1"), Op::delete("a")];
        assert_eq!(check(twice), Some(ErrorKind::Conflict));
        assert_eq!(check(vec![Op::put("a", "1"), Op::get("a")]), None);
    }
}
