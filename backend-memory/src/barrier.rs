//! Barriers and double barriers of the embedded store (see `store/barrier.rs`).

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tenure_core::backend::{Ask, Barrier, Grant, Kind, Settle, Side};
use tenure_core::{Error, ErrorKind, HoldFor, Moment, Name, Result};

use crate::session::MemorySession;
use crate::store::{Attempt, Entered, Object, Sight};

/// The barriers and double barriers of one session of the embedded store.
#[derive(Debug)]
pub struct MemoryBarrier {
    session: Arc<MemorySession>,
    /// What the lifts and releases on their way are to end: tried again after a lost answer, they
    /// know that they have ended it.
    ending: Mutex<HashMap<u64, u64>>,
}

impl MemoryBarrier {
    pub(crate) fn new(session: Arc<MemorySession>) -> Self {
        Self {
            session,
            ending: Mutex::default(),
        }
    }

    fn ending(&self) -> MutexGuard<'_, HashMap<u64, u64>> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn object(&self, kind: Kind, name: &Name) -> Object {
        Object {
            namespace: self.session.namespace.clone(),
            kind,
            name: name.clone(),
        }
    }

    fn attempt(&self, ask: &Ask) -> Attempt {
        Attempt {
            object: self.object(ask.kind(), ask.name()),
            nonce: ask.nonce(),
            alarm: ask.alarm(),
            value: None,
            side: Side::Write,
        }
    }

    async fn held(&self, object: &Object) -> Result<Option<u64>> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = object.clone();
        link.round_trip(store, None, move |state| Ok(state.held(&object)))
            .await
    }

    async fn sleep(&self, until: Option<Moment>) {
        match until {
            Some(until) => self.session.store.clock().sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Looks until there is something to be seen.
    async fn until_seen<T>(
        &self,
        mut sight: Result<Sight<T>>,
        look: impl Fn() -> Result<Sight<T>>,
    ) -> Result<T> {
        loop {
            let bell = match sight {
                Ok(Sight::Wait(bell, _)) => bell,
                Ok(Sight::Done(seen)) => return Ok(seen),
                Err(error) => return Err(error),
            };
            let mut rung = std::pin::pin!(bell.notified());
            rung.as_mut().enable();
            // It may have rung before we listened.
            sight = look();
            if let Ok(Sight::Wait(_, until)) = &sight {
                tokio::select! {
                    biased;
                    () = rung => {}
                    () = self.sleep(*until) => {}
                }
                sight = look();
            }
        }
    }
}

fn grant((granted, generation): Entered) -> Grant {
    Grant::new(granted.token, granted.key).attach(generation)
}

#[async_trait]
impl Barrier for MemoryBarrier {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.session;
        let (me, attempt) = (member.clone(), self.attempt(ask));
        let bound = hold_for == HoldFor::Session;
        let about = Some((member, ask.nonce()));
        let holding = link.round_trip(store, about, move |state| state.hold(&me, &attempt, bound));
        holding.await?;
        store.step(|state| state.hold_heard(member, ask.nonce()));
        Ok(())
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = self.object(ask.kind(), ask.name());
        let found = self.held(&object).await?;
        let before = self.ending().get(&ask.nonce()).copied();
        let number = match (found, before) {
            (Some(number), before) if before.is_none_or(|before| before == number) => number,
            // The one that was met at first has gone.
            (_, before) => {
                self.ending().remove(&ask.nonce());
                return Ok(before.is_some());
            }
        };
        self.ending().insert(ask.nonce(), number);
        let lifting = link.round_trip(store, None, move |state| {
            state.lift(&object, number);
            Ok(())
        });
        lifting.await?;
        self.ending().remove(&ask.nonce());
        Ok(true)
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        let object = self.object(Kind::Barrier, name);
        Ok(self.held(&object).await?.is_some())
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = self.object(Kind::Barrier, name);
        let met = object.clone();
        let looking = link.request(store, None, move |state| {
            let number = state.held(&met);
            Ok((number, state.look_at_hold(&met, number)))
        });
        let (passage, looked) = looking.await?;
        let (number, sight) = looked?;
        let look = || Ok(store.step(|state| state.look_at_hold(&object, number)));
        self.until_seen(Ok(sight), look).await?;
        link.answer(passage).await
    }

    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.session;
        let (me, attempt, object) = (
            member.clone(),
            self.attempt(ask),
            self.object(ask.kind(), ask.name()),
        );
        let about = Some((member, ask.nonce()));
        let entering = link.request(store, about, move |state| {
            state.enter(&me, &attempt, count.get())
        });
        let (passage, sight) = entering.await?;
        let look = || store.step(|state| state.look_into_room(member, &object, ask.nonce()));
        let entered = tokio::select! {
            biased;
            entered = self.until_seen(sight, look) => entered,
            () = ask.withdrawn() => return Err(Error::withdrawn()),
        };
        link.answer(passage).await?;
        Ok(grant(entered?))
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        let MemorySession { store, link, .. } = &*self.session;
        let object = self.object(Kind::DoubleBarrier, name);
        // A grant that is not ours has no generation, and nobody to wait for.
        let generation = grant.attachment::<u64>().copied().unwrap_or_default();
        let others = object.clone();
        let looking = link.request(store, None, move |state| {
            Ok(state.look_after_others(&others, generation))
        });
        let (passage, sight) = looking.await?;
        let look = || Ok(store.step(|state| state.look_after_others(&object, generation)));
        self.until_seen(sight, look).await?;
        link.answer(passage).await
    }
}

#[async_trait]
impl Settle for MemoryBarrier {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.session;
        let object = self.object(ask.kind(), ask.name());
        let (me, nonce, token) = (member.clone(), ask.nonce(), grant.token());
        let releasing = link.round_trip(store, None, move |state| {
            state.go_out(&me, &object, nonce, token)
        });
        let before = self.ending().insert(nonce, token.get());
        let released = releasing.await;
        match &released {
            Err(error) if error.is_retryable() => return released,
            _ => self.ending().remove(&nonce),
        };
        match released {
            // Absent after a release whose answer was lost: that release did it.
            Err(error) if error.kind() == ErrorKind::Lost && before.is_some() => Ok(()),
            released => released,
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let MemorySession {
            store,
            link,
            member,
            ..
        } = &*self.session;
        let (object, kind) = (self.object(ask.kind(), ask.name()), ask.kind());
        let (me, nonce) = (member.clone(), ask.nonce());
        let withdrawing = link.round_trip(store, None, move |state| {
            match kind {
                Kind::Barrier => state.unhold(&me, &object, nonce),
                _ => state.take_back(&me, &object, nonce),
            }
            Ok(())
        });
        withdrawing.await
    }
}
