//! The connection: one member at a time, with failover and a limit for every request.
//!
//! The client's own balancer goes on sending to a member that is dead: a third of the calls failed with one of two members down.
//! Each client here has one member therefore, and the first request that finds it dead or silent moves all to the next.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, LeaseGrantResponse, LeaseRevokeResponse, LeaseTimeToLiveResponse, MemberListResponse, ResponseHeader,
    StatusResponse, Txn, TxnResponse,
};
use tenure_core::executor::Executor;
use tenure_core::{Error, ErrorKind, Result};
use tokio::sync::{Mutex, watch};

use crate::config::{EtcdConfig, refuse};
use crate::error::{from_client, is_connection, is_unsent, revoked, unanswered};
use crate::history::History;
use crate::keys::Keys;
use crate::txn::Answer;

mod dial;
mod watches;

pub(crate) use watches::{Subscription, Target, Watches};

use dial::Dialer;

/// How long a member may take to prove that it lives, after a request had no answer in time. Short: a renewal may wait for
/// another connection.
const ALIVE: Duration = Duration::from_millis(250);

/// One client of the library, and its number in the order of their use.
pub(crate) struct Link {
    pub(crate) client: Client,
    pub(crate) number: u64,
}

/// Whether a request is sent again if its answer is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// A write that a caller has to settle.
    No,
    /// A read, or a write that does no harm twice.
    Yes,
}

/// An answer with a header.
pub(crate) trait HasHeader {
    /// Whether the member has applied everything that was acknowledged before the request.
    const IS_LINEARIZABLE: bool;

    fn header(&self) -> Option<&ResponseHeader>;
}

macro_rules! has_header {
    ($is_linearizable:literal: $($answer:ty),*) => {$(
        impl HasHeader for $answer {
            const IS_LINEARIZABLE: bool = $is_linearizable;

            fn header(&self) -> Option<&ResponseHeader> {
                self.header()
            }
        }
    )*};
}

has_header!(true: TxnResponse, LeaseGrantResponse, LeaseRevokeResponse);
has_header!(false: LeaseTimeToLiveResponse, MemberListResponse, StatusResponse);

/// The connection that all sessions of a store share.
pub(crate) struct Connection {
    pub(crate) history: History,
    pub(crate) executor: Executor,
    dialer: Dialer,
    endpoints: Vec<String>,
    timeout: Duration,
    current: watch::Sender<Arc<Link>>,
    /// The endpoint that was tried last. Locked while a task moves: one at a time.
    moving: Mutex<usize>,
    /// A key that this client may read, to compare histories by.
    probe: String,
}

impl Connection {
    pub(crate) async fn open(config: &EtcdConfig, executor: Executor) -> Result<Arc<Self>> {
        let dialer = Dialer::new(config).await?;
        let endpoints = config.endpoints.clone();
        // Random, so that the clients of a cluster are spread over its members.
        let first = RandomState::new().build_hasher().finish() as usize;
        let mut last = refuse("an etcd needs at least one endpoint");
        for tried in 0..endpoints.len() {
            let index = first.wrapping_add(tried) % endpoints.len();
            match dialer.dial(&endpoints[index]).await {
                Ok(client) => {
                    return Ok(Arc::new(Self {
                        history: History::default(),
                        executor,
                        dialer,
                        endpoints,
                        timeout: config.timeout,
                        current: watch::Sender::new(Arc::new(Link { client, number: 0 })),
                        moving: Mutex::new(index),
                        probe: Keys::new(&config.namespace).layout(),
                    }));
                }
                // Wrong credentials are wrong on every member.
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn link(&self) -> Arc<Link> {
        Arc::clone(&self.current.borrow())
    }

    /// Waits until the connection `number` was left.
    pub(crate) fn left(&self, number: u64) -> impl Future<Output = ()> + Send + use<> {
        let mut current = self.current.subscribe();
        async move {
            // Fails when the connection is dropped: then the caller ends too.
            let _ = current.wait_for(|link| link.number != number).await;
        }
    }

    /// Compares the store's history with the known one, by a linearizable read: the server behind a new connection may have been
    /// restored meanwhile. A server that answers and refuses the read shows nothing of its history.
    ///
    /// # Errors
    ///
    /// `Unavailable`.
    pub(crate) async fn compare_history(self: &Arc<Self>) -> Result<()> {
        let read = Txn::new().and_then([crate::txn::get(&self.probe)]);
        match self.txn(Repeat::Yes, read).await {
            Err(error) if error.kind() == ErrorKind::Unavailable => Err(error),
            _ => Ok(()),
        }
    }

    /// Sends a transaction. See [`call`](Self::call).
    pub(crate) async fn txn(self: &Arc<Self>, repeat: Repeat, txn: Txn) -> Result<Answer> {
        let answer = self.call(repeat, |client| {
            let (mut client, txn) = (client.kv_client(), txn.clone());
            async move { client.txn(txn).await }
        });
        answer.await.map(Answer::read)
    }

    /// Sends one request, bounded by the configured timeout. A request that was certainly not sent is tried on each endpoint.
    ///
    /// # Errors
    ///
    /// `Lost`, with an unknown effect, if the answer to a request that is not repeated is of another history than the request.
    pub(crate) async fn call<T, F>(self: &Arc<Self>, repeat: Repeat, request: impl Fn(&Client) -> F) -> Result<T>
    where
        T: HasHeader,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        loop {
            let mark = self.history.mark();
            let answer = self.on_each_endpoint(repeat, &request).await?;
            if self.history.judge(mark, answer.header(), T::IS_LINEARIZABLE) {
                return Ok(answer);
            }
            if repeat == Repeat::No {
                return Err(revoked().with_effect(tenure_core::Effect::Unknown));
            }
        }
    }

    async fn on_each_endpoint<T, F>(self: &Arc<Self>, repeat: Repeat, request: impl Fn(&Client) -> F) -> Result<T>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut left = self.endpoints.len();
        loop {
            let link = self.link();
            let answer = tokio::time::timeout(self.timeout, request(&link.client)).await;
            let (error, sent): (Error, bool) = match answer {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) if !is_connection(&error) => return Err(from_client(error)),
                Ok(Err(error)) => {
                    let sent = !is_unsent(&error);
                    self.leave(link.number).await;
                    (from_client(error), sent)
                }
                Err(_) => {
                    self.suspect(link.number).await;
                    (unanswered(self.timeout), true)
                }
            };
            left = left.saturating_sub(1);
            if left == 0 || (sent && !(repeat == Repeat::Yes && error.is_retryable())) {
                return Err(error);
            }
        }
    }

    /// Leaves the connection `number`, which was found dead or silent, for a new one to the next endpoint. With one endpoint it is
    /// a new connection to the same member: it does not wait for the retransmissions of a stalled one.
    pub(crate) async fn leave(self: &Arc<Self>, number: u64) {
        // In a task of its own: a renewal that runs out of time is dropped, and must not begin the move again each time.
        let connection = Arc::clone(self);
        let moved = self.executor.spawn(async move { connection.move_on(number).await });
        // Fails when the runtime ends.
        let _ = moved.await;
    }

    /// Returns the version of the member at the client URL `url`, which comes from the cluster's own list.
    pub(crate) async fn version_of(&self, url: &str) -> Option<String> {
        let client = self.dialer.dial_without_user(url).await.ok()?;
        let mut maintenance = client.maintenance_client();
        let status = tokio::time::timeout(self.timeout, maintenance.status()).await;
        Some(status.ok()?.ok()?.version().to_owned())
    }

    async fn move_on(&self, number: u64) {
        let mut tried = self.moving.lock().await;
        let link = self.link();
        if link.number != number {
            return;
        }
        *tried = (*tried + 1) % self.endpoints.len();
        let endpoint = &self.endpoints[*tried];
        let client = match self.dialer.dial(endpoint).await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(endpoint, error = %error.chain(), "this endpoint does not answer either");
                // A new number all the same: the tasks that wait for the move continue.
                link.client.clone()
            }
        };
        tracing::debug!(endpoint, "moved to another connection");
        let number = number + 1;
        self.current.send_replace(Arc::new(Link { client, number }));
    }

    /// Leaves the connection `number` if its member answers nothing any more, or follows no leader. A request without an answer
    /// may only have been slow, and all watches of this client are on the same connection.
    pub(crate) async fn suspect(self: &Arc<Self>, number: u64) {
        let link = self.link();
        if link.number != number {
            return;
        }
        let mut maintenance = link.client.maintenance_client();
        let is_alive = match tokio::time::timeout(ALIVE, maintenance.status()).await {
            Ok(Ok(status)) => status.leader() != 0,
            Ok(Err(error)) => !is_connection(&error),
            Err(_) => false,
        };
        if !is_alive {
            self.leave(number).await;
        }
    }
}
