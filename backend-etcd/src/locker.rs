//! Locks, as in Go's `concurrency.Mutex`: the lowest create revision under the prefix holds, and
//! is the token.
//!
//! Taking a free lock is one transaction, releasing it another. What differs from Go: the line is
//! watched before it is needed (see `line.rs`), a waiter whose lease ended is never granted, a
//! lost answer leaves no ghost (see `ticket.rs`), and the release compares the create revision.

use std::sync::Arc;

use tenure_core::backend::{Ask, Grant, Locker, Settle, async_trait};
use tenure_core::{Effect, Error, FencingToken, Result};

use crate::line::Line;
use crate::session::EtcdSession;

/// The locks of one session.
pub struct EtcdLocker {
    pub(crate) session: Arc<EtcdSession>,
}

impl EtcdLocker {
    fn line(&self, ask: &Ask) -> Arc<Line> {
        let shared = &self.session.shared;
        shared
            .lines
            .line(shared.layout.line(ask.kind(), ask.name()))
    }

    fn granted(key: String, token: i64) -> Grant {
        Grant::new(FencingToken::new(token.unsigned_abs()), key)
    }

    /// Core withdraws an ask whose error says that something may stand in the line. That is so
    /// whenever a request of it went out, whatever failed afterwards; else it is forgotten here.
    fn failed(&self, ask: &Ask, line: &Line, error: Error) -> Error {
        let tickets = &self.session.tickets;
        if tickets.may_stand(ask) {
            return error.with_effect(Effect::Unknown);
        }
        line.leave(&tickets.key(ask, line.prefix()));
        tickets.forget(ask);
        error
    }

    async fn wait_in_line(&self, ask: &Ask, line: &Line) -> Result<Grant> {
        let tickets = &self.session.tickets;
        let announced = tickets.key(ask, line.prefix());
        let entering = line.enter(&announced, ask.alarm());
        let placed = tickets.place(ask, line.prefix()).await;
        let key = tickets.key(ask, line.prefix());
        if key != announced {
            line.unannounce(&announced);
        }
        let placed = placed?;
        let token = placed.token;
        line.stands(&key, token, ask.alarm());
        tokio::select! {
            biased;
            () = ask.withdrawn() => return Err(Error::withdrawn()),
            turn = line.wait_turn(entering, placed) => turn?,
        }
        Ok(Self::granted(key, token))
    }
}

pub(crate) fn revision(token: FencingToken) -> i64 {
    i64::try_from(token.get()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Locker for EtcdLocker {
    async fn try_acquire(&self, ask: &Ask) -> Result<Option<Grant>> {
        let (line, tickets) = (self.line(ask), &self.session.tickets);
        let key = tickets.key(ask, line.prefix());
        let entering = line.enter(&key, ask.alarm());
        let token = tickets.place_if_free(ask, line.prefix()).await;
        if let Ok(Some(token)) = token {
            line.stands(&key, token, ask.alarm());
        }
        drop(entering);
        match token {
            Ok(Some(token)) => Ok(Some(Self::granted(key, token))),
            Ok(None) => {
                line.leave(&key);
                Ok(None)
            }
            Err(error) => Err(self.failed(ask, &line, error)),
        }
    }

    async fn acquire(&self, ask: &Ask) -> Result<Grant> {
        let line = self.line(ask);
        let granted = self.wait_in_line(ask, &line).await;
        granted.map_err(|error| self.failed(ask, &line, error))
    }
}

#[async_trait]
impl Settle for EtcdLocker {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.line(ask).leave(grant.key());
        self.session
            .tickets
            .release(ask, revision(grant.token()))
            .await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        let (line, tickets) = (self.line(ask), &self.session.tickets);
        line.leave(&tickets.key(ask, line.prefix()));
        tickets.withdraw(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        let (line, tickets) = (self.line(ask), &self.session.tickets);
        let token = revision(token);
        let Some(key) = tickets.take_up(ask, line.prefix(), token).await? else {
            return Ok(None);
        };
        line.stands(&key, token, ask.alarm());
        Ok(Some(Self::granted(key, token)))
    }
}
