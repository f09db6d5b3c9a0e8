//! Standing in a line of etcd, whatever the line is for.
//!
//! Taking what is free is one transaction, giving it back another. What differs from Go: the line
//! is watched before it is needed (see `line.rs`), a waiter whose lease ended is never granted, a
//! lost answer leaves no ghost (see `ticket.rs`), and the release compares the create revision.

use std::sync::Arc;

use tenure_core::backend::{Ask, Grant, Kind, Side};
use tenure_core::{Effect, Error, FencingToken, Result};

use crate::floor::{Floor, revision, token};
use crate::line::Line;
use crate::session::EtcdSession;
use crate::sides::Sides;

impl EtcdSession {
    fn line(&self, ask: &Ask) -> Arc<Line> {
        let shared = &self.shared;
        let sides = match (ask.kind(), shared.interop) {
            (Kind::RwLock, false) => Sides::InValue,
            (Kind::RwLock, true) => Sides::InKey,
            _ => Sides::Alone,
        };
        let prefix = shared.layout.line(ask.kind(), ask.name());
        shared.lines.line(prefix, sides)
    }

    /// Core withdraws an ask whose error says that something may stand in the line. That is so
    /// whenever a request of it went out, whatever failed afterwards; else it is forgotten here.
    fn failed(&self, ask: &Ask, line: &Line, side: Side, error: Error) -> Error {
        if self.tickets.may_stand(ask) {
            return error.with_effect(Effect::Unknown);
        }
        line.leave(&self.tickets.key(ask, line, side));
        self.tickets.forget(ask);
        error
    }

    async fn wait_in_line(&self, ask: &Ask, line: &Line, side: Side) -> Result<Grant> {
        let tickets = &self.tickets;
        let announced = tickets.key(ask, line, side);
        let entering = line.enter(&announced, ask.alarm());
        let placed = tickets.place(ask, line, side).await;
        let key = tickets.key(ask, line, side);
        if key != announced {
            line.unannounce(&announced);
        }
        let (placed, floor) = placed?;
        let created = placed.token;
        line.stands(&key, created, ask.alarm());
        let turn = async {
            let waited = line.wait_turn(entering, placed).await?;
            self.granted(ask, key, created, &floor, waited).await
        };
        tokio::select! {
            biased;
            () = ask.withdrawn() => Err(Error::withdrawn()),
            granted = turn => granted,
        }
    }

    /// The grant of `ask`, whose `key` was created at `created` by a transaction that read `floor`.
    async fn granted(
        &self,
        ask: &Ask,
        key: String,
        created: i64,
        floor: &Floor,
        waited: bool,
    ) -> Result<Grant> {
        let floors = &self.shared.floors;
        let epoch = match waited {
            true => floors.epoch_of(&key, created).await?,
            false => floor.epoch(),
        };
        if ask.kind() == Kind::Election && epoch != floor.epoch_at(created) {
            floors.publish(&key, created, epoch, self.lease).await?;
        }
        Ok(Grant::new(token(epoch, created), key))
    }

    /// Takes a place if that holds at once; leaves nothing behind if not.
    pub(crate) async fn try_line(&self, ask: &Ask, side: Side) -> Result<Option<Grant>> {
        let (line, tickets) = (self.line(ask), &self.tickets);
        let announced = tickets.key(ask, &line, side);
        let entering = line.enter(&announced, ask.alarm());
        let placed = tickets.place_if_free(ask, &line, side).await;
        let key = tickets.known_key(ask).unwrap_or_else(|| announced.clone());
        if key != announced {
            line.unannounce(&announced);
        }
        if let Ok(Some((created, _))) = placed {
            line.stands(&key, created, ask.alarm());
        }
        drop(entering);
        match placed {
            Ok(Some((created, floor))) => {
                let granted = self.granted(ask, key, created, &floor, false).await;
                let granted = granted.map_err(|error| self.failed(ask, &line, side, error));
                granted.map(Some)
            }
            Ok(None) => {
                line.leave(&key);
                Ok(None)
            }
            Err(error) => Err(self.failed(ask, &line, side, error)),
        }
    }

    /// Takes a place and waits until it holds.
    pub(crate) async fn stand_in_line(&self, ask: &Ask, side: Side) -> Result<Grant> {
        let line = self.line(ask);
        let granted = self.wait_in_line(ask, &line, side).await;
        granted.map_err(|error| self.failed(ask, &line, side, error))
    }

    /// Gives back what `ask` was granted.
    pub(crate) async fn leave_line(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.line(ask).leave(grant.key());
        self.tickets.release(ask, revision(grant.token())).await
    }

    /// Removes whatever `ask` has, or may still get.
    pub(crate) async fn withdraw_from_line(&self, ask: &Ask) -> Result<()> {
        if let Some(key) = self.tickets.known_key(ask) {
            self.line(ask).leave(&key);
        }
        self.tickets.withdraw(ask).await
    }

    /// Takes up what the session held under `token` before it was detached.
    pub(crate) async fn take_up_in_line(
        &self,
        ask: &Ask,
        token: FencingToken,
        side: Side,
    ) -> Result<Option<Grant>> {
        let (line, created) = (self.line(ask), revision(token));
        let Some(key) = self.tickets.take_up(ask, &line, side, created).await? else {
            return Ok(None);
        };
        line.stands(&key, created, ask.alarm());
        Ok(Some(Grant::new(token, key)))
    }
}
