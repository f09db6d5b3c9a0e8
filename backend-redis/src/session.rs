//! The connection to a Redis, and its sessions.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Backend, HasLocker, Lease, Locker, Opened};
use tenure_core::{
    Effect, Error, ErrorKind, Guarantees, LossReason, Result, SessionId, SessionOptions, Store,
};

use crate::acks::Acks;
use crate::client::{Client, Connection, Listening};
use crate::config::RedisConfig;
use crate::error;
use crate::layout;
use crate::locker::RedisLocker;
use crate::scripts::{self, Script};
use crate::step::{Arg, Reply};
use crate::waits::{Bell, Topic, Waiting, Waits};

/// The shortest TTL: below, a slow answer alone would end a session.
pub const MIN_TTL: Duration = Duration::from_millis(500);

/// The longest TTL.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many holdings and waits one session carries.
const CAPACITY: usize = 100_000;

/// Connects to a Redis.
///
/// # Errors
///
/// `Unavailable` when it does not answer, `Unauthorized` for wrong credentials, `Config` for a Redis
/// that is too old.
///
/// # Cancel safety
///
/// Cancel safe.
pub async fn connect(config: RedisConfig) -> Result<Store<RedisBackend>> {
    let root = layout::root(&config.namespace).into();
    let client = Client::new(config);
    client.connection().await?;
    Ok(Store::new(RedisBackend { client, root }))
}

/// A Redis that was connected to.
pub struct RedisBackend {
    pub(crate) client: Arc<Client>,
    root: Arc<str>,
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisBackend")
            .field("config", &self.client.config)
            .finish_non_exhaustive()
    }
}

fn granted(ttl: Duration) -> Result<Duration> {
    if ttl.is_zero() || ttl > MAX_TTL {
        return Err(Error::new(
            ErrorKind::Config,
            format!("a TTL on Redis is above zero and at most {MAX_TTL:?}, not {ttl:?}"),
        ));
    }
    // Whole milliseconds, rounded up.
    let millis = ttl.max(MIN_TTL).as_nanos().div_ceil(1_000_000);
    Ok(Duration::from_millis(
        u64::try_from(millis).unwrap_or(u64::MAX),
    ))
}

impl RedisBackend {
    async fn session(&self, id: Arc<str>, ttl: Duration) -> Result<RedisSession> {
        let waits = Arc::new(Waits::new(Acks::wanted(&self.client.config)));
        let channel = format!("{}wake/{id}", self.root);
        let listener = Arc::clone(&waits);
        let listening = self.client.listen(channel, listener).await?;
        Ok(RedisSession {
            client: Arc::clone(&self.client),
            root: Arc::clone(&self.root),
            id,
            ttl,
            waits,
            once: Once::default(),
            _listening: listening,
        })
    }
}

#[async_trait]
impl Backend for RedisBackend {
    type Session = RedisSession;

    async fn open(&self, ttl: Duration, _: &SessionOptions) -> Result<Opened<RedisSession>> {
        let ttl = granted(ttl)?;
        loop {
            let session = self.session(random_id(), ttl).await?;
            let opened = session
                .step(&scripts::OPEN, 0, &[millis(ttl).into()])
                .await?;
            match opened.status() {
                "ok" => return Ok(opened_as(session)),
                "taken" => {}
                _ => return Err(opened.unexpected()),
            }
        }
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        crate::guarantees::read(&self.client).await
    }

    fn default_ttl(&self) -> Duration {
        self.client.config.ttl
    }
}

fn opened_as(session: RedisSession) -> Opened<RedisSession> {
    Opened {
        id: SessionId::new(Arc::clone(&session.id)),
        ttl: session.ttl,
        capacity: CAPACITY,
        lease: Arc::new(session),
    }
}

/// 128 random bits.
fn random_id() -> Arc<str> {
    let random = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random()).into()
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A session on Redis.
pub struct RedisSession {
    pub(crate) client: Arc<Client>,
    pub(crate) root: Arc<str>,
    pub(crate) id: Arc<str>,
    ttl: Duration,
    waits: Arc<Waits>,
    once: Once,
    _listening: Listening,
}

impl fmt::Debug for RedisSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSession")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The slots in which steps that must not happen twice remember that they happened: one for each that
/// is on its way, used again once its answer has arrived.
#[derive(Default)]
struct Once {
    free: Mutex<Vec<u64>>,
    made: AtomicU64,
    /// By nonce: steps that went unanswered keep their slot for the repetition.
    open: Mutex<std::collections::HashMap<u64, u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Once {
    fn take(&self, nonce: u64) -> u64 {
        if let Some(slot) = locked(&self.open).get(&nonce) {
            return *slot;
        }
        let free = locked(&self.free).pop();
        let slot = free.unwrap_or_else(|| self.made.fetch_add(1, Ordering::Relaxed));
        locked(&self.open).insert(nonce, slot);
        slot
    }

    fn answered(&self, nonce: u64) {
        if let Some(slot) = locked(&self.open).remove(&nonce) {
            locked(&self.free).push(slot);
        }
    }
}

impl RedisSession {
    /// One step, under `nonce`. That the session is gone, or that the step came too late, is an error;
    /// every other status comes back.
    pub(crate) async fn step(
        &self,
        script: &'static Script,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        self.step_in(script, None, nonce, arguments).await
    }

    /// A step that must not happen twice though it may be repeated: one for each nonce at a time.
    pub(crate) async fn step_once(
        &self,
        script: &'static Script,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        let slot = self.once.take(nonce);
        let done = self.step_in(script, Some(slot), nonce, arguments).await;
        let settled = match &done {
            Ok(_) => true,
            // Unless it is unknown whether it happened, in this attempt or an earlier one, nobody
            // asks again.
            Err(error) => !error.is_retryable(),
        };
        if settled {
            self.once.answered(nonce);
        }
        done
    }

    async fn step_in(
        &self,
        script: &'static Script,
        slot: Option<u64>,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        let connection = self.client.connection().await?;
        let answer = self.step_over(&connection, script, slot, nonce, arguments);
        match answer.await {
            // Refused by a server that is not the one any more, so it certainly did not happen: once
            // more, with the one that is.
            Err(error) if error.effect() == Effect::None && connection.is_left() => {
                let connection = self.client.connection().await?;
                self.step_over(&connection, script, slot, nonce, arguments)
                    .await
            }
            answer => answer,
        }
    }

    async fn step_over(
        &self,
        connection: &Connection,
        script: &'static Script,
        slot: Option<u64>,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        let nonce = layout::hex(nonce);
        let value = self
            .client
            .run(connection, script, &self.root, |command| {
                command.arg(&*self.id).arg(connection.number);
                match slot {
                    Some(slot) => command.arg(slot),
                    None => command.arg(""),
                };
                command.arg(&nonce);
                for argument in arguments {
                    argument.add_to(command);
                }
            })
            .await?;
        let reply = Reply::parse(script.name, value)?;
        match reply.status() {
            "lost" => Err(Error::lost(LossReason::Revoked)),
            "stale" => Err(error::stale()),
            _ => {
                if Acks::needed(script.name, reply.status()) {
                    self.client.confirm(connection).await?;
                }
                Ok(reply)
            }
        }
    }

    /// From now on the ask `nonce` hears of its turn.
    pub(crate) fn waiting(&self, nonce: u64) -> Waiting {
        self.waits.enter(nonce)
    }

    /// From the moment this returns, hears of changes of the object at `path`.
    pub(crate) async fn topic(&self, path: &str) -> Result<Topic> {
        let bell = Arc::<Bell>::default();
        let channel = format!("{}topic/{path}", self.root);
        let listening = self
            .client
            .listen(channel, Arc::clone(&bell) as Arc<_>)
            .await?;
        Ok(Topic::new(bell, listening))
    }

    /// Removes what the session `dead` left, as far as others have not.
    async fn bury(&self, dead: &str) -> Result<()> {
        while self.step(&scripts::BURY, 0, &[dead.into()]).await?.status() == "more" {}
        Ok(())
    }
}

#[async_trait]
impl Lease for RedisSession {
    async fn renew(&self) -> Result<()> {
        let renewed = self
            .step(&scripts::RENEW, 0, &[millis(self.ttl).into()])
            .await?;
        let overdue = renewed.text(0)?;
        if !overdue.is_empty() {
            // Nobody's lease hangs on it, and whoever renews next finds it again.
            if let Err(error) = self.bury(overdue).await {
                tracing::debug!(%error, "could not bury a dead session");
            }
        }
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        loop {
            match self.step(&scripts::REVOKE, 0, &[]).await?.status() {
                "more" => {}
                "ok" => return Ok(()),
                other => return Err(error::unexpected("revoke", other)),
            }
        }
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(HasLocker::typed_locker(self))
    }
}

impl HasLocker for RedisSession {
    type Locker = RedisLocker;

    fn typed_locker(self: Arc<Self>) -> Arc<RedisLocker> {
        Arc::new(RedisLocker::new(self))
    }
}
