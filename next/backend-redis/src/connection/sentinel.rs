//! The primary that a majority of the sentinels names.

use std::sync::Arc;

use futures_util::stream::{FuturesUnordered, StreamExt};
use tenure_core::{Credentials, Effect, Result};

use super::dial::{Purpose, dial, text};
use super::topology::{Failures, ask, elements};
use crate::config::{Address, RedisConfig, refuse};
use crate::error::{self, ServerMessage, unavailable};

/// Returns the address that more than half of the configured sentinels name. A sentinel that is cut off from the others may not
/// know of a failover, and names a primary that goes on beside the new one.
pub(super) async fn ask_sentinels(
    config: &Arc<RedisConfig>,
    service: &str,
    credentials: Option<&Credentials>,
) -> Result<Address> {
    let ask = |sentinel| ask_sentinel(config, sentinel, service, credentials);
    let mut answers: FuturesUnordered<_> = config.hosts.iter().map(ask).collect();
    let mut votes: Vec<(Address, usize)> = Vec::new();
    let mut failures = Failures::default();
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(Some(address)) => {
                let known = votes.iter().position(|(known, _)| *known == address);
                let index = known.unwrap_or_else(|| {
                    votes.push((address.clone(), 0));
                    votes.len() - 1
                });
                votes[index].1 += 1;
                if votes[index].1 > config.hosts.len() / 2 {
                    return Ok(address);
                }
            }
            Ok(None) => failures.add(refuse(format!("the sentinels know no service `{service}`"))),
            Err(error) => failures.add(error),
        }
    }
    if votes.is_empty() {
        return Err(failures.worst("no sentinel answers"));
    }
    let votes: Vec<_> = votes
        .iter()
        .map(|(address, count)| format!("{address} ({count})"))
        .collect();
    let error = unavailable(format!(
        "no primary is named by more than half of the {} sentinels in the URL, only {}",
        config.hosts.len(),
        votes.join(", ")
    ));
    Err(match failures.0 {
        Some(failure) => error.with_source(failure),
        None => error,
    })
}

async fn ask_sentinel(
    config: &Arc<RedisConfig>,
    sentinel: &Address,
    service: &str,
    credentials: Option<&Credentials>,
) -> Result<Option<Address>> {
    let socket = dial(config, sentinel, Purpose::Sentinel(credentials.cloned()), None).await?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("get-master-addr-by-name").arg(service);
    let answer = ask(config, &socket, &command).await?.map_err(|error| {
        if error.to_string().contains("nknown command") {
            let message = format!("{sentinel} is not a sentinel: write `redis://` for one server");
            return refuse(message).with_source(ServerMessage::from(error));
        }
        error::from_redis(error).with_effect(Effect::None).at(sentinel)
    })?;
    let [host, port] = elements(&answer) else {
        return Ok(None);
    };
    Ok(text(port).parse().ok().map(|port| Address { host: text(host), port }))
}
