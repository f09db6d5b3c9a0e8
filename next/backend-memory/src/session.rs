//! A session's side of the embedded store: every trait of the backend API, each method one step.

use std::num::NonZeroU32;
use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{
    BackendSession, Barrier, Claim, Commit, CommitOutcome, Departure, Election, EndOutcome, Grant, Item, Joined, Key,
    KeyRead, LeaderUpdate, Lease, Locker, Marker, Mode, Nonce, Page, PeekedItem, Queue, QueueDepth, Request,
    Resolution, Return, RwLock, Snapshot, Stm, TakeLimit, TakenItem, WaitQueue,
};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Name, Result};

use crate::state::{Look, Member, Space, State, Topic};

/// A session of the embedded store.
pub(crate) struct MemorySession {
    space: Arc<Space>,
    member: Member,
}

impl MemorySession {
    pub(crate) fn new(space: Arc<Space>, member: Member) -> Self {
        Self { space, member }
    }

    /// Runs one step. Now and then it yields, because a loop of steps would keep others from the runtime's thread.
    async fn step<T>(&self, step: impl FnOnce(&mut State, &Member) -> Result<T> + Send) -> Result<T> {
        tokio::task::coop::consume_budget().await;
        self.space.step(|state| step(state, &self.member))
    }

    async fn wait<T: Send>(
        &self,
        topics: Vec<Topic>,
        mut look: impl FnMut(&mut State, &Member) -> Result<Look<T>> + Send,
    ) -> Result<T> {
        tokio::task::coop::consume_budget().await;
        self.space.wait(topics, |state| look(state, &self.member)).await
    }

    fn topic(&self, request: &Request) -> Vec<Topic> {
        vec![Topic::Request(self.member.session, request.nonce())]
    }
}

fn object(kind: Kind, name: &Name) -> Topic {
    Topic::Object(Key {
        kind,
        name: name.clone(),
    })
}

#[async_trait]
impl Lease for MemorySession {
    async fn renew(&self) -> Result<()> {
        self.step(|state, me| state.renew(me)).await
    }

    async fn revoke(&self) -> Result<()> {
        self.step(|state, me| state.revoke(me)).await
    }

    async fn detach(&self, kept: &[Nonce]) -> Result<()> {
        self.step(|state, me| state.detach(me, kept)).await
    }

    async fn entries(&self, cursor: Option<&[u8]>) -> Result<Page> {
        let broken = |_| Error::new(ErrorKind::Internal, "a cursor of another store");
        let after = cursor.map(<[u8; 8]>::try_from).transpose().map_err(broken)?;
        let after = after.map(|bytes| Nonce::new(u64::from_be_bytes(bytes)));
        self.step(|state, me| state.page(me, after)).await
    }
}

impl BackendSession for MemorySession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self)
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self)
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(self)
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(self)
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(self)
    }
}

#[async_trait]
impl WaitQueue for MemorySession {
    async fn join(&self, request: &Request, mode: Mode, value: Option<&[u8]>, wait: bool) -> Result<Joined> {
        self.step(|state, me| state.join(me, request, mode, value, wait)).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let look = |state: &mut State, me: &Member| state.look_in_wait_queue(me, request);
        self.wait(self.topic(request), look).await.map(Some)
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.step(|state, me| state.leave(me, marker, departures)).await
    }
}

impl Locker for MemorySession {}

#[async_trait]
impl RwLock for MemorySession {
    async fn downgrade(&self, marker: Marker, request: &Request, token: FencingToken) -> Result<()> {
        self.step(|state, me| state.downgrade(me, marker, request, token)).await
    }
}

#[async_trait]
impl Election for MemorySession {
    async fn proclaim(&self, request: &Request, token: FencingToken, number: u64, value: &[u8]) -> Result<()> {
        self.step(|state, me| state.proclaim(me, request, token, number, value))
            .await
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<LeaderUpdate> {
        let look = |state: &mut State, me: &Member| state.look_at_election(me, name, after);
        self.wait(vec![object(Kind::Election, name)], look).await
    }
}

#[async_trait]
impl Queue for MemorySession {
    async fn enqueue(&self, marker: Marker, name: &Name, items: &[Item]) -> Result<()> {
        self.step(|state, me| state.enqueue(me, marker, name, items)).await
    }

    async fn take(&self, request: &Request, limit: &TakeLimit, wait: bool) -> Result<Joined<Vec<TakenItem>>> {
        self.step(|state, me| state.take(me, request, limit, wait)).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Vec<TakenItem>>> {
        let look = |state: &mut State, me: &Member| state.look_for_items(me, request);
        self.wait(self.topic(request), look).await.map(Some)
    }

    async fn ack(&self, marker: Marker, claims: &[Claim]) -> Result<Vec<EndOutcome>> {
        self.step(|state, me| state.ack(me, marker, claims)).await
    }

    async fn nack(&self, marker: Marker, returns: &[Return]) -> Result<Vec<EndOutcome>> {
        self.step(|state, me| state.nack(me, marker, returns)).await
    }

    async fn leave(&self, requests: &[Request]) -> Result<()> {
        self.step(|state, me| state.withdraw_takes(me, requests)).await
    }

    async fn depth(&self, name: &Name) -> Result<QueueDepth> {
        self.step(|state, me| state.depth(me, name)).await
    }

    async fn peek(&self, name: &Name) -> Result<Option<PeekedItem>> {
        self.step(|state, me| state.peek(me, name)).await
    }

    async fn purge(&self, marker: Marker, name: &Name) -> Result<u64> {
        self.step(|state, me| state.purge(me, marker, name)).await
    }
}

#[async_trait]
impl Barrier for MemorySession {
    async fn enter(&self, request: &Request, count: NonZeroU32) -> Result<Joined> {
        self.step(|state, me| state.enter(me, request, count)).await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let look = |state: &mut State, me: &Member| state.look_in_generation(me, request);
        self.wait(self.topic(request), look).await.map(Some)
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        self.step(|state, me| state.leave(me, marker, departures)).await
    }

    async fn all_left(&self, name: &Name, token: FencingToken) -> Result<bool> {
        let look = |state: &mut State, me: &Member| state.look_for_others(me, name, token);
        self.wait(vec![object(Kind::DoubleBarrier, name)], look)
            .await
            .map(|()| true)
    }
}

#[async_trait]
impl Stm for MemorySession {
    async fn read(&self, keys: &[KeyRead], at: Option<u64>) -> Result<Snapshot> {
        self.step(|state, me| state.read(me, keys, at)).await
    }

    async fn commit(&self, commit: &Commit) -> Result<CommitOutcome> {
        self.step(|state, me| state.commit(me, commit)).await
    }

    async fn resolve(&self, marker: Marker) -> Result<Resolution> {
        self.step(|state, me| state.resolve(me, marker)).await
    }

    async fn changed(&self, keys: &[Key], revision: u64) -> Result<()> {
        let topics = keys.iter().cloned().map(Topic::Object).collect();
        let look = |state: &mut State, me: &Member| state.look_at_keys(me, keys, revision);
        self.wait(topics, look).await
    }

    fn check(&self, commit: &Commit) -> Result<()> {
        crate::state::check_commit(commit)
    }
}
