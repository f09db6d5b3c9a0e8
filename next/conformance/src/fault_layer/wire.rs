//! The link between a session and the embedded store.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tenure_core::backend::{SessionEvent, SessionEvents};
use tenure_core::{Effect, Error, ErrorKind, Result};
use tokio::sync::watch;

use crate::harness::Link;

/// How long a client waits for an answer, as the clients of real stores do.
const REQUEST_LIMIT: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    Silent,
    Muted,
    Held,
    Delaying,
    Repeating,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct State {
    fault: Fault,
    /// Counts the connections: each cut begins another one.
    connection: u64,
}

struct Shared {
    state: watch::Sender<State>,
    requests: AtomicU64,
    delayed: Mutex<Option<BoxFuture<'static, ()>>>,
}

/// The link between the sessions of one connection and the store. Cheap to clone.
#[derive(Clone)]
pub(super) struct Wire(Arc<Shared>);

fn no_answer() -> Error {
    Error::new(ErrorKind::Unavailable, "the store did not answer").with_effect(Effect::Unknown)
}

fn broken() -> Error {
    Error::new(ErrorKind::Unavailable, "the connection broke").with_effect(Effect::Unknown)
}

impl Wire {
    pub(super) fn new() -> Self {
        let (state, _) = watch::channel(State {
            fault: Fault::None,
            connection: 0,
        });
        Self(Arc::new(Shared {
            state,
            requests: AtomicU64::new(0),
            delayed: Mutex::new(None),
        }))
    }

    fn set(&self, fault: Fault) {
        self.0.state.send_modify(|state| state.fault = fault);
    }

    fn count(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits until a message may pass, and returns the connection over which it does.
    async fn passes(&self, blocked: fn(Fault) -> bool) -> u64 {
        let mut state = self.0.state.subscribe();
        let passed = state.wait_for(|state| !blocked(state.fault)).await;
        passed.map_or(0, |state| state.connection)
    }

    async fn is_cut(&self, connection: u64) {
        let mut state = self.0.state.subscribe();
        // The sender is in `self`.
        let _ = state.wait_for(|state| state.connection != connection).await;
    }

    /// Passes an answer that has come over `connection`.
    async fn answer<T>(&self, connection: u64, answer: T) -> Result<T> {
        let now = *self.0.state.borrow();
        if now.fault == Fault::Muted {
            self.passes(|fault| fault == Fault::Muted).await;
            return Err(no_answer());
        }
        match self.passes(|fault| matches!(fault, Fault::Silent | Fault::Held)).await {
            same if same == connection => Ok(answer),
            _ => Err(broken()),
        }
    }

    /// Sends a request, which the store carries out to its end, and returns the answer. `droppable` requests are not
    /// delayed.
    pub(super) async fn step<T, F>(&self, delayable: bool, request: impl Fn() -> F + Send) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        self.count();
        let exchange = async {
            let connection = self.passes(|fault| fault == Fault::Silent).await;
            let fault = self.0.state.borrow().fault;
            if delayable && fault == Fault::Delaying {
                let late = request();
                *self.0.delayed.lock() = Some(Box::pin(async move {
                    let _ = late.await;
                }));
                self.set(Fault::None);
                return Err(broken());
            }
            let (first, second) = (request(), (fault == Fault::Repeating).then(&request));
            let carried_out = tokio::spawn(async move {
                let answer = first.await;
                match second {
                    Some(second) => second.await,
                    None => answer,
                }
            });
            let answer = tokio::select! {
                biased;
                answer = carried_out => answer,
                () = self.is_cut(connection) => return Err(broken()),
            };
            let answer =
                answer.map_err(|panic| Error::new(ErrorKind::Internal, "the store panicked").with_source(panic))??;
            self.answer(connection, answer).await
        };
        let answered = tokio::time::timeout(REQUEST_LIMIT, exchange).await;
        answered.unwrap_or_else(|_| Err(no_answer()))
    }

    /// Waits for what the store pushes. Droppable.
    pub(super) async fn wait<T, F>(&self, request: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        self.count();
        let connection = self.passes(|fault| fault == Fault::Silent).await;
        let answer = tokio::select! {
            biased;
            answer = request() => answer?,
            () = self.is_cut(connection) => return Err(broken()),
        };
        self.answer(connection, answer).await
    }

    /// Passes what the store reports of a session on to `to`: nothing in a silence, and nothing that was lost.
    pub(super) fn reports(&self, to: SessionEvents) -> SessionEvents {
        let (events, mut reports) = SessionEvents::channel();
        let wire = self.clone();
        tokio::spawn(async move {
            let mut connection = wire.0.state.borrow().connection;
            loop {
                tokio::select! {
                    () = wire.is_cut(connection) => {
                        connection = wire.0.state.borrow().connection;
                        to.report(SessionEvent::Reconcile);
                    }
                    report = reports.recv() => match report {
                        Some(report) => {
                            if wire.answer(connection, ()).await.is_ok() {
                                to.report(report);
                            }
                        }
                        None => return,
                    }
                }
            }
        });
        events
    }
}

impl Link for Wire {
    fn silence(&self) {
        self.set(Fault::Silent);
    }

    fn mute(&self) {
        self.set(Fault::Muted);
    }

    fn hold(&self) {
        self.set(Fault::Held);
    }

    fn heal(&self) {
        self.set(Fault::None);
    }

    fn cut(&self) {
        self.0.state.send_modify(|state| {
            state.fault = Fault::None;
            state.connection += 1;
        });
    }

    fn delay_request(&self) {
        self.set(Fault::Delaying);
    }

    fn has_delayed_request(&self) -> bool {
        self.0.delayed.lock().is_some()
    }

    fn deliver(&self) {
        if let Some(late) = self.0.delayed.lock().take() {
            tokio::spawn(late);
        }
    }

    fn repeat(&self) {
        self.set(Fault::Repeating);
    }

    fn requests(&self) -> Option<u64> {
        Some(self.0.requests.load(Ordering::Relaxed))
    }
}
