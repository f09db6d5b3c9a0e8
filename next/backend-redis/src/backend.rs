//! The connection to a store.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Backend, Opened, SessionEvents};
use tenure_core::executor::Executor;
use tenure_core::{Error, ErrorKind, FencingToken, Guarantees, Result, SessionId, Store};

use crate::config::RedisConfig;
use crate::connection::Client;
use crate::guarantees;
use crate::session::Sessions;

/// The greatest token floor. It leaves 2^52 tokens that the scripts can tell apart.
const GREATEST_FLOOR: FencingToken = FencingToken::new(1 << 52);

/// Connects to a store on Redis.
///
/// # Errors
///
/// Those of [`RedisBackend::connect`].
pub async fn connect(config: RedisConfig) -> Result<Store> {
    RedisBackend::connect(config).await.map(Store::new)
}

/// A connection to a store on Redis, shared by its clones.
#[derive(Clone)]
pub struct RedisBackend {
    client: Client,
    executor: Executor,
    sessions: Sessions,
}

impl RedisBackend {
    /// Connects to the server that serves the configured namespace.
    ///
    /// # Errors
    ///
    /// `Config` for a server that may not be used, such as one before Redis 7.0, a replica's URL or one that evicts keys;
    /// `Unauthorized`; `Unavailable`. The message names the endpoint.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub async fn connect(config: RedisConfig) -> Result<Self> {
        let executor = config.executor.clone().map_or_else(Executor::library, Ok)?;
        let client = Client::connect(Arc::new(config), &executor).await?;
        let sessions = Sessions::new(client.clone(), executor.clone());
        Ok(Self {
            client,
            executor,
            sessions,
        })
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RedisBackend").field(self.client.config()).finish()
    }
}

#[async_trait]
impl Backend for RedisBackend {
    async fn open(&self, ttl: Duration, label: &str, events: SessionEvents) -> Result<Opened> {
        self.sessions.open(ttl, label, events).await
    }

    async fn resume(&self, id: &SessionId, events: SessionEvents) -> Result<Opened> {
        self.sessions.resume(id, events).await
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        let link = self.client.link().await?;
        guarantees::read(&link, self.client.config()).await
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        if floor > GREATEST_FLOOR {
            let message = format!("a token floor of {floor}: {GREATEST_FLOOR} is the most, to leave tokens above it");
            return Err(Error::new(ErrorKind::TooLarge, message));
        }
        let link = self.client.link().await?;
        let answer = self.act(&link, "floor", "", vec![floor.into()]).await?;
        match answer.word()? {
            "ok" => Ok(()),
            _ => Err(answer.unexpected()),
        }
    }

    fn executor(&self) -> Result<Executor> {
        Ok(self.executor.clone())
    }

    fn default_ttl(&self) -> Duration {
        self.client.config().ttl
    }
}
