//! What clients saw, in one line of time.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tenure_core::FencingToken;
use tokio::time::Instant;

use super::jsonl::{Line, nanos, token};

/// What happened to a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum What {
    /// It asked for the lock.
    Asked,
    /// Its ask was granted.
    Granted(#[serde(with = "token")] FencingToken),
    /// Its ask ended without a grant, and certainly left none.
    Refused,
    /// Its ask ended, or was given up, without it learning whether there was a grant.
    Unknown,
    /// The register took its write under this token.
    Wrote(#[serde(with = "token")] FencingToken),
    /// The register refused its write under this token, by its count, while the client believed
    /// that it held the lock (`true`) or knew better (`false`).
    WriteRefused(#[serde(with = "token")] FencingToken, bool),
    /// It is about to look whether its guard is valid.
    Looks(#[serde(with = "token")] FencingToken),
    /// It was valid when it looked.
    Valid(#[serde(with = "token")] FencingToken),
    /// It ceased to believe that it holds the lock.
    Ended(#[serde(with = "token")] FencingToken),
    /// It began to release, while it still believed.
    Releasing(#[serde(with = "token")] FencingToken),
    /// Its release was confirmed.
    Released(#[serde(with = "token")] FencingToken),
    /// It begins a commit that the store takes only while the lock is held.
    Commits(#[serde(with = "token")] FencingToken),
    /// That commit was acknowledged: it held the lock in the store, whatever it believed.
    Committed(#[serde(with = "token")] FencingToken),
    /// Something was done to its network or its store.
    Fault(Cow<'static, str>),
}

/// One line of a history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, since the history began.
    #[serde(with = "nanos")]
    pub at: Duration,
    /// Who.
    pub client: usize,
    /// What.
    pub what: What,
}

impl Line for Event {
    const KIND: &'static str = "lock";
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:>10.3?} client {} {:?}",
            self.at, self.client, self.what
        )
    }
}

/// A record of what many clients saw, in the order in which it was recorded.
#[derive(Debug)]
pub struct History {
    start: Instant,
    events: Mutex<Vec<Event>>,
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// Begins now.
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
            events: Mutex::default(),
        }
    }

    /// Adds a line. Clock and order agree: both are taken under one lock.
    pub fn record(&self, client: usize, what: What) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let at = self.start.elapsed();
        events.push(Event { at, client, what });
    }

    /// What was recorded so far.
    pub fn events(&self) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.clone()
    }
}

/// The lines around the one that went wrong, for a counterexample.
pub(crate) fn excerpt(events: &[Event], around: usize) -> String {
    let from = around.saturating_sub(8);
    let to = (around + 4).min(events.len());
    events[from..to]
        .iter()
        .map(|event| format!("\n    {event}"))
        .collect()
}

#[cfg(test)]
pub(crate) fn told(lines: &[(usize, What)]) -> Vec<Event> {
    lines
        .iter()
        .enumerate()
        .map(|(at, (client, what))| Event {
            at: Duration::from_millis(at as u64),
            client: *client,
            what: what.clone(),
        })
        .collect()
}
