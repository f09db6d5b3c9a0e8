//! A session's main connection, and what the session has locked over it.
//!
//! The connection is the lease: the server ends it when it is silent for the TTL, and with it every
//! advisory lock that was taken over it. So it is never replaced: without it, the session is over. Steps
//! go over it strictly one after the other, and what they lock and unlock is noted before the next one
//! starts: PostgreSQL would give the session a second time what it has.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tenure_core::backend::Alarm;
use tenure_core::{Effect, Error, ErrorKind, FencingToken, LossReason, Result};
use tokio::sync::MutexGuard;

use crate::error;
use crate::step::{Rows, Step, step};

fn bound(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The connection, until it is gone.
pub(crate) struct Main {
    connection: Result<PgConnection, LossReason>,
    /// The same for those who cannot wait for their turn: why it is gone.
    gone: Arc<OnceLock<LossReason>>,
    own: Own,
    room: Room,
    /// How long the server may take for a step: after that, its idle timer has ended the session.
    limit: Duration,
}

/// The locks that the session has.
#[derive(Default)]
pub(crate) struct Own {
    keys: HashMap<i64, Key>,
    by_nonce: HashMap<u64, i64>,
    /// How many entries of the server's lock table all keys take.
    entries: usize,
}

struct Key {
    path: Arc<str>,
    entries: usize,
    holders: HashMap<u64, Holder>,
}

/// One ask that was granted.
pub(crate) struct Holder {
    pub(crate) shared: bool,
    pub(crate) token: FencingToken,
    pub(crate) alarm: Alarm,
    /// The two 32-bit keys that it has besides.
    pub(crate) pair: Option<(i32, i32)>,
    /// An unlock went wrong half-way: PostgreSQL does not take it back.
    pub(crate) leaving: bool,
    /// It leads an election: others see a row of it.
    pub(crate) leads: bool,
    /// A downgrade went wrong half-way: so are the advisory locks.
    pub(crate) turning: bool,
}

impl Own {
    /// Whether the session itself keeps an ask from having `key`.
    pub(crate) fn excludes(&self, key: i64, path: &str, shared: bool) -> Result<bool> {
        let Some(own) = self.keys.get(&key) else {
            return Ok(false);
        };
        if *own.path != *path {
            return Err(error::collision(path, &own.path));
        }
        let excludes = |holder: &Holder| !holder.shared || holder.leaving;
        Ok(!shared || own.holders.values().any(excludes))
    }

    /// Whether others than `nonce` share `key`. The session has one share of the server's lock for all of them,
    /// which the last one gives back: an unlock that is repeated after a failure can free no other's.
    pub(crate) fn shared_by_others(&self, key: i64, nonce: u64) -> bool {
        let own = self.keys.get(&key);
        own.is_some_and(|own| own.holders.keys().any(|of| *of != nonce))
    }

    /// `nonce` has `key` now, which takes so many `entries` of the server's lock table.
    pub(crate) fn enter(
        &mut self,
        key: i64,
        path: Arc<str>,
        entries: usize,
        nonce: u64,
        holder: Holder,
    ) {
        let own = self.keys.entry(key).or_insert_with(|| {
            self.entries += entries;
            Key {
                path,
                entries,
                holders: HashMap::new(),
            }
        });
        own.holders.insert(nonce, holder);
        self.by_nonce.insert(nonce, key);
    }

    /// What `nonce` has, and under which key.
    pub(crate) fn of(&mut self, nonce: u64) -> Option<(i64, &mut Holder)> {
        let key = *self.by_nonce.get(&nonce)?;
        let holder = self.keys.get_mut(&key)?.holders.get_mut(&nonce)?;
        Some((key, holder))
    }

    /// The key that `nonce` has under `token`, unless it is letting go of it.
    pub(crate) fn held(&mut self, nonce: u64, token: FencingToken) -> Option<i64> {
        let (key, holder) = self.of(nonce)?;
        (holder.token == token && !holder.leaving).then_some(key)
    }

    pub(crate) fn path(&self, key: i64) -> Option<Arc<str>> {
        Some(Arc::clone(&self.keys.get(&key)?.path))
    }

    /// `nonce` has nothing any more.
    pub(crate) fn leave(&mut self, nonce: u64) -> Option<Holder> {
        let key = self.by_nonce.remove(&nonce)?;
        let own = self.keys.get_mut(&key)?;
        let holder = own.holders.remove(&nonce);
        if own.holders.is_empty() {
            self.entries -= own.entries;
            self.keys.remove(&key);
        }
        holder
    }

    /// Whether `nonce` holds under `token`, or whoever has the object at `path` does: what a fenced commit
    /// asks, in the same go as the commit.
    pub(crate) fn holds(&self, nonce: u64, key: i64, path: &str, token: FencingToken) -> bool {
        let found = self.by_nonce.get(&nonce).copied();
        [found, Some(key)].into_iter().flatten().any(|key| {
            self.keys.get(&key).is_some_and(|own| {
                let mut holders = own.holders.iter();
                holders.any(|(of, holder)| {
                    let it = *of == nonce || *own.path == *path;
                    it && holder.token == token && !holder.leaving
                })
            })
        })
    }

    pub(crate) fn has(&self, nonce: u64) -> bool {
        self.by_nonce.contains_key(&nonce)
    }

    pub(crate) fn has_key(&self, key: i64) -> bool {
        self.keys.contains_key(&key)
    }

    /// Who has `key`.
    pub(crate) fn holders(&self, key: i64) -> Vec<u64> {
        let own = self.keys.get(&key);
        own.map_or_else(Vec::new, |own| own.holders.keys().copied().collect())
    }

    pub(crate) fn keys(&self) -> Vec<i64> {
        self.keys.keys().copied().collect()
    }
}

/// How many locks there may be: see `80_lock_table.sql`. The lock table is the whole server's: where it is full,
/// nobody can even connect.
#[derive(Clone, Copy, Default)]
struct Room {
    /// How many locks all reservations of the server may have together: a quarter of the table.
    budget: usize,
    /// How many the session may have without a reservation: an eighth of the part of the table that PostgreSQL makes
    /// for one connection.
    allowance: usize,
    /// How many it has reserved.
    reserved: usize,
}

/// What a session has in the lock table besides its holdings: its own lock, and its reservation.
const BASE: usize = 2;

/// How many locks more than it needs a session reserves, at least and at most: so that one that takes n locks reserves
/// O(log n) times.
const AHEAD: (usize, usize) = (8, 512);

impl Main {
    /// A connection that is to become a lease: see [`MainGuard::begin`].
    pub(crate) fn new(connection: PgConnection, limit: Duration) -> Self {
        Self {
            connection: Ok(connection),
            gone: Arc::default(),
            own: Own::default(),
            room: Room::default(),
            limit,
        }
    }

    /// Where the end is noted, before anybody is told of it.
    pub(crate) fn gone(&self) -> Arc<OnceLock<LossReason>> {
        Arc::clone(&self.gone)
    }

    /// The session is over, and whoever holds something learns of it.
    fn end(&mut self, reason: LossReason) -> Option<PgConnection> {
        self.gone.get_or_init(|| reason);
        let connection = std::mem::replace(&mut self.connection, Err(reason)).ok();
        let own = std::mem::take(&mut self.own);
        for holder in own.keys.values().flat_map(|key| key.holders.values()) {
            holder.alarm.raise(reason);
        }
        connection
    }
}

/// The main connection to oneself: for steps that go with a change of what the session has.
pub(crate) struct MainGuard<'s> {
    main: MutexGuard<'s, Main>,
    _turn: Option<MutexGuard<'s, ()>>,
}

impl<'s> MainGuard<'s> {
    /// With a turn, unless this goes before everybody whose turn it will be.
    pub(crate) fn new(main: MutexGuard<'s, Main>, turn: Option<MutexGuard<'s, ()>>) -> Self {
        Self { main, _turn: turn }
    }

    /// One step. `Lost` when the connection is gone, now (then the step may have been taken: nobody heard
    /// of it) or before; any other error says that the
    /// step was rolled back, but for the advisory locks that it took or freed.
    pub(crate) async fn call(&mut self, step: Step<'_>) -> Result<Rows> {
        let main = &mut *self.main;
        let connection = match &mut main.connection {
            Ok(connection) => connection,
            Err(reason) => return Err(Error::lost(*reason)),
        };
        let sql = step.sql;
        let answer = tokio::time::timeout(main.limit, step.query.fetch_all(connection)).await;
        let error = match answer {
            Ok(Ok(rows)) => return Ok(Rows { sql, rows }),
            Ok(Err(error)) => error,
            Err(_) => {
                main.end(LossReason::Unreachable);
                return Err(Error::lost(LossReason::Unreachable).with_effect(Effect::Unknown));
            }
        };
        match error::ended(&error) {
            Some(reason) => {
                main.end(reason);
                Err(Error::lost(reason)
                    .with_effect(Effect::Unknown)
                    .with_source(error))
            }
            None => Err(error::from_sqlx(error)),
        }
    }

    /// From now on the session is a lease of `ttl`. The server's lock table has `locks` entries, of which
    /// `each` are made for one connection.
    pub(crate) fn begin(&mut self, ttl: Duration, locks: usize, each: usize) {
        self.main.limit = ttl;
        self.main.room = Room {
            budget: locks / 4,
            // One lock it may always have.
            allowance: (each / 8).max(BASE + 1),
            reserved: 0,
        };
    }

    pub(crate) fn own(&mut self) -> &mut Own {
        &mut self.main.own
    }

    /// Makes sure that `entries` more of the server's lock table may be used; refuses what would harm others.
    pub(crate) async fn make_room(&mut self, entries: usize) -> Result<()> {
        let least = BASE + self.main.own.entries + entries;
        let Room {
            budget,
            allowance,
            reserved,
        } = self.main.room;
        if least <= reserved.max(allowance) {
            return Ok(());
        }
        let want = least + (least / 2).clamp(AHEAD.0, AHEAD.1);
        let reserve = step("SELECT reserved, others FROM tenure.reserve_locks($1, $2, $3)")
            .with(bound(want))
            .with(bound(least))
            .with(bound(budget));
        let answer = self.call(reserve).await?;
        let answer = answer.first()?;
        if let Some(reserved) = answer.get::<Option<i64>>("reserved")? {
            self.main.room.reserved = usize::try_from(reserved).unwrap_or(0);
            return Ok(());
        }
        let others = answer.get::<Option<i64>>("others")?.unwrap_or_default();
        Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "this session holds {} advisory locks, the other connections of this PostgreSQL hold or have reserved {others}, and a quarter of its lock table is {budget}: release some, or raise `max_locks_per_transaction`",
                BASE + self.main.own.entries
            ),
        ))
    }

    /// Gives back most of a reservation that is hardly used any more. Should that fail, it is made good with the
    /// next one, or ends with the session.
    pub(crate) async fn return_room(&mut self) {
        let used = BASE + self.main.own.entries;
        let Room {
            allowance,
            reserved,
            ..
        } = self.main.room;
        if reserved == 0 || (used > allowance && used > reserved / 4) || self.is_over() {
            return;
        }
        let keep = if used <= allowance { 0 } else { 2 * used };
        let give = step("SELECT tenure.return_locks($1, $2) AS kept")
            .with(bound(reserved))
            .with(bound(keep));
        let kept = match self.call(give).await {
            Ok(answer) => answer.first().and_then(|row| row.get::<i64>("kept")),
            Err(error) => Err(error),
        };
        self.main.room.reserved = match kept {
            Ok(kept) => usize::try_from(kept).unwrap_or(0),
            Err(error) => {
                tracing::debug!(error = %error.chain(), "could not give back a reservation of locks");
                0
            }
        };
    }

    /// Ends the session here and in the store, without another word.
    pub(crate) fn end(&mut self, reason: LossReason) {
        self.main.end(reason);
    }

    /// The same, and tells the server.
    pub(crate) async fn close(&mut self) {
        let limit = self.main.limit;
        if let Some(connection) = self.main.end(LossReason::Closed) {
            let _ = tokio::time::timeout(limit, connection.close()).await;
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.main.connection.is_err()
    }
}
