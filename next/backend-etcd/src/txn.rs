//! Transactions, and their answers.

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, TxnOp, TxnResponse};
use tenure_core::{Error, Result};

use crate::error::unexpected;
use crate::keys::end_of;

/// etcd takes this many comparisons and this many operations in one transaction.
pub(crate) const MOST_OPERATIONS: usize = 128;

/// How many keys one request reads or deletes. Some operations are left for the fence and its companions.
pub(crate) const KEYS_AT_ONCE: usize = 100;

/// The answer of one operation.
#[derive(Debug)]
pub(crate) enum Output {
    Range(Vec<PbKeyValue>),
    Put,
    /// How many keys were deleted.
    Delete(i64),
    Txn(Answer),
}

/// The answer of a transaction.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The revision of its writes, or the one at which it read.
    pub(crate) revision: i64,
    pub(crate) succeeded: bool,
    pub(crate) outputs: std::vec::IntoIter<Output>,
}

impl Answer {
    pub(crate) fn read(answer: TxnResponse) -> Self {
        let revision = answer.header().map_or(0, |header| header.revision());
        Self::of(answer.0, revision)
    }

    fn of(answer: PbTxnResponse, revision: i64) -> Self {
        let outputs = answer.responses.into_iter().filter_map(|operation| {
            Some(match operation.response? {
                PbTxnOpResponse::ResponseRange(range) => Output::Range(range.kvs),
                PbTxnOpResponse::ResponsePut(_) => Output::Put,
                PbTxnOpResponse::ResponseDeleteRange(deleted) => Output::Delete(deleted.deleted),
                PbTxnOpResponse::ResponseTxn(inner) => Output::Txn(Self::of(inner, revision)),
            })
        });
        Self {
            revision,
            succeeded: answer.succeeded,
            outputs: outputs.collect::<Vec<_>>().into_iter(),
        }
    }

    /// Takes the keys of the next operation, a range.
    pub(crate) fn range(&mut self) -> Result<Vec<PbKeyValue>> {
        match self.outputs.next() {
            Some(Output::Range(found)) => Ok(found),
            _ => Err(self.wrong()),
        }
    }

    /// Takes the key of the next operation, which reads a single one.
    pub(crate) fn key(&mut self) -> Result<Option<PbKeyValue>> {
        Ok(self.range()?.into_iter().next())
    }

    /// Takes how many keys the next operation deleted.
    pub(crate) fn deleted(&mut self) -> Result<i64> {
        match self.outputs.next() {
            Some(Output::Delete(deleted)) => Ok(deleted),
            _ => Err(self.wrong()),
        }
    }

    /// Skips the next operation, a put.
    pub(crate) fn put(&mut self) -> Result<()> {
        match self.outputs.next() {
            Some(Output::Put) => Ok(()),
            _ => Err(self.wrong()),
        }
    }

    /// Takes the answer of the next operation, a transaction.
    pub(crate) fn txn(&mut self) -> Result<Self> {
        match self.outputs.next() {
            Some(Output::Txn(answer)) => Ok(answer),
            _ => Err(self.wrong()),
        }
    }

    pub(crate) fn wrong(&self) -> Error {
        unexpected("Txn")
    }
}

/// Compares whether `key` is absent.
pub(crate) fn is_absent(key: &str) -> Compare {
    was_created(key, 0)
}

/// Compares the revision that created `key`, 0 for an absent one.
pub(crate) fn was_created(key: &str, revision: i64) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, revision)
}

/// Reads `key`.
pub(crate) fn get(key: &str) -> TxnOp {
    TxnOp::get(key, None)
}

/// Reads `key` without its value.
pub(crate) fn get_revisions(key: &str) -> TxnOp {
    TxnOp::get(key, Some(GetOptions::new().with_keys_only()))
}

/// Reads all keys that begin with `prefix`, as the options say. It costs the server a step for each of these keys, whatever the
/// limit is (3.4 to 3.7).
pub(crate) fn get_all(prefix: &str, options: GetOptions) -> TxnOp {
    TxnOp::get(prefix, Some(options.with_range(end_of(prefix))))
}

/// Writes `key`, which ends with the lease if it is not 0.
pub(crate) fn put(key: &str, value: impl Into<Vec<u8>>, lease: i64) -> TxnOp {
    TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
}

/// Deletes `key`.
pub(crate) fn delete(key: &str) -> TxnOp {
    TxnOp::delete(key, None)
}
