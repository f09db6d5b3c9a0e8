//! The ends of requests and holdings: withdrawals, releases, acknowledgements, returns.
//!
//! One that comes alone is sent at once. Those that come while another of their kind is in flight go together in one message.

use std::sync::Arc;
use std::time::Duration;

use super::batcher::Batcher;
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

/// The end of a request, or of one of its holdings.
#[derive(Clone)]
pub(super) struct End {
    pub(super) request: Request,
    /// The holding. `None` withdraws the request, and gives back whatever it was granted.
    pub(super) token: Option<FencingToken>,
    ending: Ending,
}

impl End {
    fn departure(&self) -> Departure {
        match self.token {
            Some(token) => Departure::release(self.request.clone(), token),
            None => Departure::withdraw(self.request.clone()),
        }
    }

    fn claim(&self) -> Option<Claim> {
        self.token.map(|token| Claim::new(self.request.clone(), token))
    }

    fn returned(&self) -> Option<Return> {
        let delay = match self.ending {
            Ending::Return(delay) => delay,
            Ending::Release | Ending::Ack => Duration::ZERO,
        };
        self.claim().map(|claim| Return::new(claim, delay))
    }

    fn batch_kind(&self) -> BatchKind {
        match (self.request.kind(), self.token, self.ending) {
            (Kind::RwLock, ..) => BatchKind::RwLocks,
            (Kind::Election, ..) => BatchKind::Elections,
            (Kind::Barrier | Kind::DoubleBarrier, ..) => BatchKind::Barriers,
            (Kind::Queue, None, _) => BatchKind::Takes,
            (Kind::Queue, Some(_), Ending::Ack) => BatchKind::Acks,
            (Kind::Queue, Some(_), _) => BatchKind::Returns,
            _ => BatchKind::Locks,
        }
    }
}

/// The ends that can go together in one message.
#[derive(Clone, Copy)]
enum BatchKind {
    Locks,
    RwLocks,
    Elections,
    Barriers,
    Takes,
    Acks,
    Returns,
}

/// The batchers of a session, one for each [`BatchKind`]; `None` where the store does not have the primitive.
pub(crate) struct Departures([Option<Arc<Batcher>>; 7]);

fn of_wait_queue(kind: BatchKind, queue: Option<Arc<dyn WaitQueue>>) -> Option<Arc<Batcher>> {
    let queue = queue?;
    Some(Batcher::new(kind as u16, move |marker, ends| {
        let queue = Arc::clone(&queue);
        Box::pin(async move {
            let departures: Vec<_> = ends.iter().map(End::departure).collect();
            queue.leave(marker, &departures).await
        })
    }))
}

impl Departures {
    pub(crate) fn new(session: &Arc<dyn BackendSession>) -> Self {
        let session = || Arc::clone(session);
        Self([
            of_wait_queue(BatchKind::Locks, session().locker().map(|locks| locks as _)),
            of_wait_queue(BatchKind::RwLocks, session().rw_lock().map(|locks| locks as _)),
            of_wait_queue(
                BatchKind::Elections,
                session().election().map(|elections| elections as _),
            ),
            session().barrier().map(|barrier| {
                Batcher::new(BatchKind::Barriers as u16, move |marker, ends| {
                    let barrier = Arc::clone(&barrier);
                    Box::pin(async move {
                        let departures: Vec<_> = ends.iter().map(End::departure).collect();
                        barrier.leave(marker, &departures).await
                    })
                })
            }),
            session().queue().map(|queue| {
                Batcher::new(BatchKind::Takes as u16, move |_, ends| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move {
                        let requests: Vec<_> = ends.iter().map(|end| end.request.clone()).collect();
                        queue.leave(&requests).await?;
                        Ok(vec![EndOutcome::Ended; ends.len()])
                    })
                })
            }),
            session().queue().map(|queue| {
                Batcher::new(BatchKind::Acks as u16, move |marker, ends| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move {
                        let claims: Vec<_> = ends.iter().filter_map(End::claim).collect();
                        queue.ack(marker, &claims).await
                    })
                })
            }),
            session().queue().map(|queue| {
                Batcher::new(BatchKind::Returns as u16, move |marker, ends| {
                    let queue = Arc::clone(&queue);
                    Box::pin(async move {
                        let returns: Vec<_> = ends.iter().filter_map(End::returned).collect();
                        queue.nack(marker, &returns).await
                    })
                })
            }),
        ])
    }

    /// Withdraws `request` in the background, whether it waits or holds.
    pub(crate) fn withdraw(&self, core: &Arc<SessionCore>, request: &Request) {
        self.end_in_background(core, request, None);
    }

    /// Releases the holding `token` of `request` in the background.
    pub(crate) fn release(&self, core: &Arc<SessionCore>, request: &Request, token: FencingToken) {
        self.end_in_background(core, request, Some(token));
    }

    fn end_in_background(&self, core: &Arc<SessionCore>, request: &Request, token: Option<FencingToken>) {
        let end = End {
            request: request.clone(),
            token,
            ending: Ending::Release,
        };
        core.registry.begin_end(request.nonce(), token);
        match &self.0[end.batch_kind() as usize] {
            Some(batcher) => batcher.send_later(core, end),
            // A store without the primitive has no entry of it.
            None => core.registry.confirm_end(request.nonce(), token),
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
        let (request, token) = (request.clone(), Some(token));
        core.registry.begin_end(request.nonce(), token);
        let end = End { request, token, ending };
        match &self.0[end.batch_kind() as usize] {
            Some(batcher) => batcher.send(core, end).await,
            None => Err(Error::unsupported("this kind of holding")),
        }
    }
}
