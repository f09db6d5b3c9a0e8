//! Elections: a line whose first place leads, and those who watch it (see `lua/election.lua`).

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Election, Grant, Kind, Settle, Side, Sighting};
use tenure_core::{Error, FencingToken, Leader, LossReason, Name, Result};

use crate::error;
use crate::layout::{path, path_of};
use crate::scripts;
use crate::session::RedisSession;
use crate::step::Reply;

/// The elections of a session on Redis.
#[derive(Debug)]
pub struct RedisElection {
    session: Arc<RedisSession>,
}

impl RedisElection {
    pub(crate) fn new(session: Arc<RedisSession>) -> Self {
        Self { session }
    }

    /// The error of a leader without a value.
    fn damaged(&self, path: &str, found: &Reply) -> Error {
        match found.text(0) {
            Ok(field) => {
                let key = format!("{}{path}/values", self.session.root);
                error::damaged_leader(&key, field)
            }
            Err(error) => error,
        }
    }
}

/// The leader that a reply shows, its token in the field `first` and its value behind.
fn leader_in(reply: &Reply, first: usize) -> Result<Leader> {
    let value = reply.bytes(first + 1)?;
    let value = value.ok_or_else(|| reply.unexpected())?;
    Ok(Leader::new(value, reply.token(first)?))
}

#[async_trait]
impl Settle for RedisElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        let leave = &scripts::LEAVE;
        self.session.leave_line(ask, leave, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_store(ask).await
    }

    async fn reclaim(&self, ask: &Ask, token: FencingToken) -> Result<Option<Grant>> {
        self.session.take_up_in_line(ask, token, Side::Write).await
    }
}

#[async_trait]
impl Election for RedisElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        let campaign = &scripts::CAMPAIGN;
        self.session
            .try_line(ask, campaign, Side::Write, &[value.into()])
            .await
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        let campaign = &scripts::CAMPAIGN;
        self.session
            .stand_in_line(ask, campaign, Side::Write, &[value.into()])
            .await
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let path = path_of(ask);
        let arguments = [
            (&path).into(),
            grant.token().into(),
            number.into(),
            value.into(),
        ];
        let session = &self.session;
        let proclaimed = session
            .step(&scripts::PROCLAIM, ask.nonce(), &arguments)
            .await?;
        match proclaimed.status() {
            "ok" => Ok(()),
            "gone" => Err(Error::lost(LossReason::Revoked)),
            _ => Err(proclaimed.unexpected()),
        }
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        let path = path(Kind::Election, name);
        loop {
            let found = self
                .session
                .step(&scripts::LEADER, 0, &[(&path).into()])
                .await?;
            match found.status() {
                "ok" => return leader_in(&found, 0).map(Some),
                "none" => return Ok(None),
                "damaged" => return Err(self.damaged(&path, &found)),
                "more" => {}
                _ => return Err(found.unexpected()),
            }
        }
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let path = path(Kind::Election, name);
        // Before the first look, so that nothing that changes after it goes unheard.
        let topic = self.session.topic(&path).await?;
        loop {
            let seen = self
                .session
                .step(&scripts::OBSERVE, 0, &[(&path).into()])
                .await?;
            let (leader, ends) = match seen.status() {
                "ok" => {
                    let ends = Duration::from_millis(seen.unsigned(1)?);
                    (Some(leader_in(&seen, 2)?), Some(ends))
                }
                "none" => (None, None),
                "damaged" => return Err(self.damaged(&path, &seen)),
                "more" => continue,
                _ => return Err(seen.unexpected()),
            };
            let order = seen.unsigned(0)?;
            if after.is_none_or(|after| order > after) {
                return Ok(Sighting { order, leader });
            }
            let lease_ends = async {
                match ends {
                    Some(ends) => tokio::time::sleep(ends).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = topic.changed() => {}
                () = lease_ends => {}
            }
        }
    }
}
