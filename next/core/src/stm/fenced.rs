//! Transactions that are bound to a guard (rule T3).

use std::marker::PhantomData;
use std::sync::Arc;

use super::{StmHandle, Tx, Txn};
use crate::backend::Fence;
use crate::error::{Error, ErrorKind, Result};
use crate::holding::Holding;
use crate::runtime::session::SessionRef;

/// Transactional memory whose commits are bound to a guard, returned by [`StmHandle::fenced_by`].
#[derive(Debug)]
pub struct FencedStm<'g> {
    pub(super) handle: StmHandle,
    pub(super) guard: PhantomData<&'g ()>,
}

impl<'g> FencedStm<'g> {
    /// Runs a transaction like [`StmHandle::run`], bound to the guard. A transaction that only reads is committed
    /// too, which proves that the guard was held when its result was valid.
    ///
    /// # Errors
    ///
    /// As for [`StmHandle::run`]; `Lost` also when the guard is not held in the store any more, and `Config` for a guard
    /// of another session, before anything is sent.
    pub async fn run<T, F, Fut>(&self, work: F) -> Result<T>
    where
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T>>,
    {
        self.handle.run(work).await
    }

    /// Runs a transaction like [`run`](Self::run), for closures with an error type of their own.
    pub async fn try_run<T, E, F, Fut>(&self, work: F) -> Result<T, E>
    where
        E: From<Error>,
        F: FnMut(Tx) -> Fut,
        Fut: Future<Output = Result<T, E>>,
    {
        self.handle.try_run(work).await
    }

    /// Creates an explicit transaction like [`StmHandle::txn`], bound to the guard.
    pub fn txn(&self) -> Txn<'g> {
        Txn::new(&self.handle.session, self.handle.bound.clone())
    }
}

/// The guard that a commit is bound to, and whether it belongs to the session that commits.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    fence: Fence,
    ours: bool,
}

impl Bound {
    pub(super) fn new(session: &SessionRef, guard: &Holding) -> Self {
        Self {
            fence: guard.fence(),
            ours: Arc::ptr_eq(session, guard.held().session()),
        }
    }

    pub(super) fn fence(bound: Option<Self>) -> Result<Option<Fence>> {
        match bound {
            Some(bound) if !bound.ours => {
                let message = "the guard belongs to another session: commit in the session that holds it";
                Err(Error::new(ErrorKind::Config, message).on(bound.fence.name.as_str()))
            }
            bound => Ok(bound.map(|bound| bound.fence)),
        }
    }
}
