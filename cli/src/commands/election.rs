//! `tenure elect`, `tenure leader`, `tenure observe`.

use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

use serde_json::{Value, json};
use tenure::{Leader, Session};

use crate::args::{Elect, Global, Named};
use crate::exit::{self, Failure};
use crate::hold::Plan;
use crate::{output, store, words, work};

pub(crate) async fn elect(global: &Global, args: &Elect) -> Result<u8, Failure> {
    let (name, value, command) = args.subject()?;
    let (name, value) = (store::name(name)?, value.as_bytes());
    let take = async |session: &Session, limit: Option<Duration>| {
        let election = session.election(&name)?;
        match limit {
            Some(Duration::ZERO) => election.try_campaign(value).await,
            Some(limit) => election.campaign_timeout(value, limit).await,
            None => election.campaign(value).await,
        }
    };
    Plan::new(global, &name, &args.hold, command)
        .leading(value)
        .carry_out(args.wait.limit(), take)
        .await
}

pub(crate) async fn leader(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    let question = async |session: &Session| session.election(&name)?.leader().await;
    work::ask(global, question, |leader| {
        match &leader {
            _ if global.json => sighting(name.as_str(), leader.as_ref()).print()?,
            Some(leader) => output::line(&output::printable_bytes(leader.value()))?,
            None => output::line("no leader")?,
        }
        Ok(exit::of_answer(leader.is_some()))
    })
    .await
}

pub(crate) async fn observe(global: &Global, args: &Named) -> Result<u8, Failure> {
    let name = store::name(&args.name)?;
    work::in_session(global, async |session, signals| {
        let mut observer = session.election(&name)?.observe();
        loop {
            let seen = tokio::select! {
                biased;
                _ = signals.ending() => return Ok(exit::DONE),
                seen = observer.next() => seen,
            };
            match seen {
                Some(seen) => {
                    let leader = seen?;
                    let line = if global.json {
                        sighting(name.as_str(), leader.as_ref()).text()
                    } else {
                        line(leader.as_ref())
                    };
                    // A reader may take its time, and a signal must still end this.
                    tokio::select! {
                        biased;
                        printed = output::aside(move || output::line(&line)) => printed?,
                        _ = signals.ending() => return Ok(exit::DONE),
                    }
                }
                // Only the end of the session ends it without an error, and that comes later.
                None => return Err(Failure::new(exit::INTERNAL, "the observer has ended")),
            }
        }
    })
    .await
}

/// A state of an election on a line: a value cannot pass for a vacancy.
fn line(leader: Option<&Leader>) -> String {
    match leader {
        Some(leader) => {
            let value = words::word(leader.value());
            format!("leader={value} token={}", leader.token())
        }
        None => "no leader".to_owned(),
    }
}

fn sighting(name: &str, leader: Option<&Leader>) -> output::Object {
    let mut object = output::Object::new();
    object.set("name", name.into());
    object.set_bytes("leader", leader.map(Leader::value));
    let token = leader.map_or(Value::Null, |leader| json!(leader.token().get()));
    object.set("token", token);
    object
}
