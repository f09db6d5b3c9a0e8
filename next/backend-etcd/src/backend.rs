//! The connection to a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Backend, Opened, SessionEvents};
use tenure_core::executor::Executor;
use tenure_core::{Effect, Error, ErrorKind, FencingToken, Guarantees, Result, SessionId, Store};

use crate::config::EtcdConfig;
use crate::error::runtime_ended;
use crate::session;
use crate::shared::Shared;
use crate::{guarantees, tokens};

/// Connects to a store on etcd.
///
/// # Errors
///
/// Those of [`EtcdBackend::connect`].
pub async fn connect(config: EtcdConfig) -> Result<Store> {
    EtcdBackend::connect(config).await.map(Store::new)
}

/// A connection to a store on etcd, shared by its clones.
#[derive(Clone)]
pub struct EtcdBackend {
    config: Arc<EtcdConfig>,
    shared: Arc<Shared>,
}

impl EtcdBackend {
    /// Connects to a member, and claims the namespace for the layout of this version.
    ///
    /// # Errors
    ///
    /// `Config` for a namespace of another layout, and for a server that is no etcd of version 3.4 or later; `Unauthorized`;
    /// `Unavailable`. The message names the endpoints.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn connect(config: EtcdConfig) -> Result<Self> {
        let executor = config.executor.clone().map_or_else(Executor::library, Ok)?;
        let config = Arc::new(config);
        let own = Arc::clone(&config);
        // In a task: the sockets of the connection belong to the executor.
        let connecting = executor.clone().spawn(async move {
            let connected = Shared::connect(&own, executor).await;
            connected.map_err(|error| explain_first_contact(error, &own))
        });
        let shared = connecting.await.map_err(runtime_ended)??;
        Ok(Self {
            config,
            shared: Arc::new(shared),
        })
    }
}

/// Names the endpoints, and the probable cause. A server that is addressed in the wrong way closes the connection, as a rule without
/// a reason.
fn explain_first_contact(error: Error, config: &EtcdConfig) -> Error {
    if error.kind() != ErrorKind::Unavailable || !error.is_retryable() {
        return error;
    }
    let was_closed = error.effect() == Effect::Unknown && std::error::Error::source(&error).is_some();
    let endpoints = config.endpoints.join(", ");
    let message = match (was_closed, config.tls.is_some()) {
        (true, true) => format!(
            "etcd at {endpoints} closed the connection at the first request: if it demands a client certificate, give one that it \
             trusts (`cert`, `key`)"
        ),
        (true, false) => {
            format!(
                "etcd at {endpoints} closed the connection at the first request: if it speaks TLS, write `etcds://`"
            )
        }
        (false, true) => format!(
            "no etcd answers at {endpoints}: start it or correct the address; if it does not speak TLS, write `etcd://`"
        ),
        (false, false) => format!("no etcd answers at {endpoints}: start it or correct the address"),
    };
    Error::new(ErrorKind::Unavailable, message).with_source(error)
}

impl fmt::Debug for EtcdBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("EtcdBackend").field(&self.config).finish()
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        let label = match (label, &self.config.label) {
            ("", Some(own)) => own,
            (label, _) => label,
        };
        session::open(&self.shared, ttl, label, events).await
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        session::resume(&self.shared, id, events).await
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        guarantees::read(&self.shared.connection).await
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        tokens::raise(&self.shared.connection, &self.shared.keys.token_floor(), floor).await
    }

    fn executor(&self) -> Result<Executor> {
        Ok(self.shared.connection.executor.clone())
    }

    fn default_ttl(&self) -> Duration {
        self.config.ttl
    }
}
