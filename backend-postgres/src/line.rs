//! Standing in a line, whatever the line is for (see `migrations/functions/10_line.sql`).
//!
//! Whoever holds has an advisory lock on the session's main connection; whoever waits has a ticket, and
//! sleeps until told of its turn. Nobody tells of the dead, and foreign holders tell nobody: so the
//! next in line also looks by itself, every fraction of the TTL.

use std::sync::Arc;
use std::time::Duration;

use tenure_core::backend::{Ask, Grant, Kind, News, Side, path};
use tenure_core::{Effect, Error, FencingToken, LossReason, Result};

use crate::error;
use crate::interop::{self, Place};
use crate::key::{hex, key_of, signed};
use crate::main_connection::{Holder, MainGuard};
use crate::session::PostgresSession;
use crate::step::step;

/// What a line is for, and who stands in it how.
pub(crate) struct Stand<'v> {
    pub(crate) path: Arc<str>,
    pub(crate) key: i64,
    shared: bool,
    pub(crate) nonce: u64,
    /// What others take for it, if that is not `key`.
    pub(crate) pair: Option<(i32, i32)>,
    /// What a candidate of an election stands for.
    value: Option<&'v [u8]>,
}

impl Stand<'_> {
    /// How many entries of the server's lock table it takes.
    fn entries(&self) -> usize {
        1 + usize::from(self.pair.is_some())
    }
}

/// Joins a line. What is usual needs no function, which would cost as much again: nobody waits, and the
/// lock is free. Here CASE keeps the order.
///
/// Whoever is granted does not wait for the disk: every 32nd number of a sequence is logged, and a commit
/// that waits for that costs a hundred times the lock. A crash takes back what half a minute gave out at
/// most, and `tenure.revive` goes on a million numbers above.
macro_rules! join {
    ($try:literal) => {
        concat!(
            "SELECT CASE WHEN NOT $7 AND NOT EXISTS (SELECT FROM tenure.tickets AS t WHERE t.key = $5) \
             THEN CASE WHEN ",
            $try,
            "($5) THEN CASE WHEN pg_catalog.set_config('synchronous_commit', 'off', true) IS NOT NULL \
             THEN pg_catalog.nextval('tenure.tokens') END \
             ELSE tenure.line_join($1, $2, $3, $4, $5, $6, $7, $8) END \
             ELSE tenure.line_join($1, $2, $3, $4, $5, $6, $7, $8) END AS token"
        )
    };
}

/// Looks whether it is a ticket's turn. Does not wait for the disk either.
const LOOK: &str = "SELECT token, ahead, pg_catalog.set_config('synchronous_commit', 'off', true) \
    FROM tenure.line_look($1, $2, $3, $4, $5)";

/// Joins a line as one more reader of a session that has the lock shared.
const SHARE: &str = "SELECT tenure.line_share($1, $2, $3, $4, $5, $6) AS token";

/// How often somebody who waits has the server look for sessions that have ended, however far in line it stands:
/// with the half second in which the server does so once at most, well within the stated bound.
const WATCH: Duration = Duration::from_millis(800);

/// What a look finds.
enum Found {
    Held(FencingToken),
    Wait(Duration),
    Gone,
}

impl PostgresSession {
    pub(crate) fn stand<'v>(&self, ask: &Ask, side: Side, value: Option<&'v [u8]>) -> Stand<'v> {
        let config = &self.client.config;
        let (path, place) = if config.interop && ask.kind() == Kind::Lock {
            let name = ask.name().as_str();
            (name.to_owned(), Some(Place::of(name)))
        } else {
            (path(&config.namespace, ask.kind(), ask.name()), None)
        };
        let (path, key, pair) = match place {
            Some(Place::One(key)) => (path, key, None),
            Some(Place::Two(first, second)) => {
                // A line of its own: the pair is a key in another space.
                let path = format!("{}{first},{second}", interop::EXPLICIT);
                (path.clone(), key_of(&path), Some((first, second)))
            }
            None => {
                let key = key_of(&path);
                (path, key, None)
            }
        };
        Stand {
            key,
            pair,
            path: path.into(),
            // The side of whatever is not shared is that of a writer.
            shared: side == Side::Read,
            nonce: ask.nonce(),
            value,
        }
    }

    /// A grant's key: the object, and whose it is. The last `#` parts them.
    fn line_grant(&self, stand: &Stand<'_>, token: FencingToken) -> Grant {
        let key = format!("{}#{}:{}", stand.path, self.id, hex(stand.nonce));
        Grant::new(token, key)
    }

    /// Takes the lock if that is possible at once; leaves nothing behind if not.
    pub(crate) async fn try_line(
        &self,
        ask: &Ask,
        side: Side,
        value: Option<&[u8]>,
    ) -> Result<Option<Grant>> {
        let stand = self.stand(ask, side, value);
        let Some(token) = self.join(ask, &stand, false).await? else {
            return Ok(None);
        };
        if stand.pair.is_some() && !self.try_pair(&stand).await? {
            return Ok(None);
        }
        Ok(Some(self.line_grant(&stand, token)))
    }

    /// Takes the lock, waiting in line for it.
    pub(crate) async fn stand_in_line(
        &self,
        ask: &Ask,
        side: Side,
        value: Option<&[u8]>,
    ) -> Result<Grant> {
        let stand = self.stand(ask, side, value);
        let token = self.wait_in_line(ask, &stand).await?;
        if stand.pair.is_some() {
            self.wait_for_pair(ask, &stand).await?;
        }
        Ok(self.line_grant(&stand, token))
    }

    async fn wait_in_line(&self, ask: &Ask, stand: &Stand<'_>) -> Result<FencingToken> {
        let waiting = self.waiting(stand.nonce);
        if let Some(token) = self.join(ask, stand, true).await? {
            return Ok(token);
        }
        // The first look is not for nothing: a release may have missed our ticket.
        loop {
            let found = self.look(ask, stand).await;
            // There is a ticket, whatever became of this look.
            let patience = match found.map_err(|e| e.with_effect(Effect::Unknown))? {
                Found::Held(token) => return Ok(token),
                Found::Wait(patience) => patience,
                Found::Gone => return Err(error::removed_from_line()),
            };
            let look = tokio::time::Instant::now() + patience;
            loop {
                let now = tokio::time::Instant::now();
                if now >= look {
                    break;
                }
                tokio::select! {
                    News::Look | News::Granted(_) = waiting.news() => break,
                    // The server tells those who wait behind the dead, wherever in line.
                    () = tokio::time::sleep_until(look.min(now + WATCH)) => self.client.end_silent(),
                    () = ask.withdrawn() => return Err(Error::withdrawn()),
                }
            }
        }
    }

    async fn join(
        &self,
        ask: &Ask,
        stand: &Stand<'_>,
        waits: bool,
    ) -> Result<Option<FencingToken>> {
        let mut main = self.main().await;
        if ask.is_withdrawn() {
            return Err(Error::withdrawn());
        }
        let mine = main.own().excludes(stand.key, &stand.path, stand.shared)?;
        if mine && !waits {
            return Ok(None);
        }
        let has = main.own().has_key(stand.key);
        if !has {
            main.make_room(stand.entries()).await?;
        }
        let share = has && !mine;
        let join = match stand.value {
            _ if share => step(SHARE),
            Some(_) => step("SELECT tenure.election_join($1, $2, $3, $4, $5, $6, $7, $8) AS token"),
            None if stand.shared => step(join!("pg_catalog.pg_try_advisory_lock_shared")),
            None => step(join!("pg_catalog.pg_try_advisory_lock")),
        }
        .with(self.id)
        .with(signed(stand.nonce))
        .with(&self.client.channel)
        .with(&*stand.path)
        .with(stand.key);
        let join = match stand.value {
            _ if share => join.with(waits),
            Some(value) => join.with(mine).with(waits).with(value),
            None => join.with(stand.shared).with(mine).with(waits),
        };
        let joined = match main.call(join).await {
            Ok(joined) => joined.first()?.token("token")?,
            Err(error) => {
                if !has {
                    take_back(&mut main, stand).await;
                }
                return Err(error);
            }
        };
        if let Some(token) = joined {
            enter(&mut main, ask, stand, token);
        }
        Ok(joined)
    }

    async fn look(&self, ask: &Ask, stand: &Stand<'_>) -> Result<Found> {
        let mut main = self.main().await;
        if ask.is_withdrawn() {
            return Err(Error::withdrawn());
        }
        if main.own().excludes(stand.key, &stand.path, stand.shared)? {
            // Another of this session has it, and tells when it lets go.
            return Ok(Found::Wait(self.ttl));
        }
        let look = match stand.value {
            Some(_) => step("SELECT token, ahead FROM tenure.election_look($1, $2, $3, $4)"),
            None => step(LOOK),
        }
        .with(self.id)
        .with(signed(stand.nonce))
        .with(stand.key);
        let has = main.own().has_key(stand.key);
        let look = match stand.value {
            Some(_) => look.with(&*stand.path),
            None => look.with(stand.shared).with(has),
        };
        let found = match main.call(look).await {
            Ok(found) => found,
            Err(error) => {
                if !has {
                    take_back(&mut main, stand).await;
                }
                return Err(error);
            }
        };
        let found = found.first()?;
        if let Some(token) = found.token("token")? {
            enter(&mut main, ask, stand, token);
            // Not before: who only looks takes nothing, and is not to lose its place for want of room.
            if let Err(error) = main.make_room(0).await {
                self.leave(&mut main, stand.nonce).await?;
                return Err(error);
            }
            return Ok(Found::Held(token));
        }
        Ok(match found.get::<Option<i32>>("ahead")? {
            None => Found::Gone,
            // Another of this session stands before it, and looks out.
            Some(ahead) if ahead < 0 => Found::Wait(self.ttl),
            Some(ahead) => {
                let rank = u32::try_from(ahead).unwrap_or(1).max(1);
                Found::Wait(self.patience() * rank)
            }
        })
    }

    /// Gives back what `ask` was granted.
    pub(crate) async fn leave_line(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let mut main = self.main().await;
        let held = main
            .own()
            .of(ask.nonce())
            .is_some_and(|(_, holder)| holder.token == grant.token());
        if !held {
            return Err(Error::lost(LossReason::Revoked));
        }
        self.leave(&mut main, ask.nonce()).await
    }

    /// Lets go of what `nonce` has, and hands on.
    pub(crate) async fn leave(&self, main: &mut MainGuard<'_>, nonce: u64) -> Result<()> {
        interop::give_back(main, nonce).await?;
        let Some((key, holder)) = main.own().of(nonce) else {
            return Ok(());
        };
        if holder.turning {
            self.turn(main, nonce).await?;
        }
        let Some((_, holder)) = main.own().of(nonce) else {
            return Ok(());
        };
        let (shared, leads, again) = (holder.shared, holder.leads, holder.leaving);
        if main.own().shared_by_others(key, nonce) {
            // The session keeps its share. The round trip shows whether the session still lives.
            main.call(step("SELECT")).await?;
            main.own().leave(nonce);
            return Ok(());
        }
        if let Some((_, holder)) = main.own().of(nonce) {
            holder.leaving = true;
        }
        let path = main.own().path(key);
        let leave = if leads {
            step("SELECT tenure.election_leave($1, $2, $3, $4, $5) AS ours")
                .with(&self.client.channel)
                .with(key)
                .with(self.id)
                .with(signed(nonce))
                .with(path.as_deref())
        } else {
            step("SELECT tenure.line_leave($1, $2, $3) AS ours")
                .with(&self.client.channel)
                .with(key)
                .with(shared)
        };
        let left = main.call(leave).await?;
        let ours: Option<Vec<i64>> = left.first()?.get("ours")?;
        if ours.is_none() {
            if !again {
                main.own().leave(nonce);
                return Err(Error::lost(LossReason::Revoked));
            }
            self.nudge(main, &[key]).await?;
        }
        self.tell_ours(ours);
        main.own().leave(nonce);
        main.return_room().await;
        Ok(())
    }

    /// Removes whatever `ask` has. Those who only wait go together, whoever's turn on the connection it is.
    pub(crate) async fn withdraw_from_line(&self, ask: &Ask, side: Side) -> Result<()> {
        let nonce = ask.nonce();
        let mine = (nonce, self.stand(ask, side, None).key);
        let mut entry = self.withdrawals.enter(mine);
        let mut main = tokio::select! {
            biased;
            // Who did not get through with it leaves it to each.
            Ok(()) = &mut entry.done => return Ok(()),
            main = self.main() => main,
        };
        if main.own().has(nonce) {
            return self.leave(&mut main, nonce).await;
        }
        let own = main.own();
        let together = self.withdrawals.take(mine, |nonce| !own.has(nonce));
        let nonces: Vec<_> = together.asks().map(|(nonce, _)| signed(nonce)).collect();
        let mut keys: Vec<_> = together.asks().map(|(_, key)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        let withdraw = step("SELECT tenure.line_withdraw($1, $2)")
            .with(self.id)
            .with(nonces);
        main.call(withdraw).await?;
        self.nudge(&mut main, &keys).await?;
        together.done();
        Ok(())
    }

    /// Tells those whose turn it may be on the lines with these keys.
    pub(crate) async fn nudge(&self, main: &mut MainGuard<'_>, keys: &[i64]) -> Result<()> {
        let nudge = step(
            "SELECT tenure.line_nudge($1, key) AS ours FROM pg_catalog.unnest($2::bigint[]) AS key",
        )
        .with(&self.client.channel)
        .with(keys);
        let nudged = main.call(nudge).await?;
        for line in nudged.iter() {
            self.tell_ours(line.get("ours")?);
        }
        Ok(())
    }

    /// Those who wait in this process hear without the server.
    pub(crate) fn tell_ours(&self, nonces: Option<Vec<i64>>) {
        for nonce in nonces.into_iter().flatten() {
            self.client.waits.tell(nonce.cast_unsigned(), News::Look);
        }
    }

    /// An operator's order: lets go of what `nonce` has, and tells its holder.
    pub(crate) async fn evict(&self, nonce: u64) {
        let mut main = self.main().await;
        let Some((_, holder)) = main.own().of(nonce) else {
            return;
        };
        let alarm = holder.alarm.clone();
        if let Err(error) = self.leave(&mut main, nonce).await {
            tracing::debug!(error = %error.chain(), "could not carry out an eviction");
        }
        alarm.raise(LossReason::Revoked);
    }

    /// The same for all that have `key`.
    pub(crate) async fn evict_key(&self, key: i64) {
        let nonces = self.main().await.own().holders(key);
        for nonce in nonces {
            self.evict(nonce).await;
        }
    }
}

fn enter(main: &mut MainGuard<'_>, ask: &Ask, stand: &Stand<'_>, token: FencingToken) {
    let holder = Holder {
        shared: stand.shared,
        token,
        alarm: ask.alarm(),
        pair: None,
        leaving: false,
        leads: stand.value.is_some(),
        turning: false,
    };
    let path = Arc::clone(&stand.path);
    let entries = stand.entries();
    main.own()
        .enter(stand.key, path, entries, stand.nonce, holder);
}

/// A step that failed may have taken the lock all the same: it is not rolled back with the rest.
async fn take_back(main: &mut MainGuard<'_>, stand: &Stand<'_>) {
    if main.is_over() {
        return;
    }
    let unlock = step(if stand.shared {
        "SELECT pg_catalog.pg_advisory_unlock_shared($1)"
    } else {
        "SELECT pg_catalog.pg_advisory_unlock($1)"
    });
    // Called where the session had nothing under this key, so this frees no other reader's.
    if main.call(unlock.with(stand.key)).await.is_err() {
        main.end(LossReason::Unreachable);
    }
}
