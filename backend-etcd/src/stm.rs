//! Transactional memory: etcd's keys, its transactions, and its revisions.
//!
//! A commit is one transaction around the caller's:
//!
//! ```text
//! if   mod_revision(slot) = last known, create_revision(guard's key) = token
//! then put slot nonce,
//!      if <compares> then <operations>
//!      else <other operations>, put slot/else nonce
//! else get slot
//! ```
//!
//! So a guard that is gone and a comparison that fails are two different answers; nothing that
//! arrives after its slot has moved on has any effect; and a lost answer is settled by putting
//! "aborted" into the slot under the same comparison (see [`Slots`]). The slots hang on the
//! session's lease. The marker is put outside, because etcd (3.4.23) counts no put of an inner
//! transaction against its space quota: with nothing else it would never refuse one. (Go's STM, whose levels these are: `client/v3/concurrency/stm.go`.)

use std::sync::Arc;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare as Cmp, CompareOp, GetOptions, PutOptions, Txn, TxnOp, TxnResponse};
use tenure_core::backend::{Done, Outcome, Read, Resolution, Slot, Stm, Transaction, async_trait};
use tenure_core::{
    Compare, Effect, Entry, Error, ErrorKind, Name, Op, OpResult, Relation, Result, Target,
};

use crate::floor;
use crate::session::EtcdSession;

/// Reads in one request; etcd takes 128 operations.
const READS: usize = 100;

/// The namespace's keys, as one session sees them.
pub struct EtcdStm {
    pub(crate) session: Arc<EtcdSession>,
}

impl EtcdStm {
    fn key(&self, name: &Name) -> String {
        self.session.shared.layout.data(name)
    }

    fn marker(&self, slot: Slot) -> String {
        let EtcdSession { shared, lease, .. } = &*self.session;
        shared.layout.marker(*lease, slot.number)
    }

    /// Reads some keys in one request. Halves it where the answer would be more than the client
    /// takes.
    async fn read_some(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        let mut read = Read {
            revision: at.unwrap_or(0),
            repeatable: true,
            entries: Vec::with_capacity(keys.len()),
        };
        let mut left = keys;
        let mut most = READS;
        while !left.is_empty() {
            let (now, later) = left.split_at(most.min(left.len()));
            let at = (read.revision > 0).then_some(read.revision);
            match self.read_at(now, at).await {
                Ok((revision, entries)) => {
                    read.revision = at.unwrap_or(revision);
                    read.entries.extend(entries);
                    left = later;
                }
                Err(error) if error.kind() == ErrorKind::TooLarge && now.len() > 1 => {
                    most = now.len() / 2;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    async fn read_at(&self, keys: &[Name], at: Option<u64>) -> Result<(u64, Vec<Option<Entry>>)> {
        let get = |name: &Name| {
            let options = at.map(|at| GetOptions::new().with_revision(signed(at)));
            TxnOp::get(self.key(name), options)
        };
        let gets: Vec<TxnOp> = keys.iter().map(get).collect();
        let answer = self.ask(Txn::new().and_then(gets)).await?;
        let revision = revision(&answer);
        let entries = crate::ticket::ranges(answer).into_iter();
        let entries = entries.map(|(kvs, _)| kvs.into_iter().next().map(entry));
        Ok((revision, entries.collect()))
    }

    fn compare(&self, compare: &Compare<Name>) -> Cmp {
        let key = self.key(compare.key());
        let relation = match compare.relation() {
            Relation::Equal => CompareOp::Equal,
            Relation::NotEqual => CompareOp::NotEqual,
            Relation::Less => CompareOp::Less,
            Relation::Greater => CompareOp::Greater,
        };
        match compare.target() {
            Target::Value(value) => Cmp::value(key, relation, value.clone()),
            Target::Version(number) => Cmp::version(key, relation, signed(*number)),
            Target::Created(number) => Cmp::create_revision(key, relation, signed(*number)),
            Target::Modified(number) => Cmp::mod_revision(key, relation, signed(*number)),
        }
    }

    fn operation(&self, op: &Op<Name>) -> TxnOp {
        match op {
            Op::Get(name) => TxnOp::get(self.key(name), None),
            Op::Put(name, value) => TxnOp::put(self.key(name), value.clone(), None),
            Op::Delete(name) => TxnOp::delete(self.key(name), None),
        }
    }

    /// Where a commit whose comparisons failed says so.
    fn marker_of_else(&self, slot: Slot) -> String {
        self.marker(slot) + "/else"
    }

    fn mark(&self, key: String, value: impl Into<Vec<u8>>) -> TxnOp {
        let options = PutOptions::new().with_lease(self.session.lease);
        TxnOp::put(key, value, Some(options))
    }

    fn unmoved(&self, slot: Slot) -> Cmp {
        Cmp::mod_revision(self.marker(slot), CompareOp::Equal, signed(slot.last))
    }

    fn request(&self, transaction: &Transaction, slot: Option<Slot>) -> Txn {
        let nonce = marked(transaction.nonce());
        let operations = |ops: &[Op<Name>]| ops.iter().map(|op| self.operation(op)).collect();
        let then: Vec<TxnOp> = operations(&transaction.then);
        let mut or_else: Vec<TxnOp> = operations(&transaction.or_else);
        or_else.extend(slot.map(|slot| self.mark(self.marker_of_else(slot), nonce.clone())));
        let compares = transaction.compares.iter();
        let inner = Txn::new()
            .when(
                compares
                    .map(|compare| self.compare(compare))
                    .collect::<Vec<_>>(),
            )
            .and_then(then)
            .or_else(or_else);
        let mark = slot.map(|slot| self.mark(self.marker(slot), nonce));
        let fence = transaction.fence.as_ref().map(|fence| {
            Cmp::create_revision(
                fence.key(),
                CompareOp::Equal,
                floor::revision(fence.token()),
            )
        });
        let unmoved = slot.map(|slot| self.unmoved(slot));
        let look = slot.map(|slot| TxnOp::get(self.marker(slot), None));
        Txn::new()
            .when(unmoved.into_iter().chain(fence).collect::<Vec<_>>())
            .and_then(
                [TxnOp::txn(inner)]
                    .into_iter()
                    .chain(mark)
                    .collect::<Vec<_>>(),
            )
            .or_else(look.into_iter().collect::<Vec<_>>())
    }

    /// Sends `transaction` once, or as often as its slot turns out to have moved. Returns when
    /// the slot was last written.
    async fn send(&self, transaction: &Transaction) -> Result<(Outcome, u64)> {
        let slots = &self.session.slots;
        loop {
            let slot = slots.of(transaction.nonce());
            let request = self.request(transaction, slot);
            let send = |client: &etcd_client::Client| {
                let (mut kv, txn) = (client.kv_client(), request.clone());
                async move { kv.txn(txn).await }
            };
            let wire = &self.session.shared.wire;
            let answer = match slot {
                Some(_) => wire.call(send).await?,
                None => wire.call_repeatable(send).await?,
            };
            if answer.succeeded() {
                let done = done(answer, slot.is_some())?;
                let revision = done.revision;
                return Ok((Outcome::Done(done), revision));
            }
            let Some(slot) = slot else {
                return Ok((Outcome::FenceLost, 0));
            };
            match crate::ticket::ranges(answer).into_iter().next() {
                Some((kvs, _)) => {
                    let last = kvs.first().map_or(0, |kv| unsigned(kv.mod_revision));
                    if last == slot.last {
                        return Ok((Outcome::FenceLost, last));
                    }
                    // Left there before the session was resumed, or by an operator.
                    slots.moved(transaction.nonce(), last);
                }
                None => return Err(odd("nothing about the slot")),
            }
        }
    }
}

/// What became of commits whose answer was lost.
impl EtcdStm {
    /// Writes *aborted* into the slot, unless something else was written there first. Returns
    /// when the slot was last written, too.
    async fn find_out(&self, slot: Slot, nonce: u64) -> Result<(Resolution, u64)> {
        let look = [self.marker(slot), self.marker_of_else(slot)].map(|key| TxnOp::get(key, None));
        let abort = Txn::new()
            .when([self.unmoved(slot)])
            .and_then([self.mark(self.marker(slot), "aborted")])
            .or_else(look.clone());
        let answer = match self.ask(abort).await {
            // Out of space, or without its lease: nothing can be written, but the marker of a
            // commit that happened may still be read.
            Err(error) if !error.is_retryable() => {
                let seen = self.ask(Txn::new().and_then(look)).await;
                return match seen.ok().and_then(|seen| committed(seen, nonce)) {
                    Some((Some(resolution), last)) => Ok((resolution, last)),
                    _ => Err(error),
                };
            }
            answer => answer?,
        };
        if answer.succeeded() {
            return Ok((Resolution::Aborted, revision(&answer)));
        }
        let Some((resolution, last)) = committed(answer, nonce) else {
            let message = "somebody removed the marker of this commit from etcd";
            return Err(Error::new(ErrorKind::CommitUnknown, message));
        };
        // Else aborted by an attempt to resolve whose answer was lost; or another's, which came
        // first, so that this one cannot come any more.
        Ok((resolution.unwrap_or(Resolution::Aborted), last))
    }

    /// Whether etcd has answered `error` without doing anything. Whoever is told that etcd is out
    /// of space cannot know: the request that finds it out is done.
    async fn refused(&self, slot: Slot, nonce: u64, error: &Error) -> bool {
        if error.is_retryable() {
            return false; // no answer
        }
        let look = TxnOp::get(self.marker(slot), None);
        let seen = self.ask(Txn::new().and_then([look])).await;
        seen.is_ok_and(|seen| match committed(seen, nonce) {
            None => slot.last == 0,
            Some((found, _)) => found.is_none(),
        })
    }

    async fn ask(&self, txn: Txn) -> Result<TxnResponse> {
        let answer = self.session.shared.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        answer.await
    }
}

/// When the slot was last written, and what came of the commit `nonce` if it was that: from the
/// reads of its two markers. None if there is no marker.
fn committed(answer: TxnResponse, nonce: u64) -> Option<(Option<Resolution>, u64)> {
    let mut markers = crate::ticket::ranges(answer).into_iter();
    let mut next = || markers.next().and_then(|(kvs, _)| kvs.into_iter().next());
    let (marker, of_else) = (next()?, next());
    let (last, nonce) = (unsigned(marker.mod_revision), marked(nonce).into_bytes());
    let resolution = (marker.value == nonce).then(|| Resolution::Committed {
        revision: last,
        succeeded: of_else.is_none_or(|marker| marker.value != nonce),
    });
    Some((resolution, last))
}

/// What the marker of the commit `nonce` has as its value.
fn marked(nonce: u64) -> String {
    format!("{nonce:x}")
}

#[async_trait]
impl Stm for EtcdStm {
    async fn read(&self, keys: &[Name], at: Option<u64>) -> Result<Read> {
        self.read_some(keys, at).await
    }

    async fn commit(&self, transaction: &Transaction) -> Result<Outcome> {
        let (nonce, slots) = (transaction.nonce(), &self.session.slots);
        if !transaction.writes() {
            let sent = self.send(transaction).await;
            let sent = sent.map_err(|error| error.with_effect(Effect::None));
            return Ok(sent?.0);
        }
        let slot = slots.take(nonce).await;
        match self.send(transaction).await {
            Ok((outcome, last)) => {
                slots.settle(nonce, last);
                Ok(outcome)
            }
            Err(error) if error.effect() == Effect::None => {
                let last = slots.of(nonce).map_or(slot.last, |slot| slot.last);
                slots.settle(nonce, last);
                Err(error)
            }
            Err(error) => {
                let slot = slots.of(nonce).unwrap_or(slot);
                if self.refused(slot, nonce, &error).await {
                    slots.settle(nonce, slot.last);
                    return Err(error.with_effect(Effect::None));
                }
                // The slot stays this commit's until it is resolved.
                Err(error)
            }
        }
    }

    async fn resolve(&self, transaction: &Transaction) -> Result<Resolution> {
        let (nonce, slots) = (transaction.nonce(), &self.session.slots);
        let slot = slots.of(nonce);
        let slot = slot.ok_or_else(|| odd("nothing about a commit that is settled"))?;
        match self.find_out(slot, nonce).await {
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
        transaction.check(|name| self.key(name).len())
    }
}

/// The answers of the inner transaction.
fn done(answer: TxnResponse, marked: bool) -> Result<Done> {
    let revision = revision(&answer);
    let mut responses = answer.0.responses.into_iter();
    let inner: PbTxnResponse = match responses.next().and_then(|inner| inner.response) {
        Some(PbTxnOpResponse::ResponseTxn(inner)) => inner,
        _ => return Err(odd("no inner transaction").with_effect(Effect::Unknown)),
    };
    let mut results: Vec<_> = inner
        .responses
        .into_iter()
        .filter_map(|operation| match operation.response? {
            PbTxnOpResponse::ResponseRange(range) => {
                Some(OpResult::Get(range.kvs.into_iter().next().map(entry)))
            }
            PbTxnOpResponse::ResponsePut(_) => Some(OpResult::Put),
            PbTxnOpResponse::ResponseDeleteRange(_) => Some(OpResult::Delete),
            PbTxnOpResponse::ResponseTxn(_) => None,
        })
        .collect();
    // What says that the comparisons failed is ours, and the last.
    if marked && !inner.succeeded {
        results.pop();
    }
    Ok(Done {
        revision,
        succeeded: inner.succeeded,
        results,
    })
}

fn entry(kv: PbKeyValue) -> Entry {
    Entry {
        value: kv.value,
        created: unsigned(kv.create_revision),
        modified: unsigned(kv.mod_revision),
        version: unsigned(kv.version),
    }
}

fn revision(answer: &TxnResponse) -> u64 {
    answer
        .header()
        .map_or(0, |header| unsigned(header.revision()))
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Above what etcd can count to, the greatest that it can: no key gets there.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn odd(what: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("etcd's answer has {what}"))
}
