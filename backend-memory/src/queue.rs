//! Queues of the embedded store (see `store/queue.rs`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Kind, Queue, Settle, Taken, Want};
use tenure_core::{Depth, Error, Item, Name, Peeked, Result};

use crate::session::MemorySession;
use crate::store::{Delivered, Found, Object, State};

/// The queues of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryQueue(Arc<MemorySession>);

impl MemoryQueue {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self(session)
    }

    fn object(&self, name: &Name) -> Object {
        Object {
            namespace: self.0.namespace.clone(),
            kind: Kind::Queue,
            name: name.clone(),
        }
    }

    async fn round_trip<T: Send + 'static>(
        &self,
        effect: impl FnOnce(&mut State) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.0.link.round_trip(&self.0.store, None, effect).await
    }
}

fn taken(delivered: Vec<Delivered>) -> Vec<Taken> {
    let taken = delivered.into_iter().map(|item| Taken {
        grant: Grant::new(item.token, item.key),
        value: item.value.to_vec(),
        priority: item.priority,
        deliveries: item.deliveries,
    });
    taken.collect()
}

#[async_trait]
impl Queue for MemoryQueue {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, object, nonce) = (member.clone(), self.object(ask.name()), ask.nonce());
        let items = items.to_vec();
        let about = Some((member, nonce));
        let enqueueing = link.round_trip(store, about, move |state| {
            state.enqueue(&me, &object, nonce, &items)
        });
        enqueueing.await?;
        store.without_time(|state| state.enqueued(member, nonce));
        Ok(())
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, object, nonce) = (member.clone(), self.object(ask.name()), ask.nonce());
        let want = want.clone();
        let about = Some((member, nonce));
        let taking = link.round_trip(store, about, move |state| {
            state.take(&me, &object, nonce, &want, false)
        });
        Ok(match taking.await? {
            Some(Found::Items(items)) => taken(items),
            Some(Found::Wait(..)) | None => Vec::new(),
        })
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.0;
        let (me, object, nonce) = (member.clone(), self.object(ask.name()), ask.nonce());
        let want = want.clone();
        let about = Some((member, nonce));
        let joining = link.request(store, about, move |state| {
            state.take(&me, &object, nonce, &want, true)
        });
        let (passage, joined) = joining.await?;
        let mut found = joined.and_then(|found| found.ok_or_else(crate::error::removed_from_line));
        while let Ok(Found::Wait(woken, until)) = &found {
            tokio::select! {
                biased;
                () = woken.notified() => {}
                () = store.clock().sleep_until(*until) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
            found = store.step(|state| state.found(member, nonce));
        }
        link.answer(passage).await?;
        match found? {
            Found::Items(items) => Ok(taken(items)),
            Found::Wait(..) => Err(crate::error::removed_from_line()),
        }
    }

    async fn ack(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let (me, object, token) = (
            self.0.member.clone(),
            self.object(ask.name()),
            grant.token(),
        );
        self.round_trip(move |state| state.ack(&me, &object, token))
            .await
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        let (me, object, token) = (
            self.0.member.clone(),
            self.object(ask.name()),
            grant.token(),
        );
        self.round_trip(move |state| state.nack(&me, &object, token, delay))
            .await
    }

    async fn depth(&self, name: &Name) -> Result<Depth> {
        let object = self.object(name);
        self.round_trip(move |state| Ok(state.depth(&object))).await
    }

    async fn peek(&self, name: &Name) -> Result<Option<Peeked>> {
        let object = self.object(name);
        self.round_trip(move |state| Ok(state.peek(&object))).await
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        let (me, object) = (self.0.member.clone(), self.object(ask.name()));
        self.round_trip(move |state| state.purge(&me, &object))
            .await
    }
}

#[async_trait]
impl Settle for MemoryQueue {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.nack(ask, grant, Duration::ZERO).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let (me, nonce) = (self.0.member.clone(), ask.nonce());
        self.round_trip(move |state| {
            state.withdraw(&me, nonce);
            Ok(())
        })
        .await
    }
}
