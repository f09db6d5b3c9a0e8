//! A store, its namespaces, and how every step on one of them runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tenure_core::backend::{Nonce, SessionEvent, SessionEvents};
use tenure_core::clock::{Clock, Moment};
use tenure_core::{Namespace, Result};
use tokio::sync::Notify;

use super::{Object, State};
use crate::config::Limits;
use crate::planted::{Bug, Planted};

/// One store: a state for each namespace.
pub(crate) struct StoreState {
    clock: Clock,
    limits: Limits,
    planted: Planted,
    sessions: AtomicU64,
    /// Kept for as long as the store, because tokens must never restart.
    spaces: Mutex<BTreeMap<Namespace, Arc<Space>>>,
}

impl StoreState {
    pub(crate) fn new(clock: Clock, limits: Limits, planted: Planted) -> Self {
        Self {
            clock,
            limits,
            planted,
            sessions: AtomicU64::new(0),
            spaces: Mutex::default(),
        }
    }

    pub(crate) fn space(&self, namespace: Namespace) -> Arc<Space> {
        let found = match self.planted.has(Bug::NamespacesMeet) {
            true => Namespace::default(),
            false => namespace.clone(),
        };
        let mut spaces = self.spaces.lock();
        let space = spaces.entry(found).or_insert_with(|| {
            let now = self.clock.now();
            let state = State::new(namespace.clone(), self.limits, self.planted, now);
            Arc::new(Space {
                clock: self.clock.clone(),
                limits: self.limits,
                state: Mutex::new(state),
                namespace,
            })
        });
        Arc::clone(space)
    }

    /// Returns a number that no session of the store has had.
    pub(crate) fn next_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// One namespace of a store.
pub(crate) struct Space {
    clock: Clock,
    pub(crate) limits: Limits,
    pub(crate) namespace: Namespace,
    state: Mutex<State>,
}

/// The result of one look of a waiter.
pub(crate) enum Look<T> {
    Done(T),
    /// Nothing yet: look again when woken, or at this instant.
    Until(Option<Moment>),
}

/// The events for which a waiter is woken.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Topic {
    /// One request of a session.
    Request(u64, Nonce),
    /// A change of an object.
    Object(Object),
}

impl Space {
    /// Runs one step at one instant.
    pub(crate) fn step<T>(&self, step: impl FnOnce(&mut State) -> T) -> T {
        let (answer, signals) = {
            let mut state = self.state.lock();
            // Read under the lock: time never goes back from one step to the next.
            state.now = self.clock.now();
            state.expire_sessions();
            state.forget_ids();
            let answer = step(&mut state);
            state.settle();
            (answer, std::mem::take(&mut state.signals))
        };
        // Outside the lock, because a waker runs foreign code.
        for signal in signals {
            match signal {
                Signal::Wake(waiter) => waiter.notify_one(),
                Signal::Report(events, event) => events.report(event),
            }
        }
        answer
    }

    /// Looks until there is something, each time that a topic is woken and when the instant has come that the last look
    /// named.
    pub(crate) async fn wait<T>(
        &self,
        topics: Vec<Topic>,
        mut look: impl FnMut(&mut State) -> Result<Look<T>> + Send,
    ) -> Result<T> {
        if let Look::Done(found) = self.step(&mut look)? {
            return Ok(found);
        }
        let watch = Subscription::new(self, topics);
        loop {
            let until = match self.step(&mut look)? {
                Look::Done(found) => return Ok(found),
                Look::Until(until) => until,
            };
            let nap = async {
                match until {
                    // At least the resolution of the timer.
                    Some(until) => {
                        tokio::time::sleep(until.since(self.clock.now()).max(Duration::from_millis(1))).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = watch.waiter.notified() => {}
                () = nap => {}
            }
        }
    }
}

/// The registration of a waiter under its topics. Its drop ends it.
struct Subscription<'a> {
    space: &'a Space,
    topics: Vec<Topic>,
    number: u64,
    waiter: Arc<Notify>,
}

impl<'a> Subscription<'a> {
    fn new(space: &'a Space, topics: Vec<Topic>) -> Self {
        let waiter = Arc::new(Notify::new());
        let mut state = space.state.lock();
        state.last_arrival += 1;
        let number = state.last_arrival;
        for topic in &topics {
            let waiters = state.waiters.entry(topic.clone()).or_default();
            waiters.insert(number, Arc::clone(&waiter));
        }
        Self {
            space,
            topics,
            number,
            waiter,
        }
    }
}

impl Drop for Subscription<'_> {
    fn drop(&mut self) {
        let mut state = self.space.state.lock();
        for topic in &self.topics {
            if let Some(waiters) = state.waiters.get_mut(topic) {
                waiters.remove(&self.number);
                if waiters.is_empty() {
                    state.waiters.remove(topic);
                }
            }
        }
    }
}

/// A notification that is sent after a step, outside the lock.
pub(super) enum Signal {
    Wake(Arc<Notify>),
    Report(SessionEvents, SessionEvent),
}
