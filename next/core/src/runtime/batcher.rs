//! Sends departures one by one when they come alone, and together when they come together.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use super::in_flight::InFlight;
use super::retry::{RetryScope, retry};
use super::session::SessionCore;
use crate::backend::{Claim, Departure, EndOutcome, Marker, Nonce, Request, Return};
use crate::error::{Effect, Error, ErrorKind, LossReason, Result};
use crate::sync::Mutex;
use crate::token::FencingToken;

/// The most departures in one message.
const LARGEST_BATCH: usize = 500;

/// The end of a request or of one of its holdings.
pub(super) trait Departing: Clone + Send + Sync + 'static {
    fn nonce(&self) -> Nonce;
    fn token(&self) -> Option<FencingToken>;
}

impl Departing for Departure {
    fn nonce(&self) -> Nonce {
        self.request.nonce()
    }

    fn token(&self) -> Option<FencingToken> {
        self.token
    }
}

impl Departing for Request {
    fn nonce(&self) -> Nonce {
        Self::nonce(self)
    }

    fn token(&self) -> Option<FencingToken> {
        None
    }
}

impl Departing for Claim {
    fn nonce(&self) -> Nonce {
        self.request.nonce()
    }

    fn token(&self) -> Option<FencingToken> {
        Some(self.token)
    }
}

impl Departing for Return {
    fn nonce(&self) -> Nonce {
        self.claim.request.nonce()
    }

    fn token(&self) -> Option<FencingToken> {
        Some(self.claim.token)
    }
}

/// Returns the error of one of several departures that went together.
fn in_doubt(error: &Error) -> Error {
    Error::new(error.kind(), error.chain().to_string()).with_effect(Effect::Unknown)
}

type Message<T> = dyn Fn(Marker, Arc<[T]>) -> BoxFuture<'static, Result<Vec<EndOutcome>>> + Send + Sync;

/// Sends departures of one sort, together where they come together.
pub(super) struct Batcher<T> {
    message: Box<Message<T>>,
    state: Mutex<State<T>>,
}

struct State<T> {
    waiting: Vec<QueuedEnd<T>>,
    /// Whether a task sends the waiting parcels.
    draining: bool,
    /// Whether a caller sends its own departure in place.
    in_place: bool,
}

struct QueuedEnd<T> {
    item: T,
    /// The caller that waits for the answer.
    reply: Option<oneshot::Sender<Result<EndOutcome>>>,
}

impl<T: Departing> QueuedEnd<T> {
    fn answer(&mut self, answer: Result<EndOutcome>) {
        if let Some(reply) = self.reply.take() {
            // The caller may have stopped waiting.
            let _ = reply.send(answer);
        }
    }

    fn settle(mut self, core: &SessionCore, answer: Result<EndOutcome>) {
        core.registry.confirm_end(self.item.nonce(), self.item.token());
        self.answer(answer);
    }
}

impl<T: Departing> Batcher<T> {
    pub(super) fn new(
        message: impl Fn(Marker, Arc<[T]>) -> BoxFuture<'static, Result<Vec<EndOutcome>>> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            message: Box::new(message),
            state: Mutex::new(State {
                waiting: Vec::new(),
                draining: false,
                in_place: false,
            }),
        })
    }

    /// Sends `item` in the background.
    pub(super) fn send_later(self: &Arc<Self>, core: &Arc<SessionCore>, item: T) {
        self.push(core, QueuedEnd { item, reply: None });
    }

    fn push(self: &Arc<Self>, core: &Arc<SessionCore>, parcel: QueuedEnd<T>) {
        let mut state = self.state.lock();
        state.waiting.push(parcel);
        if !std::mem::replace(&mut state.draining, true) {
            drop(state);
            core.executor().spawn(Arc::clone(self).drain(Arc::clone(core)));
        }
    }

    /// Sends `item`, and waits for the answer. A dropped call goes on in the background.
    pub(super) async fn send(self: &Arc<Self>, core: &Arc<SessionCore>, item: T) -> Result<EndOutcome> {
        let (reply, answer) = oneshot::channel();
        let parcel = QueuedEnd {
            item,
            reply: Some(reply),
        };
        let alone = {
            let mut state = self.state.lock();
            !state.draining && !std::mem::replace(&mut state.in_place, true)
        };
        if alone {
            let (batcher, on) = (Arc::clone(self), Arc::clone(core));
            let sending = async move {
                batcher.deliver(&on, vec![parcel]).await;
                batcher.state.lock().in_place = false;
            };
            InFlight::new(core.executor(), sending).await;
        } else {
            self.push(core, parcel);
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

    /// Sends a batch until the store has answered. If it refuses the batch, each departure is sent by a task of its own.
    async fn deliver(self: &Arc<Self>, core: &Arc<SessionCore>, mut batch: Vec<QueuedEnd<T>>) {
        let items: Arc<[T]> = batch.iter().map(|parcel| parcel.item.clone()).collect();
        match self.attempt(core, items, Error::is_retryable).await {
            Ok(answers) => {
                for (parcel, left) in batch.into_iter().zip(answers) {
                    parcel.settle(core, Ok(left));
                }
            }
            Err(error) if error.kind() == ErrorKind::Lost => {
                // The session has ended in the store, and all that it had with it.
                let reason = core.loss().get().or(error.loss()).unwrap_or(LossReason::Revoked);
                for parcel in batch {
                    parcel.settle(core, Err(core.lost_holding(reason)));
                }
            }
            Err(error) => {
                // The batch may have taken effect. A repetition under another marker would find nothing left of it and
                // report a loss.
                if error.effect() == Effect::Unknown {
                    for parcel in &mut batch {
                        parcel.answer(Err(in_doubt(&error)));
                    }
                }
                let mut error = (batch.len() == 1).then_some(error);
                for mut parcel in batch {
                    if let Some(error) = error.take() {
                        parcel.answer(Err(error));
                    }
                    core.executor()
                        .spawn(Arc::clone(self).retry_alone(Arc::clone(core), parcel));
                }
            }
        }
    }

    /// Sends a departure until the store has confirmed it or the session is over. Its caller gets the first refusal.
    async fn retry_alone(self: Arc<Self>, core: Arc<SessionCore>, mut parcel: QueuedEnd<T>) {
        let items: Arc<[T]> = Arc::new([parcel.item.clone()]);
        let first = self.attempt(&core, Arc::clone(&items), Error::is_retryable).await;
        let answer = match first {
            Ok(answers) => Ok(answers),
            Err(error) => {
                parcel.answer(Err(error));
                self.attempt(&core, items, |error| error.kind() != ErrorKind::Lost)
                    .await
            }
        };
        parcel.settle(&core, answer.map(|answers| answers[0]));
    }

    async fn attempt(
        &self,
        core: &Arc<SessionCore>,
        items: Arc<[T]>,
        should_retry: impl Fn(&Error) -> bool,
    ) -> Result<Vec<EndOutcome>> {
        let marker = core.registry.marker().await;
        let attempt = || async {
            let answers = (self.message)(marker.marker(), Arc::clone(&items)).await?;
            match answers.len() == items.len() {
                true => Ok(answers),
                false => Err(
                    Error::new(ErrorKind::Internal, "the backend left an answer out: please report it")
                        .with_effect(Effect::Unknown),
                ),
            }
        };
        retry(core, RetryScope::InStore, should_retry, attempt).await
    }
}
