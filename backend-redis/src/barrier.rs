//! Barriers and double barriers (see `lua/barrier.lua`).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Barrier, Grant, Kind, News, Settle};
use tenure_core::{Error, FencingToken, HoldFor, LossReason, Name, Result};

use crate::error;
use crate::index::Repeat;
use crate::layout::{hex, path, path_of};
use crate::scripts;
use crate::session::RedisSession;
use crate::step::Reply;

/// How many a double barrier may have: the step in which it closes looks at all of them, and must
/// not keep other clients waiting.
const MOST: u32 = 1_000;

/// How often whoever waits looks though nobody told: what was removed by hand is not announced.
const SLOW: Duration = Duration::from_secs(5);

/// The barriers and double barriers of a session on Redis.
#[derive(Debug)]
pub struct RedisBarrier {
    session: Arc<RedisSession>,
}

impl RedisBarrier {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }

    /// The token of the hold that stands, and when its session's lease ends.
    async fn look(&self, path: &str) -> Result<Option<(FencingToken, Duration)>> {
        let script = &scripts::BARRIER_LOOK;
        let seen = self.session.step(script, 0, &[path.into()]).await?;
        match seen.status() {
            "none" => Ok(None),
            "held" => {
                // One for good has no lease.
                let lease = seen.int(1)?;
                let lease = u64::try_from(lease).map_or(SLOW, Duration::from_millis);
                Ok(Some((seen.token(0)?, lease.min(SLOW))))
            }
            _ => Err(seen.unexpected()),
        }
    }

    /// How a double barrier stands for one who waits in front of it or, with the token of one who
    /// was inside, has left.
    async fn look_into_room(&self, nonce: u64, path: &str, left: &str) -> Result<Reply> {
        let script = &scripts::DOUBLE_BARRIER_LOOK;
        let arguments = [path.into(), left.into()];
        self.session.step(script, nonce, &arguments).await
    }

    async fn enter_once(&self, ask: &Ask, path: &str, count: u32) -> Result<Reply> {
        let script = &scripts::DOUBLE_BARRIER_ENTER;
        let arguments = [path.into(), u64::from(count).into()];
        self.session.step(script, ask.nonce(), &arguments).await
    }

    /// Enters, and waits until all are there.
    async fn entered(&self, ask: &Ask, path: &str, count: u32) -> Result<Grant> {
        let waiting = self.session.waiting(ask.nonce());
        let mut found = self.enter_once(ask, path, count).await?;
        let mut seen_over = found.connection();
        loop {
            match found.status() {
                "held" => return Ok(self.session.place_granted(ask, found.token(0)?)),
                "wait" => seen_over = found.connection(),
                // Not an operator's doing: the server lost it with its newest writes.
                "gone" if found.connection() > seen_over => {
                    let entered = self.enter_once(ask, path, count).await;
                    found = entered.map_err(error::of_one_who_waits)?;
                    seen_over = found.connection();
                    continue;
                }
                "gone" => return Err(error::removed_from_line()),
                "full" => return Err(error::one_too_many()),
                "count" => return Err(error::another_count(found.unsigned(0)?)),
                _ => return Err(found.unexpected()),
            }
            let news = tokio::select! {
                news = waiting.news() => news,
                () = tokio::time::sleep(SLOW) => News::Look,
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            };
            if let News::Granted(token) = news {
                return Ok(self.session.place_granted(ask, token));
            }
            let looked = self.look_into_room(ask.nonce(), path, "").await;
            found = looked.map_err(error::of_one_who_waits)?;
        }
    }

    fn may_repeat(&self, what: &'static str, path: String, of: String) {
        let repeat = Repeat { what, path, of };
        self.session.index.may_repeat(self.session.ttl(), repeat);
    }

    /// When to look again at those who have yet to leave; none once all have.
    async fn others(&self, path: &str, grant: &Grant) -> Result<Option<Duration>> {
        let left = grant.token().to_string();
        let seen = self.look_into_room(0, path, &left).await?;
        match seen.status() {
            "none" => Ok(None),
            "wait" => Ok(Some(Duration::from_millis(seen.unsigned(0)?).min(SLOW))),
            _ => Err(seen.unexpected()),
        }
    }
}

#[async_trait]
impl Barrier for RedisBarrier {
    async fn hold(&self, ask: &Ask, hold_for: HoldFor) -> Result<()> {
        let bound = u64::from(hold_for == HoldFor::Session);
        let path = path_of(ask);
        let arguments = [(&path).into(), bound.into()];
        let held = self
            .session
            .step_once(&scripts::BARRIER_HOLD, ask.nonce(), &arguments)
            .await?;
        match held.status() {
            "ok" => Ok(()),
            "conflict" => Err(error::held()),
            _ => Err(held.unexpected()),
        }
    }

    async fn lift(&self, ask: &Ask) -> Result<bool> {
        let path = path_of(ask);
        let lifted = self
            .session
            .step_once(&scripts::BARRIER_LIFT, ask.nonce(), &[(&path).into()])
            .await?;
        match lifted.status() {
            "ok" => {
                let token = lifted.unsigned(0)?;
                if token > 0 {
                    let of = token.to_string();
                    self.may_repeat("lift", path, of);
                }
                Ok(token > 0)
            }
            _ => Err(lifted.unexpected()),
        }
    }

    async fn is_held(&self, name: &Name) -> Result<bool> {
        let path = path(Kind::Barrier, name);
        Ok(self.look(&path).await?.is_some())
    }

    async fn wait(&self, name: &Name) -> Result<()> {
        let path = path(Kind::Barrier, name);
        let Some((met, _)) = self.look(&path).await? else {
            return Ok(());
        };
        let topic = self.session.topic(&path).await?;
        loop {
            // Another hold than the one that was met: that one has ended.
            let lease = match self.look(&path).await? {
                Some((now, lease)) if now == met => lease,
                _ => return Ok(()),
            };
            tokio::select! {
                () = topic.changed() => {}
                () = tokio::time::sleep(lease) => {}
            }
        }
    }

    async fn enter(&self, ask: &Ask, count: NonZeroU32) -> Result<Grant> {
        let count = count.get();
        if count > MOST {
            return Err(error::too_many(count, MOST));
        }
        let path = path_of(ask);
        let entering = self.entered(ask, &path, count);
        let index = &self.session.index;
        index.expecting(ask.nonce(), entering, |_| false).await
    }

    async fn all_left(&self, name: &Name, grant: &Grant) -> Result<()> {
        let path = path(Kind::DoubleBarrier, name);
        if self.others(&path, grant).await?.is_none() {
            return Ok(());
        }
        let topic = self.session.topic(&path).await?;
        while let Some(lease) = self.others(&path, grant).await? {
            tokio::select! {
                () = topic.changed() => {}
                () = tokio::time::sleep(lease) => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Settle for RedisBarrier {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let path = path_of(ask);
        let arguments = [(&path).into(), grant.token().into()];
        let left = self
            .session
            .step_once(&scripts::DOUBLE_BARRIER_LEAVE, ask.nonce(), &arguments)
            .await?;
        self.session.index.forget(&hex(ask.nonce()));
        match left.status() {
            "ok" => Ok(()),
            "gone" => Err(Error::lost(LossReason::Revoked)),
            _ => Err(left.unexpected()),
        }
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        if ask.kind() != Kind::Barrier {
            return self.session.withdraw_from_store(ask).await;
        }
        let path = path_of(ask);
        let script = &scripts::BARRIER_UNHOLD;
        let arguments = [(&path).into()];
        let unheld = self.session.step(script, ask.nonce(), &arguments).await?;
        match unheld.status() {
            "ok" => {
                // A hold that went unanswered keeps its slot for an attempt that will not come.
                self.session.settled(ask.nonce());
                self.may_repeat("unhold", path, hex(ask.nonce()));
                Ok(())
            }
            _ => Err(unheld.unexpected()),
        }
    }
}
