//! Locks of the embedded store.
//!
//! The first place in a lock's line holds it (see `store.rs`). An acquire takes a place, then
//! sleeps until it is woken or the lease before it ends.

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Locker, Settle};
use tenure_core::{Error, FencingToken, Result};

use crate::session::MemorySession;
use crate::store::{Attempt, Granted, Look, Object};

/// The locks of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryLocker(Arc<MemorySession>);

impl MemoryLocker {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self(session)
    }

    fn attempt(&self, ask: &Ask, value: Option<Arc<[u8]>>) -> Attempt {
        Attempt {
            object: Object {
                namespace: self.0.namespace.clone(),
                kind: ask.kind(),
                name: ask.name().clone(),
            },
            nonce: ask.nonce(),
            alarm: ask.alarm(),
            value,
        }
    }

    /// Takes the first place in the line of `ask`, if it is empty.
    pub(crate) async fn try_join(
        &self,
        ask: &Ask,
        value: Option<Arc<[u8]>>,
    ) -> Result<Option<Grant>> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, attempt) = (member.clone(), self.attempt(ask, value));
        let about = Some((member, ask.nonce()));
        let trying = link.round_trip(store, about, move |state| state.join(&me, &attempt, false));
        Ok(match trying.await? {
            Some(Look::Granted(granted)) => Some(grant(granted)),
            Some(Look::Wait(..)) | None => None,
        })
    }

    /// Takes a place in the line of `ask` and waits until it is the first.
    pub(crate) async fn join(&self, ask: &Ask, value: Option<Arc<[u8]>>) -> Result<Grant> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, attempt) = (member.clone(), self.attempt(ask, value));
        let about = Some((member, ask.nonce()));
        let joining = link.request(store, about, move |state| state.join(&me, &attempt, true));
        let (passage, joined) = joining.await?;
        let mut look = joined.and_then(|look| look.ok_or_else(crate::error::removed_from_line));
        while let Ok(Look::Wait(woken, until)) = &look {
            tokio::select! {
                () = woken.notified() => {}
                () = store.clock().sleep_until(*until) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
            look = store.step(|state| state.look(member, ask.nonce()));
        }
        link.answer(passage).await?;
        match look? {
            Look::Granted(granted) => Ok(grant(granted)),
            Look::Wait(..) => Err(crate::error::removed_from_line()),
        }
    }
}

fn grant(granted: Granted) -> Grant {
    Grant::new(granted.token, granted.key)
}

#[async_trait]
impl Locker for MemoryLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.try_join(ask, None).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        self.join(ask, None).await
    }
}

#[async_trait]
impl Settle for MemoryLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, nonce, token) = (member.clone(), ask.nonce(), grant.token());
        let releasing = link.round_trip(store, None, move |state| state.release(&me, nonce, token));
        releasing.await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, nonce) = (member.clone(), ask.nonce());
        let withdrawing = link.round_trip(store, None, move |state| {
            state.withdraw(&me, nonce);
            Ok(())
        });
        withdrawing.await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, attempt) = (member.clone(), self.attempt(ask, None));
        let about = Some((member, ask.nonce()));
        let reclaiming = link.round_trip(store, about, move |state| {
            state.reclaim(&me, &attempt, token)
        });
        Ok(reclaiming.await?.map(grant))
    }
}
