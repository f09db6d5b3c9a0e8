//! A session's side of the folder.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::Result;
use tenure_core::backend::{
    BackendSession, Departure, EndOutcome, Grant, Joined, Lease, Locker, Marker, Mode, Page, Request, WaitQueue,
};

use crate::space::Space;
use crate::state::Look;

/// How often a waiter looks whether the state has changed. A folder has nothing that could wake it.
const LOOK: Duration = Duration::from_millis(10);

/// How long one wait lasts.
const WAIT: Duration = Duration::from_secs(5);

pub(crate) struct FolderSession {
    space: Arc<Space>,
    number: u64,
}

impl FolderSession {
    pub(crate) fn new(space: Arc<Space>, number: u64) -> Self {
        Self { space, number }
    }

    async fn look(&self, request: &Request) -> Result<Look> {
        let (space, number, request) = (Arc::clone(&self.space), self.number, request.clone());
        let look = self
            .space
            .step(move |state| state.look(space.namespace(), number, &request));
        look.await
    }
}

#[async_trait]
impl Lease for FolderSession {
    async fn renew(&self) -> Result<()> {
        let number = self.number;
        self.space.step(move |state| state.renew(number)).await
    }

    async fn revoke(&self) -> Result<()> {
        let number = self.number;
        self.space.step(move |state| state.revoke(number)).await
    }

    async fn entries(&self, _: Option<&[u8]>) -> Result<Page> {
        let (space, number) = (Arc::clone(&self.space), self.number);
        let listing = self.space.step(move |state| state.entries(space.namespace(), number));
        listing.await.map(Page::last)
    }
}

impl BackendSession for FolderSession {
    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self)
    }
}

#[async_trait]
impl WaitQueue for FolderSession {
    async fn join(&self, request: &Request, _: Mode, _: Option<&[u8]>, wait: bool) -> Result<Joined> {
        let (space, number, request) = (Arc::clone(&self.space), self.number, request.clone());
        let join = self
            .space
            .step(move |state| state.join(space.namespace(), number, &request, wait));
        join.await
    }

    async fn wait(&self, request: &Request) -> Result<Option<Grant>> {
        let begun = self.space.now();
        loop {
            let seen = self.space.version();
            let until = match self.look(request).await? {
                Look::Granted(grant) => return Ok(Some(grant)),
                Look::Until(until) => until,
            };
            while self.space.version() == seen && self.space.now() < until {
                if self.space.now() - begun >= WAIT {
                    return Ok(None);
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn leave(&self, marker: Marker, departures: &[Departure]) -> Result<Vec<EndOutcome>> {
        let (number, departures) = (self.number, departures.to_vec());
        let leave = self.space.step(move |state| state.leave(number, marker, &departures));
        leave.await
    }
}

impl Locker for FolderSession {}
