//! The connection to a Redis, and its sessions.

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
    Effect, Error, ErrorKind, FencingToken, Guarantees, LossReason, Result, SessionId,
    SessionOptions, Store,
};

use crate::acks::Acks;
use crate::barrier::RedisBarrier;
use crate::client::{Client, Connection, Listening};
use crate::config::RedisConfig;
use crate::election::RedisElection;
use crate::error;
use crate::index::{Index, Repeat};
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

/// How many steps of cleaning up after others a session does when it opens, and when it closes.
const SWEPT_AT_ONCE: usize = 20;

/// How long that may take.
const SWEEP: Duration = Duration::from_millis(500);

/// The pause before a step is tried again that was refused because its slot is moving; doubled each time.
const MOVING: Duration = Duration::from_millis(10);

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
            audited_over: AtomicU64::new(0),
            index: Index::default(),
            renewals: Mutex::default(),
            lost_keys: Mutex::default(),
            _listening: listening,
        })
    }
}

impl RedisBackend {
    /// A step of no session.
    async fn bare_step(&self, script: &'static Script, arguments: &[Arg<'_>]) -> Result<Reply> {
        let _turn = self.client.turn(script, arguments).await;
        let connection = self.client.connection().await?;
        let answer = self.client.run(&connection, script, &self.root, |command| {
            for nothing in ["", "0", "", ""] {
                command.arg(nothing);
            }
            for argument in arguments {
                argument.add_to(command);
            }
        });
        let reply = Reply::parse(script.name, connection.number, answer.await?)?;
        match reply.status() {
            "ok" | "again" => {}
            _ => return Err(reply.unexpected()),
        }
        self.client.confirm(&connection).await?;
        Ok(reply)
    }

    /// Raises the tokens of those who wait where this session has a place.
    async fn raise_waiters(&self, floor: FencingToken, session: &str) -> Result<()> {
        let mut cursor = "0".to_owned();
        loop {
            let arguments = [floor.into(), session.into(), (&cursor).into()];
            let raised = self.bare_step(&scripts::RAISE_WAITERS, &arguments).await?;
            if raised.status() == "ok" {
                raised.text(0)?.clone_into(&mut cursor);
                if cursor == "0" {
                    return Ok(());
                }
            }
        }
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
                "ok" => {
                    session.index.begins_over(opened.connection());
                    session.sweep(opened.text(0)?).await;
                    return Ok(opened_as(session));
                }
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
        session.inherit().await?;
        Ok(opened_as(session))
    }

    async fn guarantees(&self) -> Result<Guarantees> {
        crate::guarantees::read(&self.client).await
    }

    async fn raise_token_floor(&self, floor: FencingToken) -> Result<()> {
        self.bare_step(&scripts::RAISE_TOKEN_FLOOR, &[floor.into()])
            .await?;
        // Places have the tokens of their arrival: those that wait take part in the raise.
        let mut sessions = "0".to_owned();
        loop {
            let page = self
                .bare_step(&scripts::SESSIONS, &[(&sessions).into()])
                .await?;
            for field in 1..page.len() {
                self.raise_waiters(floor, page.text(field)?).await?;
            }
            page.text(0)?.clone_into(&mut sessions);
            if sessions == "0" {
                return Ok(());
            }
        }
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
    /// The number of the last connection over which all holdings were audited.
    audited_over: AtomicU64,
    pub(crate) index: Index,
    /// How many renewals were acknowledged, and the connection of the last one.
    renewals: Mutex<(u64, u64)>,
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

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
        // A connection carries so much at once that a renewal is never far behind.
        let _turn = self.client.turn(script, arguments).await;
        let begun = tokio::time::Instant::now();
        let mut pause = MOVING;
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
                    tracing::debug!(error = %error.chain(), script = script.name, "again, over another connection");
                }
                // Nothing happened, and the move of a small slot is over in a moment.
                Err(error)
                    if error::is_moving(&error)
                        && !script.overtakes()
                        && begun.elapsed() + pause < self.client.config.timeout =>
                {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
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
        let reply = Reply::parse(script.name, connection.number, value)?;
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

    pub(crate) fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Notes all that is in the session's index as its client's: that of a session that was resumed.
    async fn inherit(&self) -> Result<()> {
        let mut cursor = "0".to_owned();
        loop {
            let page = self.page_of_the_index(&cursor).await?;
            for field in 1..page.len() {
                self.index.expect(page.text(field)?.to_owned());
            }
            page.text(0)?.clone_into(&mut cursor);
            if cursor == "0" {
                return Ok(());
            }
        }
    }

    async fn page_of_the_index(&self, cursor: &str) -> Result<Reply> {
        let page = self.step(&scripts::INDEX, 0, &[cursor.into()]).await?;
        match page.status() {
            "ok" => Ok(page),
            _ => Err(page.unexpected()),
        }
    }

    /// Removes what the session `dead` left, as far as others have not, and what the next ones did: at most so
    /// many steps of it. Returns the session that is to be buried next; empty if there is none.
    async fn bury(&self, dead: &str, most: usize) -> Result<String> {
        let mut dead = dead.to_owned();
        for _ in 0..most {
            if dead.is_empty() {
                break;
            }
            let buried = self.step(&scripts::BURY, 0, &[(&dead).into()]).await?;
            if buried.status() == "ok" {
                buried.text(0)?.clone_into(&mut dead);
            }
        }
        Ok(dead)
    }

    /// A part of the burials, by a session that may not live long enough for a renewal.
    async fn sweep(&self, dead: &str) {
        let sweeping = self.bury(dead, SWEPT_AT_ONCE);
        match tokio::time::timeout(SWEEP, sweeping).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(error = %error.chain(), "could not clean up"),
            Err(_) => tracing::debug!("there is more to clean up"),
        }
    }

    /// After the connection was replaced: does again what the server may have lost with its last moments (a
    /// restart, a replica that lagged). Acknowledgements first, else their items would go to others; then
    /// everything in the session's index that belongs to no request of this client is freed.
    async fn reconcile(&self) -> Result<()> {
        let Some(connection) = self.client.current() else {
            return Ok(());
        };
        let Some(mut cursor) = self.index.cursor(connection.number) else {
            return Ok(());
        };
        if cursor.is_none() {
            for chunk in self.index.to_repeat(self.ttl).chunks(100) {
                let arguments: Vec<Arg<'_>> = chunk.iter().flat_map(Repeat::arguments).collect();
                let done = self.step(&scripts::REPEAT, 0, &arguments).await?;
                self.tell_lost(done.unsigned(0)?);
            }
        }
        loop {
            let at = cursor.as_deref().unwrap_or("0");
            let page = self.page_of_the_index(at).await?;
            let mut strays = Vec::new();
            for field in 1..page.len() {
                let field = page.text(field)?;
                if !self.index.expects(field) {
                    strays.push(field);
                }
            }
            for chunk in strays.chunks(100) {
                let arguments: Vec<Arg<'_>> = chunk.iter().map(|field| Arg::from(*field)).collect();
                let done = self.step(&scripts::GIVE_BACK_AGAIN, 0, &arguments).await?;
                self.tell_lost(done.unsigned(0)?);
            }
            let next = page.text(0)?.to_owned();
            let is_done = next == "0";
            self.index.came_to(connection.number, next);
            if is_done {
                return Ok(());
            }
            cursor = Some(page.text(0)?.to_owned());
        }
    }

    fn tell_lost(&self, again: u64) {
        if again > 0 {
            tracing::warn!(session = %self.id, again, "the server had lost what this session gave back");
        }
    }

    /// A renewal was acknowledged over the connection `over`, by a server that knew of so many before.
    fn renewed(&self, known: u64, over: u64) {
        let mut renewals = locked(&self.renewals);
        let (acknowledged, last_over) = *renewals;
        *renewals = (acknowledged.max(known) + 1, over);
        drop(renewals);
        if known < acknowledged && last_over == over {
            tracing::warn!(session = %self.id, "the server has lost a part of its history");
            // Over the next connection everything is looked at again.
            if let Some(connection) = self.client.current()
                && connection.number == over
            {
                connection.give_up();
            }
        }
    }
}

/// What one round of the audit is about: the nonces that come after those of the last round, which
/// ended with `last`.
fn next_round<T>(held: &[T], last: u64, most: usize, nonce: impl Fn(&T) -> u64) -> Vec<&T> {
    let mut round: Vec<_> = held.iter().collect();
    round.sort_unstable_by_key(|held| nonce(held).wrapping_sub(last).wrapping_sub(1));
    round.truncate(most);
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
        let acknowledged = locked(&self.renewals).0;
        let arguments = [millis(self.ttl).into(), acknowledged.into()];
        let renewing = async {
            let renewed = self.step(&scripts::RENEW, 0, &arguments).await?;
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
        self.renewed(renewed.unsigned(1)?, renewed.connection());
        let cleaning = async {
            self.reconcile().await?;
            self.bury(overdue, usize::MAX).await
        };
        // Nobody's lease hangs on it, and whoever renews next goes on with it. So our own must not
        // wait for it.
        let time = (self.ttl * 3 / 10).saturating_sub(begun.elapsed());
        match tokio::time::timeout(time.min(self.ttl / 10), cleaning).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(error = %error.chain(), "could not clean up"),
            Err(_) => tracing::debug!("there is more to clean up"),
        }
        Ok(())
    }

    async fn revoke(&self) -> Result<()> {
        loop {
            let revoked = self.step(&scripts::REVOKE, 0, &[]).await?;
            match revoked.status() {
                "more" => {}
                "ok" => {
                    self.sweep(revoked.text(0)?).await;
                    return Ok(());
                }
                _ => return Err(revoked.unexpected()),
            }
        }
    }

    async fn audit(&self, held: &[Held]) -> Result<Vec<u64>> {
        let mut missing = Vec::new();
        let last = self.audited.load(Ordering::Relaxed);
        // A server that was left and found again may have lost anything: then all are looked at in one round.
        let over = self.client.current().map(|connection| connection.number);
        let most = match over == Some(self.audited_over.load(Ordering::Relaxed)) {
            true => AUDITED_A_ROUND,
            false => held.len(),
        };
        let round = next_round(held, last, most, |held| held.nonce);
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
        if let (Some(over), true) = (over, most == held.len()) {
            self.audited_over.store(over, Ordering::Relaxed);
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
            let round = next_round(&held, last, AUDITED_A_ROUND, |nonce| *nonce);
            assert!(round.len() <= AUDITED_A_ROUND);
            last = round.last().map_or(last, |nonce| **nonce);
            seen.extend(round.into_iter().copied());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), held.len());
        // As few as fit are looked after every time.
        let few = next_round(&held[..3], last, AUDITED_A_ROUND, |nonce| *nonce);
        assert_eq!(few.len(), 3);
    }
}
