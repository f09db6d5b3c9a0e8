//! Explicit transactions, and the limits of all transactions.

use std::collections::HashSet;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use super::commit::commit;
use super::fenced::Bound;
use super::reader::backend;
use crate::backend::{Commit, Key, Marker, Nonce, Slot, Write};
use crate::compare::{Compare, Op, OpResult, Target};
use crate::error::{Effect, Error, ErrorKind, Result};
use crate::holding::Holding;
use crate::name::Name;
use crate::runtime::session::SessionRef;
use crate::value;

/// The most comparisons, and the most operations in one branch, of a transaction, on every store.
///
/// etcd accepts 128 in a request, and the commit itself needs some of them.
pub const MAX_OPERATIONS: usize = 120;

/// The most bytes of all keys and values of one transaction, with an overhead for each, on every store.
///
/// etcd accepts 1.5 MiB in a request.
pub const MAX_TRANSACTION_BYTES: usize = 1536 * 1024 - 1024;

/// The result of an explicit transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TxnOutcome {
    /// Whether all comparisons held. If so, the operations of `then` were carried out, otherwise those of `or_else`.
    pub succeeded: bool,
    /// The store's revision after the transaction.
    pub revision: u64,
    /// The results of that branch's operations, in their order.
    pub results: Vec<OpResult>,
}

/// An explicit transaction: `when` these comparisons hold `then` these operations, `or_else` those.
/// [`StmHandle::txn`](crate::StmHandle::txn) returns it.
///
/// ```
/// # async fn example(session: tenure_core::Session) -> tenure_core::Result<()> {
/// use tenure_core::{Compare, Op};
/// let done = session.stm().txn()
///     .when([Compare::value("state").eq("open"), Compare::version("orders").lt(100)])
///     .then([Op::put("state", "closed"), Op::get("orders")])
///     .or_else([Op::get("state")])
///     .commit()
///     .await?;
/// println!("closed: {}", done.succeeded);
/// # Ok(()) }
/// ```
#[must_use = "a transaction does nothing until `commit`"]
pub struct Txn<'g> {
    session: SessionRef,
    compares: Vec<Compare>,
    then: Vec<Op>,
    or_else: Vec<Op>,
    bound: Option<Bound>,
    /// Borrows the guard, so that it cannot be released before the commit.
    guard: PhantomData<&'g ()>,
}

impl fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Txn")
            .field("compares", &self.compares)
            .field("then", &self.then)
            .field("or_else", &self.or_else)
            .finish_non_exhaustive()
    }
}

impl<'g> Txn<'g> {
    pub(super) fn new(session: &SessionRef, bound: Option<Bound>) -> Self {
        Self {
            session: Arc::clone(session),
            compares: Vec::new(),
            then: Vec::new(),
            or_else: Vec::new(),
            bound,
            guard: PhantomData,
        }
    }

    /// Adds comparisons. Without any, `then` is carried out.
    pub fn when(mut self, compares: impl IntoIterator<Item = Compare>) -> Self {
        self.compares.extend(compares);
        self
    }

    /// Adds operations that are carried out if all comparisons hold.
    pub fn then(mut self, operations: impl IntoIterator<Item = Op>) -> Self {
        self.then.extend(operations);
        self
    }

    /// Adds operations that are carried out if a comparison does not hold.
    pub fn or_else(mut self, operations: impl IntoIterator<Item = Op>) -> Self {
        self.or_else.extend(operations);
        self
    }

    /// Binds the transaction to `guard`: it does nothing unless the guard is held in the store at the commit (rule T3).
    /// Borrows the guard, so that the guard cannot be released before the commit.
    pub fn fenced_by<'n>(self, guard: &'n Holding) -> Txn<'n> {
        Txn {
            bound: Some(Bound::new(&self.session, guard)),
            session: self.session,
            compares: self.compares,
            then: self.then,
            or_else: self.or_else,
            guard: PhantomData,
        }
    }

    /// Commits the transaction: all its operations happen in one atomic step, or none does.
    ///
    /// # Errors
    ///
    /// - `InvalidName`, `TooLarge`, and `Conflict` for a key that one branch writes twice: before anything is sent.
    /// - `Lost` when the guard of [`fenced_by`](Self::fenced_by) is not held in the store any more, or the session has
    ///   ended: nothing was done.
    /// - `Config` for a guard of another session.
    /// - `CommitUnknown` when the answer was lost and the session ended before the outcome was determined, or the store
    ///   cannot tell. A commit is sent again only if the first is known to have had no effect.
    /// - An error whose effect is `Applied` when the transaction is committed but its reads were lost with the answer.
    ///
    /// An unreachable store is retried until the session ends.
    ///
    /// # Cancel safety
    ///
    /// If dropped before its first poll, the future does nothing. Later, the transaction happens whole or not at all,
    /// and a background task completes a commit that was sent.
    pub async fn commit(self) -> Result<TxnOutcome> {
        let draft = || {
            let mut draft = draft();
            draft.fence = Bound::fence(self.bound.clone())?;
            draft.compares = self.compares.into_iter().map(keyed).collect::<Result<_>>()?;
            draft.then = self.then.into_iter().map(write).collect::<Result<_>>()?;
            draft.or_else = self.or_else.into_iter().map(write).collect::<Result<_>>()?;
            Ok(draft)
        };
        let draft = draft().map_err(|error: Error| error.during("txn"))?;
        execute(&self.session, "txn", draft).await
    }
}

/// Returns an empty commit, whose marker is a placeholder.
pub(super) fn draft() -> Commit {
    Commit::new(Marker {
        nonce: Nonce::new(0),
        slot: Slot::new(0),
    })
}

/// Commits one `write`, on condition that `compare` holds.
pub(crate) async fn change(
    session: &SessionRef,
    operation: &'static str,
    compare: Option<Compare<Key>>,
    write: Write,
) -> Result<TxnOutcome> {
    let mut change = draft();
    change.compares.extend(compare);
    change.then.push(write);
    execute(session, operation, change).await
}

/// Checks and commits a transaction.
async fn execute(session: &SessionRef, operation: &'static str, draft: Commit) -> Result<TxnOutcome> {
    let stm = backend(session).map_err(|error| error.during(operation))?;
    check(&*stm, &draft).map_err(|error| error.during(operation))?;
    let (then, or_else) = (draft.then.clone(), draft.or_else.clone());
    let committed = commit(session, operation, &stm, draft).await?;
    let results = committed.results.map_or_else(
        || {
            let branch = if committed.succeeded { then } else { or_else };
            let results = branch.iter().map(|write| without_answer(write, committed.succeeded));
            results.collect::<Result<_>>().map_err(|error| error.during(operation))
        },
        Ok,
    );
    Ok(TxnOutcome {
        succeeded: committed.succeeded,
        revision: committed.revision,
        results: results?,
    })
}

/// Returns the result of an operation that a marker proves to be carried out. Its reads are lost.
fn without_answer(write: &Write, succeeded: bool) -> Result<OpResult> {
    match write {
        Write::Put { .. } => Ok(OpResult::Put),
        Write::Delete(_) => Ok(OpResult::Delete),
        Write::Get(_) => {
            let branch = if succeeded { "then" } else { "or_else" };
            let message = format!(
                "committed, by its `{branch}` branch, but what that read was lost with the answer: read it again, and do not commit again"
            );
            Err(Error::new(ErrorKind::Unavailable, message)
                .with_effect(Effect::Applied)
                .retryable(false))
        }
    }
}

fn keyed(compare: Compare) -> Result<Compare<Key>> {
    let key = Key::data(Name::new(compare.key())?);
    Ok(Compare::new(key, compare.target().clone(), compare.relation()))
}

fn write(op: Op) -> Result<Write> {
    let key = Key::data(Name::new(op.key())?);
    Ok(match op {
        Op::Get(_) => Write::Get(key),
        Op::Put(_, value) => Write::Put {
            key,
            value: value.into(),
            leased: false,
        },
        Op::Delete(_) => Write::Delete(key),
    })
}

/// Refuses a transaction beyond the limits of every store, and of `stm` (rule T5).
pub(super) fn check(stm: &dyn crate::backend::Stm, commit: &Commit) -> Result<()> {
    /// The bytes that a request carries beside one key and its value.
    const AROUND: usize = 48;
    let too_large = |message| Err(Error::new(ErrorKind::TooLarge, message));
    let parts = [
        ("comparisons", commit.compares.len()),
        ("operations in its first branch", commit.then.len()),
        ("operations in its second branch", commit.or_else.len()),
    ];
    if let Some((what, count)) = parts.into_iter().find(|(_, count)| *count > MAX_OPERATIONS) {
        return too_large(format!(
            "a transaction may have at most {MAX_OPERATIONS} {what}, this one has {count}: split it"
        ));
    }
    let mut bytes = 0;
    let mut add = |key: &Key, value: &[u8]| {
        bytes += AROUND + key.name.as_str().len() + value.len();
        value::check(value).map_err(|error| error.on(key.name.as_str()))
    };
    for compare in &commit.compares {
        match compare.target() {
            Target::Value(value) => add(compare.key(), value)?,
            _ => add(compare.key(), &[])?,
        }
    }
    for branch in [&commit.then, &commit.or_else] {
        let mut written = HashSet::new();
        for write in branch {
            match write {
                Write::Put { key, value, .. } => add(key, value)?,
                other => add(other.key(), &[])?,
            }
            if !matches!(write, Write::Get(_)) && !written.insert(write.key()) {
                let message = "one branch of a transaction writes this key twice: leave one";
                return Err(Error::new(ErrorKind::Conflict, message).on(write.key().name.as_str()));
            }
        }
    }
    if bytes > MAX_TRANSACTION_BYTES {
        return too_large(format!(
            "a transaction may have at most {MAX_TRANSACTION_BYTES} bytes, this one has {bytes}: split it"
        ));
    }
    stm.check(commit)
}
