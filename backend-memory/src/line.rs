//! Standing in a line of the embedded store, whatever the line is for (see `store.rs`).
//!
//! An acquire takes a place, then sleeps until it is woken or the lease of the place that it waits
//! for ends.

use std::sync::Arc;

use tenure_core::backend::{Ask, Grant, Side};
use tenure_core::{Error, FencingToken, Result};

use crate::error;
use crate::session::MemorySession;
use crate::store::{Attempt, Granted, Look, Object};

fn grant(granted: Granted) -> Grant {
    Grant::new(granted.token, granted.key)
}

impl MemorySession {
    fn attempt(&self, ask: &Ask, side: Side, value: Option<Arc<[u8]>>) -> Attempt {
        Attempt {
            object: Object {
                namespace: self.namespace.clone(),
                kind: ask.kind(),
                name: ask.name().clone(),
            },
            side,
            nonce: ask.nonce(),
            alarm: ask.alarm(),
            value,
        }
    }

    /// Takes a place if that holds at once; leaves nothing behind if not.
    pub(crate) async fn try_line(
        &self,
        ask: &Ask,
        side: Side,
        value: Option<Arc<[u8]>>,
    ) -> Result<Option<Grant>> {
        let (me, attempt) = (self.member.clone(), self.attempt(ask, side, value));
        let about = Some((&self.member, ask.nonce()));
        let trying = self.link.round_trip(&self.store, about, move |state| {
            state.join(&me, &attempt, false)
        });
        Ok(match trying.await? {
            Some(Look::Granted(granted)) => Some(grant(granted)),
            Some(Look::Wait(..)) | None => None,
        })
    }

    /// Takes a place and waits until it holds.
    pub(crate) async fn stand_in_line(
        &self,
        ask: &Ask,
        side: Side,
        value: Option<Arc<[u8]>>,
    ) -> Result<Grant> {
        let Self {
            store,
            link,
            member,
            ..
        } = self;
        let (me, attempt) = (member.clone(), self.attempt(ask, side, value));
        let about = Some((member, ask.nonce()));
        let joining = link.request(store, about, move |state| state.join(&me, &attempt, true));
        let (passage, joined) = joining.await?;
        let mut look = joined.and_then(|look| look.ok_or_else(error::removed_from_line));
        while let Ok(Look::Wait(woken, until)) = &look {
            tokio::select! {
                biased;
                () = woken.notified() => {}
                () = store.clock().sleep_until(*until) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
            look = store.step(|state| state.look(member, ask.nonce()));
        }
        link.answer(passage).await?;
        match look? {
            Look::Granted(granted) => Ok(grant(granted)),
            Look::Wait(..) => Err(error::removed_from_line()),
        }
    }

    /// Gives back what `ask` was granted.
    pub(crate) async fn leave_line(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let (me, nonce, token) = (self.member.clone(), ask.nonce(), grant.token());
        let releasing = self.link.round_trip(&self.store, None, move |state| {
            state.release(&me, nonce, token)
        });
        releasing.await
    }

    /// Removes whatever `ask` has, or may still get.
    pub(crate) async fn withdraw_from_line(&self, ask: &Ask) -> Result<()> {
        let (me, nonce) = (self.member.clone(), ask.nonce());
        let withdrawing = self.link.round_trip(&self.store, None, move |state| {
            state.withdraw(&me, nonce);
            Ok(())
        });
        withdrawing.await
    }

    /// Takes up what the session held under `token` before it was detached.
    pub(crate) async fn take_up_in_line(
        &self,
        ask: &Ask,
        token: FencingToken,
        side: Side,
    ) -> Result<Option<Grant>> {
        let (me, attempt) = (self.member.clone(), self.attempt(ask, side, None));
        let about = Some((&self.member, ask.nonce()));
        let reclaiming = self.link.round_trip(&self.store, about, move |state| {
            state.reclaim(&me, &attempt, token)
        });
        Ok(reclaiming.await?.map(grant))
    }
}
