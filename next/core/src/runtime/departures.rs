//! The ends of requests and holdings: withdrawals, releases, acknowledgements, returns.
//!
//! One that comes alone is sent at once. Those that come while another of their sort is in flight go together in one message.

use std::sync::Arc;
use std::time::Duration;

use super::batcher::{Batcher, Departing};
use super::session::SessionCore;
use crate::backend::{BackendSession, Claim, Departure, EndOutcome, Request, Return, WaitQueue};
use crate::error::{Error, Result};
use crate::name::Kind;
use crate::token::FencingToken;

/// How a holding ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The holding is released; a delivery returns to its queue at once.
    Release,
    /// A delivery is removed from its queue.
    Ack,
    /// A delivery returns to its queue after a delay.
    Return(Duration),
}

/// The batchers of a session.
pub(crate) struct Departures {
    locks: Option<Arc<Batcher<Departure>>>,
    rw_locks: Option<Arc<Batcher<Departure>>>,
    elections: Option<Arc<Batcher<Departure>>>,
    barriers: Option<Arc<Batcher<Departure>>>,
    takes: Option<Arc<Batcher<Request>>>,
    acks: Option<Arc<Batcher<Claim>>>,
    returns: Option<Arc<Batcher<Return>>>,
}

fn of_wait_queue(queue: Arc<dyn WaitQueue>) -> Arc<Batcher<Departure>> {
    Batcher::new(move |marker, batch: Arc<[Departure]>| {
        let queue = Arc::clone(&queue);
        Box::pin(async move { queue.leave(marker, &batch).await })
    })
}

impl Departures {
    pub(crate) fn new(session: &Arc<dyn BackendSession>) -> Self {
        let queue = || Arc::clone(session).queue();
        Self {
            locks: Arc::clone(session).locker().map(|locks| of_wait_queue(locks)),
            rw_locks: Arc::clone(session).rw_lock().map(|locks| of_wait_queue(locks)),
            elections: Arc::clone(session).election().map(|elections| of_wait_queue(elections)),
            barriers: Arc::clone(session).barrier().map(|barrier| {
                Batcher::new(move |marker, batch: Arc<[Departure]>| {
                    let barrier = Arc::clone(&barrier);
                    Box::pin(async move { barrier.leave(marker, &batch).await })
                })
            }),
            takes: queue().map(|queue| {
                Batcher::new(move |_, batch: Arc<[Request]>| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move {
                        queue.leave(&batch).await?;
                        Ok(vec![EndOutcome::Ended; batch.len()])
                    })
                })
            }),
            acks: queue().map(|queue| {
                Batcher::new(move |marker, batch: Arc<[Claim]>| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move { queue.ack(marker, &batch).await })
                })
            }),
            returns: queue().map(|queue| {
                Batcher::new(move |marker, batch: Arc<[Return]>| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move { queue.nack(marker, &batch).await })
                })
            }),
        }
    }

    fn of(&self, kind: Kind) -> Option<&Arc<Batcher<Departure>>> {
        match kind {
            Kind::RwLock => self.rw_locks.as_ref(),
            Kind::Election => self.elections.as_ref(),
            Kind::Barrier | Kind::DoubleBarrier => self.barriers.as_ref(),
            _ => self.locks.as_ref(),
        }
    }

    /// Withdraws `request` in the background, whether it waits or holds.
    pub(crate) fn withdraw(&self, core: &Arc<SessionCore>, request: &Request) {
        match request.kind() {
            Kind::Queue => send_in_background(&self.takes, core, request.clone()),
            kind => send_in_background(&self.of(kind).cloned(), core, Departure::withdraw(request.clone())),
        }
    }

    /// Ends the holding `token` of `request` in the background.
    pub(crate) fn end_in_background(
        &self,
        core: &Arc<SessionCore>,
        request: &Request,
        token: FencingToken,
        ending: Ending,
    ) {
        let (request, claim) = (request.clone(), Claim::new(request.clone(), token));
        match (request.kind(), ending) {
            (Kind::Queue, Ending::Release) => {
                send_in_background(&self.returns, core, Return::new(claim, Duration::ZERO))
            }
            (Kind::Queue, Ending::Return(delay)) => send_in_background(&self.returns, core, Return::new(claim, delay)),
            (Kind::Queue, Ending::Ack) => send_in_background(&self.acks, core, claim),
            (kind, _) => send_in_background(&self.of(kind).cloned(), core, Departure::release(request, token)),
        }
    }

    /// Ends the holding `token` of `request`, and waits for the store's answer. Goes on in the background when it is dropped.
    pub(crate) async fn end(
        &self,
        core: &Arc<SessionCore>,
        request: &Request,
        token: FencingToken,
        ending: Ending,
    ) -> Result<EndOutcome> {
        let (request, claim) = (request.clone(), Claim::new(request.clone(), token));
        match (request.kind(), ending) {
            (Kind::Queue, Ending::Release) => {
                send_and_wait(&self.returns, core, Return::new(claim, Duration::ZERO)).await
            }
            (Kind::Queue, Ending::Return(delay)) => send_and_wait(&self.returns, core, Return::new(claim, delay)).await,
            (Kind::Queue, Ending::Ack) => send_and_wait(&self.acks, core, claim).await,
            (kind, _) => send_and_wait(&self.of(kind).cloned(), core, Departure::release(request, token)).await,
        }
    }
}

fn send_in_background<T: Departing>(batcher: &Option<Arc<Batcher<T>>>, core: &Arc<SessionCore>, item: T) {
    core.registry.begin_end(item.nonce(), item.token());
    match batcher {
        Some(batcher) => batcher.send_later(core, item),
        // A store without the primitive has no entry of it.
        None => core.registry.confirm_end(item.nonce(), item.token()),
    }
}

async fn send_and_wait<T: Departing>(
    batcher: &Option<Arc<Batcher<T>>>,
    core: &Arc<SessionCore>,
    item: T,
) -> Result<EndOutcome> {
    core.registry.begin_end(item.nonce(), item.token());
    match batcher {
        Some(batcher) => batcher.send(core, item).await,
        None => Err(Error::unsupported("this kind of holding")),
    }
}
