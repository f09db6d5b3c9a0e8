//! What an election is in the store: a line whose places have values, and those who observe it.
//!
//! Every change of any election gets the next number, as in etcd the next revision: so what an
//! observer saw is ordered against whatever comes later, and nothing has to be remembered of an
//! election that nobody leads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use tenure_core::backend::{Kind, Sighting};
use tenure_core::{Error, FencingToken, Leader, LossReason, Moment, Result};
use tokio::sync::watch;

use super::{Member, Object, Shared, Signal, State};

/// The elections of a store, as far as their lines do not say it.
#[derive(Debug, Default)]
pub(super) struct Elections {
    changes: u64,
    /// Those that are observed. The sender tells of every change.
    observed: HashMap<Object, watch::Sender<()>>,
}

impl Elections {
    pub(super) fn observed(&self) -> usize {
        self.observed.len()
    }
}

/// What an observer finds.
#[derive(Debug)]
pub(crate) enum Seen {
    New(Sighting),
    /// Nothing new; look again when told, or when this moment has come: the leader's lease ends then.
    Wait(Option<Moment>),
}

/// Elections.
impl State {
    /// Changes the value of the leader `nonce`, unless a greater `number` came before.
    pub(crate) fn proclaim(
        &mut self,
        member: &Member,
        nonce: u64,
        token: FencingToken,
        (number, value): (u64, Arc<[u8]>),
    ) -> Result<()> {
        let gone = || Error::lost(LossReason::Revoked);
        let lease = self.lease(member)?;
        let (object, arrival) = lease.places.get(&nonce).cloned().ok_or_else(gone)?;
        match self.place(&object, arrival) {
            Some(place) if place.token == Some(token) => {
                if place.proclaimed < number {
                    place.proclaimed = number;
                    place.value = Some(value);
                    self.election_changed(&object);
                }
                Ok(())
            }
            _ => Err(gone()),
        }
    }

    pub(crate) fn leader(&self, object: &Object) -> Option<Leader> {
        let (_, first) = self.lines.get(object)?.first_key_value()?;
        let value = first.value.clone().unwrap_or_default();
        Some(Leader::new(value, first.token?))
    }

    /// What there is to see of `object` since the change `after`.
    pub(crate) fn sight(&self, object: &Object, after: Option<u64>) -> Seen {
        let order = self.elections.changes;
        if after.is_none_or(|after| order > after) {
            let leader = self.leader(object);
            return Seen::New(Sighting { order, leader });
        }
        let first = self.lines.get(object).and_then(|line| line.values().next());
        let lease = first.and_then(|place| self.sessions.get(&place.session));
        Seen::Wait(lease.map(|lease| lease.ends))
    }

    /// Notes that another leads, or none, or the leader says something else.
    pub(super) fn election_changed(&mut self, object: &Object) {
        if object.kind != Kind::Election {
            return;
        }
        self.elections.changes += 1;
        if let Some(observed) = self.elections.observed.get(object) {
            self.signals.push(Signal::Tell(observed.clone()));
        }
    }

    fn unobserve(&mut self, object: &Object) {
        let observed = &mut self.elections.observed;
        if observed
            .get(object)
            .is_some_and(|it| it.receiver_count() == 0)
        {
            observed.remove(object);
        }
    }
}

/// One who observes an election; dropped, forgotten by the store.
pub(crate) struct Observing {
    store: Weak<Shared>,
    object: Object,
    /// Taken out before the store is told.
    changed: Option<watch::Receiver<()>>,
}

impl Observing {
    /// Hears of every change that comes after this call.
    pub(crate) fn start(store: &Arc<Shared>, object: Object) -> Self {
        let changed = store.step(|state| {
            let observed = state.elections.observed.entry(object.clone());
            observed.or_default().subscribe()
        });
        Self {
            store: Arc::downgrade(store),
            object,
            changed: Some(changed),
        }
    }

    /// Ends with the next change that was not heard of yet.
    pub(crate) async fn changed(&mut self) {
        let heard = match &mut self.changed {
            Some(changed) => changed.changed().await.is_ok(),
            None => false,
        };
        if !heard {
            // The store has gone, and with it whoever could change anything.
            std::future::pending().await
        }
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        self.changed = None;
        if let Some(store) = self.store.upgrade() {
            store.without_time(|state| state.unobserve(&self.object));
        }
    }
}
