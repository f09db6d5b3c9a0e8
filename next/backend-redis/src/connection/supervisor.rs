//! The task that keeps a link: it connects, watches the link, and replaces one that has ended.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use tenure_core::executor::Executor;
use tenure_core::{Error, ErrorKind, Result};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::dial::{OnMessage, Purpose};
use super::replication::Replication;
use super::socket::{Ended, Failure, Socket};
use super::subscriber::Subscriber;
use super::topology::{Search, another};
use super::{Link, Links, home};
use crate::config::RedisConfig;
use crate::error;
use crate::keys;

/// The pause after the first of several failures, and the longest one. A link that lived for less than the longest pause counts
/// as a failure.
const PAUSES: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

/// The state that a store's clients share with the supervisor.
pub(super) struct Shared {
    pub(super) config: Arc<RedisConfig>,
    pub(super) executor: Executor,
    pub(super) root: String,
    /// The runtime of the application, for the connection for commands.
    home: Option<Handle>,
    pub(super) state: watch::Sender<State>,
    /// A client waits for a link.
    pub(super) asked: Notify,
    pub(super) subscriber: Arc<Subscriber>,
}

/// The state that the supervisor publishes.
#[derive(Default)]
pub(super) struct State {
    pub(super) link: Option<Link>,
    /// The number of attempts that have ended.
    pub(super) attempts: u64,
    /// The failure of the last one.
    pub(super) failure: Option<Refusal>,
}

/// A failed attempt, which is reported to every client that waits.
pub(super) struct Refusal {
    kind: ErrorKind,
    message: String,
    retryable: bool,
}

impl Refusal {
    fn new(error: &Error) -> Self {
        Self {
            kind: error.kind(),
            message: error.chain().to_string(),
            retryable: error.is_retryable(),
        }
    }

    pub(super) fn error(&self) -> Error {
        Error::new(self.kind, self.message.clone()).retryable(self.retryable)
    }
}

/// Keeps a link until the task is aborted.
pub(super) async fn supervise(shared: Arc<Shared>) {
    let mut search = Search::default();
    let mut pause = Duration::ZERO;
    let [first, longest] = PAUSES;
    // Of this client: also a server whose clock was set back must not make its own requests late ones.
    let mut epoch = 0;
    let mut home = shared.home.as_ref();
    for number in 1.. {
        let outcome = attempt(&shared, &mut search, number, epoch, home).await;
        let is_final = outcome.as_ref().is_err_and(|error| !error.is_retryable());
        let began = Instant::now();
        match outcome {
            Ok(link) => {
                epoch = link.epoch();
                let facts = &link.commands().facts;
                tracing::debug!(address = %link.commands().address, version = facts.version, epoch, "connected to Redis");
                shared.publish(Some(link.clone()), None);
                let reason = keep(&shared, &link, number).await;
                tracing::debug!(address = %link.commands().address, ?reason, "the connection to Redis ended");
                shared.state.send_modify(|state| state.link = None);
                link.close(reason);
                home = shared.home.as_ref().filter(|_| reason != Ended::Blocked);
            }
            Err(error) => {
                tracing::debug!(error = %error.chain(), "cannot connect to Redis");
                shared.publish(None, Some(Refusal::new(&error)));
            }
        }
        if is_final {
            // No retry alone helps, and each attempt may count against the user at the server.
            shared.asked.notified().await;
        }
        pause = if began.elapsed() > longest {
            Duration::ZERO
        } else {
            (pause * 2).clamp(first, longest)
        };
        sleep(pause).await;
    }
}

impl Shared {
    fn publish(&self, link: Option<Link>, failure: Option<Refusal>) {
        self.state.send_modify(|state| {
            state.link = link;
            state.failure = failure;
            state.attempts += 1;
        });
    }
}

/// Makes the link with this number, with an epoch above `epoch`.
async fn attempt(
    shared: &Arc<Shared>,
    search: &mut Search,
    number: u64,
    epoch: u64,
    home: Option<&Handle>,
) -> Result<Link> {
    let (config, root) = (&shared.config, &shared.root);
    // From here on, messages of the link before it are dropped.
    shared.subscriber.begin(number);
    let primary = search.primary(config, root).await?;
    let subscriber = Arc::clone(&shared.subscriber);
    let receiver: OnMessage = Arc::new(move |health, push| subscriber.receive(number, health, push));
    let control = another(config, &primary, Purpose::Control(receiver), None).await?;
    let replication = if config.confirms() {
        let socket = another(config, &primary, Purpose::Commands, None).await?;
        Some(Replication::start(Arc::clone(config), socket, root))
    } else {
        None
    };
    let at_home = match home {
        Some(home) if home::works(home).await => another(config, &primary, Purpose::Commands, Some(home)).await.ok(),
        _ => None,
    };
    let limit = config.timeout;
    let subscribing = tokio::time::timeout(limit, subscribe(shared, &control, number));
    subscribing.await.unwrap_or_else(|_| Err(error::unanswered(limit)))?;
    Ok(Link::new(Links {
        root: root.clone(),
        epoch: primary.epoch.max(epoch + 1),
        commands: at_home.unwrap_or(primary.socket),
        control,
        replication,
    }))
}

/// Returns when the link has ended, with the reason.
async fn keep(shared: &Arc<Shared>, link: &Link, number: u64) -> Ended {
    let timeout = shared.config.timeout;
    let sockets = link.sockets();
    let ended = futures_util::future::select_all(sockets.iter().map(|socket| Box::pin(socket.health.wait())));
    tokio::select! {
        (reason, ..) = ended => reason,
        // The connection for confirmations is watched by its own rounds, which hold it up.
        _ = link.commands().watch(timeout) => Ended::Replaced,
        _ = link.control().watch(timeout) => Ended::Replaced,
        reason = home::watch(link.commands()) => reason,
        reason = keep_subscriptions(shared, link.control(), number) => reason,
    }
}

async fn keep_subscriptions(shared: &Arc<Shared>, control: &Socket, number: u64) -> Ended {
    // A client that watches an object usually comes back soon.
    let mut linger = interval(shared.config.timeout);
    linger.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shared.subscriber.wanted() => {}
            _ = linger.tick() => {
                let leaving = shared.subscriber.take_unused();
                join_all(leaving.iter().map(|channel| about(control, "SUNSUBSCRIBE", channel))).await;
            }
        }
        // A refusal is reported by the next attempt, which subscribes to the same channels.
        if let Err(error) = subscribe(shared, control, number).await {
            tracing::debug!(error = %error.chain(), "cannot subscribe");
            return Ended::Replaced;
        }
    }
}

/// Subscribes to every wanted channel. One command a channel: of several confirmations of one command, the client library takes
/// all but the first for answers of the requests behind it.
async fn subscribe(shared: &Arc<Shared>, control: &Socket, number: u64) -> Result<()> {
    let wanted = shared.subscriber.take_wanted();
    let requests = wanted
        .iter()
        .map(|channel| subscribe_to(shared, control, number, channel));
    try_join_all(requests).await.map(drop)
}

async fn subscribe_to(shared: &Shared, control: &Socket, number: u64, channel: &str) -> Result<()> {
    about(control, "SSUBSCRIBE", channel).await?;
    shared.subscriber.confirmed(number, channel);
    Ok(())
}

async fn about(control: &Socket, verb: &str, channel: &str) -> Result<()> {
    let mut command = redis::cmd(verb);
    command.arg(channel);
    let answer = control.send(&command).await;
    answer.map(drop).map_err(Failure::translate)
}

/// Starts the supervisor.
pub(super) fn start(config: Arc<RedisConfig>, executor: &Executor) -> (Arc<Shared>, tokio::task::AbortHandle) {
    let shared = Arc::new(Shared {
        root: keys::root(&config.namespace),
        config,
        executor: executor.clone(),
        home: home::here(executor),
        state: watch::Sender::new(State::default()),
        asked: Notify::new(),
        subscriber: Arc::default(),
    });
    let task = executor.spawn(supervise(Arc::clone(&shared)));
    (shared, task.abort_handle())
}
