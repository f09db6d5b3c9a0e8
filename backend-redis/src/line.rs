//! Standing in a line, whatever the line is for (see `lua/line.lua`).
//!
//! An acquire takes a place, then sleeps until it is told of its turn, or until the lease of the place
//! that it waits for ends: nobody tells of that.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tenure_core::backend::{Ask, Grant, Kind, News, Side};
use tenure_core::{Error, FencingToken, LossReason, Name, Result};

use crate::error;
use crate::layout::{self, hex};
use crate::scripts::{self, Script};
use crate::session::RedisSession;
use crate::step::{Arg, Reply};

/// How often the place right behind a holder looks by itself, for the case that an operator has
/// removed the holder's: nobody tells of that. Only this one place does so.
const SLOW_CHECK: Duration = Duration::from_secs(1);

/// By how many milliseconds those who are not next look later than the lease before them ends, at least and at most:
/// whoever is next tells them.
const LATER: [u64; 2] = [20, 120];

/// The side of whatever is not shared is that of a writer.
pub(crate) const fn side_of(side: Side) -> &'static str {
    match side {
        Side::Read => "r",
        Side::Write => "w",
    }
}

/// A time between the [two](LATER), another one for each ask.
fn later(nonce: u64) -> Duration {
    let [least, most] = LATER;
    let random = RandomState::new().hash_one(nonce);
    Duration::from_millis(least + random % (most - least))
}

impl RedisSession {
    /// The path of the line for an ask.
    fn path_for(&self, ask: &Ask) -> String {
        self.path_of(ask.kind(), ask.name())
    }

    /// The path of an object.
    pub(crate) fn path_of(&self, kind: Kind, name: &Name) -> String {
        match self.client.config.interop && kind == Kind::Lock {
            true => layout::interop_path(name),
            false => layout::path(kind, name),
        }
    }

    /// A grant's key: the line, and whose place in it. The last `#` parts them.
    pub(crate) fn place_granted(&self, ask: &Ask, token: FencingToken) -> Grant {
        let key = format!(
            "{}{}#{}:{}",
            self.root,
            self.path_for(ask),
            self.id,
            hex(ask.nonce())
        );
        Grant::new(token, key)
    }

    /// Takes a place with `join` if that holds at once; leaves nothing behind if not.
    pub(crate) async fn try_line(
        &self,
        ask: &Ask,
        join: &'static Script,
        side: Side,
        more: &[Arg<'_>],
    ) -> Result<Option<Grant>> {
        let trying = self.tried_line(ask, join, side, more);
        let index = &self.index;
        index.expecting(ask.nonce(), trying, Option::is_none).await
    }

    async fn tried_line(
        &self,
        ask: &Ask,
        join: &'static Script,
        side: Side,
        more: &[Arg<'_>],
    ) -> Result<Option<Grant>> {
        // One step buries so many of the dead that are before us.
        let joined = loop {
            let joined = self.join(ask, join, side, "try", more).await?;
            if joined.status() != "more" {
                break joined;
            }
        };
        match joined.status() {
            "held" => Ok(Some(self.place_granted(ask, joined.token(0)?))),
            "none" => Ok(None),
            // The place was taken by an earlier attempt whose answer was lost, and is not the first
            // any more: an operator has been there.
            "wait" => {
                let withdrawn = self.withdraw_from_store(ask).await;
                withdrawn.map(|()| None).map_err(error::of_one_who_waits)
            }
            "foreign" => Err(error::foreign(joined.text(0)?)),
            _ => Err(joined.unexpected()),
        }
    }

    /// Takes a place with `join`, and waits until it holds.
    pub(crate) async fn stand_in_line(
        &self,
        ask: &Ask,
        join: &'static Script,
        side: Side,
        more: &[Arg<'_>],
    ) -> Result<Grant> {
        let standing = self.stood_in_line(ask, join, side, more);
        let index = &self.index;
        index.expecting(ask.nonce(), standing, |_| false).await
    }

    async fn stood_in_line(
        &self,
        ask: &Ask,
        join: &'static Script,
        side: Side,
        more: &[Arg<'_>],
    ) -> Result<Grant> {
        let waiting = self.waiting(ask.nonce());
        let mut found = self.join(ask, join, side, "wait", more).await?;
        let mut seen_over = found.connection();
        loop {
            let patience = match found.status() {
                "held" => return Ok(self.place_granted(ask, found.token(0)?)),
                "wait" => {
                    let ends = Duration::from_millis(found.unsigned(0)?);
                    let next = found.int(1)? == 1;
                    seen_over = found.connection();
                    match next {
                        true => ends.min(SLOW_CHECK),
                        false => ends + later(ask.nonce()),
                    }
                }
                // Not an operator's doing: the server lost the place with its newest writes.
                "none" if found.connection() > seen_over => {
                    let joined = self.join(ask, join, side, "wait", more).await;
                    found = joined.map_err(error::of_one_who_waits)?;
                    seen_over = found.connection();
                    continue;
                }
                "none" => return Err(error::removed_from_line()),
                "foreign" => return Err(error::foreign(found.text(0)?)),
                _ => return Err(found.unexpected()),
            };
            let news = tokio::select! {
                news = waiting.news() => Some(news),
                () = tokio::time::sleep(patience) => None,
                () = ask.withdrawn() => return Err(Error::withdrawn()),
            };
            let how = match news {
                Some(News::Granted(token)) => return Ok(self.place_granted(ask, token)),
                Some(News::Look) => "told",
                None => "untold",
            };
            let path = self.path_for(ask);
            found = self
                .step(&scripts::LOOK, ask.nonce(), &[(&path).into(), how.into()])
                .await
                .map_err(error::of_one_who_waits)?;
        }
    }

    async fn join(
        &self,
        ask: &Ask,
        join: &'static Script,
        side: Side,
        how: &str,
        more: &[Arg<'_>],
    ) -> Result<Reply> {
        let path = self.path_for(ask);
        let mut arguments = vec![(&path).into(), side_of(side).into(), how.into()];
        arguments.extend_from_slice(more);
        self.step(join, ask.nonce(), &arguments).await
    }

    /// Gives back with `leave` what `ask` was granted.
    pub(crate) async fn leave_line(
        &self,
        ask: &Ask,
        leave: &'static Script,
        grant: &Grant,
    ) -> Result<()> {
        let path = self.path_for(ask);
        let arguments = [(&path).into(), grant.token().into()];
        let left = self.step_once(leave, ask.nonce(), &arguments).await?;
        self.index.forget(&hex(ask.nonce()));
        match left.status() {
            "ok" => Ok(()),
            "gone" => Err(Error::lost(LossReason::Revoked)),
            _ => Err(left.unexpected()),
        }
    }

    /// Takes up for `ask` what this session holds on `side` under `token`.
    pub(crate) async fn take_up_in_line(
        &self,
        ask: &Ask,
        token: FencingToken,
        side: Side,
    ) -> Result<Option<Grant>> {
        let path = self.path_for(ask);
        let arguments = [(&path).into(), side_of(side).into(), token.into()];
        let taking = async {
            let taken = self
                .step(&scripts::RECLAIM, ask.nonce(), &arguments)
                .await?;
            match taken.status() {
                "held" => {
                    let before = taken.text(1)?;
                    if before != hex(ask.nonce()) {
                        self.index.forget(before);
                    }
                    Ok(Some(self.place_granted(ask, taken.token(0)?)))
                }
                "none" => Ok(None),
                _ => Err(taken.unexpected()),
            }
        };
        let index = &self.index;
        index.expecting(ask.nonce(), taking, Option::is_none).await
    }

    /// Removes whatever `ask` has, of any kind.
    pub(crate) async fn withdraw_from_store(&self, ask: &Ask) -> Result<()> {
        let withdraw = match ask.kind() {
            Kind::Election => &scripts::WITHDRAW_ELECTION,
            Kind::DoubleBarrier => &scripts::WITHDRAW_BARRIER,
            Kind::Lock if self.client.config.interop => &scripts::WITHDRAW_INTEROP,
            _ => &scripts::WITHDRAW_LOCK,
        };
        let withdrawn = self.step(withdraw, ask.nonce(), &[]).await?;
        match withdrawn.status() {
            "ok" => {
                self.index.forget_all(ask.nonce());
                Ok(())
            }
            _ => Err(withdrawn.unexpected()),
        }
    }
}
