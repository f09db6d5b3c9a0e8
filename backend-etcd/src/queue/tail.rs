//! The producing side: how items get their numbers.
//!
//! The number in an item's key comes from one `tail` key, compared and changed in the transaction
//! that puts the item there: so the order of keys is the order in which etcd accepted them. What
//! this client's producers want at the same time goes in one transaction; between clients the
//! comparison decides, and who loses tries again from what the winner left.
//!
//! A transaction without an answer may land later. It compares the tail, so it can land only as
//! long as nothing else has; and each batch leaves its name in its writers' own keys, in the same
//! transaction. So whoever reads the two knows: landed, or never will once another lands. Sending
//! the same batch again is safe in between: of two with the same comparison one lands.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use etcd_client::{Compare, Txn, TxnOp};
use tenure_core::backend::Ask;
use tenure_core::{Effect, Error, ErrorKind, Item, Result};
use tokio::sync::{Notify, oneshot};

use super::keys::{Keys, Place, absent, changed_at, get, put};
use super::lane::settle_down;
use crate::client::Wire;
use crate::session::EtcdSession;
use crate::ticket::ranges;

/// Items in one transaction.
const ITEMS: usize = 32;
/// Bytes in one transaction; one batch that a caller made may have more, up to etcd's limit.
const BYTES: usize = 1024 * 1024;
/// etcd's own limit for a request is 1.5 MiB, keys and all.
const MOST_BYTES: usize = 1536 * 1024 - 64 * 1024;

/// What the tail says: when it was changed, and what it holds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tail {
    pub(super) changed: i64,
    number: u64,
    highest: u16,
}

impl Tail {
    /// Reads the answer to a read of the tail.
    pub(super) fn read(kvs: &[etcd_client::proto::PbKeyValue]) -> Self {
        let Some(kv) = kvs.first() else {
            return Self::default();
        };
        let text = String::from_utf8_lossy(&kv.value);
        let mut numbers = text.split(' ');
        let mut next = || numbers.next().and_then(|number| number.parse::<u64>().ok());
        Self {
            changed: kv.mod_revision,
            number: next().unwrap_or_default(),
            highest: next().and_then(|it| it.try_into().ok()).unwrap_or(0),
        }
    }

    /// What puts `items` (priority, value, id) behind what there is, and the tail after it.
    pub(super) fn append<'a>(
        mut self,
        keys: &Keys,
        items: impl IntoIterator<Item = (u16, &'a [u8], Option<&'a str>)>,
    ) -> (Compare, Vec<TxnOp>, Self) {
        let unchanged = changed_at(keys.tail(), self.changed);
        let (mut ops, highest) = (Vec::new(), self.highest);
        let mut overtakes = false;
        for (priority, value, id) in items {
            self.number += 1;
            let place: Place = (priority, self.number);
            ops.push(put(keys.item(place, id), value, 0));
            if let Some(id) = id {
                ops.push(put(keys.id(id), "", 0));
            }
            overtakes |= priority < highest;
            self.highest = self.highest.max(priority);
        }
        let value = format!("{} {}", self.number, self.highest);
        ops.push(put(keys.tail(), value, 0));
        if overtakes {
            ops.push(keys.touch());
        }
        (unchanged, ops, self)
    }
}

struct Request {
    nonce: u64,
    session: Arc<EtcdSession>,
    ask: Ask,
    items: Vec<Item>,
    bytes: usize,
    /// Until it is told.
    done: Option<oneshot::Sender<Result<()>>>,
}

impl Request {
    fn tell(&mut self, result: Result<()>) {
        if let Some(done) = self.done.take() {
            let _ = done.send(result); // it may have left
        }
    }
}

struct Batch {
    name: String,
    requests: Vec<Request>,
    /// Ids that were there before this batch.
    known_ids: HashSet<String>,
}

impl Batch {
    fn leases(&self) -> Vec<i64> {
        let mut leases: Vec<_> = self.requests.iter().map(|it| it.session.lease).collect();
        leases.sort_unstable();
        leases.dedup();
        leases
    }

    fn finish(self, result: impl Fn() -> Result<()>) {
        for mut request in self.requests {
            request.tell(result());
        }
    }

    /// The items to put: none twice under one id, none whose id is known.
    fn items(&self) -> Vec<(u16, &[u8], Option<&str>)> {
        let mut seen = HashSet::new();
        let items = self.requests.iter().flat_map(|request| &request.items);
        items
            .map(|item| {
                (
                    item.get_priority(),
                    item.value(),
                    item.get_id().map(|id| id.as_str()),
                )
            })
            .filter(|(_, _, id)| {
                id.is_none_or(|id| !self.known_ids.contains(id) && seen.insert(id))
            })
            .collect()
    }
}

/// What the producer whose turn it is knows and does.
#[derive(Default)]
pub(super) struct Turn {
    tail: Tail,
    /// A batch that was sent, and of which it is not known whether it landed.
    unresolved: Option<Batch>,
}

/// The producers of one queue on one client.
pub(super) struct Producers {
    wire: Arc<Wire>,
    keys: Keys,
    waiting: Mutex<VecDeque<Request>>,
    turn: tokio::sync::Mutex<Turn>,
    /// Whether the task that puts in what waits is there; and the news that it has gone.
    at_work: AtomicBool,
    gone: Notify,
}

/// The task's place. Given up when the task ends, however it does.
struct Post(Arc<Producers>);

impl Drop for Post {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
        if std::thread::panicking() {
            // The next one would, too.
            let unresolved = self.0.turn.try_lock().ok();
            let unresolved = unresolved.and_then(|mut turn| turn.unresolved.take());
            let requests = unresolved.into_iter().flat_map(|batch| batch.requests);
            for mut request in requests.chain(self.0.waiting().drain(..)) {
                let error = Error::new(ErrorKind::Internal, "the work at this queue panicked");
                request.tell(Err(error.with_effect(Effect::Unknown)));
            }
        }
        // Who came too late to be seen, or is left behind by a runtime that ends, sets another to
        // work.
        self.0.gone.notify_waiters();
    }
}

/// Takes back what was not sent when its caller goes.
struct Queued<'a>(&'a Producers, u64);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting().retain(|request| request.nonce != self.1);
    }
}

impl Producers {
    pub(super) fn new(wire: Arc<Wire>, keys: Keys) -> Self {
        Self {
            wire,
            keys,
            waiting: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            at_work: AtomicBool::new(false),
            gone: Notify::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting().is_empty() && self.turn.try_lock().is_ok_and(|it| it.unresolved.is_none())
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `items` in, together with what others of this client put in now.
    pub(super) async fn enqueue(
        self: &Arc<Self>,
        session: &Arc<EtcdSession>,
        ask: &Ask,
        items: &[Item],
    ) -> Result<()> {
        let bytes = items.iter().map(|item| size(&self.keys, item)).sum();
        if bytes > MOST_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a batch of {bytes} bytes is above etcd's limit for one request (1.5 MiB): split it"
                ),
            ));
        }
        let (done, mut told) = oneshot::channel();
        self.waiting().push_back(Request {
            nonce: ask.nonce(),
            session: Arc::clone(session),
            ask: ask.clone(),
            items: items.to_vec(),
            bytes,
            done: Some(done),
        });
        let _queued = Queued(self, ask.nonce());
        loop {
            let mut gone = std::pin::pin!(self.gone.notified());
            gone.as_mut().enable();
            self.set_to_work();
            tokio::select! {
                biased;
                told = &mut told => return told.unwrap_or_else(|_| Err(unknown())),
                () = gone => {}
            }
        }
    }

    /// Sees to it that the task is there. Not one of those who wait does the work of all: a future
    /// that its owner does not poll for a while would hold up the others.
    fn set_to_work(self: &Arc<Self>) {
        if self.at_work.swap(true, Ordering::AcqRel) {
            return;
        }
        let post = Post(Arc::clone(self));
        tokio::spawn(async move { post.0.work().await });
    }

    /// Puts in what waits, until nothing does.
    async fn work(&self) {
        let mut turn = self.turn.lock().await;
        loop {
            settle_down().await;
            let (batch, sent) = match turn.unresolved.take() {
                Some(batch) => (batch, true),
                None => match self.next_batch() {
                    Some(batch) => (batch, false),
                    None => return,
                },
            };
            if !self.put_in(&mut turn, batch, sent).await {
                return;
            }
        }
    }

    fn next_batch(&self) -> Option<Batch> {
        let mut waiting = self.waiting();
        let (mut items, mut bytes) = (0, 0);
        let mut requests = Vec::new();
        while let Some(next) = waiting.front() {
            items += next.items.len();
            bytes += next.bytes;
            if !requests.is_empty() && (items > ITEMS || bytes > BYTES) {
                break;
            }
            requests.extend(waiting.pop_front());
        }
        let first = requests.first()?;
        Some(Batch {
            name: format!("{:x}", first.nonce),
            requests,
            known_ids: HashSet::new(),
        })
    }

    /// Puts one batch in, however often it takes. Gives up (`false`) only when all have gone.
    async fn put_in(&self, turn: &mut Turn, batch: Batch, mut sent: bool) -> bool {
        let mut pause = Duration::from_millis(20);
        // Kept there, not here: dropped in the middle, this leaves the question to the next one.
        turn.unresolved = Some(batch);
        loop {
            match self.attempt(turn, &mut sent).await {
                Ok(true) => return true,
                // Lost against another client: again, but not all at the same moment.
                Ok(false) => {
                    tokio::time::sleep(Duration::from_micros(random(1_500))).await;
                    continue;
                }
                Err(error) if error.is_retryable() => {
                    if self.dismiss(turn) {
                        return false;
                    }
                    tracing::debug!(%error, "an enqueue was not answered, looking whether it landed");
                }
                Err(error) => {
                    self.refused(turn, &error);
                    return true;
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Tells those who were let go of that the store does not answer; says whether nobody is left.
    fn dismiss(&self, turn: &mut Turn) -> bool {
        let batch = turn.unresolved.as_mut();
        let mut left = false;
        for request in batch.into_iter().flat_map(|batch| &mut batch.requests) {
            if request.ask.is_withdrawn() {
                request.tell(Err(unknown()));
            }
            left |= request.done.as_ref().is_some_and(|done| !done.is_closed());
        }
        let mut waiting = self.waiting();
        waiting.retain_mut(|request| {
            let stays = !request.ask.is_withdrawn();
            if !stays {
                request.tell(Err(unknown().with_effect(Effect::None)));
            }
            stays
        });
        !left && waiting.is_empty()
    }

    /// One transaction; `true` once the batch is settled.
    async fn attempt(&self, turn: &mut Turn, sent: &mut bool) -> Result<bool> {
        let Some(batch) = &turn.unresolved else {
            return Ok(true);
        };
        let leases = batch.leases();
        if *sent && self.resolve(turn, &leases).await? {
            return Ok(true);
        }
        let Some(batch) = &turn.unresolved else {
            return Ok(true);
        };
        let items = batch.items();
        if items.is_empty() {
            self.settle(turn);
            return Ok(true);
        }
        let ids: Vec<&str> = items.iter().filter_map(|(_, _, id)| *id).collect();
        let id_keys: Vec<String> = ids.iter().map(|id| self.keys.id(id)).collect();
        let ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
        let (unchanged, mut ops, mut tail) = turn.tail.append(&self.keys, items);
        let writers = leases
            .iter()
            .map(|lease| (self.keys.writer(*lease), *lease));
        ops.extend(writers.map(|(key, lease)| put(key, batch.name.as_str(), lease)));
        let compares =
            std::iter::once(unchanged).chain(id_keys.iter().map(|id| absent(id.as_str())));
        let writers = leases.iter().map(|lease| get(self.keys.writer(*lease)));
        let reads: Vec<_> = std::iter::once(get(self.keys.tail()))
            .chain(writers)
            .chain(id_keys.iter().map(|id| get(id.as_str())))
            .collect();
        let txn = Txn::new()
            .when(compares.collect::<Vec<_>>())
            .and_then(ops)
            .or_else(reads);
        *sent = true;
        let answer = self.wire.call(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let answer = match answer.await {
            Err(error) if error.effect() == Effect::None => {
                *sent = false;
                return Err(error);
            }
            answer => answer?,
        };
        if answer.succeeded() {
            tail.changed = answer.header().map_or(0, |header| header.revision());
            turn.tail = tail;
            self.settle(turn);
            return Ok(true);
        }
        let mut found = ranges(answer).into_iter();
        turn.tail = Tail::read(&found.next().unwrap_or_default().0);
        // An earlier request of this very batch may be what moved the tail.
        if self.landed(turn, found.by_ref().take(leases.len())) {
            self.settle(turn);
            return Ok(true);
        }
        let known = ids
            .into_iter()
            .zip(found)
            .filter(|(_, (kvs, _))| !kvs.is_empty());
        if let Some(batch) = &mut turn.unresolved {
            batch.known_ids.extend(known.map(|(id, _)| id));
        }
        Ok(false)
    }

    /// Whether one of the writers' keys names the batch.
    fn landed(
        &self,
        turn: &Turn,
        mut writers: impl Iterator<Item = (Vec<etcd_client::proto::PbKeyValue>, bool)>,
    ) -> bool {
        let name = turn.unresolved.as_ref().map(|batch| batch.name.as_bytes());
        writers.any(|(kvs, _)| kvs.first().map(|kv| &*kv.value) == name && name.is_some())
    }

    /// Finds out whether the batch landed, and where the tail is.
    async fn resolve(&self, turn: &mut Turn, leases: &[i64]) -> Result<bool> {
        let reads: Vec<_> = std::iter::once(get(self.keys.tail()))
            .chain(leases.iter().map(|lease| get(self.keys.writer(*lease))))
            .collect();
        let answer = self.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), Txn::new().and_then(reads.clone()));
            async move { kv.txn(txn).await }
        });
        let mut found = ranges(answer.await?).into_iter();
        turn.tail = Tail::read(&found.next().unwrap_or_default().0);
        let landed = self.landed(turn, found);
        if landed {
            self.settle(turn);
        }
        Ok(landed)
    }

    fn settle(&self, turn: &mut Turn) {
        if let Some(batch) = turn.unresolved.take() {
            batch.finish(|| Ok(()));
        }
    }

    /// The store refused the batch for good: most likely for one session whose lease has ended.
    fn refused(&self, turn: &mut Turn, error: &Error) {
        let Some(batch) = turn.unresolved.take() else {
            return;
        };
        let sessions = batch.leases().len();
        if sessions == 1 {
            let kind = error.kind();
            return batch.finish(|| Err(copy(kind, error)));
        }
        // Each session by itself, from the front: none shares another's fate.
        let mut by_lease: HashMap<i64, Vec<Request>> = HashMap::new();
        for request in batch.requests {
            by_lease
                .entry(request.session.lease)
                .or_default()
                .push(request);
        }
        for (number, (_, requests)) in by_lease.into_iter().enumerate() {
            let mut waiting = self.waiting();
            if number == 0 {
                drop(waiting);
                let name = format!("{:x}", requests.first().map_or(0, |it| it.nonce));
                turn.unresolved = Some(Batch {
                    name,
                    requests,
                    known_ids: HashSet::new(),
                });
            } else {
                for request in requests.into_iter().rev() {
                    waiting.push_front(request);
                }
            }
        }
    }
}

/// What an item takes of a request.
fn size(keys: &Keys, item: &Item) -> usize {
    let id = item
        .get_id()
        .map_or(0, |id| 6 * id.as_str().len() + keys.id("").len());
    item.value().len() + keys.item((0, 0), None).len() + id + 64
}

fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// An error for each of those who share a request.
pub(super) fn copy(kind: ErrorKind, error: &Error) -> Error {
    match error.loss() {
        Some(reason) => Error::lost(reason),
        None => Error::new(kind, error.to_string()),
    }
    .with_effect(error.effect())
    .retryable(false)
}

fn unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "whether the item was accepted is unknown",
    )
    .with_effect(Effect::Unknown)
}
