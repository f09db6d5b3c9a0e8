//! The connection of a store: one line for commands and one for subscriptions, replaced together when either breaks.
//!
//! Redis drops a client that has subscribed to anything when its replies pile up
//! (`client-output-buffer-limit pubsub`), also those of commands: hence two lines.
//!
//! Every connection has a number, higher than those before it, and every step carries the number of
//! the connection that it goes over. Once a step of a newer connection has reached a session, those
//! of older ones are refused by the script itself: what a dead connection still carries does
//! nothing. On one connection, Redis keeps the order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use redis::aio::SendError;
use redis::{AsyncConnectionConfig, Cmd, Msg, PushInfo, PushKind, RedisError, Value};
use tenure_core::{Error, ErrorKind, Result};
use tokio::sync::{Mutex as AsyncMutex, Notify, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use crate::acks::Acks;
use crate::config::RedisConfig;
use crate::endpoint::{self, Directory, Facts, Wire};
use crate::error;
use crate::layout;
use crate::scripts::Script;
use crate::step::Arg;

/// The pause after the first of several connection attempts that fail, and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// How many small steps are on their way at once. A renewal, which waits for no turn, is behind no more than these.
const IN_FLIGHT: u32 = 128;

/// As many bytes of a request count as one more step.
const BYTES_A_STEP: usize = 64 * 1024;

/// How long a channel is kept that nobody listens to: whoever watches something comes back at once.
const LINGER: Duration = Duration::from_secs(1);

/// A store's way to Redis, shared by its sessions.
pub(crate) struct Client {
    pub(crate) config: RedisConfig,
    me: Weak<Self>,
    directory: Directory,
    state: Mutex<State>,
    /// Held by whoever makes a new connection.
    connecting: AsyncMutex<Attempts>,
    /// How many attempts to connect have ended.
    ended: AtomicU64,
    turns: Semaphore,
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

/// The attempts to connect since the last one that succeeded.
#[derive(Default)]
struct Attempts {
    failed: Option<Failure>,
    /// The next one may not begin before.
    next: Option<Instant>,
    pause: Duration,
}

/// How the last attempt failed: an error that can be told to many.
struct Failure {
    kind: ErrorKind,
    message: String,
    retryable: bool,
}

impl Attempts {
    fn failed(&mut self, error: &Error) {
        let [first, longest] = PAUSES;
        self.pause = (self.pause * 2).clamp(first, longest);
        self.next = Some(Instant::now() + self.pause);
        self.failed = Some(Failure {
            kind: error.kind(),
            message: error.chain().to_string(),
            retryable: error.is_retryable(),
        });
    }
}

impl Failure {
    fn tell(&self) -> Error {
        Error::new(self.kind, self.message.clone()).retryable(self.retryable)
    }
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

/// What the pushes of a connection know of it.
#[derive(Default)]
struct Itself {
    /// None before it has its number.
    connection: Weak<Connection>,
    /// It may end even before that.
    is_gone: bool,
}

/// One connection.
pub(crate) struct Connection {
    pub(crate) number: u64,
    wire: Wire,
    /// The line for subscriptions.
    news: Wire,
    acks: Option<Acks>,
    broken: AtomicBool,
    left: AtomicBool,
    gone: Notify,
}

impl Connection {
    pub(crate) fn facts(&self) -> &Facts {
        &self.wire.facts
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Whether its server said that it is not the one any more.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    /// Another server is to be asked.
    fn leave(&self) {
        self.left.store(true, Ordering::Release);
        self.give_up();
    }

    /// Nothing more is sent over it; what is on its way may arrive.
    pub(crate) fn give_up(&self) {
        self.broken.store(true, Ordering::Release);
        self.gone.notify_one();
    }

    /// It is of no use any more: who waits for an answer need not wait longer.
    fn cut(&self) {
        self.give_up();
        self.wire.cut();
        self.news.cut();
    }
}

impl Client {
    pub(crate) fn new(config: RedisConfig) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            config,
            me: me.clone(),
            directory: Directory::default(),
            state: Mutex::default(),
            connecting: AsyncMutex::default(),
            ended: AtomicU64::new(0),
            turns: Semaphore::new(IN_FLIGHT as usize),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection, made anew if there is none that works.
    ///
    /// However many ask at the same time, there is one attempt at a time, and its failure is told to
    /// all who waited for it. The next begins after a pause that grows.
    pub(crate) async fn connection(&self) -> Result<Arc<Connection>> {
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        let seen = self.ended.load(Ordering::Acquire);
        let Some(me) = self.me.upgrade() else {
            return Err(error::no_connection("the store was dropped"));
        };
        // In a task of its own: whoever asks may not be polled again for long, or be dropped, and
        // everybody else needs what it makes.
        let making = tokio::spawn(async move { me.connected(seen).await });
        making
            .await
            .unwrap_or_else(|_| Err(error::no_connection("the runtime is shutting down")))
    }

    /// The connection, if need be by an attempt of ours; or how an attempt failed that has ended since
    /// `seen` had.
    async fn connected(&self, seen: u64) -> Result<Arc<Connection>> {
        let mut attempts = self.connecting.lock().await;
        if let Some(connection) = self.current() {
            return Ok(connection);
        }
        if self.ended.load(Ordering::Acquire) != seen
            && let Some(failure) = &attempts.failed
        {
            return Err(failure.tell());
        }
        if let Some(next) = attempts.next {
            tokio::time::sleep_until(next).await;
        }
        let connected = self.connect().await;
        match &connected {
            Ok(_) => *attempts = Attempts::default(),
            Err(error) => attempts.failed(error),
        }
        self.ended.fetch_add(1, Ordering::AcqRel);
        connected
    }

    /// The connection, if there is one that works.
    pub(crate) fn current(&self) -> Option<Arc<Connection>> {
        let state = self.state();
        let connection = state.connection.as_ref()?;
        (!connection.is_broken()).then(|| Arc::clone(connection))
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
        let root = layout::root(&self.config.namespace);
        let pushes = || self.pushes();
        let found = self.directory.primary(&self.config, &root, pushes).await;
        let (wire, itself) = found?;
        let settings = self.settings(&itself);
        let news = Directory::another(&self.config, &wire.address, settings).await?;
        let acks = match Acks::wanted(&self.config) {
            true => Some(Acks::connect(&self.config, &wire.address, root).await?),
            false => None,
        };
        let (connection, channels) = {
            let mut state = self.state();
            state.number += 1;
            let connection = Arc::new(Connection {
                number: state.number,
                wire,
                news,
                acks,
                broken: AtomicBool::new(false),
                left: AtomicBool::new(false),
                gone: Notify::new(),
            });
            let mut itself = itself.lock().unwrap_or_else(PoisonError::into_inner);
            itself.connection = Arc::downgrade(&connection);
            if itself.is_gone {
                connection.give_up();
            }
            let channels: Vec<_> = state.channels.keys().cloned().collect();
            (connection, channels)
        };
        if !channels.is_empty() {
            self.subscribe(&connection, &channels).await?;
        }
        let missed: Vec<_> = {
            let mut state = self.state();
            state.connection = Some(Arc::clone(&connection));
            // Not if a resumed session wants a higher number, which it asked for meanwhile.
            if state.number > connection.number {
                connection.give_up();
            }
            let listeners = state.channels.values().flat_map(|c| c.listeners.values());
            listeners.cloned().collect()
        };
        for listener in missed {
            listener.missed();
        }
        tracing::debug!(
            number = connection.number,
            address = %connection.wire.address,
            version = connection.wire.facts.version,
            "connected to Redis"
        );
        self.mend(Arc::clone(&connection));
        Ok(connection)
    }

    /// The settings of a new connection's first line, and where its pushes look for it: they come before it has
    /// its number.
    fn pushes(&self) -> (AsyncConnectionConfig, Arc<Mutex<Itself>>) {
        let itself = Arc::<Mutex<Itself>>::default();
        (self.settings(&itself), itself)
    }

    /// The settings of a line of the connection that `itself` is of.
    fn settings(&self, itself: &Arc<Mutex<Itself>>) -> AsyncConnectionConfig {
        let (me, connection) = (self.me.clone(), Arc::clone(itself));
        endpoint::settings().set_push_sender(move |push| -> std::result::Result<(), SendError> {
            pushed(&me, &connection, push);
            Ok(())
        })
    }

    /// Waits until the step may be sent, after those that came before it; none for one that overtakes them.
    pub(crate) async fn turn(
        &self,
        script: &Script,
        arguments: &[Arg<'_>],
    ) -> Option<SemaphorePermit<'_>> {
        if script.overtakes() {
            return None;
        }
        let bytes: usize = arguments.iter().map(Arg::len).sum();
        let weight = match script.name {
            // Their answers may have megabytes.
            "stm_read" => {
                (4 * u32::try_from(arguments.len()).unwrap_or(IN_FLIGHT)).min(IN_FLIGHT / 4)
            }
            "queue_take" => IN_FLIGHT / 32,
            _ => u32::try_from(1 + bytes / BYTES_A_STEP).unwrap_or(IN_FLIGHT),
        };
        // It is never closed.
        self.turns.acquire_many(weight.min(IN_FLIGHT)).await.ok()
    }

    /// Watches over a connection for those who listen: they send nothing that would find out that the
    /// server is silent or gone. Replaces it when it breaks.
    fn mend(&self, connection: Arc<Connection>) {
        let me = self.me.clone();
        let beat = self.config.timeout;
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = connection.gone.notified() => break,
                    () = tokio::time::sleep(beat) => {}
                }
                let Some(client) = me.upgrade() else {
                    return;
                };
                if !client.state().channels.is_empty() {
                    // What it answers does not matter, but that it does.
                    let ping = redis::cmd("PING");
                    let (commands, news) = (&connection.wire, &connection.news);
                    let _ = tokio::join!(
                        client.sent(&connection, commands, &ping),
                        client.sent(&connection, news, &ping),
                    );
                }
            }
            drop(connection);
            while let Some(client) = me.upgrade() {
                if client.state().channels.is_empty() {
                    return;
                }
                match client.connection().await {
                    Ok(_) => return,
                    // No repetition helps: those who wait shall hear it.
                    Err(error) if !error.is_retryable() => {
                        tracing::warn!(error = %error.chain(), "cannot connect to Redis any more");
                        client.tell_missed(None);
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(error = %error.chain(), "cannot connect to Redis yet")
                    }
                }
            }
        });
    }

    /// Has the listeners of a channel, or all, look again.
    fn tell_missed(&self, channel: Option<&str>) {
        let listeners: Vec<_> = {
            let state = self.state();
            let channels = state.channels.iter();
            channels
                .filter(|(name, _)| channel.is_none_or(|channel| channel == *name))
                .flat_map(|(_, channel)| channel.listeners.values().cloned())
                .collect()
        };
        for listener in listeners {
            listener.missed();
        }
    }

    async fn subscribe(&self, connection: &Connection, channels: &[String]) -> Result<()> {
        let mut command = redis::cmd("SUBSCRIBE");
        command.arg(channels);
        self.send_news(connection, &command).await
    }

    /// Sends a command that is about subscriptions.
    async fn send_news(&self, connection: &Connection, command: &Cmd) -> Result<()> {
        self.sent(connection, &connection.news, command)
            .await?
            .map(drop)
            .map_err(error::from_redis)
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
        self.sent(connection, &connection.wire, command)
            .await?
            .map_err(error::from_redis)
    }

    /// Sends a command over a line of `connection`.
    async fn sent(
        &self,
        connection: &Connection,
        line: &Wire,
        command: &Cmd,
    ) -> Result<std::result::Result<Value, RedisError>> {
        let mut redis = line.redis.clone();
        let limit = self.config.timeout;
        match tokio::time::timeout(limit, redis.send_packed_command(command)).await {
            Ok(Err(error)) => {
                if error.is_io_error()
                    || error.is_connection_dropped()
                    || error.is_unrecoverable_error()
                {
                    connection.give_up();
                }
                if error::means_moved(&error) {
                    connection.leave();
                }
                Ok(Err(error))
            }
            Ok(Ok(value)) => {
                let answer = value.extract_error();
                if answer.as_ref().is_err_and(error::means_moved) {
                    connection.leave();
                }
                Ok(answer)
            }
            Err(_) => {
                connection.cut();
                Err(error::unanswered(limit))
            }
        }
    }

    /// Waits until enough others have what `connection` has done so far, if that was asked for.
    pub(crate) async fn confirm(&self, connection: &Connection) -> Result<()> {
        match &connection.acks {
            None => Ok(()),
            Some(acks) => acks.confirm(&self.config).await.inspect_err(|error| {
                if error.is_retryable() && acks.is_broken() {
                    // It belongs to the connection: only while both live is it the same server.
                    connection.cut();
                }
            }),
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
        let answer = match self
            .sent(
                connection,
                &connection.wire,
                &command("EVALSHA", &script.hash),
            )
            .await?
        {
            // It forgot its scripts, or never knew this one. Nothing has happened.
            Err(error) if error.code() == Some("NOSCRIPT") => {
                self.sent(
                    connection,
                    &connection.wire,
                    &command("EVAL", &script.source),
                )
                .await?
            }
            answer => answer,
        };
        answer.map_err(|error| error::from_script(error, &script.source))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if let Some(connection) = &self.state().connection {
            connection.give_up();
        }
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
    let _ = client.send_news(&connection, &command).await;
    // Taken up again in the meantime: that one's request may have been ahead of ours, and messages
    // may have gone by since.
    if !client.state().channels.contains_key(&channel) {
        return;
    }
    let again = [channel];
    let _ = client.subscribe(&connection, &again).await;
    client.tell_missed(Some(&again[0]));
}

/// Something came that nobody asked for.
fn pushed(client: &Weak<Client>, itself: &Mutex<Itself>, push: PushInfo) {
    if push.kind == PushKind::Disconnection {
        let mut itself = itself.lock().unwrap_or_else(PoisonError::into_inner);
        itself.is_gone = true;
        if let Some(connection) = itself.connection.upgrade() {
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

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tenure_testbed::RedisServer;
    use tokio::net::TcpListener;

    use super::*;

    fn client(address: impl ToString) -> Arc<Client> {
        let limit = Duration::from_secs(10);
        let config = RedisConfig::new(address.to_string());
        Client::new(config.timeout(limit).connect_timeout(limit))
    }

    #[tokio::test]
    async fn however_many_ask_there_is_one_connection() {
        let server = RedisServer::start_async().await.unwrap();
        let client = client(server.address());
        for number in 1..=3 {
            let all = join_all((0..100).map(|_| client.connection())).await;
            for connection in all {
                assert_eq!(connection.unwrap().number, number);
            }
            client.connection().await.unwrap().cut();
        }
    }

    #[tokio::test]
    async fn however_many_ask_there_is_one_attempt_at_a_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = client(listener.local_addr().unwrap());
        let accepted = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&accepted);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                drop(stream);
            }
        });
        let start = Instant::now();
        for round in 1..=4 {
            let all = join_all((0..100).map(|_| client.connection())).await;
            for refused in all {
                assert!(refused.is_err_and(|error| error.is_retryable()));
            }
            assert_eq!(accepted.load(Ordering::SeqCst), round);
        }
        // The pauses between the four.
        let [first, _] = PAUSES;
        assert!(start.elapsed() >= first * (1 + 2 + 4));
    }

    #[tokio::test]
    async fn a_higher_number_is_one_for_the_next_connection() {
        let server = RedisServer::start_async().await.unwrap();
        let client = client(server.address());
        assert_eq!(client.connection().await.unwrap().number, 1);
        client.number_above(7);
        assert_eq!(client.connection().await.unwrap().number, 8);
        client.number_above(7);
        assert_eq!(client.connection().await.unwrap().number, 8);
    }

    #[tokio::test]
    async fn who_asks_and_is_not_polled_again_is_in_nobodys_way() {
        let server = RedisServer::start_async().await.unwrap();
        let client = client(server.address());
        let mut asking = Box::pin(client.connection());
        assert!(futures_util::poll!(&mut asking).is_pending());
        let limit = Duration::from_secs(5);
        let another = tokio::time::timeout(limit, client.connection()).await;
        assert_eq!(another.unwrap().unwrap().number, 1);
        assert_eq!(asking.await.unwrap().number, 1);
    }

    #[tokio::test]
    async fn an_end_before_the_number_is_known_is_not_forgotten() {
        let server = RedisServer::start_async().await.unwrap();
        let client = client(server.address());
        let (_, itself) = client.pushes();
        let gone = PushInfo {
            kind: PushKind::Disconnection,
            data: Vec::new(),
        };
        pushed(&client.me, &itself, gone);
        assert!(itself.lock().unwrap().is_gone);
    }

    struct Bell(Notify);

    impl Listener for Bell {
        fn message(&self, _: &[u8]) {}

        fn missed(&self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn who_listens_gets_a_new_connection_without_asking() {
        let server = RedisServer::start_async().await.unwrap();
        let client = client(server.address());
        let bell = Arc::new(Bell(Notify::new()));
        let listener = Arc::clone(&bell) as Arc<dyn Listener>;
        let _listening = client.listen("x".into(), listener).await.unwrap();
        // The first connection was one, too.
        bell.0.notified().await;
        for _ in 0..20 {
            let kill = ["CLIENT", "KILL", "TYPE", "pubsub"];
            server.command(&kill).unwrap();
            bell.0.notified().await;
            let heard = server.command(&["PUBSUB", "NUMSUB", "x"]).unwrap();
            assert!(heard.ends_with('1'), "{heard}");
        }
    }
}
