//! Where a client runs: in a process of its own or, in a run on one thread, in a task that is stopped and killed
//! like a process.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::case::Outcome;
use crate::cases::Process;
use crate::harness::Link;

/// What runs one life of a client.
pub(super) enum Body {
    /// A runtime on a thread of its own.
    Process(Process),
    /// A task of the caller's runtime.
    Task(Arc<Gate>),
}

impl Body {
    pub(super) fn start(one_thread: bool) -> std::result::Result<Self, Outcome> {
        Ok(match one_thread {
            true => Self::Task(Arc::default()),
            false => Self::Process(Process::start()?),
        })
    }

    /// Polls `future` as a part of the client: what it starts is stopped and killed with it.
    pub(super) async fn lend<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Process(process) => process.lend(future).await,
            Self::Task(_) => future.await,
        }
    }

    pub(super) fn start_in(&self, future: impl Future<Output = ()> + Send + 'static) {
        match self {
            Self::Process(process) => process.start_in(future),
            Self::Task(gate) => drop(tokio::spawn(Gated {
                gate: Arc::clone(gate),
                future: Some(Box::pin(future)),
            })),
        }
    }

    /// Stops the client while `pass` runs. Of a task, the background work of its sessions goes on; the link keeps
    /// its requests and answers until the client continues.
    pub(super) async fn pause(&self, link: Option<&dyn Link>, pass: impl Future<Output = ()>) {
        match self {
            Self::Process(process) => {
                let paused = process.pause().await;
                pass.await;
                drop(paused);
            }
            Self::Task(gate) => {
                gate.set(Condition::Closed);
                if let Some(link) = link {
                    link.silence();
                }
                pass.await;
                if let Some(link) = link {
                    link.heal();
                }
                gate.set(Condition::Open);
            }
        }
    }

    /// Ends the client's task, if it is one, when the run is over.
    pub(super) fn abandon(&self) {
        if let Self::Task(gate) = self {
            gate.set(Condition::Dead);
        }
    }

    /// Ends the client without a farewell: what a task's guards send when they are dropped stays on its link, which
    /// is never healed.
    pub(super) async fn kill(self, link: Option<&dyn Link>) {
        match self {
            Self::Process(process) => process.kill().await,
            Self::Task(gate) => {
                if let Some(link) = link {
                    link.silence();
                }
                gate.set(Condition::Dead);
            }
        }
    }
}

/// Decides whether a task is polled.
#[derive(Default)]
pub(super) struct Gate(Mutex<GateState>);

#[derive(Default)]
struct GateState {
    condition: Condition,
    waker: Option<Waker>,
}

#[derive(Clone, Copy, Default)]
enum Condition {
    #[default]
    Open,
    Closed,
    Dead,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, condition: Condition) {
        let waker = {
            let mut state = self.state();
            state.condition = condition;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

struct Gated {
    gate: Arc<Gate>,
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Future for Gated {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let condition = {
            let mut state = self.gate.state();
            state.waker = Some(context.waker().clone());
            state.condition
        };
        match (condition, &mut self.future) {
            (Condition::Closed, _) => Poll::Pending,
            (Condition::Open, Some(future)) => future.as_mut().poll(context),
            (Condition::Dead, _) | (_, None) => {
                self.future = None;
                Poll::Ready(())
            }
        }
    }
}
