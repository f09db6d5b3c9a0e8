//! The connection of a store: a supervisor on the library's thread keeps one [`Link`] and replaces it when it ends.
//!
//! A link has a connection for commands and one for renewals and messages. Redis closes a connection with subscriptions when its
//! replies pile up (`client-output-buffer-limit pubsub`), and no burst of commands may delay a renewal. They are replaced
//! together, and each link has an epoch, which every script compares: once a request of a newer link has reached a session,
//! those of older ones are refused. On one connection, Redis keeps the order.
//!
//! While the application's runtime works, the connection for commands lives there; see [`home`]. No timer runs there: the
//! supervisor ends a link whose server is silent, and that ends its requests.

mod dial;
mod home;
mod replication;
mod sentinel;
mod socket;
mod stream;
mod subscriber;
mod supervisor;
mod tls;
mod topology;

use std::sync::Arc;

use redis::{Cmd, RedisError, Value};
use tenure_core::executor::Executor;
use tenure_core::{Error, Result};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use self::replication::Replication;
use self::socket::{Ended, Failure, Socket};
use self::supervisor::{Shared, State};
use crate::config::RedisConfig;
use crate::error;
use crate::script::{Argument, Script};

pub(crate) use self::dial::{Facts, field, text};
pub(crate) use self::subscriber::{Pushed, Subscription};

/// The words of an answer that grants nothing and changes nothing: it needs no confirmation.
const NOTHING_DONE: &[&[u8]] = &[b"waiting", b"busy", b"lost", b"stale", b"sweep", b"conflict", b"taken"];

/// A store's access to Redis. Its sessions share it; dropping the last clone ends its tasks.
#[derive(Clone)]
pub(crate) struct Client(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    supervisor: AbortHandle,
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.supervisor.abort();
    }
}

impl Client {
    /// Makes the first link.
    ///
    /// # Errors
    ///
    /// Those of the first attempt; the message names the endpoint.
    pub(crate) async fn connect(config: Arc<RedisConfig>, executor: &Executor) -> Result<Self> {
        let (shared, supervisor) = supervisor::start(config, executor);
        let client = Self(Arc::new(Owner { shared, supervisor }));
        // The first attempt may have ended already.
        client.link_after(0).await?;
        Ok(client)
    }

    /// Returns the present link, or waits for the next one.
    ///
    /// # Errors
    ///
    /// The failure of the next attempt that ends, and `Unavailable` if none ends within the configured `timeout`.
    ///
    /// # Cancel safety
    ///
    /// May be dropped at any point.
    pub(crate) async fn link(&self) -> Result<Link> {
        let attempts = {
            let state = self.0.shared.state.borrow();
            match usable(&state) {
                Some(link) => return Ok(link),
                None => state.attempts,
            }
        };
        self.0.shared.asked.notify_one();
        self.link_after(attempts).await
    }

    /// Waits for a link, or for the failure of an attempt after the first `seen` ones.
    async fn link_after(&self, seen: u64) -> Result<Link> {
        let shared = &self.0.shared;
        let mut states = shared.state.subscribe();
        let limit = shared.config.timeout;
        let timer = {
            let _entered = shared.executor.enter();
            sleep(limit)
        };
        let found =
            states.wait_for(|state| usable(state).is_some() || state.attempts > seen && state.failure.is_some());
        tokio::select! {
            biased;
            state = found => match state {
                Ok(state) => match (usable(&state), &state.failure) {
                    (Some(link), _) => Ok(link),
                    (None, Some(failure)) => Err(failure.error()),
                    (None, None) => Err(error::replaced()),
                },
                Err(_) => Err(error::replaced()),
            },
            () = timer => {
                let error = error::unavailable(format!("no connection to Redis within {limit:?}"));
                Err(match &shared.state.borrow().failure {
                    Some(failure) => error.with_source(failure.error()),
                    None => error,
                })
            }
        }
    }

    /// Replaces `link`, which is broken or whose server has lost history. Does nothing if it has ended already.
    pub(crate) fn replace(&self, link: &Link) {
        link.commands().health.end(Ended::Replaced);
    }

    /// Subscribes to `channel` on this link and all later ones. The first message is [`Pushed::Reconnected`]: none is missed
    /// after it.
    pub(crate) fn subscribe(&self, channel: String) -> Subscription {
        self.0.shared.subscriber.subscribe(channel)
    }

    /// Returns the configuration.
    pub(crate) fn config(&self) -> &RedisConfig {
        &self.0.shared.config
    }
}

fn usable(state: &State) -> Option<Link> {
    state.link.clone().filter(|link| !link.has_ended())
}

/// One of the two connections that a request can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// For everything that needs an order or has large replies. At most 128 requests are in flight.
    Commands,
    /// For renewals: small replies only. It may overtake the other line.
    Control,
}

/// The connections to the server that serves the namespace, with their epoch.
#[derive(Clone)]
pub(crate) struct Link(Arc<Links>);

struct Links {
    root: String,
    epoch: u64,
    commands: Socket,
    control: Socket,
    replication: Option<Replication>,
}

impl Link {
    fn new(links: Links) -> Self {
        Self(Arc::new(links))
    }

    /// Returns the epoch: greater than that of every earlier link of any client that this server knows.
    pub(crate) fn epoch(&self) -> u64 {
        self.0.epoch
    }

    /// Returns the server's properties.
    pub(crate) fn facts(&self) -> &Facts {
        &self.0.commands.facts
    }

    /// Runs `script` once; the arguments follow the root key, the operation first. With `wait_replicas` or `wait_aof`, an
    /// operation that is to be confirmed returns after its confirmation.
    ///
    /// # Errors
    ///
    /// With the effect: `None` only if the script surely did not start and never will.
    ///
    /// # Cancel safety
    ///
    /// The request may be sent or not. A later request over the same line comes after it.
    pub(crate) async fn call(&self, line: Line, script: &'static Script, arguments: Vec<Argument>) -> Result<Value> {
        let command = |verb: &str, code: &str| {
            let mut command = redis::cmd(verb);
            command.arg(code).arg(1).arg(&self.0.root);
            arguments.iter().for_each(|argument| argument.add_to(&mut command));
            command
        };
        let socket = self.socket(line);
        let answer = match socket.send(&command("EVALSHA", &script.sha1)).await {
            // The server does not know the script: nothing has happened.
            Err(Failure::Redis(error)) if error::code(&error) == "NOSCRIPT" => {
                socket.send(&command("EVAL", &script.source)).await
            }
            answer => answer,
        };
        let from_script = |error: RedisError| error::from_script(error, &script.source);
        let answer = answer.map_err(|failure| self.at(failure.translate_with(from_script)))?;
        if let Some(Argument::Text(operation)) = arguments.first()
            && script.confirmed.contains(&&**operation)
            && !is_nothing_done(&answer)
        {
            self.confirm().await?;
        }
        Ok(answer)
    }

    /// Sends one command.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call).
    pub(crate) async fn command(&self, line: Line, command: Cmd) -> Result<Value> {
        let answer = self.socket(line).send(&command).await;
        answer.map_err(|failure| self.at(failure.translate()))
    }

    /// Waits until the configured replicas and the disk have every write that the server acknowledged before. Returns at once if
    /// the configuration asks for no confirmation.
    ///
    /// # Errors
    ///
    /// `Unavailable` with an unknown effect.
    async fn confirm(&self) -> Result<()> {
        match &self.0.replication {
            Some(replication) => replication.confirm().await.map_err(|error| self.at(error)),
            None => Ok(()),
        }
    }

    fn at(&self, error: Error) -> Error {
        error.at(&self.0.commands.address)
    }

    fn socket(&self, line: Line) -> &Socket {
        match line {
            Line::Commands => &self.0.commands,
            Line::Control => &self.0.control,
        }
    }

    fn commands(&self) -> &Socket {
        &self.0.commands
    }

    fn control(&self) -> &Socket {
        &self.0.control
    }

    fn sockets(&self) -> Vec<&Socket> {
        let replication = self.0.replication.as_ref().map(Replication::socket);
        [&self.0.commands, &self.0.control]
            .into_iter()
            .chain(replication)
            .collect()
    }

    fn has_ended(&self) -> bool {
        let replication = self.0.replication.as_ref().map(Replication::socket);
        self.0.commands.has_ended() || self.0.control.has_ended() || replication.is_some_and(Socket::has_ended)
    }

    /// Closes the connections. Requests in flight fail: a server that answers none of them would keep them for ever.
    fn close(&self, reason: Ended) {
        for socket in self.sockets() {
            socket.close(reason);
        }
    }
}

fn is_nothing_done(answer: &Value) -> bool {
    let Value::Array(fields) = answer else {
        return false;
    };
    match fields.first() {
        Some(Value::BulkString(word)) => NOTHING_DONE.contains(&&**word),
        Some(Value::SimpleString(word)) => NOTHING_DONE.contains(&word.as_bytes()),
        _ => false,
    }
}
