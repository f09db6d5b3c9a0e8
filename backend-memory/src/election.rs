//! Elections of the embedded store.
//!
//! A candidate takes a place in a line, with its value, and the first place leads: a campaign is
//! the acquire of a lock (see `line.rs`). What is added is in `store/election.rs`.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Election, Grant, Kind, Settle, Side, Sighting};
use tenure_core::{Error, FencingToken, Leader, Name, Result};

use crate::session::MemorySession;
use crate::store::Object;
use crate::store::election::{Observing, Seen};

/// The elections of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryElection {
    session: Arc<MemorySession>,
}

impl MemoryElection {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self { session }
    }

    fn object(&self, name: &Name) -> Object {
        Object {
            namespace: self.session.namespace.clone(),
            kind: Kind::Election,
            name: name.clone(),
        }
    }
}

#[async_trait]
impl Election for MemoryElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        let value = Some(value.into());
        self.session.try_line(ask, Side::Write, value).await
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let value = Some(value.into());
        self.session.stand_in_line(ask, Side::Write, value).await
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.session;
        let (me, nonce, token) = (member.clone(), ask.nonce(), grant.token());
        let said = (number, Arc::from(value));
        let proclaiming = link.round_trip(store, None, move |state| {
            state.proclaim(&me, nonce, token, said)
        });
        proclaiming.await
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = self.object(name);
        let asking = link.round_trip(store, None, move |state| Ok(state.leader(&object)));
        asking.await
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = self.object(name);
        let sighted = object.clone();
        let mut observing = Observing::start(store, object.clone());
        let looking = link.request(store, None, move |state| Ok(state.sight(&sighted, after)));
        let (passage, mut seen) = looking.await?;
        while let Ok(Seen::Wait(until)) = &seen {
            let ends = async {
                match until {
                    Some(until) => store.clock().sleep_until(*until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = observing.changed() => {}
                () = ends => {}
            }
            seen = Ok(store.step(|state| state.sight(&object, after)));
        }
        link.answer(passage).await?;
        match seen? {
            Seen::New(sighting) => Ok(sighting),
            Seen::Wait(_) => Err(Error::withdrawn()),
        }
    }
}

#[async_trait]
impl Settle for MemoryElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_line(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        self.session.take_up_in_line(ask, token, Side::Write).await
    }
}
