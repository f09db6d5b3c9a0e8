//! The connection to a Redis, and its sessions.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tenure_core::backend::{
    Backend, Barrier, Bell, Election, HasBarrier, HasElection, HasLocker, HasQueue, HasRwLock,
    HasStm, Held, Kind, Lease, Locker, Opened, Queue, RwLock, Stm, Waiting, Waits,
};
use tenure_core::{
    Effect, Error, ErrorKind, Guarantees, LossReason, Result, SessionId, SessionOptions, Store,
};

use crate::acks::Acks;
use crate::barrier::RedisBarrier;
use crate::client::{Client, Connection, Listening};
use crate::config::RedisConfig;
use crate::election::RedisElection;
use crate::error;
use crate::layout;
use crate::locker::RedisLocker;
use crate::queue::RedisQueue;
use crate::rw_lock::RedisRwLock;
use crate::scripts::{self, Script};
use crate::step::{Arg, Reply};
use crate::stm::RedisStm;
use crate::waits::Topic;

/// The shortest TTL: below, a slow answer alone would end a session.
pub const MIN_TTL: Duration = Duration::from_millis(500);

/// The longest TTL.
pub const MAX_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How many things one step works on, where their number is the caller's: short enough for a server
/// that does nothing else meanwhile.
const CHUNK: usize = 500;

/// How many holdings one step looks after.
const AUDITED_AT_ONCE: usize = 250;

/// How many holdings are looked after with each renewal. A session with more takes several rounds for
/// all: a renewal must not cost more because much is held.
const AUDITED_A_ROUND: usize = 1_000;

/// How many keys of shared locks one step renews.
const KEYS_AT_ONCE: u64 = 100;

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
        let waits = Arc::new(match Acks::wanted(&self.client.config) {
            // A grant that is pushed does not count before it is confirmed.
            true => Waits::only_look(),
            false => Waits::default(),
        });
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
            audited: AtomicU64::new(0),
            given_back: GivenBack::default(),
            lost_keys: Mutex::default(),
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

    async fn resume(&self, id: &SessionId) -> Result<Opened<RedisSession>> {
        if !is_id(id.as_str()) {
            return Err(Error::lost(LossReason::Expired));
        }
        // The TTL is in the record.
        let mut session = self.session(id.as_str().into(), Duration::ZERO).await?;
        let resumed = session.take_over().await?;
        match resumed.status() {
            "ok" => {}
            "conflict" => {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    "the session was never detached, or has been resumed already: open a new one",
                ));
            }
            _ => return Err(resumed.unexpected()),
        }
        session.ttl = Duration::from_millis(resumed.unsigned(0)?);
        self.client.number_above(resumed.unsigned(1)?);
        // Whoever detached it may have ended before this was done.
        session.drop_the_rest().await?;
        Ok(opened_as(session))
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

/// Whether a server refused the step that is not the one to ask any more: it certainly did not
/// happen, and the next connection goes to the one that is.
fn refused(error: &Error, connection: &Connection) -> bool {
    error.effect() == Effect::None && connection.is_left()
}

/// 128 random bits.
fn random_id() -> Arc<str> {
    let random = || RandomState::new().hash_one(std::process::id());
    format!("{:016x}{:016x}", random(), random()).into()
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
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
    /// The nonce of the holding that was audited last.
    audited: AtomicU64,
    given_back: GivenBack,
    /// The nonces of shared locks whose keys were found lost, until their holders are told.
    lost_keys: Mutex<Vec<u64>>,
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

/// What was given back of late. A server that forgets this, and not the session, has forgotten less than
/// a TTL: the session's own key would have expired otherwise.
#[derive(Default)]
struct GivenBack {
    /// When, the object's path, and the field in the session's index.
    list: Mutex<VecDeque<(Instant, String, String)>>,
    /// The last connection over which it was given back again.
    connection: AtomicU64,
}

impl GivenBack {
    /// The most that is kept in mind.
    const MOST: usize = 20_000;

    fn note(&self, ttl: Duration, path: String, field: String) {
        let now = Instant::now();
        let mut list = locked(&self.list);
        while list.len() >= Self::MOST || list.front().is_some_and(|(at, ..)| *at + ttl + ttl < now)
        {
            list.pop_front();
        }
        list.push_back((now, path, field));
    }

    fn of_late(&self, ttl: Duration) -> Vec<(String, String)> {
        let now = Instant::now();
        let list = locked(&self.list);
        let of_late = list.iter().filter(|(at, ..)| *at + ttl + ttl >= now);
        of_late
            .map(|(_, path, field)| (path.clone(), field.clone()))
            .collect()
    }
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

    fn keeps(&self, nonce: u64) -> bool {
        locked(&self.open).contains_key(&nonce)
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
        let done = self.step_kept(script, nonce, arguments).await;
        let settled = match &done {
            Ok(_) => true,
            // Unless it is unknown whether it happened, in this attempt or an earlier one, nobody
            // asks again.
            Err(error) => !error.is_retryable(),
        };
        if settled {
            self.settled(nonce);
        }
        done
    }

    /// A step that remembers its result in a slot, which stays its own until it is [settled](Self::settled).
    pub(crate) async fn step_kept(
        &self,
        script: &'static Script,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        let slot = self.once.take(nonce);
        self.step_in(script, Some(slot), nonce, arguments).await
    }

    /// Whether `nonce` has a slot.
    pub(crate) fn keeps(&self, nonce: u64) -> bool {
        self.once.keeps(nonce)
    }

    /// Nobody will ask any more what came of `nonce`.
    pub(crate) fn settled(&self, nonce: u64) {
        self.once.answered(nonce);
    }

    async fn step_in(
        &self,
        script: &'static Script,
        slot: Option<u64>,
        nonce: u64,
        arguments: &[Arg<'_>],
    ) -> Result<Reply> {
        let begun = tokio::time::Instant::now();
        // What an attempt may have done stays unknown when a later one fails cleanly.
        let mut unknown = false;
        let said = |error: Error, unknown| match unknown {
            true => error.with_effect(Effect::Unknown),
            false => error,
        };
        loop {
            let connection = self.client.connection().await;
            let connection = connection.map_err(|error| said(error, unknown))?;
            let done = self
                .step_over(&connection, script, slot, nonce, arguments)
                .await;
            unknown |= done
                .as_ref()
                .is_err_and(|error| error.effect() != Effect::None);
            match done {
                // Every step can be repeated. So the caller hears nothing of a broken connection if
                // the next one works.
                Err(error)
                    if error.is_retryable()
                        && (self.client.is_replaced(&connection)
                            || refused(&error, &connection))
                        && begun.elapsed() < self.client.config.timeout =>
                {
                    tracing::debug!(%error, script = script.name, "again, over another connection");
                }
                done => return done.map_err(|error| said(error, unknown)),
            }
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

    /// Uses up the record of the session's detaching. Asked again if the answer does not come: the
    /// record says who used it up.
    async fn take_over(&self) -> Result<Reply> {
        let nonce = RandomState::new().hash_one(&self.id);
        let mut attempts = 3;
        loop {
            attempts -= 1;
            match self.step(&scripts::RESUME, nonce, &[]).await {
                Err(error) if error.is_retryable() && attempts > 0 => {}
                answer => return answer,
            }
        }
    }

    /// Removes what the session had and did not keep when it was detached.
    async fn drop_the_rest(&self) -> Result<()> {
        loop {
            let dropped = self.step(&scripts::DROP, 0, &[]).await?;
            match dropped.status() {
                "more" => {}
                "ok" => return Ok(()),
                _ => return Err(dropped.unexpected()),
            }
        }
    }

    /// Gives the keys of shared locks as long as the session has now. It counts as renewed only after
    /// that: others go by the keys alone.
    async fn renew_keys(&self) -> Result<()> {
        let mut behind = "0".to_owned();
        while !behind.is_empty() {
            let arguments = [(&behind).into(), KEYS_AT_ONCE.into()];
            let renewed = self.step(&scripts::RENEW_KEYS, 0, &arguments).await?;
            behind = renewed.text(0)?.to_owned();
            for field in 1..renewed.len() {
                let nonce = u64::from_str_radix(renewed.text(field)?, 16);
                locked(&self.lost_keys).extend(nonce.ok());
            }
        }
        Ok(())
    }

    /// Removes what the session `dead` left, as far as others have not, and what the next ones did.
    async fn bury(&self, dead: &str) -> Result<()> {
        let mut dead = dead.to_owned();
        while !dead.is_empty() {
            let buried = self.step(&scripts::BURY, 0, &[(&dead).into()]).await?;
            if buried.status() == "ok" {
                buried.text(0)?.clone_into(&mut dead);
            }
        }
        Ok(())
    }

    /// Notes that what the index has under `field` for the object at `path` was given back.
    pub(crate) fn gave_back(&self, path: String, field: String) {
        self.given_back.note(self.ttl, path, field);
    }

    /// After the connection was replaced: gives back once more what was given back of late. A server
    /// that has forgotten the last moments (a restart, a replica that lagged) would keep it for
    /// somebody who does not want it, for as long as the session lives.
    async fn give_back_again(&self) -> Result<()> {
        let Some(connection) = self.client.current() else {
            return Ok(());
        };
        let known = self.given_back.connection.load(Ordering::Relaxed);
        if known == connection.number {
            return Ok(());
        }
        for chunk in self.given_back.of_late(self.ttl).chunks(100) {
            let arguments: Vec<Arg<'_>> = chunk
                .iter()
                .flat_map(|(path, field)| [path.into(), field.into()])
                .collect();
            let done = self.step(&scripts::GIVE_BACK_AGAIN, 0, &arguments).await?;
            let again = done.unsigned(0)?;
            if again > 0 {
                tracing::warn!(session = %self.id, again, "the server had forgotten what was given back");
            }
        }
        let numbers = &self.given_back.connection;
        numbers.store(connection.number, Ordering::Relaxed);
        Ok(())
    }
}

/// What one round of the audit is about: the nonces that come after those of the last round, which
/// ended with `last`.
fn next_round<T>(held: &[T], last: u64, nonce: impl Fn(&T) -> u64) -> Vec<&T> {
    let mut round: Vec<_> = held.iter().collect();
    round.sort_unstable_by_key(|held| nonce(held).wrapping_sub(last).wrapping_sub(1));
    round.truncate(AUDITED_A_ROUND);
    round
}

#[async_trait]
impl Lease for RedisSession {
    async fn renew(&self) -> Result<()> {
        // Less than core gives it: it would drop this, and a silent connection stay in use.
        let limit = self.ttl * 3 / 10;
        let limit = match self.client.config.interop {
            // Many steps, if many keys are held; each has its own limit.
            true => limit,
            false => limit.min(self.client.config.timeout),
        };
        let (begun, silent) = (Instant::now(), self.client.current());
        let ttl = [millis(self.ttl).into()];
        let renewing = async {
            let renewed = self.step(&scripts::RENEW, 0, &ttl).await?;
            if self.client.config.interop {
                self.renew_keys().await?;
            }
            Ok(renewed)
        };
        let Ok(renewed) = tokio::time::timeout(limit, renewing).await else {
            // Not one that was made meanwhile.
            if let Some(connection) = silent {
                connection.give_up();
            }
            return Err(error::unanswered(limit));
        };
        let renewed = renewed?;
        let overdue = renewed.text(0)?;
        let cleaning = async {
            self.give_back_again().await?;
            self.bury(overdue).await
        };
        // Nobody's lease hangs on it, and whoever renews next goes on with it. So our own must not
        // wait for it.
        let time = (self.ttl * 3 / 10).saturating_sub(begun.elapsed());
        match tokio::time::timeout(time.min(self.ttl / 10), cleaning).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not clean up"),
            Err(_) => tracing::debug!("there is more to clean up"),
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

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let mut missing = Vec::new();
        let last = self.audited.load(Ordering::Relaxed);
        let round = next_round(held, last, |held| held.nonce);
        if let Some(held) = round.last() {
            self.audited.store(held.nonce, Ordering::Relaxed);
        }
        for held in round.chunks(AUDITED_AT_ONCE) {
            let mut arguments: Vec<Arg<'_>> = Vec::with_capacity(3 * held.len());
            for held in held {
                let key = held.key.strip_prefix(&*self.root).unwrap_or(&held.key);
                let (path, whose) = key.rsplit_once('#').unwrap_or((key, ""));
                arguments.extend::<[Arg<'_>; 3]>([path.into(), whose.into(), held.token.into()]);
            }
            let audited = self.step(&scripts::AUDIT, 0, &arguments).await?;
            if audited.status() != "ok" {
                return Err(audited.unexpected());
            }
            for field in 0..audited.len() {
                let gone = usize::try_from(audited.unsigned(field)?).ok();
                missing.extend(gone.and_then(|gone| held.get(gone)).map(|held| held.nonce));
            }
        }
        // What the renewal found, which looks at all of them.
        missing.append(&mut locked(&self.lost_keys));
        Ok(missing)
    }

    fn detachable(&self) -> bool {
        true
    }

    async fn detach(&self, held: &[Held]) -> Result<()> {
        // What stands in a line; the rest goes back.
        let kept = held
            .iter()
            .filter(|held| matches!(held.kind, Kind::Lock | Kind::Election | Kind::RwLock));
        let kept: Vec<_> = kept.map(|held| layout::hex(held.nonce)).collect();
        let mut chunks = kept.chunks(CHUNK);
        // The first also when there is none: it forgets what an earlier attempt has named.
        let (mut chunk, mut how) = (chunks.next().unwrap_or_default(), "first");
        loop {
            let mut arguments = vec![how.into()];
            arguments.extend(chunk.iter().map(Arg::from));
            self.step(&scripts::KEEP, 0, &arguments).await?;
            match chunks.next() {
                Some(next) => (chunk, how) = (next, "more"),
                None => break,
            }
        }
        self.step(&scripts::DETACH, 0, &[]).await?;
        self.drop_the_rest().await
    }

    fn locker(self: Arc<Self>) -> Option<Arc<dyn Locker>> {
        Some(self.typed_locker())
    }

    fn election(self: Arc<Self>) -> Option<Arc<dyn Election>> {
        Some(self.typed_election())
    }

    fn rw_lock(self: Arc<Self>) -> Option<Arc<dyn RwLock>> {
        Some(self.typed_rw_lock())
    }

    fn barrier(self: Arc<Self>) -> Option<Arc<dyn Barrier>> {
        Some(HasBarrier::typed_barrier(self))
    }

    fn stm(self: Arc<Self>) -> Option<Arc<dyn Stm>> {
        Some(HasStm::typed_stm(self))
    }

    fn queue(self: Arc<Self>) -> Option<Arc<dyn Queue>> {
        Some(self.typed_queue())
    }
}

impl HasLocker for RedisSession {
    type Locker = RedisLocker;

    fn typed_locker(self: Arc<Self>) -> Arc<RedisLocker> {
        Arc::new(RedisLocker::new(self))
    }
}

impl HasElection for RedisSession {
    type Election = RedisElection;

    fn typed_election(self: Arc<Self>) -> Arc<RedisElection> {
        Arc::new(RedisElection::new(self))
    }
}

impl HasRwLock for RedisSession {
    type RwLock = RedisRwLock;

    fn typed_rw_lock(self: Arc<Self>) -> Arc<RedisRwLock> {
        Arc::new(RedisRwLock::new(self))
    }
}

impl HasBarrier for RedisSession {
    type Barrier = RedisBarrier;

    fn typed_barrier(self: Arc<Self>) -> Arc<RedisBarrier> {
        Arc::new(RedisBarrier::new(self))
    }
}

impl HasStm for RedisSession {
    type Stm = RedisStm;

    fn typed_stm(self: Arc<Self>) -> Arc<RedisStm> {
        Arc::new(RedisStm::new(self))
    }
}

impl HasQueue for RedisSession {
    type Queue = RedisQueue;

    fn typed_queue(self: Arc<Self>) -> Arc<RedisQueue> {
        Arc::new(RedisQueue::new(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_holding_has_its_turn() {
        // Nonces wrap.
        let held: Vec<u64> = (0..2_500)
            .map(|n| (u64::MAX - 700).wrapping_add(n))
            .collect();
        let (mut seen, mut last) = (Vec::new(), 17);
        for _ in 0..3 {
            let round = next_round(&held, last, |nonce| *nonce);
            assert!(round.len() <= AUDITED_A_ROUND);
            last = round.last().map_or(last, |nonce| **nonce);
            seen.extend(round.into_iter().copied());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), held.len());
        // As few as fit are looked after every time.
        let few = next_round(&held[..3], last, |nonce| *nonce);
        assert_eq!(few.len(), 3);
    }
}
