//! The way of acknowledgements and claims to the store: one request of this client and queue at a
//! time, with all that is wanted at that moment.
//!
//! A consumer acknowledges and then takes the next item, so that with several of them some
//! acknowledge while others take. What comes while a request is on its way waits for its answer,
//! and goes together: that is one request for many, and answers everybody at the same moment.
//!
//! Each acknowledgement, and all claims together, are a transaction of their own *inside* the
//! request, with their own comparisons: one that fails fails alone. etcd makes all comparisons
//! before it changes anything, so that none sees what another does. What the store refuses as a
//! whole (a lease has ended, there is no room for what is put) is sent again one by one.
//!
//! A request without an answer may land late. For an acknowledgement that is no harm: it compares
//! its own claim, and its consumer was told that the outcome is unknown. The claims have a fence
//! (see `hub.rs`), and it stands inside the request, too.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use etcd_client::proto::PbTxnOpResponse;
use etcd_client::{Txn, TxnOp, TxnResponse};
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::{Notify, oneshot};

use super::keys::Place;
use super::tail::copy;
use crate::client::Wire;

/// Acknowledgements in one request.
const ACKS: usize = 24;
/// What etcd takes in one transaction, that which stands inside it included.
const OPERATIONS: usize = 128;

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
    wire: Arc<Wire>,
    waiting: Mutex<VecDeque<Ending>>,
    numbers: AtomicU64,
    /// Held while a request is on its way.
    taken: tokio::sync::Mutex<()>,
    /// Whether claims are about to be sent: they take along what waits.
    claiming: AtomicBool,
    /// Whether the task that sends what waits is there; and the news that it has gone.
    at_work: AtomicBool,
    gone: Notify,
}

/// The task's place. Given up when the task ends, however it does.
struct Post(Arc<Lane>);

impl Drop for Post {
    fn drop(&mut self) {
        self.0.at_work.store(false, Ordering::Release);
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
    _claiming: Claiming<'a>,
}

struct Claiming<'a>(&'a AtomicBool);

impl Drop for Claiming<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Lane {
    pub(super) fn new(wire: Arc<Wire>) -> Self {
        Self {
            wire,
            waiting: Mutex::default(),
            numbers: AtomicU64::new(0),
            taken: tokio::sync::Mutex::default(),
            claiming: AtomicBool::new(false),
            at_work: AtomicBool::new(false),
            gone: Notify::new(),
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.waiting().is_empty() && !self.at_work.load(Ordering::Acquire)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Ending>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends `txn`, which ends the delivery at `place`; says whether its comparison held.
    pub(super) async fn end(self: &Arc<Self>, place: Place, txn: Txn) -> Result<bool> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let (done, mut told) = oneshot::channel();
        self.waiting().push_back(Ending {
            number,
            place,
            txn,
            done,
        });
        let _queued = Queued(self, number);
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

    /// Sends what waits, until nothing does.
    async fn work(&self) {
        let mut let_pass = None;
        loop {
            let taken = self.taken.lock().await;
            settle_down().await;
            let Some(first) = self.waiting().front().map(|ending| ending.number) else {
                return;
            };
            // Claims stand behind us, and take along what waits; but not for ever in vain.
            if self.claiming.load(Ordering::Acquire) && let_pass != Some(first) {
                let_pass = Some(first);
                drop(taken);
                tokio::task::yield_now().await;
                continue;
            }
            let endings = self.next(ACKS, &HashSet::new());
            self.send_all(endings, None).await;
        }
    }

    /// The lane for claims, once no request is on its way.
    pub(super) async fn enter(&self) -> Passage<'_> {
        self.claiming.store(true, Ordering::Release);
        let claiming = Claiming(&self.claiming);
        let taken = self.taken.lock().await;
        settle_down().await;
        Passage {
            lane: self,
            _taken: taken,
            _claiming: claiming,
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

    /// Sends `endings` together with `claims`, and answers the latter.
    async fn send_all(
        &self,
        endings: Vec<Ending>,
        claims: Option<Txn>,
    ) -> Option<Result<TxnResponse>> {
        let mut parts: Vec<Txn> = endings.iter().map(|ending| ending.txn.clone()).collect();
        let has_claims = claims.is_some();
        parts.extend(claims);
        let mut answers = self.send_parts(parts).await.into_iter();
        for ending in endings {
            let answer = answers.next().unwrap_or_else(|| Err(unknown()));
            // It may have left.
            let _ = ending.done.send(answer.map(|answer| answer.succeeded()));
        }
        has_claims.then(|| answers.next().unwrap_or_else(|| Err(unknown())))
    }

    /// Sends `parts` in one request; the answer to each.
    async fn send_parts(&self, parts: Vec<Txn>) -> Vec<Result<TxnResponse>> {
        if let [part] = &parts[..] {
            return vec![self.send(part).await];
        }
        let together = parts.iter().cloned().map(TxnOp::txn).collect::<Vec<_>>();
        match self.send(&Txn::new().and_then(together)).await {
            Ok(answer) => split(answer),
            // For what one of them wants: each by itself, none shares another's fate.
            Err(error) if error.effect() == Effect::None => {
                let mut answers = Vec::new();
                for part in &parts {
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

    pub(super) async fn send(&self, txn: &Txn) -> Result<TxnResponse> {
        let sending = self.wire.call(|client| {
            // The client's own limit of 4 MiB is less than a batch of values may have.
            let mut kv = client.kv_client().max_decoding_message_size(usize::MAX);
            let txn = txn.clone();
            async move { kv.txn(txn).await }
        });
        sending.await
    }
}

impl Passage<'_> {
    /// Sends `claims` of `places`, of `size` comparisons or operations, and takes along as much of
    /// what waits as fits.
    pub(super) async fn send(
        self,
        claims: Txn,
        size: usize,
        places: &HashSet<Place>,
    ) -> Result<TxnResponse> {
        let room = OPERATIONS.saturating_sub(size + 1).min(ACKS);
        let endings = self.lane.next(room, places);
        let answer = self.lane.send_all(endings, Some(claims)).await;
        answer.unwrap_or_else(|| Err(unknown()))
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
