//! Sends departures one by one when they come alone, and together when they come together.

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::departures::End;
use super::in_flight::InFlight;
use super::renewal::renewal_period;
use super::retry::{Backoff, RetryScope, pause, retry};
use super::session::SessionCore;
use super::slots::{self, MarkerLease, Slots};
use crate::backend::{EndOutcome, Marker};
use crate::error::{Effect, Error, ErrorKind, LossReason, Result};
use crate::sync::Mutex;

/// The most departures in one message.
const LARGEST_BATCH: usize = 500;

/// The most messages that keep their marker while their effect may be unknown. With the tasks that send failed departures again,
/// they leave a slot to the task that sends the waiting departures, and one to a caller that sends in place.
const KEEPING: usize = slots::DEPARTURES as usize / 4;

/// The most tasks that send failed departures again.
const RECOVERING: usize = slots::DEPARTURES as usize / 2;

/// The most failures of one such task between two pauses.
const MOST_PROBES: u32 = 64;

/// Returns the error of a departure that found nothing left, after a message without an answer.
fn in_doubt() -> Error {
    let message = "the store's answer was lost: the holding ended by this call, or was lost before";
    Error::new(ErrorKind::Unavailable, message).with_effect(Effect::Unknown)
}

type Message = dyn Fn(Marker, Arc<[End]>) -> BoxFuture<'static, Result<Vec<EndOutcome>>> + Send + Sync;

/// Sends departures of one sort, together where they come together.
///
/// A message that fails holds up no departure that comes later. As long as its effect may be unknown, a task of its own repeats it
/// under its own marker, by which the store answers as it did the first time. After a known failure, or a third of the TTL, or if
/// other messages keep their markers, its departures are sent again with others that failed, under another marker each time: a
/// departure changes nothing if it is repeated, and only its answer is in doubt then.
///
/// These are probed: messages grow from one departure to a batch while they succeed, and shrink when they fail. After 1, 2, 4, and
/// at last 64 failures there is a pause. So an outage costs at most 4 * 64 messages a pause, however many departures wait, and
/// then one message for each batch and log2(batch) more; and a departure that always fails holds up others for a few pauses.
pub(super) struct Batcher {
    message: Box<Message>,
    slots: Arc<Slots>,
    state: Mutex<State>,
}

struct State {
    waiting: Vec<QueuedEnd>,
    /// Whether a task sends the waiting departures.
    draining: bool,
    /// Whether a caller sends its own departure in place. It holds up no others: its task may not be polled.
    in_place: bool,
    /// How many messages whose effect may be unknown keep their marker.
    keeping: usize,
    /// The departures that failed, those that failed last at the end.
    failed: VecDeque<QueuedEnd>,
    /// How many tasks send these.
    recovering: usize,
}

struct QueuedEnd {
    end: End,
    /// The caller that waits for the answer.
    reply: Option<oneshot::Sender<Result<EndOutcome>>>,
    /// Whether a message without an answer may have ended it.
    in_doubt: bool,
}

impl QueuedEnd {
    fn new(end: End, reply: Option<oneshot::Sender<Result<EndOutcome>>>) -> Self {
        Self {
            end,
            reply,
            in_doubt: false,
        }
    }

    fn is_awaited(&self) -> bool {
        self.reply.as_ref().is_some_and(|reply| !reply.is_closed())
    }

    fn answer(&mut self, answer: Result<EndOutcome>) {
        if let Some(reply) = self.reply.take() {
            // The caller may have stopped waiting.
            let _ = reply.send(answer);
        }
    }

    /// Notes that its message failed. The caller gets a refusal, although the departure is tried again.
    fn failed(&mut self, error: &Error) {
        self.in_doubt |= error.effect() == Effect::Unknown;
        if !error.is_retryable() {
            let effect = if self.in_doubt { Effect::Unknown } else { Effect::None };
            self.answer(Err(
                Error::new(error.kind(), error.chain().to_string()).with_effect(effect)
            ));
        }
    }
}

fn ends(batch: &[QueuedEnd]) -> Arc<[End]> {
    batch.iter().map(|departure| departure.end.clone()).collect()
}

/// Answers departures after the last message with them.
fn settle(core: &SessionCore, batch: Vec<QueuedEnd>, answer: Result<Vec<EndOutcome>>) {
    let mut answer = answer.map(Vec::into_iter).map_err(|error| {
        // The session has ended in the store, and all that it had with it.
        core.loss().get().or(error.loss()).unwrap_or(LossReason::Revoked)
    });
    for mut departure in batch {
        core.registry
            .confirm_end(departure.end.request.nonce(), departure.end.token);
        let answer = match &mut answer {
            Ok(outcomes) => match outcomes.next() {
                Some(EndOutcome::Ended) => Ok(EndOutcome::Ended),
                _ if departure.in_doubt => Err(in_doubt()),
                _ => Ok(EndOutcome::NotHeld),
            },
            Err(reason) => Err(core.lost_holding(*reason)),
        };
        departure.answer(answer);
    }
}

impl Batcher {
    pub(super) fn new(
        sort: u16,
        message: impl Fn(Marker, Arc<[End]>) -> BoxFuture<'static, Result<Vec<EndOutcome>>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            message: Box::new(message),
            slots: Slots::of_departures(sort),
            state: Mutex::new(State {
                waiting: Vec::new(),
                draining: false,
                in_place: false,
                keeping: 0,
                failed: VecDeque::new(),
                recovering: 0,
            }),
        })
    }

    /// Sends `end` in the background.
    pub(super) fn send_later(self: &Arc<Self>, core: &Arc<SessionCore>, end: End) {
        self.push(core, QueuedEnd::new(end, None));
    }

    fn push(self: &Arc<Self>, core: &Arc<SessionCore>, departure: QueuedEnd) {
        let mut state = self.state.lock();
        state.waiting.push(departure);
        if !std::mem::replace(&mut state.draining, true) {
            drop(state);
            core.executor().spawn(Arc::clone(self).drain(Arc::clone(core)));
        }
    }

    /// Sends `end`, and waits for the answer. A dropped call goes on in the background.
    pub(super) async fn send(self: &Arc<Self>, core: &Arc<SessionCore>, end: End) -> Result<EndOutcome> {
        let (reply, answer) = oneshot::channel();
        let departure = QueuedEnd::new(end, Some(reply));
        let alone = {
            let mut state = self.state.lock();
            !state.draining && !std::mem::replace(&mut state.in_place, true)
        };
        if alone {
            let (batcher, on) = (Arc::clone(self), Arc::clone(core));
            let sending = async move {
                batcher.deliver(&on, vec![departure]).await;
                batcher.state.lock().in_place = false;
            };
            InFlight::new(core.executor(), sending).await;
        } else {
            self.push(core, departure);
        }
        answer.await.unwrap_or_else(|_| {
            let reason = core.loss().get().unwrap_or(LossReason::Closed);
            Err(core.lost_holding(reason))
        })
    }

    async fn drain(self: Arc<Self>, core: Arc<SessionCore>) {
        loop {
            let batch: Vec<_> = {
                let mut state = self.state.lock();
                if state.waiting.is_empty() {
                    state.draining = false;
                    return;
                }
                let size = state.waiting.len().min(LARGEST_BATCH);
                state.waiting.drain(..size).collect()
            };
            self.deliver(&core, batch).await;
        }
    }

    /// Sends a batch once.
    async fn deliver(self: &Arc<Self>, core: &Arc<SessionCore>, batch: Vec<QueuedEnd>) {
        let marker = self.slots.marker(&core.registry).await;
        let items = ends(&batch);
        match retry(core, RetryScope::InStore, |_| false, || self.attempt(&marker, &items)).await {
            Err(error) if error.kind() != ErrorKind::Lost => {
                let is_in_doubt = error.effect() == Effect::Unknown && error.is_retryable();
                // Without a caller that needs the answer, the marker is not worth its slot.
                if is_in_doubt && batch.iter().any(QueuedEnd::is_awaited) && self.keep_marker() {
                    let repeating = Arc::clone(self).repeat(Arc::clone(core), batch, items, marker);
                    core.executor().spawn(repeating);
                } else {
                    drop(marker);
                    self.fail(core, batch, &error);
                }
            }
            answer => settle(core, batch, answer),
        }
    }

    /// Lets a message keep its marker, if few do: others need slots.
    fn keep_marker(&self) -> bool {
        let mut state = self.state.lock();
        let kept = state.keeping < KEEPING;
        state.keeping += usize::from(kept);
        kept
    }

    /// Repeats a message whose effect may be unknown under its own marker, as long as that is worth it.
    async fn repeat(
        self: Arc<Self>,
        core: Arc<SessionCore>,
        batch: Vec<QueuedEnd>,
        items: Arc<[End]>,
        marker: MarkerLease,
    ) {
        let last = core.clock().now() + renewal_period(core.ttl());
        let should_retry = |error: &Error| error.is_retryable() && core.clock().now() < last;
        let answer = retry(&core, RetryScope::InStore, should_retry, || {
            self.attempt(&marker, &items)
        })
        .await;
        self.state.lock().keeping -= 1;
        match answer {
            Err(error) if error.kind() != ErrorKind::Lost => {
                drop(marker);
                self.fail(&core, batch, &error.with_effect(Effect::Unknown));
            }
            answer => settle(&core, batch, answer),
        }
    }

    /// Leaves departures whose message failed to a task that sends them again.
    fn fail(self: &Arc<Self>, core: &Arc<SessionCore>, batch: Vec<QueuedEnd>, error: &Error) {
        self.add_failed(batch, error);
        let mut state = self.state.lock();
        if state.recovering < RECOVERING {
            state.recovering += 1;
            drop(state);
            core.executor().spawn(Arc::clone(self).recover(Arc::clone(core)));
        }
    }

    /// Notes a failure of departures. A batch has no answer of its own for each, so that only a single one is refused.
    fn add_failed(&self, mut batch: Vec<QueuedEnd>, error: &Error) {
        for departure in &mut batch {
            departure.in_doubt |= error.effect() == Effect::Unknown;
        }
        if let [single] = &mut *batch {
            single.failed(error);
        }
        self.state.lock().failed.extend(batch);
    }

    /// Sends failed departures until none is left: each goes on until the store has confirmed it or the session is over.
    async fn recover(self: Arc<Self>, core: Arc<SessionCore>) {
        let mut backoff = Backoff::new(core.ttl());
        let (mut size, mut failures, mut probes) = (1, 0, 1);
        pause(&core, RetryScope::InStore, backoff.next()).await;
        loop {
            let batch: Vec<_> = {
                let mut state = self.state.lock();
                if state.failed.is_empty() {
                    state.recovering -= 1;
                    return;
                }
                let size = state.failed.len().min(size);
                state.failed.drain(..size).collect()
            };
            let items = ends(&batch);
            let answer = {
                let marker = self.slots.marker(&core.registry).await;
                let attempt = || self.attempt(&marker, &items);
                retry(&core, RetryScope::InStore, |_| false, attempt).await
            };
            match answer {
                Err(error) if error.kind() != ErrorKind::Lost => {
                    // The store answers, and the next message tells it something new: whom it refuses, or a caller.
                    let is_news = batch.len() > 1 || batch.iter().any(QueuedEnd::is_awaited);
                    failures += u32::from(error.is_retryable() || !is_news);
                    size = (batch.len() / 2).max(1);
                    self.add_failed(batch, &error);
                }
                answer => {
                    size = (batch.len() * 2).min(LARGEST_BATCH);
                    settle(&core, batch, answer);
                }
            }
            if failures >= probes {
                (failures, probes) = (0, (probes * 2).min(MOST_PROBES));
                pause(&core, RetryScope::InStore, backoff.next()).await;
            }
        }
    }

    async fn attempt(&self, marker: &MarkerLease, items: &Arc<[End]>) -> Result<Vec<EndOutcome>> {
        let answers = (self.message)(marker.marker(), Arc::clone(items)).await?;
        match answers.len() == items.len() {
            true => Ok(answers),
            false => Err(
                Error::new(ErrorKind::Internal, "the backend left an answer out: please report it")
                    .with_effect(Effect::Unknown),
            ),
        }
    }
}
