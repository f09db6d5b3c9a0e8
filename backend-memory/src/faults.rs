//! A switch for tests: how a connection to the embedded store misbehaves.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tenure_core::Result;
use tokio::sync::Notify;

use crate::error;
use crate::store::{Member, Shared, State};

/// What goes wrong on a [`Link`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Nothing passes in either direction: requests and answers wait until the link is healed,
    /// and then arrive. A partition, or a stopped server.
    Silent,
    /// Requests arrive and take effect; their answers wait until the link is healed.
    AnswersHeld,
    /// Requests never arrive; the caller is told at once that the effect is unknown.
    RequestsLost,
    /// Requests arrive and take effect; the caller is told at once that the effect is unknown.
    AnswersLost,
    /// The caller is told at once that the effect is unknown; its request arrives when the link
    /// is healed, after whatever was sent in between over other links.
    RequestsLate,
}

/// One connection's way to the embedded store, with a switch for faults. Cheap to clone.
///
/// Everything that the connection's sessions send goes over it. A request that hangs on it hangs
/// for as long as it takes: no time-out hides what core does about it.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    store: Weak<Shared>,
    condition: Mutex<Condition>,
    changed: Notify,
}

#[derive(Default)]
struct Condition {
    fault: Option<Fault>,
    /// Faults for single requests to come, which come before `fault`.
    once: VecDeque<Fault>,
    late: Vec<Late>,
    requests: u64,
    /// How often the link was healed: ends what a fault of `once` holds back.
    heals: u64,
}

type Late = Box<dyn FnOnce(&mut State) + Send>;

impl Link {
    pub(crate) fn new(store: &Arc<Shared>) -> Self {
        Self(Arc::new(Inner {
            store: Arc::downgrade(store),
            condition: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// [`Fault::Silent`] until [`heal`](Self::heal).
    pub fn silence(&self) {
        self.inject(Fault::Silent);
    }

    /// `fault` for everything, until [`heal`](Self::heal) or another fault.
    pub fn inject(&self, fault: Fault) {
        self.condition().fault = Some(fault);
        self.0.changed.notify_waiters();
    }

    /// `fault` for the next request (and its answer) alone, after those asked for before. A fault
    /// that holds something back holds it until [`heal`](Self::heal).
    pub fn inject_once(&self, fault: Fault) {
        self.condition().once.push_back(fault);
    }

    /// Ends every fault: what was held back arrives.
    pub fn heal(&self) {
        let late = {
            let mut condition = self.condition();
            condition.fault = None;
            condition.once.clear();
            condition.heals += 1;
            std::mem::take(&mut condition.late)
        };
        if let Some(store) = self.0.store.upgrade() {
            for request in late {
                store.step(request);
            }
        }
        self.0.changed.notify_waiters();
    }

    /// The fault that is on, if any.
    pub fn fault(&self) -> Option<Fault> {
        self.condition().fault
    }

    /// How many requests were sent over this link.
    pub fn requests(&self) -> u64 {
        self.condition().requests
    }

    /// Whether the store's own news (an operator's order) reaches the connection.
    pub(crate) fn is_up(&self) -> bool {
        !matches!(self.fault(), Some(Fault::Silent | Fault::AnswersHeld))
    }

    fn condition(&self) -> MutexGuard<'_, Condition> {
        self.0
            .condition
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request, lets it take effect, and brings back the answer.
    pub(crate) async fn round_trip<T: Send + 'static>(
        &self,
        store: &Arc<Shared>,
        about: Option<(&Member, u64)>,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (passage, answer) = self.request(store, about, effect).await?;
        self.answer(passage).await?;
        answer
    }

    /// Sends a request and lets it take effect. Its answer is to be brought back with
    /// [`answer`](Self::answer). `about` is the attempt that a withdrawal could overtake.
    pub(crate) async fn request<T: Send + 'static>(
        &self,
        store: &Arc<Shared>,
        about: Option<(&Member, u64)>,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<(Passage, Result<T>)> {
        // No step waits for anything here: without this a task in a loop would keep its thread for itself, from the
        // renewals and from everybody's timers.
        tokio::task::coop::consume_budget().await;
        let passage = self.passage();
        match passage.fault {
            Some(Fault::RequestsLost) => Err(error::no_answer()),
            Some(Fault::RequestsLate) => {
                let traveller = about.map(|(member, nonce)| Traveller::new(store, member, nonce));
                let late: Late = Box::new(move |state| {
                    // The sender was told long ago that it will not learn of this.
                    let _ = effect(state);
                    if let Some(traveller) = traveller {
                        traveller.arrive(state);
                    }
                });
                self.condition().late.push(late);
                Err(error::no_answer())
            }
            Some(Fault::Silent) => {
                let traveller = about.map(|(member, nonce)| Traveller::new(store, member, nonce));
                self.until_it_passes(passage, |fault| fault == Fault::Silent)
                    .await;
                let done = store.step(|state| {
                    let done = effect(state);
                    if let Some(traveller) = traveller {
                        traveller.arrive(state);
                    }
                    done
                });
                Ok((passage, done))
            }
            None | Some(Fault::AnswersHeld | Fault::AnswersLost) => {
                Ok((passage, store.step(effect)))
            }
        }
    }

    /// Brings back an answer, unless it gets lost.
    pub(crate) async fn answer(&self, passage: Passage) -> Result<()> {
        let lost = |fault| fault == Some(Fault::AnswersLost);
        let held = |fault| matches!(fault, Fault::Silent | Fault::AnswersHeld);
        if passage.once && lost(passage.fault) {
            return Err(error::no_answer());
        }
        self.until_it_passes(passage, held).await;
        if lost(self.fault()) {
            return Err(error::no_answer());
        }
        Ok(())
    }

    /// The fault that the next request meets.
    fn passage(&self) -> Passage {
        let mut condition = self.condition();
        condition.requests += 1;
        let once = condition.once.pop_front();
        Passage {
            fault: once.or(condition.fault),
            once: once.is_some(),
            heals: condition.heals,
        }
    }

    /// Waits until no fault that `holds` is in the way any more.
    async fn until_it_passes(&self, passage: Passage, holds: impl Fn(Fault) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // Registered before the look, so that a change in between still wakes us.
            changed.as_mut().enable();
            let held = {
                let condition = self.condition();
                let own = passage.once && passage.heals == condition.heals;
                condition.fault.is_some_and(&holds) || own && passage.fault.is_some_and(&holds)
            };
            if !held {
                return;
            }
            changed.await;
        }
    }
}

/// What a request met when it set out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage {
    fault: Option<Fault>,
    once: bool,
    heals: u64,
}

/// A request on its way, known to the store so that a withdrawal which overtakes it is remembered.
struct Traveller {
    store: Weak<Shared>,
    about: Option<(Member, u64)>,
}

impl Traveller {
    fn new(store: &Arc<Shared>, member: &Member, nonce: u64) -> Self {
        store.step(|state| state.set_out(member, nonce));
        Self {
            store: Arc::downgrade(store),
            about: Some((member.clone(), nonce)),
        }
    }

    fn arrive(mut self, state: &mut State) {
        if let Some((member, nonce)) = self.about.take() {
            state.arrived(&member, nonce);
        }
    }
}

impl Drop for Traveller {
    fn drop(&mut self) {
        // The sender's runtime ended before the link was healed: the request never arrives.
        if let (Some((member, nonce)), Some(store)) = (self.about.take(), self.store.upgrade()) {
            store.without_time(|state| state.arrived(&member, nonce));
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link")
            .field("fault", &self.fault())
            .finish()
    }
}
