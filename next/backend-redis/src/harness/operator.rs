//! The controls of an operator.

use std::time::Duration;

use tenure_conformance::{Operator, async_trait};
use tenure_core::name::{escape, object_at};
use tenure_core::{Error, ErrorKind, FencingToken, Kind, Result, SessionId};

use super::RedisHarness;

#[async_trait]
impl Operator for RedisHarness {
    async fn revoke(&self, session: &SessionId) -> Result<()> {
        self.backend().await?.end_session(session).await.map(drop)
    }

    async fn revoke_request(&self, key: &str) -> Result<()> {
        let missing = || Error::new(ErrorKind::Conflict, "there is no such holding");
        let reader = self.reader().await?;
        let (path, request) = key
            .trim_start_matches(reader.root())
            .rsplit_once('#')
            .ok_or_else(missing)?;
        let (session, rest) = request.split_once(':').ok_or_else(missing)?;
        let request = format!("{session}:{}:", rest.split(':').next().unwrap_or_default());
        let tokens: Vec<u64> = if path.starts_with("queue/") {
            // All items of the take; each claim ends with its token.
            let claims: Vec<String> = reader.ask("HVALS", &format!("{path}/claims"), &[]).await?;
            let token = |claim: &String| claim.strip_prefix(&request)?.parse().ok();
            claims.iter().filter_map(token).collect()
        } else {
            let holders = format!("{path}/holders");
            let holders: Vec<(String, u64)> = reader.ask("ZRANGE", &holders, &["0", "-1", "WITHSCORES"]).await?;
            let is_it = |(member, _): &&(String, u64)| member.starts_with(&request);
            holders.iter().filter(is_it).map(|(_, token)| *token).collect()
        };
        let (kind, name) = object_at(path).ok_or_else(missing)?;
        let operator = self.backend().await?;
        let mut broken = !tokens.is_empty();
        for token in tokens {
            broken &= operator.break_holding(kind, &name, FencingToken::new(token)).await?;
        }
        match broken {
            true => Ok(()),
            false => Err(missing()),
        }
    }

    async fn keys(&self) -> Result<Vec<String>> {
        let reader = self.reader().await?;
        let mut found = Vec::new();
        for key in reader.keys("*").await? {
            let members = match key.rsplit_once('/') {
                Some((_, "holders" | "waiters")) => reader.members(&key).await?,
                Some(("held", _)) => reader.fields(&key).await?,
                Some((path, "values")) if path.starts_with("queue/") => reader.fields(&key).await?,
                _ => continue,
            };
            found.extend(members.iter().map(|member| format!("{key} {member}")));
        }
        Ok(found)
    }

    async fn waiters(&self, kind: Kind, name: &str) -> Result<Vec<SessionId>> {
        let waiters = format!("{}/{}/waiters", kind.as_str(), escape(name));
        let members = self.reader().await?.members(&waiters).await?;
        let session = |member: &String| member.split(':').next().map(SessionId::new);
        Ok(members.iter().filter_map(session).collect())
    }

    async fn sessions(&self) -> Result<usize> {
        let server = self.own("counting the sessions of a server that others use")?;
        let sessions = server.admin().keys("*/session/*");
        sessions
            .map(|keys| keys.len())
            .map_err(tenure_conformance::out_of_order)
    }

    async fn restart(&self) -> Result<()> {
        self.act("restarting the server", |server| {
            server.kill()?;
            server.restart()
        })
        .await
    }

    async fn disturb(&self) -> Result<()> {
        self.act("disturbing the server", |server| {
            server.admin().execute(&["SCRIPT", "FLUSH"])
        })
        .await
    }

    async fn pause(&self) -> Result<()> {
        self.act("pausing the server", |server| server.pause()).await
    }

    async fn resume(&self) -> Result<()> {
        self.act("continuing the server", |server| server.resume()).await
    }

    async fn clock_forward(&self, by: Duration) -> Result<()> {
        self.act("moving the server's clock", move |server| server.move_clock(by))
            .await
    }

    async fn clock_back(&self, by: Duration) -> Result<()> {
        self.act("moving the server's clock", move |server| server.move_clock_back(by))
            .await
    }

    async fn snapshot(&self) -> Result<()> {
        self.act("backing the server up", |server| server.save_snapshot()).await
    }

    async fn restore(&self) -> Result<()> {
        self.act("restoring the server", |server| server.restore_snapshot())
            .await
    }
}
