//! Locks, read-write locks and elections: exclusion, the order of tokens, and what observers see.
//!
//! A lock is a read-write lock without readers, and a leadership is a lock with a value. One history belongs to one
//! object.
//!
//! * Tokens rise as granted: each grant's token is above all tokens that were granted before the request began.
//! * Tokens rise as accepted: a gate accepts no access after one that excludes it and has a greater token.
//! * One order explains all holdings. The tokens are this order, so it is found without a search.
//! * Requests are granted in the order of their arrival, where the history shows that one had joined
//!   ([`check_arrival`]).
//! * An observer never goes back, sees only what was proclaimed, and at last sees the last state.
//!
//! A request of unknown outcome constrains nothing: a grant that it may have had was given back.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::journal::Operation;
use super::jsonl::Recorded;
use super::sequence::{Known, Violation, explain};
pub use super::sequence::{Mode, Proof};

mod holdings;
mod observers;

use holdings::{holdings, meetings};

/// A request to an object, or to the gate behind it. Tokens are plain numbers here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockCall {
    /// Requests the object: a lock, a read, a write, a campaign.
    Acquire {
        /// How it is shared.
        mode: Mode,
    },
    /// Asks the store whether the request of another client waits: `Done` if it has joined and was not granted. It is
    /// the last request for the object that this client made before.
    Waits {
        /// The client.
        client: u64,
    },
    /// Asks a guard whether it is valid.
    Check {
        /// The guard's token.
        token: u64,
    },
    /// Does something that the store does for a holder alone, such as a fenced commit.
    Confirm {
        /// The guard's token.
        token: u64,
    },
    /// Presents the token to the gate, which accepts or refuses it.
    Access {
        /// The guard's token.
        token: u64,
        /// As which holder.
        mode: Mode,
    },
    /// Turns an exclusive holding into a shared one under the same token.
    Downgrade {
        /// The guard's token.
        token: u64,
    },
    /// Releases the object.
    Release {
        /// The guard's token.
        token: u64,
    },
    /// Replaces a leader's value.
    Proclaim {
        /// The leadership's token.
        token: u64,
        /// Counts the proclamations of the leadership from 1; 0 is the value of the campaign.
        number: u64,
    },
    /// Reads the state of an election.
    Observe {
        /// The observer. Its operations follow one another.
        observer: u64,
        /// Whether the answer has to include all that was acknowledged before the call. This holds for a question to
        /// the store, and for the last state of an observer that had the time to receive all.
        current: bool,
    },
}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockAnswer {
    /// The request was granted under this token.
    Granted(u64),
    /// It was done: the guard is valid, the gate has accepted, the store has confirmed or released.
    Done,
    /// It was not done: the guard is not valid, the gate or the store has refused, the object was busy.
    Refused,
    /// The election shows this leader, or a vacancy.
    Shows(Option<Shown>),
}

/// A leader, as an election shows it. Later states are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Shown {
    /// The leadership's token.
    pub token: u64,
    /// The number of the proclamation, 0 for the value of the campaign.
    pub number: u64,
}

/// One operation of a history of a lock, a read-write lock or an election.
pub type LockOperation = Operation<LockCall, LockAnswer>;

impl Recorded for LockOperation {
    const KIND: &'static str = "lock";
}

impl fmt::Display for LockCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |mode: &Mode| match mode {
            Mode::Exclusive => "exclusive",
            Mode::Shared => "shared",
        };
        match self {
            Self::Acquire { mode } => write!(f, "acquire {}", word(mode)),
            Self::Waits { client } => write!(f, "read whether client {client} waits"),
            Self::Check { token } => write!(f, "check validity of token {token}"),
            Self::Confirm { token } => write!(f, "fenced step under token {token}"),
            Self::Access { token, mode } => {
                write!(f, "{} access at the gate under token {token}", word(mode))
            }
            Self::Downgrade { token } => write!(f, "downgrade token {token}"),
            Self::Release { token } => write!(f, "release token {token}"),
            Self::Proclaim { token, number } => {
                write!(f, "proclaim value {number} under token {token}")
            }
            Self::Observe { observer, current } => {
                let kind = if *current { "read" } else { "receive" };
                write!(f, "observer {observer}: {kind} the leader")
            }
        }
    }
}

impl fmt::Display for LockAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(token) => write!(f, "token {token}"),
            Self::Done => f.write_str("ok"),
            Self::Refused => f.write_str("refused"),
            Self::Shows(None) => f.write_str("vacancy"),
            Self::Shows(Some(shown)) => {
                write!(f, "value {} of token {}", shown.number, shown.token)
            }
        }
    }
}

/// The contents of a history without a violation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Grants with a known token.
    pub grants: usize,
    /// Shared holdings that began during another shared holding.
    pub shared: usize,
    /// Holdings that began while a guard that excludes them still said that it was valid. With [`Proof::Store`] alone
    /// they are no violation.
    pub overlaps: usize,
    /// Requests that were seen waiting, if their order was judged.
    pub waited: usize,
    /// Accesses that the gate accepted.
    pub accepted: usize,
    /// Accesses that the gate refused.
    pub refused: usize,
    /// States that observers received or read.
    pub shown: usize,
}

/// Judges the history of one object.
///
/// # Errors
///
/// The first violation.
pub fn check(history: &[LockOperation], proof: Proof) -> Result<Summary, Violation> {
    let mentions = Known::new(mentions(history).map(|(token, at, index)| (at, token, index)));
    let grants = tokens_rise(history, &mentions)?;
    gate_in_order(history)?;
    let believed = holdings(history, Proof::Guards);
    let (shared, overlaps) = meetings(history, &believed);
    let lasting = match proof {
        Proof::Guards => believed,
        Proof::Store => holdings(history, Proof::Store),
    };
    explain(history, "the object", &lasting)?;
    observers::check(history, &mentions, &lasting)?;
    let count = |answer| {
        let accesses = history.iter().filter(|op| matches!(op.input, LockCall::Access { .. }));
        accesses.filter(|op| op.answer() == Some(&answer)).count()
    };
    Ok(Summary {
        grants,
        shared,
        overlaps,
        waited: 0,
        accepted: count(LockAnswer::Done),
        refused: count(LockAnswer::Refused),
        shown: history.iter().filter(|op| shown(op).is_some()).count(),
    })
}

/// Returns the tokens of a history, each with an instant by which it had been granted: a client knows a token only from
/// a grant.
fn mentions(history: &[LockOperation]) -> impl Iterator<Item = (u64, u64, usize)> + '_ {
    history.iter().enumerate().filter_map(|(index, op)| {
        let (token, at) = match (op.input, op.answer()) {
            (LockCall::Acquire { .. }, Some(LockAnswer::Granted(token))) => (*token, op.latest()),
            (LockCall::Observe { .. }, Some(LockAnswer::Shows(Some(shown)))) => (shown.token, op.latest()),
            (input, _) => (token_of(&input)?, op.invoked),
        };
        Some((token, at, index))
    })
}

/// Returns the token of a request.
const fn token_of(call: &LockCall) -> Option<u64> {
    match call {
        LockCall::Acquire { .. } | LockCall::Waits { .. } | LockCall::Observe { .. } => None,
        LockCall::Check { token }
        | LockCall::Confirm { token }
        | LockCall::Access { token, .. }
        | LockCall::Downgrade { token }
        | LockCall::Release { token }
        | LockCall::Proclaim { token, .. } => Some(*token),
    }
}

fn granted(op: &LockOperation) -> Option<u64> {
    match op.answer() {
        Some(LockAnswer::Granted(token)) => Some(*token),
        _ => None,
    }
}

fn shown(op: &LockOperation) -> Option<Option<Shown>> {
    match op.answer() {
        Some(LockAnswer::Shows(shown)) => Some(*shown),
        _ => None,
    }
}

fn done(op: &LockOperation) -> bool {
    op.answer() == Some(&LockAnswer::Done)
}

fn tokens_rise(history: &[LockOperation], mentions: &Known) -> Result<usize, Violation> {
    let mut seen: HashMap<u64, usize> = HashMap::new();
    for (index, op) in history.iter().enumerate() {
        let Some(token) = granted(op) else { continue };
        if let Some(first) = seen.insert(token, index) {
            let what = format!("token {token} was granted twice");
            return Err(Violation::new(history, what, [first, index]));
        }
        if let Some((floor, before)) = mentions.before(op.invoked)
            && floor >= token
        {
            let what = format!(
                "tokens fell: token {token} was granted to a request that began after token {floor} had been granted"
            );
            return Err(Violation::new(history, what, [before, index]));
        }
    }
    Ok(seen.len())
}

/// Judges whether requests are granted in the order of their arrival, as far as the history shows it: one that was seen
/// waiting is granted before each that began afterwards, unless both share. Returns how many requests were seen.
///
/// # Errors
///
/// The first violation.
pub fn check_arrival(history: &[LockOperation]) -> Result<usize, Violation> {
    let mut requests: HashMap<u64, usize> = HashMap::new();
    let mut seen: BTreeMap<usize, u64> = BTreeMap::new();
    for (index, op) in history.iter().enumerate() {
        match op.input {
            LockCall::Acquire { .. } => {
                requests.insert(op.client, index);
            }
            LockCall::Waits { client } if done(op) => {
                if let Some(request) = requests.get(&client) {
                    seen.entry(*request).or_insert(op.latest());
                }
            }
            _ => {}
        }
    }
    let joined = |exclusive_alone: bool| {
        Known::new(seen.iter().filter_map(|(index, at)| {
            let op = &history[*index];
            let counts = !exclusive_alone || op.input == LockCall::Acquire { mode: Mode::Exclusive };
            granted(op).filter(|_| counts).map(|token| (*at, token, *index))
        }))
    };
    let (all, exclusive) = (joined(false), joined(true));
    for (index, op) in history.iter().enumerate() {
        let (LockCall::Acquire { mode }, Some(token)) = (op.input, granted(op)) else {
            continue;
        };
        let before = match mode {
            Mode::Exclusive => &all,
            Mode::Shared => &exclusive,
        };
        if let Some((later, before)) = before.before(op.invoked)
            && later > token
        {
            let what = format!("token {token} was granted to a request that began while that of token {later} waited");
            return Err(Violation::new(history, what, [before, index]));
        }
    }
    Ok(seen.len())
}

fn gate_in_order(history: &[LockOperation]) -> Result<(), Violation> {
    let accepted = |exclusive_alone: bool| {
        let accesses = history.iter().enumerate().filter(|(_, op)| done(op));
        Known::new(accesses.filter_map(move |(index, op)| match op.input {
            LockCall::Access { token, mode } if mode == Mode::Exclusive || !exclusive_alone => {
                Some((op.latest(), token, index))
            }
            _ => None,
        }))
    };
    let (all, exclusive) = (accepted(false), accepted(true));
    for (index, op) in history.iter().enumerate().filter(|(_, op)| done(op)) {
        let LockCall::Access { token, mode } = op.input else {
            continue;
        };
        let before = match mode {
            Mode::Exclusive => &all,
            Mode::Shared => &exclusive,
        };
        if let Some((newer, before)) = before.before(op.invoked)
            && newer > token
        {
            let what = format!("the gate accepted token {token} after token {newer}, which excludes it");
            return Err(Violation::new(history, what, [before, index]));
        }
    }
    Ok(())
}
