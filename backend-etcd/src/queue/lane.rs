//! The way to the store of what this client does with a queue: one request at a time, with all
//! that is wanted at that moment. Enqueues, acknowledgements and claims go together.
//!
//! A consumer acknowledges and then takes the next item, so that with several of them some
//! acknowledge while others take. What comes while a request is on its way waits for its answer,
//! and goes together: that is one request for many, and answers everybody at the same moment. A
//! request costs etcd far more than an operation in it, most of all the `fsync`.
//!
//! Each acknowledgement, all claims together, and all enqueues together, are a transaction of their
//! own *inside* the request, with their own comparisons: one that fails fails alone. etcd makes all
//! comparisons before it changes anything, so that none sees what another does. What the store
//! refuses as a whole (a lease has ended, there is too much of it) is sent again one by one.
//!
//! A request without an answer may land late. For an acknowledgement that is no harm: it compares
//! its own claim, and its consumer was told that the outcome is unknown. The claims have a fence
//! (see `hub.rs`), the enqueues the tail (see `tail.rs`), and both stand inside the request, too.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Txn, TxnOp, TxnResponse};
use tenure_core::backend::{Ask, async_trait};
use tenure_core::{Effect, Error, ErrorKind, Item, Result};
use tokio::sync::{Notify, oneshot};

use super::keys::{Keys, Place, put};
use super::tail::{Producers, copy};
use super::view::View;
use crate::client::Wire;
use crate::session::EtcdSession;

/// Acknowledgements in one request.
const ACKS: usize = 24;
/// What etcd takes in one transaction, that which stands inside it included.
const OPERATIONS: usize = 128;
/// What is about to be sent waits no longer than this for claims that are about to be.
const FOR_CLAIMS: Duration = Duration::from_millis(1);
/// After the store had no room for a request, enqueues go by themselves for so long: what makes
/// room is let through.
const FULL: Duration = Duration::from_secs(10);

/// What takes a request to the store.
#[async_trait]
pub(super) trait Carrier: Send + Sync {
    async fn carry(&self, txn: Txn) -> Result<TxnResponse>;
}

#[async_trait]
impl Carrier for Arc<Wire> {
    async fn carry(&self, txn: Txn) -> Result<TxnResponse> {
        let sending = self.call(|client| {
            // The client's own limit of 4 MiB is less than a batch of values may have.
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        sending.await
    }
}

/// The end of a delivery, by a transaction that compares its claim.
struct Ending {
    number: u64,
    place: Place,
    txn: Txn,
    /// Told whether the comparison held.
    done: oneshot::Sender<Result<bool>>,
}

/// The lane of one queue on one client.
pub(super) struct Lane {
    carrier: Box<dyn Carrier>,
    producers: Producers,
    keys: Keys,
    waiting: Mutex<VecDeque<Ending>>,
    /// Somebody has come who waits.
    joined: Notify,
    numbers: AtomicU64,
    /// Held while a request is on its way.
    taken: tokio::sync::Mutex<()>,
    /// How many requests were sent.
    departures: AtomicU64,
    /// Until when the store is taken for full.
    full: Mutex<Option<Instant>>,
    /// Tells whether claims are about to be sent; and the news that they were.
    view: Arc<View>,
    claimed: Notify,
    /// Whether the task that sends what waits is there; and the news that it has gone.
    at_work: AtomicBool,
    gone: Notify,
}

/// The task's place. Given up when the task ends, however it does.
struct Post(Arc<Lane>);

impl Drop for Post {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
        if std::thread::panicking() {
            // The next one would, too.
            let error = || {
                let error = Error::new(ErrorKind::Internal, "the work at this queue panicked");
                error.with_effect(Effect::Unknown)
            };
            self.0.producers.fail(error);
            for ending in self.0.waiting().drain(..) {
                let _ = ending.done.send(Err(error()));
            }
        }
        // Who came too late to be seen, or is left behind by a runtime that ends, sets another to
        // work.
        self.0.gone.notify_waiters();
    }
}

/// Takes back what was not sent when its caller goes.
struct Queued<'a>(&'a Lane, u64);

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.waiting().retain(|ending| ending.number != self.1);
    }
}

/// The lane, for claims.
pub(super) struct Passage<'a> {
    lane: &'a Lane,
    _taken: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for Passage<'_> {
    fn drop(&mut self) {
        self.lane.claimed.notify_waiters();
    }
}

impl Lane {
    pub(super) fn new(carrier: impl Carrier + 'static, keys: Keys, view: Arc<View>) -> Self {
        Self {
            carrier: Box::new(carrier),
            producers: Producers::new(keys.clone()),
            keys,
            waiting: Mutex::default(),
            joined: Notify::new(),
            numbers: AtomicU64::new(0),
            taken: tokio::sync::Mutex::default(),
            departures: AtomicU64::new(0),
            full: Mutex::default(),
            view,
            claimed: Notify::new(),
            at_work: AtomicBool::new(false),
            gone: Notify::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        !self.has_work() && !self.at_work.load(Ordering::Acquire)
    }

    fn has_work(&self) -> bool {
        !self.waiting().is_empty() || !self.producers.is_idle()
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Ending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `items` in, together with what others of this client do now.
    pub(super) async fn enqueue(
        self: &Arc<Self>,
        session: &Arc<EtcdSession>,
        ask: &Ask,
        items: &[Item],
    ) -> Result<()> {
        let withdrawn = {
            let ask = ask.clone();
            move || ask.is_withdrawn()
        };
        self.put_in(session, ask.nonce(), withdrawn, items).await
    }

    async fn put_in(
        self: &Arc<Self>,
        session: &Arc<EtcdSession>,
        nonce: u64,
        withdrawn: impl Fn() -> bool + Send + 'static,
        items: &[Item],
    ) -> Result<()> {
        let (told, _queued) = self.producers.join(session, nonce, withdrawn, items)?;
        self.answer(told).await
    }

    /// Sends `txn`, which ends the delivery at `place`; says whether its comparison held.
    pub(super) async fn end(self: &Arc<Self>, place: Place, txn: Txn) -> Result<bool> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (done, told) = oneshot::channel();
        self.waiting().push_back(Ending {
            number,
            place,
            txn,
            done,
        });
        let _queued = Queued(self, number);
        self.answer(told).await
    }

    /// What somebody is told who has just joined those who wait.
    async fn answer<T>(self: &Arc<Self>, mut told: oneshot::Receiver<Result<T>>) -> Result<T> {
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
            return self.joined.notify_one();
        }
        let post = Post(Arc::clone(self));
        tokio::spawn(async move { post.0.work().await });
    }

    /// Sends what waits, until nothing does.
    async fn work(&self) {
        let mut let_pass = None;
        loop {
            let taken = self.taken.lock().await;
            settle_down().await;
            if !self.has_work() {
                return;
            }
            // Claims are to come, and take along what waits; but nobody waits long for them.
            let departures = self.departures.load(Ordering::Relaxed);
            if let_pass != Some(departures) && self.view.lock().has_claims() {
                let_pass = Some(departures);
                let mut claimed = std::pin::pin!(self.claimed.notified());
                claimed.as_mut().enable();
                drop(taken);
                let _ = tokio::time::timeout(FOR_CLAIMS, claimed).await;
                continue;
            }
            if self.depart(None).await.is_nothing() {
                drop(taken);
                // All that waits is what is to wait.
                let due = self.producers.due().unwrap_or_else(Instant::now);
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = self.joined.notified() => {}
                }
            }
        }
    }

    /// The lane for claims, once no request is on its way.
    pub(super) async fn enter(&self) -> Passage<'_> {
        let taken = self.taken.lock().await;
        settle_down().await;
        Passage {
            lane: self,
            _taken: taken,
        }
    }

    /// The endings that are sent now: one for each place, and none for `places`, of which another
    /// part of the same request writes.
    fn next(&self, most: usize, places: &HashSet<Place>) -> Vec<Ending> {
        let mut waiting = self.waiting();
        let mut places = places.clone();
        let (mut next, mut later) = (Vec::new(), VecDeque::new());
        while let Some(ending) = waiting.pop_front() {
            if next.len() < most && places.insert(ending.place) {
                next.push(ending);
            } else {
                later.push_back(ending);
            }
        }
        *waiting = later;
        next
    }

    /// Sends what waits together with `claims`.
    async fn depart(&self, claims: Option<Claims<'_>>) -> Departed {
        let batch = self.producers.prepare();
        let none = HashSet::new();
        let places = claims.as_ref().map_or(&none, |claims| claims.places);
        let size = claims.as_ref().map_or(0, |claims| claims.size);
        let size = size.max(batch.as_ref().map_or(0, |batch| batch.size));
        // Beside the acknowledgements: the other two, and what says that there must be room.
        let endings = self.next(OPERATIONS.saturating_sub(size + 3).min(ACKS), places);
        if endings.is_empty() && batch.is_none() && claims.is_none() {
            return Departed::Nothing;
        }
        self.departures.fetch_add(1, Ordering::Relaxed);
        let (has_batch, has_claims) = (batch.is_some(), claims.is_some());
        let mut parts: Vec<Txn> = endings.iter().map(|ending| ending.txn.clone()).collect();
        parts.extend(claims.map(|claims| claims.txn));
        let mut answers = match batch {
            Some(batch) if !parts.is_empty() && self.is_full() => {
                let mut answers = self.send_parts(parts, false).await;
                answers.push(self.send(batch.txn).await);
                answers
            }
            batch => {
                parts.extend(batch.map(|batch| batch.txn));
                self.send_parts(parts, has_batch).await
            }
        }
        .into_iter();
        let mut next = || answers.next().unwrap_or_else(|| Err(unknown()));
        for ending in endings {
            // It may have left.
            let _ = ending.done.send(next().map(|answer| answer.succeeded()));
        }
        let claimed = has_claims.then(&mut next);
        if has_batch {
            self.producers.conclude(next());
        }
        claimed.map_or(Departed::Others, Departed::Claims)
    }

    /// Sends `parts` in one request; the answer to each. The last may be an enqueue.
    async fn send_parts(&self, parts: Vec<Txn>, enqueue: bool) -> Vec<Result<TxnResponse>> {
        if let [part] = &parts[..] {
            return vec![self.send(part.clone()).await];
        }
        let mut together = parts.iter().cloned().map(TxnOp::txn).collect::<Vec<_>>();
        if enqueue {
            // etcd does not count what is put inside: without this, a full store would take it.
            together.push(put(self.keys.room(), "", 0));
        }
        match self.send(Txn::new().and_then(together)).await {
            Ok(answer) => split(answer),
            // For what one of them wants: each by itself, none shares another's fate.
            Err(error) if error.effect() == Effect::None && !error.is_retryable() => {
                let mut answers = Vec::new();
                for part in parts {
                    answers.push(self.send(part).await);
                }
                answers
            }
            Err(error) => {
                let again = error.is_retryable();
                let each = |_| Err(copy(error.kind(), &error).retryable(again));
                parts.iter().map(each).collect()
            }
        }
    }

    pub(super) async fn send(&self, txn: Txn) -> Result<TxnResponse> {
        let answer = self.carrier.carry(txn).await;
        if let Err(error) = &answer
            && (error.kind(), error.is_retryable()) == (ErrorKind::Unavailable, false)
        {
            *self.full.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + FULL);
        }
        answer
    }

    fn is_full(&self) -> bool {
        let full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        full.is_some_and(|until| until > Instant::now())
    }
}

/// Claims, as a part of a request.
struct Claims<'a> {
    txn: Txn,
    /// Comparisons or operations, whichever are more.
    size: usize,
    places: &'a HashSet<Place>,
}

/// What a departure came to.
enum Departed {
    /// There was nothing to send now.
    Nothing,
    /// The answer to the claims.
    Claims(Result<TxnResponse>),
    /// There were none.
    Others,
}

impl Departed {
    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

impl Passage<'_> {
    /// Sends the claims `txn` of `places`, of `size` comparisons or operations, and takes along as
    /// much of what waits as fits.
    pub(super) async fn send(
        self,
        txn: Txn,
        size: usize,
        places: &HashSet<Place>,
    ) -> Result<TxnResponse> {
        let claims = Claims { txn, size, places };
        match self.lane.depart(Some(claims)).await {
            Departed::Claims(answer) => answer,
            _ => Err(unknown()),
        }
    }
}

/// Lets those go first who were answered a moment ago: they come with the next they want, and who
/// misses a request waits for all of it. Of no duration, and of no clock; more turns gain nothing.
pub(super) async fn settle_down() {
    tokio::task::yield_now().await;
}

/// The answers to the parts of a request.
fn split(answer: TxnResponse) -> Vec<Result<TxnResponse>> {
    let header = answer.0.header;
    let parts = answer.0.responses.into_iter();
    let parts = parts.map(|operation| match operation.response {
        Some(PbTxnOpResponse::ResponseTxn(mut inner)) => {
            // The request has one revision, which only the answer to all of it says.
            inner.header = header;
            Ok(TxnResponse(inner))
        }
        _ => Err(unknown()),
    });
    parts.collect()
}

fn unknown() -> Error {
    Error::new(
        ErrorKind::Unavailable,
        "whether the store did it is unknown",
    )
    .with_effect(Effect::Unknown)
}

#[cfg(test)]
mod tests;
