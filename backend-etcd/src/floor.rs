//! The token floor: what an operator raises after the store lost its history.
//!
//! A token is an *epoch* and a revision: the epoch in the bits above the lowest 42, the create revision of the
//! holder's key below them. The epoch is zero until the floor is raised for the first time, so a token is the plain
//! revision until then. From a token the revision is read off again, wherever a transaction compares it.
//!
//! The epoch is in one key of the namespace, and never falls. Every grant that a transaction decides (what is free,
//! a claim of an item, the opening of a double barrier) reads it in that transaction. A waiter is granted by the
//! deletion of another's key, without a request. It uses an epoch that this client read less than [`TRUSTED`] ago;
//! else it reads the epoch together with its own key.
//!
//! So the floor rises in two steps. The first marks the key as rising: what is read from then on is not kept. The
//! second writes the new epoch, after longer than [`TRUSTED`]: no client uses the old one after that. Without the wait,
//! a waiter might be granted under the old epoch behind one that had the new epoch.
//!
//! Observers see the key of a leader, not the epoch under which it was granted. That is the one of the key's create
//! revision, so the floor's key lists since when each epoch counts. A candidate that waited while the floor rose
//! leads under a later epoch: it says so in a key of its own, below that of the floor.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use etcd_client::proto::PbKeyValue;
use etcd_client::{Compare, CompareOp, GetOptions, PutOptions, Txn, TxnOp};
use tenure_core::{Clock, Error, ErrorKind, FencingToken, LossReason, Moment, Result};

use crate::client::Wire;
use crate::layout::Layout;
use crate::ticket::{odd, ranges};

/// How many bits of a token the revision has.
const REVISION_BITS: u32 = 42;

/// No session is opened from this revision on: it leaves 2^40 revisions, which is years of writes.
const LAST_REVISION: i64 = 3 << 40;

/// For how long an epoch that was read may be used. By a clock that goes on while the machine is suspended.
const TRUSTED: Duration = Duration::from_secs(1);

/// How long the floor is rising. Longer than [`TRUSTED`] by more than clocks differ in their rates.
const RISING: Duration = Duration::from_millis(1_300);

const MARK: &str = "rising";

/// The create revision in `token`.
pub(crate) fn revision(token: FencingToken) -> i64 {
    let revision = token.get() & ((1 << REVISION_BITS) - 1);
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// The token of what was created at `revision` and is granted in `epoch`.
pub(crate) fn token(epoch: u64, revision: i64) -> FencingToken {
    FencingToken::new((epoch << REVISION_BITS) | revision.unsigned_abs())
}

/// Refuses a store whose revisions would soon not fit into a token.
pub(crate) fn check_room(revision: i64) -> Result<()> {
    if revision < LAST_REVISION {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Config,
        format!(
            "etcd's revision is {revision}, and tokens are made for revisions below {LAST_REVISION}: use another cluster"
        ),
    ))
}

/// What the floor's key says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Floor {
    /// Each epoch, and the revision that began it.
    raises: Vec<(u64, i64)>,
    /// Whether a greater epoch may follow at any time.
    rising: bool,
    /// The key's last revision; zero without a key.
    changed: i64,
}

impl Floor {
    fn read(kv: Option<&PbKeyValue>) -> Result<Self> {
        let mut floor = Self::default();
        let Some(kv) = kv else {
            return Ok(floor);
        };
        floor.changed = kv.mod_revision;
        let unreadable = || odd("a token floor that cannot be read");
        let value = std::str::from_utf8(&kv.value).map_err(|_| unreadable())?;
        for word in value.split_whitespace() {
            if word == MARK {
                floor.rising = true;
                continue;
            }
            let (epoch, since) = word.split_once(':').ok_or_else(unreadable)?;
            let since = match since {
                "" => kv.mod_revision, // written by the change itself
                since => since.parse().map_err(|_| unreadable())?,
            };
            let epoch = epoch.parse().map_err(|_| unreadable())?;
            floor.raises.push((epoch, since));
        }
        Ok(floor)
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.raises.last().map_or(0, |(epoch, _)| *epoch)
    }

    /// The epoch in which a key was created.
    pub(crate) fn epoch_at(&self, created: i64) -> u64 {
        let raise = self.raises.iter().rev().find(|(_, since)| *since < created);
        raise.map_or(0, |(epoch, _)| *epoch)
    }

    /// The value of the key with `last` at its end.
    fn followed_by(&self, last: &str) -> String {
        let mut value = String::new();
        for (epoch, since) in &self.raises {
            value.push_str(&format!("{epoch}:{since} "));
        }
        value + last
    }
}

/// Before a question for the floor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    at: Moment,
    /// The history of the store at that time.
    history: u64,
}

/// The token floor of one namespace, as this client knows it.
pub(crate) struct Floors {
    wire: Arc<Wire>,
    /// None in interop mode, in which tokens are plain revisions.
    key: Option<String>,
    clock: Clock,
    known: Mutex<Option<(Asked, u64)>>,
}

impl Floors {
    pub(crate) fn new(wire: Arc<Wire>, layout: &Layout, interop: bool) -> Self {
        Self {
            wire,
            key: (!interop).then(|| layout.token_floor()),
            clock: Clock::boottime(),
            known: Mutex::new(None),
        }
    }

    /// To be called before a transaction with [`look`](Self::look) is sent.
    pub(crate) fn asks(&self) -> Asked {
        Asked {
            at: self.clock.now(),
            history: self.wire.history().epoch(),
        }
    }

    /// Reads the floor.
    pub(crate) fn look(&self) -> Option<TxnOp> {
        self.key.as_ref().map(|key| TxnOp::get(key.as_str(), None))
    }

    /// Takes the answer to [`look`](Self::look) from those to a transaction's reads.
    pub(crate) fn hear(
        &self,
        asked: Asked,
        answers: &mut impl Iterator<Item = (Vec<PbKeyValue>, bool)>,
    ) -> Result<Floor> {
        if self.key.is_none() {
            return Ok(Floor::default());
        }
        let (kvs, _) = answers.next().ok_or_else(|| odd("no token floor"))?;
        let floor = Floor::read(kvs.first())?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if floor.rising {
            *known = None;
        } else if known.as_ref().is_none_or(|(last, _)| last.at < asked.at) {
            *known = Some((asked, floor.epoch()));
        }
        Ok(floor)
    }

    fn known(&self) -> Option<u64> {
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (asked, epoch) = known?;
        let now = self.asks();
        (asked.history == now.history && now.at.since(asked.at) < TRUSTED).then_some(epoch)
    }

    /// Returns the epoch for a waiter whose `key`, created at `created`, is now the first in line.
    ///
    /// # Errors
    ///
    /// `Lost` if the key is gone: a greater epoch would overtake the waiters behind it.
    pub(crate) async fn epoch_of(&self, key: &str, created: i64) -> Result<u64> {
        let Some(look) = self.look() else {
            return Ok(0);
        };
        if let Some(epoch) = self.known() {
            return Ok(epoch);
        }
        let asked = self.asks();
        let own = TxnOp::get(key, Some(GetOptions::new().with_keys_only()));
        let txn = Txn::new().and_then([look, own]);
        let answer = self.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        let mut answers = ranges(answer.await?).into_iter();
        let floor = self.hear(asked, &mut answers)?;
        let own = answers.next().and_then(|(kvs, _)| kvs.into_iter().next());
        if own.is_none_or(|own| own.create_revision != created) {
            return Err(Error::lost(LossReason::Revoked));
        }
        Ok(floor.epoch())
    }

    /// True as long as the floor is what it was in `floor`.
    pub(crate) fn unchanged(&self, floor: &Floor) -> Option<Compare> {
        let key = self.key.as_ref()?;
        Some(Compare::mod_revision(
            key.as_str(),
            CompareOp::Equal,
            floor.changed,
        ))
    }

    /// Says in which epoch the leader with `key`, created at `created`, leads, if its create revision does not. Writes
    /// the key as well, so that observers look again.
    pub(crate) async fn publish(
        &self,
        key: &str,
        created: i64,
        epoch: u64,
        lease: i64,
    ) -> Result<()> {
        let Some(record) = self.record_of(key) else {
            return Ok(());
        };
        let epoch = epoch.to_string();
        let again = PutOptions::new().with_ignore_value().with_ignore_lease();
        let txn = Txn::new()
            .when([Compare::create_revision(key, CompareOp::Equal, created)])
            .and_then([
                TxnOp::put(record, epoch, Some(PutOptions::new().with_lease(lease))),
                TxnOp::put(key, "", Some(again)),
            ]);
        let answer = self.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        match answer.await?.succeeded() {
            true => Ok(()),
            false => Err(Error::lost(LossReason::Revoked)),
        }
    }

    fn record_of(&self, leader: &str) -> Option<String> {
        let own = leader.rsplit('/').next()?;
        Some(format!("{}/{own}", self.key.as_ref()?))
    }

    /// Reads the floor, and what leaders say of theirs.
    pub(crate) fn look_with_leaders(&self) -> Option<TxnOp> {
        let all = GetOptions::new().with_prefix();
        let key = self.key.as_ref()?;
        Some(TxnOp::get(key.as_str(), Some(all)))
    }

    /// The token of the leader with `key`, created at `created`, by the answer to
    /// [`look_with_leaders`](Self::look_with_leaders).
    pub(crate) fn token_of_leader(
        &self,
        found: &[PbKeyValue],
        key: &[u8],
        created: i64,
    ) -> Result<FencingToken> {
        let at = |wanted: &str| found.iter().find(|kv| kv.key == wanted.as_bytes());
        let floor = self.key.as_deref().and_then(at);
        let record = self.record_of(&String::from_utf8_lossy(key));
        let said = record.as_deref().and_then(at).map(|kv| {
            let epoch = std::str::from_utf8(&kv.value).ok();
            let epoch = epoch.and_then(|epoch| epoch.parse().ok());
            epoch.ok_or_else(|| odd("a leader's epoch that cannot be read"))
        });
        let epoch = match said {
            Some(epoch) => epoch?,
            None => Floor::read(floor)?.epoch_at(created),
        };
        Ok(token(epoch, created))
    }

    /// Raises the epoch until every token that is granted from now on is at least `floor`.
    pub(crate) async fn raise(&self, floor: FencingToken) -> Result<()> {
        let key = self.key.as_deref().ok_or_else(|| {
            Error::unsupported(
                "raising the token floor in interop mode, where tokens are the revisions that Go's library compares,",
            )
        })?;
        let epoch = floor.get().div_ceil(1 << REVISION_BITS);
        loop {
            let read = self.wire.call_repeatable(|client| {
                let mut kv = client.kv_client();
                let txn = Txn::new().and_then([TxnOp::get(key, None)]);
                async move { kv.txn(txn).await }
            });
            let found = ranges(read.await?).into_iter().next();
            let found = found.and_then(|(kvs, _)| kvs.into_iter().next());
            let now = Floor::read(found.as_ref())?;
            if now.epoch() >= epoch {
                return Ok(());
            }
            if !now.rising {
                self.replace(key, &now, now.followed_by(MARK)).await?;
                continue; // read again: at which revision
            }
            // Also where another process began it, maybe a moment ago.
            tokio::time::sleep(RISING).await;
            let raised = now.followed_by(&format!("{epoch}:"));
            self.replace(key, &now, raised).await?;
        }
    }

    /// Writes the key if it is still that of `now`.
    async fn replace(&self, key: &str, now: &Floor, value: String) -> Result<()> {
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, now.changed)])
            .and_then([TxnOp::put(key, value, None)]);
        let answer = self.wire.call_repeatable(|client| {
            let (mut kv, txn) = (client.kv_client(), txn.clone());
            async move { kv.txn(txn).await }
        });
        answer.await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floor(value: &str, changed: i64) -> Floor {
        let kv = PbKeyValue {
            value: value.into(),
            mod_revision: changed,
            ..PbKeyValue::default()
        };
        Floor::read(Some(&kv)).unwrap()
    }

    #[test]
    fn tokens_give_their_revision_back_and_rise_with_the_epoch() {
        for epoch in [0, 1, 2, 1_024] {
            for created in [1, 77, LAST_REVISION] {
                let token = token(epoch, created);
                assert_eq!(revision(token), created);
                assert!(token <= FencingToken::MAX);
            }
        }
        assert_eq!(token(0, 42).get(), 42);
        assert!(token(1, 1) > token(0, LAST_REVISION));
        let highest = FencingToken::MAX.get() / 2;
        assert!(token(highest.div_ceil(1 << REVISION_BITS), 1).get() > highest);
        assert!(check_room(LAST_REVISION - 1).is_ok() && check_room(LAST_REVISION).is_err());
    }

    #[test]
    fn a_floor_says_since_when_each_epoch_counts() {
        assert_eq!(Floor::read(None).unwrap().epoch(), 0);
        let first = floor(MARK, 10);
        assert!(first.rising && first.epoch() == 0);
        let raised = floor(&first.followed_by("2:"), 20);
        assert!(!raised.rising);
        let epochs = |floor: &Floor| [19, 21, 31, 41].map(|created| floor.epoch_at(created));
        assert_eq!((raised.epoch(), epochs(&raised)), (2, [0, 2, 2, 2]));
        let again = floor(&raised.followed_by(MARK), 30);
        assert!(again.rising);
        assert_eq!((again.epoch(), epochs(&again)), (2, [0, 2, 2, 2]));
        let twice = floor(&again.followed_by("3:"), 40);
        assert_eq!((twice.epoch(), epochs(&twice)), (3, [0, 2, 2, 3]));
        let bad = PbKeyValue {
            value: b"2".to_vec(),
            ..PbKeyValue::default()
        };
        assert!(Floor::read(Some(&bad)).is_err(), "an epoch must not fall");
    }
}
