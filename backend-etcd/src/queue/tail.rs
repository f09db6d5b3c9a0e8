//! The producing side: how items get their numbers.
//!
//! The number in an item's key comes from one `tail` key, compared and changed in the transaction
//! that puts the item there: so the order of keys is the order in which etcd accepted them. What
//! this client's producers want at the same time goes in one transaction; between clients the
//! comparison decides, and who loses tries again from what the winner left.
//!
//! A transaction without an answer may land later. It compares the tail, so it can land only as
//! long as nothing else has; and each batch leaves its name in its writers' own keys, in the same
//! transaction. So it is sent again as it was: of two with the same comparison one lands, and the
//! other reads the name, or that a stranger moved the tail, after which neither can land.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, Txn, TxnOp, TxnResponse};
use tenure_core::{Effect, Error, ErrorKind, Item, Result};
use tokio::sync::oneshot;

use super::hub::{FIRST_PAUSE, LAST_PAUSE};
use super::keys::{Keys, Place, absent, changed_at, get, look, put};
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
    /// Whether its caller does not insist any more.
    withdrawn: Box<dyn Fn() -> bool + Send>,
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
    /// Whether a request of it went unanswered.
    doubtful: bool,
}

impl Batch {
    fn new(requests: Vec<Request>, doubtful: bool) -> Self {
        Self {
            name: format!("{:x}", requests.first().map_or(0, |it| it.nonce)),
            requests,
            known_ids: HashSet::new(),
            doubtful,
        }
    }

    fn is_wanted(&self) -> bool {
        let mut waiting = self.requests.iter().flat_map(|request| &request.done);
        waiting.any(|done| !done.is_closed())
    }

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

/// A batch that is on its way.
struct Sent {
    /// The tail after it.
    tail: Tail,
    leases: usize,
    ids: Vec<String>,
}

/// What this client knows of the tail, and the batch that is to be put behind it.
#[derive(Default)]
struct Turn {
    tail: Tail,
    /// Until it is known to have landed, or refused.
    batch: Option<Batch>,
    sent: Option<Sent>,
    /// Not before: the store did not answer, or another client was faster.
    due: Option<Instant>,
    pause: Duration,
}

impl Turn {
    /// Whether somebody waits for the batch.
    fn is_wanted(&self) -> bool {
        self.batch.as_ref().is_some_and(Batch::is_wanted)
    }

    fn settle(&mut self) {
        if let Some(batch) = self.batch.take() {
            batch.finish(|| Ok(()));
        }
    }

    /// Whether one of the writers' keys names the batch.
    fn landed(&self, mut writers: impl Iterator<Item = (Vec<PbKeyValue>, bool)>) -> bool {
        let name = self.batch.as_ref().map(|batch| batch.name.as_bytes());
        writers.any(|(kvs, _)| kvs.first().map(|kv| &*kv.value) == name && name.is_some())
    }
}

/// A part of a request.
pub(super) struct Part {
    pub(super) txn: Txn,
    /// Comparisons or operations, whichever are more.
    pub(super) size: usize,
}

/// The producers of one queue on one client. They send nothing: the [lane](super::lane) asks for
/// what is to go with its next request, and says what became of it.
pub(super) struct Producers {
    keys: Keys,
    waiting: Mutex<VecDeque<Request>>,
    turn: Mutex<Turn>,
}

/// Takes back what was not sent when its caller goes.
pub(super) struct Queued<'a>(&'a Producers, u64);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting().retain(|request| request.nonce != self.1);
    }
}

impl Producers {
    pub(super) fn new(keys: Keys) -> Self {
        Self {
            keys,
            waiting: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// Whether nobody waits.
    pub(super) fn is_idle(&self) -> bool {
        self.waiting().is_empty() && !self.turn().is_wanted()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Request>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `items` put in with one of the next requests.
    pub(super) fn join(
        &self,
        session: &Arc<EtcdSession>,
        nonce: u64,
        withdrawn: impl Fn() -> bool + Send + 'static,
        items: &[Item],
    ) -> Result<(oneshot::Receiver<Result<()>>, Queued<'_>)> {
        let bytes = items.iter().map(|item| size(&self.keys, item)).sum();
        if bytes > MOST_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "a batch of {bytes} bytes is above etcd's limit for one request (1.5 MiB): split it"
                ),
            ));
        }
        let (done, told) = oneshot::channel();
        self.waiting().push_back(Request {
            nonce,
            session: Arc::clone(session),
            withdrawn: Box::new(withdrawn),
            items: items.to_vec(),
            bytes,
            done: Some(done),
        });
        Ok((told, Queued(self, nonce)))
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
        (!requests.is_empty()).then(|| Batch::new(requests, false))
    }

    /// Until when nothing is to be sent.
    pub(super) fn due(&self) -> Option<Instant> {
        self.turn().due
    }

    /// What is to be sent now, if anything. [`conclude`](Self::conclude) is told the answer; who
    /// does not come so far leaves a batch of which nothing is known.
    pub(super) fn prepare(&self) -> Option<Part> {
        let mut turn = self.turn();
        let turn = &mut *turn;
        if turn.due.is_some_and(|due| due > Instant::now()) {
            return None;
        }
        turn.due = None;
        if let (Some(_), Some(batch)) = (turn.sent.take(), &mut turn.batch) {
            batch.doubtful = true;
        }
        if !turn.is_wanted() {
            // What comes next moves the tail, or finds it moved.
            turn.batch = None;
        }
        let items = loop {
            if turn.batch.is_none() {
                turn.batch = self.next_batch();
            }
            let items = turn.batch.as_ref()?.items();
            if !items.is_empty() {
                break items;
            }
            turn.settle();
        };
        let batch = turn.batch.as_ref()?;
        let leases = batch.leases();
        let ids: Vec<String> = items
            .iter()
            .filter_map(|(_, _, id)| id.map(str::to_owned))
            .collect();
        let id_keys: Vec<String> = ids.iter().map(|id| self.keys.id(id)).collect();
        let (unchanged, mut ops, tail) = turn.tail.append(&self.keys, items);
        let writers = leases
            .iter()
            .map(|lease| (self.keys.writer(*lease), *lease));
        ops.extend(writers.map(|(key, lease)| put(key, batch.name.as_str(), lease)));
        let compares: Vec<_> = std::iter::once(unchanged)
            .chain(id_keys.iter().map(|id| absent(id.as_str())))
            .collect();
        let writers = leases.iter().map(|lease| get(self.keys.writer(*lease)));
        let reads: Vec<_> = std::iter::once(get(self.keys.tail()))
            .chain(writers)
            .chain(id_keys.iter().map(|id| look(id.as_str())))
            .collect();
        let size = compares.len().max(ops.len()).max(reads.len());
        turn.sent = Some(Sent {
            tail,
            leases: leases.len(),
            ids,
        });
        let txn = Txn::new().when(compares).and_then(ops).or_else(reads);
        Some(Part { txn, size })
    }

    /// Takes note of the answer to what was [prepared](Self::prepare).
    pub(super) fn conclude(&self, answer: Result<TxnResponse>) {
        let mut turn = self.turn();
        let turn = &mut *turn;
        let Some(sent) = turn.sent.take() else {
            return;
        };
        match answer {
            Ok(answer) => {
                turn.pause = Duration::ZERO;
                if answer.succeeded() {
                    let changed = answer.header().map_or(0, |header| header.revision());
                    turn.tail = Tail {
                        changed,
                        ..sent.tail
                    };
                    return turn.settle();
                }
                let mut found = ranges(answer).into_iter();
                turn.tail = Tail::read(&found.next().unwrap_or_default().0);
                // An earlier request of this very batch may be what moved the tail.
                if turn.landed(found.by_ref().take(sent.leases)) {
                    return turn.settle();
                }
                let known = sent.ids.into_iter().zip(found);
                let known = known.filter(|(_, (kvs, _))| !kvs.is_empty());
                if let Some(batch) = &mut turn.batch {
                    batch.known_ids.extend(known.map(|(id, _)| id));
                }
                // Lost against another client: again, but not all at the same moment.
                turn.due = Some(Instant::now() + Duration::from_micros(random(1_500)));
            }
            Err(error) if error.is_retryable() => {
                tracing::debug!(error = %error.chain(), "an enqueue was not answered: it is repeated");
                if let Some(batch) = &mut turn.batch {
                    batch.doubtful |= error.effect() != Effect::None;
                }
                self.dismiss(turn);
                turn.pause = (turn.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
                turn.due = Some(Instant::now() + turn.pause);
            }
            Err(error) => self.refused(turn, &error),
        }
    }

    /// Tells those who were let go of that the store does not answer.
    fn dismiss(&self, turn: &mut Turn) {
        let requests = turn.batch.as_mut().map(|batch| &mut batch.requests);
        for request in requests.into_iter().flatten() {
            if (request.withdrawn)() {
                request.tell(Err(unknown()));
            }
        }
        self.waiting().retain_mut(|request| {
            let stays = !(request.withdrawn)();
            if !stays {
                request.tell(Err(unknown().with_effect(Effect::None)));
            }
            stays
        });
    }

    /// The store refused the batch for good: most likely for one session whose lease has ended.
    fn refused(&self, turn: &mut Turn, error: &Error) {
        let Some(batch) = turn.batch.take() else {
            return;
        };
        let doubtful = batch.doubtful || error.effect() != Effect::None;
        // That a lease is gone etcd finds where the comparisons have held: an earlier request of
        // the batch, which would have put its key on the same lease, has not landed and will not.
        let certain = !doubtful || error.kind() == ErrorKind::Lost;
        if batch.leases().len() == 1 || !certain {
            // With its session, a writer's key is gone: of an earlier request nothing is known.
            let effect = if doubtful {
                Effect::Unknown
            } else {
                Effect::None
            };
            return batch.finish(|| Err(copy(error.kind(), error).with_effect(effect)));
        }
        // Each session by itself, from the front: none shares another's fate.
        let mut by_lease: Vec<(i64, Vec<Request>)> = Vec::new();
        for request in batch.requests {
            let lease = request.session.lease;
            match by_lease.iter_mut().find(|(other, _)| *other == lease) {
                Some((_, requests)) => requests.push(request),
                None => by_lease.push((lease, vec![request])),
            }
        }
        let mut by_lease = by_lease.into_iter().map(|(_, requests)| requests);
        turn.batch = by_lease.next().map(|first| Batch::new(first, doubtful));
        let mut waiting = self.waiting();
        for request in by_lease
            .rev()
            .flat_map(|requests| requests.into_iter().rev())
        {
            waiting.push_front(request);
        }
    }

    /// Tells everybody of `error`, after which nothing is known.
    pub(super) fn fail(&self, error: impl Fn() -> Error) {
        let mut turn = self.turn();
        turn.sent = None;
        let batch = turn.batch.take();
        let requests = batch.into_iter().flat_map(|batch| batch.requests);
        for mut request in requests.chain(self.waiting().drain(..)) {
            request.tell(Err(error()));
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
        None => Error::new(kind, error.chain().to_string()),
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
