//! Barriers and double barriers (see `migrations/functions/50_barrier.sql`).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tenure_core::backend::{Ask, Barrier, Grant, Kind, News, Settle, path};
use tenure_core::{Effect, Error, FencingToken, HoldFor, LossReason, Name, Result};

use crate::error;
use crate::key::{hex, signed};
use crate::main_connection::MainGuard;
use crate::session::PostgresSession;
use crate::step::{Rows, step};

/// How many a double barrier may have: the step in which it closes looks at all of them.
const MOST: u32 = 1_000;

/// How often whoever waits looks though nobody told: what was removed by hand is not announced. Where
/// somebody may die without a word, more often.
const SLOW: Duration = Duration::from_secs(5);

/// How soon something is tried again that did not work.
const AGAIN: Duration = Duration::from_millis(100);

/// The barriers and double barriers of a session on PostgreSQL.
#[derive(Debug)]
pub struct PostgresBarrier {
    session: Arc<PostgresSession>,
}

impl PostgresBarrier {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }

    fn path(&self, kind: Kind, name: &Name) -> String {
        path(&self.session.client.config.namespace, kind, name)
    }

    fn path_of(&self, ask: &Ask) -> String {
        self.path(ask.kind(), ask.name())
    }

    /// The hold that stands, and when to look again.
    async fn look(&self, path: &str) -> Result<Option<(i64, Duration)>> {
        let look = || step("SELECT token, bound FROM tenure.barrier_look($1)").with(path);
        let seen = self.session.read(look).await?;
        let Some(hold) = seen.opt() else {
            return Ok(None);
        };
        let pause = match hold.get::<bool>("bound")? {
            true => self.session.patience(),
            false => SLOW,
        };
        Ok(Some((hold.get("token")?, pause)))
    }

    /// Whether any of those who were inside with `grant` has yet to leave.
    async fn others(&self, path: &str, grant: &Grant) -> Result<bool> {
        let token = signed(grant.token().get());
        let look = || {
            step("SELECT tenure.room_others($1, $2) AS others")
                .with(path)
                .with(token)
        };
        self.session.read(look).await?.first()?.get("others")
    }

    /// A grant's key: the object, and whose it is. The last `#` parts them.
    fn granted(&self, ask: &Ask, path: &str, token: FencingToken) -> Grant {
        let key = format!("{path}#{}:{}", self.session.id, hex(ask.nonce()));
        Grant::new(token, key)
    }

    /// The answer to an `enter` or a look: a token, or nothing yet.
    fn found(found: &Rows) -> Result<Option<FencingToken>> {
        let row = found.first()?;
        let status: String = row.get("status")?;
        match status.as_str() {
            "held" => row.token("token"),
            "wait" => Ok(None),
            "gone" => Err(error::removed_from_line()),
            "full" => Err(error::one_too_many()),
            "count" => Err(error::another_count(row.get("others")?)),
            other => Err(error::unexpected(found.sql, other)),
        }
    }

    /// Takes a participant out, by its nonce alone if there is no token.
    async fn leave(&self, ask: &Ask, token: Option<FencingToken>) -> Result<bool> {
        let path = self.path_of(ask);
        let leave = step("SELECT tenure.room_leave($1, $2, $3, $4) AS gone")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(&path)
            .with(token.map(|token| signed(token.get())));
        self.session.call(leave).await?.first()?.get("gone")
    }

    /// Takes back a hold of a session that has ended: one for good outlives it, and nobody else will. Not
    /// before the server has noticed that end, for the hold may be on its way still.
    async fn unhold_for_the_dead(&self, ask: &Ask, path: &str) -> Result<()> {
        let noticed = Instant::now() + self.session.ttl + self.session.client.config.timeout;
        loop {
            let unheld = self.session.client.write(self.unhold_step(ask, path)).await;
            let error = match unheld {
                Ok(unheld) if unheld.first()?.get("unheld")? => {
                    let announced = self.session.client.write(step(ANNOUNCE).with(path)).await;
                    if let Err(error) = announced {
                        tracing::debug!(error = %error.chain(), "could not announce the end of a hold");
                    }
                    return Ok(());
                }
                Ok(_) => {
                    error::no_connection("the server has not noticed the end of this session yet")
                }
                Err(error) => error,
            };
            if !error.is_retryable() || Instant::now() >= noticed {
                return Err(error);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn unhold_step<'q>(&self, ask: &Ask, path: &'q str) -> crate::step::Step<'q> {
        step("SELECT tenure.barrier_unhold($1, $2, $3) AS unheld")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(path)
    }
}

#[async_trait]
impl Barrier for PostgresBarrier {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let path = self.path_of(ask);
        let hold = step("SELECT tenure.barrier_hold($1, $2, $3, $4) AS held")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(&path)
            .with(hold_for == HoldFor::Session);
        let mut main = self.session.main().await;
        if main.is_over() {
            return main.call(hold).await.map(drop);
        }
        match main.call(hold).await {
            Ok(held) if held.first()?.get("held")? => Ok(()),
            Ok(_) => Err(error::held()),
            // It may stand all the same, and be for good.
            Err(error) if main.is_over() => Err(error.with_effect(Effect::Unknown)),
            Err(error) => Err(error),
        }
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        let path = self.path_of(ask);
        let lift = step("SELECT tenure.barrier_lift($1) AS lifted").with(&path);
        let mut main = self.session.main().await;
        let lifted = main.call(lift).await?.first()?.get("lifted")?;
        announce(&mut main, &path).await;
        Ok(lifted)
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        let path = self.path(Kind::Barrier, name);
        Ok(self.look(&path).await?.is_some())
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        let path = self.path(Kind::Barrier, name);
        let Some((met, mut pause)) = self.look(&path).await? else {
            return Ok(());
        };
        let topic = persistently(|| self.session.topic(&path)).await?;
        loop {
            // Another hold than the one that was met: that one has ended.
            match self.look(&path).await {
                Ok(Some((now, again))) if now == met => pause = again,
                // Given up, this wait would begin anew, and meet a later hold.
                Err(error) if error.is_retryable() => {}
                Err(error) => return Err(error),
                Ok(_) => return Ok(()),
            }
            tokio::select! {
                () = topic.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant> {
        let count = count.get();
        let Some(few) = i32::try_from(count).ok().filter(|_| count <= MOST) else {
            return Err(error::too_many(count, MOST));
        };
        let path = self.path_of(ask);
        let waiting = self.session.waiting(ask.nonce());
        let enter = step("SELECT status, token, others FROM tenure.room_enter($1, $2, $3, $4, $5)")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(&self.session.client.channel)
            .with(&path)
            .with(few);
        let mut found = self.session.call(enter).await?;
        loop {
            if let Some(token) = Self::found(&found)? {
                return Ok(self.granted(ask, &path, token));
            }
            let news = tokio::select! {
                news = waiting.news() => news,
                () = tokio::time::sleep(SLOW) => News::Look,
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            };
            if let News::Granted(token) = news {
                return Ok(self.granted(ask, &path, token));
            }
            let look = step("SELECT status, token, others FROM tenure.room_look($1, $2)")
                .with(self.session.id)
                .with(signed(ask.nonce()));
            let looked = self.session.call(look).await;
            // It is in the room, whatever became of this look.
            found = looked.map_err(|error| error.with_effect(Effect::Unknown))?;
        }
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        let path = self.path(Kind::DoubleBarrier, name);
        if !self.others(&path, grant).await? {
            return Ok(());
        }
        let topic = self.session.topic(&path).await?;
        while self.others(&path, grant).await? {
            tokio::select! {
                () = topic.changed() => {}
                () = tokio::time::sleep(self.session.patience()) => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Settle for PostgresBarrier {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        match self.leave(ask, Some(grant.token())).await? {
            true => Ok(()),
            false => Err(Error::lost(LossReason::Revoked)),
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        if ask.kind() != Kind::Barrier {
            return self.leave(ask, None).await.map(drop);
        }
        let path = self.path_of(ask);
        let mut main = self.session.main().await;
        if !main.is_over() {
            match main.call(self.unhold_step(ask, &path)).await {
                Ok(_) => {
                    announce(&mut main, &path).await;
                    return Ok(());
                }
                Err(error) if !main.is_over() => return Err(error),
                Err(_) => {}
            }
        }
        drop(main);
        self.unhold_for_the_dead(ask, &path).await
    }
}

const ANNOUNCE: &str = "SELECT tenure.tell_path($1)";

/// Tells those who wait at a barrier that its hold has ended, once that is durable: see `50_barrier.sql`. Should it
/// fail, they find out by themselves.
async fn announce(main: &mut MainGuard<'_>, path: &str) {
    if let Err(error) = main.call(step(ANNOUNCE).with(path)).await {
        tracing::debug!(error = %error.chain(), "could not announce the end of a hold");
    }
}

/// Tries until it works: whoever waits must not begin anew.
async fn persistently<T, F>(attempt: impl Fn() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    loop {
        match attempt().await {
            Err(error) if error.is_retryable() => {
                tokio::time::sleep(AGAIN).await;
            }
            done => return done,
        }
    }
}
