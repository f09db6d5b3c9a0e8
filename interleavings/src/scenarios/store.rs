//! A store with one lock, whose requests, answers and messages are each on their way for a while.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use shuttle::future::yield_now;
use shuttle::rand::{Rng, thread_rng};

use crate::backend::{Ask, Backend, Grant, Lease, Locker, News, Opened, Settle, Waits};
use crate::exploring::{point, time};
use crate::session::{HasLocker, Held, LossReason, Store};
use crate::{
    Clock, Error, ErrorKind, FencingToken, Guarantees, Result, Session, SessionId, SessionOptions,
};

#[derive(Clone, Default)]
pub(super) struct Fake(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// When their leases end.
    sessions: BTreeMap<u64, (Duration, Arc<Waits>)>,
    opened: u64,
    /// Who waits, by session and nonce.
    line: VecDeque<(u64, u64)>,
    holder: Option<(u64, u64)>,
    token: u64,
    /// Asks whose late requests have no effect.
    settled: BTreeSet<u64>,
    /// What was to stay held when a session was detached.
    kept: Option<Vec<FencingToken>>,
    /// One in so many answers is lost, if any.
    loses: Option<u32>,
}

impl State {
    fn expire(&mut self) {
        let now = time::now();
        let ended = self.sessions.iter().filter(|(_, (ends, _))| *ends <= now);
        for session in ended.map(|(session, _)| *session).collect::<Vec<_>>() {
            self.forget(session);
        }
    }

    fn forget(&mut self, session: u64) {
        self.sessions.remove(&session);
        self.line.retain(|(of, _)| *of != session);
        if self.holder.is_some_and(|(of, _)| of == session) {
            self.holder = None;
        }
    }

    fn holds(&self, nonce: u64) -> bool {
        self.holder.is_some_and(|(_, holder)| holder == nonce)
    }
}

/// What is sent when a step is done: to whom, and what.
type Message = Option<(Arc<Waits>, u64, FencingToken)>;

impl Fake {
    pub(super) fn losing(one_in: u32) -> Self {
        let fake = Self::default();
        fake.raw().loses = Some(one_in);
        fake
    }

    fn raw(&self) -> MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) async fn open(&self, ttl: Duration) -> Session<Connection> {
        self.try_open(ttl).await.unwrap()
    }

    pub(super) async fn try_open(&self, ttl: Duration) -> Result<Session<Connection>> {
        let store = Store::new(self.clone());
        store.open(SessionOptions::new().ttl(ttl)).await
    }

    /// Whether the lock is held under `token`, at this very moment.
    pub(super) fn is_held(&self, token: FencingToken) -> bool {
        let state = self.raw();
        let lives = |session| {
            state
                .sessions
                .get(&session)
                .is_some_and(|(ends, _)| *ends > time::now())
        };
        state.token == token.get() && state.holder.is_some_and(|(session, _)| lives(session))
    }

    /// What was to stay held when a session was detached, if one was.
    pub(super) fn kept(&self) -> Option<Vec<FencingToken>> {
        self.raw().kept.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        let state = self.raw();
        state.sessions.is_empty() && state.line.is_empty() && state.holder.is_none()
    }

    /// One step of the store, which takes effect at one moment; what it sends is on its way before
    /// its answer is.
    async fn step<T>(&self, step: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        yield_now().await;
        let (answer, message, lost) = {
            let mut state = self.raw();
            state.expire();
            let answer = step(&mut state);
            let message = Self::grant(&mut state);
            (answer, message, state.loses)
        };
        if let Some((waits, nonce, token)) = message {
            point();
            waits.message(&format!("{nonce:x} {token}"));
        }
        yield_now().await;
        match lost {
            Some(one_in) if thread_rng().gen_ratio(1, one_in) => {
                let error = Error::new(ErrorKind::Unavailable, "the answer was lost");
                Err(error.with_effect(crate::Effect::Unknown))
            }
            _ => answer,
        }
    }

    fn grant(state: &mut State) -> Message {
        if state.holder.is_some() {
            return None;
        }
        let (session, nonce) = state.line.pop_front()?;
        state.holder = Some((session, nonce));
        state.token += 1;
        let (_, waits) = state.sessions.get(&session)?;
        Some((Arc::clone(waits), nonce, FencingToken::new(state.token)))
    }
}

#[async_trait]
impl Backend for Fake {
    type Session = Connection;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<Connection>> {
        let waits = Arc::<Waits>::default();
        let session = {
            let mut state = self.raw();
            state.opened += 1;
            let session = state.opened;
            state
                .sessions
                .insert(session, (time::now() + ttl, Arc::clone(&waits)));
            session
        };
        yield_now().await;
        Ok(Opened {
            lease: Arc::new(Connection {
                fake: self.clone(),
                session,
                ttl,
                waits,
            }),
            id: SessionId::new(session.to_string()),
            ttl,
            capacity: 9,
        })
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        Err(Error::unsupported("guarantees"))
    }

    fn clock(&self) -> Clock {
        Clock::tokio()
    }
}

/// One session on it.
pub(super) struct Connection {
    fake: Fake,
    session: u64,
    ttl: Duration,
    waits: Arc<Waits>,
}

impl Connection {
    /// Takes a place for `ask` if it has none; `None` if it has to wait.
    async fn join(&self, ask: &Ask, wait: bool) -> Result<Option<Grant>> {
        let (session, nonce) = (self.session, ask.nonce());
        let joined = self.fake.step(|state| {
            if !state.sessions.contains_key(&session) {
                return Err(Error::lost(LossReason::Expired));
            }
            if state.settled.contains(&nonce) {
                return Err(Error::withdrawn());
            }
            if state.holds(nonce) {
                return Ok(Some(state.token));
            }
            if state.holder.is_none() && state.line.is_empty() {
                state.holder = Some((session, nonce));
                state.token += 1;
                return Ok(Some(state.token));
            }
            if wait && !state.line.contains(&(session, nonce)) {
                state.line.push_back((session, nonce));
            }
            Ok(None)
        });
        let token = joined.await?;
        Ok(token.map(|token| Grant::new(FencingToken::new(token), "lock")))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        assert_eq!(self.waits.len(), 0, "somebody waits who has gone");
    }
}

#[async_trait]
impl Lease for Connection {
    async fn renew(&self) -> Result<()> {
        let renewed = self
            .fake
            .step(|state| match state.sessions.get_mut(&self.session) {
                Some((ends, _)) => {
                    *ends = time::now() + self.ttl;
                    Ok(())
                }
                None => Err(Error::lost(LossReason::Expired)),
            });
        renewed.await
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        let kept: Vec<_> = held.iter().map(|held| held.token).collect();
        let detached = self.fake.step(|state| {
            state.line.retain(|(of, _)| *of != self.session);
            if !kept.contains(&FencingToken::new(state.token)) {
                state.holder = None;
            }
            state.kept = Some(kept);
            Ok(())
        });
        detached.await
    }

    async fn revoke(&self) -> Result<()> {
        let revoked = self.fake.step(|state| {
            state.forget(self.session);
            Ok(())
        });
        revoked.await
    }
}

impl HasLocker for Connection {
    type Locker = Self;

    fn typed_locker(self: Arc<Self>) -> Arc<Self> {
        self
    }
}

#[async_trait]
impl Locker for Connection {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        self.join(ask, false).await
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        let waiting = self.waits.enter(ask.nonce());
        loop {
            if let Some(grant) = self.join(ask, true).await? {
                return Ok(grant);
            }
            tokio::select! {
                biased;
                () = ask.withdrawn() => return Err(Error::withdrawn()),
                news = waiting.news() => if let News::Granted(token) = news {
                    return Ok(Grant::new(token, "lock"));
                },
            }
        }
    }
}

#[async_trait]
impl Settle for Connection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let released = self.fake.step(|state| {
            let first = state.settled.insert(ask.nonce());
            if !state.holds(ask.nonce()) {
                return if first {
                    Err(Error::lost(LossReason::Revoked))
                } else {
                    Ok(())
                };
            }
            assert_eq!(state.token, grant.token().get(), "the token of another");
            state.holder = None;
            Ok(())
        });
        released.await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let withdrawn = self.fake.step(|state| {
            state.settled.insert(ask.nonce());
            state.line.retain(|(_, nonce)| *nonce != ask.nonce());
            if state.holds(ask.nonce()) {
                state.holder = None;
            }
            Ok(())
        });
        withdrawn.await
    }
}
