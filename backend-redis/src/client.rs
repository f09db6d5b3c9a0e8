//! The one connection of a store: commands and pushes, replaced when it breaks.
//!
//! Every connection has a number, higher than those before it, and every step carries the number of
//! the connection that it goes over. Once a step of a newer connection has reached a session, those
//! of older ones are refused by the script itself: what a dead connection still carries does
//! nothing. On one connection, Redis keeps the order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, SendError};
use redis::{AsyncConnectionConfig, Cmd, Msg, PushInfo, PushKind, RedisError, Value};
use tenure_core::{Effect, Result};
use tokio::sync::{Mutex as AsyncMutex, Notify};

use crate::config::RedisConfig;
use crate::endpoint;
use crate::error;
use crate::scripts::Script;

/// How long a failed reconnection waits before the next attempt.
const PAUSE: Duration = Duration::from_millis(100);

/// How long a channel is kept that nobody listens to: whoever watches something comes back at once.
const LINGER: Duration = Duration::from_secs(1);

/// A store's way to Redis, shared by its sessions.
pub(crate) struct Client {
    pub(crate) config: RedisConfig,
    me: Weak<Self>,
    state: Mutex<State>,
    /// Held by whoever makes a new connection.
    connecting: AsyncMutex<()>,
}

#[derive(Default)]
struct State {
    connection: Option<Arc<Connection>>,
    /// The number of the newest connection, or a higher one.
    number: u64,
    /// Who listens on each channel, whatever connection there is.
    channels: HashMap<String, Channel>,
    /// Tells listeners apart.
    listeners: u64,
}

#[derive(Default)]
struct Channel {
    listeners: HashMap<u64, Arc<dyn Listener>>,
}

/// What is told of the messages on a channel.
pub(crate) trait Listener: Send + Sync + 'static {
    /// A message came. Must not block.
    fn message(&self, payload: &[u8]);

    /// The connection was replaced, so messages may have been missed. Must not block.
    fn missed(&self);
}

/// Hears a channel for as long as it lives.
pub(crate) struct Listening {
    client: Arc<Client>,
    channel: String,
    number: u64,
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) number: u64,
    redis: MultiplexedConnection,
    broken: AtomicBool,
    gone: Notify,
}

impl Connection {
    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Nobody uses it any more.
    fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.gone.notify_one();
    }
}

impl Client {
    pub(crate) fn new(config: RedisConfig) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            config,
            me: me.clone(),
            state: Mutex::default(),
            connecting: AsyncMutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, made anew if there is none that works.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let _alone = self.connecting.lock().await;
        match self.current() {
            Some(connection) => Ok(connection),
            None => self.connect().await,
        }
    }

    fn current(&self) -> Option<Arc<Connection>> {
        let state = self.state();
        let connection = state.connection.as_ref()?;
        (!connection.is_broken()).then(|| Arc::clone(connection))
    }

    /// Has the next step go over a new connection.
    pub(crate) fn give_up(&self) {
        if let Some(connection) = &self.state().connection {
            connection.give_up();
        }
    }

    /// Whether `connection` is not what the next step would go over.
    pub(crate) fn is_replaced(&self, connection: &Connection) -> bool {
        self.current()
            .is_none_or(|current| current.number != connection.number)
    }

    /// From now on connections have numbers above `number`. The present one is given up if it has
    /// not.
    pub(crate) fn number_above(&self, number: u64) {
        let mut state = self.state();
        if state.number <= number {
            state.number = number;
            if let Some(connection) = &state.connection {
                connection.give_up();
            }
        }
    }

    async fn connect(&self) -> Result<Arc<Connection>> {
        let limit = self.config.connect_timeout;
        let connecting = async {
            let info = endpoint::primary(&self.config).await?;
            let client = redis::Client::open(info).map_err(error::from_redis)?;
            // Its pushes come before it has its number.
            let (me, itself) = (self.me.clone(), Arc::new(Mutex::new(Weak::new())));
            let connection = Arc::clone(&itself);
            let config = AsyncConnectionConfig::new()
                // Both are ours: see below, and `command`.
                .set_connection_timeout(None)
                .set_response_timeout(None)
                .set_push_sender(move |push| -> std::result::Result<(), SendError> {
                    pushed(&me, &connection, push);
                    Ok(())
                });
            let redis = client
                .get_multiplexed_async_connection_with_config(&config)
                .await
                .map_err(|e| error::from_redis(e).with_effect(Effect::None))?;
            Ok((redis, itself))
        };
        let (redis, itself) = tokio::time::timeout(limit, connecting)
            .await
            .map_err(|_| {
                error::no_connection(format!("no connection to Redis within {limit:?}"))
            })??;
        let (connection, channels) = {
            let mut state = self.state();
            state.number += 1;
            let connection = Arc::new(Connection {
                number: state.number,
                redis,
                broken: AtomicBool::new(false),
                gone: Notify::new(),
            });
            *itself.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(&connection);
            let channels: Vec<_> = state.channels.keys().cloned().collect();
            (connection, channels)
        };
        if !channels.is_empty() {
            self.subscribe(&connection, &channels).await?;
        }
        let missed: Vec<_> = {
            let mut state = self.state();
            state.connection = Some(Arc::clone(&connection));
            let listeners = state.channels.values().flat_map(|c| c.listeners.values());
            listeners.cloned().collect()
        };
        for listener in missed {
            listener.missed();
        }
        tracing::debug!(number = connection.number, "connected to Redis");
        self.mend(Arc::clone(&connection));
        Ok(connection)
    }

    /// Replaces the connection once it breaks, if somebody listens: those send nothing that would
    /// find out.
    fn mend(&self, connection: Arc<Connection>) {
        let me = self.me.clone();
        tokio::spawn(async move {
            connection.gone.notified().await;
            drop(connection);
            while let Some(client) = me.upgrade() {
                let needed = !client.state().channels.is_empty();
                if !needed || client.connection().await.is_ok() {
                    return;
                }
                drop(client);
                tokio::time::sleep(PAUSE).await;
            }
        });
    }

    async fn subscribe(&self, connection: &Connection, channels: &[String]) -> Result<()> {
        let mut command = redis::cmd("SUBSCRIBE");
        command.arg(channels);
        self.send(connection, &command).await.map(drop)
    }

    /// Hears `channel` from the moment this returns.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        channel: String,
        listener: Arc<dyn Listener>,
    ) -> Result<Listening> {
        let listening = {
            let mut state = self.state();
            state.listeners += 1;
            let number = state.listeners;
            let entry = state.channels.entry(channel.clone()).or_default();
            entry.listeners.insert(number, listener);
            Listening {
                client: Arc::clone(self),
                channel: channel.clone(),
                number,
            }
        };
        // Also if it is not the first: the other's request may be on its way still, or have failed.
        let connection = self.connection().await?;
        self.subscribe(&connection, &[channel]).await?;
        Ok(listening)
    }

    /// Sends a command over `connection` and waits for the answer. A connection that does not answer
    /// in time is given up.
    pub(crate) async fn send(&self, connection: &Connection, command: &Cmd) -> Result<Value> {
        self.sent(connection, command)
            .await?
            .map_err(error::from_redis)
    }

    async fn sent(
        &self,
        connection: &Connection,
        command: &Cmd,
    ) -> Result<std::result::Result<Value, RedisError>> {
        let mut redis = connection.redis.clone();
        let limit = self.config.timeout;
        match tokio::time::timeout(limit, redis.send_packed_command(command)).await {
            Ok(Err(error)) => {
                if error.is_io_error()
                    || error.is_connection_dropped()
                    || error.is_unrecoverable_error()
                    || error::means_moved(&error)
                {
                    connection.give_up();
                }
                Ok(Err(error))
            }
            Ok(answer) => Ok(answer.and_then(Value::extract_error)),
            Err(_) => {
                connection.give_up();
                Err(error::unanswered(limit))
            }
        }
    }

    /// Runs a script over `connection`. `arguments` come after the number of keys and the key.
    pub(crate) async fn run(
        &self,
        connection: &Connection,
        script: &Script,
        root: &str,
        arguments: impl Fn(&mut Cmd),
    ) -> Result<Value> {
        let command = |verb: &str, what: &str| {
            let mut command = redis::cmd(verb);
            command.arg(what).arg(1).arg(root);
            arguments(&mut command);
            command
        };
        match self
            .sent(connection, &command("EVALSHA", &script.hash))
            .await?
        {
            // It forgot its scripts, or never knew this one. Nothing has happened.
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.send(connection, &command("EVAL", &script.source))
                    .await
            }
            answer => answer.map_err(error::from_redis),
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let mut state = self.client.state();
        let Some(channel) = state.channels.get_mut(&self.channel) else {
            return;
        };
        channel.listeners.remove(&self.number);
        if !channel.listeners.is_empty() {
            return;
        }
        // Outside a runtime nobody can send: then the connection is going anyway.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                let (client, channel) = (
                    Arc::downgrade(&self.client),
                    std::mem::take(&mut self.channel),
                );
                runtime.spawn(unsubscribe(client, channel));
            }
            Err(_) => {
                state.channels.remove(&self.channel);
            }
        }
    }
}

/// Leaves a channel that nobody listens to, unless somebody does again after a while.
async fn unsubscribe(client: Weak<Client>, channel: String) {
    tokio::time::sleep(LINGER).await;
    let Some(client) = client.upgrade() else {
        return;
    };
    let connection = {
        let mut state = client.state();
        match state.channels.get(&channel) {
            Some(entry) if entry.listeners.is_empty() => {}
            _ => return,
        }
        state.channels.remove(&channel);
        state.connection.clone().filter(|c| !c.is_broken())
    };
    let Some(connection) = connection else {
        return;
    };
    let mut command = redis::cmd("UNSUBSCRIBE");
    command.arg(&channel);
    let _ = client.send(&connection, &command).await;
    // Taken up again in the meantime: that one's request may have been ahead of ours, and messages
    // may have gone by since.
    if !client.state().channels.contains_key(&channel) {
        return;
    }
    let again = [channel];
    let _ = client.subscribe(&connection, &again).await;
    let missed: Vec<_> = {
        let state = client.state();
        let listeners = again
            .iter()
            .filter_map(|channel| state.channels.get(channel));
        listeners
            .flat_map(|channel| channel.listeners.values().cloned())
            .collect()
    };
    for listener in missed {
        listener.missed();
    }
}

/// Something came that nobody asked for.
fn pushed(client: &Weak<Client>, connection: &Mutex<Weak<Connection>>, push: PushInfo) {
    if push.kind == PushKind::Disconnection {
        let connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(connection) = connection.upgrade() {
            connection.give_up();
        }
        return;
    }
    let (Some(client), Some(message)) = (client.upgrade(), Msg::from_push_info(push)) else {
        return;
    };
    let listeners: Vec<_> = {
        let state = client.state();
        match state.channels.get(message.get_channel_name()) {
            Some(channel) => channel.listeners.values().cloned().collect(),
            None => return,
        }
    };
    for listener in listeners {
        listener.message(message.get_payload_bytes());
    }
}
