//! Elections: a line whose holder leads, and the row by which others see it (see
//! `migrations/functions/20_election.sql`).

use std::sync::Arc;

use async_trait::async_trait;
use tenure_core::backend::{Ask, Election, Grant, Kind, Settle, Side, Sighting, path};
use tenure_core::{Error, Leader, LossReason, Name, Result};

use crate::error;
use crate::key::signed;
use crate::session::PostgresSession;
use crate::step::{Row, step};

/// The elections of a session on PostgreSQL: the leader has the advisory lock of the name.
#[derive(Debug)]
pub struct PostgresElection {
    session: Arc<PostgresSession>,
}

impl PostgresElection {
    pub(crate) fn new(session: Arc<PostgresSession>) -> Self {
        Self { session }
    }

    fn path(&self, name: &Name) -> String {
        path(&self.session.client.config.namespace, Kind::Election, name)
    }

    async fn look(&self, path: &str, after: Option<i64>) -> Result<Sighting> {
        const LOOK: &str = "SELECT version, token, value FROM tenure.election_observe($1, $2)";
        let seen = self.session.read(|| step(LOOK).with(path).with(after));
        let seen = seen.await?;
        let seen = seen.first()?;
        let order = u64::try_from(seen.get::<i64>("version")?)
            .map_err(|error| error::unexpected(LOOK, error))?;
        let leader = leader_in(seen)?;
        Ok(Sighting { order, leader })
    }
}

fn leader_in(row: Row<'_>) -> Result<Option<Leader>> {
    let Some(token) = row.token("token")? else {
        return Ok(None);
    };
    let value: Option<&[u8]> = row.get("value")?;
    Ok(Some(Leader::new(value.unwrap_or_default(), token)))
}

#[async_trait]
impl Settle for PostgresElection {
    async fn release(&self, ask: &Ask, grant: &Grant) -> Result<()> {
        self.session.leave_line(ask, grant).await
    }

    async fn withdraw(&self, ask: &Ask) -> Result<()> {
        self.session.withdraw_from_line(ask, Side::Write).await
    }
}

#[async_trait]
impl Election for PostgresElection {
    async fn try_campaign(&self, ask: &Ask, value: &[u8]) -> Result<Option<Grant>> {
        self.session.try_line(ask, Side::Write, Some(value)).await
    }

    async fn campaign(&self, ask: &Ask, value: &[u8]) -> Result<Grant> {
        self.session
            .stand_in_line(ask, Side::Write, Some(value))
            .await
    }

    async fn proclaim(&self, ask: &Ask, grant: &Grant, number: u64, value: &[u8]) -> Result<()> {
        let gone = || Error::lost(LossReason::Revoked);
        // To oneself, so that it is held until after the step.
        let mut main = self.session.main().await;
        let Some(key) = main.own().held(ask.nonce(), grant.token()) else {
            return Err(gone());
        };
        let path = self.path(ask.name());
        let proclaim = step("SELECT tenure.election_proclaim($1, $2, $3, $4, $5, $6) AS leads")
            .with(self.session.id)
            .with(signed(ask.nonce()))
            .with(&path)
            .with(key)
            .with(i64::try_from(number).unwrap_or(i64::MAX))
            .with(value);
        let proclaimed = main.call(proclaim).await?;
        match proclaimed.first()?.get("leads")? {
            true => Ok(()),
            false => Err(gone()),
        }
    }

    async fn leader(&self, name: &Name) -> Result<Option<Leader>> {
        let path = self.path(name);
        let found = self
            .session
            .read(|| step("SELECT token, value FROM tenure.election_leader($1)").with(&path));
        leader_in(found.await?.first()?)
    }

    async fn observe(&self, name: &Name, after: Option<u64>) -> Result<Sighting> {
        let path = self.path(name);
        // What nobody has seen yet needs no ears.
        let seen = after.map(|after| i64::try_from(after).unwrap_or(i64::MAX));
        let news = |sighting: &Sighting| after.is_none_or(|after| sighting.order > after);
        let sighting = self.look(&path, seen).await?;
        if news(&sighting) {
            return Ok(sighting);
        }
        // And then before the look, so that nothing that changes after it goes unheard.
        let topic = self.session.topic(&path).await?;
        loop {
            let sighting = self.look(&path, seen).await?;
            if news(&sighting) {
                return Ok(sighting);
            }
            tokio::select! {
                () = topic.changed() => {}
                () = tokio::time::sleep(self.session.watchfulness()) => {}
            }
        }
    }
}
