//! Queues: a step for each thing done with items (see `migrations/functions/40_queue.sql`).
//!
//! Whoever puts an item in tells the consumer that waits longest, and that one alone, which then takes
//! it. What nobody tells (a consumer that died, one that died of being told, a delay that is over) one of
//! those who wait in each session looks for, every fraction of the TTL.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Grant, Held, Kind, Queue, Settle, Taken, Want, path};
use tenure_core::{
    Depth, Effect, Error, ErrorKind, FencingToken, Item, LossReason, Name, Peeked, Result,
};
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::key::signed;
use crate::main_connection::MainGuard;
use crate::session::PostgresSession;
use crate::step::{Row, step};

/// The most bytes that one batch of items may have: they go over the connection that is the lease, and a
/// renewal waits for its turn there.
pub const MAX_BATCH_BYTES: usize = 2 * 1024 * 1024;

/// How many deliveries are looked for in one step of an audit.
const CHUNK: usize = 500;

/// Longer than anybody waits, and no trouble for a timestamp: a thousand years.
const LONGEST_DELAY: Duration = Duration::from_secs(1000 * 366 * 24 * 60 * 60);

/// How long after a failure values are asked for again.
const PAUSE: Duration = Duration::from_millis(50);

/// More queues than this one session hardly uses at a time: then what it knows is not kept.
const KNOWN: usize = 1024;

/// The queues of a session on PostgreSQL.
#[derive(Debug)]
pub struct PostgresQueue {
    session: Arc<PostgresSession>,
}

/// What a session knows about queues.
#[derive(Default)]
pub(crate) struct Books {
    queues: Mutex<HashMap<Arc<str>, Known>>,
    /// Asks whose step was done, but not confirmed; and those that may stand in line still.
    unsettled: Mutex<HashSet<u64>>,
    /// Deliveries that were acknowledged, and not flushed yet: their tokens.
    acknowledged: Mutex<HashSet<FencingToken>>,
}

/// What a session knows about one queue.
#[derive(Default)]
struct Known {
    marks: Marks,
    /// Whoever has it looks after what nobody tells, for all who wait here.
    watch: Arc<AsyncMutex<()>>,
}

/// What a step need not look at any more: see `40_queue.sql`.
#[derive(Clone, Default)]
struct Marks {
    /// The queue in which the session is known as a consumer.
    queue: i64,
    /// Up to which wait all have been told.
    told: i64,
    /// Below which numbers no item is fresh, by priority.
    fresh: BTreeMap<i32, i64>,
}

/// At most so many priorities are kept in mind: each is a probe of its own.
const PRIORITIES: usize = 16;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Books {
    fn with<T>(&self, path: &Arc<str>, work: impl FnOnce(&mut Known) -> T) -> T {
        let mut queues = locked(&self.queues);
        if queues.len() >= KNOWN && !queues.contains_key(path) {
            // Where somebody waits, the watch must stay one.
            queues.retain(|_, known| Arc::strong_count(&known.watch) > 1);
        }
        work(queues.entry(Arc::clone(path)).or_default())
    }

    fn marks(&self, path: &Arc<str>) -> Marks {
        self.with(path, |known| known.marks.clone())
    }

    fn watch(&self, path: &Arc<str>) -> Arc<AsyncMutex<()>> {
        self.with(path, |known| Arc::clone(&known.watch))
    }

    fn told(&self, path: &Arc<str>, told: i64) {
        self.with(path, |known| known.marks.told = known.marks.told.max(told));
    }

    /// `queue` delivered the item at this place as its first.
    fn delivered(&self, path: &Arc<str>, claim: Claim) {
        self.with(path, |known| {
            known.marks.queue = claim.queue;
            let fresh = &mut known.marks.fresh;
            if fresh.len() >= PRIORITIES && !fresh.contains_key(&claim.priority) {
                // Takes look at the lowest first.
                fresh.pop_last();
            }
            let mark = fresh.entry(claim.priority).or_default();
            *mark = (*mark).max(claim.number + 1);
        });
    }

    fn is_unsettled(&self, nonce: u64) -> bool {
        locked(&self.unsettled).contains(&nonce)
    }

    fn unsettled(&self, nonce: u64) {
        locked(&self.unsettled).insert(nonce);
    }

    fn settled(&self, nonce: u64) -> bool {
        locked(&self.unsettled).remove(&nonce)
    }
}

/// A delivery, attached to its grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Claim {
    queue: i64,
    priority: i32,
    number: i64,
}

impl Claim {
    /// The part of a grant's key after the `#`.
    fn member(self) -> String {
        format!("{}:{}:{}", self.queue, self.priority, self.number)
    }

    fn parse(key: &str) -> Option<Self> {
        let (_, member) = key.rsplit_once('#')?;
        let mut parts = member.split(':');
        let claim = Self {
            queue: parts.next()?.parse().ok()?,
            priority: parts.next()?.parse().ok()?,
            number: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(claim)
    }
}

/// What a look finds.
enum Found {
    /// Some values may have to be fetched.
    Items(Vec<(Claim, FencingToken, u32, Option<Vec<u8>>)>),
    Nothing {
        first: bool,
        due: Option<Duration>,
    },
    /// Items that were delivered too often are in the way.
    Letters,
}

fn claim(grant: &Grant) -> Result<Claim> {
    let claim = grant.attachment::<Claim>().copied();
    claim.ok_or_else(|| Error::new(ErrorKind::Internal, "a grant of another store"))
}

fn bound(token: FencingToken) -> i64 {
    token.get().cast_signed()
}

/// Rounded up, so that nobody is early.
fn millis(delay: Duration) -> f64 {
    (delay.min(LONGEST_DELAY).as_secs_f64() * 1000.0).ceil()
}

fn check_bytes(items: &[Item]) -> Result<()> {
    let bytes: usize = items.iter().map(|item| item.value().len()).sum();
    if bytes <= MAX_BATCH_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::TooLarge,
        format!(
            "a batch on PostgreSQL may have at most {MAX_BATCH_BYTES} bytes in all, this one has {bytes}: split it"
        ),
    ))
}

fn priority(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

impl PostgresQueue {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }

    fn books(&self) -> &Books {
        &self.session.queues
    }

    fn path(&self, name: &Name) -> Arc<str> {
        path(&self.session.client.config.namespace, Kind::Queue, name).into()
    }

    /// Tells those who wait in this process, and notes who was told.
    fn tell(&self, path: &Arc<str>, row: Row<'_>) -> Result<()> {
        if let Some(told) = row.get("told")? {
            self.books().told(path, told);
        }
        self.session.tell_ours(row.get("ours")?);
        Ok(())
    }

    /// A step that may tell somebody. Should its answer be lost, all who wait here look.
    async fn telling(
        &self,
        main: &mut MainGuard<'_>,
        path: &Arc<str>,
        step: crate::step::Step<'_>,
    ) -> Result<crate::step::Rows> {
        let done = main.call(step).await;
        match &done {
            Ok(rows) => self.tell(path, rows.first()?)?,
            Err(_) if main.is_over() => self.session.client.waits.missed(),
            Err(_) => {}
        }
        done
    }

    /// Waits until what was done for the ask `nonce` is on disk. If that fails, the step is not to be
    /// repeated, but this. Not on the main connection: a disk or a standby that stalls must not stop the renewals.
    async fn settle(&self, main: MainGuard<'_>, nonce: u64) -> Result<()> {
        self.books().unsettled(nonce);
        drop(main);
        self.session.flush().await?;
        self.books().settled(nonce);
        Ok(())
    }

    /// Takes items; if there are none and it `waits`, stands in line.
    async fn look(&self, ask: &Ask, want: &Want, waits: bool, stood: bool) -> Result<Found> {
        let path = self.path(ask.name());
        let mut main = self.session.main().await;
        // After the turn has come: others of this session may have had theirs meanwhile.
        let marks = self.books().marks(&path);
        let (priorities, numbers): (Vec<i32>, Vec<i64>) = marks.fresh.into_iter().unzip();
        let after = want
            .dead_letters
            .as_ref()
            .map(|letters| i32::try_from(letters.after.get()).unwrap_or(i32::MAX));
        let take = step(
            "SELECT told, queue, tokens, priorities, numbers, deliveries, vals, ours, letters, first, due \
             FROM tenure.queue_take($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .with(self.session.id)
        .with(signed(ask.nonce()))
        .with(&self.session.client.channel)
        .with(&*path)
        .with(i32::try_from(want.most).unwrap_or(i32::MAX))
        .with(after)
        .with(waits)
        .with(stood)
        .with(marks.queue)
        .with(priorities)
        .with(numbers)
        .with(marks.told);
        let taken = self.telling(&mut main, &path, take).await?;
        let row = taken.first()?;
        let Some(tokens) = row.get::<Option<Vec<i64>>>("tokens")? else {
            if row.get::<Option<bool>>("letters")? == Some(true) {
                return Ok(Found::Letters);
            }
            let due: Option<i64> = row.get("due")?;
            return Ok(Found::Nothing {
                first: row.get::<Option<bool>>("first")?.unwrap_or(false),
                due: due.map(|due| Duration::from_millis(due.try_into().unwrap_or(0))),
            });
        };
        let queue = row.get("queue")?;
        let priorities: Vec<i32> = row.get("priorities")?;
        let numbers: Vec<i64> = row.get("numbers")?;
        let deliveries: Vec<i32> = row.get("deliveries")?;
        let values: Vec<Option<Vec<u8>>> = row.get("vals")?;
        let places = priorities.into_iter().zip(numbers);
        let rest = deliveries.into_iter().zip(values);
        let mut items = Vec::new();
        for (token, ((priority, number), (count, value))) in
            tokens.into_iter().zip(places.zip(rest))
        {
            let claim = Claim {
                queue,
                priority,
                number,
            };
            self.books().delivered(&path, claim);
            let token = FencingToken::new(token.cast_unsigned());
            items.push((claim, token, count.try_into().unwrap_or(1), value));
        }
        Ok(Found::Items(items))
    }

    /// A look that clears away what was delivered too often.
    async fn look_past_letters(
        &self,
        ask: &Ask,
        want: &Want,
        waits: bool,
        stood: bool,
    ) -> Result<Found> {
        loop {
            let found = self.look(ask, want, waits, stood).await?;
            let (Found::Letters, Some(letters)) = (&found, &want.dead_letters) else {
                return Ok(found);
            };
            if ask.is_withdrawn() {
                return Err(Error::withdrawn());
            }
            let (from, to) = (self.path(ask.name()), self.path(&letters.queue));
            let bury =
                step("SELECT NULL::bigint AS told, ours FROM tenure.queue_bury_letters($1, $2, $3, $4) AS ours")
                    .with(&self.session.client.channel)
                    .with(&*from)
                    .with(i32::try_from(letters.after.get()).unwrap_or(i32::MAX))
                    .with(&*to);
            let mut main = self.session.main().await;
            self.telling(&mut main, &to, bury).await?;
        }
    }

    /// What was taken, with the values that were too large for the answer.
    async fn taken(
        &self,
        ask: &Ask,
        items: Vec<(Claim, FencingToken, u32, Option<Vec<u8>>)>,
    ) -> Result<Vec<Taken>> {
        let path = self.path(ask.name());
        let large = items.iter().filter(|(_, _, _, value)| value.is_none());
        let large: Vec<_> = large.map(|(claim, token, ..)| (*claim, *token)).collect();
        let mut large = match large.is_empty() {
            true => Vec::new(),
            false => self.values(ask, &large).await?,
        }
        .into_iter();
        let mut taken = Vec::new();
        for (claim, token, deliveries, value) in items {
            // None if it is not ours any more, or this is another server than the session's.
            let value = value.or_else(|| large.next().flatten());
            let value = value.ok_or_else(|| Error::lost(LossReason::Revoked))?;
            let key = format!("{path}#{}", claim.member());
            taken.push(Taken {
                grant: Grant::new(token, key).attach(claim),
                value,
                priority: priority(claim.priority),
                deliveries,
            });
        }
        Ok(taken)
    }

    /// The values of items that are ours, in one read over the connection that reads, however often it takes. A take
    /// has 2 MiB at most, or one item.
    async fn values(
        &self,
        ask: &Ask,
        items: &[(Claim, FencingToken)],
    ) -> Result<Vec<Option<Vec<u8>>>> {
        let column =
            |of: fn(&(Claim, FencingToken)) -> i64| -> Vec<i64> { items.iter().map(of).collect() };
        let priorities: Vec<i32> = items.iter().map(|(claim, _)| claim.priority).collect();
        loop {
            let read = self.session.read(|| {
                step("SELECT tenure.queue_values($1, $2, $3, $4) AS vals")
                    .with(column(|(claim, _)| claim.queue))
                    .with(priorities.clone())
                    .with(column(|(claim, _)| claim.number))
                    .with(column(|(_, token)| bound(*token)))
            });
            match read.await {
                Ok(rows) => return rows.first()?.get("vals"),
                Err(error) if !error.is_retryable() => {
                    return Err(error.with_effect(Effect::Unknown));
                }
                Err(error) => {
                    tracing::debug!(error = %error.chain(), "could not read an item's value")
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }

    async fn wait(&self, ask: &Ask, want: &Want, mut stood: bool) -> Result<Vec<Taken>> {
        // Before the first look: what is told right after that is heard.
        let waiting = self.session.waiting(ask.nonce());
        let watch = self.books().watch(&self.path(ask.name()));
        let mut watching = None;
        loop {
            let (first, due) = match self.look_past_letters(ask, want, true, stood).await? {
                Found::Items(items) => return self.taken(ask, items).await,
                Found::Nothing { first, due } => (first, due),
                Found::Letters => (true, None),
            };
            stood = true;
            let base = (self.session.ttl / 8)
                .clamp(Duration::from_millis(100), Duration::from_millis(500));
            let patience = if first { base } else { base * 2 };
            let patience = due.map_or(patience, |due| due.min(patience));
            tokio::select! {
                _ = waiting.news() => {}
                () = keep_watch(&watch, &mut watching, patience) => {}
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            }
        }
    }

    /// Which deliveries of the session are not there any more: their nonces.
    pub(crate) async fn missing(session: &PostgresSession, held: &[Held]) -> Result<Vec<u64>> {
        let held: Vec<_> = held
            .iter()
            .filter(|held| held.kind == Kind::Queue)
            .filter_map(|held| Some((held, Claim::parse(&held.key)?)))
            .collect();
        let mut gone = Vec::new();
        for held in held.chunks(CHUNK) {
            let column = |of: fn(Claim) -> i64| -> Vec<i64> {
                held.iter().map(|(_, claim)| of(*claim)).collect()
            };
            let priorities: Vec<i32> = held.iter().map(|(_, claim)| claim.priority).collect();
            let tokens: Vec<i64> = held.iter().map(|(held, _)| bound(held.token)).collect();
            let missing =
                step("SELECT token FROM tenure.queue_missing($1, $2, $3, $4, $5) AS token")
                    .with(session.id)
                    .with(column(|claim| claim.queue))
                    .with(priorities)
                    .with(column(|claim| claim.number))
                    .with(tokens);
            let missing = session.call(missing).await?;
            let missing: HashSet<i64> = missing
                .iter()
                .map(|row| row.get("token"))
                .collect::<Result<_>>()?;
            let lost = held
                .iter()
                .filter(|(held, _)| missing.contains(&bound(held.token)));
            gone.extend(lost.map(|(held, _)| held.nonce));
        }
        Ok(gone)
    }
}

/// Ends after `patience`, but for one at a time of those who wait in a session.
async fn keep_watch(
    watch: &Arc<AsyncMutex<()>>,
    watching: &mut Option<OwnedMutexGuard<()>>,
    patience: Duration,
) {
    if watching.is_none() {
        *watching = Some(Arc::clone(watch).lock_owned().await);
    }
    tokio::time::sleep(patience).await;
}

#[async_trait]
impl Queue for PostgresQueue {
    async fn enqueue(&self, ask: &Ask, items: &[Item]) -> Result<()> {
        check_bytes(items)?;
        let path = self.path(ask.name());
        let mut main = self.session.main().await;
        if !self.books().is_unsettled(ask.nonce()) {
            let priorities: Vec<_> = items
                .iter()
                .map(|it| i32::from(it.get_priority()))
                .collect();
            let names: Vec<_> = items
                .iter()
                .map(|item| item.get_id().map(Name::as_str))
                .collect();
            let values: Vec<_> = items.iter().map(Item::value).collect();
            let enqueue =
                step("SELECT told, ours FROM tenure.queue_enqueue($1, $2, $3, $4, $5, $6)")
                    .with(&self.session.client.channel)
                    .with(&*path)
                    .with(priorities)
                    .with(names)
                    .with(values)
                    .with(self.books().marks(&path).told);
            self.telling(&mut main, &path, enqueue).await?;
        }
        self.settle(main, ask.nonce()).await
    }

    async fn try_take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        match self.look_past_letters(ask, want, false, false).await? {
            Found::Items(items) => self.taken(ask, items).await,
            Found::Nothing { .. } | Found::Letters => Ok(Vec::new()),
        }
    }

    async fn take(&self, ask: &Ask, want: &Want) -> Result<Vec<Taken>> {
        let stood = self.books().settled(ask.nonce());
        self.wait(ask, want, stood).await.map_err(|error| {
            // It may stand in line, whatever became of the last look: if this is repeated, that is to be
            // remembered.
            self.books().unsettled(ask.nonce());
            error.with_effect(Effect::Unknown)
        })
    }

    async fn ack(&self, _: &Ask, grant: &Grant) -> Result<()> {
        let (claim, token) = (claim(grant)?, grant.token());
        if !locked(&self.books().acknowledged).contains(&token) {
            let ack = step("SELECT tenure.queue_ack($1, $2, $3, $4, $5) AS done, pg_catalog.set_config('synchronous_commit', 'off', true)")
                .with(self.session.id)
                .with(claim.queue)
                .with(claim.priority)
                .with(claim.number)
                .with(bound(token));
            let done = self.session.call(ack).await?;
            if !done.first()?.get::<bool>("done")? {
                return Err(Error::lost(LossReason::Revoked));
            }
            // From here on it is done, and only to be flushed, should this be repeated.
            locked(&self.books().acknowledged).insert(token);
        }
        self.session.flush().await?;
        locked(&self.books().acknowledged).remove(&token);
        Ok(())
    }

    async fn nack(&self, ask: &Ask, grant: &Grant, delay: Duration) -> Result<()> {
        let (path, claim) = (self.path(ask.name()), claim(grant)?);
        let mut main = self.session.main().await;
        if !self.books().is_unsettled(ask.nonce()) {
            let nack = step(
                "SELECT told, ours FROM tenure.queue_nack($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            )
            .with(self.session.id)
            .with(&self.session.client.channel)
            .with(&*path)
            .with(claim.queue)
            .with(claim.priority)
            .with(claim.number)
            .with(bound(grant.token()))
            .with(millis(delay))
            .with(self.books().marks(&path).told);
            let done = self.telling(&mut main, &path, nack).await?;
            if done.first()?.get::<Option<Vec<i64>>>("ours")?.is_none() {
                return Err(Error::lost(LossReason::Revoked));
            }
        }
        if delay.is_zero() {
            // Should the server forget this in a crash, the item comes back all the same.
            return Ok(());
        }
        self.settle(main, ask.nonce()).await
    }

    async fn depth(&self, name: &Name) -> Result<Depth> {
        let path = self.path(name);
        let ask =
            || step("SELECT total, in_flight, delayed FROM tenure.queue_depth($1)").with(&*path);
        let rows = self.session.read(ask).await?;
        let row = rows.first()?;
        let count = |column| Ok::<_, Error>(row.get::<i64>(column)?.unsigned_abs());
        let (total, in_flight, delayed) = (count("total")?, count("in_flight")?, count("delayed")?);
        let ready = total.saturating_sub(in_flight + delayed);
        Ok(Depth::new(ready, in_flight, delayed))
    }

    async fn peek(&self, name: &Name) -> Result<Option<Peeked>> {
        let path = self.path(name);
        let ask =
            || step("SELECT priority, value, deliveries FROM tenure.queue_peek($1)").with(&*path);
        let rows = self.session.read(ask).await?;
        let row = rows.first()?;
        let Some(value) = row.get("value")? else {
            return Ok(None);
        };
        Ok(Some(Peeked {
            value,
            priority: priority(row.get("priority")?),
            deliveries: row.get::<i32>("deliveries")?.try_into().unwrap_or(0),
        }))
    }

    async fn purge(&self, ask: &Ask) -> Result<u64> {
        let path = self.path(ask.name());
        let (mut at, mut last, mut purged) = ((0_i32, 0_i64), None::<i64>, 0);
        loop {
            let mut main = self.session.main().await;
            let purge = step(
                "SELECT priority, number, last, removed, more FROM tenure.queue_purge($1, $2, $3, $4, $5)",
            )
            .with(self.session.id)
            .with(&*path)
            .with(at.0)
            .with(at.1)
            .with(last);
            let done = main.call(purge).await?;
            let row = done.first()?;
            purged += row.get::<i64>("removed")?.unsigned_abs();
            if !row.get::<bool>("more")? {
                drop(main);
                self.session.flush().await?;
                return Ok(purged);
            }
            at = (row.get("priority")?, row.get("number")?);
            last = row.get("last")?;
        }
    }
}

#[async_trait]
impl Settle for PostgresQueue {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.nack(ask, grant, Duration::ZERO).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let path = self.path(ask.name());
        let mut main = self.session.main().await;
        let withdraw = step("SELECT told, ours FROM tenure.queue_withdraw($1, $2, $3, $4, $5)")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(&self.session.client.channel)
            .with(&*path)
            .with(self.books().marks(&path).told);
        self.telling(&mut main, &path, withdraw).await?;
        self.books().settled(ask.nonce());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delivery_is_found_in_its_key() {
        let claim = Claim {
            queue: 7,
            priority: 65_535,
            number: i64::MAX,
        };
        let key = format!("tenure/1/a#1:2:3/queue/x#{}", claim.member());
        assert_eq!(Claim::parse(&key), Some(claim));
        for odd in ["", "#", "x#1:2", "x#1:2:3:4", "x#a:2:3", "1:2:3"] {
            assert_eq!(Claim::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_is_known_has_an_end() {
        let books = Books::default();
        for number in 0..3 * KNOWN {
            let path = Arc::from(format!("{number}"));
            for priority in 0..3 * i32::try_from(PRIORITIES).unwrap_or(0) {
                books.delivered(
                    &path,
                    Claim {
                        queue: 1,
                        priority,
                        number: 1,
                    },
                );
            }
            assert!(books.marks(&path).fresh.len() <= PRIORITIES);
        }
        assert!(locked(&books.queues).len() <= KNOWN);
        // One of whom somebody waits is kept.
        let path = Arc::from("waited for");
        let watch = books.watch(&path);
        for number in 0..2 * KNOWN {
            books.told(&Arc::from(format!("{number}")), 1);
        }
        assert!(Arc::ptr_eq(&watch, &books.watch(&path)));
    }

    #[test]
    fn a_delay_is_never_early() {
        assert_eq!(millis(Duration::from_nanos(1)), 1.0);
        assert_eq!(millis(Duration::ZERO), 0.0);
        assert!(millis(Duration::MAX).is_finite());
    }

    #[test]
    fn a_batch_has_an_end() {
        let items = |count, size| vec![Item::new(vec![0; size]); count];
        assert!(check_bytes(&items(2, 1024 * 1024)).is_ok());
        let error = check_bytes(&items(3, 1024 * 1024)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }
}
